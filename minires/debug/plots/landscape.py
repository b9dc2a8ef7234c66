"""The loss around a network's weights, along two random directions.

A network with ReLU and batch norm computes the same when a filter grows and the next layer shrinks, so that plain
random directions compare nothing. Li et al. 2018 ("Visualizing the loss landscape of neural nets", section 4) give
every filter of a direction the norm of the network's own filter; biases and batch norm's parameters do not move.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minires.debug.plots.inputs import as_labels, finished, on_models_side, positive
from minires.engine.modes import no_grad
from minires.engine.tensor import Tensor
from minires.kernels.backend import to_device, to_numpy
from minires.nn import Module
from minires.nn import functional as F
from minires.nn.state import in_mode

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Landscape(NamedTuple):
    """losses[i, j] is the loss at weights + steps[j] * first direction + steps[i] * second direction."""

    steps: np.ndarray  # (n,), 0 in the middle
    losses: np.ndarray  # (n, n)


def filter_normalised_direction(model: Module, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """A random direction: for each filter (a weight's slice of one output) normal values with the filter's own norm.

    Returns: arrays by parameter name; zeros for parameters of one axis.
    """
    direction = {}
    for name, parameter in model.named_parameters():
        w = to_numpy(parameter.array)
        d = np.zeros(w.shape)
        if w.ndim > 1:
            d = generator.standard_normal(w.shape)
            axes = tuple(range(1, w.ndim))
            norm_of_w = np.sqrt(np.sum(w.astype(np.float64) ** 2, axis=axes, keepdims=True))
            norm_of_d = np.sqrt(np.sum(d**2, axis=axes, keepdims=True))
            d *= norm_of_w / norm_of_d
        direction[name] = d
    return direction


def loss_landscape(
    model: Module,
    images: Any,
    labels: Any,
    count: int = 21,
    radius: float = 1.0,
    seed: int = 0,
    batch_size: int = 256,
) -> Landscape:
    """The cross entropy on a grid around the model's weights, in evaluation mode, with a progress bar.

    The weights are put back exactly as they were, after Ctrl-C too; the running statistics do not move.
    Args: images (N, C, H, W), labels (N,); count, points along each direction, odd; radius, how far the grid reaches: 1
        is as far as each filter is long; seed, of the two directions.
    Errors: ValueError for an even count, a radius of 0 or less, or labels that do not fit.
    """
    from tqdm.auto import tqdm

    positive("loss_landscape", count=count, batch_size=batch_size)
    if count % 2 == 0 or count < 3:
        raise ValueError(f"loss_landscape: count must be odd and at least 3, to have a middle, got {count}")
    if not 0 < radius < np.inf:
        raise ValueError(f"loss_landscape: radius must be positive, got {radius}")
    x = on_models_side(model, images)
    target = Tensor(as_labels(x, labels, "loss_landscape"), device=x.device)
    generator = np.random.default_rng(seed)
    first = filter_normalised_direction(model, generator)
    second = filter_normalised_direction(model, generator)
    steps = radius * np.arange(-(count // 2), count // 2 + 1) / (count // 2)
    losses = np.zeros((count, count))
    weights = [(name, parameter, parameter.array) for name, parameter in model.named_parameters()]
    try:
        with in_mode(model, False), no_grad(), tqdm(total=count * count, desc="loss landscape", unit="point") as bar:
            for i in range(count):
                for j in range(count):
                    for name, parameter, w in weights:
                        moved = to_numpy(w) + steps[j] * first[name] + steps[i] * second[name]
                        parameter.array = to_device(moved.astype(w.dtype), x.device)
                    losses[i, j] = mean_loss(model, x, target, batch_size)
                    bar.update()
    finally:
        for _, parameter, w in weights:
            parameter.array = w
    return Landscape(steps, losses)


def mean_loss(model: Module, x: Tensor, target: Tensor, batch_size: int) -> float:
    """The mean cross entropy over all images. Infinite where the logits are."""
    total = 0.0
    with np.errstate(all="ignore"):
        for start in range(0, len(x), batch_size):
            logits = model(x[start : start + batch_size])
            total += float(F.cross_entropy(logits, target[start : start + batch_size], reduction="sum").item())
    return total / len(x)


def plot_loss_landscape(
    model: Module,
    images: Any,
    labels: Any,
    path: str | os.PathLike | None = None,
    count: int = 21,
    radius: float = 1.0,
    seed: int = 0,
    title: str = "",
) -> Figure:
    """Contours of the loss around a model's weights (a cross), on a logarithmic scale; dark is low.

    Args and errors: as ``loss_landscape``; path, where to write.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    found = loss_landscape(model, images, labels, count, radius, seed)
    losses = np.ma.masked_invalid(np.maximum(found.losses, 1e-9))
    if losses.count() == 0:
        raise ValueError("plot_loss_landscape: the loss is not finite anywhere around these weights")
    low, high = float(losses.min()), float(losses.max())
    levels = np.geomspace(low, high if high > low else 2 * low, 12)
    figure = Figure(figsize=(6.4, 5.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    filled = axes.contourf(
        found.steps, found.steps, losses, levels=levels, norm=LogNorm(levels[0], levels[-1]), cmap="cividis"
    )
    lines = axes.contour(found.steps, found.steps, losses, levels=levels[1:-1], colors="black", linewidths=0.7)
    for label in axes.clabel(lines, fontsize=7, fmt=FuncFormatter(short)):
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1})
    axes.plot(0, 0, "x", color="white", markersize=10, markeredgewidth=3.5)
    axes.plot(0, 0, "x", color="black", markersize=9, markeredgewidth=1.5)
    bar = figure.colorbar(filled, ax=axes, label="cross entropy (logarithmic)")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(short))
    axes.set_aspect("equal")
    axes.set_xlabel("step along the first direction (1: as long as each filter)")
    axes.set_ylabel("step along the second direction")
    middle = found.losses[count // 2, count // 2]
    axes.set_title(title or f"loss around the weights (cross: {middle:.3g})")
    return finished(figure, path)


def short(value: float, position: int = 0) -> str:
    """A loss in two digits."""
    return f"{value:.2g}"
