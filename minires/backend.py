"""NumPy or CuPy: which library holds an array, and how arrays move between the two.

A kernel asks ``array_module(x)`` once, calls the answer ``xp`` and is written for both. CuPy is imported
only when a device is asked for, so that a machine without a GPU never pays for it or notices it.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

#: A numpy.ndarray, or a cupy.ndarray: kernels do not care which.
Array: TypeAlias = Any


def array_module(x: Array) -> ModuleType:
    """The library that holds ``x``: numpy or cupy.

    Errors: TypeError for anything that is not an array of one of the two.
    """
    if isinstance(x, (np.ndarray, np.generic)):
        return np
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, cupy.ndarray):
        return cupy
    raise TypeError(f"expected a NumPy or CuPy array, got {type(x).__name__}")


def device_of(x: Array) -> str:
    """``"cpu"`` for a NumPy array, ``"cuda"`` for a CuPy array."""
    return "cpu" if array_module(x) is np else "cuda"


def cuda_problem() -> str | None:
    """Why ``"cuda"`` cannot be used here, in one sentence; None where it can."""
    try:
        import cupy

        if cupy.cuda.is_available():
            return None
    except ImportError:
        return "CuPy is not installed: pip install 'cupy-cuda12x[ctk]' (or 'cupy-cuda13x[ctk]' for CUDA 13)"
    except Exception as error:  # a broken driver or toolkit may raise anything on the way
        return f"CuPy is installed and does not work here ({type(error).__name__}: {error})"
    return "CuPy is installed and finds no GPU: check the driver with nvidia-smi"


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
    import cupy

    return cupy.asnumpy(x) if device == "cpu" else cupy.asarray(x)


def to_numpy(x: Array) -> np.ndarray:
    """``x`` as a NumPy array: itself on the CPU, a copy from the GPU."""
    return np.asarray(x) if array_module(x) is np else x.get()
