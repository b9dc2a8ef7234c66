"""The pickles of PyTorch's files, read by a machine of our own that can make tensors and plain data and nothing else.

A pickle is a program for a machine with a stack: an operation pushes a value, or takes some and pushes what it makes of
them. Python's own machine calls any function of any library that the program names. This one has the few operations and
names that a tensor needs, refuses every other, and takes time and memory in proportion to the file.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

from minires.data.binary import CheckpointError

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

#: Operations that push their argument.
CONSTANTS = set(
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINSTRING SHORT_BINSTRING BINBYTES "
    "SHORT_BINBYTES".split()
)

#: Whole numbers as keys of dicts, beyond those that count 0, 1, 2 ... as they come: numbers can be chosen so that a
#: dict takes a time that grows with the square of how many there are.
NUMBERED_KEYS = 20_000

COMPLEX = "the file holds complex numbers, which no network here takes: in PyTorch, save torch.view_as_real(tensor)"

NOTHING = object()  # where nothing was put aside yet


# ---- What a pickle speaks of -------------------------------------------------------------------------------------


class StorageKind(NamedTuple):
    """A storage class that a pickle named."""

    name: str


class Function(NamedTuple):
    """A function that a pickle named: what stands in for it is in PickleReader.call."""

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
    negated: bool = False

    @property
    def nbytes(self) -> int:
        """How many bytes its array takes."""
        kind = self.storage.kind
        return math.prod(self.size) * (4 if kind == "BFloat16Storage" else np.dtype(STORAGES[kind]).itemsize)

    def to_array(self) -> np.ndarray:
        """A copy of the view as an array.

        Errors: CheckpointError where the view reaches outside its storage.
        """
        array = self.storage.array
        if array is None:
            raise CheckpointError("a tensor's numbers are not in the file")
        count = math.prod(self.size)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        if count > 0 and last >= array.size:
            raise CheckpointError(f"a tensor of size {self.size} reaches outside its storage of {array.size} numbers")
        if count == 0:
            view = np.zeros(self.size, array.dtype)
        else:
            steps = tuple(s * array.itemsize for s in self.stride)
            view = np.lib.stride_tricks.as_strided(array[self.offset :], self.size, steps, writeable=False)
        if self.storage.kind == "BFloat16Storage":  # the upper half of a float32
            values = np.asarray(view.astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.array(view, order="C")
        if self.negated:
            np.negative(values, out=values)
        return values


def rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> TensorRecord:
    """In place of torch._utils._rebuild_tensor_v2.

    Args: rest, requires_grad and hooks, which are not used, and in newer files a dict of what is still to be done to
        the numbers: "neg", turn their signs; "conj", those of their imaginary parts.
    Errors: CheckpointError for a description of no tensor, or of a complex one.
    """
    if not isinstance(storage, Storage) or type(size) is not tuple or type(stride) is not tuple:
        raise CheckpointError("a tensor's description is not what PyTorch writes")
    whole = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > 64 or not all(type(n) is int and 0 <= n < 2**63 for n in whole):
        raise CheckpointError("a tensor's size, stride or offset is no size of an array")
    flags = rest[2] if len(rest) > 2 and rest[2] is not None else {}
    if type(flags) not in (dict, OrderedDict):
        raise CheckpointError("a tensor's description is not what PyTorch writes")
    if flags.get("conj"):
        raise CheckpointError(COMPLEX)
    return TensorRecord(storage, offset, size, stride, bool(flags.get("neg")) and storage.kind != "BoolStorage")


ALLOWED: dict[tuple[str, str], StorageKind | Function] = {
    ("collections", "OrderedDict"): Function("OrderedDict"),
    ("torch._utils", "_rebuild_tensor"): Function("_rebuild_tensor"),  # before 0.4
    ("torch._utils", "_rebuild_tensor_v2"): Function("_rebuild_tensor"),
    ("torch._utils", "_rebuild_parameter"): Function("_rebuild_parameter"),
}
for _name in STORAGES:
    ALLOWED["torch", _name] = StorageKind(_name)


def allowed(module: Any, name: Any) -> StorageKind | Function:
    """What stands in for a name of a pickle. Errors: CheckpointError for a name that no tensor needs."""
    if type(module) is not str or type(name) is not str:
        raise CheckpointError("the file asks for a name that is no text: it is damaged")
    if module == "torch" and name in ("ComplexFloatStorage", "ComplexDoubleStorage"):
        raise CheckpointError(COMPLEX)
    try:
        return ALLOWED[module, name]
    except KeyError:
        raise CheckpointError(
            f"refused: the file asks for {module}.{name}, which no tensor needs, and may run code"
        ) from None


# ---- The machine -------------------------------------------------------------------------------------------------


def unpickle(file: io.BytesIO, storages: dict[str, Storage] | None = None) -> Any:
    """The next object of a pickle; its storages are noted by their keys.

    Errors: CheckpointError for whatever goes wrong.
    """
    reader = PickleReader({} if storages is None else storages, len(file.getbuffer()))
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return reader.pop()
            reader.step(opcode.name, argument)
        raise CheckpointError("the pickle has no end: the file is damaged")
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError(f"damaged, or not a file of PyTorch: {type(error).__name__}: {error}") from error


class PickleReader:
    """The machine: its stack, where the marks on it are, and what was put aside to be used again.

    Args: storages, filled as the pickle speaks of them; size, of the file in bytes.
    """

    def __init__(self, storages: dict[str, Storage], size: int):
        self.storages = storages
        self.size = size
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []
        self.numbered = 0  # keys that are whole numbers and do not count on

    def pop(self) -> Any:
        """Take the value on top. Errors: CheckpointError where there is none above the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise CheckpointError("the pickle takes more from its stack than is there: the file is damaged")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """Take everything above the last mark, and the mark. Errors: CheckpointError where there is no mark."""
        if not self.marks:
            raise CheckpointError("the pickle takes more from its stack than is there: the file is damaged")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def step(self, name: str, argument: Any) -> None:
        """One operation. Errors: CheckpointError for one that no tensor needs, or that cannot be."""
        push = self.stack.append
        if name in CONSTANTS:
            push(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.put(len(self.memo) if name == "MEMOIZE" else argument)
        elif name in ("BINGET", "LONG_BINGET"):
            if argument >= len(self.memo) or self.memo[argument] is NOTHING:
                raise CheckpointError(f"the pickle goes back to object {argument}, which it has not yet made")
            push(self.memo[argument])
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name == "TUPLE":
            push(tuple(self.pop_to_mark()))
        elif name in ("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            count = 0 if name == "EMPTY_TUPLE" else int(name[-1])
            items = [self.pop() for _ in range(count)]
            push(tuple(items[::-1]))
        elif name == "GLOBAL":
            push(allowed(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            called, module = self.pop(), self.pop()
            push(allowed(module, called))
        elif name == "BINPERSID":
            push(self.storage(self.pop()))
        elif name == "REDUCE":
            arguments, function = self.pop(), self.pop()
            push(self.call(function, arguments))
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            push({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name == "EMPTY_LIST":
            push([])
        elif name == "EMPTY_DICT":
            push({})
        elif name in ("APPEND", "APPENDS"):
            self.extend([self.pop()] if name == "APPEND" else self.pop_to_mark())
        elif name in ("SETITEM", "SETITEMS"):
            items = [self.pop(), self.pop()][::-1] if name == "SETITEM" else self.pop_to_mark()
            self.set_items(self.top(), list(zip(items[0::2], items[1::2], strict=True)))
        elif name == "BUILD":
            self.pop()  # attributes, such as a state_dict's _metadata: nothing that is read
            if type(self.top()) is not OrderedDict:
                raise CheckpointError("the pickle gives attributes to what has none: not what PyTorch writes")
        elif name == "POP":
            if self.marks and self.marks[-1] == len(self.stack):
                self.marks.pop()
            else:
                self.pop()
        elif name not in ("PROTO", "FRAME"):
            raise CheckpointError(f"refused: the file uses the pickle operation {name}, which no tensor needs")

    def top(self) -> Any:
        """The value on top, which stays. Errors: CheckpointError where there is none above the last mark."""
        value = self.pop()
        self.stack.append(value)
        return value

    def put(self, place: int) -> None:
        """Put the value on top aside, under a number. Errors: CheckpointError for one that is larger than the file."""
        if place > self.size:
            raise CheckpointError(f"the pickle numbers its objects up to {place} in {self.size} bytes")
        while place >= len(self.memo):
            self.memo.append(NOTHING)
        self.memo[place] = self.top()

    def extend(self, items: list[Any]) -> None:
        """Append to the list on top. Errors: CheckpointError where there is none."""
        held = self.top()
        if type(held) is not list:
            raise CheckpointError("the pickle appends to what is no list: the file is damaged")
        held.extend(items)

    def set_items(self, held: Any, pairs: list[tuple[Any, Any]]) -> None:
        """Put items into a dict. A key of nested tuples would be hashed without end, or until the interpreter falls.

        Errors: CheckpointError for a key that is neither text nor a whole number, or for too many numbers.
        """
        if type(held) not in (dict, OrderedDict):
            raise CheckpointError("the pickle sets items of what is no dict: the file is damaged")
        for key, value in pairs:
            if type(key) is int and key != len(held):
                self.numbered += 1
                if self.numbered > NUMBERED_KEYS or not -(2**63) <= key < 2**64:
                    raise CheckpointError(
                        f"the file holds dicts with more than {NUMBERED_KEYS:,} numbers out of order as keys, or with "
                        "numbers of more than 64 bits: save them as lists, or with text as keys"
                    )
            elif type(key) not in (str, int, bool):
                raise CheckpointError("the file holds a dict whose keys are neither text nor whole numbers")
            held[key] = value

    def call(self, function: Any, arguments: Any) -> Any:
        """What a function returns. Errors: CheckpointError for what is none, or for other arguments than PyTorch's."""
        if not isinstance(function, Function) or type(arguments) is not tuple:
            raise CheckpointError("the pickle calls what is no function: the file is damaged")
        if function.name == "_rebuild_tensor" and len(arguments) >= 4:
            return rebuild_tensor(*arguments)
        if function.name == "_rebuild_parameter" and arguments:
            return arguments[0]
        if function.name == "OrderedDict" and len(arguments) <= 1:
            made: OrderedDict[Any, Any] = OrderedDict()
            pairs = arguments[0] if arguments else []  # Python 2 wrote its items here
            if type(pairs) in (list, tuple) and all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
                self.set_items(made, pairs)
                return made
        raise CheckpointError(f"the arguments of {function.name} are not what PyTorch writes")

    def storage(self, pid: Any) -> Storage:
        """A storage by its description: ("storage", class, key, device, numel), before 1.6 with a sixth entry.

        Errors: CheckpointError for another description.
        """
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
