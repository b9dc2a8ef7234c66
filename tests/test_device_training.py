"""Whole runs on the device: evaluation, files, the command line, and what crosses between host and device."""

import csv
import json

import minires.functional as F
import numpy as np
import pytest
from closeness import assert_close
from on_device import FLOAT32, Counts, assert_same, counting, thorough
from test_device_layers import OPTIMIZERS, parameters, steps
from test_device_models import network

import minires
from minires import Tensor, cli, create_model, nn, optim
from minires.data import ArrayDataset, DataSplit
from minires.models import BasicBlock, Bottleneck, PlainBlock, PreActBlock
from minires.train import progress
from minires.train.prediction import confusion
from minires.train.training import Training, TrainOptions, evaluate, fit

pytestmark = pytest.mark.usefixtures("cuda")


def few(count=22, size=8):
    """A small data set that can be learned: each class has its own bright corner."""
    rng = np.random.default_rng(17)
    labels = rng.integers(0, 4, count)
    images = rng.standard_normal((count, 1, size, size)).astype(FLOAT32)
    for image, label in zip(images, labels, strict=True):
        image[0, 4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 2
    return ArrayDataset(images, labels)


def model(**options):
    return create_model(
        "resnet8", in_channels=1, num_classes=4, width=4, generator=np.random.default_rng(18), **options
    )


def test_evaluate_counts_as_the_host_does():
    data, host = few(), model()
    host(Tensor(data.images))  # running statistics of its own
    expected = evaluate(host, data, batch_size=8)
    found = evaluate(host.to("cuda"), data, batch_size=8, device="cuda")
    assert found.correct == expected.correct and found.count == expected.count
    assert found.loss == pytest.approx(expected.loss, rel=1e-5) and type(found.loss) is float
    assert host.training


def test_the_confusion_matrix_is_the_hosts():
    data, host = few(), model()
    expected = confusion(host.eval(), data)
    np.testing.assert_array_equal(confusion(host.to("cuda"), data, device="cuda").matrix, expected.matrix)


def test_fit_learns_as_on_the_host():
    data, lines = few(), {}
    for device in ("cpu", "cuda"):
        options = TrainOptions(epochs=2, batch_size=8, lr=0.02, device=device)
        lines[device] = []
        fit(model().to(device), data, data, options, on_epoch=lines[device].append)
    assert len(lines["cpu"]) == len(lines["cuda"]) == 2
    for line, other in zip(lines["cuda"], lines["cpu"], strict=True):
        assert line.train_loss == pytest.approx(other.train_loss, rel=1e-3)
        assert line.test_loss == pytest.approx(other.test_loss, rel=1e-3)
        assert line[3::2] == other[3::2] and line.lr == other.lr, "accuracies"
        assert [type(number) for number in line] == [type(number) for number in other]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_training_goes_on_from_another_devices_checkpoint(optimizer):
    """Four steps at once on the host, or two on the device and two on the host from its checkpoint."""
    data = few()

    def training(device):
        options = TrainOptions(epochs=1, batch_size=4, lr=0.01, ema=0.9, device=device, optimizer=optimizer)
        return Training(model().to(device), data, data, options)

    whole, first, second = training("cpu"), training("cuda"), training("cpu")
    batches = list(whole.loader)[:4]
    for images, labels in batches:
        whole.train_batch(images, labels)
    for images, labels in batches[:2]:
        first.train_batch(images, labels)
    arrays, values = first.state_dict()
    assert {type(array) for array in arrays.values()} == {np.ndarray}
    second.load_state_dict(arrays, values)
    for images, labels in batches[2:]:
        second.train_batch(images, labels)
    for (name, array), other in zip(whole.arrays().items(), second.arrays().values(), strict=True):
        assert_close(other, array, 2e-3, name)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_a_file_of_weights_from_one_device_loads_on_the_other(tmp_path, suffix, target):
    source = "cuda" if target == "cpu" else "cpu"
    one, other = network(BasicBlock).to(source), network(BasicBlock)
    with minires.no_grad():
        for parameter in one.parameters():
            parameter += 0.5
    path = tmp_path / f"weights{suffix}"
    minires.save(path, one.state_dict())
    loaded = minires.load(path)
    assert {tensor.device for tensor in loaded.values()} == {"cpu"}, "a file knows no device"
    other.to(target).load_state_dict(loaded)
    for name, tensor in one.cpu().state_dict().items():
        assert other.state_dict()[name].device == target
        np.testing.assert_array_equal(other.state_dict()[name].cpu().numpy(), tensor.numpy(), err_msg=name)


def test_a_device_array_by_itself_can_be_saved(tmp_path):
    tensor = minires.arange(5, device="cuda")
    minires.save(tmp_path / "a.npz", {"tensor": tensor, "array": tensor.array, "number": np.float32(3)})
    loaded = minires.load(tmp_path / "a.npz")
    assert loaded["tensor"].tolist() == loaded["array"].tolist() == [0, 1, 2, 3, 4] and loaded["number"].item() == 3


def test_the_command_line_trains_on_the_device(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = few(12)
    monkeypatch.setitem(minires.data.DATASETS, "few", lambda: DataSplit(data, data, 4, 1))
    assert (
        cli.main(
            "train --recipe digits --device cuda --epochs 1 --model resnet8 --data few --batch-size 4 --out run".split()
        )
        == 0
    )
    assert "test accuracy:" in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["device"] == "cuda" and config["result"]["epochs"] == 1
    (row,) = csv.DictReader((tmp_path / "run" / "metrics.csv").open())
    assert np.isfinite(float(row["train_loss"]))
    trained = create_model("resnet8", in_channels=1, num_classes=4)
    trained.load_state_dict(minires.load(tmp_path / "run" / "last.safetensors"))
    assert evaluate(trained, data).correct == config["result"]["correct"], "what was saved is what was reported"


def test_divergence_on_the_device_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = few(12)
    monkeypatch.setitem(minires.data.DATASETS, "few", lambda: DataSplit(data, data, 4, 1))
    command = (
        "train --recipe digits --device cuda --epochs 3 --model resnet8 --data few --batch-size 4 --lr 1e30 --out run"
    )
    assert cli.main(command.split()) == 2
    assert "diverged" in capsys.readouterr().err


# ---- What crosses between host and device ---------------------------------------------------------------------------

COUNTED = {
    "resnet20": lambda: create_model("resnet20", generator=np.random.default_rng(19)),
    "with an ImageNet stem and option B": lambda: network(BasicBlock, in_channels=3, stem="imagenet", shortcut="B"),
    "Bottleneck": lambda: network(Bottleneck, in_channels=3, shortcut="B", groups=2),
    "plain": lambda: network(PlainBlock, in_channels=3),
    "pre-activation": lambda: network(PreActBlock, in_channels=3, final_norm=True),
    "average pools": lambda: nn.Sequential(
        nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(18, 10)
    ),
    "BatchNorm2d that averages": lambda: nn.Sequential(
        nn.BatchNorm2d(3, momentum=None), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)
    ),
}
FAST = ("resnet20", "average pools")


def batch(count=4):
    rng = np.random.default_rng(20)
    return Tensor(rng.standard_normal((count, 3, 16, 16)).astype(FLOAT32)), Tensor(rng.integers(0, 5, count))


def counted_step(make):
    """Uploads of a batch, then the counts of forward, backward and update, of the second step."""
    net = make().to("cuda")
    optimizer = optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    for _ in range(2):  # the first step makes the velocities, and CuPy's own tables
        images, labels = (part.to("cuda") for part in batch())
        optimizer.zero_grad()
        with counting() as seen:
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
    return seen[0]


@pytest.mark.parametrize("name", [name if name in FAST else thorough(name) for name in COUNTED])
def test_nothing_crosses_inside_a_step(name):
    counts = counted_step(COUNTED[name])
    assert counts.uploads == 0 and counts.waits == 0, counts


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_crosses_inside_an_optimiser(name):
    params = parameters("cuda")
    optimizer = OPTIMIZERS[name](params)
    steps(optimizer, params, 0, 1)
    for p in params:
        p.grad = p.detach() + 1
    with counting() as seen:
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    assert seen[0].uploads == 0 and seen[0].waits == 0, seen


def counted_training_step():
    """Counts of the third training step of ResNet-20, with the way of its batch to the device."""
    images, labels = batch()
    data = ArrayDataset(images.numpy(), labels.numpy())
    options = TrainOptions(epochs=4, batch_size=4, device="cuda")
    training = Training(COUNTED["resnet20"]().to("cuda"), data, data, options)
    for _ in range(3):
        with counting() as seen:
            training.train_batch(images, labels)
    return seen[0]


def test_a_training_step_uploads_its_batch_and_nothing_else(notes):
    counts = counted_training_step()
    shown = f"{counts.launches} launches, {counts.uploads} uploads, {counts.waits} waits"
    notes.append(f"a training step of ResNet-20 on the device: {shown}")
    assert counts.uploads == 2 and counts.waits == 0, counts
    assert counts.launches < 1000, "each costs microseconds, whatever the batch"


def test_launches_do_not_grow_with_the_batch():
    """A loop over images would show here."""
    net = COUNTED["resnet20"]().to("cuda")
    launches = []
    for count in (3, 6):
        images, labels = (part.to("cuda") for part in batch(count))
        with counting() as seen:
            F.cross_entropy(net(images), labels).backward()
        launches.append(seen[0].launches)
        net.zero_grad()
    assert launches[0] == launches[1]


def test_dropout_uploads_its_mask_only():
    x = minires.ones(4, 5, device="cuda", requires_grad=True)
    with counting() as seen:
        F.dropout(x, 0.3).sum().backward()
    assert seen[0].uploads == 1 and seen[0].waits == 0


def more_batches(work):
    """What 16 batches cost beside 4 batches of the same images."""
    data, net, found = few(64), model().to("cuda"), []
    for batch_size in (16, 4):
        with counting() as seen:
            work(net, data, batch_size)
        found.append(seen[0])
    return Counts(*[many - few_batches for few_batches, many in zip(*found, strict=True)])


def test_an_epoch_fetches_its_losses_rarely(monkeypatch):
    """The losses of an epoch stay on the device: a batch costs its way there, and no wait but for what is shown."""
    monkeypatch.setattr(progress, "SHOWN_EVERY", 3600)
    score = few(4)

    def epoch(net, data, batch_size):
        fit(net, data, score, TrainOptions(epochs=1, batch_size=batch_size, device="cuda"))

    counts = more_batches(epoch)
    assert counts.waits == 0 and counts.uploads == 24, counts


def test_divergence_stops_an_epoch_on_the_device_as_soon_as_a_loss_is_shown(monkeypatch):
    monkeypatch.setattr(progress, "SHOWN_EVERY", 0)
    data, net, batches = few(64), model().to("cuda"), []
    net.register_buffer("scale", Tensor(np.float32("nan"), device="cuda"))
    forward = net.forward

    def broken(images):
        batches.append(len(images))
        return forward(images) * net.scale

    net.forward = broken
    with pytest.raises(FloatingPointError, match="the loss became nan"):
        fit(net, data, data, TrainOptions(epochs=1, batch_size=8, device="cuda"))
    assert len(batches) <= 3, "seven more batches were left in the epoch (and two forwards looked for the cause)"


def test_a_label_out_of_range_on_the_device_is_told_from_divergence():
    data, net = few(24), model().to("cuda")
    data.labels[13] = 4
    with pytest.raises(ValueError, match="labels must lie between 0 and 3, got 4 of image 13"):
        fit(net, data, few(4), TrainOptions(epochs=1, batch_size=8, device="cuda"))


def test_batches_of_different_sizes_count_by_their_images():
    data, net = few(22), model().to("cuda")
    whole, parts = (evaluate(net, data, batch_size, device="cuda") for batch_size in (22, 8))
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5) and parts.correct == whole.correct


def test_synchronize_waits():
    with counting() as seen:
        minires.cuda.synchronize()
    assert seen[0].waits == 1


def test_evaluation_fetches_its_sums_once():
    counts = more_batches(lambda net, data, batch_size: evaluate(net, data, batch_size, device="cuda"))
    assert counts.waits == 0 and counts.uploads == 24, counts


def test_the_loss_comes_home_when_it_is_asked_for():
    loss = F.cross_entropy(minires.ones(2, 3, device="cuda"), Tensor([0, 1], device="cuda"))
    with counting() as seen:
        assert loss.item() == pytest.approx(np.log(3))
    assert seen[0].waits == 1
    assert_same(loss, np.asarray(np.log(3), FLOAT32), 1e-6)
