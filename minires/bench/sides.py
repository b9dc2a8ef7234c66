"""The two sides of a row, the floor under them, and the check that both computed the same thing."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from minires.bench.timing import Work
from minires.engine.tensor import Tensor


class Sides(NamedTuple):
    """What a row times: functions without arguments. Those of MiniRes and PyTorch return their results as a list."""

    minires: Work
    pytorch: Work | None = None  # None where PyTorch is not installed
    floor: Work | None = None  # None where there is no matrix product


def load_pytorch() -> ModuleType | None:
    """``minires.bench.pytorch``, or None where PyTorch is not installed (or installed and broken)."""
    try:
        importlib.import_module("torch")
    except (ImportError, OSError):  # OSError: a shared library of its own that does not load
        return None
    return importlib.import_module("minires.bench.pytorch")


def to_array(value: Any) -> np.ndarray:
    """A result of either side as a NumPy array of float64."""
    if isinstance(value, Tensor):
        value = value.array
    elif hasattr(value, "detach"):
        value = value.detach().numpy()
    return np.asarray(value, np.float64)


def difference(found: Any, expected: Any) -> float:
    """How far one array is from another, relative to the other's length as a vector."""
    found, expected = to_array(found), to_array(expected)
    if found.shape != expected.shape:
        return float("inf")
    length = np.linalg.norm(expected)
    return float(np.linalg.norm(found - expected) / (length if length > 0 else 1.0))


def check_same(name: str, sides: Sides, tolerance: float) -> None:
    """Run both sides and compare what they return, so that no row times two different things.

    Twice: the second step of a training shows what the first one did to the weights.
    Errors: RuntimeError that names the row, where they return another number of results or other numbers.
    """
    if sides.pytorch is None:
        return
    for _ in range(2):
        ours, theirs = sides.minires(), sides.pytorch()
        if len(ours) != len(theirs):
            raise RuntimeError(f"{name}: MiniRes returned {len(ours)} results and PyTorch {len(theirs)}")
        for i in range(len(ours)):
            found = difference(ours[i], theirs[i])
            if not found <= tolerance:  # written so that NaN is refused too
                raise RuntimeError(
                    f"{name}: MiniRes and PyTorch computed different things: result {i + 1} of {len(ours)} differs by "
                    f"{found:.1e} (relative), expected at most {tolerance:.1e}"
                )
