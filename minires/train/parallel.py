"""Data-parallel training over MPI: every worker has the whole model, and a part of each batch.

All begin with the same weights (``broadcast``). Each goes forward and backward through its part, the gradients are
averaged over the workers (``backward``), and all make the same step: so the weights stay the same without being sent
again. ``mpiexec -n 4 python train.py`` starts four workers; without it there is one, and nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from minires.engine.modes import Watcher, mode, topological_order
from minires.engine.tensor import Node, Tensor, wrap
from minires.kernels.backend import Array, array_module, to_numpy
from minires.nn import SyncBatchNorm
from minires.train.launch import alone, check_same, clock, first, gradients, group, message, seconds, wait

__all__ = ["alone", "backward", "broadcast", "check_same", "first", "rank", "seconds", "size", "total"]

BUCKET = 4_000_000  # bytes: few messages, and the first leaves early


def rank() -> int:
    """The number of this worker, from 0; 0 inside ``alone``. Source: torch.distributed.get_rank."""
    return 0 if group() is None else group().rank


def size() -> int:
    """How many workers there are; 1 inside ``alone``. Source: torch.distributed.get_world_size."""
    return 1 if group() is None else group().size


def broadcast(state: Mapping[str, Tensor]) -> None:
    """Give all workers the values of rank 0: ``broadcast(model.state_dict())``, before the training begins.

    Errors: ValueError, on every worker, where names, shapes or dtypes are not the same on all.
    """
    if size() == 1:
        return
    check_same({name: f"{tensor.dtype} {tensor.shape}" for name, tensor in state.items()})
    values = first(lambda: {name: to_numpy(tensor.array) for name, tensor in state.items()})
    for name, tensor in state.items():
        tensor.array[...] = array_module(tensor.array).asarray(values[name])


def total(x: Array) -> Array:
    """The sum over all workers of arrays of one shape. Shapes: x any -> the same, a new array."""
    if size() == 1:
        return x.copy()
    sent = message(x)
    result = array_module(sent).empty_like(sent)
    wait([group().Iallreduce(sent, result)])
    return array_module(x).asarray(result).reshape(x.shape)  # MPI's array has an axis where x has none


def backward(loss: Tensor, parameters: Iterable[Tensor], share: float | None = None) -> None:
    """``loss.backward()`` with gradients averaged over all workers, each of which calls it with its own loss.

    Args: share, the weight of this worker's loss in the mean: its images divided by those of all workers (1 / size()
        where left out, for parts of equal size).
    Errors: as Tensor.backward.
    Source: Li et al. 2020, PyTorch Distributed: buckets in reverse order, sent while backward goes on.
    """
    if size() == 1 or loss.node is None or loss.array.size != 1:  # many values: an error
        loss.backward()
        return
    # Weighed at the start, so that only sums are left to do: synchronised batch norm needs it so.
    dy = wrap(array_module(loss.array).full_like(loss.array, 1 / size() if share is None else share))
    learned = [p for p in parameters if p.requires_grad]
    before = [p.grad for p in learned]
    sums = GradientSums(loss.node, learned)
    mode.watchers = (*mode.watchers, sums)
    try:
        loss.backward(dy)
    finally:
        mode.watchers = mode.watchers[:-1]
    sums.wait()
    for p, old in zip(learned, before, strict=True):
        bucket, i = sums.place[id(p)]
        if bucket.came[i]:
            p.grad = wrap(bucket.gradients[i] if old is None else old.array + bucket.gradients[i])


class Bucket:
    """The gradients of some parameters in one flat array; behind them, for each, how many workers have one."""

    def __init__(self, parameters: list[Tensor]):
        xp, dtype = array_module(parameters[0].array), parameters[0].dtype
        ends = np.cumsum([p.array.size for p in parameters]).tolist()
        self.flat = xp.zeros(ends[-1] + len(parameters), dtype)
        *parts, self.came = xp.split(self.flat, ends)
        self.gradients = [part.reshape(p.shape) for part, p in zip(parts, parameters, strict=True)]
        self.uses = 0  # of its parameters by operations whose backward is still to come


class GradientSums(Watcher):
    """Watches one backward, and sends each bucket off as soon as its gradients are final."""

    def __init__(self, last: Node, parameters: list[Tensor]):
        groups: list[list[Tensor]] = []
        for p in reversed(parameters):  # backward comes to the last layers first
            if not groups or p.dtype != groups[-1][0].dtype or sum(q.array.nbytes for q in groups[-1]) >= BUCKET:
                groups.append([])
            groups[-1].append(p)
        self.buckets = [Bucket(group) for group in groups]
        pairs = zip(self.buckets, groups, strict=True)
        self.place = {id(p): (bucket, i) for bucket, group in pairs for i, p in enumerate(group)}
        self.sent: list[Array] = []
        self.requests: list[Any] = []
        for node in topological_order(last):
            for parent in node.parents:
                if id(parent) in self.place:
                    self.place[id(parent)][0].uses += 1

    def after_backward(self, node: Node, grads: Any) -> None:
        """Take a copy of what is for the parameters."""
        grads = grads if isinstance(grads, tuple) else (grads,)
        for parent, grad in zip(node.parents, grads, strict=False):
            if id(parent) in self.place:
                bucket, i = self.place[id(parent)]
                bucket.gradients[i] += grad
                bucket.came[i] = 1
                bucket.uses -= 1
        self.send(waiting_for=0)

    def send(self, waiting_for: float) -> None:
        """Send the buckets that wait for no more gradients than that: in the same order on every worker."""
        from mpi4py import MPI

        with clock():
            while len(self.sent) < len(self.buckets) and self.buckets[len(self.sent)].uses <= waiting_for:
                self.sent.append(message(self.buckets[len(self.sent)].flat))
                self.requests.append(gradients().Iallreduce(MPI.IN_PLACE, self.sent[-1]))
            MPI.Request.Testall(self.requests)  # MPI moves data on only while it is asked

    def wait(self) -> None:
        """Send what is left, and wait for the sums."""
        self.send(waiting_for=float("inf"))  # a parameter may have no gradient here, and have one on another worker
        wait(self.requests)
        for bucket, sent in zip(self.buckets, self.sent, strict=True):
            if sent is not bucket.flat:
                bucket.flat[...] = array_module(bucket.flat).asarray(sent)
            bucket.came = to_numpy(bucket.came)


def total_or_none() -> Callable[[Array], Array] | None:
    """``total`` where there are several workers."""
    return total if size() > 1 else None


SyncBatchNorm.workers = staticmethod(total_or_none)  # nn stands below this room, and cannot ask
