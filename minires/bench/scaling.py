"""A plain model of data-parallel training: how long a step takes with many workers, on networks that are not here.

Every worker computes the gradient of its own images, and the workers add their gradients up. With p workers, n bytes of
gradient and a link that needs ``latency`` seconds a message and ``1 / bandwidth`` a byte, a ring adds up in 2 (p - 1)
messages of n / p bytes each:

    step(p) = compute + 2 (p - 1) (latency + n / (p bandwidth))
"""

from __future__ import annotations

from typing import NamedTuple

WORKERS = tuple([2**k for k in range(11)])  # 1 to 1,024

ASSUMPTIONS = """\
assumed: every worker has as many images as one alone had (the whole batch grows), and computes as long as it does; its
link is its own and carries its full rate; the gradient is float32 and added up in a ring, after backward is through:
nothing is hidden behind the computation, and no worker waits for a slower one"""


class Link(NamedTuple):
    """What lies between two workers."""

    name: str
    latency: float  # seconds that a message takes, however short
    bandwidth: float  # bytes a second

    def seconds(self, size: float) -> float:
        """How long a message of this many bytes takes."""
        return self.latency + size / self.bandwidth


#: Rates are what the names say. Latencies are assumed: usual for Ethernet through the operating system, and for a
#: network that writes into the other machine's memory.
NETWORKS = [
    Link("1 Gbit/s", 50e-6, 1e9 / 8),
    Link("10 Gbit/s", 20e-6, 10e9 / 8),
    Link("100 Gbit/s", 2e-6, 100e9 / 8),
]


class Work(NamedTuple):
    """What one worker does in a step."""

    name: str
    compute: float  # seconds of forward, backward and update
    gradient: int  # bytes


def ring_seconds(size: float, workers: int, link: Link) -> float:
    """How long a ring takes to add up ``size`` bytes of each worker, so that every worker has the sum.

    Formula: 2 (p - 1) (latency + size / (p bandwidth)): p - 1 messages until each worker has the sum of one p-th, and
    p - 1 more until all have all. Source: Patarasuk & Yuan 2009.
    """
    return 2 * (workers - 1) * link.seconds(size / workers)


def step_seconds(work: Work, workers: int, link: Link) -> float:
    """How long a step takes: the computation, then the ring."""
    return work.compute + ring_seconds(work.gradient, workers, link)


def efficiency(work: Work, workers: int, link: Link) -> float:
    """The share of a worker's time that is computation: 1 means that p workers do p times as much as one."""
    return work.compute / step_seconds(work, workers, link)


class Published(NamedTuple):
    """A large run that was published, and what it says about one worker of it."""

    source: str
    machines: int  # of 8 GPUs each, which share a link
    link: Link
    work: Work  # of one machine
    efficiency: float  # as published, against one machine


#: ImageNet in an hour: 90 epochs of 1,281,167 images in batches of 8,192 on 256 GPUs, 32 machines of 8 with 50 Gbit/s
#: Ethernet, and about 90 % of 32 times the speed of one machine. One machine's step is what follows: an hour over the
#: steps, times the 90 %. The gradient is that of ResNet-50's 25,557,032 parameters in float32. The latency is assumed.
GOYAL_STEPS = 90 * 1_281_167 / 8192
GOYAL = Published(
    source="Goyal et al. 2017",
    machines=32,
    link=Link("50 Gbit/s", 20e-6, 50e9 / 8),
    work=Work("ResNet-50, 256 images", 0.9 * 3600 / GOYAL_STEPS, 4 * 25_557_032),
    efficiency=0.9,
)


def table(work: Work, links: list[Link]) -> str:
    """Seconds a step and efficiency by number of workers, a column a link."""
    lines = [f"{work.name}: a step of one worker {work.compute:.3g} s, gradient {work.gradient / 1e6:.1f} MB"]
    lines.append("workers  " + "".join(f"{link.name:>20}" for link in links))
    for workers in WORKERS:
        cells = []
        for link in links:
            seconds = step_seconds(work, workers, link)
            cells.append(f"{seconds:>10.3g} s {efficiency(work, workers, link):>7.1%}")
        lines.append(f"{workers:>7}  " + "".join(cells))
    return "\n".join(lines)
