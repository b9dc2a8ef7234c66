"""The table of what is timed, and of whose memory is measured: a line here is a row of the report."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import NamedTuple

from minires.bench import kernels
from minires.bench.kernels import CONVOLUTIONS, LAYERS, POOLED
from minires.bench.networks import NETWORKS, Network, network_sides
from minires.bench.sides import Sides


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
