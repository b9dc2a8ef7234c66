"""The handwritten digits that come with MiniRes.

1,797 digits of 13 writers, 8x8 pixels of 0 to 16: the test part of the Optical Recognition of Handwritten Digits data
set (E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0).
In file order the last digits are by other people than the first; ``order`` in the file is one fixed
shuffle of them all.
"""

from __future__ import annotations

import os

import numpy as np

from minires.data.dataset import ArrayDataset, DataSplit

TRAIN = 1437  # four fifths to train; the other 360 to test


def digits() -> DataSplit:
    """The digits as float32 with mean 0 and standard deviation 1 (of the training part): 1,437 to train, 360 to test.

    Shapes: images (N, 1, 8, 8), labels (N,), ten classes.
    Errors: FileNotFoundError where the installation lacks its file.
    """
    with np.load(os.path.join(os.path.dirname(__file__), "digits.npz"), allow_pickle=False) as file:
        images, labels, order = file["images"], file["labels"], file["order"]
    images = images[order][:, None].astype(np.float32)  # (1797, 1, 8, 8)
    labels = labels[order]
    mean, std = images[:TRAIN].mean(), images[:TRAIN].std()
    images = (images - mean) / std
    train = ArrayDataset(images[:TRAIN], labels[:TRAIN])
    test = ArrayDataset(images[TRAIN:], labels[TRAIN:])
    return DataSplit(train, test, num_classes=10, in_channels=1, classes=tuple("0123456789"))
