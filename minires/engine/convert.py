"""What a user's values become: arrays from numbers and lists, operands of one dtype on one device, indices, names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from minires.kernels.backend import Array, array_module, as_array, to_device, to_numpy
from minires.kernels.shapes import INTEGERS, check_fits

T = TypeVar("T")

float32 = np.dtype("float32")
float64 = np.dtype("float64")
int64 = np.dtype("int64")


def make_array(data: Any, dtype: Any, device: str | None) -> Array:
    """New memory with the values of ``data``: Python floats become float32, arrays keep their dtype.

    Errors: TypeError for what is not numbers; ValueError for ragged lists or an unknown device.
    """
    if hasattr(data, "array"):  # a Tensor
        data = data.array
    if hasattr(data, "__cuda_array_interface__") and not isinstance(data, np.ndarray):
        array = data.astype(data.dtype if dtype is None else dtype)  # a copy: the caller's array stays the caller's
    elif hasattr(data, "__array__"):
        array = np.array(np.asarray(data), dtype=dtype)  # a copy, and of the plain class
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
    else:
        if isinstance(data, (list, tuple)):
            data = lists_of_arrays(data)
        try:
            array = np.array(data)
        except ValueError as error:
            raise ValueError(f"Tensor: the nested lists are ragged: {error}") from error
        if dtype is not None:
            if array.dtype.kind in "biuf":
                array = array.astype(dtype)
        elif array.dtype == float64 and not holds_arrays(data):
            array = array.astype(float32)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"Tensor: data must be real numbers or booleans, got {type(data).__name__} of {array.dtype}")
    return array if device is None else to_device(array, device)


def as_tensor(kind: type, array: Array, requires_grad: bool = False) -> Any:
    """A leaf of this class of Tensor around an array, sharing its memory."""
    tensor: Any = kind.__new__(kind)
    tensor.array, tensor._requires_grad = as_array(array), requires_grad  # NumPy reduces to scalars
    tensor.grad = tensor.node = None
    return tensor


def holds_arrays(data: Any) -> bool:
    """Whether nested lists begin with an array or a NumPy number, whose dtype is then kept."""
    while isinstance(data, (list, tuple)) and data:
        data = data[0]
    return isinstance(data, (np.ndarray, np.generic))


def lists_of_arrays(data: list | tuple) -> list:
    """Nested lists with every Tensor in them replaced by its array."""
    return [
        lists_of_arrays(x) if isinstance(x, (list, tuple)) else to_numpy(x.array) if hasattr(x, "array") else x
        for x in data
    ]


def dtype_beside(value: bool | int | float, dtype: np.dtype) -> np.dtype:
    """The dtype of an operation between a Python number and a tensor: the tensor's, unless the number needs more."""
    if isinstance(value, float) and dtype.kind != "f":
        return float32
    if not isinstance(value, bool) and dtype.kind == "b":
        return int64
    return dtype


def common_dtype(a: Array, b: Array) -> np.dtype:
    """PyTorch's promotion: the higher category (bool, int, float) wins; within one, a 0-d operand gives way."""
    rank_a, rank_b = "biuf".index(a.dtype.kind), "biuf".index(b.dtype.kind)
    if rank_a != rank_b and (rank_a in (0, 3) or rank_b in (0, 3)):
        return a.dtype if rank_a > rank_b else b.dtype
    if (a.ndim == 0) != (b.ndim == 0):
        return b.dtype if a.ndim == 0 else a.dtype
    return np.promote_types(a.dtype, b.dtype)


# ---- What meets in an operation -----------------------------------------------------------------------------------


def is_tensor(x: Any) -> bool:
    """Whether this is a Tensor (whose class stands above this file)."""
    return hasattr(x, "_requires_grad")


def require_tensors(operation: str, *inputs: Any) -> None:
    """Errors: TypeError for an input that is neither a Tensor nor None, and where the first is None."""
    if inputs and inputs[0] is None:
        raise TypeError(f"{operation}: expected a Tensor, got None: does the forward() before it return its result?")
    for x in inputs:
        if x is not None and not is_tensor(x):
            kind = f"{type(x).__module__}.{type(x).__name__}".removeprefix("builtins.")
            raise TypeError(f"{operation}: expected a Tensor, got {kind}: wrap it in minires.Tensor(...)")


def operands(operation: str, a: Any, b: Any) -> tuple[Any, Any]:
    """Both sides of an operator as Tensors of one dtype: a Python number takes the other's, as in PyTorch.

    Errors: TypeError for what is no number; ValueError for two devices, or a number that the dtype does not have.
    """
    if not is_tensor(a):
        a = operand_beside(operation, a, b)
    elif not is_tensor(b):
        b = operand_beside(operation, b, a)
    if type(a.array) is not type(b.array):
        a, b = on_one_device(operation, a, b)
    if a.array.dtype == b.array.dtype:
        return a, b
    dtype = common_dtype(a.array, b.array)
    return a.to(dtype), b.to(dtype)


def operand_beside(operation: str, value: Any, tensor: Any) -> Any:
    """A number, list or array as a Tensor on the device of the tensor that it meets."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, (bool, int, float)):
        array = make_array(value, None, tensor.device if isinstance(value, (list, tuple)) else None)
        return tensor.wrap(array)
    dtype = dtype_beside(value, tensor.array.dtype)
    check_fits(value, dtype, operation)
    return tensor.wrap(array_module(tensor.array).full((), value, dtype))


def on_one_device(operation: str, a: Any, b: Any) -> tuple[Any, Any]:
    """Operands on one device: a single value (0-d) on the CPU follows the other, as in PyTorch. Errors: ValueError."""
    if a.ndim == 0 and a.device == "cpu":
        return a.to(b.device), b
    if b.ndim == 0 and b.device == "cpu":
        return a, b.to(a.device)
    raise ValueError(one_device(operation, f"{a.shape} on {a.device} and {b.shape} on {b.device}"))


def one_device(operation: str, came: str) -> str:
    """What is said about tensors that do not lie together."""
    return f'{operation}: all tensors must be on one device, got {came}: move one with .to("cuda") or .to("cpu")'


def floating(operation: str, *tensors: Any) -> tuple[Any, ...]:
    """Integers and booleans as float32, for operations that have no integer result."""
    require_tensors(operation, *tensors)
    return tuple([x.floating() for x in tensors])


def one_dtype(operation: str, tensors: Any) -> list[Any]:
    """Tensors to be joined, all with the dtype that they promote to."""
    require_tensors(operation, *tensors)
    dtype = tensors[0].dtype if tensors else float32
    for x in tensors:
        dtype = common_dtype(np.empty((1,), dtype), np.empty((1,), x.dtype))
    return [x.to(dtype) for x in tensors]


def in_our_words(error: Exception, operation: str, arrays: tuple[Array, ...]) -> Exception:
    """An exception in our words where NumPy's own do not name the operation; otherwise itself."""
    words, better = str(error), error
    if not isinstance(error, (TypeError, ValueError)):
        return error
    if "broadcast" in words and len(arrays) > 1:
        shapes = " and ".join([str(x.shape) for x in arrays])
        better = ValueError(f"{operation}: shapes {shapes} do not broadcast")
    elif "ufunc" in words or "numpy boolean" in words:
        dtypes = " and ".join([str(x.dtype) for x in arrays])
        better = TypeError(f"{operation}: not defined for {dtypes}")
    elif words.startswith("Integers to negative"):
        better = ValueError(f"{operation}: integers to a negative power are no integers, use .float()")
    if better is not error:
        better.__cause__ = error
    return better


def comparable(other: Any) -> bool:
    """Whether == has an answer for each value: not for None, text or other objects."""
    return hasattr(other, "array") or isinstance(other, (bool, int, float, np.generic, np.ndarray, list, tuple))


def index_arrays(index: Any, x: Array) -> Any:
    """An index into x, with every Tensor in it replaced by its array.

    Errors: ValueError for an index on a GPU into an array on the CPU (the other way is fine, as in PyTorch).
    """
    if isinstance(index, tuple):
        return tuple([index_arrays(part, x) for part in index])
    if isinstance(index, list):
        parts = [part.cpu() if hasattr(part, "array") else part for part in index]
        return np.array(index_arrays(tuple(parts), x), dtype=None if index else int)
    if not hasattr(index, "array"):
        return index
    if isinstance(x, np.ndarray) and index.device != "cpu":
        came = f"a tensor {x.shape} on cpu and an index {index.shape} on {index.device}"
        raise ValueError(f"getitem: expected the index on the tensor's device, got {came}: move it with .cpu()")
    return index.array


def dims(*given: Any) -> tuple:
    """Axes or sizes as PyTorch takes them, ``f()``, ``f(0, 1)`` or ``f((0, 1))``, as one tuple."""
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], (list, tuple)) else given


def axes_or_all(dim: Any) -> Any:
    """Axes to reduce: an int, a tuple, or None for all; an empty tuple means all, as in PyTorch."""
    axes = tuple(dim) if isinstance(dim, list) else dim
    return None if axes == () else axes


def sizes(operation: str, *given: Any) -> tuple[int, ...]:
    """A shape, checked. Errors: TypeError for sizes that are not ints; ValueError for a negative one."""
    shape = dims(*given)
    for size in shape:
        if not isinstance(size, INTEGERS):
            raise TypeError(f"{operation}: sizes must be ints, got {size!r}")
        if size < 0:
            raise ValueError(f"{operation}: sizes must not be negative, got {shape}")
    return shape


def floating_dtype(operation: str, dtype: Any) -> np.dtype:
    """The dtype of what is drawn, float32 for None. Errors: TypeError for integers."""
    wanted = np.dtype(dtype or float32)
    if wanted.kind != "f":
        raise TypeError(f"{operation}: dtype must be floating point, got {wanted}")
    return wanted


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """table[name].

    Errors: ValueError that names the nearest entry and all others.
    """
    if name in table:
        return table[name]
    import difflib  # where it is needed: importing MiniRes stays light

    near = difflib.get_close_matches(str(name), table, n=1, cutoff=0.4)
    hint = f": did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"unknown {kind} {name!r}{hint} There are: {', '.join(table)}")


def printable(text: Any) -> str:
    """Text as it may be printed: a code that would move a terminal's cursor, or anything else unseen, as \\x1b.

    Names in files, and names of files, may hold such codes.
    """
    return "".join([one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(text)])


def printable_lines(text: Any) -> str:
    """The same for text of several lines, which stay lines."""
    return "\n".join([printable(line) for line in str(text).split("\n")])
