"""What else PyTorch's Module offers, each in terms of the methods in module.py; a class of its own so that those stay
on one page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from minires.nn.module import Module, Parameter


class Methods:
    """Finding, freezing, moving and printing in one word."""

    named_children: Callable[[], Iterator[tuple[str, Module]]]  # all these are Module's
    children: Callable[[], Iterator[Module]]
    parameters: Callable[[], Iterator[Parameter]]
    to: Callable[..., Module]

    def get_submodule(self, target: str) -> Module:
        """The module of a dotted name; "" is this one.

        Errors: AttributeError where the path breaks off.
        """
        module: Any = self
        for name in target.split(".") if target else []:
            child = dict(module.named_children()).get(name)
            if child is None:
                raise AttributeError(f"{type(module).__name__} has no submodule {name!r} (of {target!r})")
            module = child
        return module

    def apply(self, function: Callable[[Module], None]) -> Module:
        """Call a function on every module, children first, and return this one."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Freeze (False) or free (True) every parameter."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def cpu(self) -> Module:
        """Move to the CPU."""
        return self.to("cpu")

    def cuda(self) -> Module:
        """Move to the GPU."""
        return self.to("cuda")

    def float(self) -> Module:
        """Floating-point parameters and buffers as float32."""
        return self.to(np.dtype("float32"))

    def double(self) -> Module:
        """Floating-point parameters and buffers as float64."""
        return self.to(np.dtype("float64"))

    def extra_repr(self) -> str:
        """What stands between the brackets of this module's line; for subclasses."""
        return ""

    def __repr__(self) -> str:
        name = type(self).__name__
        children = list(self.named_children())
        if not children:
            return f"{name}({self.extra_repr()})"
        lines = [f"{name}({self.extra_repr()}"]
        for child_name, child in children:
            text = repr(child).replace("\n", "\n  ")
            lines.append(f"  ({child_name}): {text}")
        return "\n".join(lines) + "\n)"
