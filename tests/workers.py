"""What the tests of parallel training run in several processes: each function is a program of one worker.

``python workers.py NAME FOLDER [arguments]``, started by mpiexec in test_parallel.py.
"""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import minires.functional as F
import numpy as np

from minires import Tensor, cli, nn
from minires.data import ArrayDataset, DataLoader
from minires.optim import SGD
from minires.train import launch, parallel
from minires.train.recipes import TrainOptions
from minires.train.training import Training, evaluate, fit

BATCH = 12


def images(count, seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return ArrayDataset(rng.standard_normal((count, 2, 6, 6)).astype(dtype), rng.integers(0, 3, count))


class Net(nn.Module):
    """A small residual network, in float64."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)
        self.double()
        for p in self.parameters():
            p.array[...] = 0.3 * rng.standard_normal(p.shape)
        for norm in (self.bn1, self.bn2):
            norm.weight.array += 1

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(out + self.bn2(self.conv2(out)))
        return self.fc(out.mean(dim=(2, 3)))


#: 41 images: the last batch has 5, which 2 workers share as 3 and 2, and 3 workers do not cut; so are 5 images judged.
OPTIONS = {
    "model": "resnet8",
    "epochs": 13,
    "steps": 50,
    "batch_size": BATCH,
    "lr": 0.05,
    "augment": "crop-flip",
    "label_smoothing": 0.1,
    "ema": 0.9,
    "clip_norm": 2.0,
}


def options(**changes):
    return TrainOptions(**{**OPTIONS, **changes})


def state(training):
    return {name: array.tolist() for name, array in training.arrays().items()}


class Watched:
    """A keeper that only remembers the training, and writes nothing."""

    def begin(self, training):
        self.training = training

    def due(self, training):
        return False

    def write(self, training):
        assert parallel.rank() == 0


def trained(**changes):
    """A fit of the small network: metrics and weights."""
    keeper, lines = Watched(), []
    fit(Net(), images(41, 1), images(5, 2), options(**changes), lines.append, keeper)
    return {"lines": keeper.training.history, "arrays": state(keeper.training), "printed": len(lines)}


def sync():
    return trained(sync_batch_norm=True)


def no_bound_and_adam():
    return trained(sync_batch_norm=True, optimizer="adamw", steps=9, nesterov=False, clip_norm=0.0, augment="none")


def counted():
    """The metrics of batches whose thirds are not exact in binary."""
    keeper = Watched()
    fit(Net(), images(120, 1), images(5, 2), options(sync_batch_norm=True, batch_size=30, steps=20), keeper=keeper)
    return keeper.training.history


def judged():
    """The score that was reported with batch norm by worker, and that of the model that is kept."""
    model, keeper = Net(seed=parallel.rank()), Watched()  # rank 0 gives its weights to all
    fit(model, images(41, 1), images(5, 2), options(steps=4, ema=0.0), keeper=keeper)
    return [keeper.training.history[-1].test_loss, evaluate(model, images(5, 2)).loss]


def per_worker():
    """The gradients and statistics of one step on parts of a batch, batch norm by worker."""
    model, data = Net(), images(BATCH, 3)
    loader = DataLoader(data, BATCH, num_replicas=parallel.size(), rank=parallel.rank())
    x, labels = next(iter(loader))
    loss = F.cross_entropy(model(x), labels)
    parallel.backward(loss, model.parameters(), len(labels) / BATCH)
    return {
        "grads": {name: p.grad.numpy().tolist() for name, p in model.named_parameters()},
        "mean": model.bn1.running_mean.numpy().tolist(),
    }


class Odd(nn.Module):
    """A parameter that is used twice, one that is never used, one that only some workers use, one in float32."""

    def __init__(self):
        rng = np.random.default_rng(5)
        self.twice = nn.Parameter(rng.standard_normal((5, 5)))
        self.never = nn.Parameter(rng.standard_normal(3))
        self.sometimes = nn.Parameter(rng.standard_normal(5))
        self.frozen = nn.Parameter(rng.standard_normal(5), requires_grad=False)
        self.single = nn.Parameter(rng.standard_normal(5).astype(np.float32))
        self.large = nn.Parameter(rng.standard_normal((5, 40)))

    def forward(self, x, here):
        y = (x @ self.twice + self.frozen) @ self.twice + self.twice.sum() * self.twice.sum()
        if here:
            y = y * self.sometimes
        return (y @ self.large).tanh().mean() + self.single.to("float64").exp().mean()


def odd(rank, size):
    """One worker's loss, and the model that gives it."""
    model = Odd()
    x = Tensor(np.random.default_rng(rank).standard_normal((3, 5)))
    return model, model(x, here=rank == size - 1)


class Skipping(Net):
    """A layer between two batch norms, that only the last worker uses."""

    def __init__(self):
        super().__init__()
        self.bn2.register_parameter("sometimes", nn.Parameter(np.ones(1)))  # sent between the two batch norms

    def forward(self, x):
        x = self.conv1(x)
        if parallel.rank() == parallel.size() - 1:
            x = x * self.bn2.sometimes
        return self.fc(self.bn2(F.relu(self.bn1(x))).mean(dim=(2, 3)))


def other_ways():
    """Gradients of a model whose layers are not the same on all workers."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(Skipping())
    data = images(BATCH, parallel.rank())
    loss = F.cross_entropy(model(Tensor(data.images)), Tensor(data.labels))
    with small_buckets(1):
        parallel.backward(loss, model.parameters())
    return {name: p.grad.numpy().tolist() for name, p in model.named_parameters() if p.grad is not None}


@contextlib.contextmanager
def small_buckets(size):
    """Buckets of so many bytes."""
    before, parallel.BUCKET = parallel.BUCKET, size
    yield
    parallel.BUCKET = before


@small_buckets(300)
def buckets():
    """Gradients of an odd model, twice: the second is added to the first."""
    rank, size = parallel.rank(), parallel.size()
    model, loss = odd(rank, size)
    before, sent = parallel.seconds(), []
    wait = parallel.GradientSums.wait

    def noted(sums):
        sent.append((len(sums.sent), len(sums.buckets)))
        wait(sums)

    parallel.GradientSums.wait = noted
    for _ in range(2):
        parallel.backward(loss, model.parameters())
        loss = model(Tensor(np.random.default_rng(rank).standard_normal((3, 5))), here=rank == size - 1)
    parallel.GradientSums.wait = wait
    grads = {name: None if p.grad is None else p.grad.numpy().tolist() for name, p in model.named_parameters()}
    return {"grads": grads, "seconds": parallel.seconds() - before, "sent": sent}


def unsendable():
    error = OSError("no such page")
    error.file = sys.stdout
    raise error


def start():
    """Other weights on each worker, until they are broadcast."""
    rank = parallel.rank()
    model = Net(seed=rank)
    parallel.broadcast(model.state_dict())
    values = parallel.first(lambda: [rank, "said"])
    try:
        parallel.first(unsendable)
    except (OSError, RuntimeError) as error:
        said = str(error)
    summed = parallel.total(np.arange(3.0) + rank)
    assert parallel.total(np.float64(0.5)).shape == (), "a number stays one"
    with parallel.alone():
        inside = [parallel.rank(), parallel.size(), *parallel.total(np.ones(1))]
        if rank == 2:  # without the others
            fit(Net(), images(41, 1), images(17, 2), options(steps=1))
    if rank == 1:  # of its own number of threads
        assert launch.cores() >= 1
    with contextlib.suppress(RuntimeError):
        parallel.backward(Tensor(np.ones(2), requires_grad=True) * 2, [])
        raise AssertionError("a loss of two values has no gradient")
    score = evaluate(model, images(7, 2), batch_size=2, sharded=True)
    return {
        "weights": model.fc.weight.detach().numpy().tolist(),
        "first": values,
        "said": said,
        "total": summed.tolist(),
        "alone": inside,
        "score": score,
    }


class CutOff(OSError):
    """What ends a run in the middle."""


def whole_run(folder, *arguments):
    """A run of the small network, in a folder; up to a step, on from there, or both at once."""
    from minires import data
    from minires.train import runs

    stop, resume, synchronised = (json.loads(argument) for argument in arguments)
    split = data.DataSplit(images(41, 1), images(17, 2), 3, 2)
    runs.load_data, runs.make_model = lambda name: split, lambda options, split: Net()
    runs.plot_curves = lambda *arguments, **options: None  # matplotlib takes a second to come
    step = Training.train_batch

    def train_batch(training, *batch):
        if training.step == stop:
            raise CutOff("cut off")
        step(training, *batch)

    Training.train_batch = train_batch
    with contextlib.suppress(CutOff, OSError):
        if resume:
            runs.resume(folder)
        else:
            chosen = options(sync_batch_norm=synchronised, checkpoint_every="3", steps=15, epochs=4)
            runs.run(chosen, folder)


def slow():
    """A run that is waited for: it says on which step it is."""
    step = Training.train_batch

    def train_batch(training, *batch):
        step(training, *batch)
        Path(f"step-{parallel.rank()}").write_text(str(training.step))
        time.sleep(0.05)

    Training.train_batch = train_batch
    sys.exit(cli.main(["train", "--model", "resnet8", "--epochs", "50", "--out", "run"]))


def other_version():
    if launch.launched()[0] == 1:
        np.__version__ = "1.0"
    parallel.rank()


def refused(*arguments):
    """What fit() says on this worker."""
    try:
        fit(*arguments)
    except (ValueError, FloatingPointError) as error:
        return str(error)


def other_models():
    model = Net()
    if parallel.rank() == 1:
        model.fc = nn.Linear(4, 5).double()
    return refused(model, images(41, 1), images(17, 2), options())


def other_data():
    return refused(Net(), images(41, parallel.rank()), images(17, 2), options())


def other_seed():
    return refused(Net(), images(41, 1), images(17, 2), options(seed=parallel.rank() // 2))


def few_images():
    return refused(Net(), images(3, 1), images(17, 2), options())


def uneven():
    return refused(Net(), images(41, 1), images(17, 2), options(batch_size=13))


def bad_image():
    """One worker's image is not finite: synchronised batch norm makes the loss of all so."""
    train = images(41, 1)
    train.images[7, 0, 0, 0] = np.nan
    return refused(Net(), train, images(17, 2), options(sync_batch_norm=True, augment="none"))


def wrong(*lines):
    """Each line is a command of which all workers say the same."""
    for line in lines:
        try:
            status = cli.main(["train", *line.split()])
        except SystemExit as error:
            status = error.code
        assert status == 2, line


def raises():
    launch.PATIENCE = 0.5
    parallel.total(np.ones(3))
    if parallel.rank() == 1:
        raise KeyError("a mistake in the data")
    parallel.total(np.ones(3))


def all_raise():
    parallel.total(np.ones(3))
    raise KeyError("everywhere")


def killed():
    parallel.total(np.ones(3))
    if parallel.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    parallel.total(np.ones(3))


def device():
    """``trained`` with arrays on the stand-in for a GPU: MPI gets copies on the host."""
    import strict_cupy

    with strict_cupy.installed():
        if parallel.size() > 1:
            launch.choose_gpu()
        keeper = Watched()
        chosen = options(device="cuda", sync_batch_norm=True, steps=9, epochs=3)
        fit(Net().to("cuda"), images(41, 1), images(17, 2), chosen, keeper=keeper)
        arrays = {
            name: array.get() for name, array in keeper.training.arrays().items() if not name.endswith("averaged")
        }
    return {"lines": keeper.training.history, "arrays": {name: array.tolist() for name, array in arrays.items()}}


def leaves(how):
    """Rank 1 is at its end while the others wait for it: during a sum, or before MPI was started."""
    launch.PATIENCE, launch.START = 0.5, 1
    if how != "early":
        parallel.total(np.ones(3))
    if launch.launched()[0] == 1:
        sys.exit(3 if how == "code" else 0)
    parallel.total(np.ones(3))


def own_loop():
    """The lines of the README, with parts of unequal size: 11 images a batch, and 8 in the last."""
    model, optimizer_steps = nn.SyncBatchNorm.convert_sync_batchnorm(Net()), 0
    parallel.broadcast(model.state_dict())
    optimizer = SGD(model.parameters(), 0.1)
    loader = DataLoader(images(41, 1), 11, shuffle=True, num_replicas=parallel.size(), rank=parallel.rank())
    for i, (x, labels) in enumerate(loader):
        optimizer.zero_grad()
        parallel.backward(F.cross_entropy(model(x), labels), model.parameters(), loader.share(i))
        optimizer.step()
        optimizer_steps += 1
    return {"weights": model.fc.weight.detach().numpy().tolist(), "var": model.bn2.running_var.numpy().tolist()}


def several(*names):
    """Programs one after the other, that all end."""
    return {name: globals()[name]() for name in names}


def main():
    name, folder, *arguments = sys.argv[1:]
    result = globals()[name](*arguments)
    Path(folder, f"{parallel.rank()}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
