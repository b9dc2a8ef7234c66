"""The array, the ufunc and the counts of the strict stand-in for CuPy: see strict_cupy.py."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

API = json.loads((Path(__file__).parent / "cupy_api.json").read_text())
NUMBERS = (bool, int, float, complex, np.generic)
IMPLICIT = (
    "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
)

#: The module ``cupy``, filled by strict_cupy.py.
module = types.ModuleType("cupy")


@dataclass
class Counts:
    """What a GPU would have been asked for since the last reset()."""

    launches: int = 0
    uploads: int = 0
    downloads: int = 0
    waits: int = 0

    def reset(self) -> None:
        """Back to zero."""
        self.launches = self.uploads = self.downloads = self.waits = 0


counts = Counts()


@dataclass
class Fusing:
    """Whether a function of cupy.fuse runs: what is not elementwise is refused there."""

    active: bool = False

    def refuse(self, kind: type[Exception], what: str) -> None:
        """Errors: ``kind``, for what CuPy cannot fuse."""
        if self.active:
            raise kind(f"{what} is not supported in cupy.fuse")


fusing = Fusing()


class Flags:
    """Where an array lies; CuPy knows no read-only arrays, and so no flag for it."""

    def __init__(self, host: np.ndarray):
        self.c_contiguous = host.flags.c_contiguous
        self.f_contiguous = host.flags.f_contiguous
        self.owndata = host.base is None

    def __getitem__(self, name: str) -> bool:
        if name not in ("C_CONTIGUOUS", "F_CONTIGUOUS", "OWNDATA"):
            raise KeyError(f"{name} is not defined for cupy.ndarray.flags")
        return getattr(self, name.lower())


class ndarray:
    """Device memory: a NumPy array that nothing outside this file may touch."""

    __slots__ = ("_host", "base", "__weakref__")
    __array_priority__ = 100
    __hash__ = None

    def __init__(self, shape: Any, dtype: Any = float, order: str = "C"):
        self._host = poisoned(np.empty(shape, device_dtype(dtype), order))
        self.base = None

    # ---- What it is ----------------------------------------------------------------------------------------------

    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: Flags(self._host))
    mT = property(lambda self: device(self._host.mT, self))
    real = property(lambda self: device(self._host.real, self))
    imag = property(lambda self: device(self._host.imag, self))

    @property
    def size(self) -> int:
        fusing.refuse(AttributeError, "size")
        return self._host.size

    @property
    def T(self) -> ndarray:
        fusing.refuse(AttributeError, "T")
        return device(self._host.T, self)

    @property
    def shape(self) -> tuple[int, ...]:
        fusing.refuse(NotImplementedError, "shape")
        return self._host.shape

    @shape.setter
    def shape(self, shape: Any) -> None:
        self._host = self._host.reshape(shape, copy=False)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self._host.__array_interface__, "version": 3}

    # ---- To the host: all of these wait --------------------------------------------------------------------------

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        """A copy on the host."""
        counts.downloads += 1
        counts.launches += not self._host.flags.c_contiguous  # it is made dense first
        if out is None:
            return np.array(self._host, order=order)
        out[...] = self._host
        return out

    def waited(self) -> np.ndarray:
        """The values, for which the host has waited."""
        fusing.refuse(TypeError, "a Python number from an array")
        counts.waits += 1
        return self._host

    def item(self) -> Any:
        return self.waited().item()

    def tolist(self) -> Any:
        return self.waited().tolist()

    def tobytes(self, order: str = "C") -> bytes:
        return self.waited().tobytes(order)

    def __float__(self) -> float:
        return float(self.waited())

    def __int__(self) -> int:
        return int(self.waited())

    def __bool__(self) -> bool:
        if self.size > 1:
            raise ValueError(
                "The truth value of an array with more than one element is ambiguous. Use a.any() or a.all()"
            )
        return bool(self.waited())

    def __repr__(self) -> str:
        return repr(self.waited())

    def __str__(self) -> str:
        return str(self.waited())

    def __format__(self, style: str) -> str:
        return format(self.waited()[()], style)

    def __copy__(self) -> ndarray:
        return self.copy()

    def __deepcopy__(self, memo: dict) -> ndarray:
        return self.copy()

    def __reduce__(self) -> tuple:
        return restored, (self.get(),)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError(IMPLICIT)

    # ---- Parts ---------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[ndarray]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return iter([self[i] for i in range(len(self))])

    def __getitem__(self, index: Any) -> ndarray:
        index = Index(index, self._host.shape)
        if not index.launches:
            return device(self._host[index.parts], self)
        counts.launches += index.launches
        counts.waits += index.mask
        return device(np.array(self._host[index.parts], order="C"))

    def __setitem__(self, index: Any, value: Any) -> None:
        index = Index(index, self._host.shape)
        if isinstance(value, ndarray):
            value = value._host
            if not index.launches and same_memory(self._host[index.parts], value):
                return  # the second half of a[1:] += b
        elif not isinstance(value, NUMBERS) and getattr(value, "shape", None) != ():  # host data
            if not index.launches:
                raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
            counts.uploads += 1
        elif index.launches:  # a number becomes an array first
            counts.launches += 1
        counts.launches += max(index.launches, 1)
        counts.waits += index.mask
        with np.errstate(all="ignore"):
            self._host[index.parts] = value

    def fill(self, value: Any) -> None:
        """Every entry to one number; a number that lies on the device is waited for."""
        self[...] = value.item() if isinstance(value, ndarray) else value

    def __neg__(self) -> ndarray:
        return module.negative(self)

    def __pos__(self) -> ndarray:
        return module.positive(self)

    def __invert__(self) -> ndarray:
        return module.invert(self)

    def __abs__(self) -> ndarray:
        fusing.refuse(TypeError, "abs()")
        return module.absolute(self)

    # ---- NumPy's functions, called on it -------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        ours = module.__dict__.get(ufunc.__name__)
        if ours is None or any(not isinstance(x, (ndarray, np.ndarray, *NUMBERS)) for x in inputs[:2]):
            return NotImplemented
        if "out" in options:
            (options["out"],) = options["out"]
        return (ours if method == "__call__" else getattr(ours, method))(*inputs, **options)

    def __array_function__(self, func: Callable, kinds: Any, args: Any, options: Any) -> Any:
        place: Any = module
        for name in [*func.__module__.split(".")[1:], func.__name__]:
            place = getattr(place, name, None)
        if place is None or not set(kinds) <= {ndarray, np.ndarray}:
            return NotImplemented
        return place(*args, **options)


# ---- From host to device and back ---------------------------------------------------------------------------------


def device(host: Any, source: ndarray | None = None) -> ndarray:
    """Memory that is on the device as one of its arrays; a view of ``source`` where that is given."""
    array = ndarray.__new__(ndarray)
    array._host = host if isinstance(host, np.ndarray) else np.asarray(host)
    if not array._host.flags.writeable:
        array._host.flags.writeable = True  # as of broadcast_to and sliding_window_view
    array.base = None if source is None else source if source.base is None else source.base
    return array


def restored(host: np.ndarray) -> ndarray:
    """An array out of a pickle or a deep copy."""
    return module.asarray(host)


def device_dtype(dtype: Any) -> np.dtype:
    """A dtype that a GPU knows."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


def poisoned(host: np.ndarray) -> np.ndarray:
    """Fresh memory filled with what nobody takes for a result: NaN, or bytes 0xAB."""
    if host.dtype.kind in "fc":
        host.fill(np.nan)
    elif host.dtype.kind == "b":
        host.fill(True)
    else:
        host.fill(int.from_bytes(b"\xab" * host.itemsize, sys.byteorder, signed=host.dtype.kind == "i"))
    return host


def unwrap(value: Any) -> Any:
    """Device arrays, also in lists and tuples, as their memory. A host array is refused, as CuPy refuses it."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {np.ndarray}")
    if isinstance(value, (list, tuple)):
        return type(value)([unwrap(part) for part in value])
    return value


def arrays_in(values: Any) -> list[ndarray]:
    """The device arrays in arguments, also in lists of them."""
    found = []
    for value in values:
        if isinstance(value, ndarray):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(arrays_in(value))
    return found


class Index:
    """An index for NumPy. Integer arrays wrap around, as CuPy's do.

    parts: what NumPy is given. mask: whether a boolean array is among them, for which the host waits.
    launches: 0 for a view, 1 for an array; several arrays are first made one, and a mask is counted through.
    """

    def __init__(self, index: Any, shape: tuple[int, ...]):
        parts = [host_part(part) for part in (index if isinstance(index, tuple) else (index,))]
        taken = [part.ndim if is_mask(part) else 0 if part is None or part is Ellipsis else 1 for part in parts]
        self.mask = any(map(is_mask, parts))
        arrays = axis = 0
        for i, part in enumerate(parts):
            if isinstance(part, np.ndarray):
                arrays += 1
                if not is_mask(part) and part.dtype.kind in "iu" and axis < len(shape) and shape[axis] > 0:
                    parts[i] = part % shape[axis]
            axis += len(shape) - sum(taken) if part is Ellipsis else taken[i]
        self.parts = tuple(parts)
        self.launches = arrays + 2 if arrays > 1 else arrays + self.mask


def host_part(part: Any) -> Any:
    """One part of an index for NumPy: device arrays as their memory, host arrays and lists uploaded."""
    if isinstance(part, ndarray):
        return part._host
    if isinstance(part, (list, np.ndarray, bool, np.bool_)):
        counts.uploads += 1
        return np.asarray(part, dtype=int if isinstance(part, list) and not part else None)
    return part


def same_memory(a: Any, b: np.ndarray) -> bool:
    """Whether two arrays are one view of the same memory."""
    places = [(x.__array_interface__["data"], x.shape, x.strides, x.dtype) for x in (a, b) if isinstance(x, np.ndarray)]
    return places[0] == places[-1] and len(places) == 2


def is_mask(part: Any) -> bool:
    """Whether part of an index is a boolean array."""
    return isinstance(part, np.ndarray) and part.dtype == bool


def finish(result: Any, sources: list[ndarray], launches: int = 1, order: str = "C") -> Any:
    """NumPy's result as CuPy's: an array on the device, never a scalar; counted unless it is a view.

    New memory is in C order whatever the order of the operands: NumPy would keep theirs.
    """
    if isinstance(result, (list, tuple)):
        counted = [finish(part, sources, launches if i == 0 else 0, order) for i, part in enumerate(result)]
        return type(result)(counted) if type(result) in (list, tuple) else tuple(counted)
    if not isinstance(result, (np.ndarray, np.generic, bool)):
        counts.launches += launches
        return result
    for source in sources:
        if result is source._host:
            return source
        if isinstance(result, np.ndarray) and result.size and np.may_share_memory(result, source._host):
            return device(result, source)
    counts.launches += launches
    return device(np.asarray(result, order=order))


# ---- Ufuncs --------------------------------------------------------------------------------------------------------


class ufunc:
    """A function of each element, as CuPy has it: out, dtype and casting, and few of the methods."""

    def __init__(self, name: str):
        self.name = f"cupy_{name}"
        self.__name__ = name
        self.table = API["ufuncs"][name]
        self.nin, self.nout = self.table["nin"], self.table["nout"]
        self.numpy = getattr(np, name)

    def __call__(self, *args: Any, out: Any = None, **options: Any) -> Any:
        wrong = {name: value for name, value in options.items() if name not in ("dtype", "casting")}
        if wrong:
            raise TypeError(f"Wrong arguments {wrong}")
        if len(args) > self.nin and out is None and self.nout == 1:
            args, out = args[: self.nin], args[self.nin]
        for value in (*args, *([] if out is None else [out])):
            if not isinstance(value, (ndarray, *NUMBERS)) or (value is out and not isinstance(value, ndarray)):
                raise TypeError(f"Unsupported type {type(value)}")
        given = [x._host if isinstance(x, ndarray) else x for x in args]
        options["out" if out is not None else "order"] = out._host if out is not None else "C"
        counts.launches += 1
        with np.errstate(all="ignore"):
            try:
                result = self.numpy(*given, **options)
            except TypeError as error:
                raise TypeError(str(error).replace("numpy", "cupy")) from None
            except ValueError:
                if self.__name__ not in ("power", "pow") or "dtype" in options:
                    raise
                result = power_of_integers(*given)
        if out is not None:
            return out
        return device(result) if self.nout == 1 else tuple([device(part) for part in result])

    def at(self, a: ndarray, indices: Any, b: Any = None) -> None:
        if not isinstance(a, ndarray):
            raise TypeError(f"Unsupported type {type(a)}")
        if not self.table["at"]:
            raise NotImplementedError(f"`{self.name}.at` is not supported yet")
        if self.__name__ == "subtract" and a.dtype not in (np.dtype("int32"), np.dtype("uint32")):
            raise TypeError("cupy.subtract.at only supports int32, uint32, as data type")
        index = Index(indices, a.shape)
        counts.uploads += isinstance(b, (list, np.ndarray))
        counts.launches += max(index.launches, 1) + isinstance(b, NUMBERS)
        counts.waits += index.mask
        value = b._host if isinstance(b, ndarray) else np.asarray(b)
        self.numpy.at(a._host, index.parts, value.astype(a.dtype))

    def reduce(self, a: ndarray, axis: Any = 0, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return self.along("reduce", a, axis=axis, dtype=dtype, out=unwrap(out), keepdims=keepdims)

    def accumulate(self, a: ndarray, axis: int = 0, dtype: Any = None, out: Any = None) -> ndarray:
        return self.along("accumulate", a, axis=axis, dtype=dtype, out=unwrap(out))

    def along(self, method: str, a: ndarray, **options: Any) -> ndarray:
        if not self.table["reduce"]:
            raise NotImplementedError(f"`{self.name}.{method}` is not supported yet")
        launches = 2 if method == "accumulate" else 1
        return finish(getattr(self.numpy, method)(unwrap(a), **options), [], launches)

    def outer(self, a: ndarray, b: ndarray, **options: Any) -> ndarray:
        return self(a.reshape(a.shape + (1,) * b.ndim), b, **options)


def power_of_integers(a: Any, b: Any) -> np.ndarray:
    """Integers to a negative power: NumPy refuses, CuPy rounds towards zero."""
    power = np.power(np.asarray(a, float), b)
    return np.where(np.isfinite(power), power, 0).astype(np.result_type(a, b))
