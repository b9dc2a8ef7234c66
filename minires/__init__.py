"""MiniRes: residual networks from scratch, with every gradient written by hand.

kernels      the mathematics: pure functions on arrays, forward and backward side by side
Tensor       the engine: operators, backward()
functional   the kernels bound to the graph, under PyTorch's names
nn, optim, models, data, training        layers, updates, ResNets, images, whole runs
"""

from minires import cuda, data, functional, kernels, models, nn, optim
from minires.backend import cuda_problem
from minires.checkpoint import load, save
from minires.creation import arange, from_numpy, full, ones, rand, randn, tensor, zeros
from minires.errors import CheckpointError, DataError
from minires.functional import cat, matmul, maximum, minimum, stack, where
from minires.fusion import fuse
from minires.graph import Node, enable_grad, is_grad_enabled, no_grad, set_grad_enabled
from minires.models import create_model, list_models
from minires.random import get_rng_state, manual_seed, set_rng_state
from minires.tensor import Tensor, apply
from minires.values import float32, float64, int64

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "DataError",
    "Node",
    "Tensor",
    "apply",
    "arange",
    "cat",
    "create_model",
    "cuda",
    "cuda_problem",
    "data",
    "enable_grad",
    "float32",
    "float64",
    "from_numpy",
    "full",
    "functional",
    "fuse",
    "get_rng_state",
    "int64",
    "is_grad_enabled",
    "kernels",
    "list_models",
    "load",
    "manual_seed",
    "matmul",
    "maximum",
    "minimum",
    "models",
    "nn",
    "no_grad",
    "ones",
    "rand",
    "randn",
    "optim",
    "save",
    "set_grad_enabled",
    "set_rng_state",
    "stack",
    "tensor",
    "where",
    "zeros",
]
