"""What meets in an operation: Tensors of one dtype on one device, whatever a user wrote on both sides."""

from __future__ import annotations

import sys
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from minires.engine.graph import one_device
from minires.engine.methods import Methods
from minires.engine.values import common_dtype, dtype_beside, float32, in_our_words, make_array
from minires.kernels.backend import array_module
from minires.kernels.shapes import check_fits

if TYPE_CHECKING:
    from minires.engine.tensor import Tensor


#: An array's library and dtype: what both sides of an operator must share.
kind_of = attrgetter("array.__class__", "array.dtype")


def require_tensors(operation: str, *inputs: Any) -> None:
    """Errors: TypeError for an input that is neither a Tensor nor None, and where the first is None."""
    if inputs and inputs[0] is None:
        raise TypeError(f"{operation}: expected a Tensor, got None: does the forward() before it return its result?")
    for x in inputs:
        if x is not None and not isinstance(x, Methods):
            kind = f"{type(x).__module__}.{type(x).__name__}".removeprefix("builtins.")
            raise TypeError(f"{operation}: expected a Tensor, got {kind}: wrap it in minires.Tensor(...)")


def operands(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Both sides of an operator as Tensors of one dtype: a Python number takes the other's, as in PyTorch."""
    if isinstance(a, Methods) and isinstance(b, Methods) and kind_of(a) == kind_of(b):
        return a, b
    if not isinstance(a, Methods):
        a = operand_beside(a, b)
    elif not isinstance(b, Methods):
        b = operand_beside(b, a)
    if type(a.array) is not type(b.array):
        a, b = on_one_device(a, b)
    if a.array.dtype == b.array.dtype:
        return a, b
    dtype = common_dtype(a.array, b.array)
    return a.to(dtype), b.to(dtype)


def on_one_device(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Operands on one device: a single value (0-d) on the CPU follows the other, as in PyTorch. Errors: ValueError."""
    if a.ndim == 0 and a.device == "cpu":
        return a.to(b.device), b
    if b.ndim == 0 and b.device == "cpu":
        return a, b.to(a.device)
    operation = sys._getframe(2).f_code.co_name.strip("_")  # add for __add__
    raise ValueError(one_device(operation, f"{a.shape} on {a.device} and {b.shape} on {b.device}"))


def operand_beside(value: Any, tensor: Tensor) -> Tensor:
    """A number, list or array as a Tensor on the device of the tensor that it meets."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, (bool, int, float)):
        array = make_array(value, None, tensor.device if isinstance(value, (list, tuple)) else None)
        return tensor.wrap(array)
    dtype = dtype_beside(value, tensor.array.dtype)
    check_fits(value, dtype, sys._getframe(2).f_code.co_name.strip("_"))  # of operands' caller: add for __add__
    return tensor.wrap(array_module(tensor.array).full((), value, dtype))


def floating(operation: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Integers and booleans as float32, for operations that have no integer result."""
    require_tensors(operation, *tensors)
    return tuple([x.floating() for x in tensors])


def one_dtype(operation: str, tensors: Any) -> list[Tensor]:
    """Tensors to be joined, all with the dtype that they promote to."""
    require_tensors(operation, *tensors)
    dtype = tensors[0].dtype if tensors else float32
    for x in tensors:
        dtype = common_dtype(np.empty((1,), dtype), np.empty((1,), x.dtype))
    return [x.to(dtype) for x in tensors]


def without_gradient(operation: Callable, *inputs: Tensor) -> Tensor:
    """A comparison or a mask."""
    arrays = tuple([x.array for x in inputs])
    try:
        return inputs[0].wrap(operation(*arrays))
    except (TypeError, ValueError) as error:
        raise in_our_words(error, operation.__name__.strip("_"), arrays)  # noqa: B904  # its cause is set
