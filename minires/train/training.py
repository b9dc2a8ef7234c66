"""Training: one step, an epoch, a whole fit; and all that changes on the way, so that it can go on from any step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from minires.data import ArrayDataset, DataLoader
from minires.data.dataset import fingerprint
from minires.engine import random
from minires.engine.modes import no_grad
from minires.engine.tensor import Tensor
from minires.kernels.backend import Array, all_finite, to_numpy
from minires.nn import Module, SyncBatchNorm
from minires.nn import functional as F
from minires.nn.state import in_mode
from minires.optim import AveragedModel, Optimizer, clip_grad_norm_
from minires.optim.swa_utils import get_ema_avg_fn
from minires.train import parallel
from minires.train.divergence import BAD_IMAGES, Divergence, explain, first_bad_layer
from minires.train.evaluation import Score, Totals, evaluate, right_answers
from minires.train.launch import gathered
from minires.train.progress import Forecast, Interruption, ProgressBar
from minires.train.recipes import (
    TrainOptions,
    augmentation,
    check_options,
    check_workers,
    make_optimizer,
    make_schedule,
    total_epochs,
    total_steps,
)


class Epoch(NamedTuple):
    """One line of metrics.csv. Accuracies lie between 0 and 1; lr is the rate of the epoch's last step."""

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float


class Stopped(KeyboardInterrupt):
    """Ctrl-C, followed between two steps: the model and the last checkpoint are those of the same step."""


def train_step(
    model: Module,
    optimizer: Optimizer,
    images: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    clip_norm: float = 0.0,
    on_loss: Callable[[Tensor, Tensor], None] | None = None,
    share: float | None = None,
    alike: bool = False,
) -> tuple[Tensor, Tensor]:
    """One step of gradient descent: forward, backward, update. Nothing is fetched from the device.

    Args: clip_norm, the longest that the gradients may be, 0 for any length; on_loss is called with what is returned,
        before anything is changed: what it raises leaves the parameters as they were; of several workers (parallel.py)
        share is what this one's images count, and alike says that all were given the same ones.
    Returns: the loss, and the number of right answers, of this worker's images, before the update; both without axes.
    """
    optimizer.zero_grad()
    with parallel.alone(alike):
        logits = model(images)
    loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    value, right = loss.detach(), right_answers(logits, labels)
    if on_loss is not None:
        on_loss(value, right)
    parallel.backward(loss, model.parameters(), share)
    if clip_norm:
        clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return value, right


class Training:
    """A training under way: model, optimiser, schedule, loader, sums. ``state_dict()`` is what a checkpoint holds."""

    def __init__(self, model: Module, train: ArrayDataset, test: ArrayDataset, options: TrainOptions):
        check_options(options)
        check_workers(options, model, train, test)
        if options.sync_batch_norm:
            model = SyncBatchNorm.convert_sync_batchnorm(model)
        parallel.broadcast(model.state_dict())
        self.model, self.train, self.test, self.options = model, train, test, options
        self.loader = DataLoader(
            train,
            options.batch_size,
            shuffle=True,
            drop_last=len(train) % options.batch_size == 1 < len(train),  # batch norm cannot learn from one image
            seed=np.random.default_rng([options.seed, 1]),
            transform=augmentation(options.augment, train),
            workers=options.workers,
            num_replicas=parallel.size(),
            rank=parallel.rank(),
        )
        self.optimizer: Optimizer = make_optimizer(model, options)
        self.schedule = make_schedule(self.optimizer, options, len(self.loader))
        self.average = AveragedModel(model, get_ema_avg_fn(options.ema)) if options.ema else None
        self.steps = total_steps(options, len(self.loader))
        self.epochs = total_epochs(options, len(self.loader))
        self.step = 0  # steps made
        self.batch: Tensor | None = None  # the images of the last one
        self.totals = Totals()  # of this epoch
        self.unread: list[Array] = []  # losses that were not looked at yet
        self.history: list[Epoch] = []
        self.seconds: list[float] = [0.0]  # of each epoch so far

    @property
    def judged(self) -> Module:
        """The model that is evaluated and kept in the end: the averaged one, where there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def score(self) -> Score | None:
        """The score after the last epoch; None before the first is finished."""
        if not self.history:
            return None
        last, count = self.history[-1], len(self.test)
        return Score(last.test_loss, round(last.test_accuracy * count), count)

    @cached_property
    def data(self) -> str:
        """What tells the data from others. Once a run: images in files are read for it."""
        return fingerprint(self.train, self.test)

    @property
    def epoch(self) -> int:
        """The epoch under way, counted from 1."""
        return len(self.history) + 1

    @property
    def epoch_end(self) -> int:
        """How many steps are made when this epoch's batches are used up."""
        return min(self.epoch * len(self.loader), self.steps)

    def train_batch(self, images: Tensor, labels: Tensor) -> None:
        """One step of gradient descent: forward, backward, update.

        Errors: Divergence where the loss is not finite. On the CPU the parameters are then left as they were; on a GPU
            the loss is looked at only when it is fetched.
        """
        options = self.options
        self.batch, labels = images.to(options.device), labels.to(options.device)
        place = self.step % len(self.loader)
        count, share = self.loader.length(place), self.loader.share(place)

        def note(loss: Tensor, right: Tensor) -> None:
            if parallel.size() > 1:
                part = np.array([loss.item() * share, right.item() * share * count / len(labels)])
                mean, answers = parallel.total(part)
                loss, right = Tensor(mean), Tensor(np.rint(answers))  # whole again: shares are no exact numbers
            self.totals.add(loss, right, count)
            self.unread.append(loss.array)
            if self.looks_at_once:
                self.check_losses()

        train_step(
            self.model,
            self.optimizer,
            self.batch,
            labels,
            options.label_smoothing,
            options.clip_norm,
            note,
            share,
            alike=not self.loader.is_cut(place),
        )
        self.step += 1
        if self.step < self.steps:
            self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)

    @property
    def looks_at_once(self) -> bool:
        """Whether each loss is looked at before its step is made: on a GPU that would wait for it."""
        return self.options.device == "cpu" or parallel.size() > 1

    def check_losses(self) -> tuple[float, float]:
        """Fetch the losses since the last time. Returns: this epoch's mean loss and accuracy so far.

        Errors: Divergence where one is not finite.
        """
        loss, correct = self.totals.fetch()
        if not math.isfinite(loss):
            values = [float(to_numpy(value)) for value in self.unread]
            behind = next((len(values) - i for i, value in enumerate(values) if not math.isfinite(value)), 1)
            self.check_labels()
            # Where a loss is looked at at once, its step is not counted yet.
            step = self.step + 1 if self.looks_at_once else self.step + 1 - behind
            raise self.diverged(f"the loss became {values[-behind] if values else loss}", step)
        self.unread.clear()
        return loss / max(self.totals.count, 1), correct / max(self.totals.count, 1)

    def check_labels(self) -> None:
        """Errors: ValueError for a label out of range, which makes the loss NaN on a GPU, where nothing looks at it."""
        if self.batch is None or self.options.device == "cpu":
            return
        with in_mode(self.model, False), no_grad():
            classes = self.model(self.batch[:1]).shape[1]
        labels = self.loader.dataset.labels
        wrong = (labels != -100) & ((labels < 0) | (labels >= classes))  # -100: cross_entropy's ignore_index
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"labels must lie between 0 and {classes - 1}, got {int(labels[row])} of image {row}")

    def share_statistics(self) -> None:
        """Of workers that normalise each by itself, rank 0's running statistics are the ones that are judged and kept.

        Source: torch.nn.parallel.DistributedDataParallel(broadcast_buffers=True).
        """
        for model in {id(model): model for model in (self.model, self.judged)}.values():
            parallel.broadcast(dict(model.named_buffers()))

    def check_weights(self) -> None:
        """What a checkpoint would hold must be finite. Errors: Divergence where it is not."""
        for name, array in self.arrays().items():
            if not all_finite(array):
                raise self.diverged(f"{name} is not finite any more", self.step)

    def diverged(self, what: str, step: int) -> Divergence:
        """The error that says what happened, when, and in which layer."""
        options = self.options
        with parallel.alone():  # one that has found it asks the others nothing more
            layer = first_bad_layer(self.model, self.batch)
        if layer is None:  # the statistics of training hide what the running statistics do
            images, _ = next(iter(DataLoader(self.test, options.batch_size)))
            layer = first_bad_layer(self.judged, images.to(options.device), training=False)
        layer = next((found for found in gathered(layer) if found is not None), None)
        if layer == BAD_IMAGES:
            advice = ["a look at the data: no rate helps here"]
        else:
            advice = [f"a smaller rate (--lr {min(options.lr / 10, 0.1):g})"]
            advice += ["--warmup"] if options.schedule != "one-cycle" and not options.warmup else []
            advice += ["--clip-norm 1"] if not options.clip_norm else []
        lr = self.schedule.rate(options.lr, max(0, step - 1))
        return Divergence(explain(what, step, self.epoch, lr, layer, ", or ".join(advice)))

    # ---- What a checkpoint holds ------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, Array]:
        """Every array that changes, by name: the model's, the optimiser's, the average's."""
        found = {f"model.{name}": tensor.array for name, tensor in self.model.state_dict().items()}
        for place, state in self.optimizer.state.items():
            arrays = {key: value for key, value in state.items() if not isinstance(value, (int, float))}
            found.update({f"optimizer.{place}.{key}": value for key, value in arrays.items()})
        if self.average is not None:
            found.update({f"average.{name}": tensor.array for name, tensor in self.average.state_dict().items()})
        return found

    def state_dict(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """All that is needed to go on from here: arrays by name, and plain values (json.dumps takes them).

        It may be taken between any two steps, except while the last batch of an epoch is in use.
        The arrays share the memory of the training.
        """
        loss, correct = self.totals.fetch()
        numbers = {
            str(place): {key: value for key, value in state.items() if isinstance(value, (int, float))}
            for place, state in self.optimizer.state.items()
        }
        generators = {
            name: module.generator.bit_generator.state
            for name, module in self.model.named_modules()
            if isinstance(getattr(module, "generator", None), np.random.Generator)
        }
        values = {
            "options": asdict(self.options),
            "step": self.step,
            "totals": {"loss": loss, "correct": correct, "count": self.totals.count},
            "history": [list(line) for line in self.history],
            "seconds": list(self.seconds),
            "schedule": self.schedule.state_dict(),
            "optimizer": {"param_groups": self.optimizer.groups_by_place(), "numbers": numbers},
            "loader": self.loader.state_dict(),
            "random": random.get_rng_state(),
            "generators": generators,
            "data": self.data,
        }
        return {name: to_numpy(array) for name, array in self.arrays().items()}, values

    def load_state_dict(self, arrays: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Go on from a state_dict().

        Errors: ValueError, KeyError, TypeError or RuntimeError for one that does not fit this model and these data.
        """
        parts: dict[str, dict[str, Any]] = {"model": {}, "optimizer": {}, "average": {}}
        for name, array in arrays.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = array
        if values["data"] != self.data:
            raise ValueError("the data are not those that it was begun with")
        history = [Epoch(*line) for line in values["history"]]
        step, totals, seconds = values["step"], values["totals"], list(values["seconds"])
        for line in history:
            if type(line.epoch) is not int or not all(type(x) is float and math.isfinite(x) for x in line[1:]):
                raise ValueError(f"the history has a line {line}")
        if [line.epoch for line in history] != list(range(1, len(history) + 1)) or len(history) > self.epochs:
            raise ValueError("the history does not count its epochs")
        before = min(len(history) * len(self.loader), self.steps)
        if type(step) is not int or not before <= step <= min(before + len(self.loader), self.steps):
            raise ValueError(f"step {step} does not lie in epoch {len(history) + 1}")
        if not 0 <= int(totals["correct"]) <= int(totals["count"]) <= len(self.train):
            raise ValueError(f"the sums of the epoch count {totals['count']} images")
        if len(seconds) != len(history) + 1 or not all(type(x) is float for x in seconds):
            raise ValueError("the seconds do not match the history")
        state: dict[int, dict[str, Any]] = {int(p): dict(kept) for p, kept in values["optimizer"]["numbers"].items()}
        for name, array in parts["optimizer"].items():
            place, _, key = name.partition(".")
            state.setdefault(int(place), {})[key] = array
        self.model.load_state_dict(parts["model"])
        self.optimizer.load_state_dict({"state": state, "param_groups": values["optimizer"]["param_groups"]})
        self.schedule.load_state_dict(values["schedule"])
        if self.average is not None:
            self.average.load_state_dict(parts["average"])
        modules = dict(self.model.named_modules())
        for name, generator_state in values["generators"].items():
            modules[name].generator.bit_generator.state = generator_state
        self.loader.load_state_dict(values["loader"])
        random.set_rng_state(values["random"])
        self.step, self.history, self.seconds = step, history, seconds
        self.totals = Totals(float(totals["loss"]), int(totals["correct"]), int(totals["count"]))


class Keeper(Protocol):
    """Where the checkpoints of a fit go, and where it begins."""

    def begin(self, training: Training) -> None:
        """Bring the training to where it is to begin."""

    def due(self, training: Training) -> bool:
        """Whether it is time for a checkpoint."""

    def write(self, training: Training) -> None:
        """Keep the training as it is now."""


def fit(
    model: Module,
    train: ArrayDataset,
    test: ArrayDataset,
    options: TrainOptions,
    on_epoch: Callable[[Epoch], None] | None = None,
    keeper: Keeper | None = None,
) -> Score:
    """Train a model as the options say, with a progress bar.

    Of several workers (mpiexec; parallel.py), each takes its part of every batch.
    Args: on_epoch is called with each epoch's line as soon as it is known; keeper writes checkpoints. Of several
        workers the first calls both alone, but for keeper.begin.
    Returns: the score on the test images after the last epoch; with options.ema that of the averaged weights, which
        the model then holds.
    Errors: Divergence where a loss or a weight is not finite any more; Stopped (a KeyboardInterrupt) on Ctrl-C, between
        two steps and after a checkpoint was written; a second Ctrl-C stops at once.
    """
    training = Training(model, train, test, options)
    if keeper is not None:
        keeper.begin(training)
    model.train()
    left = training.epochs - len(training.history)
    forecast = Forecast(training.steps - training.step, left, options.batch_size, len(test))
    shown = parallel.rank() == 0
    with ProgressBar(training.step, training.steps, forecast, shown) as bar, Interruption(shown) as interruption:

        def between_steps(due: bool) -> None:
            """Where the training may be kept, and stopped: when, the first worker's clock says, and Ctrl-C on any."""
            due, wanted = parallel.total(np.array([due and shown, interruption.wanted], np.int32)) > 0
            if keeper is not None and (due or wanted):
                training.check_losses()
                training.share_statistics()
                training.check_weights()
                parallel.first(keeper.write, training)
            if wanted:
                raise Stopped

        while len(training.history) < training.epochs:
            train_epoch(training, bar, lambda: between_steps(keeper is not None and keeper.due(training)))
            between_steps(False)
            line = finish_epoch(training, bar, lambda: between_steps(False))
            if on_epoch is not None:
                parallel.first(on_epoch, line)
            between_steps(True)
    if training.average is not None:
        model.load_state_dict(training.judged.state_dict())
    score = training.score
    assert score is not None, "a run has at least one epoch"
    return score


def train_epoch(training: Training, bar: ProgressBar, between_steps: Callable[[], None]) -> None:
    """The rest of an epoch's batches."""
    if training.step == training.epoch_end:
        return
    start = time.perf_counter()
    for images, labels in training.loader:
        training.train_batch(images, labels)
        now = time.perf_counter()
        training.seconds[-1] += now - start
        bar.step(now - start, training.check_losses)
        if training.step < training.epoch_end:
            between_steps()
        elif training.step < training.epoch * len(training.loader):
            break  # the run ends within the epoch
        start = now  # a checkpoint's time is a part of the next step's
    training.check_losses()


def finish_epoch(training: Training, bar: ProgressBar, on_batch: Callable[[], None]) -> Epoch:
    """Evaluate, and close the epoch's sums. Errors: Divergence for a test loss that is not finite."""
    start = time.perf_counter()
    loss, accuracy = training.check_losses()
    training.share_statistics()
    score = evaluate(training.judged, training.test, device=training.options.device, on_batch=on_batch, sharded=True)
    if not math.isfinite(score.loss):
        raise training.diverged(f"the test loss became {score.loss}", training.step)
    seconds = time.perf_counter() - start
    bar.forecast.evaluation(seconds)
    lr = training.schedule.rate(training.options.lr, training.step - 1)
    line = Epoch(training.epoch, lr, loss, accuracy, score.loss, score.accuracy)
    training.seconds[-1] += seconds
    bar.write(
        f"epoch {line.epoch:3d}/{training.epochs}   lr {lr:.4f}   train loss {loss:.4f} accuracy {accuracy:7.2%}   "
        f"test loss {score.loss:.4f} accuracy {score.accuracy:7.2%}   {training.seconds[-1]:.1f} s"
    )
    training.history.append(line)
    training.seconds.append(0.0)
    training.totals = Totals()
    return line
