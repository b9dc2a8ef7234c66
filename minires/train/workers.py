"""What several workers must have in common before they train one model together."""

from __future__ import annotations

from dataclasses import asdict

from minires.data import ArrayDataset
from minires.data.dataset import fingerprint
from minires.nn import Module
from minires.train import parallel
from minires.train.recipes import TrainOptions

OWN = ("data", "threads", "workers", "checkpoint_every")  # options that need not be the same


def check_workers(options: TrainOptions, model: Module, train: ArrayDataset, test: ArrayDataset) -> None:
    """Refuse what cannot be trained by so many workers, and workers that would train different things.

    Errors: ValueError, on all workers alike.
    """
    size = parallel.size()
    if size == 1:
        return
    facts = {f"--{name.replace('_', '-')}": v for name, v in asdict(options).items() if name not in OWN}
    facts.update({name: f"{tensor.dtype} {tensor.shape}" for name, tensor in model.state_dict().items()})
    facts["the checksum of the data"] = fingerprint(train, test)[:12]
    parallel.check_same(facts)
    if options.batch_size % size or options.batch_size < 2 * size:
        raise ValueError(
            f"--batch-size counts the images of all workers and must be a multiple of their number, {size}, with two "
            f"images for each at least; got {options.batch_size}"
        )
    if len(train) < 2 * size:
        raise ValueError(f"{size} workers need {2 * size} training images at least, and there are {len(train)}")
    if (train.labels == -100).any():
        raise ValueError("labels of -100 (images that do not count) cannot be trained on by several workers")
