"""How a model does: sums over batches, and the score on a data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minires.data import ArrayDataset, DataLoader
from minires.engine.modes import no_grad
from minires.engine.tensor import Tensor
from minires.kernels.backend import Array, array_module, to_numpy
from minires.nn import Module
from minires.nn import functional as F
from minires.train import parallel


class Score(NamedTuple):
    """How a model does on a data set."""

    loss: float
    correct: int
    count: int

    @property
    def accuracy(self) -> float:
        """The share of the images that are classified right."""
        return self.correct / self.count


class Totals:
    """Sums over the batches of an epoch. They stay on the device until ``fetch``: nothing waits for it."""

    def __init__(self, loss: float = 0.0, correct: int = 0, count: int = 0):
        self.loss: Array = np.float64(loss)
        self.correct: Array = np.int64(correct)
        self.count = count

    def add(self, loss: Tensor, correct: Tensor, count: int) -> None:
        """Add a batch: its mean loss, and its right answers."""
        xp = array_module(loss.array)
        self.loss = xp.asarray(self.loss) + loss.array.astype(np.float64) * count
        self.correct = xp.asarray(self.correct) + correct.array.astype(np.int64)
        self.count += count

    def fetch(self) -> tuple[float, int]:
        """Both sums as Python's numbers; one wait for the device."""
        xp = array_module(self.loss)
        loss, correct = to_numpy(xp.stack([self.loss, self.correct.astype(np.float64)]))
        return float(loss), int(correct)


@no_grad()
def right_answers(logits: Tensor, labels: Tensor) -> Tensor:
    """How many images of a batch are classified right, on the batch's device. Shapes: (N, classes), (N,) -> ()."""
    return (logits.detach().argmax(dim=1) == labels).sum()


@no_grad()
def evaluate(
    model: Module,
    dataset: ArrayDataset,
    batch_size: int = 256,
    device: str = "cpu",
    on_batch: Callable[[], None] | None = None,
    sharded: bool = False,
) -> Score:
    """Mean cross entropy and number of right answers, in evaluation mode; the model's mode is put back afterwards.

    Args: on_batch is called after each batch; sharded, each worker (parallel.py) takes its part of the images, and all
        get the score of all: then every worker must call it.
    """
    was_training = model.training
    model.eval()
    totals = Totals()
    size, rank = (parallel.size(), parallel.rank()) if sharded else (1, 0)
    loader = DataLoader(dataset, batch_size * size, num_replicas=size, rank=rank)
    try:
        for i, (images, labels) in enumerate(loader):
            if rank == 0 or loader.is_cut(i):
                images, labels = images.to(device), labels.to(device)
                logits = model(images)
                totals.add(F.cross_entropy(logits, labels), right_answers(logits, labels), len(labels))
            if on_batch is not None:
                on_batch()
    finally:
        model.train(was_training)
    loss, correct = totals.fetch()
    if sharded:
        loss, correct, count = parallel.total(np.array([loss, correct, totals.count])).tolist()
        return Score(loss / count, int(correct), int(count))
    return Score(loss / totals.count, correct, totals.count)
