"""Data sets by their names, and folders of images by their paths."""

from __future__ import annotations

import os
from collections.abc import Callable

from minires.data.dataset import DataSplit
from minires.data.digits import digits
from minires.data.folder import image_folder
from minires.data.published import cifar10, cifar100, fashion_mnist, mnist
from minires.engine.convert import lookup

DATASETS: dict[str, Callable[[], DataSplit]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
}


def load_data(name: str | os.PathLike) -> DataSplit:
    """A data set by its name, or the path of a folder of images; split for training and test.

    Errors: ValueError for an unknown name, with the nearest one; FileNotFoundError for a path that is not there;
        DataError for files that cannot be read; OSError where files cannot be fetched, saying which to put where.
    """
    path = os.fspath(name)
    if path in DATASETS:
        return DATASETS[path]()
    if os.path.isdir(path) or os.path.dirname(path) or isinstance(name, os.PathLike):
        return image_folder(path)
    try:
        return lookup(DATASETS, path, "data set")()
    except ValueError as error:
        raise ValueError(f"{error}, and a folder of images is named by its path") from error
