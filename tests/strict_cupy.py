"""A strict stand-in for CuPy, so that what runs on a GPU is tested on machines without one.

``with installed(): Tensor(x, device="cuda")``: it takes CuPy's place in sys.modules. Its arrays hold host memory and
are not NumPy's: they refuse what CuPy refuses. Names and keywords come from cupy_api.json, a list made from CuPy 14.2, and
test_strict_cupy.py holds its answers against cupy_behaviour.json, what CuPy 14.2 answered to the same expressions.

``counts`` says what a GPU would have been asked for:
    launches    pieces of work given to the device: one for each ufunc, reduction, product, fill, gather, scatter or
                copy on the device. A view is none, nor is ``empty``; ``LAUNCHES`` names functions of several steps.
    uploads     copies from the host: asarray and array of host data, lists and host arrays as an index
    downloads   copies to the host: get, asnumpy
    waits       where the host must stand still for a value: float, int, bool, item, tolist, printing, and results
                whose shape is a matter of values: a[mask], nonzero, bincount, unique
Unlike a GPU it computes at once, in NumPy's order and with NumPy's rounding: races and speed are not to be seen here.
"""

from __future__ import annotations

import functools
import json
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

API = json.loads((Path(__file__).parent / "cupy_api.json").read_text())

#: Functions and methods whose result has a shape that depends on values: the host waits for it.
WAITING = {"argwhere", "bincount", "compress", "extract", "flatnonzero", "nonzero", "repeat", "unique"}
WAITING |= {"lib.stride_tricks.sliding_window_view"}
#: How many launches a function takes that is several steps in CuPy; one is the rule.
LAUNCHES = {"var": 2, "std": 3, "allclose": 2}
#: Functions that CuPy answers without looking at an array's values, or for host values only.
ABOUT = {"broadcast_shapes", "can_cast", "iscomplexobj", "isfortran", "isrealobj", "isscalar", "issubdtype"}
ABOUT |= {
    "may_share_memory",
    "ndim",
    "promote_types",
    "result_type",
    "shape",
    "shares_memory",
    "size",
    "min_scalar_type",
}
#: Functions that make an array out of numbers, and which arguments are sizes (an array is refused there).
MAKING = {"arange", "eye", "full", "identity", "indices", "linspace", "logspace", "ones", "tri", "zeros"}
MAKING |= {"full_like", "ones_like", "zeros_like", "empty_like"}
#: Functions that upload a host array by themselves.
WELCOME = {"allclose", "isclose", "take", "take_along_axis", "put_along_axis"}
#: Functions that are a method of their first argument, whatever that is: sum(host) is host.sum().
DELEGATED = {"argmax", "argmin", "clip", "cumprod", "max", "mean", "min", "prod", "ravel", "repeat", "reshape", "std"}
DELEGATED |= {"squeeze", "sum", "swapaxes", "take", "transpose", "var", "amax", "amin", "argsort", "sort", "trace"}
#: Methods that take another array; all others take numbers only.
WITH_ARRAYS = {"choose", "clip", "compress", "dot", "fill", "put", "searchsorted", "take"}
#: Names that are NumPy's own in CuPy too.
SHARED = "bool_ byte complex64 complex128 dtype e euler_gamma finfo float16 float32 float64 floating generic iinfo inf "
SHARED += "inexact int8 int16 int32 int64 integer intp nan newaxis number pi signedinteger uint8 uint16 uint32 uint64"
OPERATORS = {
    **{"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide", "floordiv": "floor_divide"},
    **{"mod": "remainder", "divmod": "divmod", "pow": "power", "lshift": "left_shift", "rshift": "right_shift"},
    **{"and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "matmul": "matmul"},
}
COMPARISONS = {"lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal"}
COMPARISONS |= {"eq": "equal", "ne": "not_equal"}
UNARY = {"neg": "negative", "pos": "positive", "invert": "invert", "abs": "absolute"}
IMPLICIT = (
    "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
)
NUMBERS = (bool, int, float, complex, np.generic)


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
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: Flags(self._host))
    T = property(lambda self: device(self._host.T, self))
    mT = property(lambda self: device(self._host.mT, self))
    real = property(lambda self: device(self._host.real, self))
    imag = property(lambda self: device(self._host.imag, self))
    shape = property(lambda self: self._host.shape)

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
        if out is None:
            return np.array(self._host, order=order)
        out[...] = self._host
        return out

    def waited(self) -> np.ndarray:
        """The values, for which the host has waited."""
        counts.waits += 1
        return self._host

    def item(self, *args: int) -> Any:
        return self.waited().item(*args)

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
        index, kind = host_index(index, self.shape)
        if kind == "basic":
            return device(self._host[index], self)
        counts.launches += 1
        counts.waits += kind == "mask"
        return device(np.array(self._host[index]))

    def __setitem__(self, index: Any, value: Any) -> None:
        index, kind = host_index(index, self.shape)
        if isinstance(value, ndarray):
            value = value._host
        elif not isinstance(value, NUMBERS) and getattr(value, "shape", None) != ():
            if kind == "basic":
                raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
            counts.uploads += 1
        counts.launches += 1
        with np.errstate(all="ignore"):
            self._host[index] = value

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
    return asarray(host)


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


def host_index(index: Any, shape: tuple[int, ...]) -> tuple[Any, str]:
    """An index for NumPy, and its kind: basic (a view), array or mask. Integer arrays wrap around, as CuPy's do."""
    parts = []
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, ndarray):
            part = part._host
        elif isinstance(part, (list, np.ndarray, bool, np.bool_)):
            counts.uploads += 1
            part = np.asarray(part, dtype=int if isinstance(part, list) and not part else None)
        parts.append(part)
    taken = [part.ndim if is_mask(part) else 0 if part is None or part is Ellipsis else 1 for part in parts]
    kind, axis = "basic", 0
    for i, part in enumerate(parts):
        if is_mask(part):
            kind = "mask"
        elif isinstance(part, np.ndarray):
            kind = "array" if kind == "basic" else kind
            if axis < len(shape) and shape[axis] > 0:
                parts[i] = part % shape[axis]
        axis += len(shape) - sum(taken) if part is Ellipsis else taken[i]
    return tuple(parts), kind


def is_mask(part: Any) -> bool:
    """Whether part of an index is a boolean array."""
    return isinstance(part, np.ndarray) and part.dtype == bool


def finish(result: Any, sources: list[ndarray], launches: int = 1) -> Any:
    """NumPy's result as CuPy's: an array on the device, never a scalar; counted unless it is a view."""
    if isinstance(result, (list, tuple)):
        counted = [finish(part, sources, launches if i == 0 else 0) for i, part in enumerate(result)]
        return type(result)(counted) if type(result) in (list, tuple) else tuple(counted)
    if not isinstance(result, (np.ndarray, np.generic)):
        counts.launches += launches
        return result
    for source in sources:
        if result is source._host:
            return source
        if isinstance(result, np.ndarray) and result.size and np.may_share_memory(result, source._host):
            return device(result, source)
    counts.launches += launches
    return device(result)


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
        if out is not None:
            options["out"] = out._host
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
        if not self.table["at"]:
            raise NotImplementedError(f"`{self.name}.at` is not supported yet")
        if self.__name__ == "subtract" and a.dtype not in (np.dtype("int32"), np.dtype("uint32")):
            raise TypeError("cupy.subtract.at only supports int32, uint32, as data type")
        if not isinstance(a, ndarray):
            raise TypeError(f"Unsupported type {type(a)}")
        index, _ = host_index(indices, a.shape)
        counts.uploads += isinstance(b, (list, np.ndarray))
        counts.launches += 1
        value = b._host if isinstance(b, ndarray) else np.asarray(b)
        self.numpy.at(a._host, index, value.astype(a.dtype))

    def reduce(self, a: ndarray, axis: Any = 0, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return self.along("reduce", a, axis=axis, dtype=dtype, out=unwrap(out), keepdims=keepdims)

    def accumulate(self, a: ndarray, axis: int = 0, dtype: Any = None, out: Any = None) -> ndarray:
        return self.along("accumulate", a, axis=axis, dtype=dtype, out=unwrap(out))

    def along(self, method: str, a: ndarray, **options: Any) -> ndarray:
        if not self.table["reduce"]:
            raise NotImplementedError(f"`{self.name}.{method}` is not supported yet")
        return finish(getattr(self.numpy, method)(unwrap(a), **options), [])

    def outer(self, a: ndarray, b: ndarray, **options: Any) -> ndarray:
        return self(device(unwrap(a).reshape(a.shape + (1,) * b.ndim)), b, **options)


def power_of_integers(a: Any, b: Any) -> np.ndarray:
    """Integers to a negative power: NumPy refuses, CuPy rounds towards zero."""
    power = np.power(np.asarray(a, float), b)
    return np.where(np.isfinite(power), power, 0).astype(np.result_type(a, b))


# ---- Functions and methods -----------------------------------------------------------------------------------------


def check_keywords(label: str, options: dict[str, Any], known: Any) -> None:
    """Errors: TypeError for a keyword that CuPy's function lacks."""
    for name in options:
        if known is not True and name not in known:
            raise TypeError(f"{label}() got an unexpected keyword argument {name!r}")


def function(label: str, numpy_function: Callable) -> Callable:
    """A function of CuPy's namespace, computed by NumPy's of the same name."""
    known = API["functions"][label]
    name = label.rpartition(".")[2]

    @functools.wraps(numpy_function)
    def call(*args: Any, **options: Any) -> Any:
        check_keywords(name, options, known)
        if label in ABOUT:
            return numpy_function(*[unwrap(x) if isinstance(x, ndarray) else x for x in args], **options)
        if label in DELEGATED and args:
            method = name.removeprefix("a") if name in ("amax", "amin") else name
            if not isinstance(args[0], ndarray):
                return getattr(args[0], method)(*args[1:], **options)
        if label in WELCOME:
            args = tuple([asarray(x) if isinstance(x, (np.ndarray, list)) else x for x in args])
        sources = arrays_in([*args, *options.values()])
        if not sources and label not in MAKING:
            refused = next((type(x) for x in args if not isinstance(x, (int, float))), type(None))
            raise TypeError(f"Unsupported type {refused}")
        if label in MAKING:  # the first is a shape, a number, or an array to be like
            like = isinstance(args[0], np.ndarray) or (name.endswith("_like") and isinstance(args[0], ndarray))
            given = [getattr(args[0], "_host", args[0]) if like else args[0], *map(unwrap, args[1:])]
        else:
            given = [unwrap(args[0]), *args[1:]] if name in ("reshape", "broadcast_to") else list(map(unwrap, args))
        if label in ("take", "take_along_axis", "put_along_axis"):
            given, options = wrapped_around(name, given, options)
        counts.waits += label in WAITING
        with np.errstate(all="ignore"):
            result = numpy_function(*given, **{key: unwrap(value) for key, value in options.items()})
        if name == "empty_like":
            return device(poisoned(result))
        return finish(result, sources, LAUNCHES.get(label, 1))

    return call


def wrapped_around(name: str, given: list[Any], options: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of take and its kin with the indices modulo the size of their axis: CuPy checks no range."""
    if name == "take":
        return given, {**options, "mode": "wrap"}
    if "axis" not in options and len(given) < (4 if name == "put_along_axis" else 3):
        raise TypeError(f"{name}() missing 1 required positional argument: 'axis'")
    axis = options["axis"] if "axis" in options else given[-1]
    size = given[0].size if axis is None else given[0].shape[axis]
    given[1] = given[1] % size if size else given[1]
    return given, options


def method(name: str) -> Callable:
    """A method of an array, computed by NumPy's of the same name."""
    known = API["methods"][name]

    @functools.wraps(getattr(np.ndarray, name))
    def call(self: ndarray, *args: Any, **options: Any) -> Any:
        check_keywords(name, options, known)
        if name == "take":
            return module.take(self, *args, **options)
        given = list(map(unwrap, args)) if name in WITH_ARRAYS else list(args)
        if name in ("astype", "view") and args:
            device_dtype(args[0])
        counts.waits += name in WAITING
        with np.errstate(all="ignore"):
            result = getattr(self._host, name)(
                *given, **{k: unwrap(v) if k == "out" else v for k, v in options.items()}
            )
        if options.get("out") is not None:
            counts.launches += 1
            return options["out"]
        return finish(result, [self], LAUNCHES.get(name, 1))

    return call


def operator(symbol: str, name: str, reverse: bool = False, inplace: bool = False) -> Callable:
    """``__add__``, ``__radd__`` or ``__iadd__``, by the function of that name."""

    def call(self: ndarray, other: Any) -> Any:
        if other is None and symbol in COMPARISONS:
            return module.full(self.shape, symbol == "ne")
        if not isinstance(other, (ndarray, np.ndarray, *NUMBERS)):
            return NotImplemented
        act = getattr(module, name)
        if inplace:
            return act(self, other, out=self)
        return act(other, self) if reverse else act(self, other)

    return call


def array(
    obj: Any,
    dtype: Any = None,
    copy: bool | None = True,
    order: str = "K",
    subok: bool = False,
    ndmin: int = 0,
    **rest: Any,
) -> ndarray:
    """An array on the device: host data is uploaded, always a copy."""
    check_keywords("array", rest, ("blocking",))
    sources = arrays_in([obj])
    if sources:
        host = np.array(
            unwrap(obj), dtype=dtype, copy=True if copy or not isinstance(obj, ndarray) else None, order=order
        )
        return finish(host.reshape((1,) * (ndmin - host.ndim) + host.shape), sources)
    host = np.array(obj, dtype=dtype, order=order, ndmin=ndmin)
    device_dtype(host.dtype)
    counts.uploads += 1
    return device(host)


def asarray(
    a: Any, dtype: Any = None, order: str | None = None, *, copy: bool | None = None, blocking: bool = False
) -> ndarray:
    """As array, and an array of the device stays itself."""
    return array(a, dtype, copy, order or "K")


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    """A copy on the host; host data stays there."""
    return a.get(stream, order, out) if isinstance(a, ndarray) else np.asarray(a)


def as_strided(x: ndarray, shape: Any = None, strides: Any = None) -> ndarray:
    """A view with the shape and the strides given: it shares x's memory."""
    return device(np.lib.stride_tricks.as_strided(x._host, shape, strides), x)


def sliding_window_view(
    x: ndarray, window_shape: Any, axis: Any = None, *, subok: bool = False, writeable: bool = False
) -> ndarray:
    """Windows as a view; in CuPy each call uploads and waits."""
    if writeable:
        raise NotImplementedError("Writeable views are not supported.")
    windows = np.lib.stride_tricks.sliding_window_view(x._host, window_shape, axis=axis)
    counts.uploads += 1
    counts.waits += windows.ndim - x.ndim
    return as_strided(x, windows.shape, windows.strides)


def matmul(a: Any, b: Any, out: ndarray | None = None) -> ndarray:
    """Matrix product: of device arrays only."""
    for name, value in (("a", a), ("b", b)):
        if not isinstance(value, ndarray):
            got = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
            expected = "cupy._core.core._ndarray_base"
            raise TypeError(f"Argument '{name}' has incorrect type (expected {expected}, got {got})")
    counts.launches += 1
    with np.errstate(all="ignore"):
        result = np.matmul(a._host, b._host, out=None if out is None else out._host)
    return device(result) if out is None else out


def fuse(*args: Any, **options: Any) -> Callable:
    """``@fuse()``: the function as it is, counted as one launch where it is given device arrays."""

    def decorate(inner: Callable) -> Callable:
        @functools.wraps(inner)
        def fused(*values: Any) -> Any:
            before = counts.launches
            result = inner(*values)
            if arrays_in(values):
                counts.launches = before + 1
            return result

        return fused

    if len(args) == 1 and callable(args[0]):
        return decorate(args[0])
    check_keywords("fuse", options, ("kernel_name",))
    return decorate


# ---- The module ----------------------------------------------------------------------------------------------------


def refuse_random(name: str) -> Callable:
    """A function of cupy.random: MiniRes draws on the host, so that every device gets the same numbers."""

    def refused(*args: Any, **options: Any) -> None:
        raise NotImplementedError(f"cupy.random.{name}: random numbers are drawn on the host and uploaded")

    return refused


def build() -> dict[str, types.ModuleType]:
    """The module cupy and those inside it, by name."""
    inside = ["cuda", "cuda.runtime", "lib", "lib.stride_tricks", "linalg", "random"]
    modules = {name: types.ModuleType(name) for name in ["cupy", *[f"cupy.{part}" for part in inside]]}
    for name in list(modules)[1:]:
        parent, _, last = name.rpartition(".")
        setattr(modules[parent], last, modules[name])
    for label in API["functions"]:
        parent, _, last = f"cupy.{label}".rpartition(".")
        found: Any = np
        for part in label.split("."):
            found = getattr(found, part, None)
        if parent == "cupy.random":
            setattr(modules[parent], last, refuse_random(last))
        elif callable(found):
            setattr(modules[parent], last, function(label, found))
    top = modules["cupy"]
    for name in API["ufuncs"]:
        if hasattr(np, name):
            setattr(top, name, ufunc(name))
    for name in SHARED.split():
        setattr(top, name, getattr(np, name))
    for own in (array, asarray, asnumpy, fuse, matmul, ndarray, ufunc):
        setattr(top, own.__name__, own)
    top.asanyarray = asarray
    top.empty = lambda shape, dtype=float, order="C": ndarray(shape, dtype, order)
    top.get_array_module = lambda *args: top if arrays_in(args) else np
    top.is_available = modules["cupy.cuda"].is_available = lambda: True
    top.__version__ = API["version"]
    modules["cupy.cuda.runtime"].getDeviceCount = lambda: 1
    modules["cupy.lib.stride_tricks"].as_strided = as_strided
    modules["cupy.lib.stride_tricks"].sliding_window_view = sliding_window_view
    return modules


MODULES = build()
module = MODULES["cupy"]
ndarray.__module__ = ufunc.__module__ = "cupy"

for _name, _keywords in API["methods"].items():
    if _keywords != "attr" and not hasattr(ndarray, _name) and hasattr(np.ndarray, _name):
        setattr(ndarray, _name, method(_name))
for _symbol, _name in OPERATORS.items():
    setattr(ndarray, f"__{_symbol}__", operator(_symbol, _name))
    setattr(ndarray, f"__r{_symbol}__", operator(_symbol, _name, reverse=True))
    if _symbol != "divmod":
        setattr(ndarray, f"__i{_symbol}__", operator(_symbol, _name, inplace=True))
for _symbol, _name in COMPARISONS.items():
    setattr(ndarray, f"__{_symbol}__", operator(_symbol, _name))
ndarray.__hash__ = None
for _symbol, _name in UNARY.items():
    setattr(ndarray, f"__{_symbol}__", lambda self, act=getattr(module, _name): act(self))


@contextmanager
def installed() -> Iterator[types.ModuleType]:
    """``import cupy`` finds the stand-in within the block, and what was there before it after."""
    before = {name: sys.modules[name] for name in list(sys.modules) if name == "cupy" or name.startswith("cupy.")}
    for name in before:
        del sys.modules[name]
    sys.modules.update(MODULES)
    try:
        yield module
    finally:
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(before)
