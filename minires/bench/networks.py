"""The networks that are timed: built with the same weights on both sides, and one step of each."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import numpy as np

from minires.bench.timing import Product, Sides, Work, backward_products, floor_work, forward_product
from minires.engine.modes import no_grad
from minires.engine.tensor import Tensor
from minires.models import create_model
from minires.models.fusion import fuse
from minires.models.summary import summarize
from minires.nn import BatchNorm2d, Conv2d, Linear, Module
from minires.nn import functional as F
from minires.optim import SGD

#: Of SGD, on both sides.
LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4


class Network(NamedTuple):
    """A network at work: a training step, or inference."""

    name: str
    model: str  # its name in the zoo
    batch: int
    image: tuple[int, int, int]
    training: bool
    change: Callable[[Module], Module] | None = None  # what is done to MiniRes's network, and not to PyTorch's


IMAGENET, CIFAR = (3, 224, 224), (3, 32, 32)

NETWORKS = [
    Network("ResNet-20 training step, batch 64", "resnet20", 64, CIFAR, training=True),
    Network("ResNet-20 training step, batch 128", "resnet20", 128, CIFAR, training=True),
    Network("ResNet-18 training step, batch 8", "resnet18", 8, IMAGENET, training=True),
    Network("ResNet-18 inference, batch 8", "resnet18", 8, IMAGENET, training=False),
    Network("ResNet-50 inference, batch 8", "resnet50", 8, IMAGENET, training=False),
    Network("ResNet-50 inference fused, batch 1", "resnet50", 1, IMAGENET, training=False, change=fuse),
    Network("ResNet-50 inference fused, batch 8", "resnet50", 8, IMAGENET, training=False, change=fuse),
]


class Batch(NamedTuple):
    """Random images and labels: what a step is given."""

    images: np.ndarray  # (N, C, H, W)
    labels: np.ndarray  # (N,)


def make_batch(network: Network) -> Batch:
    """The same images and labels on every side and every run."""
    rng = np.random.default_rng(1)
    images = rng.standard_normal((network.batch, *network.image), np.float32)
    return Batch(images, rng.integers(0, 10, network.batch))


def make_model(network: Network) -> Module:
    """The network with seeded weights, in the right mode, before any change.

    Batch norm gets statistics and weights as if it had been trained: with the initial ones, means of 0 and variances of
    1, a side that left it out in evaluation would pass as equal.
    """
    rng = np.random.default_rng(2)
    model = create_model(network.model, generator=rng)
    for layer in model.modules():
        if isinstance(layer, BatchNorm2d):
            for tensor, low, high in (
                (layer.weight, 0.5, 1.0),
                (layer.bias, -0.1, 0.1),
                (layer.running_mean, -0.1, 0.1),
                (layer.running_var, 0.5, 1.5),
            ):
                tensor.array[...] = rng.uniform(low, high, tensor.shape)
    return model.train(network.training)


def minires_step(network: Network) -> Work:
    """MiniRes's side: a function that makes one step and returns the logits, and in training the loss too.

    Gradients are not compared: in float32 a few of them jump, where rounding carries a value across the kink of a ReLU.
    What they did shows in the next step's logits.
    """
    batch = make_batch(network)
    images, labels = Tensor(batch.images), Tensor(batch.labels)
    model = make_model(network)
    if network.change is not None:
        model = network.change(model)

    def infer() -> list[Tensor]:
        with no_grad():
            return [model(images)]

    if not network.training:
        return infer
    optimizer = SGD(model.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY)

    def train() -> list[Tensor]:
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        return [logits, loss]

    return train


def pytorch_step(network: Network, pytorch: ModuleType) -> Work:
    """PyTorch's side of the same, from the same weights."""
    batch = make_batch(network)
    model = pytorch.build_like(network.model, make_model(network).state_dict()).train(network.training)
    if network.training:
        return pytorch.training_step(model, batch.images, batch.labels, LR, MOMENTUM, WEIGHT_DECAY)
    return pytorch.inference(model, batch.images)


def network_products(model: Module, image: tuple[int, int, int], batch: int, training: bool) -> list[Product]:
    """The products of a network's convolutions and linear layers, found by running one image through it.

    Nobody asks for the gradient of the images, so the first layer has no dx.
    """
    modules = dict(model.named_modules())
    products = []
    first = True
    for row in summarize(model, image).rows:
        layer = modules[row.name]
        if isinstance(layer, (Conv2d, Linear)):
            outputs = layer.weight.shape[0]
            inputs = layer.weight.numel() // outputs
            places = batch * int(np.prod(row.output_shape[2:]))
            products.append(forward_product(outputs, inputs, places))
            if training:
                products.extend(backward_products(outputs, inputs, places, needs_dx=not first))
            first = False
    return products


def network_sides(network: Network, pytorch: ModuleType | None) -> Sides:
    """Both sides of a network's row; its floor is that of the network before any change."""
    products = network_products(make_model(network), network.image, network.batch, network.training)
    return Sides(
        minires_step(network),
        pytorch_step(network, pytorch) if pytorch else None,
        floor_work(products),
    )
