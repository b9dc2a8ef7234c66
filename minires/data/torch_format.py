"""PyTorch's files (.pth, .pt, .th) read and written without PyTorch.

Since 1.6 such a file is a zip with a pickle (data.pkl) and one entry of raw numbers a storage; before, it was a run of
pickles followed by the raw numbers. A pickle is a program: pickle_reader.py runs it on a machine that can make tensors
and plain data only, so no code from a file ever runs. What comes out is dicts, lists, numbers, text and Tensors.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import Any

import numpy as np

from minires.data.binary import CheckpointError, zip_entries
from minires.data.pickle_reader import STORAGES, Storage, TensorRecord, unpickle
from minires.engine.creation import from_numpy

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file from before 1.6
PROTOCOL = 1001
OBJECT = 256  # bytes of a Tensor beside its numbers


class Resolver:
    """Turns what was unpickled into plain data and Tensors; lists that are shared stay shared.

    Args: room, how many bytes all arrays together may take; a file of many views of one storage must not fill memory.
    """

    def __init__(self, room: int):
        self.room = self.left = room
        self.done: dict[int, Any] = {}  # results by the identity of what they came from

    def resolve(self, value: Any) -> Any:
        """Errors: CheckpointError for something else than data, or more than there is room for."""
        if value is None or type(value) in (bool, int, float, str, bytes):
            return value
        if isinstance(value, TensorRecord):
            self.left -= value.nbytes + OBJECT
            if self.left < 0:
                raise CheckpointError(
                    f"its tensors take more than {self.room:,} bytes and are many times as large as the file: views of "
                    "the same numbers; if you trust the file, minires.load(path, limit=BYTES) allows more"
                )
            return from_numpy(value.to_array())
        if id(value) in self.done:
            return self.done[id(value)]
        if type(value) in (dict, OrderedDict):
            result: Any = {}
            for name, item in dict.items(value):
                result[name] = self.resolve(item)
        elif type(value) in (list, tuple):
            result = type(value)([self.resolve(item) for item in value])
        else:
            raise CheckpointError(f"the file holds a {type(value).__name__}, expected tensors, numbers and text")
        self.done[id(value)] = result
        return result


def read(content: bytes, limit: int | None = None) -> Any:
    """What a PyTorch file holds.

    Args: limit, how many bytes its arrays may take; None for 8 times the file's and 1 MiB more.
    Errors: CheckpointError for a damaged or foreign file, for a pickle that asks for more than a tensor needs, and for
        arrays that take more than the limit.
    """
    try:
        held = read_zip(content) if content[:4] == b"PK\x03\x04" else read_legacy(content)
        return Resolver(room=8 * len(content) + 2**20 if limit is None else limit).resolve(held)
    except CheckpointError:
        raise
    except RecursionError as error:
        raise CheckpointError("the file's contents are nested too deep") from error
    except Exception as error:  # a damaged file may lead anywhere
        raise CheckpointError(f"damaged, or not a file of PyTorch: {type(error).__name__}") from error


def read_zip(content: bytes) -> Any:
    """The format since PyTorch 1.6."""
    storages: dict[str, Storage] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            if "data.pkl" not in names:
                raise CheckpointError("a zip without data.pkl: not a file of weights that PyTorch wrote")
            if "constants.pkl" in names or any(name.startswith("code/") for name in names):
                raise CheckpointError(
                    "a TorchScript archive, which is a program with its weights: expected weights alone; in PyTorch, "
                    'torch.save(torch.jit.load(path).state_dict(), "weights.pth") writes them'
                )
            for entry in zip_entries(archive):
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError("a compressed zip: PyTorch stores its numbers as they are")
            if "byteorder" in names and archive.read(names["byteorder"]) != b"little":
                raise CheckpointError("the numbers are big-endian, which is not read")
            result = unpickle(io.BytesIO(archive.read(names["data.pkl"])), storages)
            for key, storage in storages.items():
                if f"data/{key}" not in names:
                    raise CheckpointError(f"the numbers of storage {key} are not in the file")
                storage.fill(archive.read(names[f"data/{key}"]))
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"damaged zip: {error}") from error
    return result


def read_legacy(content: bytes) -> Any:
    """The format before 1.6: magic number, version, system, object, keys; then each storage's count and bytes."""
    file = io.BytesIO(content)
    magic = unpickle(file)
    if type(magic) is not int or magic != MAGIC:
        raise CheckpointError("not a file of PyTorch: its first pickle is not the magic number")
    version, system = unpickle(file), unpickle(file)
    if type(version) is not int or version != PROTOCOL or type(system) is not dict:
        raise CheckpointError(f"not a PyTorch file of version {PROTOCOL}")
    if not system.get("little_endian", True):
        raise CheckpointError("the numbers are big-endian, which is not read")
    storages: dict[str, Storage] = {}
    result = unpickle(file, storages)
    keys = unpickle(file)
    if type(keys) is not list or not all(type(key) in (str, int) for key in keys):
        raise CheckpointError("the list of storages is not what PyTorch writes")
    if {str(key) for key in keys} != set(storages):
        raise CheckpointError("the list of storages does not match the tensors: the file is damaged")
    for key in keys:
        storage = storages[str(key)]
        count = file.read(8)
        if len(count) != 8 or struct.unpack("<q", count)[0] != storage.numel:
            raise CheckpointError("a storage's count does not match its tensors: the file is damaged")
        size = storage.numel * np.dtype(STORAGES[storage.kind]).itemsize
        if size > len(content) - file.tell():
            raise CheckpointError(f"a storage of {storage.numel} numbers is larger than the rest of the file")
        storage.fill(file.read(size))
    if file.read(1):
        raise CheckpointError("there are bytes after the last storage: the file is damaged")
    return result


# ---- Writing ----------------------------------------------------------------------------------------------------


def write(arrays: dict[str, np.ndarray]) -> bytes:
    """A state_dict in the zip format, for ``torch.load(path, weights_only=True)``.

    Errors: TypeError for a dtype that PyTorch has not.
    """
    pickled = [b"\x80\x02ccollections\nOrderedDict\n)R("]  # protocol 2; OrderedDict(); mark for its items
    raw = []
    for name, array in arrays.items():
        kind = next((k for k, d in STORAGES.items() if np.dtype(d) == array.dtype and k != "BFloat16Storage"), None)
        if kind is None:
            raise TypeError(f"{name}: PyTorch's files have no {array.dtype}")
        strides = [math.prod(array.shape[i + 1 :]) for i in range(array.ndim)]
        pickled += [
            text(name),
            b"ctorch._utils\n_rebuild_tensor_v2\n((",  # the function; marks: its arguments, the storage's description
            text("storage") + f"ctorch\n{kind}\n".encode() + text(str(len(raw))) + text("cpu") + integer(array.size),
            b"tQ" + integer(0),  # the description's end: a persistent id; the offset
            b"(" + b"".join(integer(n) for n in array.shape) + b"t",
            b"(" + b"".join(integer(n) for n in strides) + b"t",
            b"\x89ccollections\nOrderedDict\n)RtR",  # requires_grad False; hooks: OrderedDict(); end, call
        ]
        raw.append(np.ascontiguousarray(array).tobytes())
    pickled.append(b"u.")  # set the items; stop
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", b"".join(pickled))
        archive.writestr("archive/byteorder", b"little")
        for i, numbers in enumerate(raw):
            archive.writestr(f"archive/data/{i}", numbers)
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def text(value: str) -> bytes:
    """A string as a pickle writes it (BINUNICODE)."""
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    """A number as a pickle writes it (LONG1)."""
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded
