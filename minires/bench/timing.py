"""How a row is timed: two sides that compute the same, and a floor under them, in turn, on the same number of threads.

Times on one machine drift by more than the differences that matter here. So sides are never timed one after the other
in blocks: each round runs MiniRes, PyTorch and the bare matrix products once, and ratios are taken within rounds too.
"""

from __future__ import annotations

import gc
import importlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import minires
from minires.engine.tensor import Tensor
from minires.train.launch import processors

#: What is timed: a function without arguments. What it returns is what the two sides are compared by.
Work = Callable[[], Any]

LEAST_REPEATS = 5
MOST_REPEATS = 101


# ---- The two sides, and the check that both computed the same thing --------------------------------------------------


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


# ---- The floor: the matrix products of a convolution or a network alone, with their operands ready -------------------
#
# A convolution is a matrix product, whatever comes before and after it. The floor is the time of that product in NumPy
# as the textbook writes it, W (O, C*KH*KW) @ columns (C*KH*KW, N*OH*OW), and for the backward pass of the two products
# of the same size. It tells how much of a row is BLAS and how much is MiniRes. It is no strict bound: products of other
# shapes with as many multiply-adds can be faster.


class Product(NamedTuple):
    """A matrix product (rows, inner) @ (inner, columns)."""

    rows: int
    inner: int
    columns: int
    transposed: bool = False  # the second matrix is the transpose of one that lies in memory

    @property
    def multiply_adds(self) -> int:
        """The multiplications, each with its addition."""
        return self.rows * self.inner * self.columns


def forward_product(outputs: int, inputs: int, places: int) -> Product:
    """y = W @ columns, with O outputs, C*KH*KW inputs and N*OH*OW places."""
    return Product(outputs, inputs, places)


def backward_products(outputs: int, inputs: int, places: int, needs_dx: bool = True) -> list[Product]:
    """dw, with the taller matrix first, and dx where it is wanted: dcolumns = W.T @ dy."""
    dw = Product(max(inputs, outputs), places, min(inputs, outputs), transposed=True)
    dx = Product(inputs, outputs, places)
    return [dw, dx] if needs_dx else [dw]


def floor_work(products: list[Product]) -> Work:
    """A function that runs these products, each as often as it occurs, on operands that are made here and now."""
    rng = np.random.default_rng(0)
    operands = {}
    for product in set(products):
        a = rng.random((product.rows, product.inner), np.float32)
        if product.transposed:
            b = rng.random((product.columns, product.inner), np.float32).T
        else:
            b = rng.random((product.inner, product.columns), np.float32)
        operands[product] = a, b, np.zeros((product.rows, product.columns), np.float32)

    def run() -> None:
        for product in products:
            a, b, out = operands[product]
            np.matmul(a, b, out=out)

    return run


# ---- The rounds: every side in turn, so that a busy moment of the machine hits them all alike ------------------------


def repeats_within(budget: float, seconds: float) -> int:
    """How many rounds of this many seconds fit the budget: an odd number, at least LEAST_REPEATS.

    Odd, so that the median is a time that was measured.
    """
    fitting = int(min(budget / max(seconds, 1e-9), MOST_REPEATS))
    return max(fitting - 1 + fitting % 2, LEAST_REPEATS)


@contextmanager
def collector_paused() -> Iterator[None]:
    """The garbage collector runs between rounds, never inside a measurement (and does not go over old objects)."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def seconds_of(work: Work) -> float:
    """How long one call takes, including giving back the memory of its result."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleave(sides: dict[str, Work], budget: float) -> dict[str, list[float]]:
    """Time all sides in turn: first, second, third, first, second, third ...

    Args: budget, the seconds that all rounds together may take (but there are at least LEAST_REPEATS rounds). A first
        round warms up and is not counted; its time says how many rounds fit.
    Returns: the seconds of each side's calls, in the order of the rounds.
    """
    with collector_paused():
        repeats = repeats_within(budget, sum(seconds_of(work) for work in sides.values()))
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(repeats):
            gc.collect()
            for name, work in sides.items():
                seconds[name].append(seconds_of(work))
    return seconds


# ---- What the rounds say ---------------------------------------------------------------------------------------------


class Figure(NamedTuple):
    """A median and its quartiles: half of all repeats lie between low and high."""

    median: float
    low: float
    high: float


def figure(values: list[float]) -> Figure:
    """The median and quartiles of repeats; of a single one, that one."""
    if len(values) == 1:
        return Figure(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Figure(median, low, high)


def ratio(ours: list[float], other: list[float]) -> Figure:
    """How many times as long our side took: the ratio of the medians, with the quartiles of the rounds' ratios."""
    rounds = figure([a / b for a, b in zip(ours, other, strict=True)])
    return Figure(statistics.median(ours) / statistics.median(other), rounds.low, rounds.high)


# ---- The same number of threads for both sides, and what they run on -------------------------------------------------


def check_threads(threads: int) -> None:
    """Errors: ValueError for fewer threads than one, or more than there are processors to run them."""
    if not 1 <= threads <= processors():
        raise ValueError(
            f"--threads must be between 1 and {processors()}, the number of processors here, got {threads}"
        )


@contextmanager
def limited_to(threads: int, pytorch: ModuleType | None) -> Iterator[None]:
    """Both sides get the same number of threads; afterwards each has what it had before.

    PyTorch's side is loaded before, if at all: the limits reach only libraries that are there.
    """
    from threadpoolctl import threadpool_limits

    before = pytorch.torch.get_num_threads() if pytorch else None
    with threadpool_limits(threads):
        if pytorch:
            pytorch.torch.set_num_threads(threads)
        try:
            yield
        finally:
            if pytorch:
                pytorch.torch.set_num_threads(before)


def numpys_blas() -> dict[str, Any] | None:
    """What threadpoolctl knows about the library of NumPy's matrix products; None where it knows nothing."""
    from threadpoolctl import threadpool_info

    found = [library for library in threadpool_info() if library["user_api"] == "blas"]
    numpys = [library for library in found if "numpy" in library["filepath"]]  # SciPy brings one of its own
    return (numpys or found or [None])[0]


def describe_system(threads: int, pytorch: ModuleType | None) -> dict[str, Any]:
    """What the figures depend on, to be asked for inside limited_to()."""
    blas = numpys_blas()
    return {
        "processors": os.cpu_count(),
        "minires": minires.__version__,
        "numpy": np.__version__,
        "blas": f"{blas['internal_api']} {blas['version']}" if blas else "unknown BLAS",
        "blas_architecture": blas.get("architecture") if blas else None,
        "blas_threads": blas["num_threads"] if blas else None,
        "torch": str(pytorch.torch.__version__) if pytorch else None,
        "torch_threads": pytorch.torch.get_num_threads() if pytorch else None,
        "threads": threads,
    }
