"""Which layers of a model run, in which order, and what passes through them."""

from __future__ import annotations

from typing import Any, NamedTuple

from minires.nn import Module
from minires.nn.state import in_mode


class Call(NamedTuple):
    """One call of one layer. A layer is a module without parts."""

    name: str
    layer: Module
    inputs: tuple[Any, ...]
    output: Any


class Observer:
    """Stands in for a layer's forward and notes what goes in and comes out."""

    def __init__(self, name: str, layer: Module, calls: list[Call]):
        self.name, self.layer, self.calls = name, layer, calls
        self.forward = layer.forward

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        output = self.forward(*inputs, **options)
        self.calls.append(Call(self.name, self.layer, inputs, output))
        return output


def layer_calls(
    model: Module, *inputs: Any, training: bool = False, parts: list[tuple[str, Module]] | None = None
) -> tuple[list[Call], Any]:
    """Run the model in evaluation (or training) mode: the calls of its layers (or these parts), and its output.

    The model is left as it was, except for the running statistics that batch norm updates in training mode.
    Errors: whatever the model raises for these inputs.
    """
    calls: list[Call] = []
    layers = parts
    if layers is None:
        layers = [(name, module) for name, module in model.named_modules() if not list(module.named_children())]
    own = [(layer, vars(layer).get("forward")) for _, layer in layers]  # one set on the layer itself is put back
    try:
        for name, layer in layers:
            layer.forward = Observer(name, layer, calls)  # type: ignore[method-assign]  # found before the class's
        with in_mode(model, training):
            output = model(*inputs)
    finally:
        for layer, forward in own:
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward  # type: ignore[method-assign]
    return calls, output
