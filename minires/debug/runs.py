"""One forward and backward of a model of MiniRes or of PyTorch, with all that its layers saw."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from minires.engine.modes import enable_grad
from minires.engine.tensor import Tensor
from minires.kernels.backend import to_numpy
from minires.nn import Module


class Seen(NamedTuple):
    """One call of one module: what went in first, and what came out. All arrays are copies on the CPU."""

    name: str
    layer: Any
    input: np.ndarray | None
    output: np.ndarray | None
    held: Any  # the output itself, where its gradient is left


class Run:
    """What came of a run: the calls in the order in which they ended, gradients and buffers by name."""

    def __init__(self) -> None:
        self.calls: list[Seen] = []
        self.output: np.ndarray | None = None
        self.grads: dict[str, np.ndarray | None] = {}
        self.output_grads: list[np.ndarray | None] = []
        self.buffers: dict[str, np.ndarray] = {}
        self.error: Exception | None = None


class Observer:
    """Stands in for a module's forward and notes what passes."""

    def __init__(self, name: str, layer: Module, run: Run):
        self.name, self.layer, self.run = name, layer, run
        self.forward = layer.forward

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        came = copy_of(inputs[0]) if inputs else None
        output = self.forward(*inputs, **options)
        if isinstance(output, Tensor) and output.requires_grad:
            output.retain_grad()
        self.run.calls.append(Seen(self.name, self.layer, came, copy_of(output), output))
        return output


def is_torch(model: Any) -> bool:
    """Whether this is a torch.nn.Module: then PyTorch is imported already."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def copy_of(x: Any) -> np.ndarray | None:
    """A tensor of either library as an array of its own; None for anything else."""
    if isinstance(x, Tensor):
        return np.array(to_numpy(x.array))
    if hasattr(x, "detach"):
        return np.array(x.detach().cpu().numpy())
    return None


def state_of(model: Any) -> dict[str, np.ndarray]:
    """Copies of all parameters and buffers."""
    found = [*model.named_parameters(), *model.named_buffers()]
    return {name: copy_of(tensor) for name, tensor in found}  # type: ignore[misc]


def set_state(model: Any, values: Mapping[str, np.ndarray]) -> None:
    """Write values into parameters and buffers by name, where the shape is theirs."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in values and tuple(tensor.shape) == values[name].shape:
            if isinstance(tensor, Tensor):
                tensor.array[...] = Tensor(values[name], device=tensor.device).array
            else:
                tensor.data.copy_(sys.modules["torch"].as_tensor(values[name]))


def run_model(model: Any, x: np.ndarray, seed: int) -> Run:
    """Forward and backward, with a random gradient for the output. An exception is kept, not raised.

    Leaves its marks on the model: give it a copy.
    """
    run = Run()
    model.zero_grad(set_to_none=True)
    try:
        (run_torch if is_torch(model) else run_minires)(model, x, seed, run)
    except Exception as error:
        run.error = error
    run.grads = {name: copy_of(parameter.grad) for name, parameter in model.named_parameters()}
    run.buffers = {name: copy_of(buffer) for name, buffer in model.named_buffers()}  # type: ignore[misc]
    run.output_grads = [copy_of(getattr(seen.held, "grad", None)) for seen in run.calls]
    return run


def upstream(output: Any, seed: int) -> np.ndarray:
    """The random gradient that the backward starts with: the same for both models."""
    return np.random.default_rng(seed).standard_normal(tuple(output.shape))


def run_minires(model: Module, x: np.ndarray, seed: int, run: Run) -> None:
    """The run of a MiniRes model."""
    for name, module in model.named_modules():
        module.forward = Observer(name, module, run)  # type: ignore[method-assign]  # found before the class's
    first = next(iter(model.parameters()), None)
    device, dtype = ("cpu", x.dtype) if first is None else (first.device, first.dtype)
    with enable_grad():
        output = model(Tensor(x.astype(dtype), requires_grad=True, device=device))
        run.output = copy_of(output)
        output.backward(Tensor(upstream(output, seed).astype(dtype), device=device))


def run_torch(model: Any, x: np.ndarray, seed: int, run: Run) -> None:
    """The run of a torch.nn.Module."""
    torch = sys.modules["torch"]
    names = {module: name for name, module in model.named_modules()}
    came: dict[Any, np.ndarray | None] = {}

    def look_before(module: Any, inputs: tuple) -> None:
        came[module] = copy_of(inputs[0]) if inputs else None  # now: an inplace layer writes over it

    def look(module: Any, inputs: tuple, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.retain_grad()
        run.calls.append(Seen(names[module], module, came.pop(module, None), copy_of(output), output))

    for module in names:
        module.register_forward_pre_hook(look_before)
        module.register_forward_hook(look)
    first = next(iter(model.parameters()), torch.zeros(()))
    with torch.enable_grad():
        output = model(torch.tensor(x, dtype=first.dtype, device=first.device).requires_grad_(True))
        run.output = copy_of(output)
        output.backward(torch.tensor(upstream(output, seed), dtype=output.dtype, device=output.device))
