"""The memory of a computation: Nodes, the switch that records them, and the walk back through them.

A Node knows the kernel's backward, the cache that its forward kept, and its parents. A parent is the Node that computed
the input, the leaf Tensor that the input is, or None where no gradient is wanted. Holding Nodes and not Tensors lets
the arrays in between go as soon as no cache needs them.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, zip_longest
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from minires.engine.values import in_our_words
from minires.kernels.backend import Array, array_module, device_of

if TYPE_CHECKING:
    import weakref

    from minires.engine.tensor import Tensor
    from minires.nn.module import Module

CO_GENERATOR = 0x20  # inspect.CO_GENERATOR, without importing inspect

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class Watcher:
    """Sees every operation of its thread while it stands in ``mode.watchers``: the base of the tools in debug/."""

    def before_forward(self, operation: str, inputs: tuple, options: dict[str, Any]) -> None:
        """A kernel is about to run on these Tensors."""

    def after_forward(self, result: Tensor, cache: Any, backward: Callable, inputs: tuple) -> None:
        """A kernel has run. ``result.node`` is None where nothing was recorded; some inputs may be None."""

    def before_backward(self, node: Node) -> None:
        """``node.backward(node.grad, node.cache)`` is about to run."""

    def after_backward(self, node: Node, grads: Any) -> None:
        """It has run, and returned these gradients (one array or a tuple)."""


class Mode(threading.local):
    """What holds for the operations of one thread."""

    def __init__(self) -> None:
        self.recording = True  # whether a Node is hung on each result
        self.modules: list[Module] = []  # the modules that are being called, the outermost first
        self.watchers: tuple[Watcher, ...] = ()


mode = Mode()


def is_grad_enabled() -> bool:
    """True unless inside no_grad()."""
    return mode.recording


class no_grad:
    """Inside ``with no_grad():`` nothing is recorded and no cache is kept. Nests; also a decorator, ``@no_grad()``.

    Errors: TypeError as a decorator without brackets, or of a generator function.
    """

    recording = False

    def __init__(self, function: None = None) -> None:
        if function is not None:
            raise TypeError(f"write @{type(self).__name__}() with brackets")
        self.before: list[bool] = []

    def __enter__(self) -> None:
        self.before.append(mode.recording)
        mode.recording = self.recording

    def __exit__(self, *error: object) -> None:
        mode.recording = self.before.pop()

    def __call__(self, function: Callable) -> Callable:
        if function.__code__.co_flags & CO_GENERATOR:
            raise TypeError(f"{type(self).__name__} cannot decorate a generator: write the with inside it")
        recording = self.recording

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before = mode.recording
            mode.recording = recording
            try:
                return function(*args, **kwargs)
            finally:
                mode.recording = before

        return wrapped


class enable_grad(no_grad):
    """Recording again, inside a no_grad(). Nests; also a decorator, ``@enable_grad()``."""

    recording = True


class set_grad_enabled(no_grad):
    """Switches recording on or off at once, and back where it is used as ``with set_grad_enabled(training):``."""

    def __init__(self, enabled: bool) -> None:
        self.recording = bool(enabled)
        self.before = [mode.recording]
        mode.recording = self.recording

    def __enter__(self) -> None:
        mode.recording = self.recording

    def __call__(self, function: Callable) -> Callable:
        mode.recording = self.before.pop()  # as a decorator it switches only inside the function
        return super().__call__(function)


@dataclass(slots=True, eq=False, repr=False)
class Node:
    """One recorded operation."""

    backward: Callable  # the kernel: backward(dy, cache)
    cache: Any  # what the kernel's forward kept; None once freed
    parents: tuple[Node | Tensor | None, ...]  # one an input
    parent_nodes: tuple[Node, ...]  # those of them that were computed
    where: tuple[str, int]  # file and line of the first frame outside MiniRes
    modules: tuple[Module, ...]  # that were being called, the outermost first
    shape: tuple[int, ...]  # of the result
    grad: Array | None = None  # only while backward() runs
    freed: bool = False
    retained: weakref.ref[Tensor] | None = None  # the tensor that asked for retain_grad()
    number: int = field(default_factory=count().__next__)  # later Nodes have larger ones

    @property
    def operation(self) -> str:
        """The operation's name, such as ``conv2d``."""
        return self.backward.__name__.removesuffix("_backward")

    @property
    def module(self) -> str:
        """The dotted name of the module that made it, such as ``layer2.0.conv1``; "" outside every module."""
        return module_path(self.modules)

    def __repr__(self) -> str:
        inside = f" by {self.module}" if self.module else ""
        return f"<{self.operation} made{inside} at {self.where[0]}, line {self.where[1]}>"


number_of, parent_nodes_of, freed_of = attrgetter("number"), attrgetter("parent_nodes"), attrgetter("freed")

HOST = (np.ndarray, np.generic)  # what lies on the CPU
MISSING = object()  # stands for an input without a gradient, and for a gradient without an input


def users_line() -> tuple[str, int]:
    """File and line of the first frame outside MiniRes."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(PACKAGE) and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def module_path(modules: Sequence[Module]) -> str:
    """The dotted name of the innermost of the modules that are being called, as the outermost knows it."""
    names = []
    for i in range(1, len(modules)):
        for name, module in modules[i - 1].named_modules():
            if module is modules[i]:
                names.append(name)
                break
        else:
            names.append(type(modules[i]).__name__)  # made on the way, and no part of the other
    return ".".join(names)


def topological_order(last: Node) -> list[Node]:
    """Every Node behind ``last``, the newest first: each before its parents, which were there before it was made.

    The same program gives the same order. A whole generation of Nodes a step, so that a debugger is through it soon.
    Errors: RuntimeError for a Node whose cache an earlier backward() has freed.
    """
    reached, fresh = {last}, {last}
    while fresh:
        fresh = set(chain.from_iterable(map(parent_nodes_of, fresh))) - reached
        reached |= fresh
    if True in map(freed_of, reached):
        node = max(filter(freed_of, reached), key=number_of)
        raise RuntimeError(
            f"backward: the cache of {node!r} was freed by an earlier backward(): "
            "run the forward again, or call the first backward(retain_graph=True)"
        )
    return sorted(reached, key=number_of, reverse=True)


def watched_backward(node: Node) -> Any:
    """Run a node's backward while watchers look on, and leave its own gradient where retain_grad() asked for it."""
    for watcher in mode.watchers:
        watcher.before_backward(node)
    grads = node.backward(node.grad, node.cache)
    for watcher in mode.watchers:
        watcher.after_backward(node, grads)
    tensor = None if node.retained is None else node.retained()
    if tensor is not None:
        tensor.accumulate_grad(node.grad)
    return grads


def pass_on(node: Node, grads: Any, leaves: dict[int, tuple[Tensor, Array]], retain_graph: bool) -> None:
    """Hand the gradients that a node's backward returned to its parents, adding to what they have, and free the node.

    What arrives at leaves is kept in ``leaves`` until the whole walk has succeeded. An optional input that was left out
    (a bias) has no parent, and its gradient is None.
    Errors: RuntimeError where a kernel returned another number of gradients than it had inputs, or one of another shape
        or on another device.
    """
    for parent, grad in zip_longest(node.parents, grads if isinstance(grads, tuple) else (grads,), fillvalue=MISSING):
        # Never in place: the first gradient may be another parent's too.
        if isinstance(parent, Node) and getattr(grad, "shape", None) == parent.shape:
            parent.grad = grad if parent.grad is None else add(parent.grad, grad)
        elif getattr(grad, "shape", None) == getattr(parent, "shape", MISSING):
            if isinstance(grad, HOST) != isinstance(parent.array, HOST):
                refuse_gradient(node, grads, parent, grad)  # on another device
            leaves[id(parent)] = (parent, add(leaves[id(parent)][1], grad) if id(parent) in leaves else grad)
        elif parent is not None and (grad is not None or parent is not MISSING):
            refuse_gradient(node, grads, parent, grad)
    # Let go of what is used, unless it was asked for again.
    node.cache, node.grad, node.freed = node.cache if retain_graph else None, None, not retain_graph


def refuse_gradient(node: Node, grads: Any, parent: Any, grad: Any) -> None:
    """Errors: RuntimeError for a gradient that no input waits for, an input without one, another shape or device."""
    grads = grads if isinstance(grads, tuple) else (grads,)
    if parent is MISSING or grad is MISSING:
        raise RuntimeError(f"{node.operation}_backward gave {len(grads)} gradients for {len(node.parents)} inputs")
    if grad is None:
        i = list(map(id, node.parents)).index(id(parent))
        came = f"None as gradient {i}, expected one of shape {parent.shape}: is a return missing?"
        raise RuntimeError(f"{node.operation}_backward gave {came} (zeros, where the result does not depend on it)")
    i = list(map(id, grads)).index(id(grad))
    came = getattr(grad, "shape", type(grad).__name__)
    if came == parent.shape:
        came = f"on {device_of(grad)}, expected {parent.device}: take xp from dy, array_module(dy)"
        raise RuntimeError(f"{node.operation}_backward gave gradient {i} {came}")
    raise RuntimeError(f"{node.operation}_backward gave gradient {i} of shape {came}, expected {parent.shape}")


def add(a: Array, b: Array) -> Array:
    """a + b in a new array that lies in memory as ``a`` does: CuPy's own ``+`` would lay it out in row-major order."""
    if a.dtype != b.dtype:
        return a + b
    xp = array_module(a)
    return xp.add(a, b, out=xp.empty_like(a))


def explained(error: Exception, operation: str, inputs: Iterable[Tensor]) -> Exception:
    """An exception of a kernel's forward, with a note: which operation, on what, made where.

    Returns: the exception itself, or one in better words where NumPy's own do not name the operation.
    """
    inputs = tuple(inputs)
    error = in_our_words(error, operation, inputs)
    shapes = [str(x.shape) for x in inputs]
    path, (file, line) = module_path(mode.modules), users_line()
    inside = f" by {path}" if path else ""
    add_note(error, f"in the forward of {operation} of {', '.join(shapes)}, called{inside} at {file}, line {line}")
    return error


def add_note(error: Exception, note: str) -> None:
    """Attach a line to an exception (in its message before Python 3.11, which has no notes)."""
    if hasattr(error, "add_note"):
        error.add_note(note)
    elif error.args and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]}\n{note}", *error.args[1:])


def name_of(forward: Callable) -> str:
    """The operation's name, as ``conv2d``, from its kernel's."""
    return forward.__name__.removesuffix("_forward")


def one_device(operation: str, came: str) -> str:
    """What is said about tensors that do not lie together."""
    return f'{operation}: all tensors must be on one device, got {came}: move one with .to("cuda") or .to("cpu")'
