"""A strict stand-in for CuPy, so that what runs on a GPU is tested on machines without one.

``with installed(): Tensor(x, device="cuda")``: it takes CuPy's place in sys.modules. Its arrays hold host memory and
are not NumPy's: they refuse what CuPy refuses. Names and keywords come from cupy_api.json, made from CuPy 14.2, and
test_strict_cupy.py holds its answers against cupy_behaviour.json, what CuPy 14.2 answered to the same expressions.

``counts`` says what a GPU would have been asked for:
    launches    pieces of work given to the device: one for each ufunc, reduction, product, fill, gather, scatter or
                copy on the device; ``launches_of`` has those that are several steps in CuPy. A view is none, nor is
                ``empty``. Seen in CuPy 14.2; exact for what MiniRes uses, and roughly right for the rest.
    uploads     copies from the host: asarray and array of host data, lists and host arrays as an index
    downloads   copies to the host: get, asnumpy (each of them waits too, and is not counted there)
    waits       where the host stands still for a value: float, int, bool, item, tolist, printing, and what depends on
                the number of true values: a[mask], a[mask] = b, nonzero, bincount, unique
New arrays are in C order whatever the order of the operands, as in CuPy and unlike NumPy. Unlike a GPU it computes at
once, in NumPy's order and with NumPy's rounding: races, speed and a full memory are not to be seen here; nor is what
``fuse`` does to a function that uses arrays from outside it (CuPy refuses that).
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from strict_cupy_array import (
    API,
    NUMBERS,
    arrays_in,
    counts,
    device,
    device_dtype,
    finish,
    fusing,
    module,
    ndarray,
    poisoned,
    ufunc,
    unwrap,
)

__all__ = ["API", "counts", "installed", "module", "ndarray", "poisoned", "ufunc"]

#: Functions and methods whose result has a shape that depends on values: the host waits for it.
WAITING = {"argwhere", "bincount", "compress", "extract", "flatnonzero", "nonzero", "unique"}
#: How many launches a function or method takes that is several steps in CuPy; one is the rule.
LAUNCHES = {"allclose": 2, "argwhere": 2, "array_equal": 2, "bincount": 5, "compress": 3, "diag": 2, "extract": 3}
LAUNCHES |= {"eye": 2, "flatnonzero": 2, "linalg.norm": 3, "nonzero": 3, "ptp": 3, "roll": 2, "std": 4, "var": 3}
LAUNCHES |= {"linspace": 2, "meshgrid": 2, "nan_to_num": 4, "searchsorted": 2, "tril": 2, "triu": 2}
#: Functions whose new memory keeps the order of the array that they are given.
KEEPING = {"astype", "copy", "empty_like", "full_like", "ones_like", "pad", "zeros_like", "asfortranarray"}
#: Functions that CuPy answers on the host.
ABOUT = {"broadcast_shapes", "can_cast", "iscomplexobj", "isfortran", "isrealobj", "isscalar", "issubdtype", "ndim"}
ABOUT |= {"may_share_memory", "min_scalar_type", "promote_types", "result_type", "shape", "shares_memory", "size"}
#: Functions that make an array out of numbers; their first argument is a size, or an array to be like.
MAKING = {"arange", "eye", "full", "identity", "indices", "linspace", "logspace", "ones", "tri", "zeros"}
MAKING |= {"empty_like", "full_like", "ones_like", "zeros_like"}
#: Functions that upload a host array by themselves.
WELCOME = {"allclose", "isclose", "take", "take_along_axis"}
#: Functions that are a method of their first argument, whatever that is: sum(host) is host.sum().
DELEGATED = {"argmax", "argmin", "clip", "cumprod", "max", "mean", "min", "prod", "ravel", "repeat", "reshape", "std"}
DELEGATED |= {"squeeze", "sum", "swapaxes", "take", "transpose", "var", "amax", "amin", "trace"}
#: Methods that take another array; all others take numbers only.
WITH_ARRAYS = {"choose", "clip", "compress", "dot", "put", "searchsorted"}
#: What cupy.fuse can fuse, beside ufuncs and operators.
FUSABLE = {"all", "amax", "amin", "any", "astype", "clip", "copy", "copyto", "max", "min", "prod", "sum", "where"}
#: Names that are NumPy's own in CuPy too.
SHARED = (
    "bool bool_ byte complex64 complex128 dtype e finfo float16 float32 float64 floating generic iinfo inf inexact "
)
SHARED += "int8 int16 int32 int64 integer intp nan newaxis number pi signedinteger uint8 uint16 uint32 uint64"
OPERATORS = "add:add sub:subtract mul:multiply truediv:true_divide floordiv:floor_divide mod:remainder divmod:divmod "
OPERATORS += (
    "pow:power lshift:left_shift rshift:right_shift and:bitwise_and or:bitwise_or xor:bitwise_xor matmul:matmul"
)
COMPARISONS = "lt:less le:less_equal gt:greater ge:greater_equal eq:equal ne:not_equal"


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
        check_fusable(label, options)
        if label in ABOUT:
            return numpy_function(*[unwrap(x) if isinstance(x, ndarray) else x for x in args], **options)
        if label in DELEGATED and args:
            method = name.removeprefix("a") if name in ("amax", "amin") else name
            if not isinstance(args[0], ndarray):
                return getattr(args[0], method)(*args[1:], **options)
        if label in WELCOME:
            args = tuple([asarray(x) if isinstance(x, (np.ndarray, list)) else x for x in args])
        sources = arrays_in([*args, *options.values()])
        first = args[0] if args else None
        if label in MAKING:  # the first is a shape, a number, or an array to be like
            given = made_of(name, args)
        elif not sources and not (isinstance(first, (list, tuple)) and len(first) == 0):
            refused = next((type(x) for x in args if not isinstance(x, (int, float))), type(None))
            raise TypeError(f"Unsupported type {refused}")
        elif label in ("where", "clip"):
            given = [elementwise(x) for x in args]
        else:
            given = [unwrap(first), *args[1:]] if name in ("reshape", "broadcast_to") else list(map(unwrap, args))
        if label in ("take", "take_along_axis", "put_along_axis"):
            given, options = wrapped_around(name, given, options)
        launches = launches_of(label, given, options)
        counts.waits += label == "bincount"  # it waits twice: for the smallest value and for the largest
        counts.waits += label in WAITING or (label == "where" and len(given) == 1)
        with np.errstate(all="ignore"):
            result = numpy_function(*given, **{key: unwrap(value) for key, value in options.items()})
        if name == "empty_like":
            return device(poisoned(result))
        if options.get("out") is not None:
            counts.launches += launches
            return options["out"]
        return finish(result, sources, launches, "K" if label in KEEPING else "C")

    return call


def made_of(name: str, args: tuple) -> list[Any]:
    """Arguments for a function that makes an array: a size must not lie on the device."""
    first = list(args[:1])
    if args and name.endswith("_like"):
        if not hasattr(args[0], "dtype"):
            raise AttributeError(f"{type(args[0]).__name__!r} object has no attribute 'dtype'")
        first = [getattr(args[0], "_host", args[0])]
    if name == "full" and len(args) > 1 and isinstance(args[1], (list, tuple)):
        raise AttributeError(f"{type(args[1]).__name__!r} object has no attribute 'dtype'")
    if name in ("full", "full_like") and len(args) > 1 and isinstance(args[1], np.ndarray):
        if args[1].ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for copyto")
        args = (args[0], args[1][()], *args[2:])
    return [*first, *map(unwrap, args[1:])]


def elementwise(value: Any) -> Any:
    """An argument of a function that takes arrays and numbers, and no lists."""
    if not isinstance(value, (ndarray, type(None), *NUMBERS)):
        raise TypeError(f"Unsupported type {type(value)}")
    return unwrap(value)


def check_fusable(name: str, options: dict[str, Any]) -> None:
    """Errors: AttributeError or NotImplementedError for what cupy.fuse does not know."""
    if name not in FUSABLE:
        fusing.refuse(AttributeError, name)
    if options.get("keepdims"):
        fusing.refuse(NotImplementedError, f"{name}(keepdims=)")


def launches_of(label: str, given: list[Any], options: dict[str, Any]) -> int:
    """How many launches a function takes."""
    if label in ("concatenate", "stack"):  # more than 8: a list of addresses is uploaded, and one launch copies all
        counts.uploads += len(given[0]) > 8
        return len(given[0]) if len(given[0]) <= 8 else 1
    if label == "pad":  # zeros and one copy; another value is filled in side by side
        widths = options["pad_width"] if "pad_width" in options else given[1]
        sides = np.broadcast_to(widths, (given[0].ndim, 2))
        return 2 if np.all(options.get("constant_values", 0) == 0) else 1 + int((sides > 0).sum())
    if label == "where" and len(given) == 1:
        return 2
    if label == "mean":
        return 1 + (options.get("dtype", given[0].dtype) != given[0].dtype or given[0].dtype.kind in "biu")
    if label in ("take_along_axis", "put_along_axis"):  # the index of every axis, then as a[i, j]
        values = label == "put_along_axis" and not isinstance(given[2], np.ndarray)
        return (2 * given[0].ndim + 1 if given[0].ndim > 1 else 1) + values
    return LAUNCHES.get(label, 1)


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
        check_fusable(name, options)
        if name == "take":
            return module.take(self, *args, **options)
        given = list(map(unwrap, args)) if name in WITH_ARRAYS else list(args)
        if name in ("astype", "view") and args:
            device_dtype(args[0])
        out = options.get("out")
        if out is not None:
            options["out"] = unwrap(out)
        launches = launches_of(name, [self._host, *given], options)
        counts.waits += name in WAITING
        with np.errstate(all="ignore"):
            result = getattr(self._host, name)(*given, **options)
        if out is not None:
            counts.launches += launches
            return out
        return finish(result, [self], launches, "K" if name in KEEPING else "C")

    return call


def operator(symbol: str, name: str, reverse: bool = False, inplace: bool = False) -> Callable:
    """``__add__``, ``__radd__`` or ``__iadd__``, by the function of that name."""

    def call(self: ndarray, other: Any) -> Any:
        if not isinstance(other, (ndarray, np.ndarray, *NUMBERS)):
            if symbol not in ("eq", "ne") or hasattr(other, "__array_priority__"):
                return NotImplemented
            if isinstance(other, (list, tuple, str)):
                raise TypeError(f"operand type(s) all returned NotImplemented from __array_ufunc__: {name}, {other!r}")
            return module.full(self.shape, symbol == "ne")
        act = getattr(module, name)
        if inplace:
            return act(self, other, out=self)
        return act(other, self) if reverse else act(self, other)

    return call


def array(
    obj: Any, dtype: Any = None, copy: Any = True, order: str = "K", subok: Any = False, ndmin: int = 0, **rest: Any
) -> ndarray:
    """An array on the device: host data is uploaded, always a copy; a single number is filled in."""
    check_keywords("array", rest, ("blocking",))
    fusing.refuse(AttributeError, "array")
    sources = arrays_in([obj])
    if sources:
        copy = True if copy or not isinstance(obj, ndarray) else None
        host = np.array(unwrap(obj), dtype=dtype, copy=copy, order=order)
        if ndmin > host.ndim:
            host = host.reshape((1,) * (ndmin - host.ndim) + host.shape)
        return finish(host, sources, len(sources), "K")
    host = np.array(obj, dtype=dtype, order=order, ndmin=ndmin)
    device_dtype(host.dtype)
    counts.launches += host.ndim == 0
    counts.uploads += host.ndim > 0 and host.size > 0
    return device(host if host.flags.f_contiguous else np.asarray(host, order="C"))


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
    counts.launches += windows.ndim - x.ndim
    counts.waits += windows.ndim - x.ndim
    return as_strided(x, windows.shape, windows.strides)


def matmul(a: Any, b: Any, out: ndarray | None = None, **rest: Any) -> ndarray:
    """Matrix product: of device arrays only."""
    for name, value in (("a", a), ("b", b)):
        if not isinstance(value, ndarray):
            got = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
            expected = "cupy._core.core._ndarray_base"
            raise TypeError(f"Argument '{name}' has incorrect type (expected {expected}, got {got})")
    fusing.refuse(TypeError, "matmul")
    check_keywords("matmul", rest, API["functions"]["matmul"])
    # cuBLAS wants its operands dense: anything else is copied first. A batch that is broadcast becomes lists of
    # addresses, three launches for each of its axes.
    flat = a.ndim == b.ndim == 2
    strided = sum([not (x.flags.c_contiguous or (flat and x.flags.f_contiguous)) for x in (a, b)])
    repeated = a.ndim > 1 and b.ndim > 1 and a.shape[:-2] != b.shape[:-2]
    strided += out is not None and not out.flags.c_contiguous
    counts.launches += 1 + strided + 3 * repeated * (max(a.ndim, b.ndim) - 2)
    with np.errstate(all="ignore"):
        result = np.matmul(a._host, b._host, out=None if out is None else out._host, **rest)
    return device(np.asarray(result, order="C")) if out is None else out


def fuse(*args: Any, **options: Any) -> Callable:
    """``@fuse()``: the function as it is, one launch where it is given device arrays; elementwise work only."""

    def decorate(inner: Callable) -> Callable:
        @functools.wraps(inner)
        def fused(*values: Any) -> Any:
            if not arrays_in(values):
                return inner(*values)
            if not options.get("kernel_name", inner.__name__).isidentifier():
                raise RuntimeError(f"CompileException: {inner.__name__} is no name for a kernel: give kernel_name=")
            for value in values:
                if value is not None and not isinstance(value, (ndarray, *NUMBERS)):
                    raise TypeError(f"Unsupported input type {type(value)}.")
            before = counts.launches
            fusing.active = True
            try:
                return inner(*values)
            finally:
                fusing.active = False
                counts.launches = before + 1

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


class Queue:
    """A device or a stream, to be waited for."""

    def synchronize(self) -> None:
        counts.waits += 1

    def use(self) -> None:
        """There is one device."""


def build() -> dict[str, types.ModuleType]:
    """The module cupy and those inside it, by name."""
    inside = ["cuda", "cuda.runtime", "lib", "lib.stride_tricks", "linalg", "random"]
    modules = {"cupy": module, **{f"cupy.{part}": types.ModuleType(f"cupy.{part}") for part in inside}}
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
    top = module
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
    modules["cupy.cuda"].Device = lambda device=0: Queue()
    modules["cupy.cuda"].Stream = types.SimpleNamespace(null=Queue())
    top.is_available = modules["cupy.cuda"].is_available = lambda: True
    top.__version__ = API["version"]
    modules["cupy.cuda.runtime"].getDeviceCount = lambda: 1
    modules["cupy.lib.stride_tricks"].as_strided = as_strided
    modules["cupy.lib.stride_tricks"].sliding_window_view = sliding_window_view
    return modules


MODULES = build()
ndarray.__module__ = ufunc.__module__ = "cupy"

for _name, _keywords in API["methods"].items():
    if _keywords != "attr" and not hasattr(ndarray, _name) and hasattr(np.ndarray, _name):
        setattr(ndarray, _name, method(_name))
for _symbol, _name in [pair.split(":") for pair in OPERATORS.split()]:
    setattr(ndarray, f"__{_symbol}__", operator(_symbol, _name))
    setattr(ndarray, f"__r{_symbol}__", operator(_symbol, _name, reverse=True))
    if _symbol != "divmod":
        setattr(ndarray, f"__i{_symbol}__", operator(_symbol, _name, inplace=True))
for _symbol, _name in [pair.split(":") for pair in COMPARISONS.split()]:
    setattr(ndarray, f"__{_symbol}__", operator(_symbol, _name))
ndarray.__hash__ = None


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
