"""A run's checkpoint: one .safetensors file with all that a training is made of, and its checksum.

Arrays stand under their names. The metadata hold two texts: "training", everything else as JSON, and "sha256", the
checksum of the whole file with zeros in its own place. There is no pickle in it, and nothing in it is run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minires.data.binary import CheckpointError, check_regular
from minires.data.checkpoint import read_safetensors, to_safetensors, write_whole
from minires.train.launch import first
from minires.train.recipes import TrainOptions, check_options, interval
from minires.train.training import Training

CURRENT, PREVIOUS, DAMAGED = (f"checkpoint{end}.safetensors" for end in ("", "-previous", "-damaged"))
NO_DIGEST = "0" * 64
DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')


class Checkpoint(NamedTuple):
    """What a checkpoint holds: arrays by name, and plain values."""

    arrays: dict[str, np.ndarray]
    values: dict[str, Any]

    @property
    def options(self) -> TrainOptions:
        """The options of its run. Errors: CheckpointError for what are none."""
        return options_from(self.values.get("options"))


def encode(checkpoint: Checkpoint) -> bytes:
    """A checkpoint as the content of a file."""
    text = json.dumps(checkpoint.values, allow_nan=False)
    arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in checkpoint.arrays.items()}
    content = to_safetensors(arrays, {"training": text, "sha256": NO_DIGEST})
    return content.replace(f'"sha256":"{NO_DIGEST}"'.encode(), f'"sha256":"{digest(content)}"'.encode(), 1)


def digest(content: bytes) -> str:
    """The checksum of a file whose own place for it holds zeros."""
    return hashlib.sha256(content).hexdigest()


def decode(content: bytes) -> Checkpoint:
    """A checkpoint from the content of a file. Errors: CheckpointError for one that is damaged, or of another kind."""
    size = struct.unpack("<Q", content[:8])[0] if len(content) >= 8 else 0
    if not 0 < size <= len(content) - 8:
        raise CheckpointError("damaged: it is cut short, or no checkpoint of a run")
    found = DIGEST.search(content, 8, 8 + size)
    if found is None:
        raise CheckpointError("damaged, or no checkpoint of a run: it has no checksum")
    zeros = content[: found.start(1)] + NO_DIGEST.encode() + content[found.end(1) :]
    if digest(zeros) != found[1].decode():
        raise CheckpointError("damaged: its checksum does not match")
    arrays = read_safetensors(content)
    try:
        metadata = json.loads(content[8 : 8 + size])["__metadata__"]
        values = json.loads(metadata["training"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"not the checkpoint of a run: {type(error).__name__}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"not the checkpoint of a run: it holds a {type(values).__name__}")
    return Checkpoint(arrays, values)


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Read a run's checkpoint.

    Errors: FileNotFoundError where there is none; CheckpointError, which names the file, for one that is damaged.
    """
    check_regular(path, "a run's checkpoint", CheckpointError)
    content = Path(path).read_bytes()
    try:
        return decode(content)
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error


def options_from(values: Any) -> TrainOptions:
    """Options from plain values, as config.json and a checkpoint hold them; other entries are passed over.

    Errors: CheckpointError for names, types or values that no run has.
    """
    if not isinstance(values, dict):
        raise CheckpointError("it holds no options of a run")
    given = {}
    for field in fields(TrainOptions):
        if field.name not in values:
            raise CheckpointError(f"its options have no {field.name}")
        value, kind = values[field.name], type(field.default)
        if kind is tuple and isinstance(value, list) and all(type(one) is int for one in value):
            value = tuple(value)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise CheckpointError(f"its option {field.name} is {value!r}, expected {kind.__name__}")
        given[field.name] = value
    options = TrainOptions(**given)
    try:
        check_options(options)
    except ValueError as error:
        raise CheckpointError(f"its options cannot train: {error}") from error
    return options


def find_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest good checkpoint of a run.

    A damaged one is set aside under another name, so that the good one is not overwritten after it.
    Returns: the checkpoint, None where the run has none yet; and what there is to say about the files.
    Errors: CheckpointError where there are checkpoints and none is good.
    """
    said: list[str] = []
    for name in (CURRENT, PREVIOUS):
        path = folder / name
        try:
            checkpoint = read_checkpoint(path)
        except FileNotFoundError:
            continue
        except CheckpointError as error:
            said.append(str(error))
            continue
        if said:
            os.replace(folder / CURRENT, folder / DAMAGED)
            said.append(f"it is now called {DAMAGED}; going back to the one before it, {path}")
        return checkpoint, said
    if said:
        raise CheckpointError("; ".join(said) + ": no checkpoint of this run can be read")
    return None, said


class Checkpoints:
    """Writes the checkpoints of one run, keeps the one before, and begins a training where the last one stands."""

    def __init__(self, folder: Path, every: str, start: Checkpoint | None = None):
        self.folder = folder
        self.steps, self.seconds = interval(every)
        self.start = start
        self.kept: int | None = None  # the step of the last good checkpoint

    @property
    def path(self) -> Path:
        """The newest checkpoint."""
        return self.folder / CURRENT

    def begin(self, training: Training) -> None:
        """Bring a training to the checkpoint that was found; where there is none, keep its beginning.

        Errors: CheckpointError for a checkpoint that does not fit.
        """
        self.time = time.monotonic()
        if self.start is None:
            first(self.write, training)
            return
        try:
            training.load_state_dict(*self.start)
        except (ValueError, KeyError, TypeError, RuntimeError, IndexError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"{self.folder}: its checkpoint does not fit this run: {error}") from error
        self.kept, self.start = training.step, None

    def due(self, training: Training) -> bool:
        """Whether it is time for a checkpoint within an epoch."""
        if self.steps:
            return training.step % self.steps == 0
        return time.monotonic() - self.time >= self.seconds

    def write(self, training: Training) -> None:
        """Write a checkpoint; the one before it is kept. Errors: OSError that names the last good one."""
        content = encode(Checkpoint(*training.state_dict()))
        try:
            write_whole(self.path, content, previous=self.folder / PREVIOUS)
        except OSError as error:
            raise OSError(f"cannot write a checkpoint into {self.folder}: {error.strerror or error}") from error
        self.kept, self.time = training.step, time.monotonic()

    def last_good(self) -> str:
        """Where the last good checkpoint is, in words."""
        if self.kept is None:
            return "there is no checkpoint of this run yet"
        path = self.path if self.path.exists() else self.folder / PREVIOUS
        return f"the last good checkpoint is {path} (step {self.kept})"

    def remove(self) -> None:
        """Take the checkpoints of a finished run away: its weights are kept, and nothing is left to go on with."""
        for name in (CURRENT, PREVIOUS):
            (self.folder / name).unlink(missing_ok=True)
