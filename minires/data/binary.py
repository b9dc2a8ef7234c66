"""Reading files of bytes with care: packed or not, exactly as many bytes as expected, and every fault a DataError.

The two errors of MiniRes's own are here; everything else that it raises is one of Python's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from minires.engine.convert import printable_lines

if TYPE_CHECKING:
    from zipfile import ZipFile, ZipInfo

CHUNK = 1 << 20  # bytes asked for at once: memory grows only with what is really there
DEFLATE = 1032  # times its size: more than this no gzip stream unpacks to


class FileError(ValueError):
    """A file that cannot be read. What its message quotes from the file, or of its name, is made printable."""

    def __init__(self, message: object = ""):
        super().__init__(printable_lines(message))


class CheckpointError(FileError):
    """A file of weights that cannot be read: damaged, of another kind, or asking for what no tensor needs."""


class DataError(FileError):
    """A file of images or labels that cannot be read: damaged, cut short, of another kind or of the wrong size."""


def check_regular(path: str | os.PathLike, expected: str, error: type[ValueError] = DataError) -> os.stat_result:
    """What the system says of a file, which is not opened: a pipe would wait, and a device may have no end.

    Args: expected, what it should be, in words. A folder is left to whoever opens it.
    Errors: ``error`` for a pipe, a socket or a device; OSError where there is no such file.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise error(f"{os.fspath(path)} is not a file: expected {expected}, not a pipe, a socket or a device")
    return found


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[tuple[BinaryIO, int]]:
    """A file for reading, unpacked on the way where it begins as gzip does, and the most bytes that it can hold.

    Errors: DataError that names the file, for whatever is found wrong while it is read; OSError where it cannot be
        opened.
    """
    import gzip  # these three here: whoever imports MiniRes imports this file, for its errors
    import tarfile
    import zlib

    check_regular(path, "a file of images or labels")
    with open(path, "rb") as raw:
        size = os.fstat(raw.fileno()).st_size
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            if packed:
                with gzip.GzipFile(fileobj=raw) as file:
                    yield file, DEFLATE * size
            else:
                yield raw, size
        except DataError as error:
            raise DataError(f"{os.fspath(path)}: {error}") from error
        except EOFError as error:
            raise DataError(f"{os.fspath(path)}: it is cut short") from error
        except (zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
            raise DataError(f"{os.fspath(path)}: it is damaged: {error}") from error


def zip_entries(archive: ZipFile) -> list[ZipInfo]:
    """The entries of a zip, none of which can unpack to more than it says, and no two of which share bytes.

    bzip2 and LZMA give out a whole block before it can be counted, and entries that lie in each other are read again
    and again. Errors: CheckpointError for such entries.
    """
    stored, deflated = 0, 8  # the numbers of a zip's compressions
    end = 0
    entries = archive.infolist()
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.compress_type not in (stored, deflated):
            raise CheckpointError("a zip of another compression than NumPy's: expected entries stored or deflated")
        most = entry.compress_size * (1 if entry.compress_type == stored else DEFLATE)
        if entry.file_size > most:
            raise CheckpointError("the zip's contents are larger than any compression allows: the file is damaged")
        if entry.header_offset < end:
            raise CheckpointError("the zip's entries overlap: the file is damaged, or made to fill memory")
        end = entry.header_offset + 30 + entry.compress_size  # a header has 30 bytes, and a name
    return entries


def read_bytes(file: Any, count: int) -> bytearray:
    """Exactly so many bytes. Errors: DataError where there are fewer."""
    content = bytearray()
    while len(content) < count:
        chunk = file.read(min(CHUNK, count - len(content)))
        if not chunk:
            raise DataError(f"it is cut short: expected {count:,} bytes, got {len(content):,}")
        content += chunk
    return content


def fill(file: Any, array: np.ndarray) -> None:
    """Fill an array of bytes from a file. Shapes: array (n,) uint8. Errors: DataError where there are fewer bytes."""
    done = 0
    while done < len(array):
        count = file.readinto(memoryview(array)[done : done + CHUNK])
        if not count:
            raise DataError(f"it is cut short: expected {len(array):,} bytes, got {done:,}")
        done += count


def check_end(file: Any) -> None:
    """Errors: DataError where a file goes on. (Reading to the end makes gzip compare its checksum.)"""
    if file.read(1):
        raise DataError("it goes on after its last byte")


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Errors: DataError for a label that is no class."""
    wrong = np.flatnonzero(labels >= classes)
    if len(wrong):
        raise DataError(f"labels must lie between 0 and {classes - 1}, got {labels[wrong[0]]} in record {wrong[0]}")
