"""The binary version of CIFAR: records of one label byte (CIFAR-100: two, coarse and fine), then 32x32 bytes of red, of
green, of blue. Read from the unpacked folder or straight from the archive: nothing is unpacked to disk.

Source: https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from minires.data.binary import CHUNK, DataError, check_end, check_labels, fill, opened

PIXELS = 3 * 32 * 32
MEMBERS = 100  # of an archive: the real ones have ten


class Records(NamedTuple):
    """The files of CIFAR-10 or CIFAR-100: how many records each has, and what a record begins with."""

    folder: str
    train: tuple[str, ...]
    test: str
    train_records: int  # of each file
    test_records: int
    labels: tuple[int, ...]  # for each label byte how many classes there are; the last is the one that counts


CIFAR10 = Records(
    "cifar-10-batches-bin", tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", 10_000, 10_000, (10,)
)
CIFAR100 = Records("cifar-100-binary", ("train.bin",), "test.bin", 50_000, 10_000, (20, 100))


class Guarded:
    """A stream that a tar reader may go through: never far at once, and never beyond a limit.

    A tar header may claim any size for itself; what it claims is read in one piece.
    """

    def __init__(self, file: Any, limit: int):
        self.file = file
        self.limit = limit
        self.tell = file.tell

    def check(self, position: int) -> None:
        """Errors: DataError beyond the limit."""
        if position > self.limit:
            raise DataError(f"it goes on after {self.limit:,} bytes, more than this archive has")

    def read(self, size: int = -1) -> bytes:
        """As of a file. Errors: DataError for more than a megabyte at once."""
        if not 0 <= size <= CHUNK:
            raise DataError(f"a header in it says that it has {size:,} bytes")
        self.check(self.tell() + size)
        return self.file.read(size)

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """As of a file, from its beginning. Errors: DataError beyond the limit."""
        self.check(position)
        return self.file.seek(position, whence)


def read_archive(path: str | os.PathLike, wanted: Mapping[str, np.ndarray]) -> None:
    """Fill arrays with the members of a tar archive, packed with gzip or not.

    Args: wanted, for each member's full name an array (n,) uint8 of its exact size.
    Errors: DataError for an archive that lacks one of them, has it twice, as a link or of another size; is damaged.
    """
    room = sum(len(array) for array in wanted.values()) + (1 << 20)  # headers, padding, a readme
    found = set()
    with opened(path) as (file, _):
        guarded = Guarded(file, room)
        try:
            archive = tarfile.open(fileobj=guarded, mode="r:")  # noqa: SIM115 (the stream is closed by opened)
            for number, member in enumerate(archive):
                if number == MEMBERS:
                    raise DataError(f"it has more than {MEMBERS} members")
                if member.name not in wanted:
                    continue
                array = wanted[member.name]
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.name in found:
                    raise DataError(f"{member.name} is in it twice, or is no plain file")
                if member.size != len(array):
                    raise DataError(f"{member.name}: expected {len(array):,} bytes, it has {member.size:,}")
                fill(archive.extractfile(member), array)
                found.add(member.name)
        except (ValueError, OverflowError) as error:  # numbers and names in a header that are none
            raise error if isinstance(error, DataError) else DataError(f"it is damaged: {error}") from error
        if missing := sorted(set(wanted) - found):
            raise DataError(f"{', '.join(missing)} is not in it")
        while rest := guarded.read(512):  # to the end: gzip compares its checksum there
            if any(rest):
                raise DataError("it goes on after its last member")


def read_folder(path: str | os.PathLike, wanted: Mapping[str, np.ndarray]) -> None:
    """The same from a folder. Errors: DataError for a file of another size; OSError where one is missing."""
    for name, array in wanted.items():
        part = os.path.join(path, name)
        with opened(part) as (file, _):
            size = os.path.getsize(part)
            if size != len(array):
                raise DataError(f"expected {len(array):,} bytes, it has {size:,}")
            fill(file, array)
            check_end(file)


def read_cifar(path: str | os.PathLike, records: Records) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """(images, labels) for training and (images, labels) for the test, from the archive or the unpacked folder.

    Shapes: images (N, 3, 32, 32) uint8, labels (N,) int64.
    Errors: DataError for files of another kind, size or number of classes; OSError where they cannot be opened.
    """
    skip = len(records.labels)
    train = np.empty((len(records.train) * records.train_records, skip + PIXELS), np.uint8)
    test = np.empty((records.test_records, skip + PIXELS), np.uint8)
    parts = np.split(train, len(records.train))
    named = {**dict(zip(records.train, parts, strict=True)), records.test: test}
    if os.path.isdir(path):
        prefix, reader = "", read_folder
    else:
        prefix, reader = records.folder + "/", read_archive
    reader(path, {prefix + name: part.reshape(-1) for name, part in named.items()})
    for name, part in named.items():
        for i, classes in enumerate(records.labels):
            try:
                check_labels(part[:, i], classes)
            except DataError as error:
                raise DataError(f"{os.path.join(path, name)}: {error}") from error
    # The images are a view past the labels: a copy would need the memory twice.
    return tuple((part[:, skip:].reshape(-1, 3, 32, 32), part[:, skip - 1].astype(np.int64)) for part in (train, test))
