"""Batch norm folded into the convolution before it: for inference, where both are linear and one can do both.

In evaluation batch norm multiplies each channel by a constant and adds another. So does a convolution with other
weights and a bias: gamma (w * x + b - mean) / sqrt(var + eps) + beta = (s w) * x + (b - mean) s + beta,
with s = gamma / sqrt(var + eps).
"""

from __future__ import annotations

import copy
from typing import TypeVar

import numpy as np

from minires.backend import to_device, to_numpy
from minires.graph import no_grad
from minires.nn import BatchNorm2d, Conv2d, Identity, Module, Parameter, ReLU
from minires.tensor import Tensor
from minires.tracing import layer_calls

AnyModule = TypeVar("AnyModule", bound=Module)


def fuse(model: AnyModule, example: Tensor | None = None) -> AnyModule:
    """A copy of the model for inference, with every batch norm folded into the convolution before it.

    The copy is in evaluation mode and has an Identity in place of each batch norm. A batch norm that does not follow a
    convolution directly (as in pre-activation blocks), or uses the batch's statistics, stays. ``example`` is an input
    of the model, (N, C, H, W); without it two random images of 64 pixels are used. It shows which layer follows which,
    and the two models must agree on it.
    Errors: TypeError for what is no Module; ValueError where the random images do not fit the model; RuntimeError where
    the copy's output differs, which means that the model uses a convolution's output twice.
    Source: torch.nn.utils.fusion.fuse_conv_bn_eval.
    """
    if not isinstance(model, Module):
        raise TypeError(f"fuse: model must be a Module, got {type(model).__name__}")
    fused = copy.deepcopy(model).eval()
    guessed = example is None
    if example is None:
        example = random_images(fused)
    with no_grad():
        try:
            before = fused(example)
        except Exception as error:
            if not guessed:
                raise
            raise ValueError(
                f"fuse: two random images of shape {example.shape[1:]} do not fit this model ({error}): "
                "call fuse(model, example) with an input that does"
            ) from error
        for convolution, norm in pairs(fused, example):
            fold(convolution, norm)
            replace(fused, norm, Identity())
        after = fused(example)
        check_agreement(before, after)
        save_memory(fused, example, after)
    return fused


def save_memory(model: Module, example: Tensor, output: Tensor) -> None:
    """Let the ReLUs (and a block's addition with its ReLU) write over their inputs, if nothing else changes by it."""
    relus = [module for module in model.modules() if isinstance(module, ReLU) and not module.inplace]
    for relu in relus:
        relu.inplace = True
    images = example.clone()
    after = model(images)
    if not (same(after, output) and same(images, example)):
        for relu in relus:
            relu.inplace = False


def same(a: Tensor, b: Tensor) -> bool:
    """Whether all numbers are equal."""
    return np.array_equal(to_numpy(a.array), to_numpy(b.array))


def random_images(model: Module) -> Tensor:
    """Two images for the model's first convolution, in the dtype and on the device of its weights."""
    for module in model.modules():
        if isinstance(module, Conv2d):
            images = np.random.default_rng(0).standard_normal((2, module.in_channels, 64, 64))
            return Tensor(images.astype(module.weight.dtype), device=module.weight.device)
    return Tensor(np.zeros((2, 3, 64, 64), np.float32))  # no convolution: nothing to fold


def pairs(model: Module, example: Tensor) -> list[tuple[Conv2d, BatchNorm2d]]:
    """The convolutions whose output a batch norm took, each called once."""
    calls = layer_calls(model, example)
    layers = [call.layer for call in calls]
    makers = {id(call.output): call.layer for call in calls}
    found = []
    for call in calls:
        norm, maker = call.layer, makers.get(id(call.inputs[0])) if call.inputs else None
        if not isinstance(norm, BatchNorm2d) or not isinstance(maker, Conv2d) or not norm.track_running_stats:
            continue
        if layers.count(norm) == 1 and layers.count(maker) == 1:
            found.append((maker, norm))
    return found


def float64(tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor, on the CPU and in double precision."""
    return to_numpy(tensor.array).astype(np.float64)


def fold(convolution: Conv2d, norm: BatchNorm2d) -> None:
    """Give the convolution the weights and the bias that do the batch norm's work too. Computed in float64."""
    w = float64(convolution.weight)  # (O, C/G, KH, KW)
    mean, var = float64(norm.running_mean), float64(norm.running_var)  # (O,) each, as all below
    gamma = 1.0 if norm.weight is None else float64(norm.weight)
    beta = 0.0 if norm.bias is None else float64(norm.bias)
    b = 0.0 if convolution.bias is None else float64(convolution.bias)
    scale = gamma / np.sqrt(var + norm.eps)
    dtype, device = convolution.weight.dtype, convolution.weight.device
    weight = (w * scale[:, None, None, None]).astype(dtype)
    bias = ((b - mean) * scale + beta).astype(dtype)
    convolution.weight = Parameter(to_device(weight, device))
    convolution.bias = Parameter(to_device(bias, device))


def replace(model: Module, old: Module, new: Module) -> None:
    """Put ``new`` where ``old`` is, everywhere in the model."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if child is old:
                setattr(module, name, new)


def check_agreement(before: Tensor, after: Tensor) -> None:
    """Errors: RuntimeError where the outputs differ by more than rounding."""
    expected, got = to_numpy(before.array), to_numpy(after.array)
    difference = float(np.abs(got - expected).max()) / max(1e-30, float(np.abs(expected).max()))
    limit = 1e-3 if expected.dtype == np.float32 else 1e-9
    if not difference <= limit:
        raise RuntimeError(
            f"fuse: the fused model's output differs by {difference:.1e} of its largest value: "
            "the model seems to use a convolution's output both with and without its batch norm"
        )
