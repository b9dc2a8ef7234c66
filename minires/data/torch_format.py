"""PyTorch's files (.pth, .pt, .th) read and written without PyTorch.

Since 1.6 such a file is a zip with a pickle (data.pkl) and one entry of raw numbers a storage; before, it was a run of
pickles followed by the raw numbers. A pickle is a program: it can ask for any function of any library by name. The
unpickler here knows the few names that a tensor needs and refuses every other before it is looked up, so no code from a
file ever runs. What comes out is made of dicts, lists, numbers, text and Tensors.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

from minires.data.binary import CheckpointError
from minires.engine.creation import from_numpy

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file from before 1.6
PROTOCOL = 1001

#: The storage classes of PyTorch, and NumPy's type for their numbers (bfloat16 is widened when it is read).
STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}


#: The pickle operations that PyTorch's files are made of.
OPERATIONS = set(
    "PROTO FRAME STOP MARK POP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE "
    "BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND "
    "APPENDS EMPTY_DICT SETITEM SETITEMS BINPUT LONG_BINPUT BINGET LONG_BINGET MEMOIZE GLOBAL STACK_GLOBAL REDUCE "
    "BUILD BINPERSID".split()
)

#: What pickletools calls the objects that may be keys of a dict.
KEYS = {"str", "bytes_or_str", "int", "int_or_bool", "bool"}


class StorageKind(NamedTuple):
    """A storage class that a pickle named."""

    name: str


class Storage:
    """The numbers behind one or several tensors; they may arrive after the pickle that speaks of them."""

    def __init__(self, kind: str, numel: int):
        self.kind = kind
        self.numel = numel
        self.array: np.ndarray | None = None

    def fill(self, raw: bytes) -> None:
        """Errors: CheckpointError where there are fewer or more bytes than numbers were promised."""
        dtype = np.dtype(STORAGES[self.kind])
        if len(raw) != self.numel * dtype.itemsize:
            raise CheckpointError(f"a storage of {self.numel} {dtype} has {len(raw)} bytes: the file is damaged")
        self.array = np.frombuffer(raw, dtype)


class TensorRecord(NamedTuple):
    """A tensor as a pickle describes it: a view of a storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def to_array(self) -> np.ndarray:
        """A copy of the view as an array.

        Errors: CheckpointError where the view reaches outside its storage, or repeats numbers.
        """
        array = self.storage.array
        if array is None:
            raise CheckpointError("a tensor's numbers are not in the file")
        count = math.prod(self.size)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        if count > array.size or (count > 0 and last >= array.size):
            raise CheckpointError(f"a tensor of size {self.size} reaches outside its storage of {array.size} numbers")
        if count == 0:
            view = np.zeros(self.size, array.dtype)
        else:
            steps = tuple(s * array.itemsize for s in self.stride)
            view = np.lib.stride_tricks.as_strided(array[self.offset :], self.size, steps, writeable=False)
        if self.storage.kind == "BFloat16Storage":  # the upper half of a float32
            return np.asarray(view.astype(np.uint32) << 16).view(np.float32)
        return np.array(view, order="C")


class RebuildTensor:
    """What stands in for torch._utils._rebuild_tensor_v2. Without attributes, so that no file can change it."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *unused: Any) -> TensorRecord:
        if not isinstance(storage, Storage) or type(size) is not tuple or type(stride) is not tuple:
            raise CheckpointError("a tensor's description is not what PyTorch writes")
        whole = (offset, *size, *stride)
        if len(size) != len(stride) or len(size) > 64 or not all(type(n) is int and 0 <= n < 2**63 for n in whole):
            raise CheckpointError("a tensor's size, stride or offset is no size of an array")
        return TensorRecord(storage, offset, size, stride)


class RebuildParameter:
    """What stands in for torch._utils._rebuild_parameter. Without attributes, so that no file can change it."""

    __slots__ = ()

    def __call__(self, data: Any, *unused: Any) -> Any:
        return data


ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): RebuildTensor(),  # before 0.4
    ("torch._utils", "_rebuild_tensor_v2"): RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): RebuildParameter(),
}
for _name in STORAGES:
    ALLOWED["torch", _name] = StorageKind(_name)


class TensorUnpickler(pickle.Unpickler):
    """An unpickler that knows the names a tensor needs and no other."""

    def __init__(self, file: Any, storages: dict[str, Storage]):
        super().__init__(file, encoding="latin1")
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        """Errors: CheckpointError for a name that no tensor needs."""
        return allowed(module, name)

    def persistent_load(self, pid: Any) -> Storage:
        """A storage by its key: ("storage", class, key, device, numel), before 1.6 with a sixth entry."""
        if type(pid) is not tuple or len(pid) < 5 or type(pid[0]) is not str or pid[0] != "storage":
            raise CheckpointError("the file refers to something else than a storage")
        if not isinstance(pid[1], StorageKind) or type(pid[2]) not in (str, int):
            raise CheckpointError("the description of a storage is not what PyTorch writes")
        kind, key, numel = pid[1].name, str(pid[2]), pid[4]
        if len(pid) > 5 and pid[5] is not None:
            raise CheckpointError("the file has storages that are views of others, as only very old PyTorch wrote")
        if type(numel) is not int or not 0 <= numel < 2**63:
            raise CheckpointError("the size of a storage is no size of an array")
        storage = self.storages.setdefault(key, Storage(kind, numel))
        if storage.kind != kind or storage.numel != numel:
            raise CheckpointError(f"storage {key} is described twice, in two ways: the file is damaged")
        return storage


def inspect(file: io.BytesIO) -> None:
    """Read over the next pickle without running it, and go back to its start.

    Follows the kinds of objects on the pickle's stack, for the keys of dicts: a key of nested tuples would be hashed
    without end, or until the interpreter falls.
    Errors: CheckpointError for an operation or a name that no tensor needs, for a dict key that is neither text nor a
        number, and for a memo that is larger than the file.
    """
    start, size = file.tell(), len(file.getbuffer())
    stack: list[str] = []
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name not in OPERATIONS:
            raise CheckpointError(f"refused: the file uses the pickle operation {opcode.name}, which no tensor needs")
        if opcode.name == "GLOBAL":
            allowed(*argument.split(" ", 1))
        before = [kind.name for kind in opcode.stack_before]
        if "mark" in before:  # everything down to the last mark, and what the operation takes from below it
            mark = len(stack) - 1 - stack[::-1].index("mark")
            items, taken = stack[mark + 1 :], mark - before.index("mark")
        else:
            taken = len(stack) - len(before)
            items = stack[taken:]
        if taken < 0:
            raise CheckpointError("the pickle takes more from its stack than is there: the file is damaged")
        keys = {"SETITEM": items[1:2], "SETITEMS": items[0::2]}.get(opcode.name, [])
        if not KEYS.issuperset(keys):
            raise CheckpointError("the file holds a dict whose keys are neither text nor whole numbers")
        if opcode.name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            place = len(memo) if opcode.name == "MEMOIZE" else argument
            if place > size:
                raise CheckpointError(f"the pickle numbers its objects up to {place} in {size} bytes")
            memo[place] = stack[-1]
            continue
        del stack[taken:]
        if opcode.name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            stack += [kind.name for kind in opcode.stack_after]
    file.seek(start)


def allowed(module: str, name: str) -> Any:
    """What stands in for a name of a pickle. Errors: CheckpointError for a name that no tensor needs."""
    try:
        return ALLOWED[module, name]
    except KeyError:
        raise CheckpointError(
            f"refused: the file asks for {module}.{name}, which no tensor needs, and may run code"
        ) from None


def unpickle(file: io.BytesIO, storages: dict[str, Storage] | None = None) -> Any:
    """The next object of a pickle.

    Errors: CheckpointError for whatever goes wrong.
    """
    try:
        inspect(file)
        return TensorUnpickler(file, {} if storages is None else storages).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError(f"damaged, or not a file of PyTorch: {type(error).__name__}: {error}") from error


class Resolver:
    """Turns what was unpickled into plain data and Tensors; lists that are shared stay shared.

    Args: room, how many bytes all arrays together may take; a file of many views of one storage must not fill memory.
    """

    def __init__(self, room: int):
        self.room = room
        self.done: dict[int, Any] = {}  # results by the identity of what they came from

    def resolve(self, value: Any) -> Any:
        """Errors: CheckpointError for something else than data, or more than there is room for."""
        if value is None or type(value) in (bool, int, float, str, bytes):
            return value
        if isinstance(value, TensorRecord):
            array = value.to_array()
            self.room -= array.nbytes
            if self.room < 0:
                raise CheckpointError("its tensors are many times as large as the file: views of the same numbers")
            return from_numpy(array)
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


def read(content: bytes) -> Any:
    """What a PyTorch file holds.

    Errors: CheckpointError for a damaged or foreign file, and for a pickle that asks for more than a tensor needs.
    """
    try:
        held = read_zip(content) if content[:4] == b"PK\x03\x04" else read_legacy(content)
        return Resolver(room=8 * len(content) + 2**20).resolve(held)
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
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > len(content):
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
