"""tutorials/microres.py: small, MiniRes's numbers, and it learns."""

import ast
import importlib.util
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from closeness import assert_close
from lessons import ROOT

import minires
from minires.nn import functional as F

PATH = ROOT / "tutorials" / "microres.py"
RNG = np.random.default_rng


@pytest.fixture(scope="module")
def microres():
    """The file as a module; tutorials/ is no package."""
    spec = importlib.util.spec_from_file_location("microres", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names_of(layer):
    """Of a layer of microres, the names of its parameters in MiniRes, and that of its batch norm."""
    if layer == "fc":
        return ["fc.weight", "fc.bias"], None
    norm = layer.replace("conv", "bn")
    return [f"{layer}.weight", f"{norm}.weight", f"{norm}.bias"], norm


def twins(microres, seed):
    """ResNet-8 in MiniRes and in microres with the same weights in float64; gamma and beta are not 1 and 0."""
    rng = RNG(seed)
    model = minires.create_model("resnet8", in_channels=1, generator=rng).double().train()
    network = microres.ResNet8(rng)
    parameters = dict(model.named_parameters())
    pairs = {}
    for layer, tensors in network.layers.items():
        names, _ = names_of(layer)
        for name, tensor in zip(names, tensors, strict=True):
            theirs = parameters[name]
            theirs.array[...] += 0.1 * rng.standard_normal(theirs.shape)
            tensor.data = theirs.array.reshape(tensor.data.shape).copy()
            pairs[name] = (tensor, theirs)
    assert pairs.keys() == parameters.keys()
    return network, model, pairs


def assert_same_statistics(network, model, tolerance=1e-10):
    state = model.state_dict()
    for layer, (mean, var) in network.running.items():
        _, norm = names_of(layer)
        assert_close(mean.ravel(), state[f"{norm}.running_mean"].array, tolerance, norm)
        assert_close(var.ravel(), state[f"{norm}.running_var"].array, tolerance, norm)


# ---- Small -----------------------------------------------------------------------------------------------------------


def test_it_is_small_and_needs_nothing_but_numpy():
    source = PATH.read_text()
    assert len(source.splitlines()) <= 150
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert "numpy" in imported and imported - {"numpy"} <= sys.stdlib_module_names
    assert source.rstrip().endswith('print("Everything else in MiniRes is efficiency.")')


def test_its_digits_are_those_of_minires(microres):
    split = minires.data.digits()
    images = np.concatenate([split.train.images, split.test.images])
    assert len(split.train.images) == 1437
    assert np.array_equal(microres.labels, np.concatenate([split.train.labels, split.test.labels]))
    np.testing.assert_allclose(microres.images, images, atol=1e-6)  # float64 there, float32 here


# ---- MiniRes's numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 2, 7, 5), (2, 3, 6, 9), (1, 4, 1, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv2d_is_that_of_minires(microres, shape, stride):
    rng = RNG(1)
    x, w = rng.standard_normal(shape), rng.standard_normal((5, shape[1], 3, 3))
    theirs = [minires.Tensor(value, requires_grad=True) for value in (x, w)]
    expected = F.conv2d(*theirs, stride=stride, padding=1)
    y, step_back = microres.conv2d(x, w, stride)
    assert_close(y, expected.array, 1e-10, "y")
    dy = rng.standard_normal(y.shape)
    expected.backward(minires.Tensor(dy))
    for name, gradient, tensor in zip(("dx", "dw"), step_back(dy), theirs, strict=True):
        assert_close(gradient, tensor.grad.array, 1e-10, name)


def test_batch_norm_is_that_of_minires(microres):
    rng = RNG(2)
    x, gamma, beta = 3 + rng.standard_normal((3, 4, 5, 7)), rng.standard_normal(4), rng.standard_normal(4)
    mean, var = rng.standard_normal(4), rng.uniform(1, 2, 4)
    theirs = [minires.Tensor(value, requires_grad=True) for value in (x, gamma, beta)]
    their_running = [minires.Tensor(mean.copy()), minires.Tensor(var.copy())]
    expected = F.batch_norm(theirs[0], *their_running, *theirs[1:], training=True)
    over = (1, 4, 1, 1)
    running = [mean.reshape(over), var.reshape(over)]
    y, step_back = microres.batch_norm(x, gamma.reshape(over), beta.reshape(over), running, training=True)
    assert_close(y, expected.array, 1e-10, "y")
    for name, value, tensor in zip(("mean", "var"), running, their_running, strict=True):
        assert_close(value.ravel(), tensor.array, 1e-10, name)
    dy = rng.standard_normal(y.shape)
    expected.backward(minires.Tensor(dy))
    for name, gradient, tensor in zip(("dx", "dgamma", "dbeta"), step_back(dy), theirs, strict=True):
        assert_close(gradient.reshape(tensor.shape), tensor.grad.array, 1e-10, name)


@pytest.mark.parametrize("shape, channels, stride", [((3, 2, 7, 5), 6, 2), ((2, 3, 4, 4), 6, 2), ((2, 3, 5, 4), 3, 1)])
def test_residual_add_is_option_a_of_minires(microres, shape, channels, stride):
    rng = RNG(3)
    x = minires.Tensor(rng.standard_normal(shape), requires_grad=True)
    skip = F.shortcut_a(x, channels, stride)
    f = minires.Tensor(rng.standard_normal(skip.shape), requires_grad=True)
    expected = F.residual_add(skip, f)
    y, step_back = microres.residual_add(f.array, x.array, stride)
    assert_close(y, expected.array, 1e-10, "y")
    dy = rng.standard_normal(y.shape)
    expected.backward(minires.Tensor(dy))
    df, dx = step_back(dy)
    assert_close(df, f.grad.array, 1e-10, "df")
    assert_close(dx, x.grad.array, 1e-10, "dx")


def test_the_network_is_resnet8_of_minires(microres):
    """Loss, every gradient, running statistics, and after them the logits of evaluation."""
    network, model, pairs = twins(microres, seed=4)
    images, labels = RNG(5).standard_normal((6, 1, 8, 8)), np.array([0, 9, 3, 3, 1, 7])
    loss = network(images).apply(microres.cross_entropy, labels=labels)
    expected = F.cross_entropy(model(minires.Tensor(images)), labels)
    assert_close(loss.data, expected.array, 1e-10, "loss")
    loss.backward()
    expected.backward()
    for name, (ours, theirs) in pairs.items():
        assert_close(ours.grad.reshape(theirs.shape), theirs.grad.array, 1e-10, name)
    assert_same_statistics(network, model)
    model.eval()
    assert_close(network(images, training=False).data, model(minires.Tensor(images)).array, 1e-10, "logits")


# ---- It learns -------------------------------------------------------------------------------------------------------


def test_an_epoch_is_one_of_minires_and_lowers_the_loss(microres, monkeypatch, capsys):
    """The same weights after 45 steps of SGD with momentum and weight decay, and a loss below that of guessing."""
    network, model, pairs = twins(microres, seed=6)
    monkeypatch.setattr(microres, "ResNet8", lambda rng: network)
    microres.train(seed=7, epochs=1)
    optimizer = minires.optim.SGD(model.parameters(), lr=0.1 / 4, momentum=0.9, weight_decay=5e-4)
    for batch in np.array_split(RNG(7).permutation(1437), 45):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(minires.Tensor(microres.images[batch])), microres.labels[batch])
        loss.backward()
        optimizer.step()
    for name, (ours, theirs) in pairs.items():
        assert_close(ours.data.reshape(theirs.shape), theirs.array, 1e-9, name)  # rounding grows over the steps
    assert_same_statistics(network, model, 1e-9)
    printed = re.search(r"last loss (\d+\.\d+)", capsys.readouterr().out)[1]
    assert float(printed) == pytest.approx(loss.item(), abs=1e-3) and float(printed) < 0.5 * math.log(10)


LINE = r"epoch +(\d+)  last loss \d\.\d{4}  test accuracy (\d+\.\d\d)% \(\d+/360\)"


@pytest.mark.slow
def test_it_runs_from_any_folder_and_reads_digits(tmp_path):
    """As the table of contents says, which shows it first."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": ""}
    run = subprocess.run([sys.executable, PATH], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    *epochs, words = run.stdout.splitlines()
    found = [re.fullmatch(LINE, line) for line in epochs]
    assert [int(match[1]) for match in found] == list(range(1, 13))
    accuracy = float(found[-1][2])
    assert accuracy >= 98.5
    text = (ROOT / "tutorials" / "README.md").read_text()
    assert re.search(r"python tutorials/(\w+\.py)", text)[1] == "microres.py"
    shown = re.search(f"    {LINE}\n    {re.escape(words)}\n", text)
    assert int(shown[1]) == 12 and float(shown[2]) == pytest.approx(accuracy, abs=1)  # other machines round differently
