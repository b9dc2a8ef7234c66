"""Batch norm folded into the convolution before it: for inference, where both are linear and one can do both.

In evaluation batch norm multiplies each channel by a constant and adds another. So does a convolution with other
weights and a bias: gamma (w * x + b - mean) / sqrt(var + eps) + beta = (s w) * x + (b - mean) s + beta,
with s = gamma / sqrt(var + eps).
"""

from __future__ import annotations

import copy
from collections import Counter
from functools import partial
from typing import Any, TypeVar

import numpy as np

from minires.engine.modes import enable_grad, no_grad, topological_order
from minires.engine.tensor import Node, Tensor
from minires.kernels.backend import to_device, to_numpy
from minires.models.tracing import layer_calls
from minires.nn import BatchNorm2d, Conv2d, Identity, Module, Parameter, ReLU
from minires.nn import functional as F

AnyModule = TypeVar("AnyModule", bound=Module)


def fuse(model: AnyModule, example: Tensor | None = None) -> AnyModule:
    """A copy of the model for inference, with every batch norm folded into the convolution before it.

    The copy is in evaluation mode and has an Identity in place of each batch norm. A batch norm stays where it does not
    follow a convolution directly (as in pre-activation blocks), shares the convolution's output, or uses the batch's
    statistics; and where the output carries no gradient (argmax), as the graph then shows nothing. ``example`` is an
    input of the model, (N, C, H, W); without it two random images of 64 pixels are used. It shows which layer follows
    which, and both models must agree on it.
    Errors: TypeError for what is no Module, or returns no Tensor; ValueError where the random images do not fit the
        model; RuntimeError where the copy's output differs.
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
            before = fused(example.clone())  # a ReLU of the caller's may write over its input
        except Exception as error:
            if not guessed:
                raise
            raise ValueError(
                f"fuse: two random images of shape {example.shape[1:]} do not fit this model ({error}): "
                "call fuse(model, example) with an input that does"
            ) from error
        if not isinstance(before, Tensor):
            raise TypeError(f"fuse: the model must return a Tensor, got {type(before).__name__}")
        convolutions, relus = what_can_change(fused, example)
        for convolution, norm in convolutions:
            fold(convolution, norm)
            replace(fused, norm, Identity())
        for relu in relus:
            relu.inplace = True
        for block in fused.modules():  # an addition in place follows its block's ReLU
            if getattr(type(block), "residual_add", None) is F.residual_add and block.relu in relus:
                block.residual_add = partial(F.residual_add, inplace=True)
        after = fused(example.clone())
    check_agreement(before, after)
    return fused


def random_images(model: Module) -> Tensor:
    """Two images for the model's first convolution, in the dtype and on the device of its weights."""
    convolutions = [module for module in model.modules() if isinstance(module, Conv2d)]
    channels = convolutions[0].in_channels if convolutions else 3
    images = Tensor(np.random.default_rng(0).standard_normal((2, channels, 64, 64)).astype(np.float32))
    weights = list(model.parameters())
    return images.to(weights[0].device, weights[0].dtype) if weights else images


#: Operations whose result is new memory that their own backward does not read, so that a ReLU may write over it.
FRESH = ("conv2d", "batch_norm_inference", "residual_add", "linear")


def what_can_change(model: Module, example: Tensor) -> tuple[list[tuple[Conv2d, BatchNorm2d]], list[ReLU]]:
    """What one recorded run shows: the convolutions whose output a batch norm takes and nothing else, each layer called
    once; and the ReLUs whose input is always new memory that nothing else reads. Where a block's ReLU writes over its
    input, its addition writes over the branch, so the same is asked of that."""
    with enable_grad():
        calls, output = layer_calls(model, Tensor(example.array.copy(), requires_grad=True))
    nodes = [] if output.node is None else topological_order(output.node)
    uses = Counter(id(parent) for node in nodes for parent in node.parents)
    times = Counter(call.layer for call in calls)
    makers = {id(call.output): call for call in calls}
    convolutions = []
    for call in calls:
        maker = makers.get(id(call.inputs[0])) if call.inputs else None
        if maker is None or type(call.layer).forward is not BatchNorm2d.forward or not call.layer.track_running_stats:
            continue
        alone = maker.output.node is not None and uses[id(maker.output.node)] == 1
        once = times[maker.layer] == times[call.layer] == 1
        if type(maker.layer).forward is Conv2d.forward and alone and once:
            convolutions.append((maker.layer, call.layer))
    branches = all(
        is_free(node.parents[1], uses) for node in nodes if node.operation == "residual_add" and len(node.parents) == 2
    )
    shared = {call.layer for call in calls if not (call.inputs and is_free(call.inputs[0].node, uses))}
    relus = {call.layer: None for call in calls if type(call.layer) is ReLU and call.layer not in shared}
    return convolutions, list(relus) if branches else []


def is_free(node: Any, uses: Counter) -> bool:
    """Whether a result is new memory that one operation reads."""
    return isinstance(node, Node) and node.operation in FRESH and uses[id(node)] == 1


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
    learns = convolution.weight.requires_grad
    convolution.weight = Parameter(to_device(weight, device), learns)
    convolution.bias = Parameter(to_device(bias, device), learns)


def replace(model: Module, old: Module, new: Module) -> None:
    """Put ``new`` where ``old`` is, everywhere in the model."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if child is old:
                setattr(module, name, new)


def check_agreement(before: Tensor, after: Tensor) -> None:
    """Errors: RuntimeError where the outputs differ by more than rounding."""
    expected, got = to_numpy(before.array), to_numpy(after.array)
    finite = np.isfinite(expected)
    size = float(np.abs(expected[finite]).max(initial=0.0))
    difference = float(np.abs(got[finite] - expected[finite]).max(initial=0.0)) / max(1e-30, size)
    limit = 1e-3 if expected.dtype == np.float32 else 1e-9
    if not difference <= limit:
        raise RuntimeError(
            f"fuse: the fused model's output differs by {difference:.1e} of its largest value: "
            "the model uses a convolution's output both with and without its batch norm, outside the graph"
        )
