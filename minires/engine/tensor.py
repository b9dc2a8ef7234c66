"""The engine: a Tensor is an array that remembers how it was made, and ``backward()`` walks that memory in reverse.

``apply`` is where an operation meets the graph: it runs a kernel on bare arrays, and ``record`` hangs a Node on the
result where a gradient is wanted. From a line of yours to the arithmetic: ``a + b`` -> ``apply`` -> ``add_forward``.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import numpy as np

from minires import kernels
from minires.engine.graph import (
    Node,
    add_note,
    explained,
    mode,
    name_of,
    one_device,
    pass_on,
    topological_order,
    users_line,
    watched_backward,
)
from minires.engine.methods import Methods
from minires.engine.operands import floating, operands, require_tensors, without_gradient
from minires.engine.values import comparable, dtype_beside, index_arrays, make_array
from minires.kernels.backend import Array, array_module, check_device, device_of, to_numpy

array_of = attrgetter("array")


def apply(forward: Callable, backward: Callable, *inputs: Tensor, **options: Any) -> Tensor:
    """Run a kernel on tensors, ``forward(*arrays, **options)``, and record it where a gradient is wanted.

    Args: forward and backward, a pair with the contract of ``minires.kernels``; inputs, Tensors on one device.
    Returns: a Tensor with the kernel's result.
    Errors: ValueError for inputs on two devices, and whatever the kernel raises.
    """
    try:
        if mode.watchers or len(set(map(type, map(array_of, inputs)))) > 1:
            announce_forward(forward, inputs, options)
        y, cache = forward(*map(array_of, inputs), **options)
    except Exception as error:
        require_tensors(name_of(forward), *inputs)
        raise explained(error, name_of(forward), inputs)  # noqa: B904  # the error itself, with a note
    return record(y, cache, backward, inputs)


def record(y: Array, cache: Any, backward: Callable, inputs: tuple[Tensor | None, ...]) -> Tensor:
    """The result of a kernel as a Tensor, with a Node on it where a gradient is wanted.

    Args: y and cache, what the kernel's forward returned; backward, its other half; inputs, the Tensors it ran on.
    Returns: a Tensor that shares y's memory.
    """
    result = Tensor.__new__(Tensor)
    result.array = y if isinstance(y, np.ndarray) else array_module(y).asarray(y)  # NumPy reduces to scalars
    result._requires_grad = False
    result.grad = None
    result.node = None
    if mode.recording and result.array.dtype.kind == "f":
        parents: list[Node | Tensor | None] = []
        nodes: list[Node] = []
        for x in inputs:
            if x is not None and x._requires_grad:
                parents.append(x if x.node is None else x.node)
                if x.node is not None:
                    nodes.append(x.node)
                result._requires_grad = True
            else:
                parents.append(None)
        if result._requires_grad:
            modules = tuple(mode.modules)
            where = users_line()
            result.node = Node(backward, cache, tuple(parents), tuple(nodes), where, modules, result.array.shape)
    if mode.watchers and backward is not wrap:
        for watcher in mode.watchers:
            watcher.after_forward(result, cache, backward, inputs)
    return result


def announce_forward(forward: Callable, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
    """Tell the watchers that a kernel is about to run. Errors: ValueError for inputs on two devices."""
    require_tensors(name_of(forward), *inputs)
    code = forward.__code__
    check_devices(name_of(forward), list(code.co_varnames[: code.co_argcount]), inputs)
    for watcher in mode.watchers:
        watcher.before_forward(name_of(forward), inputs, options)


def check_devices(operation: str, names: list[str], inputs: tuple[Tensor, ...]) -> None:
    """Errors: ValueError for an operation whose inputs lie on two devices."""
    if len({x.device for x in inputs}) > 1:
        names = names + [f"tensor {i}" for i in range(len(names), len(inputs))]
        came = [f"{name} {x.shape} on {x.device}" for name, x in zip(names, inputs, strict=False)]
        raise ValueError(one_device(operation, ", ".join(came)))


def wrap(array: Array) -> Tensor:
    """A Tensor around an array, sharing its memory, outside every graph."""
    return record(array, None, wrap, ())


def first_gradient(tensor: Tensor, gradient: Any) -> Array:
    """The gradient that backward() starts with, checked."""
    if gradient is None:
        if tensor.array.size != 1:
            raise RuntimeError(
                f"backward: a gradient can be left out only for a single value, this tensor has shape "
                f"{tensor.shape}: pass gradient=, or call .sum().backward()"
            )
        return (tensor.array**0).reshape(tensor.array.shape)  # 1, on the same device, of the same dtype
    dy = gradient.array if isinstance(gradient, Tensor) else make_array(gradient, tensor.dtype, tensor.device)
    if dy.shape != tensor.shape:
        raise ValueError(f"backward: gradient must have the tensor's shape {tensor.shape}, got {dy.shape}")
    if device_of(dy) != tensor.device:
        raise ValueError(f"backward: the tensor is on {tensor.device} and the gradient on {device_of(dy)}")
    return dy.astype(tensor.dtype, copy=False)


class Tensor(Methods):
    """An array with a memory of how it was made.

    Args: data, numbers, nested lists, an array or a Tensor (copied); requires_grad, whether backward() is to leave a
        gradient here; dtype, of NumPy (float32 where Python floats come, an array's own otherwise); device, "cpu" or
        "cuda".
    Errors: TypeError for data that is not numbers, or for integers with requires_grad; ValueError for ragged lists;
        RuntimeError for a device that is not there.
    """

    __slots__ = ("array", "_requires_grad", "grad", "node", "__weakref__")

    __array_priority__ = 1000  # numpy_array + tensor asks Tensor.__radd__

    array: Array
    grad: Tensor | None
    node: Node | None
    apply = staticmethod(apply)
    wrap = staticmethod(wrap)

    def __init__(self, data: Any, requires_grad: bool = False, dtype: Any = None, device: str | None = None):
        self.array = make_array(data, dtype, device)
        self._requires_grad = False
        self.grad = None
        self.node = None
        if requires_grad:
            self.requires_grad = True

    # ---- What it is ------------------------------------------------------------------------------------------------

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient flows to this tensor."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value and self.array.dtype.kind != "f":
            raise TypeError(f"requires_grad: only floating-point tensors can have a gradient, this is {self.dtype}")
        if not value and self.node is not None:
            raise RuntimeError("requires_grad: this tensor was computed; use detach() to cut it from the graph")
        self._requires_grad = bool(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set requires_grad, and return this tensor."""
        self.requires_grad = requires_grad
        return self

    @property
    def is_leaf(self) -> bool:
        """True for a tensor that was given, not computed: where backward() leaves .grad."""
        return self.node is None

    @property
    def grad_fn(self) -> Node | None:
        """The Node that made this tensor, None for a leaf."""
        return self.node

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of every axis."""
        return self.array.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.array.ndim

    @property
    def dtype(self) -> np.dtype:
        """The kind of number, as NumPy names it."""
        return self.array.dtype

    @property
    def device(self) -> str:
        """``"cpu"`` or ``"cuda"``."""
        return device_of(self.array)

    @property
    def data(self) -> Tensor:
        """The same memory without the graph; assigning to it replaces the values."""
        return wrap(self.array)

    @data.setter
    def data(self, value: Any) -> None:
        array = value.array if isinstance(value, Tensor) else make_array(value, self.dtype, self.device)
        mine, came = (f"{a.dtype} {a.shape} on {device_of(a)}" for a in (self.array, array))
        if mine != came:
            raise ValueError(f"data: expected {mine}, got {came}")
        self.array = array

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array: the same memory on the CPU, a copy from the GPU.

        Errors: RuntimeError where a gradient would be lost: use .detach().numpy().
        """
        if self._requires_grad:
            raise RuntimeError("numpy: this tensor requires grad, and NumPy would lose it: use .detach().numpy()")
        return to_numpy(self.array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.numpy()
        return np.array(array, dtype=dtype, copy=copy)

    __hash__ = object.__hash__

    # ---- The graph -------------------------------------------------------------------------------------------------

    def detach(self) -> Tensor:
        """The same memory, cut from the graph."""
        return wrap(self.array)

    def clone(self) -> Tensor:
        """A copy that the gradient flows through."""
        return apply(kernels.convert_forward, kernels.convert_backward, self, dtype=self.dtype)

    def retain_grad(self) -> None:
        """Ask backward() to leave .grad on this tensor, although it was computed.

        Errors: RuntimeError for a tensor that no gradient flows to.
        """
        if not self._requires_grad:
            raise RuntimeError("retain_grad: no gradient flows to this tensor (requires_grad is False)")
        if self.node is not None:
            self.node.retained = weakref.ref(self)

    def backward(self, gradient: Any = None, retain_graph: bool = False) -> None:
        """Leave in .grad of every leaf the gradient of this tensor, added to what is there.

        Args: gradient, of the loss with respect to this tensor, of its shape (1 where it is a single value);
            retain_graph, keep the caches so that backward() can be called again.
        Errors: RuntimeError for a tensor that no gradient flows to, for more than one value without a gradient, and
            for a graph whose caches are freed; ValueError for a gradient of another shape.
        """
        if self.node is None:
            if not self._requires_grad:
                raise RuntimeError("backward: no gradient flows to this tensor: no input of it had requires_grad=True")
            self.accumulate_grad(first_gradient(self, gradient))
            return
        order = topological_order(self.node)
        self.node.grad = first_gradient(self, gradient)
        leaves: dict[int, tuple[Tensor, Array]] = {}
        try:
            for node in order:
                if mode.watchers or node.retained is not None:
                    grads = watched_backward(node)
                else:
                    grads = node.backward(node.grad, node.cache)
                pass_on(node, grads, leaves, retain_graph)
            for leaf, grad in leaves.values():
                leaf.accumulate_grad(grad)
        except Exception as error:
            add_note(error, f"in the backward of {node!r}, whose result has shape {node.shape}")
            raise
        finally:
            for node in order:
                node.grad = None

    def accumulate_grad(self, grad: Array) -> None:
        """Add to .grad, which is this tensor's own memory: gradients that arrive may be shared."""
        if self.grad is None:
            self.grad = wrap(grad.astype(self.array.dtype, order="C"))
        else:
            self.grad = wrap(self.grad.array + grad)

    # ---- Another place, another kind of number ---------------------------------------------------------------------

    def to(self, *where: Any, dtype: Any = None, device: str | None = None) -> Tensor:
        """This tensor with another dtype, on another device, or both: ``to("cuda")``, ``to(float64)``, ``to(other)``.

        Returns: itself where nothing changes.
        Errors: RuntimeError for a device that is not there; TypeError for what is neither.
        """
        for one in where:
            if isinstance(one, Tensor):
                dtype, device = one.dtype, one.device
            elif isinstance(one, str) and (one == "cpu" or one.startswith("cuda")):
                device = one
            else:
                dtype = one
        try:
            dtype = self.dtype if dtype is None else np.dtype(dtype)
        except TypeError as error:
            raise TypeError(f'to: expected a dtype, "cpu", "cuda" or a tensor, got {where}') from error
        if dtype.kind not in "biuf":
            raise TypeError(f"to: expected a dtype of real numbers or booleans, got {dtype}")
        device = self.device if device is None else check_device(device)
        if dtype == self.dtype and device == self.device:
            return self
        return apply(kernels.convert_forward, kernels.convert_backward, self, dtype=dtype, device=device)

    # ---- Operators -------------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Tensor:
        return apply(kernels.add_forward, kernels.add_backward, *operands(self, other))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Tensor:
        return apply(kernels.subtract_forward, kernels.subtract_backward, *operands(self, other))

    def __rsub__(self, other: Any) -> Tensor:
        return apply(kernels.subtract_forward, kernels.subtract_backward, *operands(other, self))

    def __mul__(self, other: Any) -> Tensor:
        return apply(kernels.multiply_forward, kernels.multiply_backward, *operands(self, other))

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Tensor:
        self, other = floating("divide", *operands(self, other))
        return apply(kernels.divide_forward, kernels.divide_backward, self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        other, self = floating("divide", *operands(other, self))
        return apply(kernels.divide_forward, kernels.divide_backward, other, self)

    def __pow__(self, other: Any) -> Tensor:
        if isinstance(other, np.generic):
            other = other.item()
        if isinstance(other, (int, float)):
            base = self.to(dtype_beside(other, self.array.dtype))
            return apply(kernels.power_scalar_forward, kernels.power_scalar_backward, base, exponent=other)
        return apply(kernels.power_forward, kernels.power_backward, *operands(self, other))

    def __rpow__(self, other: Any) -> Tensor:
        return apply(kernels.power_forward, kernels.power_backward, *operands(other, self))

    def __matmul__(self, other: Any) -> Tensor:
        return apply(kernels.matmul_forward, kernels.matmul_backward, *operands(self, other))

    def __rmatmul__(self, other: Any) -> Tensor:
        return apply(kernels.matmul_forward, kernels.matmul_backward, *operands(other, self))

    def __neg__(self) -> Tensor:
        return apply(kernels.negative_forward, kernels.negative_backward, self)

    def __abs__(self) -> Tensor:
        return apply(kernels.absolute_forward, kernels.absolute_backward, self)

    def __getitem__(self, index: Any) -> Tensor:
        return apply(kernels.slice_forward, kernels.slice_backward, self, index=index_arrays(index, self.array))

    # In place: outside the graph (a parameter under no_grad) the memory itself changes; inside it, a new tensor.

    def __iadd__(self, other: Any) -> Tensor:
        return self.change(operator.add, other)

    def __isub__(self, other: Any) -> Tensor:
        return self.change(operator.sub, other)

    def __imul__(self, other: Any) -> Tensor:
        return self.change(operator.mul, other)

    def __itruediv__(self, other: Any) -> Tensor:
        return self.change(operator.truediv, other)

    def change(self, operation: Callable, other: Any) -> Tensor:
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
        return self._requires_grad or (isinstance(other, Tensor) and other._requires_grad)

    # Comparisons and masks have no gradient.

    def __invert__(self) -> Tensor:
        return without_gradient(operator.invert, self)

    def __and__(self, other: Any) -> Tensor:
        return without_gradient(operator.and_, *operands(self, other))

    def __or__(self, other: Any) -> Tensor:
        return without_gradient(operator.or_, *operands(self, other))

    def __eq__(self, other: Any) -> Tensor:  # type: ignore[override]
        if not comparable(other):
            return NotImplemented
        return without_gradient(operator.eq, *operands(self, other))

    def __ne__(self, other: Any) -> Tensor:  # type: ignore[override]
        if not comparable(other):
            return NotImplemented
        return without_gradient(operator.ne, *operands(self, other))

    def __lt__(self, other: Any) -> Tensor:
        return without_gradient(operator.lt, *operands(self, other))

    def __le__(self, other: Any) -> Tensor:
        return without_gradient(operator.le, *operands(self, other))

    def __gt__(self, other: Any) -> Tensor:
        return without_gradient(operator.gt, *operands(self, other))

    def __ge__(self, other: Any) -> Tensor:
        return without_gradient(operator.ge, *operands(self, other))
