"""MiniRes: residual networks from scratch, with every gradient written by hand.

engine       Tensor, apply, backward on one screen
kernels      the mathematics: pure functions on arrays, forward and backward side by side
nn, optim, models, data, train           layers, updates, ResNets, images, whole runs
gradcheck, debug, exercises, bench       is it right; looking inside; courses; how fast

What is not needed at once is imported when it is asked for. The map of the house is README.md beside this file.
"""

import importlib
import sys
from importlib.machinery import ModuleSpec

from minires import data, kernels, models, nn, optim
from minires.data.binary import CheckpointError, DataError
from minires.data.checkpoint import load, save
from minires.engine import cuda
from minires.engine.convert import float32, float64, int64
from minires.engine.creation import arange, from_numpy, full, ones, rand, randn, tensor, zeros
from minires.engine.modes import enable_grad, is_grad_enabled, no_grad, set_grad_enabled, textbook, using
from minires.engine.random import get_rng_state, manual_seed, set_rng_state
from minires.engine.tensor import Node, Tensor, apply
from minires.kernels.backend import cuda_problem
from minires.models import create_model, list_models
from minires.models.fusion import fuse
from minires.nn import functional
from minires.nn.functional import cat, matmul, maximum, minimum, stack, where

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
    "textbook",
    "using",
    "where",
    "zeros",
]

#: Rooms that are imported when they are asked for.
ROOMS = ("bench", "debug", "engine", "exercises", "gradcheck", "train")

#: Modules that stand in a room and have a short name as well: ``import minires.functional as F``, ``minires.plots``.
SHORT = {
    "backend": "kernels.backend",
    "checkpoint": "data.checkpoint",
    "cuda": "engine.cuda",
    "functional": "nn.functional",
    "fusion": "models.fusion",
    "parallel": "train.parallel",
    "plots": "debug.plots",
    "prediction": "train.prediction",
    "recipes": "train.recipes",
    "summary": "models.summary",
    "training": "train.training",
}


def __getattr__(name: str) -> object:
    """A room or a short name as an attribute: ``minires.gradcheck``."""
    if name in ROOMS or name in SHORT:
        return importlib.import_module(f"minires.{name}")
    raise AttributeError(f"module 'minires' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *ROOMS, *SHORT, "__version__"})


class ShortNames:
    """Finds ``minires.functional`` where it stands, as ``minires.nn.functional``: one module with two names."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """What Python asks when it imports a name that is no file."""
        package, _, name = fullname.partition(".")
        if package == "minires" and name in SHORT:
            return ModuleSpec(fullname, self)
        return None

    def create_module(self, spec: object) -> object:
        """The module itself, by its long name."""
        module = importlib.import_module("minires." + SHORT[spec.name.partition(".")[2]])
        self.own_spec = module.__spec__
        return module

    def exec_module(self, module: object) -> None:
        """It has run already."""
        module.__spec__ = self.own_spec


sys.meta_path.append(ShortNames())
