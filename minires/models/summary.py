"""What a network is made of: every layer with its output shape, parameters and multiply-adds.

Nothing is typed in: a forward pass of one image runs, and each layer reports what passed through it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minires.engine.modes import no_grad
from minires.engine.tensor import Tensor
from minires.models.tracing import layer_calls
from minires.nn import Conv2d, Linear, Module


class Row(NamedTuple):
    """A layer of a summary."""

    name: str
    kind: str
    output_shape: tuple[int, ...]  # with a batch of one
    parameters: int
    macs: int


class Summary(NamedTuple):
    """A network's layers in the order in which they ran, and the totals."""

    rows: list[Row]
    parameters: int
    macs: int
    keys: int  # of the state_dict

    def to_dict(self) -> dict[str, Any]:
        """For programs: the same as plain lists, dicts and numbers."""
        return {
            "layers": [row._asdict() for row in self.rows],
            "parameters": self.parameters,
            "macs": self.macs,
            "state_dict_keys": self.keys,
        }

    def __str__(self) -> str:
        lines = [("layer", "kind", "output shape", "parameters", "multiply-adds")]
        for row in self.rows:
            shape = "x".join(str(n) for n in row.output_shape[1:])
            lines.append((row.name, row.kind, shape, f"{row.parameters:,}", f"{row.macs:,}"))
        lines.append(("total", "", "", f"{self.parameters:,}", f"{self.macs:,}"))
        widths = [max(len(line[i]) for line in lines) for i in range(5)]
        text = []
        for line in lines:
            left = [line[i].ljust(widths[i]) for i in range(3)]
            right = [line[i].rjust(widths[i]) for i in (3, 4)]
            text.append("  ".join(left + right).rstrip())
        rule = "-" * max(map(len, text))
        return "\n".join([text[0], rule, *text[1:-1], rule, text[-1]])


def multiply_adds(layer: Module, output: Tensor) -> int:
    """The multiplications (each with its addition) of one layer for one image; those of conv and linear layers count.

    Formula: O OH OW (C / G) KH KW for a convolution, in * out for a linear layer.
    """
    if isinstance(layer, (Conv2d, Linear)):
        per_output = int(np.prod(layer.weight.shape[1:]))
        return int(np.prod(output.shape[1:])) * per_output
    return 0


def summarize(model: Module, input_shape: tuple[int, int, int]) -> Summary:
    """Run one image of this shape (C, H, W) through the model and count what happens.

    A layer is a module without parts. The model's mode and statistics are left as they were.
    Errors: whatever the model raises for an image that does not fit it.
    """
    dtype = next((p.dtype for p in model.parameters()), np.float32)
    device = next((p.device for p in model.parameters()), "cpu")
    rows = []
    with no_grad():
        calls, _ = layer_calls(model, Tensor(np.zeros((1, *input_shape), dtype), device=device))
    for name, layer, _, output in calls:
        parameters = sum(p.numel() for p in layer.parameters())
        rows.append(Row(name, type(layer).__name__, output.shape, parameters, multiply_adds(layer, output)))
    parameters = sum(p.numel() for p in model.parameters())
    return Summary(rows, parameters, sum(row.macs for row in rows), len(model.state_dict()))
