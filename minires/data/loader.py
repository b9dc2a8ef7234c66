"""The loader that hands a dataset out in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from minires.data.dataset import ArrayDataset
from minires.engine.creation import from_numpy
from minires.engine.tensor import Tensor

AHEAD = 2  # batches that each worker prepares before they are asked for


@dataclass
class Epoch:
    """One way through the dataset: the generators' states before it, and how many batches were handed out."""

    shuffle: dict[str, Any]
    augmentation: dict[str, Any]
    position: int = 0


class DataLoader:
    """Batches of a dataset as Tensors on the CPU, in order or shuffled.

    Args: dataset; batch_size; shuffle, a new order each time it is iterated over; drop_last, leave out a smaller last
        batch; seed, of the shuffling and of the transform: the same seed gives the same batches, epoch by epoch.
        transform, called as transform(images, generator) with each batch as it is stored, uint8 say (what is uint8
        after it too is normalised by the dataset); workers, threads that prepare batches ahead (0: none): they change
        nothing in what comes; num_replicas and rank, for several workers with the same seed: each gets its part of
        every batch, and batch_size counts all parts, which differ by one at most (``share``). A batch of fewer than two
        images a worker is not cut: all get the whole of it. With a transform, only this worker's images
        are read, and black ones stand for the others while it makes its choices: it must treat each image by itself.
    Yields: (images (n, C, H, W), labels (n,)).
    Errors: ValueError for a batch size below 1, or larger than the dataset with drop_last, or a rank out of range. What
        a worker raises is raised where the batch is asked for.
    Source: torch.utils.data.DataLoader and DistributedSampler.
    """

    def __init__(
        self,
        dataset: ArrayDataset,
        batch_size: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int | np.random.Generator = 0,
        transform: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
        workers: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ):
        if not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
            raise ValueError(f"DataLoader: batch_size must be a positive int, got {batch_size!r}")
        if not isinstance(dataset, ArrayDataset):
            kind = type(dataset).__name__
            raise TypeError(f"DataLoader: expected an ArrayDataset (digits().train, say), got {kind}")
        if drop_last and batch_size > len(dataset):
            raise ValueError(
                f"DataLoader: drop_last would leave nothing, batch_size {batch_size} is larger than {len(dataset)}"
            )
        if not isinstance(workers, (int, np.integer)) or workers < 0:
            raise ValueError(f"DataLoader: workers must be an int of at least 0, got {workers!r}")
        if transform is not None and not callable(transform):
            raise TypeError(f"DataLoader: transform must be called with images and a generator, got {transform!r}")
        if not isinstance(num_replicas, (int, np.integer)) or num_replicas < 1:
            raise ValueError(f"DataLoader: num_replicas must be a positive int, got {num_replicas!r}")
        if not isinstance(rank, (int, np.integer)) or not 0 <= rank < num_replicas:
            raise ValueError(f"DataLoader: rank must lie between 0 and {num_replicas - 1}, got {rank!r}")
        self.dataset = dataset
        self.num_replicas = num_replicas
        self.rank = rank
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.transform = transform
        self.workers = workers
        self.generator = np.random.default_rng(seed)
        self.augmentation = self.generator.spawn(1)[0]  # of its own: with or without a transform, the same orders
        self._epoch: Epoch | None = None  # the one that was begun last, and not finished
        self._resume = False  # whether the next iteration goes on with it

    def __len__(self) -> int:
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._resume and self._epoch is not None:
            epoch = self._epoch
        else:
            epoch = self._now()
        self._epoch, self._resume = epoch, False
        size = len(self.dataset)
        order = self.generator.permutation(size) if self.shuffle else np.arange(size)
        salt = int(self.augmentation.integers(2**63))
        with closing(self._batches(order, salt, epoch.position)) as batches:
            for images, labels in batches:
                epoch.position += 1
                yield from_numpy(images), from_numpy(labels)
        if self._epoch is epoch:
            self._epoch = None

    def _batches(self, order: np.ndarray, salt: int, start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The batches of an epoch from a position on, prepared here or by workers."""
        if self.workers == 0:
            for i in range(start, len(self)):
                yield self._batch(order, salt, i)
            return
        from concurrent.futures import Future, ThreadPoolExecutor

        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="minires-loader")
        ahead: deque[Future] = deque()
        try:
            for i in range(start, len(self)):
                ahead.append(pool.submit(self._batch, order, salt, i))
                if len(ahead) > AHEAD * self.workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:  # reached too where the caller leaves the loop, or is interrupted
            pool.shutdown(wait=True, cancel_futures=True)

    def _batch(self, order: np.ndarray, salt: int, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch i of an epoch: its transform has a generator of its own, so that no batch depends on another."""
        indices = order[i * self.batch_size : (i + 1) * self.batch_size]
        mine = self.part(i)
        if self.transform is None:
            return self.dataset[indices[mine]]
        images, labels = self.dataset.images[indices[mine]], self.dataset.labels[indices[mine]]
        if len(images) < len(indices):
            whole = np.zeros((len(indices), *images.shape[1:]), images.dtype)
            whole[mine] = images
            images = whole
        images = self.transform(images, np.random.default_rng([salt, i]))
        if not isinstance(images, np.ndarray) or len(images) != len(indices):
            came = images.shape if isinstance(images, np.ndarray) else type(images).__name__
            raise ValueError(f"DataLoader: the transform was given {len(indices)} images and gave back {came}")
        return self.dataset.normalized(images[mine]), labels

    def length(self, i: int) -> int:
        """How many images batch i of an epoch has, over all workers."""
        return min(self.batch_size, len(self.dataset) - i * self.batch_size)

    def is_cut(self, i: int) -> bool:
        """Whether batch i of an epoch is cut into parts; otherwise every worker gets the whole of it."""
        return self.length(i) >= 2 * self.num_replicas > 2

    def part(self, i: int) -> slice:
        """What of batch i is for this worker."""
        length = self.length(i)
        if not self.is_cut(i):
            return slice(0, length)
        size, more = divmod(length, self.num_replicas)  # the first workers get one more
        start = self.rank * size + min(self.rank, more)
        return slice(start, start + size + (self.rank < more))

    def share(self, i: int) -> float:
        """What this worker's mean over batch i of an epoch weighs in the mean over all workers."""
        part = self.part(i)
        return (part.stop - part.start) / self.length(i) if self.is_cut(i) else 1 / self.num_replicas

    def _now(self) -> Epoch:
        """An epoch that begins with the generators as they are."""
        return Epoch(self.generator.bit_generator.state, self.augmentation.bit_generator.state)

    def _kind(self) -> dict[str, Any]:
        """What must be equal for a state to make sense."""
        size, batch_size = len(self.dataset), int(self.batch_size)
        return {"size": size, "batch_size": batch_size, "shuffle": self.shuffle, "drop_last": self.drop_last}

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: how many batches of the epoch were handed out, and the generators' states before it.

        Plain ints, strings and dicts for NumPy's default generator: json.dumps takes them.
        """
        epoch = self._epoch or self._now()
        states = {"shuffle": epoch.shuffle, "augmentation": epoch.augmentation}
        return {"position": epoch.position, "states": states, "loader": self._kind()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was taken: the next iteration gives the rest of its epoch, bit for bit.

        The rest is empty where the state was taken while the epoch's last batch was in use. ``workers`` may differ.
        Errors: ValueError for a state of another loader (size, batch_size, shuffle, drop_last), or no state at all.
        """
        try:
            position, states, kind = state["position"], state["states"], state["loader"]
            shuffle, augmentation = states["shuffle"], states["augmentation"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"DataLoader: expected what state_dict() gave, got {state!r}") from error
        if kind != self._kind():
            raise ValueError(f"DataLoader: the state is of a loader with {kind}, and this one has {self._kind()}")
        if not isinstance(position, int) or not 0 <= position <= len(self):
            raise ValueError(f"DataLoader: the state's position must lie between 0 and {len(self)}, got {position!r}")
        before = self._now()
        try:
            self.generator.bit_generator.state = shuffle
            self.augmentation.bit_generator.state = augmentation
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            self.generator.bit_generator.state = before.shuffle
            self.augmentation.bit_generator.state = before.augmentation
            raise ValueError(f"DataLoader: the state is of another kind of generator: {error}") from error
        self._epoch, self._resume = Epoch(shuffle, augmentation, position), True
