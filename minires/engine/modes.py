"""What holds for the operations of a thread: whether they are recorded, by which kernels they run, and who watches."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from minires import kernels
from minires.engine.convert import lookup
from minires.kernels.fast import FAST

#: inspect's CO_GENERATOR, CO_COROUTINE and CO_ASYNC_GENERATOR, without importing it: these run after the call.
LATER = 0x20 | 0x80 | 0x200


class Watcher:
    """Sees every operation of its thread while it stands in ``mode.watchers``: the base of the tools in debug/."""

    def before_forward(self, operation: str, inputs: tuple, options: dict[str, Any]) -> None:
        """A kernel is about to run on these Tensors."""

    def after_forward(self, result: Any, cache: Any, backward: Callable, inputs: tuple) -> None:
        """A kernel has run. ``result.node`` is None where nothing was recorded; some inputs may be None."""

    def before_backward(self, node: Any) -> None:
        """``node.backward(node.grad, node.cache)`` is about to run."""

    def after_backward(self, node: Any, grads: Any) -> None:
        """It has run, and returned these gradients (one array or a tuple)."""


class Mode(threading.local):
    """What holds for the operations of one thread."""

    def __init__(self) -> None:
        self.recording = True  # whether a Node is hung on each result
        # the pairs (forward, backward) that run in place of a textbook's, by the textbook's pair
        textbook = os.environ.get("MINIRES_TEXTBOOK", "").lower() not in ("", "0", "false", "no", "off")
        self.kernels = {} if textbook else FAST
        self.modules: list[Any] = []  # the modules that are being called, the outermost first
        self.watchers: tuple[Watcher, ...] = ()


mode = Mode()


class Switch:
    """``with switch:`` sets one of the mode's fields, and puts it back. Nests; also a decorator, with brackets.

    Errors: TypeError as a decorator without brackets, or of a generator function.
    """

    field = "recording"

    def __init__(self, function: None = None) -> None:
        if function is not None:
            raise TypeError(f"write @{type(self).__name__}() with brackets")
        self.before: list[Any] = []

    def value(self) -> Any:
        """What the field becomes."""
        return True

    def __enter__(self) -> None:
        self.before.append(getattr(mode, self.field))
        setattr(mode, self.field, self.value())

    def __exit__(self, *error: object) -> None:
        setattr(mode, self.field, self.before.pop())

    def __call__(self, function: Callable) -> Callable:
        name = type(self).__name__
        if not callable(function):
            raise TypeError(f"{name}() decorates a function, got {function!r}")
        if getattr(getattr(function, "__code__", None), "co_flags", 0) & LATER:
            raise TypeError(f"{name} cannot decorate a generator or a coroutine: write the with inside it")

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before = getattr(mode, self.field)  # not self.before: several threads may be inside
            setattr(mode, self.field, self.value())
            try:
                return function(*args, **kwargs)
            finally:
                setattr(mode, self.field, before)

        return wrapped


class no_grad(Switch):
    """Inside ``with no_grad():`` nothing is recorded and no cache is kept. Nests; also a decorator, ``@no_grad()``."""

    def value(self) -> bool:
        """Not recording."""
        return False


class enable_grad(Switch):
    """Recording again, inside a no_grad(). Nests; also a decorator, ``@enable_grad()``."""


class set_grad_enabled(Switch):
    """Switches recording on or off at once, and back where it is used as ``with set_grad_enabled(training):``."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = bool(enabled)
        self.before = [mode.recording]
        mode.recording = self.enabled

    def value(self) -> bool:
        """What was asked for."""
        return self.enabled

    def __enter__(self) -> None:
        mode.recording = self.enabled

    def __call__(self, function: Callable) -> Callable:
        mode.recording = self.before.pop()  # as a decorator it switches only inside the function
        return super().__call__(function)


def is_grad_enabled() -> bool:
    """True unless inside no_grad()."""
    return mode.recording


class textbook(Switch):
    """Inside ``with textbook():`` the kernels that a textbook prints run, in place of the fast ones that equal them.

    Slower, and meant to be stepped through. It holds for the thread that enters it; MINIRES_TEXTBOOK=1 in the
    environment does the same for a whole program. A resumed run has the same bits only under the same setting.
    """

    field = "kernels"

    def value(self) -> dict:
        """None runs in place of a textbook's."""
        return {}


@functools.cache
def parameters_of(function: Callable) -> tuple[tuple[str, ...], frozenset[str], bool]:
    """The arrays of a kernel's forward by name ("*" for any number), all names that it takes, and whether it takes
    every option (**options)."""
    import inspect  # only where a kernel of the reader's own, or a mistake, asks for it

    parameters = inspect.signature(function).parameters.values()
    arrays = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    arrays += ["*" for p in parameters if p.kind == p.VAR_POSITIONAL]
    return tuple(arrays), frozenset(p.name for p in parameters), any(p.kind == p.VAR_KEYWORD for p in parameters)


def fits(function: Callable, count: int) -> bool:
    """Whether a function can be called with so many arrays, and options by keyword."""
    import inspect

    parameters = inspect.signature(function).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    return len(required) <= count and (count <= len(positional) or any(p.kind == p.VAR_POSITIONAL for p in parameters))


def heading(function: Callable) -> str:
    """A function's name and the arrays that it takes."""
    return f"{getattr(function, '__name__', function)}({', '.join(parameters_of(function)[0])})"


def checked_pair(operation: str, pair: Any) -> tuple[Callable, Callable]:
    """The shipped pair that a pair of the reader's own stands for.

    Errors: as ``using``.
    """
    table = {name.removesuffix("_forward"): name for name in sorted(kernels.__all__) if name.endswith("_forward")}
    shipped = getattr(kernels, lookup(table, operation, "operation"))
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(map(callable, pair)):
        raise TypeError(f"using: {operation} must be a pair of functions (forward, backward), got {pair!r}")
    arrays = [name for name in parameters_of(shipped)[0] if name != "*"]
    if not fits(pair[0], len(arrays)):
        raise TypeError(
            f"using: the forward of {operation} gets the arrays ({', '.join(arrays)}), None for one that is left out, "
            f"and its options by keyword: {heading(pair[0])} does not take them so"
        )
    if not fits(pair[1], 2):
        raise TypeError(f"using: the backward of {operation} is called as backward(dy, cache): {heading(pair[1])} not")
    return shipped, getattr(kernels, shipped.__name__.removesuffix("forward") + "backward")


class using(Switch):
    """``with using(conv2d=(forward, backward)):`` runs any network on kernels of your own.

    Args: for each operation, named as in ``minires.kernels``, a pair of functions with the contract of a kernel:
        ``forward(*arrays, **options) -> y, cache`` and ``backward(dy, cache) -> a gradient an array``. An option that
        your forward does not take may stay away, as long as nobody asks for another value than its default.
    Errors: ValueError for an operation that is not there, with the nearest name; TypeError for what is no pair of
        functions, or a forward that takes other arrays than the kernel it stands for.
    """

    field = "kernels"

    def __init__(self, *unnamed: Any, **pairs: tuple[Callable, Callable]) -> None:
        if unnamed:
            raise TypeError(
                "using: name the operations, using(conv2d=(forward, backward)); with brackets as a decorator"
            )
        self.before: list[Any] = []
        self.pairs = {}
        for operation, pair in pairs.items():
            shipped = checked_pair(operation, pair)
            self.pairs[shipped] = tuple(pair)

    def value(self) -> dict:
        """What runs already, and these."""
        return {**mode.kernels, **self.pairs}


def module_path(modules: Sequence[Any]) -> str:
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


def topological_order(last: Any) -> list[Any]:
    """Every Node behind ``last`` and itself, the newest first: the order in which backward() runs them."""
    reached, waiting = {last}, [last]
    while waiting:
        for parent in waiting.pop().parents:
            if hasattr(parent, "parents") and parent not in reached:
                reached.add(parent)
                waiting.append(parent)
    return sorted(reached, key=number_of, reverse=True)


def number_of(node: Any) -> int:
    """A Node's number: later ones are larger."""
    return node.number
