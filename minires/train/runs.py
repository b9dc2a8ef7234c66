"""A whole run: from options to a folder with its weights, metrics and curves; and a run that goes on after a stop."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import minires
from minires.data import DATASETS, DataSplit, load_data
from minires.data.binary import CheckpointError
from minires.data.checkpoint import save, write_whole
from minires.debug.plots import plot_curves
from minires.engine.convert import printable
from minires.kernels.backend import check_device
from minires.models import create_model
from minires.nn import Module
from minires.train import parallel
from minires.train.divergence import Divergence
from minires.train.launch import choose_gpu, cores, first
from minires.train.progress import Shielded
from minires.train.recipes import TrainOptions, check_options, check_workers, describe
from minires.train.run_checkpoint import CURRENT, PREVIOUS, Checkpoint, Checkpoints, find_checkpoint, options_from
from minires.train.training import Epoch, Score, Stopped, Training, fit

CONFIG, METRICS, CURVES, WEIGHTS = "config.json", "metrics.csv", "curves.png", "last.safetensors"


class RunResult(NamedTuple):
    """What a run ended with. score is that of the last epoch; None where none was finished."""

    folder: Path
    score: Score | None
    history: list[Epoch]
    interrupted: bool


def run(options: TrainOptions, out: str | None = None) -> RunResult:
    """Train as the options say and leave config.json, metrics.csv, curves.png and last.safetensors in a folder.

    What is reported and kept is the model after the last epoch: the test images choose nothing. Ctrl-C ends the
    training early, and leaves a checkpoint to go on from; so does anything else that ends it. Of several workers
    (mpiexec; parallel.py) the first alone touches the folder.
    Errors: ValueError for unknown names or options out of range; OSError for a folder that cannot be written, or a full
        disk; RuntimeError for a device that is not there; FloatingPointError where the training diverges.
    """
    check_options(options)
    options = replace(options, device=device(options))
    if options.data not in DATASETS and os.path.isdir(options.data):
        options.data = os.path.abspath(options.data)  # a run may go on from another place
    split = load(options)
    model = make_model(options, split)
    check_workers(options, model, split.train, split.test)
    folder = first(new_folder, out, options)
    print(describe(options), flush=True)
    with alone(folder):
        return train(options, split, model, folder, None)


def resume(out: str, checkpoint_every: str | None = None) -> RunResult:
    """Go on with a run that was stopped, to the very bits of one that was not.

    Errors: FileNotFoundError where there is no run; ValueError for one that is finished; CheckpointError where no
        checkpoint of it can be read; and those of ``run``.
    """
    folder = Path(out)
    if not first(is_run, folder):
        raise FileNotFoundError(2, f"no run is there to go on with (it has no {CONFIG})", str(folder))
    with alone(folder):
        options, checkpoint = first(where_it_stands, folder)
        if checkpoint_every is not None:
            options.checkpoint_every = checkpoint_every
            check_options(options)
        options.device = device(options)
        split = load(options)
        model = make_model(options, split)
        check_workers(options, model, split.train, split.test)
        first(take_up, folder, options, checkpoint is not None)
        return train(options, split, model, folder, checkpoint)


def where_it_stands(folder: Path) -> tuple[TrainOptions, Checkpoint | None]:
    """A run's options and its newest good checkpoint. What there is to say about them is printed."""
    checkpoint, said = find_checkpoint(folder)
    for line in said:
        print(line)
    config = read_config(folder, needed=checkpoint is None)
    if checkpoint is None:
        if "result" in config:
            raise ValueError(f"{folder} is finished: there is nothing to go on with")
        print(f"{folder} has no checkpoint yet: starting from the beginning")
        options = options_from(config)
    else:
        options = checkpoint.options
        print(printable(f"going on with {folder} after step {checkpoint.values.get('step')}"))
        differ = [name for name, value in as_json(asdict(options)).items() if config.get(name, value) != value]
        if differ:
            print(f"{CONFIG} has another {' and '.join(differ)} than the checkpoint: the checkpoint's holds")
    before, now = config.get("versions", versions()), versions()
    if before != now:
        print(f"it was begun with {before}, and this is {now}: the last bits may differ")
    return options, checkpoint


def take_up(folder: Path, options: TrainOptions, kept: bool) -> None:
    """Make a run's folder ready to go on in. Errors: OSError where it cannot be written."""
    try:
        for part in folder.glob("*.part"):
            part.unlink()  # what was being written when the run was stopped
        write_config(folder, options)
    except OSError as error:
        there = f"; its checkpoint is still there: {folder / CURRENT}" if kept else ""
        raise OSError(f"cannot write into {folder}: {error.strerror}{there}") from error


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run: its options, or a checkpoint."""
    return any((folder / name).exists() for name in (CONFIG, CURRENT, PREVIOUS))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time trains a run: the folder is locked as long as this one is at it.

    Errors: ValueError where another process is. Where the system has no such lock (Windows), nothing is checked.
    """
    locked = first(lock, folder)
    try:
        yield
    finally:
        if locked is not None and parallel.rank() == 0:
            os.close(locked)


def lock(folder: Path) -> int | None:
    """The folder opened and locked; None where the system has no such lock. Errors: as alone."""
    try:
        import fcntl
    except ImportError:
        return None
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(opened)
        raise ValueError(f"{folder}: another process is training this run") from error
    except OSError:
        pass  # a file system without locks
    return opened


def as_json(values: dict[str, Any]) -> dict[str, Any]:
    """Values as a file of JSON gives them back."""
    return json.loads(json.dumps(values))


def read_config(folder: Path, needed: bool) -> dict[str, Any]:
    """config.json; where it is damaged and not needed, nothing. Errors: CheckpointError for one that is damaged."""
    try:
        config = json.loads((folder / CONFIG).read_text())
        if isinstance(config, dict):
            return config
    except (ValueError, RecursionError, FileNotFoundError):
        pass
    if needed:
        raise CheckpointError(f"{folder / CONFIG}: damaged or missing, and the run has no checkpoint")
    return {}


def versions() -> dict[str, str]:
    """What the last bits of a run depend on, beside the machine."""
    return {"minires": minires.__version__, "numpy": np.__version__, "python": platform.python_version()}


def device(options: TrainOptions) -> str:
    """The device of the options, checked; each worker of a machine takes another GPU."""
    found = check_device(options.device)
    if found == "cuda" and parallel.size() > 1:
        choose_gpu()
    return found


def load(options: TrainOptions) -> DataSplit:
    """The data of the options. Of several workers the first fetches what must be fetched, while the others wait."""
    loaded: list[DataSplit] = []
    first(lambda: loaded.append(load_data(options.data)))
    return loaded[0] if loaded else load_data(options.data)


def is_small(split: DataSplit) -> bool:
    """Whether the images are small: the ImageNet stem would leave one pixel of an 8x8 digit."""
    return split.train.images.shape[-1] < 64


def make_model(options: TrainOptions, split: DataSplit) -> Module:
    """The model of the options with its initial weights, for the images and classes of the data."""
    model = create_model(
        options.model,
        num_classes=split.num_classes,
        in_channels=split.in_channels,
        stem="cifar" if is_small(split) else "imagenet",
        generator=np.random.default_rng([options.seed, 0]),
    )
    return model.to(options.device)


def train(options: TrainOptions, split: DataSplit, model: Module, folder: Path, start: Checkpoint | None) -> RunResult:
    """Train from the beginning or from a checkpoint, and leave the result in the folder."""
    from threadpoolctl import threadpool_limits

    checkpoints = Checkpoints(folder, options.checkpoint_every, start)
    again = f"go on with: minires train --resume {shlex.quote(str(folder))}"
    threads = options.threads or (1 if is_small(split) else cores())
    kept = Kept(folder, checkpoints)
    interrupted = False
    # An overflow is said once, in words, by Divergence; NumPy's warnings would only come before it.
    with threadpool_limits(threads), np.errstate(all="ignore"):
        try:
            try:
                fit(model, split.train, split.test, options, kept.epoch, kept)
            except Stopped:
                interrupted = True
            training = kept.training
            with Shielded():
                if interrupted:
                    print(f"\ninterrupted: saving what is there in {folder} ...", flush=True)
                first(finish, folder, options, training, interrupted)
                if interrupted:
                    print(again)
                else:
                    first(checkpoints.remove)
        except Divergence as error:
            raise Divergence(f"{error}\n{checkpoints.last_good()}; metrics up to here are in {folder}") from error
        except OSError as error:
            words = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
            raise OSError(f"{words}\n{checkpoints.last_good()}\n{again}") from error
        except KeyboardInterrupt:
            print(f"\nstopped at once; {checkpoints.last_good()}\n{again}", flush=True)
            raise
    return RunResult(folder, training.score, training.history, interrupted)


class Kept:
    """What is kept of a run while it goes: its checkpoints, and metrics.csv after every epoch."""

    def __init__(self, folder: Path, checkpoints: Checkpoints):
        self.folder = folder
        self.checkpoints = checkpoints
        self.due = checkpoints.due
        self.write = checkpoints.write

    def begin(self, training: Training) -> None:
        """Bring the training to where it is to begin, and metrics.csv to the same epoch."""
        self.training = training
        self.checkpoints.begin(training)
        first(write_metrics, self.folder, training.history)

    def epoch(self, line: Epoch) -> None:
        """An epoch was finished."""
        write_metrics(self.folder, self.training.history)


def finish(folder: Path, options: TrainOptions, training: Training, interrupted: bool) -> None:
    """Write the weights, draw the curves, and write what came of the run into config.json."""
    save(folder / WEIGHTS, training.judged.state_dict())
    plot_curves(training.history, folder / CURVES, title=f"{options.model} on {os.path.basename(options.data)}")
    result: dict[str, Any] = {"epochs": len(training.history), "interrupted": interrupted}
    score = training.score
    if score is not None:
        result.update(test_accuracy=score.accuracy, correct=score.correct, count=score.count)
    epochs = [round(one, 3) for one in training.seconds[: len(training.history)]]
    write_config(
        folder, options, result={**result, "seconds": round(sum(training.seconds), 3), "epoch_seconds": epochs}
    )


def new_folder(out: str | None, options: TrainOptions) -> Path:
    """The folder of a new run: ``out``, or the first free runs/MODEL-DATA, runs/MODEL-DATA-2, ...

    Errors: FileExistsError where ``out`` holds a run already; OSError where it cannot be made or written.
    """
    if out is not None:
        if not out:
            raise ValueError("--out must not be empty: name a folder")
        folder = Path(out)
        if is_run(folder):
            raise FileExistsError(
                f"{folder} holds a run already: name another folder with --out, remove it, or go on with it (--resume)"
            )
    else:
        name = f"{options.model}-{os.path.basename(options.data)}"
        folder, number = Path("runs") / name, 1
        while folder.exists():
            number += 1
            folder = Path("runs") / f"{name}-{number}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_config(folder, options)
    except OSError as error:
        raise OSError(f"--out: cannot write a run into {folder}: {error.strerror}") from error
    return folder


def write_config(folder: Path, options: TrainOptions, **result: Any) -> None:
    """Write config.json: the options and versions, and in the end what came of them."""
    config = {
        **asdict(options),
        "versions": versions(),
        **result,
    }
    write_whole(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def write_metrics(folder: Path, history: list[Epoch]) -> None:
    """Write metrics.csv: a line for each epoch. The same run writes the same bytes."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(Epoch._fields)
    writer.writerows(history)
    write_whole(folder / METRICS, text.getvalue().encode())
