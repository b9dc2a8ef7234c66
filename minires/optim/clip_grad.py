"""Gradients kept within bounds, between backward() and the optimiser's step()."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from minires.engine.tensor import Tensor, wrap
from minires.kernels.backend import Array, array_module


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale all gradients down by one factor, in place, so that together they are no longer than max_norm.

    Formula: g *= min(1, max_norm / (norm + 1e-6)), norm of all gradients as one vector.
    Args: norm_type, 2 or another p of the p-norm, or infinity for the largest entry.
    Returns: the norm as it was, a Tensor without axes (on the gradients' device: nothing is fetched).
    Errors: ValueError for a negative max_norm, or a norm_type that is not above 0; RuntimeError where the norm is not
        finite and error_if_nonfinite is set.
    Source: torch.nn.utils.clip_grad_norm_; Pascanu et al. 2012.
    """
    max_norm, norm_type = float(max_norm), float(norm_type)
    if not max_norm >= 0 or not norm_type > 0:
        raise ValueError(f"clip_grad_norm_: expected max_norm >= 0 and norm_type > 0, got {max_norm}, {norm_type}")
    grads = gradients(parameters)
    if not grads:
        return Tensor(0.0)
    xp = array_module(grads[0])
    norms = xp.stack([p_norm(grad, norm_type) for grad in grads])
    total = p_norm(norms, norm_type)
    if error_if_nonfinite and not math.isfinite(float(total)):
        raise RuntimeError(f"clip_grad_norm_: the gradients' norm is {float(total)}; nothing was changed")
    factor = xp.minimum(max_norm / (total + 1e-6), 1.0)
    for grad in grads:
        grad *= factor.astype(grad.dtype)
    return wrap(xp.asarray(total))


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Bring every entry of every gradient into [-clip_value, clip_value], in place.

    Errors: ValueError for a negative clip_value. Source: torch.nn.utils.clip_grad_value_.
    """
    clip_value = float(clip_value)
    if not clip_value >= 0:
        raise ValueError(f"clip_grad_value_: clip_value must be at least 0, got {clip_value}")
    for grad in gradients(parameters):
        array_module(grad).clip(grad, -clip_value, clip_value, out=grad)


def gradients(parameters: Tensor | Iterable[Tensor]) -> list[Array]:
    """The gradients that are there, as arrays."""
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    return [tensor.grad.array for tensor in tensors if tensor.grad is not None]


def p_norm(x: Array, p: float) -> Array:
    """(sum |x|^p)^(1/p) over all entries, or the largest |x| for p = infinity; in float64 for float32 entries too."""
    xp = array_module(x)
    magnitude = xp.abs(x).astype(np.float64)
    if magnitude.size == 0:
        return magnitude.sum()
    if math.isinf(p):
        return magnitude.max()
    return (magnitude**p).sum() ** (1 / p)
