"""A whole run: epochs over a data set, and the folder that it leaves behind."""

from __future__ import annotations

import csv
import json
import math
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import minires
from minires import functional as F
from minires.checkpoint import save
from minires.data import ArrayDataset, DataLoader, load_data
from minires.graph import no_grad
from minires.models import create_model
from minires.nn import Module
from minires.optim import SGD, OneCycleLR
from minires.tensor import Tensor

SHOW_EVERY = 0.2  # seconds: how often the loss is fetched from the device and shown


@dataclass
class TrainOptions:
    """Everything that a run depends on: the same options give the same result on the same machine."""

    model: str = "resnet20"
    data: str = "digits"
    epochs: int = 12
    batch_size: int = 32
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    device: str = "cpu"
    threads: int = 0  # of the matrix products; 0 means one for small images, and the BLAS's own choice otherwise


class Epoch(NamedTuple):
    """One line of metrics.csv. Accuracies lie between 0 and 1; lr is the rate of the epoch's last step."""

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float


class Score(NamedTuple):
    """How a model does on a data set."""

    loss: float
    correct: int
    count: int

    @property
    def accuracy(self) -> float:
        """The share of the images that are classified right."""
        return self.correct / self.count


class RunResult(NamedTuple):
    """What a run ended with."""

    folder: Path
    score: Score
    history: list[Epoch]
    interrupted: bool


@no_grad()
def evaluate(model: Module, dataset: ArrayDataset, batch_size: int = 256, device: str = "cpu") -> Score:
    """Mean cross entropy and number of right answers, in evaluation mode; the model's mode is put back afterwards."""
    was_training = model.training
    model.eval()
    sums = Sums()
    for images, labels in DataLoader(dataset, batch_size):
        images, labels = images.to(device), labels.to(device)
        logits = model(images)
        sums.add(F.cross_entropy(logits, labels), right_answers(logits, labels), len(labels))
    model.train(was_training)
    loss, correct = sums.fetch()
    return Score(loss / len(dataset), correct, len(dataset))


class Sums:
    """The loss and the right answers of many batches. They stay on the device until they are fetched."""

    def __init__(self) -> None:
        self.loss: Any = 0.0
        self.correct: Any = 0
        self.count = 0

    def add(self, loss: Tensor, correct: Tensor, count: int) -> None:
        """Add a batch: its mean loss, and its right answers."""
        self.loss = loss.detach().double() * count + self.loss
        self.correct = correct + self.correct
        self.count += count

    def fetch(self) -> tuple[float, int]:
        """Both sums as Python's numbers: on a GPU this waits."""
        return float(self.loss), int(self.correct)


@no_grad()
def right_answers(logits: Tensor, labels: Tensor) -> Tensor:
    """How many images of a batch are classified right, on their device. Shapes: (N, classes), (N,) -> ()."""
    return (logits.detach().argmax(dim=1) == labels).sum()


def check_finite(loss: float, name: str) -> None:
    """Errors: FloatingPointError for a loss that is not a finite number."""
    if not math.isfinite(loss):
        raise FloatingPointError(f"{name} became {loss}: training has diverged; a smaller --lr usually helps")


def train_step(model: Module, optimizer: SGD, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One step of gradient descent: forward, backward, update.

    Returns: the loss and the number of right answers, on the device: nothing waits for them here.
    Errors: FloatingPointError where the loss is not a finite number and lies on the CPU; the parameters are then left
        as they were.
    """
    optimizer.zero_grad()
    logits = model(images)
    loss = F.cross_entropy(logits, labels)
    if loss.device == "cpu":
        check_finite(loss.item(), "the loss")
    loss.backward()
    optimizer.step()
    return loss, right_answers(logits, labels)


def fit(
    model: Module,
    train: ArrayDataset,
    test: ArrayDataset,
    options: TrainOptions,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Score:
    """Train a model with SGD and a one-cycle learning rate, with a progress bar.

    Args: on_epoch is called with each epoch's line as soon as it is known.
    Returns: the score on the test images after the last epoch.
    Errors: FloatingPointError where the loss diverges; KeyboardInterrupt passes through, with the model as it is then.
    """
    from tqdm.auto import tqdm

    loader = DataLoader(
        train,
        options.batch_size,
        shuffle=True,
        drop_last=len(train) % options.batch_size == 1,  # batch norm cannot learn from a single image
        seed=np.random.default_rng([options.seed, 1]),
    )
    optimizer = SGD(model.parameters(), options.lr, options.momentum, weight_decay=options.weight_decay)
    schedule = OneCycleLR(optimizer, max_lr=options.lr, total_steps=options.epochs * len(loader))
    model.train()
    with tqdm(total=options.epochs * len(loader), unit="batch", desc="training") as bar:
        for epoch in range(1, options.epochs + 1):
            start = time.perf_counter()
            sums, shown = Sums(), time.perf_counter()
            for images, labels in loader:
                loss, right = train_step(model, optimizer, images.to(options.device), labels.to(options.device))
                lr = schedule.get_last_lr()[0]
                schedule.step()
                sums.add(loss, right, len(labels))
                bar.update()
                if time.perf_counter() > shown + SHOW_EVERY:
                    show(bar, sums)
                    shown = time.perf_counter()
            total, correct, seen = *show(bar, sums), sums.count
            score = evaluate(model, test, device=options.device)
            seconds = time.perf_counter() - start
            check_finite(score.loss, "the test loss")
            line = Epoch(epoch, lr, total / seen, correct / seen, score.loss, score.accuracy, seconds)
            bar.write(
                f"epoch {epoch:3d}/{options.epochs}   lr {lr:.4f}   train loss {line.train_loss:.4f} "
                f"accuracy {line.train_accuracy:7.2%}   test loss {line.test_loss:.4f} "
                f"accuracy {line.test_accuracy:7.2%}   {seconds:.1f} s"
            )
            if on_epoch is not None:
                on_epoch(line)
    return score


def show(bar: Any, sums: Sums) -> tuple[float, int]:
    """Fetch what was summed up, and show it beside the progress bar.

    Errors: FloatingPointError where the loss is not a finite number.
    """
    total, correct = sums.fetch()
    check_finite(total, "the loss")
    bar.set_postfix(loss=f"{total / sums.count:.4f}", accuracy=f"{correct / sums.count:.2%}", refresh=False)
    return total, correct


def check_options(options: TrainOptions) -> None:
    """Refuse options that cannot train.

    Errors: ValueError that names the option, what was expected and what came.
    """
    for name in ("epochs", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    for name in ("lr", "momentum", "weight_decay"):
        value = getattr(options, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"--{name.replace('_', '-')} must be a finite number of at least 0, got {value}")
    for name in ("seed", "threads"):
        if getattr(options, name) < 0:
            raise ValueError(f"--{name} must be at least 0, got {getattr(options, name)}")


def new_folder(out: str | None, options: TrainOptions) -> Path:
    """The folder of a new run: ``out``, or the first free runs/MODEL-DATA, runs/MODEL-DATA-2, ...

    Errors: FileExistsError where ``out`` holds a run already; OSError where it cannot be made or written.
    """
    if out is not None:
        if not out:
            raise ValueError("--out must not be empty: name a folder")
        folder = Path(out)
        if (folder / "config.json").exists():
            raise FileExistsError(f"{folder} holds a run already: name another folder with --out, or remove it")
    else:
        name = f"{options.model}-{options.data}"
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
        "schedule": "one-cycle",
        "versions": {"minires": minires.__version__, "numpy": np.__version__, "python": platform.python_version()},
        **result,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def run(options: TrainOptions, out: str | None = None) -> RunResult:
    """Train as the options say and leave config.json, metrics.csv, curves.png and last.safetensors in a folder.

    What is reported and kept is the model after the last epoch: the test images choose nothing. Ctrl-C ends the
    training early and saves what is there.
    Errors: ValueError for unknown names or options out of range; OSError for a folder that cannot be written;
        RuntimeError for a device that is not there; FloatingPointError where the loss diverges.
    """
    from threadpoolctl import threadpool_limits

    from minires.backend import check_device
    from minires.plots import plot_curves

    check_options(options)
    options.device = check_device(options.device)
    split = load_data(options.data)
    small = split.train.images.shape[-1] < 64  # the ImageNet stem would leave one pixel of an 8x8 digit
    model = create_model(
        options.model,
        num_classes=split.num_classes,
        in_channels=split.in_channels,
        stem="cifar" if small else "imagenet",
        generator=np.random.default_rng([options.seed, 0]),
    )
    model.to(options.device)
    folder = new_folder(out, options)
    history: list[Epoch] = []
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Epoch._fields)
        file.flush()

        def keep(line: Epoch) -> None:
            history.append(line)
            writer.writerow(line)
            file.flush()

        score = None
        # An overflow is said once, in words, by train_step; NumPy's warnings would only come before it.
        with threadpool_limits(options.threads or (1 if small else None)), np.errstate(all="ignore"):
            try:
                score = fit(model, split.train, split.test, options, on_epoch=keep)
            except KeyboardInterrupt:
                pass
            except FloatingPointError as error:
                raise FloatingPointError(f"{error} (metrics up to here are in {folder})") from error
            interrupted = score is None
            with shielded():
                if score is None:
                    print(f"\ninterrupted: saving what is there in {folder} ...", flush=True)
                save(folder / "last.safetensors", model.state_dict())
                if score is None:
                    score = evaluate(model, split.test, device=options.device)
                plot_curves(history, folder / "curves.png", title=f"{options.model} on {options.data}")
                result = {"test_accuracy": score.accuracy, "correct": score.correct, "count": score.count}
                write_config(folder, options, result={**result, "epochs": len(history), "interrupted": interrupted})
    return RunResult(folder, score, history, interrupted)


@contextmanager
def shielded() -> Iterator[None]:
    """A part that Ctrl-C does not cut short: people press it twice. (Only the main thread is ever interrupted.)"""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
