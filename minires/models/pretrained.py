"""Published weights: torchvision's files, fetched once and checked.

The eight hex digits in a file's name begin its SHA-256; what does not match is not used.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

from minires.checkpoint import load, state_dict_of
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


def cache_folder() -> str:
    """Where fetched files are kept: the folder named by MINIRES_DATA, or ~/.cache/minires."""
    return os.environ.get("MINIRES_DATA") or os.path.join(os.path.expanduser("~"), ".cache", "minires")


def has_prefix(path: str, prefix: str) -> bool:
    """Whether a file's SHA-256 begins with these hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest().startswith(prefix)


def fetch(file: str) -> str:
    """The path of a published file, fetched into the cache folder where it is not there yet.

    Errors: OSError where it cannot be fetched or what came is not the file, saying which file to put where.
    """
    folder = cache_folder()
    path = os.path.join(folder, file)
    prefix = os.path.splitext(file)[0].rsplit("-", 1)[1]
    if os.path.exists(path):
        if has_prefix(path, prefix):
            return path
        raise OSError(
            f"{path} is damaged (its SHA-256 does not begin with {prefix}): remove it, and it is fetched anew"
        )
    import pooch

    os.makedirs(folder, exist_ok=True)
    part = f"{path}.{os.getpid()}.part"
    try:
        pooch.HTTPDownloader(progressbar=True, timeout=30)(ADDRESS + file, part, None)
        if not has_prefix(part, prefix):
            raise OSError(f"what came does not have a SHA-256 that begins with {prefix}")
        os.replace(part, path)
    except Exception as error:  # the network may fail in many ways
        raise OSError(
            f"cannot fetch {ADDRESS}{file} ({type(error).__name__}: {error}): "
            f"get this file elsewhere and put it at {path}"
        ) from error
    finally:
        if os.path.exists(part):
            os.remove(part)
    return path


def load_published(model: Module, name: str, weights: str) -> None:
    """Fill a model with its published weights.

    Errors: ValueError for weights that were not published; OSError where they cannot be fetched; RuntimeError where
        they do not fit the model (another number of classes, another shortcut).
    """
    state: dict[str, Any] = state_dict_of(load(fetch(weights_file(name, weights))))
    model.load_state_dict(state)
