"""How much gradient reaches each layer, from the input to the output: even with shortcuts, uneven without."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from minires.debug.plots.inputs import as_labels, finished, on_models_side
from minires.engine.modes import enable_grad
from minires.engine.tensor import Tensor
from minires.nn import Conv2d, Linear, Module
from minires.nn import functional as F
from minires.nn.state import in_mode, statistics_kept

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = (("#0b5394", "o"), ("#c44e00", "s"), ("#1b7f5c", "^"), ("#7a4b94", "D"))


def gradient_norms(model: Module, images: Any, labels: Any) -> list[tuple[str, float]]:
    """The Euclidean norm of the cross entropy's gradient for the weight of each convolution and linear layer.

    One forward and backward in training mode; gradients, running statistics and modes are put back as they were.
    Shapes: images (N, C, H, W), labels (N,).
    Returns: (name, norm) in the order of registration; 0 where no gradient came.
    Errors: ValueError for a number of labels that does not fit; whatever the model raises for these images.
    """
    x = on_models_side(model, images)
    target = Tensor(as_labels(x, labels, "gradient_norms"), device=x.device)
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, (Conv2d, Linear))]
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        with in_mode(model, True), statistics_kept(model), enable_grad():
            F.cross_entropy(model(x), target).backward()
        norms = []
        for name, layer in layers:
            grad = layer.weight.grad
            norms.append((name, 0.0 if grad is None else float(np.linalg.norm(grad.cpu().numpy()))))
        return norms
    finally:
        for parameter, grad in gradients:
            parameter.grad = grad


def plot_gradient_norms(
    models: Mapping[str, Module],
    images: Any,
    labels: Any,
    path: str | os.PathLike | None = None,
    title: str = "",
) -> Figure:
    """The norm of each layer's weight gradient by depth, on one scale: a panel a model, side by side.

    Args: models by name; images and labels, a batch for all of them; path, where to write. Layers of projection
        shortcuts are left out, so that the number of a layer is its depth; a norm of 0 is drawn at the bottom, hollow.
    Errors: ValueError for no model; as ``gradient_norms``.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not isinstance(models, Mapping) or not models:
        raise ValueError('plot_gradient_norms: expected models by name, {"plain": a, "residual": b}')
    figure = Figure(figsize=(max(4.2 * len(models), 6), 4), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for k, (name, model) in enumerate(models.items()):
        found = [norm for layer, norm in gradient_norms(model, images, labels) if "downsample" not in layer]
        norms = np.array(found)
        depth = np.arange(1, len(norms) + 1)
        color, marker = STYLES[k % len(STYLES)]
        axes = panels[k]
        axes.plot(depth, np.where(norms > 0, norms, np.nan), color=color, marker=marker, markersize=4, linewidth=1.2)
        axes.set_yscale("log")
        zero = depth[norms == 0]
        if len(zero):
            bottom = axes.get_xaxis_transform()
            axes.plot(zero, np.full(len(zero), 0.03), "v", mfc="none", color=color, transform=bottom)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.set_title(name)
        axes.set_xlabel("layer, from the input on")
    panels[0].set_ylabel("norm of the weight's gradient")
    figure.suptitle(title)
    return finished(figure, path)
