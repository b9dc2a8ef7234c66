"""A record as four charts under one another, from the first operation to the last. They can be read without colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minires.debug.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: How the kinds of operation are marked: shape, size, filled or not.
MARKERS = {
    "conv2d": ("o", 5, "black"),
    "batch_norm": ("s", 5, "white"),
    "relu": ("^", 5, "white"),
    "residual_add": ("D", 5, "black"),
    "linear": ("P", 6, "black"),
}
OTHER = ("x", 5, "black")
#: Names of the same thing.
SAME = {
    "sync_batch_norm": "batch_norm",
    "batch_norm_inference": "batch_norm",
    "add": "residual_add",
    "matmul": "linear",
}
LABELS = {"residual_add": "addition"}


def draw(rows: Sequence[Row]) -> Figure:
    """The four charts. Returns: a figure of matplotlib, which belongs to no window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8.5), dpi=80, layout="constrained")
    spread, gradient, time, memory = figure.subplots(4, 1, sharex=True)
    if not rows:
        spread.set_title("no operation was recorded")
        return figure
    draw_values(spread, rows, [row.std for row in rows])
    spread.set_ylabel("standard deviation\nof the activations")
    draw_values(gradient, rows, [row.grad_norm for row in rows])
    gradient.set_ylabel("norm of the gradient\nthat came back")
    forward = [row.forward_ms for row in rows]
    both = [row.forward_ms + (row.backward_ms or 0.0) for row in rows]
    edges = [i - 0.5 for i in range(len(rows) + 1)]
    time.stairs(forward, edges, fill=True, color="0.25", label="forward")
    time.stairs(both, edges, baseline=forward, fill=True, color="0.7", label="backward")
    time.set_ylabel("time (ms)")
    result = [row.result_bytes / 2**20 for row in rows]
    kept = [row.kept_bytes / 2**20 for row in rows]
    memory.stairs(result, edges, fill=True, color="0.7", label="its result")
    memory.stairs(kept, edges, fill=True, color="0.25", label="newly kept for backward")
    memory.set_ylabel("memory (MiB)")
    memory.set_xlabel("operation, in the order in which they ran")
    for axes in (time, memory):
        axes.legend(loc="upper right")
        axes.margins(y=0.35)  # room for the legend
    handles, labels = spread.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=6)
    for axes in (spread, gradient, time, memory):
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.set_xlim(-1, len(rows))
    name_stages([spread, gradient, time, memory], rows)
    return figure


def draw_values(axes: Axes, rows: Sequence[Row], values: Sequence[float | None]) -> None:
    """A value an operation on a logarithmic scale: a thin line, and a marker that says which operation."""
    from matplotlib.ticker import NullFormatter

    points = [(row, value) for row, value in zip(rows, values, strict=True) if value is not None and value > 0]
    axes.plot([row.number for row, _ in points], [value for _, value in points], color="0.7", linewidth=0.8, zorder=1)
    kinds = [SAME.get(row.operation, row.operation) for row, _ in points]
    for kind in [*MARKERS, None]:
        shape, width, face = MARKERS.get(kind, OTHER)
        chosen = [p for p, own in zip(points, kinds, strict=True) if (own if own in MARKERS else None) == kind]
        if chosen:
            axes.plot(
                [row.number for row, _ in chosen],
                [value for _, value in chosen],
                linestyle="",
                marker=shape,
                markersize=width if len(rows) < 120 else 0.7 * width,
                markeredgecolor="black",
                markeredgewidth=0.8,
                markerfacecolor=face,
                label=LABELS.get(kind, kind) if kind else "other",
            )
    if points:
        axes.set_yscale("log", subs=(2, 5))
        axes.yaxis.set_major_formatter("{x:g}")
        highest, lowest = max([value for _, value in points]), min([value for _, value in points])
        axes.yaxis.set_minor_formatter("{x:g}" if highest / lowest < 100 else NullFormatter())


def stages(rows: Sequence[Row]) -> list[tuple[int, str]]:
    """Where each part of the network begins: the number of its first operation, and its name."""
    found: list[tuple[int, str]] = []
    for row in rows:
        name = row.module.split(".")[0]
        if not found or found[-1][1] != name:
            found.append((row.number, name))
    return found


def name_stages(all_axes: Sequence[Axes], rows: Sequence[Row]) -> None:
    """A line where each part of several operations begins, and above the charts its name."""
    starts = [*stages(rows), (len(rows), "")]
    top = all_axes[0].secondary_xaxis("top")
    ticks, names = [], []
    for (first, name), (after, _) in zip(starts, starts[1:], strict=False):
        if after - first >= max(3, len(rows) // 40):
            ticks.append((first + after - 1) / 2)
            names.append(name)
            for axes in all_axes:
                for edge in (first, after):
                    axes.axvline(edge - 0.5, color="0.6", linewidth=0.8, linestyle=":")
    top.set_xticks(ticks, names)
    top.tick_params(length=0)
