"""A folder of image files as a data set: a folder for each class, as torchvision's ImageFolder reads it."""

from __future__ import annotations

import os
import warnings
from collections import Counter, deque
from typing import Any

import numpy as np

from minires.data.binary import DataError
from minires.data.dataset import ArrayDataset, DataSplit
from minires.data.images import MEAN, STD, open_image, open_picture, resize_and_crop
from minires.data.transforms import Normalize
from minires.engine.convert import printable

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
TRAIN, TESTS = ("train", "training"), ("test", "testing", "val", "valid", "validation")  # in any case; the first counts
KEPT = 1 << 30  # bytes of pixels that are read once and kept; more are read again for every batch
RESIZE, CROP = 256, 224  # where the images have several sizes, or a size too large for a network
AS_IT_IS = 224  # pixels: images of one size up to this are not resized
TEST_SHARE = 0.2
SEED = 0


class ImageFiles:
    """Image files that look like an array (N, 3, crop, crop) uint8: what is indexed is read.

    Args: resize, the shorter side's pixels, and crop, the centre square's; both None for images of one size.
    Errors: DataError that names the file, for one that is damaged or of another size than the others.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, paths: list[str], size: tuple[int, int], resize: int | None = None, crop: int | None = None):
        self.paths = np.array(paths, object)
        self.resize = resize
        self.crop = crop
        self.shape = (len(paths), 3, *size) if crop is None else (len(paths), 3, crop, crop)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> np.ndarray:
        paths = self.paths[index]
        if isinstance(paths, str):
            return self.read(paths)
        out = np.empty((len(paths), *self.shape[1:]), np.uint8)
        for i, path in enumerate(paths):
            out[i] = self.read(path)
        return out

    def read(self, path: str) -> np.ndarray:
        """One image. Shapes: -> (3, H, W) uint8. Errors: as the class; FileNotFoundError where it is gone."""
        image = open_image(path)
        if self.resize is not None and self.crop is not None:
            try:
                image = resize_and_crop(image, self.resize, self.crop)
            except DataError as error:
                raise DataError(f"{path}: {error}") from error
        pixels = np.asarray(image).transpose(2, 0, 1)
        if pixels.shape != self.shape[1:]:
            raise DataError(
                f"{path} has {pixels.shape[2]}x{pixels.shape[1]} pixels, the others {self.shape[3]}x{self.shape[2]}"
            )
        return pixels

    def all(self) -> np.ndarray:
        """Every image, with a progress bar. Shapes: -> (N, 3, H, W) uint8. Errors: as read."""
        from tqdm.auto import tqdm

        out = np.empty(self.shape, np.uint8)
        for i, path in enumerate(tqdm(self.paths, desc="reading images", unit="image", leave=False)):
            out[i] = self.read(path)
        return out


def subfolders(folder: str | os.PathLike) -> list[str]:
    """The names of the folders in a folder, sorted; hidden ones are left out."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def is_image(entry: os.DirEntry) -> bool:
    """Whether an entry of a folder is a file, not a pipe, a socket or a device, and has the ending of an image."""
    return entry.is_file() and entry.name.lower().endswith(EXTENSIONS)


def image_paths(folder: str, left_out: Counter[str] | None = None) -> list[str]:
    """The image files in a folder and the folders below it, in the order of torchvision.

    Args: left_out, counts by their endings the files that are no images; hidden files do not count.
    """
    found: dict[str, list[str]] = {}
    walk(folder, found, Counter() if left_out is None else left_out)
    return [os.path.join(place, name) for place in sorted(found) for name in sorted(found[place])]


def walk(folder: str, found: dict[str, list[str]], left_out: Counter[str]) -> None:
    """Note the image files of a folder and those below it, each folder once, by whichever way it is reached first.

    Links are followed when no folder that is no link is left: folders that link to each other have ways without number.
    """
    visited: set[str] = set()
    folders, links = deque([folder]), deque[str]()
    while folders or links:
        place = folders.popleft() if folders else links.popleft()
        real = os.path.realpath(place)
        if real in visited:
            continue
        visited.add(real)
        with os.scandir(place) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
        found[place] = [entry.name for entry in inside if is_image(entry)]
        for entry in inside:
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append(entry.path)
            elif not is_image(entry) and not entry.name.startswith("."):
                left_out[ending(entry)] += 1


def ending(entry: os.DirEntry) -> str:
    """What to call a file that is left out: its ending, or why it cannot be read."""
    if not entry.is_file():
        return "no regular file"
    return os.path.splitext(entry.name)[1].lower() or "without an ending"


def find_images(
    folder: str | os.PathLike, classes: list[str], left_out: Counter[str] | None = None
) -> tuple[list[str], np.ndarray]:
    """The image files of a folder of class folders, and their labels (N,) int64.

    Args: left_out, as image_paths; images beside the class folders count too.
    Errors: DataError for a class folder that is none of ``classes``, or has no image in it.
    """
    paths, labels = [], []
    left_out = Counter() if left_out is None else left_out
    for name in subfolders(folder):
        path = os.path.join(folder, name)
        if name not in classes:
            raise DataError(f"{path}: there is no such class to train on: there are {', '.join(classes)}")
        others: Counter[str] = Counter()
        found = image_paths(path, others)
        if not found:
            had = f" (it has {counted(others)})" if others else ""
            raise DataError(f"{path} has no image in it: expected files that end in {', '.join(EXTENSIONS)}{had}")
        paths += found
        labels += [classes.index(name)] * len(found)
        left_out.update(others)
    if not paths:
        raise DataError(f"{os.fspath(folder)}: expected a folder of images for each class in it, there is none")
    with os.scandir(os.fspath(folder)) as entries:
        beside = sum(is_image(entry) and not entry.name.startswith(".") for entry in entries)
    if beside:
        left_out["in no class folder"] += beside
    return paths, np.array(labels, np.int64)


def counted(files: Counter[str]) -> str:
    """Files in words: "41 files: 40 .heic, 1 .txt"."""
    total = sum(files.values())
    each = ", ".join(f"{files[name]} {name}" for name in sorted(files, key=lambda name: (-files[name], name)))
    return f"{total} {'file' if total == 1 else 'files'}: {each}"


def warn_of_files(root: str, left_out: Counter[str], folders: list[str]) -> None:
    """Say once what of a folder is not used."""
    if left_out:
        warnings.warn(printable(f"{root}: left out {counted(left_out)}"), stacklevel=3)
    if folders:
        names = ", ".join(name + "/" for name in folders)
        warnings.warn(printable(f"{root}: left out the folder {names}"), stacklevel=3)


def parts_of(root: str, names: list[str]) -> tuple[str, str] | None:
    """The names of the folders to train on and to test on, or None where each folder is a class.

    Errors: DataError for one to train on without one to test on.
    """
    train = [name for wanted in TRAIN for name in names if name.lower() == wanted]
    test = [name for wanted in TESTS for name in names if name.lower() == wanted]
    if train and test:
        return train[0], test[0]
    if train:
        raise DataError(
            f"{root} has {train[0]}/ and neither test/ nor val/: expected both, or a folder for each class "
            f"(a class of this name needs another one)"
        )
    return None


def common_size(paths: list[str]) -> tuple[int, int] | None:
    """Height and width where all images have one size, by their headers; None where they differ.

    Errors: DataError for a file that is no image.
    """
    sizes = set()
    for path in paths:
        with open_picture(path) as image:
            sizes.add((image.height, image.width))
    return sizes.pop() if len(sizes) == 1 else None


def share_out(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which images to train on and which to test on: of each class a fifth, at least one, drawn by a fixed seed.

    A class of a single image is trained on. Shapes: labels (N,) -> two arrays of indices, in order.
    """
    generator = np.random.default_rng(SEED)
    test = np.zeros(len(labels), bool)
    for label in range(labels.max() + 1):
        mine = np.flatnonzero(labels == label)
        count = max(1, round(TEST_SHARE * len(mine))) if len(mine) > 1 else 0
        test[generator.permutation(mine)[:count]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)


def check_sizes(resize: int | None, crop: int | None) -> None:
    """Errors: ValueError for one without the other, or a window larger than the image."""
    if (resize is None) != (crop is None):
        raise ValueError(f"image_folder: resize and crop belong together, got resize={resize} and crop={crop}")
    if resize is not None and crop is not None and not 1 <= crop <= resize:
        raise ValueError(f"image_folder: expected 1 <= crop <= resize, got resize={resize} and crop={crop}")


def image_folder(root: str | os.PathLike, resize: int | None = None, crop: int | None = None) -> DataSplit:
    """A data set of one's own: ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg (or val/), or ROOT/CLASS/*.jpg.

    The two may be called Train, training, valid and so on. What is left out is said in a warning.
    Class folders alone are split: a fifth of each class is for the test, always the same. Classes are numbered in the
    order of their sorted names. Images become colour, normalised with ImageNet's mean and standard deviation. Images of
    one size, up to 224 pixels, are left as they are; others get the shorter side of 256 and the centre square of 224.
    Args: resize and crop, other sizes.
    Shapes: images (N, 3, H, W).
    Errors: DataError that names the folder or file; FileNotFoundError where there is no such folder.
    """
    check_sizes(resize, crop)
    root = os.fspath(root)
    if not os.path.isdir(root):
        raise FileNotFoundError(2, "there is no such folder", root)
    names = subfolders(root)
    parts = parts_of(root, names)
    left_out: Counter[str] = Counter()
    if parts is not None:
        classes = subfolders(os.path.join(root, parts[0]))
        paths, labels = find_images(os.path.join(root, parts[0]), classes, left_out)
        test_paths, test_labels = find_images(os.path.join(root, parts[1]), classes, left_out)
    else:
        classes = names
        paths, labels = find_images(root, classes, left_out)
        train, test = share_out(labels)
        if len(test) == 0:
            raise DataError(f"{root}: every class has a single image, which leaves none to test on")
        test_paths, test_labels = [paths[i] for i in test], labels[test]
        paths, labels = [paths[i] for i in train], labels[train]
    warn_of_files(root, left_out, [name for name in names if parts is not None and name not in parts])
    size = common_size(paths + test_paths)
    if crop is None and (size is None or max(size) > AS_IT_IS):
        resize, crop = RESIZE, CROP
    datasets = []
    keep = None
    for files, truth in ((paths, labels), (test_paths, test_labels)):
        images = ImageFiles(files, size or (0, 0), resize, crop)
        if keep is None:
            keep = (len(paths) + len(test_paths)) * int(np.prod(images.shape[1:])) <= KEPT
        datasets.append(ArrayDataset(images.all() if keep else images, truth, Normalize(MEAN, STD)))
    return DataSplit(datasets[0], datasets[1], len(classes), 3, tuple(classes))
