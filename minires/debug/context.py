"""A Watcher as a context manager, and the names under which a reader knows what it sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from minires.engine.modes import Watcher, mode
from minires.engine.tensor import Node

if TYPE_CHECKING:
    from minires.nn.module import Module


class Watching(Watcher):
    """Sees every operation of this thread inside its ``with``. Nests, in others and in itself."""

    def __enter__(self) -> Any:
        mode.watchers += (self,)
        return self

    def __exit__(self, *error: object) -> None:
        watchers = list(mode.watchers)
        for i in reversed(range(len(watchers))):
            if watchers[i] is self:
                del watchers[i]
                break
        mode.watchers = tuple(watchers)


def input_names(backward: Callable, inputs: Sequence[Any]) -> list[str]:
    """What an operation's kernel calls its inputs: the forward stands beside the backward."""
    forward = backward.__globals__.get(backward.__name__.removesuffix("_backward") + "_forward")
    code = getattr(forward, "__code__", None)
    names = list(code.co_varnames[: code.co_argcount]) if code is not None else []
    return names[: len(inputs)] + [f"input {i}" for i in range(len(names), len(inputs))]


def owned_name(tensor: Any, modules: Sequence[Module]) -> str:
    """ "the parameter fc.weight", or a buffer alike, where the outermost of the modules has this tensor; else ""."""
    if modules:
        for kind, named in (("parameter", modules[0].named_parameters()), ("buffer", modules[0].named_buffers())):
            for name, own in named:
                if own is tensor:
                    return f"the {kind} {name}"
    return ""


def at(operation: str, path: str, where: tuple[str, int]) -> str:
    """ "conv2d by layer1.0.conv1 at train.py, line 12"."""
    return f"{operation}{f' by {path}' if path else ''} at {where[0]}, line {where[1]}"


def made(node: Node) -> str:
    """A Node in the same words."""
    return at(node.operation, node.module, node.where)
