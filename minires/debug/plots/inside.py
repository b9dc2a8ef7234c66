"""What a network looks for and what it sees: the kernels of a convolution, and the feature maps of one image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minires.debug.plots.inputs import finished, on_models_side, positive, show_image, without_ticks
from minires.engine.modes import no_grad
from minires.models.tracing import layer_calls
from minires.nn import BatchNorm2d, Conv2d, Module

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_filters(
    model: Module, path: str | os.PathLike | None = None, count: int = 64, channels: int = 8, title: str = ""
) -> Figure:
    """The kernels of a convolution (of a model its first): mid-grey is 0, black and white are -m and +m, m the largest.

    Kernels of three input channels are shown in colour, red, green and blue; others channel by channel, a row a kernel
    (of one channel in a square).
    Args: model, a Conv2d or a Module with one; path, where to write; count and channels, how many at most are shown.
    Errors: ValueError for a model without a convolution, or a count below 1.
    """
    from matplotlib.figure import Figure

    positive("plot_filters", count=count, channels=channels)
    named = [(name, module) for name, module in model.named_modules() if isinstance(module, Conv2d)]
    if not named:
        raise ValueError(f"plot_filters: expected a Conv2d or a model with one, {type(model).__name__} has none")
    name, conv = named[0]
    weights = conv.weight.detach().cpu().numpy()[:count]  # (n, C / groups, KH, KW)
    largest = float(np.abs(weights).max()) or 1.0
    colour, single = weights.shape[1] == 3, weights.shape[1] == 1
    if colour:
        tiles = 0.5 + weights.transpose(0, 2, 3, 1) / (2 * largest)  # (n, KH, KW, 3)
    else:
        tiles = weights[:, :channels].reshape(-1, *weights.shape[2:])  # (n * shown channels, KH, KW)
    columns = int(np.ceil(np.sqrt(len(tiles)))) if colour or single else len(tiles) // len(weights)
    rows = -(-len(tiles) // columns)
    KH, KW = weights.shape[2:]
    figure = Figure(figsize=(max(0.6 * columns, 3) + 1.6, 0.6 * rows * KH / KW + 1), dpi=100, layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(mosaic(tiles, columns), cmap="gray", vmin=-largest, vmax=largest, interpolation="nearest")
    without_ticks(axes)
    if not colour:
        figure.colorbar(shown, ax=axes, label="weight", shrink=0.9)
    if not colour and not single:
        axes.set_xticks((KW + 1) * np.arange(columns) + (KW - 1) / 2, range(columns))
        axes.set_yticks((KH + 1) * np.arange(rows) + (KH - 1) / 2, range(rows))
        axes.set_xlabel("input channel")
        axes.set_ylabel("output channel")
    for side in axes.spines.values():
        side.set_visible(False)
    O, C = conv.weight.shape[:2]
    axes.set_title(title or f"{name or 'Conv2d'}: {len(weights)} of {O} kernels, {C}x{KH}x{KW}", fontsize=10)
    return finished(figure, path)


def mosaic(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Tiles (n, KH, KW) or (n, KH, KW, 3) in rows, with a pixel of white between them.

    Returns: (rows * (KH + 1) - 1, columns * (KW + 1) - 1), gaps NaN, or the same with a last axis of 3, gaps 1.
    """
    KH, KW = tiles.shape[1:3]
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * (KH + 1) - 1, columns * (KW + 1) - 1, *tiles.shape[3:]), 1.0 if tiles.ndim == 4 else np.nan)
    for k in range(len(tiles)):
        top, left = (k // columns) * (KH + 1), (k % columns) * (KW + 1)
        sheet[top : top + KH, left : left + KW] = tiles[k]
    return sheet


def feature_maps(model: Module, image: Any, stages: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """What each stage of a model makes of one image, in evaluation mode, in the order in which they ran.

    Args: image (C, H, W) as the model takes it; stages, names of modules as in ``named_modules()``; by default the
        model's own parts that give maps of more than one pixel, without its batch norms.
    Returns: arrays (channels, H, W) by the stage's name; one that is called twice keeps the last.
    Errors: ValueError for an image of another number of axes, an unknown name, or where there is no feature map.
    """
    if getattr(image, "ndim", None) != 3:
        raise ValueError(f"feature_maps: expected one image (C, H, W), got shape {getattr(image, 'shape', None)}")
    parts = [(name, part) for name, part in model.named_children() if not isinstance(part, BatchNorm2d)]
    if stages is not None:
        try:
            parts = [(name, model.get_submodule(name)) for name in stages]
        except AttributeError as error:
            raise ValueError(f"feature_maps: {error}") from error
    with no_grad():
        calls, _ = layer_calls(model, on_models_side(model, image[None]), parts=parts)
    maps: dict[str, np.ndarray] = {}
    for call in calls:
        if getattr(call.output, "ndim", 0) == 4 and call.output.shape[2] * call.output.shape[3] > 1:
            maps[call.name] = call.output.cpu().numpy()[0]
    if not maps:
        raise ValueError(f"feature_maps: no part of {type(model).__name__} gave feature maps: name some with stages=")
    return maps


def plot_feature_maps(
    model: Module,
    image: Any,
    path: str | os.PathLike | None = None,
    stages: Sequence[str] | None = None,
    channels: int = 8,
    title: str = "",
) -> Figure:
    """One image through a network: a row a stage, its first channels side by side, black the least of the row's values.

    Args: as ``feature_maps``; path, where to write; channels, how many of each stage are shown.
    Errors: as ``feature_maps``.
    """
    from matplotlib.figure import Figure

    positive("plot_feature_maps", channels=channels)
    maps = feature_maps(model, image, stages)
    rows, columns = len(maps) + 1, min(channels, max(len(shown) for shown in maps.values()))
    figure = Figure(figsize=(columns * 1.05 + 1.6, rows * 1.1 + 0.6), dpi=100, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    pixels = image.detach().cpu().numpy() if hasattr(image, "detach") else np.asarray(image)
    grid[0, 0].axis("on")
    show_image(grid[0, 0], pixels)
    rows_shown = [("input", pixels), *maps.items()]
    for i, (name, shown) in enumerate(rows_shown):
        size = "x".join(str(n) for n in shown.shape)
        label = {"rotation": 0, "ha": "right", "va": "center", "fontsize": 9, "labelpad": 8}
        grid[i, 0].set_ylabel(f"{name}\n{size}", **label)
        if i == 0:
            continue
        low, high = float(shown.min()), float(shown.max())
        for j in range(min(columns, len(shown))):
            axes = grid[i, j]
            axes.axis("on")
            without_ticks(axes)
            axes.imshow(shown[j], cmap="gray", vmin=low, vmax=high if high > low else low + 1)
            if i == 1:
                axes.set_title(f"channel {j}", fontsize=8)
    figure.suptitle(title or f"one image through {type(model).__name__}", fontsize=11)
    return finished(figure, path)
