"""The kernels that are timed: convolutions, batch norm, ReLU and max pool, called bare on both sides.

MiniRes's kernels get their arrays in the memory order in which a convolution of MiniRes returns them, as they do inside
a network; PyTorch's get theirs in PyTorch's.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np

from minires import kernels
from minires.bench.timing import Sides, backward_products, floor_work, forward_product
from minires.kernels import fast

EPS = 1e-5  # of batch norm


class Convolution(NamedTuple):
    """A convolution without bias on square images, with a square kernel."""

    batch: int
    channels: int
    size: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    needs_dx: bool = True

    def __str__(self) -> str:
        text = f"{self.channels}x{self.size}x{self.size} -> {self.outputs}, {self.kernel}x{self.kernel}"
        if self.stride != 1:
            text += f" s{self.stride} p{self.padding}"
        return f"{text}, batch {self.batch}"


class Layer(NamedTuple):
    """A feature map that a layer without a matrix product is given."""

    batch: int
    channels: int
    size: int

    def __str__(self) -> str:
        return f"{self.channels}x{self.size}x{self.size}, batch {self.batch}"


#: The 3x3 convolutions of a CIFAR ResNet's stages, those of an ImageNet ResNet's, and the stem. The stem's input is the
#: images: nobody asks for their gradient.
CONVOLUTIONS = [
    Convolution(64, 16, 32, 16),
    Convolution(64, 32, 16, 32),
    Convolution(64, 64, 8, 64),
    Convolution(8, 64, 56, 64),
    Convolution(8, 128, 28, 128),
    Convolution(8, 256, 14, 256),
    Convolution(8, 512, 7, 512),
    Convolution(8, 3, 224, 64, kernel=7, stride=2, padding=3, needs_dx=False),
]

LAYERS = [Layer(64, 16, 32), Layer(8, 64, 56)]
POOLED = Layer(8, 64, 112)  # by 3x3 with stride 2 and padding 1: after the ImageNet stem
POOLING = {"kernel_size": 3, "stride": 2, "padding": 1}


def filled(array: np.ndarray, seed: int) -> np.ndarray:
    """The same array, in the same memory, with normal random numbers."""
    array[...] = np.random.default_rng(seed).standard_normal(array.shape, np.float32)
    return array


def feature_map(batch: int, channels: int, size: int, seed: int) -> np.ndarray:
    """Random numbers (N, C, H, W) in memory that a convolution returned: its order is what networks have."""
    x = np.zeros((batch, 1, size, size), np.float32)
    y, _ = fast.conv2d_forward(x, np.zeros((channels, 1, 1, 1), np.float32))
    return filled(y, seed)


def convolution_arrays(case: Convolution) -> tuple[np.ndarray, np.ndarray]:
    """x and w. Where x is the images, it lies in memory as a loader gives it."""
    N, C, H, O, K = case.batch, case.channels, case.size, case.outputs, case.kernel
    x = feature_map(N, C, H, 0) if case.needs_dx else filled(np.empty((N, C, H, H), np.float32), 0)
    w = filled(np.empty((O, C, K, K), np.float32), 1)
    w *= np.sqrt(2 / (C * K * K))  # Kaiming's: y is about as large as x
    return x, w


def convolution_sizes(case: Convolution) -> tuple[int, int, int]:
    """The sizes of the convolution as a matrix product: O, C*KH*KW and N*OH*OW."""
    side = (case.size + 2 * case.padding - case.kernel) // case.stride + 1
    return case.outputs, case.channels * case.kernel**2, case.batch * side**2


def convolution_forward(case: Convolution, pytorch: ModuleType | None) -> Sides:
    """A convolution."""
    x, w = convolution_arrays(case)
    options = {"stride": case.stride, "padding": case.padding, "needs_dx": case.needs_dx}

    def ours() -> list[np.ndarray]:
        return [fast.conv2d_forward(x, w, **options)[0]]

    return Sides(
        ours,
        pytorch.convolution_forward(x, w, case.stride, case.padding) if pytorch else None,
        floor_work([forward_product(*convolution_sizes(case))]),
    )


def convolution_backward(case: Convolution, pytorch: ModuleType | None) -> Sides:
    """The gradients of a convolution."""
    x, w = convolution_arrays(case)
    options = {"stride": case.stride, "padding": case.padding, "needs_dx": case.needs_dx}
    _, cache = fast.conv2d_forward(x, w, **options)
    dy = filled(fast.conv2d_forward(x, w, **options)[0], 2)  # of a second call: the cache may hold the first one's

    def ours() -> list[np.ndarray]:
        return [gradient for gradient in fast.conv2d_backward(dy, cache) if gradient is not None]

    return Sides(
        ours,
        pytorch.convolution_backward(x, w, dy, case.stride, case.padding, case.needs_dx) if pytorch else None,
        floor_work(backward_products(*convolution_sizes(case), needs_dx=case.needs_dx)),
    )


def batch_norm_arrays(case: Layer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, gamma and beta."""
    gamma = 1 + 0.1 * filled(np.empty(case.channels, np.float32), 1)
    return feature_map(*case, 0), gamma, filled(np.empty(case.channels, np.float32), 2)


def batch_norm_forward(case: Layer, pytorch: ModuleType | None) -> Sides:
    """Batch norm in training."""
    x, gamma, beta = batch_norm_arrays(case)

    def ours() -> list[np.ndarray]:
        return [fast.batch_norm_forward(x, gamma, beta, eps=EPS)[0]]

    return Sides(ours, pytorch.batch_norm_forward(x, gamma, beta, EPS) if pytorch else None)


def batch_norm_backward(case: Layer, pytorch: ModuleType | None) -> Sides:
    """The gradients of batch norm in training."""
    x, gamma, beta = batch_norm_arrays(case)
    _, cache = fast.batch_norm_forward(x, gamma, beta, eps=EPS)
    dy = filled(fast.batch_norm_forward(x, gamma, beta, eps=EPS)[0], 3)

    def ours() -> list[np.ndarray]:
        return list(fast.batch_norm_backward(dy, cache))

    return Sides(ours, pytorch.batch_norm_backward(x, gamma, beta, dy, EPS) if pytorch else None)


def relu_forward(case: Layer, pytorch: ModuleType | None) -> Sides:
    """ReLU."""
    x = feature_map(*case, 0)

    def ours() -> list[np.ndarray]:
        return [kernels.relu_forward(x)[0]]

    return Sides(ours, pytorch.relu_forward(x) if pytorch else None)


def relu_backward(case: Layer, pytorch: ModuleType | None) -> Sides:
    """The gradient of ReLU."""
    x = feature_map(*case, 0)
    _, cache = kernels.relu_forward(x)
    dy = filled(kernels.relu_forward(x)[0], 1)

    def ours() -> list[np.ndarray]:
        return [kernels.relu_backward(dy, cache)]

    return Sides(ours, pytorch.relu_backward(x, dy) if pytorch else None)


def max_pool_forward(case: Layer, pytorch: ModuleType | None) -> Sides:
    """Max pooling."""
    x = feature_map(*case, 0)

    def ours() -> list[np.ndarray]:
        return [fast.max_pool2d_forward(x, **POOLING)[0]]

    return Sides(ours, pytorch.max_pool_forward(x, *POOLING.values()) if pytorch else None)


def max_pool_backward(case: Layer, pytorch: ModuleType | None) -> Sides:
    """The gradient of max pooling."""
    x = feature_map(*case, 0)
    _, cache = fast.max_pool2d_forward(x, **POOLING)
    dy = filled(fast.max_pool2d_forward(x, **POOLING)[0], 1)

    def ours() -> list[np.ndarray]:
        return [fast.max_pool2d_backward(dy, cache)]

    return Sides(ours, pytorch.max_pool_backward(x, dy, *POOLING.values()) if pytorch else None)
