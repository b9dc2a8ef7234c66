"""Datasets as arrays, and the loader that hands them out in batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from minires.creation import from_numpy
from minires.tensor import Tensor


class ArrayDataset:
    """Images and labels that fit in memory.

    Shapes: images (N, C, H, W) float32, labels (N,) integers. ``dataset[i]`` takes an int, a slice or an array.
    Errors: ValueError where the two have different lengths or there is nothing in them; TypeError for float labels.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        if not isinstance(images, np.ndarray) or not isinstance(labels, np.ndarray):
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

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> tuple[np.ndarray, np.ndarray]:
        return self.images[index], self.labels[index]


class DataSplit(NamedTuple):
    """A data set ready for training: what to learn from, what to be judged by, and its sizes."""

    train: ArrayDataset
    test: ArrayDataset
    num_classes: int
    in_channels: int


class DataLoader:
    """Batches of a dataset as Tensors, in order or shuffled.

    Args: dataset; batch_size; shuffle, a new order each time it is iterated over; drop_last, leave out a smaller last
        batch; seed, of the shuffling: the same seed gives the same orders, epoch by epoch.
    Yields: (images (n, C, H, W), labels (n,)).
    Errors: ValueError for a batch size below 1, or larger than the dataset with drop_last.
    Source: torch.utils.data.DataLoader.
    """

    def __init__(
        self,
        dataset: ArrayDataset,
        batch_size: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int | np.random.Generator = 0,
    ):
        if not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
            raise ValueError(f"DataLoader: batch_size must be a positive int, got {batch_size!r}")
        if not isinstance(dataset, ArrayDataset):
            kind = type(dataset).__name__
            raise TypeError(f"DataLoader: expected an ArrayDataset (digits().train, say), got {kind}")
        if drop_last and batch_size > len(dataset):
            raise ValueError(
                f"DataLoader: drop_last would leave nothing, batch_size {batch_size} is larger than {len(dataset)}"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        size = len(self.dataset)
        order = self.generator.permutation(size) if self.shuffle else np.arange(size)
        for i in range(len(self)):
            images, labels = self.dataset[order[i * self.batch_size : (i + 1) * self.batch_size]]
            yield from_numpy(images), from_numpy(labels)
