"""``minires bench --mpi``: how training scales over this machine's processors, and what that says of other networks.

``python -m minires.bench.mpi`` under mpiexec is one worker: it makes training steps beside the others, or sends
messages to and fro. ``run`` starts such jobs and puts what they print together, as a report and a picture.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minires.bench.networks import LR, MOMENTUM, NETWORKS, WEIGHT_DECAY, Network, make_batch, make_model
from minires.bench.report import columns
from minires.bench.scaling import (
    ASSUMPTIONS,
    GOYAL,
    WORKERS,
    Link,
    Work,
    efficiency,
    ring_seconds,
    step_seconds,
    table,
)
from minires.bench.scaling import NETWORKS as LINKS
from minires.debug.plots.inputs import finished
from minires.engine.tensor import Tensor
from minires.nn import functional as F
from minires.optim import SGD
from minires.train import parallel
from minires.train.launch import launched, processors

SCALED = NETWORKS[0]  # ResNet-20, 64 images a worker
LARGE = Network("ResNet-50 training step, batch 4", "resnet50", 4, (3, 224, 224), training=True)
#: What the steps of a job are: the network, seconds for them, and the least number of steps.
TIMED = {"steps": (SCALED, 3.0, 5), "large": (LARGE, 0.0, 2)}
SIZES = [8 * 4**k for k in range(12)]  # bytes of the messages to and fro: 8 to 33 million
ROUNDS = 3  # of all numbers of workers in turn, as a busy moment hits them alike
SECONDS = 600  # until a job that hangs is ended
STYLES = [":", "--", "-"]  # of the lines of LINKS


# ---- The report ------------------------------------------------------------------------------------------------------


class Scaled(NamedTuple):
    """A number of workers on this machine: medians over the steps of all rounds."""

    workers: int
    step: float  # seconds, of the slowest worker
    communication: float  # seconds of that in communication, on average over the workers


class ScalingReport(NamedTuple):
    """What was measured here, and what it is put into the model with."""

    scaled: list[Scaled]
    link: Link  # between two processes of this machine
    works: list[Work]  # on one processor of this machine

    def predicted(self, workers: int) -> float:
        """What the model says of this machine's own link: seconds a step."""
        return self.works[0].compute + ring_seconds(self.works[0].gradient, workers, self.link)

    def to_dict(self) -> dict[str, Any]:
        """For programs: seconds, bytes and shares."""
        first = self.scaled[0].step
        return {
            "scaling": [
                {
                    **one._asdict(),
                    "efficiency": first / one.step,
                    "communication_share": one.communication / one.step,
                    "model": self.predicted(one.workers),
                }
                for one in self.scaled
            ],
            "link": self.link._asdict(),
            "works": [work._asdict() for work in self.works],
            "published": {**GOYAL._asdict(), "link": GOYAL.link._asdict(), "work": GOYAL.work._asdict()},
            "published_efficiency_by_the_model": efficiency(GOYAL.work, GOYAL.machines, GOYAL.link),
        }

    def __str__(self) -> str:
        lines = [["workers", "ms a step", "efficiency", "in communication", "by the model, ms"]]
        for one in self.to_dict()["scaling"]:
            lines.append(
                [
                    str(one["workers"]),
                    f"{1e3 * one['step']:.0f}",
                    f"{one['efficiency']:.0%}",
                    f"{one['communication_share']:.1%}",
                    f"{1e3 * one['model']:.0f}",
                ]
            )
        link, machine = self.link, GOYAL.work
        by_model = efficiency(machine, GOYAL.machines, GOYAL.link)
        parts = [
            f"{SCALED.name}, by each of the workers, one thread each, on this machine\n{columns(lines, ())}",
            "efficiency: the step of one worker over the step of many, who do as much each. In communication: waiting\n"
            "for slower workers included. What the model does not know: processors share caches, memory and clock.",
            f"ping-pong between two processes here: {1e6 * link.latency:.1f} us a message, "
            f"{link.bandwidth / 1e9:.2f} GB/s ({8 * link.bandwidth / 1e9:.0f} Gbit/s)",
            f"THE MODEL, workers like one processor of this machine, on other networks\n{ASSUMPTIONS}",
            *[table(work, LINKS) for work in self.works],
            f"THE MODEL AND A PUBLISHED RUN: {GOYAL.source}, ResNet-50 on ImageNet, {GOYAL.machines} machines of 8\n"
            f"GPUs, {GOYAL.link.name}. One machine's step of 256 images, from its hour: {machine.compute:.3f} s.\n"
            f"Efficiency: published about {GOYAL.efficiency:.0%}, by the model {by_model:.0%} "
            "(they sent gradients during the backward)",
            table(machine, LINKS),
        ]
        return "\n\n".join(parts)


# ---- The picture -----------------------------------------------------------------------------------------------------


def draw(report: ScalingReport, path: str) -> None:
    """Three panels: the step here by number of workers; efficiency on other networks of this machine's processors; and
    of machines as in a published run, with its own point.

    Errors: as minires.plots.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.8), dpi=90, layout="constrained")
    here, small, large = figure.subplots(1, 3)
    counts = [one.workers for one in report.scaled]
    compute = [1e3 * (one.step - one.communication) for one in report.scaled]
    waits = [1e3 * one.communication for one in report.scaled]
    places = list(range(len(counts)))
    here.bar(places, compute, color="0.75", edgecolor="black", label="computation")
    here.bar(places, waits, bottom=compute, color="white", edgecolor="black", hatch="///", label="communication")
    predicted = [1e3 * report.predicted(count) for count in counts]
    here.plot(places, predicted, "kD", label="the model")
    here.set_xticks(places, [str(count) for count in counts])
    here.set_ylim(0, 1.1 * max(*predicted, *[1e3 * one.step for one in report.scaled]))
    here.set(xlabel="workers on this machine", ylabel="ms a step")
    here.set_title(f"Measured: {report.works[0].name}", fontsize=11)
    here.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=8)
    curves(small, report.works[1], LINKS)
    small.set_title(
        f"The model: {report.works[1].name}\n(one processor here: {report.works[1].compute:.2g} s a step)", fontsize=11
    )
    curves(large, GOYAL.work, LINKS)
    own = [efficiency(GOYAL.work, workers, GOYAL.link) for workers in WORKERS]
    large.plot(WORKERS, own, "-.", color="black", label=f"{GOYAL.link.name}, as in {GOYAL.source}")
    large.plot(
        [GOYAL.machines], [GOYAL.efficiency], "k*", markersize=13, label=f"published: about {GOYAL.efficiency:.0%}"
    )
    large.set_title(
        f"The model: {GOYAL.work.name} a machine\n(of 8 GPUs, 2017: {GOYAL.work.compute:.2f} s a step)", fontsize=11
    )
    large.set_xlabel("machines")
    for axes in (small, large):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=8)
    finished(figure, path)


def curves(axes: Any, work: Work, links: list[Link]) -> None:
    """Efficiency by number of workers, a line a link."""
    for link, style in zip(links, STYLES, strict=True):
        shares = [efficiency(work, workers, link) for workers in WORKERS]
        last = step_seconds(work, WORKERS[-1], link)
        axes.semilogx(WORKERS, shares, style, color="black", base=2, label=f"{link.name}: {last:.2g} s at 1,024")
    ticks = [1, 4, 16, 64, 256, 1024]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_ylim(0, 1.05)
    axes.grid(alpha=0.3)
    axes.set(xlabel="workers", ylabel="efficiency (1: no time lost)")


# ---- What a worker does ----------------------------------------------------------------------------------------------


def time_steps(network: Network, seconds: float, least: int) -> dict[str, list[float]]:
    """Training steps of all workers side by side: as many as fit into these seconds, and at least so many.

    Returns: for each step its seconds from a common start until the slowest worker was done, and those in
        communication, of all workers on average. A first step warms up and is not counted.
    """
    from mpi4py import MPI

    batch = make_batch(network)
    images, labels = Tensor(batch.images), Tensor(batch.labels)
    model = make_model(network)
    optimizer = SGD(model.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY)

    def step() -> tuple[float, float]:
        MPI.COMM_WORLD.Barrier()
        begin, before = time.perf_counter(), parallel.seconds()
        optimizer.zero_grad()
        parallel.backward(F.cross_entropy(model(images), labels), model.parameters())
        optimizer.step()
        took, waited = time.perf_counter() - begin, parallel.seconds() - before
        return MPI.COMM_WORLD.allreduce(took, MPI.MAX), MPI.COMM_WORLD.allreduce(waited) / parallel.size()

    first, _ = step()
    found = [step() for _ in range(max(least, int(seconds / first)))]
    return {"step": [took for took, _ in found], "communication": [waited for _, waited in found]}


def ping_pong() -> list[tuple[int, float]]:
    """Bytes of a message, and the seconds that it takes one way between two workers: half of the way to and fro."""
    from mpi4py import MPI

    world, found = MPI.COMM_WORLD, []
    for size in SIZES:
        sent, received = np.zeros(size, np.uint8), np.empty(size, np.uint8)
        times = []
        for _ in range(100 if size < 100_000 else 10):
            world.Barrier()
            begin = time.perf_counter()
            if world.rank == 0:
                world.Send(sent, 1)
                world.Recv(received, 1)
            else:
                world.Recv(received, 0)
                world.Send(sent, 0)
            times.append((time.perf_counter() - begin) / 2)
        found.append((size, statistics.median(times)))
    return found


def link_from(found: list[tuple[int, float]]) -> Link:
    """Latency: the time of the shortest message. Bandwidth: of the longest."""
    size, seconds = found[-1]
    latency = found[0][1]
    return Link("this machine", latency, size / max(seconds - latency, 1e-9))


def main(what: str) -> None:
    """One worker of a job; rank 0 prints. Args: what, "ping-pong" or a key of TIMED."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        result = ping_pong() if what == "ping-pong" else time_steps(*TIMED[what])
    if parallel.rank() == 0:
        print(json.dumps(result))


# ---- What starts the workers -----------------------------------------------------------------------------------------


def find_mpiexec() -> str:
    """The program that starts workers. Errors: RuntimeError where there is none, or mpi4py is missing."""
    beside = Path(sys.executable).parent / "mpiexec"  # as the wheel of mpich puts it
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    try:
        import mpi4py  # noqa: F401
    except ImportError:
        found = None
    if found is None:
        raise RuntimeError('--mpi needs mpi4py and mpiexec: pip install "minires[mpi]"')
    return found


def job(workers: int, what: str) -> Any:
    """What a job of so many workers measured. Errors: RuntimeError where it fails, with the last line it printed."""
    command = [find_mpiexec(), "-n", str(workers), sys.executable, "-m", "minires.bench.mpi", what]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    try:
        found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"mpiexec -n {workers} ({what}) did not end within {SECONDS} s") from error
    if found.returncode != 0:
        last = (found.stderr.strip().splitlines() or [f"exit status {found.returncode}"])[-1]
        raise RuntimeError(f"mpiexec -n {workers} ({what}) failed: {last}")
    return json.loads(found.stdout.splitlines()[-1])


def workers_here() -> list[int]:
    """1, 2, 4 ... up to the number of processors, and that."""
    count = processors()
    powers = [2**k for k in range(count.bit_length()) if 2**k < count]
    return [*powers, count] if count > 1 else [1]


def run() -> ScalingReport:
    """Measure this machine, with a progress bar: half a minute for two processors, and some steps of ResNet-50.

    Errors: RuntimeError where mpi4py or mpiexec is missing, or a job fails; ValueError where this is a worker already.
    """
    from tqdm.auto import tqdm

    if launched()[1] > 1:
        raise ValueError("--mpi starts workers itself: leave mpiexec out")
    find_mpiexec()
    counts = workers_here()
    steps: dict[int, list[float]] = {count: [] for count in counts}
    waits: dict[int, list[float]] = {count: [] for count in counts}
    with tqdm(total=ROUNDS * len(counts) + 2, unit="job", disable=None) as bar:  # None: only on a terminal
        bar.set_description("ping-pong")
        link = link_from([tuple(pair) for pair in job(2, "ping-pong")])
        bar.update()
        for _ in range(ROUNDS):
            for count in counts:
                bar.set_description(f"{count} workers")
                found = job(count, "steps")
                steps[count] += found["step"]
                waits[count] += found["communication"]
                bar.update()
        bar.set_description(LARGE.name)
        large = statistics.median(job(1, "large")["step"])
        bar.update()
    scaled = [Scaled(count, statistics.median(steps[count]), statistics.median(waits[count])) for count in counts]
    works = [
        Work("ResNet-20, 64 images a worker", scaled[0].step, gradient_bytes(SCALED)),
        Work("ResNet-50, 4 images a worker", large, gradient_bytes(LARGE)),
    ]
    return ScalingReport(scaled, link, works)


def gradient_bytes(network: Network) -> int:
    """The size of a network's gradient."""
    return sum(p.array.nbytes for p in make_model(network).parameters())


if __name__ == "__main__":
    main(sys.argv[1])
