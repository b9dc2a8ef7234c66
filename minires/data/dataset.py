"""Images with their labels, and a data set split for training and test."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minires.data.transforms import Normalize


class ArrayDataset:
    """Images and labels. ``dataset[i]`` takes an int, a slice or an array, and gives images ready for a network.

    Args: images (N, C, H, W), float32, or uint8 as they are stored; labels (N,) integers; normalize makes float32 of
        uint8 images when they are taken, so that a large data set stays a quarter of the size.
    Errors: ValueError where the two have different lengths or there is nothing in them; TypeError for float labels.
    """

    def __init__(self, images: Any, labels: np.ndarray, normalize: Normalize | None = None):
        arrays = hasattr(images, "shape") and hasattr(images, "dtype") and isinstance(labels, np.ndarray)
        if not arrays:
            kinds = f"{type(images).__name__} and {type(labels).__name__}"
            raise TypeError(f"ArrayDataset: images and labels must be NumPy arrays, got {kinds}")
        if len(images) == 0 and len(labels) == 0:
            raise ValueError("ArrayDataset: the data set is empty, expected at least one image")
        if len(images) != len(labels):
            raise ValueError(f"ArrayDataset: expected as many images as labels, got {len(images)} and {len(labels)}")
        if labels.dtype.kind not in "iu":
            raise TypeError(f"ArrayDataset: labels must be integers, got {labels.dtype}")
        self.images = images
        self.labels = labels.astype(np.int64)
        self.normalize = normalize

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> tuple[np.ndarray, np.ndarray]:
        return self.normalized(self.images[index]), self.labels[index]

    def normalized(self, images: np.ndarray) -> np.ndarray:
        """Images as a network wants them: bytes are normalised, and what is float already is left as it is."""
        if self.normalize is not None and images.dtype == np.uint8:
            return self.normalize(images)
        return images


class DataSplit(NamedTuple):
    """A data set ready for training: what to learn from, what to be judged by, its sizes, and its classes' names."""

    train: ArrayDataset
    test: ArrayDataset
    num_classes: int
    in_channels: int
    classes: tuple[str, ...] = ()


def fingerprint(*datasets: ArrayDataset) -> str:
    """What tells data sets apart: a checksum of their sizes, their labels, and up to 64 images spread over each."""
    import hashlib

    digest = hashlib.sha256()
    for dataset in datasets:
        chosen = np.linspace(0, len(dataset) - 1, min(64, len(dataset))).astype(int)
        images = np.ascontiguousarray(dataset.images[chosen])
        digest.update(f"{len(dataset)} {images.dtype} {images.shape}".encode())
        digest.update(np.ascontiguousarray(dataset.labels).tobytes())
        digest.update(images.tobytes())
    return digest.hexdigest()
