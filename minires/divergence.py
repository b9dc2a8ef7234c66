"""A training whose numbers are not finite any more: where it began, and what usually helps."""

from __future__ import annotations

from minires.backend import array_module
from minires.graph import no_grad
from minires.nn import Module
from minires.tensor import Tensor
from minires.tracing import layer_calls

BAD_IMAGES = "the images themselves are not finite"


class Divergence(FloatingPointError):
    """A loss or a weight became infinite, or no number."""


def finite(tensor: Tensor) -> bool:
    """Whether every entry is a finite number."""
    return bool(array_module(tensor.array).isfinite(tensor.array).all())


@no_grad()
def first_bad_layer(model: Module, images: Tensor | None, training: bool = True) -> str | None:
    """The first layer whose output is not finite for these images, in words; None where all are.

    The forward pass is run once more, in training mode or not; the running statistics are put back afterwards.
    """
    if images is None:
        return None
    if not finite(images):
        return BAD_IMAGES
    before = [(buffer, buffer.array.copy()) for buffer in model.buffers()]
    try:
        calls, _ = layer_calls(model, images, training=training)
    finally:
        for buffer, array in before:
            buffer.array[...] = array
    for call in calls:
        if isinstance(call.output, Tensor) and not finite(call.output):
            kind = type(call.layer).__name__
            bad = [name for name, tensor in call.layer.state_dict().items() if not finite(tensor)]
            weights = f"; its {' and '.join(bad)} held such numbers already" if bad else ""
            return f"the first layer whose output is not finite is {call.name} ({kind}){weights}"
    return None


def explain(what: str, step: int, epoch: int, lr: float, layer: str | None, advice: str) -> str:
    """The message of a divergence."""
    lines = [f"{what} at step {step} (epoch {epoch}), with learning rate {lr:.3g}: training has diverged"]
    if layer is not None:
        lines.append(layer)
    lines.append(f"what usually helps, in a new run: {advice}")
    return "\n".join(lines)
