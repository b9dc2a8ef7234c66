"""What the pictures of networks have in common: images as a model takes them, images as eyes do, and saving."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minires.data.checkpoint import write_whole
from minires.engine.tensor import Tensor
from minires.nn import Module

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def on_models_side(model: Module, images: Any) -> Tensor:
    """Images (N, C, H, W) as a Tensor of the model's dtype, on its device."""
    first = next(iter(model.parameters()), None)
    x = images.detach() if isinstance(images, Tensor) else Tensor(images)
    return x if first is None else x.to(dtype=first.dtype, device=first.device)


def as_labels(images: Tensor, labels: Any, function: str) -> np.ndarray:
    """Class numbers (N,) on the host. Errors: ValueError for another number of them than images, or none."""
    array = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.shape != images.shape[:1] or len(array) == 0:
        raise ValueError(f"{function}: expected a label for each of {len(images)} images, got shape {array.shape}")
    return array


def positive(function: str, **numbers: Any) -> None:
    """Errors: ValueError for a number that is no int of at least 1."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 1:
            raise ValueError(f"{function}: {name} must be an int of at least 1, got {number!r}")


def show_image(axes: Axes, image: np.ndarray) -> None:
    """An image (C, H, W) of one channel or three, from its darkest value to its brightest, without ticks."""
    pixels = image.astype(np.float64)
    low, high = pixels.min(), pixels.max()
    pixels = (pixels - low) / (high - low) if high > low else np.zeros_like(pixels)
    if len(pixels) == 3:
        axes.imshow(pixels.transpose(1, 2, 0))
    else:
        axes.imshow(pixels[0], cmap="gray", vmin=0, vmax=1)
    without_ticks(axes)


def without_ticks(axes: Axes) -> None:
    """An axes that holds an image needs none."""
    axes.set_xticks([])
    axes.set_yticks([])


def finished(figure: Figure, path: str | os.PathLike | None) -> Figure:
    """The figure, saved where a path is given; a file that was there is replaced only by a complete one.

    Errors: ValueError for an ending that matplotlib does not write; OSError where the file cannot be written.
    """
    if path is not None:
        content = io.BytesIO()
        figure.savefig(content, format=Path(path).suffix.removeprefix(".").lower() or "png")
        write_whole(path, content.getvalue())
    return figure
