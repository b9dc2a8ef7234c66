"""A whole benchmark: the table of its rows, and the run through them, with a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import NamedTuple

from minires.bench import kernels
from minires.bench.kernels import CONVOLUTIONS, LAYERS, POOLED
from minires.bench.memory import measure
from minires.bench.networks import NETWORKS, Network, network_sides
from minires.bench.report import Remembered, Report, Timed
from minires.bench.timing import Sides, check_same, check_threads, describe_system, interleave, limited_to, load_pytorch

# ---- The table: a line here is a row of the report -------------------------------------------------------------------


class Row(NamedTuple):
    """A row of times."""

    name: str
    group: str
    prepare: Callable[[ModuleType | None], Sides]  # given PyTorch's side of the benchmark, or None
    budget: float  # seconds for its repeats
    tolerance: float  # of the check that both sides agree: a relative difference


class MemoryRow(NamedTuple):
    """A row of peak memory."""

    name: str
    network: Network


#: Tolerances. Of one kernel, sums of many float32 numbers in another order; of a step, all of its kernels one upon the
#: other, after the weights of another step.
KERNELS, STEPS = 1e-4, 1e-3

FORWARD, BACKWARD = "convolution forward", "convolution backward"


def timed_rows() -> list[Row]:
    """All rows of times, in the order of the report."""
    rows = []
    for convolution in CONVOLUTIONS:
        name = f"conv {convolution}, forward"
        rows.append(Row(name, FORWARD, partial(kernels.convolution_forward, convolution), 2.0, KERNELS))
    for convolution in CONVOLUTIONS:
        name = f"conv {convolution}, backward" + ("" if convolution.needs_dx else ", dw only")
        rows.append(Row(name, BACKWARD, partial(kernels.convolution_backward, convolution), 2.5, KERNELS))
    for layer in LAYERS:
        for operation, forward, backward in (
            ("batch norm", kernels.batch_norm_forward, kernels.batch_norm_backward),
            ("ReLU", kernels.relu_forward, kernels.relu_backward),
        ):
            rows.append(Row(f"{operation} {layer}, forward", "layer", partial(forward, layer), 1.0, KERNELS))
            rows.append(Row(f"{operation} {layer}, backward", "layer", partial(backward, layer), 1.0, KERNELS))
    name = f"max pool 3x3 s2 p1 {POOLED}"
    rows.append(Row(f"{name}, forward", "layer", partial(kernels.max_pool_forward, POOLED), 1.5, KERNELS))
    rows.append(Row(f"{name}, backward", "layer", partial(kernels.max_pool_backward, POOLED), 1.5, KERNELS))
    for network in NETWORKS:
        rows.append(Row(network.name, "network", partial(network_sides, network), 15.0, STEPS))
    return rows


def memory_rows() -> list[MemoryRow]:
    """All rows of memory, in the order of the report."""
    return [MemoryRow(f"memory of {network.name}", network) for network in NETWORKS]


# ---- The run ---------------------------------------------------------------------------------------------------------


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
