"""detect_anomaly, stop_before_backward and watch: each planted mistake is found by what they say alone."""

import re
import sys

import minires.functional as F
import numpy as np
import pytest

import minires
from minires import Tensor, debug, nn, optim
from minires.engine.modes import mode


@pytest.fixture(autouse=True)
def nothing_left_behind():
    yield
    assert mode.watchers == ()


def random(*shape, dtype=np.float32, requires_grad=False):
    return Tensor(np.random.default_rng(0).standard_normal(shape).astype(dtype), requires_grad=requires_grad)


def resnet(**options):
    return minires.create_model("resnet8", generator=np.random.default_rng(0), **options)


def loss_of(model, images):
    return F.cross_entropy(model(images), Tensor(np.arange(len(images)) % 10, device=images.device))


def found(run):
    with np.errstate(all="ignore"), pytest.raises(debug.Anomaly) as caught, debug.detect_anomaly():
        run()
    return str(caught.value)


# ---- What is not finite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recording", [True, False])
def test_nan_in_the_data_is_told_as_the_datas(recording):
    images = random(4, 3, 8, 8)
    images.array[2, 1, 3, 3] = np.nan
    with minires.set_grad_enabled(recording):
        said = found(lambda: resnet()(images))
    assert re.search(rf"forward of conv2d by conv1 at {__file__}, line \d+: the result is not finite", said)
    assert re.search(r"  x: \(4, 3, 8, 8\), min -\S+, max \S+, mean \S+, 1 NaN, 0 inf, 0 -inf", said)
    assert "x was not finite already" in said and "look at the data" in said
    assert "w (the parameter conv1.weight): (16, 3, 3, 3)" in said and "0 NaN" in said


def test_nan_in_a_weight_is_told_by_the_weights_name():
    model = resnet()
    model.layer2[0].conv2.weight.array[0, 0, 0, 0] = np.nan
    said = found(lambda: loss_of(model, random(4, 3, 8, 8)))
    assert said.startswith("forward of conv2d by layer2.0.conv2 at")
    assert "the parameter layer2.0.conv2.weight holds such numbers" in said
    assert "x was not finite" not in said


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_nan_in_a_running_statistic_is_told_by_its_name(name):
    model = resnet().eval()
    getattr(model.layer1[0].bn2, name).array[3] = np.nan
    said = found(lambda: model(random(2, 3, 8, 8)))
    assert "by layer1.0.bn2" in said and f"the buffer layer1.0.bn2.{name} holds such numbers" in said


class LogOfCounts(nn.Module):
    def __init__(self):
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return F.relu(self.fc(x)).log()


def test_the_log_of_zero_in_a_layer_of_ones_own():
    said = found(lambda: LogOfCounts()(random(50, 4)))
    assert said.startswith("forward of log") and "-inf" in said
    assert "x: (50, 3), min 0," in said and "all that went in is finite: log made it" in said


def test_overflow_in_float32_and_not_in_float64():
    for dtype in (np.float32, np.float64):
        x = Tensor(np.full((2, 3), 100.0, dtype), requires_grad=True)
        if dtype == np.float32:
            said = found(lambda x=x: (x.exp() + 1).sum())
            assert "forward of exp at" in said and "max 100," in said and "6 inf" in said
        else:
            with debug.detect_anomaly():
                (x.exp() + 1).sum().backward()


def test_a_gradient_that_is_not_finite_names_operation_and_line():
    x = Tensor([4.0, 0.0, 9.0], requires_grad=True)
    said = found(lambda: x.sqrt().sum().backward())
    assert re.search(rf"backward of sqrt at {__file__}, line \d+: a gradient is not finite", said)
    assert "gradient of x: (3,)" in said and "1 inf" in said
    assert "dy: (3,), min 1, max 1" in said and "cache.y: (3,), min 0, max 3" in said


def test_a_gradient_that_was_given_is_told_so():
    x = random(3, requires_grad=True)
    said = found(lambda: (x * 2).backward([1.0, np.nan, 1.0]))
    assert "the gradient dy that arrived is not finite" in said and "1 NaN" in said


def test_what_is_meant_to_be_infinite_is_no_alarm():
    logits, mask = random(4, 5, requires_grad=True), Tensor(np.arange(20).reshape(4, 5) % 5 != 2)
    with debug.detect_anomaly():
        masked = F.where(mask, logits, Tensor(np.float32(-np.inf)))
        F.cross_entropy(masked, np.array([0, 1, 3, 4])).backward(retain_graph=True)
        F.softmax(masked).sum().backward()
        F.log_softmax(masked)
        F.softmax(F.pad(logits, (1, 1), value=-np.inf))
        F.max_pool2d(-abs(random(2, 3, 5, 5, requires_grad=True)), 3, stride=2, padding=1).sum().backward()
    said = found(lambda: F.softmax(Tensor(np.full((2, 3), -np.inf, np.float32))))
    assert "6 NaN" in said and "x was not finite already" in said


# ---- What was changed in place ---------------------------------------------------------------------------------------


def test_an_input_changed_after_the_convolution():
    x, w = random(2, 3, 5, 5), random(4, 3, 3, 3, requires_grad=True)

    def run():
        nonlocal x
        y = F.conv2d(x, w)
        x += 1
        y.sum().backward()

    said = found(run)
    assert re.search(rf"backward of conv2d at {__file__}, line \d+: cache\.x \(2, 3, 5, 5\) was changed in place", said)
    assert "held by: its input x\n" in said and w.grad is None


def test_a_weight_changed_between_forward_and_backward():
    model = resnet()

    def run():
        loss = loss_of(model, random(4, 3, 8, 8))
        with minires.no_grad():
            model.layer3[0].conv1.weight *= 2
        loss.backward()

    said = found(run)
    assert "backward of conv2d by layer3.0.conv1" in said and "cache.w" in said
    assert "held by: the parameter layer3.0.conv1.weight (input w)" in said


def test_a_relus_output_changed_is_told_with_the_other_caches():
    x, w = random(2, 3, 5, 5, requires_grad=True), random(4, 3, 3, 3, requires_grad=True)

    def run():
        a = F.relu(x)
        y = F.conv2d(a, w)
        a.array += 1
        y.sum().backward()

    said = found(run)
    assert "backward of conv2d at" in said and "its input x, the result of relu at" in said
    assert "cache.y of relu at" in said


def test_a_second_backward_after_a_step_is_an_alarm_as_in_pytorch():
    model = resnet()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def run():
        loss = loss_of(model, random(4, 3, 8, 8))
        loss.backward(retain_graph=True)
        optimizer.step()
        loss.backward()

    assert "run the forward again" in found(run)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "resnet50"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_clean_training_is_left_alone(name, dtype):
    model = minires.create_model(name, num_classes=10).to(dtype=np.dtype(dtype))
    optimizer = optim.SGD(model.parameters(), lr=1e-9, momentum=0.9)
    images = random(2, 3, 32, 32, dtype=dtype)
    plain = loss_of(model, images).item()
    with debug.detect_anomaly() as outer, debug.detect_anomaly():
        for step in range(2 if name == "resnet20" else 1):
            loss = loss_of(model, images)
            assert step or loss.item() == plain
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with minires.no_grad():
            model.eval()(images)
        assert len(outer.kept) <= 1  # a freed graph is let go


def test_check_nan_false_looks_for_changes_alone():
    x = Tensor([-1.0], requires_grad=True)
    with np.errstate(all="ignore"), debug.detect_anomaly(check_nan=False):
        x.log().sum().backward()


def test_it_works_on_a_device(cuda):
    model = resnet().to("cuda")
    with debug.detect_anomaly():
        loss_of(model, random(2, 3, 8, 8).to("cuda")).backward()
    model.layer1[0].conv1.weight.array[0, 0, 0, 0] = np.nan
    assert "the parameter layer1.0.conv1.weight" in found(lambda: loss_of(model, random(2, 3, 8, 8).to("cuda")))


# ---- Stopping and watching -------------------------------------------------------------------------------------------


def test_the_debugger_opens_before_the_backward_of_a_layer(monkeypatch):
    frames = []
    monkeypatch.setattr(sys, "breakpointhook", lambda: frames.append(dict(sys._getframe(1).f_locals)))
    model = resnet()
    with debug.stop_before_backward("layer3.0.conv1"):
        loss_of(model, random(4, 3, 8, 8)).backward()
    (seen,) = frames
    assert seen["node"].module == "layer3.0.conv1" and seen["node"].operation == "conv2d"
    assert seen["dy"].shape == (4, 64, 2, 2) and seen["cache"].w is model.layer3[0].conv1.weight.array
    loss_of(model, random(4, 3, 8, 8)).backward()
    assert len(frames) == 1

    stop = debug.stop_before_backward("relu")  # an operation, and no model at all
    F.relu(random(3, requires_grad=True)).sum().backward()
    stop.stop()
    stop.stop()
    assert len(frames) == 2


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(ValueError, match=r"unknown module .*'layer3\.2\.conv1': did you mean 'layer3\.0\.conv1'\?"):
        with debug.stop_before_backward("layer3.2.conv1"):
            loss_of(resnet(), random(4, 3, 8, 8)).backward()


def test_watch_tells_how_a_gradient_grows(capsys):
    x = Tensor([3.0, 4.0], requires_grad=True)
    watch = debug.watch(x, "x")
    (x * 2 + x).sum().backward()
    first = capsys.readouterr().out.splitlines()
    assert [line.split(", from ")[0] for line in first] == [
        "grad of x (2,): norm 0 -> 1.41421",
        "grad of x (2,): norm 1.41421 -> 4.24264",
    ]
    assert "from add at" in first[0] and "from multiply at" in first[1]
    (x * 2).sum().backward()
    assert "norm 4.24264 -> 7.07107, from multiply" in capsys.readouterr().out
    watch.stop()
    (x * 2).sum().backward()
    assert capsys.readouterr().out == ""


def test_watch_knows_a_parameters_name_and_what_was_computed(capsys):
    model = resnet()
    with debug.watch(model.layer2[0].conv1.weight):
        loss_of(model, random(4, 3, 8, 8)).backward()
    line = capsys.readouterr().out
    norm = np.sqrt((model.layer2[0].conv1.weight.grad.array.astype(float) ** 2).sum())
    assert line.startswith(f"grad of layer2.0.conv1.weight (32, 16, 3, 3): norm 0 -> {norm:.6g}, from conv2d by layer2")
    y = F.relu(random(3, 4, requires_grad=True))
    with debug.watch(y, "y"):
        (y * y).sum().backward()
    assert len(capsys.readouterr().out.splitlines()) == 2
    with pytest.raises(RuntimeError, match="watch: no gradient flows"):
        debug.watch(random(3))


def test_a_parameter_of_minus_infinity_is_no_mask():
    layer = nn.BatchNorm2d(2)
    layer.bias.array[1] = -np.inf
    with debug.detect_anomaly(), pytest.raises(debug.Anomaly, match="the parameter bias"):
        layer(minires.randn(2, 2, 3, 3))


def test_a_stop_at_a_block_comes_when_the_backward_enters_it(monkeypatch):
    model = minires.create_model("resnet8")
    entered = []
    monkeypatch.setattr(debug.stopping, "stopped", lambda node: entered.append(node.module))
    for name in ("layer3", "layer2.0.conv1"):
        with debug.stop_before_backward(name):
            model(minires.randn(2, 3, 8, 8)).sum().backward()
    assert entered == ["layer3.0.relu", "layer2.0.conv1"]


def test_what_cannot_be_watched():
    with pytest.raises(TypeError, match="expected a Tensor, such as model.fc.weight, got str"):
        debug.watch("fc.weight")
