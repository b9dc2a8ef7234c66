"""What a Tensor is asked for by name: what it is, and PyTorch's methods, each bound to its kernel pair in one line.

A class of its own so that tensor.py stays the engine. ``self.apply`` is the engine's ``apply`` itself.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from minires import kernels
from minires.engine.convert import as_tensor, axes_or_all, dims, make_array
from minires.kernels.backend import Array, check_device, device_of, to_device, to_numpy
from minires.kernels.shapes import check_axis


class Extreme(NamedTuple):
    """What max(dim) and min(dim) return."""

    values: Any
    indices: Any


def rebuild(kind: type, array: Array, requires_grad: bool, grad: Array | None, device: str) -> Any:
    """A leaf from what was copied or pickled.

    Errors: RuntimeError where it lay on a device that is not there now.
    """
    tensor = as_tensor(kind, to_device(array, device), requires_grad)
    tensor.grad = None if grad is None else tensor.wrap(to_device(grad, device))
    return tensor


class Methods:
    """Functions, reductions and shapes of a Tensor."""

    __slots__ = ()

    array: Array
    node: Any
    grad: Any
    _requires_grad: bool
    apply: Callable[..., Any]  # the engine's own, of tensor.py
    wrap: Callable[..., Any]

    def floating(self) -> Any:
        """Itself, or as float32 where it holds integers, for functions that have no integer result."""
        return self if self.array.dtype.kind == "f" else self.to(np.dtype("float32"))

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

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Set requires_grad, and return this tensor."""
        self.requires_grad = requires_grad
        return self

    @property
    def is_leaf(self) -> bool:
        """True for a tensor that was given, not computed: where backward() leaves .grad."""
        return self.node is None

    @property
    def grad_fn(self) -> Any:
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
    def data(self) -> Any:
        """The same memory without the graph; assigning to it replaces the values."""
        return self.wrap(self.array)

    @data.setter
    def data(self, value: Any) -> None:
        array = value.array if hasattr(value, "array") else make_array(value, self.dtype, self.device)
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

    def detach(self) -> Any:
        """The same memory, cut from the graph."""
        return self.wrap(self.array)

    def clone(self) -> Any:
        """A copy that the gradient flows through."""
        return self.apply(kernels.convert_forward, kernels.convert_backward, self, dtype=self.dtype)

    def retain_grad(self) -> None:
        """Ask backward() to leave .grad on this tensor, although it was computed.

        Errors: RuntimeError for a tensor that no gradient flows to.
        """
        if not self._requires_grad:
            raise RuntimeError("retain_grad: no gradient flows to this tensor (requires_grad is False)")
        if self.node is not None:
            self.node.retained = weakref.ref(self)

    # ---- Another place, another kind of number ---------------------------------------------------------------------

    def to(self, *where: Any, dtype: Any = None, device: str | None = None) -> Any:
        """This tensor with another dtype, on another device, or both: ``to("cuda")``, ``to(float64)``, ``to(other)``.

        Returns: itself where nothing changes.
        Errors: RuntimeError for a device that is not there; TypeError for what is neither.
        """
        for one in where:
            if hasattr(one, "array"):
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
        return self.apply(kernels.convert_forward, kernels.convert_backward, self, dtype=dtype, device=device)

    # ---- As Python sees it ----------------------------------------------------------------------------------------

    def item(self) -> float | int | bool:
        """The value of a tensor that holds exactly one, as a Python number.

        Errors: ValueError where it holds another number of values.
        """
        if self.array.size != 1:
            raise ValueError(f"item: expected a tensor with one value, got shape {self.shape}")
        return self.array.item()

    def __repr__(self) -> str:
        extra = "" if self.device == "cpu" else ', device="cuda"'
        if self.node is not None:
            extra += f", grad_fn={self.node.operation}"
        elif self._requires_grad:
            extra += ", requires_grad=True"
        name = type(self).__name__
        if self.array.size <= 6:
            values = to_numpy(self.array).tolist()
            if self.dtype.kind == "f":
                values = np.array2string(to_numpy(self.array), separator=", ", precision=4, max_line_width=200)
                values = values.replace("\n", "")
            dtype = "" if str(self.array.dtype) in ("float32", "int64", "bool") else f", dtype={self.dtype}"
            return f"{name}({values}{dtype}{extra})"
        style = ".4g" if self.dtype.kind == "f" else ""
        first = ", ".join([format(value, style) for value in to_numpy(self.array.reshape(-1)[:3]).tolist()])
        return f"{name}(shape={self.shape}, dtype={self.dtype}, values=[{first}, ...]{extra})"

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len: a tensor without axes has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return iter([self[i] for i in range(len(self))])

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.kind == "f":
            raise TypeError(f"index: only an integer tensor can be an index, this is {self.dtype}")
        return int(self.item())

    def __format__(self, style: str) -> str:
        return format(self.item(), style) if style else repr(self)

    def __deepcopy__(self, memo: dict) -> Any:
        self.refuse_copy("copied")
        grad = None if self.grad is None else self.grad.array.copy()
        return rebuild(type(self), self.array.copy(), self._requires_grad, grad, self.device)

    def __reduce__(self) -> tuple:
        self.refuse_copy("pickled")
        grad = None if self.grad is None else to_numpy(self.grad.array)
        return rebuild, (type(self), to_numpy(self.array), self._requires_grad, grad, self.device)

    def refuse_copy(self, what: str) -> None:
        """Errors: RuntimeError for a tensor that was computed: its graph would be copied too."""
        if self.node is not None:
            raise RuntimeError(f"a tensor that was computed cannot be {what} with its graph: use detach() first")

    # ---- Its sizes and values, and as what -------------------------------------------------------------------------

    def size(self, dim: int | None = None) -> tuple[int, ...] | int:
        """The shape, or the size of one axis."""
        return self.shape if dim is None else self.shape[check_axis(dim, self.ndim, "size")]

    def dim(self) -> int:
        """The number of axes."""
        return self.array.ndim

    def numel(self) -> int:
        """The number of values."""
        return int(self.array.size)

    def tolist(self) -> Any:
        """The values as nested Python lists."""
        return self.array.tolist()

    def cpu(self) -> Any:
        """On the CPU."""
        return self.to("cpu")

    def cuda(self) -> Any:
        """On the GPU."""
        return self.to("cuda")

    def float(self) -> Any:
        """As float32."""
        return self.to(np.dtype("float32"))

    def double(self) -> Any:
        """As float64."""
        return self.to(np.dtype("float64"))

    def long(self) -> Any:
        """As int64."""
        return self.to(np.dtype("int64"))

    # ---- Functions -------------------------------------------------------------------------------------------------

    def exp(self) -> Any:
        """e to the power of each value."""
        return self.apply(kernels.exp_forward, kernels.exp_backward, self.floating())

    def log(self) -> Any:
        """The natural logarithm of each value."""
        return self.apply(kernels.log_forward, kernels.log_backward, self.floating())

    def sqrt(self) -> Any:
        """The square root of each value."""
        return self.apply(kernels.sqrt_forward, kernels.sqrt_backward, self.floating())

    def abs(self) -> Any:
        """The absolute value of each value."""
        return abs(self)

    def clamp(self, min: float | None = None, max: float | None = None) -> Any:
        """Each value held between two bounds."""
        bounds = [bound.item() if hasattr(bound, "item") else bound for bound in (min, max)]
        whole = all(isinstance(bound, (int, type(None))) for bound in bounds)
        x = self if whole else self.floating()
        return self.apply(kernels.clip_forward, kernels.clip_backward, x, low=bounds[0], high=bounds[1])

    def relu(self) -> Any:
        """max(x, 0)."""
        return self.apply(kernels.relu_forward, kernels.relu_backward, self)

    def sigmoid(self) -> Any:
        """1 / (1 + e^-x)."""
        return self.apply(kernels.sigmoid_forward, kernels.sigmoid_backward, self.floating())

    def tanh(self) -> Any:
        """The hyperbolic tangent."""
        return self.apply(kernels.tanh_forward, kernels.tanh_backward, self.floating())

    def sum(self, dim: Any = None, keepdim: bool = False) -> Any:
        """The sum, of all or along dim (an int or several)."""
        return self.apply(kernels.sum_forward, kernels.sum_backward, self, axis=axes_or_all(dim), keepdims=keepdim)

    def mean(self, dim: Any = None, keepdim: bool = False) -> Any:
        """The mean, of all or along dim (an int or several)."""
        return self.apply(kernels.mean_forward, kernels.mean_backward, self, axis=axes_or_all(dim), keepdims=keepdim)

    def var(self, dim: Any = None, correction: int = 1, keepdim: bool = False) -> Any:
        """The variance, of all or along dim; correction 1 divides by n - 1, correction 0 by n."""
        return self.apply(
            kernels.var_forward,
            kernels.var_backward,
            self,
            axis=axes_or_all(dim),
            keepdims=keepdim,
            correction=correction,
        )

    def amax(self, dim: Any = None, keepdim: bool = False) -> Any:
        """The largest value, of all or along dim (an int or several)."""
        return self.apply(kernels.amax_forward, kernels.amax_backward, self, axis=axes_or_all(dim), keepdims=keepdim)

    def amin(self, dim: Any = None, keepdim: bool = False) -> Any:
        """The smallest value, of all or along dim (an int or several)."""
        return self.apply(kernels.amin_forward, kernels.amin_backward, self, axis=axes_or_all(dim), keepdims=keepdim)

    def max(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """The largest value of all; with dim a pair (values, indices) along it."""
        if dim is None:
            return self.amax()
        return self.select(self.argmax(dim, keepdim=True), dim, keepdim)

    def min(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """The smallest value of all; with dim a pair (values, indices) along it."""
        if dim is None:
            return self.amin()
        return self.select(self.argmin(dim, keepdim=True), dim, keepdim)

    def select(self, index: Any, dim: int, keepdim: bool) -> Extreme:
        """The values at an index along dim, and the index."""
        values = self.apply(kernels.select_forward, kernels.select_backward, self, index=index.array, axis=dim)
        if keepdim:
            return Extreme(values.unsqueeze(dim), index)
        return Extreme(values, index.squeeze(dim))

    def argmax(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """Where the largest value is, of all (in row-major order) or along dim."""
        return self.wrap(self.array.argmax(axis=self.line(dim, "argmax"), keepdims=keepdim))

    def argmin(self, dim: int | None = None, keepdim: bool = False) -> Any:
        """Where the smallest value is, of all (in row-major order) or along dim."""
        return self.wrap(self.array.argmin(axis=self.line(dim, "argmin"), keepdims=keepdim))

    def line(self, dim: int | None, operation: str) -> int | None:
        """A dim to look along, checked. Errors: IndexError for one that is not there; ValueError for an empty one."""
        axis = None if dim is None else check_axis(dim, self.ndim, operation)
        if (self.array.size if axis is None else self.shape[axis]) == 0:
            raise ValueError(f"{operation}: nothing to look at, the shape is {self.shape}")
        return axis

    # ---- Shapes ----------------------------------------------------------------------------------------------------

    def reshape(self, *shape: Any) -> Any:
        """The same values in another shape; one size may be -1."""
        shape = dims(*shape)
        return self.apply(kernels.reshape_forward, kernels.reshape_backward, self, shape=shape)

    view = reshape

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Any:
        """Axes start_dim to end_dim as one."""
        if self.ndim == 0:
            return self.reshape(1).flatten(start_dim, end_dim)
        first = check_axis(start_dim, self.ndim, "flatten")
        last = check_axis(end_dim, self.ndim, "flatten")
        if first > last:
            raise ValueError(f"flatten: start_dim {start_dim} lies after end_dim {end_dim}")
        joined = math.prod(self.shape[first : last + 1])
        return self.reshape(*self.shape[:first], joined, *self.shape[last + 1 :])

    def squeeze(self, dim: Any = None) -> Any:
        """Without the axes of size 1, or without those of dim (an int or several) that have size 1."""
        if dim is None:
            axes = range(self.ndim)
        else:
            axes = [check_axis(d, self.ndim, "squeeze") for d in (dim if isinstance(dim, (list, tuple)) else (dim,))]
        return self.reshape(tuple([n for i, n in enumerate(self.shape) if n != 1 or i not in axes]))

    def unsqueeze(self, dim: int) -> Any:
        """With a new axis of size 1 at dim."""
        place = check_axis(dim, self.ndim + 1, "unsqueeze")
        return self.reshape(*self.shape[:place], 1, *self.shape[place:])

    def permute(self, *axes: Any) -> Any:
        """The axes in another order."""
        return self.apply(kernels.permute_forward, kernels.permute_backward, self, axes=dims(*axes))

    def transpose(self, dim0: int, dim1: int) -> Any:
        """Two axes exchanged."""
        axes = list(range(self.ndim))
        dim0, dim1 = check_axis(dim0, self.ndim, "transpose"), check_axis(dim1, self.ndim, "transpose")
        axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
        return self.permute(axes)

    @property
    def T(self) -> Any:
        """A matrix transposed (all axes in reverse order)."""
        return self.permute(tuple(range(self.ndim))[::-1])

    def expand(self, *shape: Any) -> Any:
        """Repeated along axes of size 1 and along new leading axes; -1 keeps a size."""
        return self.apply(kernels.expand_forward, kernels.expand_backward, self, shape=dims(*shape))
