"""A whole benchmark: every row of the table, one after the other, with a progress bar."""

from __future__ import annotations

import time
from types import ModuleType

from minires.bench.memory import measure
from minires.bench.report import Remembered, Report, Timed
from minires.bench.rows import MemoryRow, Row, memory_rows, timed_rows
from minires.bench.sides import check_same, load_pytorch
from minires.bench.threads import check_threads, describe_system, limited_to
from minires.bench.timing import interleave


def time_row(row: Row, pytorch: ModuleType | None) -> Timed:
    """Check that both sides agree, then time them in turn with the floor.

    Errors: RuntimeError that names the row, where the sides computed different things.
    """
    sides = row.prepare(pytorch)
    check_same(row.name, sides, row.tolerance)
    works = {name: work for name, work in sides._asdict().items() if work is not None}
    seconds = interleave(works, row.budget)
    return Timed(row.name, row.group, seconds["minires"], seconds.get("pytorch", []), seconds.get("floor", []))


def remember_row(row: MemoryRow, pytorch: ModuleType | None, threads: int) -> Remembered:
    """Each side's peak memory. Errors: RuntimeError where a side's process fails."""
    ours = measure("minires", row.network, threads)
    theirs = measure("pytorch", row.network, threads) if pytorch else None
    return Remembered(row.name, ours, theirs)


def run(threads: int = 1, only: str = "") -> Report:
    """Measure the rows whose names contain ``only``, MiniRes beside PyTorch where it is installed.

    Errors: ValueError for a number of threads that cannot be had, and where no name contains ``only``; RuntimeError
        where MiniRes and PyTorch computed different things.
    """
    from tqdm.auto import tqdm

    check_threads(threads)
    times = [row for row in timed_rows() if only.lower() in row.name.lower()]
    memories = [row for row in memory_rows() if only.lower() in row.name.lower()]
    if not times and not memories:
        raise ValueError(f"--only: no row's name contains {only!r}: they are such as {timed_rows()[0].name!r}")
    start = time.perf_counter()
    pytorch = load_pytorch()
    timed, remembered = [], []
    with (
        limited_to(threads, pytorch),
        tqdm(total=len(times) + len(memories), unit="row", disable=None) as bar,  # None: only on a terminal
    ):
        system = describe_system(threads, pytorch)
        for row in times:
            bar.set_description(row.name)
            timed.append(time_row(row, pytorch))
            bar.update()
        for memory_row in memories:
            bar.set_description(memory_row.name)
            remembered.append(remember_row(memory_row, pytorch, threads))
            bar.update()
    return Report(system, timed, remembered, time.perf_counter() - start)
