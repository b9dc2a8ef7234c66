"""What goes into a kernel and what comes out of it, held against the contract; and how anything else is refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

from minires.engine.convert import in_our_words, make_array, one_device, require_tensors
from minires.engine.modes import mode, module_path, parameters_of, topological_order
from minires.kernels.backend import Array, device_of, is_array
from minires.kernels.fast import FAST

ABSENT = {type(None)}

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class Freed:
    """Stands for a cache that a backward() has used and let go."""

    def __repr__(self) -> str:
        return "<freed by an earlier backward()>"


FREED: Any = Freed()


def users_line() -> tuple[str, int]:
    """File and line of the first frame outside MiniRes."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(PACKAGE) and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def name_of(kernel: Callable) -> str:
    """The operation's name, as ``conv2d``, from that of its kernel's forward or backward."""
    name = getattr(kernel, "__name__", type(kernel).__name__)
    return name.removesuffix("_backward").removesuffix("_forward")


# ---- Forward -----------------------------------------------------------------------------------------------------


def prepare(forward: Callable, backward: Callable, inputs: Sequence, options: dict) -> tuple[Callable, Callable, list]:
    """Which kernel runs (the fast one, the textbook's or the reader's own) and the bare arrays that it gets.

    Options that only say how to be fast are dropped from ``options`` where the kernel does not take them.
    Errors: AttributeError for what is no Tensor (``explained`` says it better); ValueError for two devices.
    """
    arrays = []
    for x in inputs:
        arrays.append(None if x is None else x.array)
    if len(set(map(type, arrays)) - ABSENT) != 1 or arrays[0] is None:
        check_inputs(forward, inputs)
    if mode.watchers:
        given = tuple([x for x in inputs if x is not None])
        for watcher in mode.watchers:
            watcher.before_forward(name_of(forward), given, options)
    shipped = forward
    if (forward, backward) in mode.kernels:  # a shipped pair: one with a half of the reader's own runs as it is
        forward, backward = mode.kernels[forward, backward]
    if mode.kernels is not FAST:
        fit_options(shipped, forward, options)
    return forward, backward, arrays


def check_inputs(forward: Callable, inputs: Sequence) -> None:
    """Errors: TypeError for what is no Tensor; ValueError for Tensors on two devices."""
    require_tensors(name_of(forward), *inputs)
    names = [name for name in parameters_of(forward)[0] if name != "*"]
    named = [(n or f"tensor {i}", x) for i, (n, x) in enumerate(zip_longest(names, inputs)) if x is not None]
    if len({x.device for _, x in named}) > 1:
        raise ValueError(one_device(name_of(forward), ", ".join(f"{n} {x.shape} on {x.device}" for n, x in named)))


#: Options that say how to be fast, and change no number: a kernel may do without.
HINTS = ("needs_dx", "inplace")


def fit_options(shipped: Callable, forward: Callable, options: dict) -> None:
    """Drop from ``options`` what the kernel does not take and does not need: hints, and what stands at its default.

    Errors: TypeError for an option that it does not take and that is asked for.
    """
    _, taken, takes_all = parameters_of(forward)  # whoever takes all has to name a hint all the same
    for name in [name for name in options if name not in taken and (name in HINTS or not takes_all)]:
        default = (shipped.__kwdefaults__ or {}).get(name)
        if name not in HINTS and options[name] != default and options[name] != (default, default):
            own = getattr(forward, "__name__", forward)
            raise TypeError(
                f"{name_of(shipped)}: your {own} has no option {name}, and {name}={options[name]!r} is asked for "
                f"(a kernel may leave out an option that stays at its default, {default!r})"
            )
        del options[name]


def returned(result: Any, forward: Callable) -> tuple[Array, Any]:
    """What a forward returned, y and cache.

    Errors: TypeError for anything else.
    """
    if not isinstance(result, tuple) or len(result) != 2 or not is_array(result[0]):
        came = f"({', '.join(type(one).__name__ for one in result)})" if isinstance(result, tuple) else result
        came = came if isinstance(came, str) else type(came).__name__
        name = getattr(forward, "__name__", type(forward).__name__)
        raise TypeError(f"{name} must return y, cache, the first an array: it returned {came}")
    return result


def recorded(inputs: Sequence, result: Any) -> tuple:
    """The parents of a result: of each input the Node that made it, the leaf that it is, or None: no gradient wanted.

    Returns: (), where the result is not to be remembered.
    """
    if not mode.recording or result.array.dtype.kind != "f":
        return ()
    parents, wanted = [], False
    for x in inputs:
        if x is not None and x._requires_grad:
            parents.append(x if x.node is None else x.node)
            wanted = True
        else:
            parents.append(None)
    return tuple(parents) if wanted else ()


def explained(error: Exception, forward: Callable, inputs: Sequence) -> Exception:
    """An exception of a kernel's forward, with a note: which operation, on what, made where.

    Returns: the exception itself, or one in better words where NumPy's own do not name the operation.
    """
    operation = name_of(forward)
    require_tensors(operation, *inputs)
    given = tuple([x for x in inputs if x is not None])
    error = in_our_words(error, operation, given)
    path, (file, line) = module_path(mode.modules), users_line()
    shapes, inside = ", ".join([str(x.shape) for x in given]), f" by {path}" if path else ""
    add_note(error, f"in the forward of {operation} of {shapes}, called{inside} at {file}, line {line}")
    return error


# ---- Backward ----------------------------------------------------------------------------------------------------


def first_gradient(tensor: Any, gradient: Any) -> Array:
    """The gradient that backward() starts with.

    Errors: as Tensor.backward.
    """
    if not tensor._requires_grad:
        raise RuntimeError("backward: no gradient flows to this tensor: no input of it had requires_grad=True")
    if gradient is None:
        if tensor.array.size != 1:
            raise RuntimeError(
                f"backward: a gradient can be left out only for a single value, this tensor has shape "
                f"{tensor.shape}: pass gradient=, or call .sum().backward()"
            )
        return (tensor.array**0).reshape(tensor.array.shape)  # 1, on the same device, of the same dtype
    dy = gradient.array if hasattr(gradient, "array") else make_array(gradient, tensor.dtype, tensor.device)
    if dy.shape != tensor.shape:
        raise ValueError(f"backward: gradient must have the tensor's shape {tensor.shape}, got {dy.shape}")
    if device_of(dy) != tensor.device:
        raise ValueError(f"backward: the tensor is on {tensor.device} and the gradient on {device_of(dy)}")
    return dy.astype(tensor.dtype, copy=False)


def ready(node: Any) -> None:
    """Tell the watchers that a node's backward is about to run.

    Errors: RuntimeError where its cache is gone.
    """
    if node.cache is FREED:
        raise RuntimeError(
            f"backward: the cache of {node!r} was freed by an earlier backward(): "
            "run the forward again, or call the first backward(retain_graph=True)"
        )
    for watcher in mode.watchers:
        watcher.before_backward(node)


def checked(node: Any, grads: Any) -> list[tuple[Any, Array]]:
    """The parents that want a gradient, each with its own; watchers and retain_grad() get theirs.

    Errors: RuntimeError for another number of gradients than inputs, for None where one is wanted, for another shape or
        device.
    """
    for watcher in mode.watchers:
        watcher.after_backward(node, grads)
    tensor = None if node.retained is None else node.retained()
    if tensor is not None:
        accumulate(tensor, node.grad)
    if isinstance(grads, list):
        raise RuntimeError(f"{named(node)} returned a list: gradients come as a tuple, ``return dx, dw, db``")
    if not isinstance(grads, tuple):
        grads = (grads,)
    parents, pairs = node.parents, []
    if len(grads) != len(parents):
        refuse_number(node, grads)
        grads += (None,) * len(parents)
    for i in range(len(parents)):
        parent, grad = parents[i], grads[i]
        if parent is not None:
            array = getattr(parent, "array", None)  # of a leaf
            if getattr(grad, "shape", None) != (parent.shape if array is None else array.shape):
                refuse_shape(node, i, grad)
            if (array is not None and type(grad) is not type(array)) or grad.dtype.kind != "f":
                refuse_kind(node, i, grad)
            pairs.append((parent, grad))
    return pairs


def accumulate(tensor: Any, grad: Array) -> None:
    """tensor.grad += grad, in memory of its own: gradients that arrive may be shared."""
    if tensor.grad is None:
        tensor.grad = tensor.wrap(grad.astype(tensor.array.dtype, order="C"))
    else:
        tensor.grad = tensor.wrap(tensor.grad.array + grad)


def done(node: Any, retain_graph: bool) -> None:
    """Let go of what is used, unless it was asked for again."""
    node.grad = None
    if not retain_graph:
        node.cache = FREED


def named(node: Any) -> str:
    """What a node's backward is called."""
    return getattr(node.backward, "__name__", type(node.backward).__name__)


def refuse_number(node: Any, grads: tuple) -> None:
    """Errors: RuntimeError for a gradient that no input waits for, or an input without one.

    An optional input that was left out, or that no gradient flows to, needs none.
    """
    given, wanted = len(grads), len(node.parents)
    left_out = grads[wanted:] if given > wanted else node.parents[given:]
    if set(map(type, left_out)) - ABSENT:
        hint = ": is a return missing?" if given == 1 and grads[0] is None else ""
        raise RuntimeError(f"{named(node)} gave {given} gradients for {wanted} inputs{hint}")


def refuse_shape(node: Any, i: int, grad: Any) -> None:
    """Errors: RuntimeError for what is no gradient of input i."""
    shape = node.parents[i].shape
    if grad is None:
        came = f"None as gradient {i}, expected one of shape {shape}: is a return missing?"
        raise RuntimeError(f"{named(node)} gave {came} (zeros, where the result does not depend on it)")
    came = getattr(grad, "shape", type(grad).__name__)
    raise RuntimeError(f"{named(node)} gave gradient {i} of shape {came}, expected {shape}")


def refuse_kind(node: Any, i: int, grad: Any) -> None:
    """Errors: RuntimeError for what is no array of floating-point numbers, or does not lie where input i does."""
    if not is_array(grad):
        came = f"{type(grad).__module__}.{type(grad).__name__}".removeprefix("builtins.")
        raise RuntimeError(f"{named(node)} gave a {came} as gradient {i}, expected an array")
    if grad.dtype.kind != "f":
        raise RuntimeError(f"{named(node)} gave gradient {i} of {grad.dtype}, expected floating-point numbers")
    here, there = device_of(grad), "cpu" if hasattr(node.parents[i], "operation") else node.parents[i].device
    if here != there:
        came = f"on {here}, expected {there}: take xp from dy, array_module(dy)"
        raise RuntimeError(f"{named(node)} gave gradient {i} {came}")


def failed(error: BaseException, node: Any, last: Any) -> BaseException:
    """An exception of a backward, with a note: of which operation, made where. Gradients on the way are let go."""
    for one in topological_order(last):
        one.grad = None
    add_note(error, f"in the backward of {node!r}, whose result has shape {node.shape}")
    return error


def add_note(error: BaseException, note: str) -> None:
    """Attach a line to an exception (in its message before Python 3.11, which has no notes)."""
    if hasattr(error, "add_note"):
        error.add_note(note)
    elif error.args and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]}\n{note}", *error.args[1:])
