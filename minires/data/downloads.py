"""Files that others publish: fetched once, checked, and kept in a folder.

A file gets its name only when all of it is there and its checksum is right: a download that breaks off leaves nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

TIMEOUT = 30  # seconds without an answer
ATTEMPTS = 5  # in vain at one address; each goes on where the one before broke off, and those that got on do not count
CHUNK = 1 << 16
MOST = 1 << 32  # bytes: what a server may send of a file whose size is not known
UNPACKED = 1 << 30  # bytes: what a .gz file may grow to while its content is checked

DISPLAY = {"md5": "MD5", "sha256": "SHA-256"}


class Published(NamedTuple):
    """A file, where to get it, and how to know it.

    name: its path in the folder, with / between folders. addresses: in the order in which they are tried.
    checksum: "md5:..." or "sha256:...", or the first hex digits of one. unpacked: the same of what a .gz file holds:
    another program's compression gives another file with the same content. most: bytes, more than it can have.
    """

    name: str
    addresses: tuple[str, ...]
    checksum: str
    unpacked: str = ""
    most: int = MOST


class ServerError(Exception):
    """An address that sends what no file can be: its text says what."""


class DiskError(Exception):
    """What the system said when a file was written, which is no fault of an address."""


class Limited:
    """A file to write to, up to so many bytes. Errors: ServerError for more; DiskError where writing fails."""

    def __init__(self, file: BinaryIO, most: int):
        self.file = file
        self.most = most

    def write(self, chunk: bytes) -> None:
        """Append bytes, to the disk. Errors: as the class."""
        if self.file.tell() + len(chunk) > self.most:
            raise ServerError(f"it sends more than {self.most:,} bytes")
        try:
            self.file.write(chunk)
            self.file.flush()
        except OSError as error:
            raise DiskError(error.strerror or str(error)) from error

    def flush(self) -> None:
        """All is written as it comes."""


def cache_folder() -> str:
    """Where fetched files are kept: the folder named by MINIRES_DATA, or ~/.cache/minires."""
    return os.environ.get("MINIRES_DATA") or os.path.join(os.path.expanduser("~"), ".cache", "minires")


def in_words(checksum: str) -> str:
    """A checksum for people: "MD5 f68b3c2d..."."""
    algorithm, digits = checksum.split(":")
    return f"{DISPLAY[algorithm]} {digits}"


def has_checksum(path: str, checksum: str, opened: Callable[..., Any] = open) -> bool:
    """Whether a file's checksum begins with these digits; ``opened=gzip.open`` checks what is packed in it."""
    algorithm, digits = checksum.split(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    size = 0
    with opened(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
            if opened is gzip.open and size > UNPACKED:
                return False
    return digest.hexdigest().startswith(digits)


def is_the_file(path: str, file: Published) -> bool:
    """Whether a file on disk is the published one, packed as it was or by another program."""
    if has_checksum(path, file.checksum):
        return True
    if not file.unpacked:
        return False
    try:
        return has_checksum(path, file.unpacked, gzip.open)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False


def reason(error: Exception) -> str:
    """Why a download failed, in a few words."""
    import requests

    if isinstance(error, ServerError):
        return str(error)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server says {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout) or "timed out" in str(error).lower():
        return f"no answer in {TIMEOUT} seconds"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return f"{type(error).__name__}: {error}"


def download(address: str, file: BinaryIO, most: int = MOST) -> None:
    """Fill an empty file from an address, with a progress bar; go on where the connection breaks off.

    Errors: requests.RequestException where the address does not answer, or breaks off again and again; ServerError
        for more than ``most`` bytes, or for a length that is no number; DiskError where the file cannot be written.
    """
    import pooch
    import requests

    def look(response: Any, *_: Any, **__: Any) -> None:
        length = response.headers.get("Content-Length", "0")
        if not length.isascii() or not length.isdigit():
            raise ServerError(f"its Content-Length is no number: {length[:40]!r}")
        if len(length) > 15 or int(length) > most:
            raise ServerError(f"it sends more than {most:,} bytes")
        if response.status_code == 200:  # all of the file, though only the rest was asked for
            file.seek(0)
            file.truncate()

    furthest, failures = 0, 0
    while True:
        start = file.seek(0, os.SEEK_END)
        headers = {"Accept-Encoding": "identity"}  # the very bytes of the file
        if start:
            headers["Range"] = f"bytes={start}-"
        downloader = pooch.HTTPDownloader(
            progressbar=True, chunk_size=CHUNK, timeout=TIMEOUT, headers=headers, hooks={"response": look}
        )
        try:
            downloader(address, Limited(file, most), None)
            return
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
            failures = 0 if file.tell() >= furthest + CHUNK else failures + 1
            furthest = max(furthest, file.tell())
            if furthest == 0 or failures == ATTEMPTS:
                raise


def cannot_write(file: Published, path: str, why: str) -> OSError:
    """The error for a place that cannot be written."""
    addresses = "\n".join(f"  from {address}" for address in file.addresses)
    return OSError(
        f"cannot write {os.path.basename(path)}: {why}\n{addresses}\n  to {path}:\n"
        f"make room there, or name another folder with MINIRES_DATA"
    )


def fetch(file: Published, folder: str | None = None) -> str:
    """The path of a published file, fetched into a folder (cache_folder()) where it is not there yet.

    Errors: OSError where no address gives the file, saying which file to put where; where the file that is there is
        damaged; where the folder cannot be made or written.
    """
    import requests

    path = os.path.join(folder or cache_folder(), *file.name.split("/"))
    if os.path.exists(path):
        if is_the_file(path, file):
            return path
        raise OSError(
            f"{path} is damaged (its checksum is not {in_words(file.checksum)}): remove it, and it is fetched anew"
        )
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    except OSError as error:
        raise cannot_write(file, path, f"{error.filename}: {error.strerror}") from error
    part = f"{path}.{os.getpid()}.{threading.get_ident()}.part"
    failures = []
    try:
        for address in file.addresses:
            try:
                with open(part, "w+b") as stream:
                    download(address, stream, file.most)
            except DiskError as error:
                raise cannot_write(file, path, str(error)) from error
            except (requests.RequestException, ServerError) as error:
                failures.append(f"{address} ({reason(error)})")
                continue
            except OSError as error:  # the file was not opened, or not closed: requests' errors are OSErrors too
                raise cannot_write(file, path, error.strerror or str(error)) from error
            if is_the_file(part, file):
                os.replace(part, path)
                return path
            failures.append(f"{address} (what came is another file)")
    finally:
        if os.path.exists(part):
            os.remove(part)
    tried = "\n".join(f"  from {failure}" for failure in failures)  # in lines: addresses and paths are long
    raise OSError(
        f"cannot fetch {os.path.basename(path)}\n{tried}:\n"
        f"get the file with {in_words(file.checksum)} elsewhere and put it at {path}"
    )
