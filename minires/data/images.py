"""Real image files as the networks want them: read, resized, cropped and normalised as torchvision does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from minires.data.binary import DataError, check_regular
from minires.data.transforms import Normalize

if TYPE_CHECKING:
    from PIL.Image import Image

#: Of ImageNet's training images, red, green, blue, on a scale of 0 to 1.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

#: What is read, by how a file begins. Pillow reads more, and starts another program for PostScript.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")

LARGEST = 64_000_000  # pixels, before and after resizing
SMALL = 4_000_000  # pixels that are taken on trust
DENSEST = 10_000  # pixels a byte: more no file of photographs has, though a header may claim it


def open_picture(path: str | os.PathLike) -> Image:
    """An image file whose header is read and whose pixels are not yet; to be closed, as Pillow's Image.open.

    Errors: FileNotFoundError where there is none; DataError for a file of another kind, damaged, or too large.
    """
    from PIL import Image, UnidentifiedImageError

    name = os.fspath(path)
    found = check_regular(path, "an image")
    try:
        image = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is not an image file of a kind that is read ({', '.join(FORMATS)})") from error
    except OSError as error:
        if error.errno is not None:  # the system's, not the reader's
            raise
        raise DataError(f"{name} is damaged: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # each format's reader fails in ways of its own
        raise DataError(f"{name} is damaged: {error}") from error
    try:
        check_size(image, name, found.st_size)
    except DataError:
        image.close()
        raise
    return image


def open_image(path: str | os.PathLike) -> Image:
    """An image file in colour: grey becomes equal red, green and blue; transparency is dropped, as torchvision does.

    Of several frames it is the first. Errors: as open_picture; DataError for damaged pixels.
    """
    from PIL import Image

    name = os.fspath(path)
    try:
        with open_picture(path) as image:
            if image.format == "PNG":  # its checksums: decoding stops where all pixels are there
                image.verify()
        with open_picture(path) as image:
            if image.mode.startswith("I;16"):
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            if image.mode in ("I", "F"):
                raise DataError(f"{name} has pixels of 32 bits, whose range is unknown: save it with 8")
            return image.convert("RGB")
    except (DataError, FileNotFoundError, IsADirectoryError, PermissionError, MemoryError):
        raise
    except Exception as error:  # each format's reader fails in ways of its own
        raise DataError(f"{name} is damaged: {error}") from error


def check_size(image: Image, name: str, size: int) -> None:
    """Errors: DataError for more pixels than memory should be given for, or than a file of ``size`` bytes can hold."""
    pixels = image.width * image.height
    if pixels > LARGEST:
        raise DataError(f"{name} has {image.width}x{image.height} pixels, more than {LARGEST:,}")
    if pixels > max(SMALL, DENSEST * size):
        raise DataError(f"{name} says that it has {image.width}x{image.height} pixels, and it has {size:,} bytes")


def resize_and_crop(image: Image, resize: int, crop: int) -> Image:
    """The shorter side to ``resize`` pixels (bilinear, antialiased), then the centre square of ``crop`` pixels.

    Errors: DataError for an image so narrow that resizing it would need too much memory.
    Source: torchvision.transforms.Resize and CenterCrop.
    """
    from PIL.Image import Resampling

    shorter, longer = sorted(image.size)
    long_side = int(resize * longer / shorter)
    if resize * long_side > LARGEST:
        raise DataError(f"an image of {image.width}x{image.height} pixels is too narrow to resize to {resize}")
    width, height = (resize, long_side) if image.width <= image.height else (long_side, resize)
    image = image.resize((width, height), Resampling.BILINEAR)
    top, left = int(round((height - crop) / 2.0)), int(round((width - crop) / 2.0))
    return image.crop((left, top, left + crop, top + crop))


def normalize(pixels: np.ndarray) -> np.ndarray:
    """Bytes as the networks want them: minus the mean, divided by the standard deviation of ImageNet.

    Shapes: pixels (N, 3, H, W) uint8 -> the same, float32.
    """
    return Normalize(MEAN, STD)(pixels)


def read_image(path: str | os.PathLike, resize: int = 256, crop: int = 224) -> np.ndarray:
    """An image file as the input of a network.

    Shapes: -> (3, crop, crop) float32.
    Errors: as open_image and resize_and_crop.
    """
    image = resize_and_crop(open_image(path), resize, crop)
    return normalize(np.asarray(image).transpose(2, 0, 1)[None])[0]
