"""The operators of a Tensor, each bound to its kernel pair: arithmetic, indexing, comparisons, changes in place."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from minires import kernels
from minires.engine.convert import comparable, dtype_beside, floating, in_our_words, index_arrays, is_tensor, operands
from minires.engine.methods import Methods
from minires.engine.modes import mode


def without_gradient(operation: Callable, *inputs: Any) -> Any:
    """A comparison or a mask."""
    arrays = tuple([x.array for x in inputs])
    try:
        return inputs[0].wrap(operation(*arrays))
    except (TypeError, ValueError) as error:
        raise in_our_words(error, operation.__name__.strip("_"), arrays)  # noqa: B904  # its cause is set


class Operators(Methods):
    """Operators, beside the named methods."""

    __slots__ = ()

    __array_priority__ = 1000  # numpy_array + tensor asks Tensor.__radd__

    __hash__ = object.__hash__

    def __add__(self, other: Any) -> Any:
        return self.apply(kernels.add_forward, kernels.add_backward, *operands("add", self, other))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self.apply(kernels.subtract_forward, kernels.subtract_backward, *operands("sub", self, other))

    def __rsub__(self, other: Any) -> Any:
        return self.apply(kernels.subtract_forward, kernels.subtract_backward, *operands("sub", other, self))

    def __mul__(self, other: Any) -> Any:
        return self.apply(kernels.multiply_forward, kernels.multiply_backward, *operands("mul", self, other))

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        self, other = floating("divide", *operands("truediv", self, other))
        return self.apply(kernels.divide_forward, kernels.divide_backward, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        other, self = floating("divide", *operands("truediv", other, self))
        return self.apply(kernels.divide_forward, kernels.divide_backward, other, self)

    def __pow__(self, other: Any) -> Any:
        if isinstance(other, np.generic):
            other = other.item()
        if isinstance(other, (int, float)):
            base = self.to(dtype_beside(other, self.array.dtype))
            return self.apply(kernels.power_scalar_forward, kernels.power_scalar_backward, base, exponent=other)
        return self.apply(kernels.power_forward, kernels.power_backward, *operands("pow", self, other))

    def __rpow__(self, other: Any) -> Any:
        return self.apply(kernels.power_forward, kernels.power_backward, *operands("pow", other, self))

    def __matmul__(self, other: Any) -> Any:
        return self.apply(kernels.matmul_forward, kernels.matmul_backward, *operands("matmul", self, other))

    def __rmatmul__(self, other: Any) -> Any:
        return self.apply(kernels.matmul_forward, kernels.matmul_backward, *operands("matmul", other, self))

    def __neg__(self) -> Any:
        return self.apply(kernels.negative_forward, kernels.negative_backward, self)

    def __abs__(self) -> Any:
        return self.apply(kernels.absolute_forward, kernels.absolute_backward, self)

    def __getitem__(self, index: Any) -> Any:
        return self.apply(kernels.slice_forward, kernels.slice_backward, self, index=index_arrays(index, self.array))

    # In place: outside the graph (a parameter under no_grad) the memory itself changes; inside it, a new tensor.

    def __iadd__(self, other: Any) -> Any:
        return self.change(operator.add, other)

    def __isub__(self, other: Any) -> Any:
        return self.change(operator.sub, other)

    def __imul__(self, other: Any) -> Any:
        return self.change(operator.mul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self.change(operator.truediv, other)

    def change(self, operation: Callable, other: Any) -> Any:
        """``self += other`` and its like. Errors: as in_graph; ValueError for a result that does not fit."""
        recorded = self.in_graph(other)
        result = operation(self, other)
        if (result.shape, result.device) != (self.shape, self.device) or "biuf".index(result.dtype.kind) > "biuf".index(
            self.dtype.kind
        ):
            mine, came = (f"{x.dtype} {x.shape} on {x.device}" for x in (self, result))
            raise ValueError(f"{operation.__name__}: in place the tensor stays {mine}, and the result is {came}")
        if recorded:
            return result.to(self.dtype)
        self.array[...] = result.array
        return self

    def in_graph(self, other: Any) -> bool:
        """Whether ``self += other`` would be recorded.

        Errors: RuntimeError for a leaf: its own gradient would be lost.
        """
        if not mode.recording:
            return False
        if self._requires_grad and self.node is None:
            raise RuntimeError(
                "in place: a leaf that requires grad cannot be changed: do it under no_grad(), or write a = a + b"
            )
        return self._requires_grad or (is_tensor(other) and other._requires_grad)

    # Comparisons and masks have no gradient.

    def __invert__(self) -> Any:
        return without_gradient(operator.invert, self)

    def __and__(self, other: Any) -> Any:
        return without_gradient(operator.and_, *operands("and", self, other))

    def __or__(self, other: Any) -> Any:
        return without_gradient(operator.or_, *operands("or", self, other))

    def __eq__(self, other: Any) -> Any:  # type: ignore[override]
        if not comparable(other):
            return NotImplemented
        return without_gradient(operator.eq, *operands("eq", self, other))

    def __ne__(self, other: Any) -> Any:  # type: ignore[override]
        if not comparable(other):
            return NotImplemented
        return without_gradient(operator.ne, *operands("ne", self, other))

    def __lt__(self, other: Any) -> Any:
        return without_gradient(operator.lt, *operands("lt", self, other))

    def __le__(self, other: Any) -> Any:
        return without_gradient(operator.le, *operands("le", self, other))

    def __gt__(self, other: Any) -> Any:
        return without_gradient(operator.gt, *operands("gt", self, other))

    def __ge__(self, other: Any) -> Any:
        return without_gradient(operator.ge, *operands("ge", self, other))
