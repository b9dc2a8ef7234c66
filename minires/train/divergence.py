"""A training whose numbers are not finite any more: where it began, and what usually helps."""

from __future__ import annotations

from minires.engine.modes import no_grad
from minires.engine.tensor import Tensor
from minires.kernels.backend import all_finite
from minires.models.tracing import layer_calls
from minires.nn import Module
from minires.nn.state import statistics_kept

BAD_IMAGES = "the images themselves are not finite"


class Divergence(FloatingPointError):
    """A loss or a weight became infinite, or no number."""


@no_grad()
def first_bad_layer(model: Module, images: Tensor | None, training: bool = True) -> str | None:
    """The first layer whose output is not finite for these images, in words; None where all are.

    The forward pass is run once more, in training mode or not; the running statistics are put back afterwards.
    """
    if images is None:
        return None
    if not all_finite(images.array):
        return BAD_IMAGES
    with statistics_kept(model):
        calls, _ = layer_calls(model, images, training=training)
    for call in calls:
        if isinstance(call.output, Tensor) and not all_finite(call.output.array):
            kind = type(call.layer).__name__
            bad = [name for name, tensor in call.layer.state_dict().items() if not all_finite(tensor.array)]
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
