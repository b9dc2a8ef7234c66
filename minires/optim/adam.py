"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from minires.kernels.backend import Array, array_module
from minires.optim.optimizer import Optimizer, launch


def adam_step(
    p: Array, g: Array, m: Array, v: Array, lr: float, rate1: float, rate2: float, root: float, eps: float
) -> None:
    """One parameter and the two means of its gradients, in place. rates are 1 - beta; lr and root hold corrections."""
    m += rate1 * (g - m)
    v += rate2 * (g * g - v)
    p -= lr * m / (v**0.5 / root + eps)


class Adam(Optimizer):
    """Adam: each weight moves by the mean of its gradients over the root of their mean square, as PyTorch's.

    Formula: g = grad + weight_decay p; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2, both from 0;
        in step t: p -= lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps).
    Args: params, Tensors, or dicts with "params" and options of their own; betas, (beta1, beta2).
    Errors: ValueError for options out of range, and for no parameters.
    Source: Kingma & Ba 2014; torch.optim.Adam.
    """

    remembers = ("step", "exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def update(self, state: dict[str, Any], p: Array, grad: Array, group: dict[str, Any]) -> None:
        """Move one parameter: the formula of the class, by the function at the top."""
        xp = array_module(p)
        if not state:
            state.update(step=0, exp_avg=xp.zeros_like(p), exp_avg_sq=xp.zeros_like(p))
        state["step"] += 1
        g = self.decayed(p, grad, group)
        beta1, beta2 = group["betas"]
        # Both means started from zero and are too small by these factors, which go to 1.
        correction1 = 1 - beta1 ** state["step"]
        correction2 = 1 - beta2 ** state["step"]
        lr, root = float(group["lr"]) / correction1, correction2**0.5
        m, v = state["exp_avg"], state["exp_avg_sq"]
        launch(adam_step, p, g, m, v, lr, 1 - beta1, 1 - beta2, root, group["eps"])

    def decayed(self, p: Array, grad: Array, group: dict[str, Any]) -> Array:
        """The gradient with the weight decay in it."""
        return grad if group["weight_decay"] == 0 else grad + group["weight_decay"] * p


class AdamW(Adam):
    """Adam with decoupled weight decay: p itself shrinks, and the statistics of the gradient know nothing of it.

    Formula: p -= lr weight_decay p; then Adam's without weight decay.
    Source: Loshchilov & Hutter 2017; torch.optim.AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(params, lr, betas, eps, weight_decay)

    def decayed(self, p: Array, grad: Array, group: dict[str, Any]) -> Array:
        """The gradient as it is; the parameter is made smaller in place."""
        p *= 1 - float(group["lr"]) * group["weight_decay"]
        return grad
