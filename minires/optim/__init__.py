"""Optimisers, learning-rate schedules and what goes with them, under PyTorch's names."""

from minires.optim import lr_scheduler, swa_utils
from minires.optim.adam import Adam, AdamW
from minires.optim.clip_grad import clip_grad_norm_, clip_grad_value_
from minires.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)
from minires.optim.optimizer import Optimizer
from minires.optim.sgd import SGD
from minires.optim.swa_utils import AveragedModel

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "AveragedModel",
    "CosineAnnealingLR",
    "LRScheduler",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "Optimizer",
    "SequentialLR",
    "StepLR",
    "clip_grad_norm_",
    "clip_grad_value_",
    "lr_scheduler",
    "swa_utils",
]
