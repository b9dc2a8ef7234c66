"""Random changes to batches of images, under torchvision's names.

A transform is called with a batch and a seeded generator, ``transform(images, generator)``, and gives a new batch: each
image gets a choice of its own. The choice is drawn by ``choose``; what follows from it is plain indexing.
Shapes: images (N, C, H, W), uint8 or float.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

MODES = ("constant", "edge", "reflect", "symmetric")


def pair(value: Any, name: str) -> tuple[int, int]:
    """An int twice, or two ints. Errors: TypeError for anything else."""
    values = (value, value) if isinstance(value, (int, np.integer)) else value
    if (
        not isinstance(values, Sequence)
        or len(values) != 2
        or not all(isinstance(v, (int, np.integer)) for v in values)
    ):
        raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}")
    return int(values[0]), int(values[1])


def check_batch(images: np.ndarray, name: str) -> None:
    """Errors: ValueError for what is not a batch of images."""
    if not isinstance(images, np.ndarray) or images.ndim != 4:
        came = images.shape if hasattr(images, "shape") else type(images).__name__
        raise ValueError(f"{name}: expected images (N, C, H, W), got {came}")


def filling(fill: Any, images: np.ndarray, name: str) -> np.ndarray:
    """The value of pixels that are not there: one number, or one a channel. Shapes: -> broadcasts to (N, C, H, W)."""
    values = np.asarray(fill)
    if values.ndim > 1 or values.ndim == 1 and len(values) != images.shape[1]:
        raise ValueError(f"{name}: fill must be a number or one for each of {images.shape[1]} channels, got {fill!r}")
    if images.dtype == np.uint8 and not np.isin(values, np.arange(256)).all():
        raise ValueError(f"{name}: fill of uint8 images must be whole numbers between 0 and 255, got {fill!r}")
    return values.astype(images.dtype).reshape(-1, 1, 1)


class Compose:
    """Several transforms, one after the other. Source: torchvision.transforms.Compose."""

    def __init__(self, transforms: Sequence[Callable[..., np.ndarray]]):
        self.transforms = list(transforms)

    def __call__(self, images: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        for transform in self.transforms:
            images = transform(images, generator)
        return images


class Normalize:
    """Minus the mean, divided by the standard deviation of each channel; bytes are brought to 0 to 1 before.

    Shapes: images (..., C, H, W) uint8, or float between 0 and 1 -> the same, float32 (float64 stays float64).
    Source: torchvision.transforms.Normalize; for uint8, ToTensor before it.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError(f"Normalize: expected as many means as deviations above 0, got {mean} and {std}")
        self.mean = tuple(mean)
        self.std = tuple(std)

    def __call__(self, images: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        if images.ndim < 3 or images.shape[-3] != len(self.mean):
            raise ValueError(f"Normalize: expected images of {len(self.mean)} channels, got {images.shape}")
        dtype = np.float64 if images.dtype == np.float64 else np.float32
        out = images.astype(dtype)
        if images.dtype.kind in "iu":
            out /= dtype(255)
        out -= np.array(self.mean, dtype)[:, None, None]
        out /= np.array(self.std, dtype)[:, None, None]
        return out


class Pad:
    """More pixels around each image.

    Args: padding, one int; (left and right, top and bottom); or (left, top, right, bottom). fill, a number or one a
        channel. padding_mode, "constant", "edge", "reflect" or "symmetric".
    Source: torchvision.transforms.Pad.
    """

    def __init__(self, padding: int | Sequence[int], fill: Any = 0, padding_mode: str = "constant"):
        if isinstance(padding, Sequence) and len(padding) == 4:
            left, top, right, bottom = (int(p) for p in padding)
        else:
            left, top = pair(padding, "Pad: padding")
            right, bottom = left, top
        if min(left, top, right, bottom) < 0:
            raise ValueError(f"Pad: padding must be at least 0, got {padding}")
        if padding_mode not in MODES:
            raise ValueError(f"Pad: padding_mode must be one of {', '.join(MODES)}, got {padding_mode!r}")
        self.left, self.top, self.right, self.bottom = left, top, right, bottom
        self.fill = fill
        self.padding_mode = padding_mode

    def __call__(self, images: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        check_batch(images, "Pad")
        if self.padding_mode != "constant":
            widths = ((0, 0), (0, 0), (self.top, self.bottom), (self.left, self.right))
            return np.pad(images, widths, mode=self.padding_mode)
        N, C, H, W = images.shape
        out = np.empty((N, C, self.top + H + self.bottom, self.left + W + self.right), images.dtype)
        out[...] = filling(self.fill, images, "Pad")
        out[:, :, self.top : self.top + H, self.left : self.left + W] = images
        return out


class RandomCrop:
    """A window of each image, anywhere in it, after padding.

    Args: size, an int or (height, width); padding, fill and padding_mode as Pad's.
    Errors: ValueError for a window larger than the padded image.
    Source: torchvision.transforms.RandomCrop.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        padding: int | Sequence[int] | None = None,
        fill: Any = 0,
        padding_mode: str = "constant",
    ):
        self.size = pair(size, "RandomCrop: size")
        if min(self.size) < 1:
            raise ValueError(f"RandomCrop: size must be at least 1, got {size}")
        self.pad = None if padding is None else Pad(padding, fill, padding_mode)

    def choose(self, shape: tuple[int, ...], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Where the window of each image begins: row and column. Shapes: (N, C, H, W) of the padded images -> (N,)."""
        N, _, H, W = shape
        height, width = self.size
        if height > H or width > W:
            raise ValueError(f"RandomCrop: the window is {height}x{width} and the padded image {H}x{W}")
        return generator.integers(H - height + 1, size=N), generator.integers(W - width + 1, size=N)

    def __call__(self, images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        check_batch(images, "RandomCrop")
        if self.pad is not None:
            images = self.pad(images)
        top, left = self.choose(images.shape, generator)
        windows = sliding_window_view(images, self.size, axis=(2, 3))  # (N, C, rows, columns, height, width)
        return windows[np.arange(len(images)), :, top, left]  # (N, C, height, width)


class RandomHorizontalFlip:
    """Left and right exchanged, in each image with probability p.

    Source: torchvision.transforms.RandomHorizontalFlip.
    """

    def __init__(self, p: float = 0.5):
        if not 0 <= p <= 1:
            raise ValueError(f"RandomHorizontalFlip: p must lie between 0 and 1, got {p}")
        self.p = p

    def choose(self, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
        """Which images are flipped. Shapes: (N, C, H, W) -> (N,) bool."""
        return generator.random(shape[0]) < self.p

    def __call__(self, images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        check_batch(images, "RandomHorizontalFlip")
        flipped = self.choose(images.shape, generator)
        out = images.copy()
        out[flipped] = images[flipped, :, :, ::-1]
        return out


class Cutout:
    """A square of each image blanked; its centre lies anywhere in the image, so that it may stick out.

    Args: size, the side of the square; fill, a number or one a channel. The paper blanks images after Normalize, where
        0 is the mean of the training images.
    Source: DeVries and Taylor 2017, https://arxiv.org/abs/1708.04552, and the code published with it.
    """

    def __init__(self, size: int, fill: Any = 0):
        if not isinstance(size, (int, np.integer)) or size < 1:
            raise ValueError(f"Cutout: size must be a positive int, got {size!r}")
        self.size = int(size)
        self.fill = fill

    def choose(self, shape: tuple[int, ...], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The centre of each square: row and column. Shapes: (N, C, H, W) -> (N,)."""
        N, _, H, W = shape
        return generator.integers(H, size=N), generator.integers(W, size=N)

    def __call__(self, images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        check_batch(images, "Cutout")
        N, C, H, W = images.shape
        y, x = self.choose(images.shape, generator)
        half = self.size // 2  # an odd size blanks one pixel less, as the published code does
        rows = (np.arange(H) >= y[:, None] - half) & (np.arange(H) < y[:, None] + half)  # (N, H)
        columns = (np.arange(W) >= x[:, None] - half) & (np.arange(W) < x[:, None] + half)  # (N, W)
        blank = rows[:, None, :, None] & columns[:, None, None, :]  # (N, 1, H, W)
        return np.where(blank, filling(self.fill, images, "Cutout"), images)
