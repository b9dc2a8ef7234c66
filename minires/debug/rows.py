"""What is kept of one operation: numbers, a histogram, and the lines of code that led to it. Never an array."""

from __future__ import annotations

import linecache
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minires.kernels.backend import Array, to_numpy

BINS = 32
LARGEST = 1e300  # values beyond it leave no room to compute a histogram's width in float64


class Histogram(NamedTuple):
    """How many values lie in each of BINS equal intervals from ``low`` to ``high``."""

    low: float
    high: float
    counts: tuple[int, ...]
    outside: int  # NaN, infinite, or beyond LARGEST


class Input(NamedTuple):
    """One argument of an operation."""

    shape: tuple[int, ...]
    row: int | None  # the number of the operation that computed it; None for what was given from outside
    parameter: bool
    given: int | None = None  # what was given, and is no parameter, is numbered: the same tensor, the same number


class Level(NamedTuple):
    """A module that was being called."""

    root: int  # the outermost modules are numbered, so that two networks are told apart
    path: str  # its dotted name; "" for the outermost
    kind: str  # its class


class Line(NamedTuple):
    """A line of code on the way to an operation."""

    file: str
    number: int
    text: str
    module: str  # whose forward it stands in; "" outside every module, or in the outermost


@dataclass(slots=True)
class Row:
    """One operation. What belongs to the backward is None where backward() did not come by."""

    number: int
    operation: str  # such as "conv2d"
    module: str  # dotted name, "" outside every module
    modules: tuple[Level, ...]  # the outermost first
    where: tuple[str, int]  # file and line of the first frame outside MiniRes
    lines: tuple[Line, ...]  # from the caller's to the innermost module's
    inputs: tuple[Input, ...]
    shape: tuple[int, ...]  # of the result, as all up to the histogram
    dtype: str
    mean: float
    std: float  # of all values, divided by their number
    zeros: float  # the fraction that is 0
    histogram: Histogram
    forward_ms: float
    result_bytes: int
    cache_bytes: int  # of all arrays that its backward needs
    kept_bytes: int  # of those that are no parameter and that no earlier operation keeps: what the cache adds
    grad_norm: float | None = None  # Euclidean, of the gradient that came back to the result
    grad_histogram: Histogram | None = None
    backward_ms: float | None = None
    grad_bytes: int | None = None  # of the gradients that its backward returned


def histogram(values: np.ndarray) -> Histogram:
    """The distribution of the values, which may have any shape."""
    inside = values[np.abs(values) <= LARGEST]
    counts, edges = np.histogram(inside, bins=BINS)
    return Histogram(float(edges[0]), float(edges[-1]), tuple(counts.tolist()), values.size - inside.size)


def statistics(array: Array) -> tuple[float, float, float, Histogram]:
    """Mean, standard deviation, fraction of zeros, and histogram, in float64; NaN where the array is empty."""
    values = to_numpy(array).astype(np.float64)
    if values.size == 0:
        return math.nan, math.nan, math.nan, histogram(values)
    with np.errstate(all="ignore"):
        zeros = np.count_nonzero(values == 0) / values.size
        return float(values.mean()), float(values.std()), zeros, histogram(values)


def norm(array: Array) -> tuple[float, Histogram]:
    """The Euclidean norm, in float64, and the histogram."""
    values = to_numpy(array).astype(np.float64)
    with np.errstate(all="ignore"):
        return float(np.sqrt(np.sum(values * values))), histogram(values)


def line_of_code(file: str, number: int, module: str = "") -> Line:
    """A line of a file, with its text where the file can be read."""
    return Line(file, number, linecache.getline(file, number).strip(), module)


def finite(row: Row) -> bool:
    """Whether every value of the result, and of the gradient that came back, is a finite number."""
    return row.histogram.outside == 0 and (row.grad_histogram is None or row.grad_histogram.outside == 0)
