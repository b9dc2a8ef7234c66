"""Twenty steps of training, through every function that an exercise may replace.

A small residual network on the digits: a stem with a learned shift (an addition that broadcasts), max pooling, a
BasicBlock whose last batch norm is in evaluation mode, the block that is composed by hand, a global average, and a step
of SGD on plain arrays. That step is an exercise too, and this is the only copy; ``minires.optim.SGD`` does the same in
place, with more options, and a test holds the two together.

Which kernels run is the caller's: ``with minires.textbook(), minires.using(relu=(forward, backward)): losses()``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minires.data import digits
from minires.engine.tensor import Tensor, apply
from minires.exercises.basic_block import basic_block_backward, basic_block_forward
from minires.kernels.backend import Array
from minires.models.blocks import BasicBlock, BlockOptions
from minires.nn import BatchNorm2d, Conv2d, Linear, Module, Parameter
from minires.nn import functional as F

STEPS, BATCH, CHANNELS = 20, 16, 6

#: What the network is made of, named as in minires.kernels.
OPERATIONS = (
    "add",
    "batch_norm",
    "batch_norm_inference",
    "conv2d",
    "cross_entropy",
    "global_avg_pool",
    "linear",
    "max_pool2d",
    "relu",
    "residual_add",
    "shortcut_a",
)

Pair = tuple[Callable, Callable]  # a forward and its backward

BLOCK: Pair = (basic_block_forward, basic_block_backward)


class HandBlock(Module):
    """A pair like basic_block_forward and basic_block_backward as a layer. Shapes: (N, C, H, W) -> the same."""

    def __init__(self, channels: int, pair: Pair, generator: np.random.Generator):
        self.pair = pair
        shape = (channels, channels, 3, 3)
        for i in ("1", "2"):
            setattr(self, f"w{i}", Parameter(generator.standard_normal(shape) * np.sqrt(2 / (9 * channels))))
            setattr(self, f"gamma{i}", Parameter(np.ones(channels)))
            setattr(self, f"beta{i}", Parameter(np.zeros(channels)))

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.w1, self.gamma1, self.beta1, self.w2, self.gamma2, self.beta2)
        return apply(*self.pair, x, *weights)


class SmallNet(Module):
    """The network. Shapes: (N, 1, 8, 8) -> (N, 10)."""

    def __init__(self, block: Pair) -> None:
        generator = np.random.default_rng(0)
        self.shift = Parameter(np.zeros((1, CHANNELS, 1, 1)))
        self.stem = Conv2d(1, CHANNELS, 3, padding=1, generator=generator)
        self.bn = BatchNorm2d(CHANNELS)
        self.block = BasicBlock(CHANNELS, 2 * CHANNELS, 2, BlockOptions(shortcut="A", generator=generator))
        self.by_hand = HandBlock(2 * CHANNELS, block, generator)
        self.fc = Linear(2 * CHANNELS, 10, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn(self.stem(x) + self.shift))
        out = F.max_pool2d(out, 2)
        out = self.by_hand(self.block(out))
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))


def sgd_step(
    p: Array, grad: Array, v: Array, *, lr: float, momentum: float = 0.0, weight_decay: float = 0.0, nesterov=False
) -> tuple[Array, Array]:
    """One step of stochastic gradient descent with momentum.

    Shapes: p, grad, v (all the same) -> p, v after the step: new arrays. v is 0 before the first step.
    Formula: g = grad + weight_decay p; v = momentum v + g; p = p - lr v, or with nesterov p - lr (g + momentum v).
    Source: torch.optim.SGD; Sutskever et al. 2013.
    """
    # Weight decay: a pull towards 0, as if |p|^2 weight_decay / 2 were part of the loss.
    g = grad + weight_decay * p
    # The velocity: all gradients so far, older ones less.
    v = momentum * v + g
    # Which way: with nesterov, where the velocity will lead next.
    direction = g + momentum * v if nesterov else v
    # Downhill.
    p = p - lr * direction
    return p, v


def losses(step: Callable = sgd_step, block: Pair = BLOCK) -> list[float]:
    """The loss before each of twenty steps, in float64, with the kernels that are in use.

    Args: step, what moves the weights, called as sgd_step; block, the pair of the block that is composed by hand.
    """
    data = digits().train
    model = SmallNet(block).to("float64")
    model.block.bn2.eval()
    parameters = list(model.parameters())
    velocities = [np.zeros(p.shape) for p in parameters]
    found = []
    for i in range(STEPS):
        batch = slice(i * BATCH, (i + 1) * BATCH)
        images, labels = Tensor(data.images[batch].astype("float64")), Tensor(data.labels[batch])
        loss = F.cross_entropy(model(images), labels)
        found.append(loss.item())
        for p in parameters:
            p.grad = None
        loss.backward()
        for k, p in enumerate(parameters):
            p.array, velocities[k] = step(
                p.array, p.grad.array, velocities[k], lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True
            )
    return found
