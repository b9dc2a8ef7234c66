"""Optimisers and learning-rate schedules, under PyTorch's names."""

from minires.optim import lr_scheduler
from minires.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)
from minires.optim.sgd import SGD

__all__ = [
    "SGD",
    "CosineAnnealingLR",
    "LRScheduler",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "SequentialLR",
    "StepLR",
    "lr_scheduler",
]
