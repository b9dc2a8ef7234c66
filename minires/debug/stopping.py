"""step() opens the debugger here, stop_before_backward() at a layer; watch() tells how a gradient grows."""

from __future__ import annotations

import math
import pdb
import sys
from types import FrameType
from typing import TYPE_CHECKING, Any

from minires import kernels
from minires.debug.context import Watching, made, owned_name
from minires.engine.convert import lookup
from minires.engine.modes import mode
from minires.engine.tensor import Node, Tensor
from minires.kernels.backend import Array

if TYPE_CHECKING:
    from minires.nn.module import Module


#: What step() does not stop in: checks, switches, conversions, the choice of NumPy or CuPy, and these themselves.
SKIPPED = (
    "minires.engine.armour",
    "minires.engine.modes",
    "minires.engine.convert",
    "minires.kernels.backend",
    "minires.kernels.checks",
    "minires.kernels.shapes",
    "minires.nn.checks",
    "numpy",
    "numpy.*",
    "cupy",
    "cupy.*",
    "collections",  # what makes a NamedTuple
    "namedtuple_*",
    "functools",
    "importlib*",
)


class Stepper(pdb.Pdb):
    """pdb that steps over SKIPPED, and does not stop once more where a function returns."""

    def __init__(self) -> None:
        super().__init__(skip=SKIPPED, nosigint=True)

    def user_return(self, frame: FrameType, return_value: Any) -> None:
        """No stop."""


def step() -> None:
    """Open pdb at the next line: ``s`` leads to the lines that a reader came for, and over armour and NumPy.

    Source: pdb.set_trace.
    """
    Stepper().set_trace(sys._getframe(1))


class Switch(Watching):
    """On from the call that makes it, until ``.stop()`` or the end of a ``with``."""

    def __init__(self) -> None:
        Watching.__enter__(self)

    def __enter__(self) -> Any:
        return self  # it is on already

    def stop(self) -> None:
        """Switch it off; twice does no harm."""
        self.__exit__()


class stop_before_backward(Switch):
    """Open the debugger right before the backward of what a module made: ``stop_before_backward("layer3.2.conv1")``.

    Of a module with parts, a block or a stage, where the backward enters it.

    In the frame that the debugger shows, ``dy``, ``cache`` and ``node`` are what is about to run. The name is that of a
    module, as the model that is called knows it, or of an operation, such as "cross_entropy".
    Errors: ValueError, when backward() runs, for a name that no model seen so far has; it names the nearest.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.models: dict[int, Module] = {}  # the outermost modules that were seen
        self.inside = False  # whether the backward before this one was of a part of the module
        self.known = hasattr(kernels, f"{name}_backward")  # whether something bears this name
        super().__init__()

    def before_forward(self, operation: str, inputs: tuple, options: dict[str, Any]) -> None:
        """Remember the model, and an operation of one's own: the name may be theirs."""
        self.known = self.known or operation == self.name
        if mode.modules:
            self.models[id(mode.modules[0])] = mode.modules[0]

    def before_backward(self, node: Node) -> None:
        """Stop here, if it is the one."""
        if node.modules:
            self.models[id(node.modules[0])] = node.modules[0]
        if not self.known:
            self.check_name()
        inside = f"{node.module}.".startswith(f"{self.name}.")
        if self.name == node.operation or node.module == self.name or (inside and not self.inside):
            self.inside = inside
            stopped(node)
        else:
            self.inside = inside

    def check_name(self) -> None:
        """Errors: ValueError for a name that none of the models has."""
        names = {name: None for model in self.models.values() for name, _ in model.named_modules() if name}
        if self.models:
            lookup(names, self.name, "module for stop_before_backward")
            self.known = True


def stopped(node: Node) -> None:
    """Where the debugger opens: ``node.backward(dy, cache)`` comes next, and "step" goes into it."""
    dy, cache = node.grad, node.cache  # noqa: F841  # for whoever looks
    breakpoint()
    return


class Watch(Switch):
    """What watch() returns: it prints until ``.stop()``."""

    def __init__(self, tensor: Tensor, name: str = "") -> None:
        self.tensor, self.name = tensor, name
        self.arrived: Array | None = None  # of the backward() that is running, for a leaf
        self.last: int | None = None  # the number of the Node that ran last: in one backward() they fall
        super().__init__()

    def before_backward(self, node: Node) -> None:
        """Notice where a new backward() begins."""
        if self.last is None or node.number >= self.last:
            self.arrived = None if self.tensor.grad is None else self.tensor.grad.array
        self.last = node.number

    def after_backward(self, node: Node, grads: Any) -> None:
        """Print what this Node adds to the tensor's gradient."""
        target = self.tensor if self.tensor.node is None else self.tensor.node
        total = self.arrived if self.tensor.node is None else self.tensor.node.grad
        grads = grads if isinstance(grads, tuple) else (grads,)
        for parent, grad in zip(node.parents, grads, strict=False):
            if parent is target and grad is not None:
                before, total = norm(total), grad if total is None else total + grad
                name = self.name or owned_name(self.tensor, node.modules).removeprefix("the parameter ") or "a tensor"
                print(f"grad of {name} {self.tensor.shape}: norm {before:.6g} -> {norm(total):.6g}, from {made(node)}")
        if self.tensor.node is None:
            self.arrived = total


def norm(array: Array | None) -> float:
    """The square root of the sum of squares; 0 for a gradient that is not there yet."""
    return 0.0 if array is None else math.sqrt(float((array.astype("float64") ** 2).sum()))


def watch(tensor: Tensor, name: str = "") -> Watch:
    """Print a line whenever the gradient of a tensor grows: its norm before and after, and which operation added to it.

    Args: tensor, a parameter, an input or something computed; name, what to call it (a parameter's own is found).
    Returns: an object whose ``.stop()`` ends it; it is a context manager too.
    Errors: RuntimeError for a tensor that no gradient flows to.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"watch: expected a Tensor, such as model.fc.weight, got {type(tensor).__name__}")
    if not tensor.requires_grad:
        raise RuntimeError("watch: no gradient flows to this tensor (requires_grad is False)")
    return Watch(tensor, name)
