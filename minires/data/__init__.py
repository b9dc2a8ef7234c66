"""Images to train on. What reads files or starts threads is imported when it is asked for."""

import importlib
from typing import TYPE_CHECKING, Any

from minires.data.dataset import ArrayDataset, DataSplit
from minires.data.digits import digits
from minires.data.transforms import Compose, Cutout, Normalize, Pad, RandomCrop, RandomHorizontalFlip

if TYPE_CHECKING:
    from minires.data.folder import image_folder
    from minires.data.loader import DataLoader
    from minires.data.named import DATASETS, load_data
    from minires.data.published import cifar10, cifar100, fashion_mnist, mnist

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
    "cifar10",
    "cifar100",
    "digits",
    "fashion_mnist",
    "image_folder",
    "load_data",
    "mnist",
]

#: What is imported when it is asked for, and the file that has it.
LATER = {
    "DATASETS": "named",
    "DataLoader": "loader",
    "cifar10": "published",
    "cifar100": "published",
    "fashion_mnist": "published",
    "image_folder": "folder",
    "load_data": "named",
    "mnist": "published",
}


def __getattr__(name: str) -> Any:
    """``data.DataLoader``, and ``from minires.data import DataLoader``."""
    if name in LATER:
        return getattr(importlib.import_module(f"minires.data.{LATER[name]}"), name)
    raise AttributeError(f"module 'minires.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *LATER})
