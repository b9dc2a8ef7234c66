"""NumPy or CuPy: which library holds an array, and how arrays move between the two.

A kernel asks ``array_module(x)`` once, calls the answer ``xp`` and is written for both. CuPy is imported
only when a device is asked for, so that a machine without a GPU never pays for it or notices it.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

#: A numpy.ndarray, or a cupy.ndarray: kernels do not care which.
Array: TypeAlias = Any


def array_module(x: Array) -> ModuleType:
    """The library that holds ``x``: numpy or cupy.

    Errors: TypeError for anything that is not an array of one of the two.
    """
    return np if isinstance(x, (np.ndarray, np.generic)) else not_numpy(x)


def not_numpy(x: Array) -> ModuleType:
    """CuPy, where it holds ``x``. Errors: TypeError for anything that is no array."""
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, getattr(cupy, "ndarray", ())):
        return cupy
    raise TypeError(f"expected a NumPy or CuPy array, got {type(x).__name__}")


def as_array(x: Any) -> Array:
    """``x`` as an array: NumPy reduces to scalars."""
    return x if isinstance(x, np.ndarray) else array_module(x).asarray(x)


def add(a: Array, b: Array) -> Array:
    """a + b in a new array that lies in memory as ``a`` does: CuPy's own ``+`` would lay it out in row-major order."""
    if a.dtype != b.dtype:
        return a + b
    xp = array_module(a)
    return xp.add(a, b, out=xp.empty_like(a))


def is_array(x: Any) -> bool:
    """Whether this is a NumPy or CuPy array."""
    try:
        array_module(x)
    except TypeError:
        return False
    return True


def all_finite(x: Any) -> bool:
    """Whether every value is finite; what holds no floating-point numbers is."""
    return not is_array(x) or x.dtype.kind != "f" or bool(array_module(x).isfinite(x).all())


def device_of(x: Array) -> str:
    """``"cpu"`` for a NumPy array, ``"cuda"`` for a CuPy array."""
    return "cpu" if array_module(x) is np else "cuda"


def cuda_problem() -> str | None:
    """Why ``"cuda"`` cannot be used here, in one sentence; None where it can."""
    try:
        if "cupy" not in sys.modules:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # CuPy's own remarks about what it misses: the sentence says it
                importlib.import_module("cupy")
        return problem_of(importlib.import_module("cupy"))
    except ImportError as error:
        if error.name == "cupy":
            return "CuPy is not installed: pip install 'cupy-cuda12x[ctk]' (or 'cupy-cuda13x[ctk]' for CUDA 13)"
        return f"CuPy is installed and cannot be imported ({first_line(error)}): install it anew"
    except Exception as error:  # a broken installation may raise anything on the way
        return f"CuPy is installed and does not work here ({first_line(error)}): install it anew"


@functools.cache
def problem_of(cupy: ModuleType) -> str | None:
    """What keeps CuPy from working, found out once by a small product: an import alone says nothing.

    Source: ``import cupy`` works without a driver, and a matrix product needs the CUDA toolkit's libraries.
    """
    try:
        if not cupy.cuda.is_available():
            return "CuPy is installed and finds no GPU: check the driver with nvidia-smi"
        ones = cupy.ones((2, 2), "float32")
        if float((ones @ ones).sum()) == 8:
            return None
        return "CuPy is installed and computes wrong numbers here: check the GPU with nvidia-smi"
    except AttributeError as error:
        place = getattr(cupy, "__file__", None) or list(getattr(cupy, "__path__", ["?"]))[0]
        return f"what is imported as cupy is not CuPy ({place}: {first_line(error)}): move it out of the way"
    except ImportError as error:
        return f"CuPy is installed without the CUDA toolkit ({first_line(error)}): pip install 'cupy-cuda12x[ctk]'"
    except Exception as error:
        return f"CuPy is installed and does not work here ({first_line(error)}): check the driver with nvidia-smi"


def first_line(error: Exception) -> str:
    """An exception in one line: its class and the beginning of its message."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def check_device(device: str) -> str:
    """``device`` as ``"cpu"`` or ``"cuda"``.

    Errors: ValueError for another name; RuntimeError for cuda where there is none, saying what to install.
    """
    if device == "cpu":
        return "cpu"
    if device in ("cuda", "cuda:0"):
        problem = cuda_problem()
        if problem is not None:
            raise RuntimeError(f'device "cuda" is not available: {problem}')
        return "cuda"
    raise ValueError(f'device: expected "cpu" or "cuda", got {device!r}')


def to_device(x: Array, device: str) -> Array:
    """``x`` on ``device``: itself where it is there already, otherwise a copy."""
    device = check_device(device)
    if device_of(x) == device:
        return x
    return to_numpy(x) if device == "cpu" else importlib.import_module("cupy").asarray(x)


def to_numpy(x: Array) -> np.ndarray:
    """``x`` as a NumPy array: itself on the CPU, a copy from the GPU, where this waits for all work before it."""
    return np.asarray(x) if array_module(x) is np else x.get()


# ---- What differs between the two, by what it means: a kernel asks for this, and never for the library's name ------


def values_are_at_hand(xp: ModuleType) -> bool:
    """Whether Python may look at a value at once: on a GPU it would wait for all the work before it."""
    return xp is np


def blocks_pay(xp: ModuleType) -> bool:
    """Whether work is to be cut into blocks that fit a processor's cache.

    On a GPU each block would cost another round of kernel launches.
    """
    return xp is np


def one_launch(function: Callable, x: Array) -> Callable:
    """A chain of element-wise steps as one pass: ``function`` itself for a NumPy ``x``.

    For a CuPy ``x`` the same lines compiled into one GPU kernel. The function works on arrays in place, has no branches
    and returns nothing; two numbers must not meet in it, since CuPy would compute ``1 - beta`` with three digits.
    Source: cupy.fuse.
    """
    xp = array_module(x)
    return function if xp is np else fused(function, xp)


@functools.cache
def fused(function: Callable, cupy: ModuleType) -> Callable:
    """cupy.fuse(function), compiled once a function."""
    return cupy.fuse(function)
