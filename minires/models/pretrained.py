"""Published weights: torchvision's files, fetched once and checked.

The eight hex digits in a file's name begin its SHA-256; what does not match is not used.
"""

from __future__ import annotations

import os
from typing import Any

from minires.data.checkpoint import load, state_dict_of
from minires.data.downloads import Published, fetch
from minires.nn import Module

ADDRESS = "https://download.pytorch.org/models/"

#: name: the file of the original recipe and that of the newer one (None where there is none)
FILES: dict[str, tuple[str | None, str]] = {
    "resnet18": ("resnet18-f37072fd.pth", "resnet18-f37072fd.pth"),
    "resnet34": ("resnet34-b627a593.pth", "resnet34-b627a593.pth"),
    "resnet50": ("resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth"),
    "resnet101": ("resnet101-63fe2227.pth", "resnet101-cd907fc2.pth"),
    "resnet152": ("resnet152-394f9c45.pth", "resnet152-f82ba261.pth"),
    "resnext50_32x4d": ("resnext50_32x4d-7cdf4587.pth", "resnext50_32x4d-1a0047aa.pth"),
    "resnext101_32x8d": ("resnext101_32x8d-8ba56ff5.pth", "resnext101_32x8d-110c445d.pth"),
    "resnext101_64x4d": (None, "resnext101_64x4d-173b62eb.pth"),
    "wide_resnet50_2": ("wide_resnet50_2-95faca4d.pth", "wide_resnet50_2-9ba9bcbe.pth"),
    "wide_resnet101_2": ("wide_resnet101_2-32ee1156.pth", "wide_resnet101_2-d733dc28.pth"),
}


def weights_file(name: str, weights: str) -> str:
    """The file of a model's published weights: "imagenet" for the original recipe, "imagenet-v2" for the newer one.

    Errors: ValueError for a model or a recipe that was not published.
    """
    if weights not in ("imagenet", "imagenet-v2"):
        raise ValueError(f'weights must be "imagenet" or "imagenet-v2", got {weights!r}')
    if name not in FILES:
        raise ValueError(f"there are no published weights for {name!r}: there are some for {', '.join(FILES)}")
    original, newer = FILES[name]
    file = original if weights == "imagenet" else newer
    if file is None:
        raise ValueError(f'{name} has no weights of the original recipe: take weights="imagenet-v2"')
    return file


def fetch_weights(file: str) -> str:
    """The path of a file of published weights, fetched into the cache folder where it is not there yet.

    Errors: as minires.data.downloads.fetch.
    """
    prefix = os.path.splitext(file)[0].rsplit("-", 1)[1]
    return fetch(Published(file, (ADDRESS + file,), f"sha256:{prefix}"))


def load_published(model: Module, name: str, weights: str) -> None:
    """Fill a model with its published weights.

    Errors: ValueError for weights that were not published; OSError where they cannot be fetched; RuntimeError where
        they do not fit the model (another number of classes, another shortcut).
    """
    state: dict[str, Any] = state_dict_of(load(fetch_weights(weights_file(name, weights))))
    model.load_state_dict(state)
