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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minires.backend import Array, array_module, device_of
from minires.values import in_our_words

if TYPE_CHECKING:
    import weakref

    from minires.nn.module import Module
    from minires.tensor import Tensor

CO_GENERATOR = 0x20  # inspect.CO_GENERATOR, without importing inspect

PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


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
    where: tuple[str, int]  # file and line of the first frame outside MiniRes
    modules: tuple[Module, ...]  # that were being called, the outermost first
    shape: tuple[int, ...]  # of the result
    grad: Array | None = None  # only while backward() runs
    freed: bool = False
    retained: weakref.ref[Tensor] | None = None  # the tensor that asked for retain_grad()

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
    """Every Node behind ``last``, each before its parents; the same graph gives the same order.

    A depth-first walk with a stack of its own, so that a deep network never meets Python's recursion limit.
    Errors: RuntimeError for a Node whose cache an earlier backward() has freed.
    """
    order: list[Node] = []
    seen: set[int] = set()
    stack: list[tuple[Node, bool]] = [(last, False)]
    while stack:
        node, parents_done = stack.pop()
        if parents_done:
            order.append(node)
            continue
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.freed:
            raise RuntimeError(
                f"backward: the cache of {node!r} was freed by an earlier backward(): "
                "run the forward again, or call the first backward(retain_graph=True)"
            )
        stack.append((node, True))
        for parent in node.parents:
            if isinstance(parent, Node) and id(parent) not in seen:
                stack.append((parent, False))
    order.reverse()
    return order


def pass_on(node: Node, grads: Any, leaves: dict[int, tuple[Tensor, Array]]) -> None:
    """Hand the gradients that a node's backward returned to its parents, adding to what they have.

    What arrives at leaves is kept in ``leaves`` until the whole walk has succeeded. An optional input that was left out
    (a bias) has no parent, and its gradient is None.
    Errors: RuntimeError where a kernel returned another number of gradients than it had inputs, or one of another shape
        or on another device.
    """
    if not isinstance(grads, tuple):
        grads = (grads,)
    parents = node.parents
    too_many = [grad for grad in grads[len(parents) :] if grad is not None]
    if len(grads) < len(parents) or too_many:
        raise RuntimeError(f"{node.operation}_backward gave {len(grads)} gradients for {len(parents)} inputs")
    for i in range(len(parents)):
        parent, grad = parents[i], grads[i]
        if parent is None or grad is None:
            continue
        if getattr(grad, "shape", None) != parent.shape:
            came = getattr(grad, "shape", type(grad).__name__)
            raise RuntimeError(f"{node.operation}_backward gave gradient {i} of shape {came}, expected {parent.shape}")
        # Never in place: the first gradient may be another parent's too.
        if not isinstance(parent, Node) and device_of(grad) != parent.device:
            came = f"gradient {i} on {device_of(grad)}, expected {parent.device}"
            raise RuntimeError(f"{node.operation}_backward gave {came}: take xp from dy, array_module(dy)")
        if not isinstance(parent, Node):
            leaves[id(parent)] = (parent, add(leaves[id(parent)][1], grad) if id(parent) in leaves else grad)
        else:
            parent.grad = grad if parent.grad is None else add(parent.grad, grad)


def add(a: Array, b: Array) -> Array:
    """a + b in a new array that lies in memory as ``a`` does: CuPy's own ``+`` would lay it out in row-major order."""
    if a.dtype != b.dtype:
        return a + b
    xp = array_module(a)
    return xp.add(a, b, out=xp.empty_like(a))


def free(node: Node) -> None:
    """Let go of a node's cache and gradient once they are used."""
    node.cache = None
    node.grad = None
    node.freed = True


def explained(error: Exception, operation: str, arrays: tuple[Array, ...]) -> Exception:
    """An exception of a kernel's forward, with a note: which operation, on what, made where.

    Returns: the exception itself, or one in better words where NumPy's own do not name the operation.
    """
    error = in_our_words(error, operation, arrays)
    shapes = [str(x.shape) for x in arrays]
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
