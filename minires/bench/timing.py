"""The timing method: every side in turn, again and again, so that a busy moment of the machine hits them all alike.

Times on one machine drift by more than the differences that matter here. So sides are never timed one after the other
in blocks: each round runs MiniRes, PyTorch and the bare matrix products once, and ratios are taken within rounds too.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

#: What is timed: a function without arguments. What it returns is what the two sides are compared by.
Work = Callable[[], Any]

LEAST_REPEATS = 5
MOST_REPEATS = 101


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
