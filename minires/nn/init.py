"""Initial values for parameters: Kaiming and Xavier, normal and uniform.

Each fills a tensor in place and returns it. ``generator`` is a numpy.random.Generator; where it is None, MiniRes's own
is used (``minires.manual_seed``). Values are drawn in float64 on the host, so that every device starts alike.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from minires.engine.random import default_generator
from minires.engine.tensor import Tensor
from minires.kernels.backend import array_module

if TYPE_CHECKING:
    import numpy as np


def fill(tensor: Tensor, values: np.ndarray) -> Tensor:
    """Write values drawn on the host into a tensor's memory."""
    tensor.array[...] = array_module(tensor.array).asarray(values.astype(tensor.dtype))
    return tensor


def normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: np.random.Generator | None = None
) -> Tensor:
    """Normally distributed values. Source: torch.nn.init.normal_."""
    return fill(tensor, mean + std * default_generator(generator).standard_normal(tensor.shape))


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: np.random.Generator | None = None) -> Tensor:
    """Values spread evenly over [a, b). Source: torch.nn.init.uniform_."""
    return fill(tensor, a + (b - a) * default_generator(generator).random(tensor.shape))


def constant_(tensor: Tensor, val: float) -> Tensor:
    """One value everywhere. Source: torch.nn.init.constant_."""
    tensor.array[...] = val
    return tensor


def zeros_(tensor: Tensor) -> Tensor:
    """0 everywhere. Source: torch.nn.init.zeros_."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """1 everywhere. Source: torch.nn.init.ones_."""
    return constant_(tensor, 1.0)


def fans(tensor: Tensor) -> tuple[int, int]:
    """How many values feed one output (fan_in), and how many outputs one value feeds (fan_out).

    Shapes: tensor (out, in) or (O, C/groups, KH, KW).
    Errors: ValueError for fewer than two axes.
    Source: torch.nn.init._calculate_fan_in_and_fan_out.
    """
    if tensor.ndim < 2:
        raise ValueError(f"init: fan_in and fan_out need at least two axes, got shape {tensor.shape}")
    area = math.prod(tensor.shape[2:])
    return tensor.shape[1] * area, tensor.shape[0] * area


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """By how much a nonlinearity shrinks the standard deviation; param is leaky_relu's slope (0.01).

    Errors: ValueError for an unknown nonlinearity.
    Source: torch.nn.init.calculate_gain.
    """
    if nonlinearity in ("linear", "conv2d", "sigmoid"):
        return 1.0
    if nonlinearity == "tanh":
        return 5 / 3
    if nonlinearity == "relu":
        return math.sqrt(2)
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        return math.sqrt(2 / (1 + slope**2))
    known = "linear, conv2d, sigmoid, tanh, relu or leaky_relu"
    raise ValueError(f"init: nonlinearity must be {known}, got {nonlinearity!r}")


def kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    """gain / sqrt(fan): the standard deviation that keeps a signal's spread (fan_in) or a gradient's (fan_out)."""
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f'init: mode must be "fan_in" or "fan_out", got {mode!r}')
    fan_in, fan_out = fans(tensor)
    fan = fan_in if mode == "fan_in" else fan_out
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: np.random.Generator | None = None,
) -> Tensor:
    """Normal with std = gain / sqrt(fan). Source: He et al. 2015b (rectifiers); torch.nn.init.kaiming_normal_."""
    return normal_(tensor, 0.0, kaiming_std(tensor, a, mode, nonlinearity), generator)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: np.random.Generator | None = None,
) -> Tensor:
    """Uniform with the same std as kaiming_normal_. Source: torch.nn.init.kaiming_uniform_."""
    bound = math.sqrt(3) * kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: np.random.Generator | None = None) -> Tensor:
    """Normal with std = gain sqrt(2 / (fan_in + fan_out)). Source: Glorot & Bengio 2010; torch.nn.init."""
    return normal_(tensor, 0.0, gain * math.sqrt(2 / sum(fans(tensor))), generator)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: np.random.Generator | None = None) -> Tensor:
    """Uniform with the same std as xavier_normal_. Source: Glorot & Bengio 2010; torch.nn.init."""
    bound = gain * math.sqrt(6 / sum(fans(tensor)))
    return uniform_(tensor, -bound, bound, generator)
