"""Data sets that others publish: MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, fetched once and checked.

Files lie as torchvision lays them, so that both find what the other has fetched: MNIST/raw/, FashionMNIST/raw/,
cifar-10-batches-bin/ or cifar-10-binary.tar.gz. Images stay uint8 in memory; a batch is normalised when it is taken,
with the mean and the standard deviation of the training images' pixels, which are the ones that the field uses.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from minires.data.binary import DataError
from minires.data.cifar import CIFAR10, CIFAR100, Records, read_cifar
from minires.data.dataset import ArrayDataset, DataSplit
from minires.data.downloads import Published, cache_folder, fetch, has_checksum, in_words, is_the_file
from minires.data.idx import read_idx_images, read_idx_labels
from minires.data.transforms import Normalize

MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
FASHION_MNIST_MEAN, FASHION_MNIST_STD = (0.2860,), (0.3530,)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)

FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm""".split()
)

MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
FASHION_MNIST_MIRRORS = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
CIFAR_MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)


class IDXFiles(NamedTuple):
    """The four files of a data set like MNIST."""

    train_images: Published
    train_labels: Published
    test_images: Published
    test_labels: Published


def idx_files(folder: str, mirrors: tuple[str, ...], checksums: dict[str, tuple[str, str]]) -> IDXFiles:
    """The four files, given for each name the MD5 of the .gz file and the SHA-256 of what is in it ("": unknown)."""
    files = []
    for name, (packed, unpacked) in checksums.items():
        addresses = tuple(mirror + name + ".gz" for mirror in mirrors)
        known = f"sha256:{unpacked}" if unpacked else ""
        most = 1 << 26 if "images" in name else 1 << 20
        files.append(Published(f"{folder}/{name}.gz", addresses, f"md5:{packed}", known, most))
    return IDXFiles(*files)


MNIST = idx_files(
    "MNIST/raw",
    MNIST_MIRRORS,
    {
        "train-images-idx3-ubyte": (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        "train-labels-idx1-ubyte": (
            "d53e105ee54ea40749a09fcbcd1e9432",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        "t10k-images-idx3-ubyte": (
            "9fb629c4189551a2d022fa330f9573f3",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        "t10k-labels-idx1-ubyte": (
            "ec29112dd5afa0611ce80d1b7f02629c",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    },
)
FASHION_MNIST = idx_files(
    "FashionMNIST/raw",
    FASHION_MNIST_MIRRORS,
    {
        "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", ""),
        "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", ""),
        "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", ""),
        "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", ""),
    },
)


def cifar_archive(name: str, md5: str) -> Published:
    """An archive of the CIFAR page."""
    return Published(name, tuple(mirror + name for mirror in CIFAR_MIRRORS), f"md5:{md5}", most=1 << 29)


# The checksums of the published files are as other libraries state them; none of these servers was asked when this was
# written. Of MNIST's test files the content was there, and its SHA-256 is the one above.
CIFAR10_ARCHIVE = cifar_archive("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")
CIFAR100_ARCHIVE = cifar_archive("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8")

IDX_COUNTS = (60_000, 10_000)  # images to train and to test, of MNIST and of Fashion-MNIST


def checked(path: str, file: Published, folder: str) -> str:
    """The path of a file that is there. Errors: DataError where it is not the published one."""
    packed = path.endswith(".gz")
    if packed and is_the_file(path, file):
        return path
    if not packed and not file.unpacked:
        for other in MNIST:  # whose files have the names of Fashion-MNIST's
            same_name = os.path.basename(other.name) == os.path.basename(file.name)
            if same_name and other.name != file.name and other.unpacked and has_checksum(path, other.unpacked):
                raise DataError(f"{path} is MNIST's file, expected Fashion-MNIST's: move it to {other.name[:-3]}")
    if not packed and (not file.unpacked or has_checksum(path, file.unpacked)):
        return path
    known = in_words(file.checksum if packed else file.unpacked)
    raise DataError(f"{path}: its checksum is not {known}: remove it, and the published file is fetched into {folder}")


def locate(file: Published, root: str | os.PathLike | None) -> str:
    """The path of a published file below a folder, as it was published or unpacked; fetched where it is not there.

    Errors: DataError for a file that is there and is another; OSError where it cannot be fetched, saying which file to
        put where.
    """
    folder = os.fspath(root) if root is not None else cache_folder()
    path = os.path.join(folder, *file.name.split("/"))
    for there in (path, path.removesuffix(".gz")):
        if os.path.isfile(there):
            return checked(there, file, folder)
    return fetch(file, folder)


def idx_part(images: Published, labels: Published, count: int, root: str | os.PathLike | None) -> tuple:
    """Images (N, 1, 28, 28) uint8 and labels (N,) of one part. Errors: as locate; DataError for other sizes."""
    image_path, label_path = locate(images, root), locate(labels, root)
    pixels, truth = read_idx_images(image_path), read_idx_labels(label_path)
    if pixels.shape != (count, 1, 28, 28):
        raise DataError(f"{image_path}: expected {count:,} images of 28x28 pixels, it has {pixels.shape}")
    if truth.shape != (count,):
        raise DataError(f"{label_path}: expected {count:,} labels, it has {len(truth):,}")
    return pixels, truth


def idx_split(
    files: IDXFiles,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    classes: tuple[str, ...],
    root: str | os.PathLike | None,
) -> DataSplit:
    """MNIST or Fashion-MNIST."""
    normalize = Normalize(mean, std)
    train = idx_part(files.train_images, files.train_labels, IDX_COUNTS[0], root)
    test = idx_part(files.test_images, files.test_labels, IDX_COUNTS[1], root)
    return DataSplit(ArrayDataset(*train, normalize), ArrayDataset(*test, normalize), len(classes), 1, classes)


def mnist(root: str | os.PathLike | None = None) -> DataSplit:
    """Handwritten digits: 60,000 to train, 10,000 to test, (1, 28, 28), ten classes.

    Args: root, the folder of the files (MINIRES_DATA or ~/.cache/minires); what is not there is fetched into it.
    Errors: DataError for a file that is not the published one; OSError where one cannot be fetched.
    Source: LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist
    """
    return idx_split(MNIST, MNIST_MEAN, MNIST_STD, tuple("0123456789"), root)


def fashion_mnist(root: str | os.PathLike | None = None) -> DataSplit:
    """Pieces of clothing: 60,000 to train, 10,000 to test, (1, 28, 28), ten classes.

    Args and errors: as mnist.
    Source: Xiao, Rasul and Vollgraf 2017, https://github.com/zalandoresearch/fashion-mnist
    """
    return idx_split(FASHION_MNIST, FASHION_MNIST_MEAN, FASHION_MNIST_STD, FASHION_MNIST_CLASSES, root)


def cifar_split(
    records: Records, archive: Published, normalize: Normalize, classes: tuple[str, ...], root: str | os.PathLike | None
) -> DataSplit:
    """CIFAR-10 or CIFAR-100: from the archive where it is there, which has a checksum, or else the unpacked folder."""
    folder = os.fspath(root) if root is not None else cache_folder()
    unpacked = os.path.join(folder, records.folder)
    if os.path.isdir(unpacked) and not os.path.isfile(os.path.join(folder, archive.name)):
        path = unpacked
    else:
        path = locate(archive, root)
    train, test = (ArrayDataset(images, labels, normalize) for images, labels in read_cifar(path, records))
    return DataSplit(train, test, len(classes), 3, classes)


def cifar10(root: str | os.PathLike | None = None) -> DataSplit:
    """Small photographs: 50,000 to train, 10,000 to test, (3, 32, 32), ten classes.

    Args and errors: as mnist.
    Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html (the binary version)
    """
    return cifar_split(CIFAR10, CIFAR10_ARCHIVE, Normalize(CIFAR10_MEAN, CIFAR10_STD), CIFAR10_CLASSES, root)


def cifar100(root: str | os.PathLike | None = None) -> DataSplit:
    """Small photographs: 50,000 to train, 10,000 to test, (3, 32, 32), a hundred (fine) classes.

    Args and errors: as mnist.
    Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html (the binary version)
    """
    return cifar_split(CIFAR100, CIFAR100_ARCHIVE, Normalize(CIFAR100_MEAN, CIFAR100_STD), CIFAR100_CLASSES, root)
