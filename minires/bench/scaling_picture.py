"""The picture of ``minires bench --mpi``: what was measured here, and ResNet-50 on many machines by the model."""

from __future__ import annotations

from typing import Any

from minires.bench.mpi import ScalingReport
from minires.bench.scaling import GOYAL, NETWORKS, WORKERS, Link, Work, efficiency, step_seconds
from minires.debug.plots.inputs import finished

STYLES = [":", "--", "-"]


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
    curves(small, report.works[1], NETWORKS)
    small.set_title(
        f"The model: {report.works[1].name}\n(one processor here: {report.works[1].compute:.2g} s a step)", fontsize=11
    )
    curves(large, GOYAL.work, NETWORKS)
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
