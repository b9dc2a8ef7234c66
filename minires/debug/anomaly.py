"""detect_anomaly(): stop at the first value that is not finite, and at a cache that was changed since its forward.

What counts as not finite. NaN and +inf always. -inf too, but where it was put on purpose: an input of the operation
holds -inf already, or an option is -inf. So masked logits pass (``where(mask, logits, -inf)``, then softmax or
cross_entropy), and log(0) does not. The -inf with which max pooling pads never leaves its kernel. In backward nothing
infinite passes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from minires.debug.context import Watching, at, input_names, made, owned_name
from minires.engine.armour import users_line
from minires.engine.modes import mode, module_path
from minires.engine.tensor import Node
from minires.kernels.backend import Array, all_finite, array_module, is_array, to_numpy
from minires.nn import Parameter


class Anomaly(RuntimeError):
    """What detect_anomaly() found."""


class Statistics(NamedTuple):
    """An array in numbers: min, max and mean are those of its finite values."""

    shape: tuple[int, ...]
    min: float
    max: float
    mean: float
    nan: int
    plus_inf: int
    minus_inf: int

    @property
    def finite(self) -> bool:
        """Whether there is neither NaN nor infinity."""
        return not (self.nan or self.plus_inf or self.minus_inf)

    def __str__(self) -> str:
        shape = "scalar" if self.shape == () else str(self.shape)
        bad = f"{self.nan} NaN, {self.plus_inf} inf, {self.minus_inf} -inf"
        return f"{shape}, min {self.min:.4g}, max {self.max:.4g}, mean {self.mean:.4g}, {bad}"


def statistics(array: Array) -> Statistics:
    """Shape, min, max, mean, and how many values are not finite."""
    values = to_numpy(array)
    if values.dtype.kind != "f":
        values = values.astype(np.float64)
    finite = values[np.isfinite(values)].astype(np.float64)
    least, most, mean = (finite.min(), finite.max(), finite.mean()) if finite.size else (math.nan,) * 3
    nan, plus, minus = np.isnan(values).sum(), np.isposinf(values).sum(), np.isneginf(values).sum()
    return Statistics(values.shape, float(least), float(most), float(mean), int(nan), int(plus), int(minus))


def arrays_in(cache: Any, name: str = "cache") -> Iterator[tuple[str, Array]]:
    """The arrays of a cache with their names, as ``cache.x_hat``; in tuples, lists and dicts too."""
    found: list[tuple[str, Array]] = []
    stack = [(name, cache)]
    while stack:
        name, value = stack.pop()
        if is_array(value):
            found.append((name, value))
        elif isinstance(value, dict):
            stack.extend((f"{name}[{key!r}]", value[key]) for key in reversed(value))
        elif hasattr(value, "_fields"):
            stack.extend((f"{name}.{field}", getattr(value, field)) for field in reversed(value._fields))
        elif isinstance(value, (tuple, list)):
            stack.extend((f"{name}[{i}]", value[i]) for i in reversed(range(len(value))))
    return iter(found)


def checksum(array: Array) -> int:
    """A number that changes when a value does. Read in the order of memory, so that no copy is made."""
    x = to_numpy(array)
    axes = sorted(range(x.ndim), key=lambda axis: -x.strides[axis])
    return zlib.crc32(np.ascontiguousarray(x.transpose(axes)).view(np.uint8).reshape(-1) if x.size else b"")


def share_memory(a: Array, b: Array) -> bool:
    """Whether two arrays may lie in the same memory."""
    xp = array_module(a)
    return xp is array_module(b) and hasattr(xp, "may_share_memory") and bool(xp.may_share_memory(a, b))


class Kept(NamedTuple):
    """A Node's cache as its forward left it."""

    node: Node
    checksums: dict[str, int]
    holders: dict[str, list[str]]  # by field: which input or result of the operation lies in that memory


class detect_anomaly(Watching):
    """Inside ``with debug.detect_anomaly():`` the first value that is not finite is an error, in forward or backward.

    It names the operation, the module, the line and the statistics of what went in. An array that a backward needs and
    that was changed in place since its forward is an error too, and it says who holds that memory. Every value is
    looked at several times: for debugging, not for training.
    Args: check_nan, False to look for changes in place only, as PyTorch's.
    Errors: Anomaly, a RuntimeError.
    Source: torch.autograd.detect_anomaly, which looks at the backward only.
    """

    def __init__(self, check_nan: bool = True) -> None:
        self.check_nan = check_nan
        self.seen: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}
        self.kept: dict[int, Kept] = {}
        self.done: Node | None = None  # whose backward ran last: freed by now, if it was not retained

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.kept.clear()
        self.done = None

    # ---- Forward ---------------------------------------------------------------------------------------------------

    def before_forward(self, operation: str, inputs: tuple, options: dict[str, Any]) -> None:
        """Remember the inputs: of batch norm, the running statistics come only here."""
        self.seen, self.options = inputs, options

    def after_forward(self, result: Any, cache: Any, backward: Callable, inputs: tuple) -> None:
        """Look at the result, and remember what backward will need."""
        named = [(name, x) for name, x in zip(input_names(backward, inputs), inputs, strict=True) if x is not None]
        known = {id(x) for _, x in named}
        more = [x for x in self.seen if id(x) not in known]
        if "batch_norm" in backward.__name__ and len(more) == 2:
            named += zip(("running_mean", "running_var"), more, strict=True)
        if self.check_nan and not all_finite(result.array):
            self.look_at_result(result, backward, named)
        if result.node is not None:
            self.keep(result, inputs, named)
        self.seen, self.options = (), {}

    def look_at_result(self, result: Any, backward: Callable, named: list[tuple[str, Any]]) -> None:
        """Errors: Anomaly for a result that is not finite, if that was not asked for."""
        came = {name: statistics(x.array) for name, x in named}
        y = statistics(result.array)
        masked = any(came[name].minus_inf for name, x in named if not isinstance(x, Parameter)) or -math.inf in [
            x for x in self.options.values() if number(x)
        ]
        if not y.nan and not y.plus_inf and masked:
            return
        operation = backward.__name__.removesuffix("_backward")
        where = at(operation, module_path(mode.modules), users_line())
        lines = [f"forward of {where}: the result is not finite: {y}"]
        for name, x in named:
            owner = owned_name(x, mode.modules)
            lines.append(f"  {name}{f' ({owner})' if owner else ''}: {came[name]}")
        bad = [(name, x) for name, x in named if not came[name].finite]
        for name, x in bad:
            lines.append(f"{name} was not finite already, so the cause lies one step earlier: {origin(x)}")
        if not bad:
            lines.append(f"all that went in is finite: {operation} made it")
        raise Anomaly("\n".join(lines))

    def keep(self, result: Any, inputs: tuple, named: list[tuple[str, Any]]) -> None:
        """Remember what a Node's cache holds, and which tensors lie in the same memory."""
        node = result.node
        checksums, holders = {}, {}
        for field, array in arrays_in(node.cache):
            checksums[field] = checksum(array)
            of = [holder(name, x) for name, x in named if share_memory(array, x.array)]
            holders[field] = of + (["its result"] if share_memory(array, result.array) else [])
        self.kept[node.number] = Kept(node, checksums, holders)

    # ---- Backward --------------------------------------------------------------------------------------------------

    def before_backward(self, node: Node) -> None:
        """Compare the cache with what the forward left, and look at the gradient that arrived."""
        if self.done is not None and self.done.freed:
            self.kept.pop(self.done.number, None)
        kept = self.kept.get(node.number)
        if kept is not None:
            for field, array in arrays_in(node.cache):
                if field in kept.checksums and checksum(array) != kept.checksums[field]:
                    raise Anomaly(self.changed(kept, field, array))
        if self.check_nan and not all_finite(node.grad):
            raise Anomaly(
                f"backward of {made(node)}: the gradient dy that arrived is not finite: {statistics(node.grad)}\n"
                "what flowed here was finite in each part: it was given to backward(), or the parts add up to too much"
            )

    def after_backward(self, node: Node, grads: Any) -> None:
        """Look at the gradients."""
        self.done = node
        grads = grads if isinstance(grads, tuple) else (grads,)
        if not self.check_nan or all([all_finite(grad) for grad in grads]):
            return
        names = input_names(node.backward, grads)
        lines = [f"backward of {made(node)}: a gradient is not finite"]
        for i in range(len(grads)):
            if not all_finite(grads[i]):
                owner = owned_name(node.parents[i], node.modules) if i < len(node.parents) else ""
                lines.append(f"  gradient of {names[i]}{f' ({owner})' if owner else ''}: {statistics(grads[i])}")
        lines.append("what went in:")
        lines.append(f"  dy: {statistics(node.grad)}")
        for field, array in arrays_in(node.cache):
            lines.append(f"  {field}: {statistics(array)}")
            if not all_finite(array):
                lines.append(f"{field}, which the forward kept, was not finite already: the cause lies in the forward")
        raise Anomaly("\n".join(lines))

    def changed(self, kept: Kept, field: str, array: Array) -> str:
        """The message about an array that is not what it was."""
        held = list(kept.holders[field])
        for other in self.kept.values():
            if other.node is not kept.node and other.node.cache is not None:
                for name, theirs in arrays_in(other.node.cache):
                    if share_memory(array, theirs):
                        held.append(f"{name} of {made(other.node)}")
        who = "; ".join(held) if held else "its cache alone"
        return (
            f"backward of {made(kept.node)}: {field} {array.shape} was changed in place since the forward, and the "
            f"gradient would be silently wrong\n  this memory is also held by: {who}\n"
            "write a = a + b instead of changing it, or change it after backward(); "
            "after an optimizer's step run the forward again"
        )


def number(x: Any) -> bool:
    """Whether an option is a plain number."""
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def holder(name: str, tensor: Any) -> str:
    """Who an input is: a parameter by its name, what was computed, or what was given."""
    owner = owned_name(tensor, mode.modules)
    if owner:
        return f"{owner} (input {name})"
    return f"its input {name}" if tensor.node is None else f"its input {name}, the result of {made(tensor.node)}"


def origin(tensor: Any) -> str:
    """Where an input that is not finite came from."""
    owner = owned_name(tensor, mode.modules)
    if owner:
        return f"{owner} holds such numbers: look at the step that changed it, or at what was loaded"
    if tensor.node is not None:
        return f"it was made by {made(tensor.node)}"
    return "it was given and not computed here: look at the data"
