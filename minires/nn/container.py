"""Sequential and ModuleList: modules in a row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from minires.nn.module import Module


class Row(Module):
    """What Sequential and ModuleList share: modules in a row, counted, walked over and picked as in a list."""

    def append(self, module: Module) -> Any:
        """Add a module at the end, and return this one. Errors: TypeError for what is none."""
        self.add_module(str(len(self)), module)
        return self

    def __len__(self) -> int:
        return len(list(self.children()))

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __getitem__(self, index: Any) -> Any:
        return list(self.children())[index]


class Sequential(Row):
    """Modules that run one after the other: ``Sequential(a, b)``, or ``Sequential({"name": a})`` for named ones.

    Source: torch.nn.Sequential.
    """

    def __init__(self, *modules: Any):
        if len(modules) == 1 and isinstance(modules[0], dict):
            for name, module in modules[0].items():
                self.add_module(name, module)
        else:
            for module in modules:
                self.append(module)

    def forward(self, input: Any) -> Any:
        for module in vars(self).values():
            if isinstance(module, Module):
                input = module(input)
        return input

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Sequential(dict(list(self.named_children())[index]))
        return super().__getitem__(index)


class ModuleList(Row):
    """A list of modules whose parameters are found; it computes nothing by itself. Source: torch.nn.ModuleList."""

    def __init__(self, modules: Iterable[Module] = ()):
        for module in modules:
            self.append(module)
