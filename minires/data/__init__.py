"""Images to train on."""

from collections.abc import Callable

from minires.data.dataset import ArrayDataset, DataSplit
from minires.data.digits import digits
from minires.data.loader import DataLoader
from minires.data.transforms import Compose, Cutout, Normalize, Pad, RandomCrop, RandomHorizontalFlip
from minires.names import lookup

DATASETS: dict[str, Callable[[], DataSplit]] = {"digits": digits}


def load_data(name: str) -> DataSplit:
    """A data set by name, split for training and test.

    Errors: ValueError for an unknown name, with the nearest one.
    """
    return lookup(DATASETS, name, "data set")()


__all__ = [
    "DATASETS",
    "ArrayDataset",
    "Compose",
    "Cutout",
    "DataLoader",
    "DataSplit",
    "Normalize",
    "Pad",
    "RandomCrop",
    "RandomHorizontalFlip",
    "digits",
    "load_data",
]
