"""What a summary counts, what it prints, and that it leaves the model alone."""

import json

import numpy as np
import pytest

from minires import Tensor, cli, models, nn
from minires.models.summary import summarize


class HandMade(nn.Module):
    """A grouped strided convolution, batch norm, an average and a linear layer: small enough to count by hand."""

    def __init__(self):
        self.conv = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=1, groups=2)
        self.bn = nn.BatchNorm2d(6)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.pool(self.bn(self.conv(x))).flatten(1))


def test_counts_by_hand():
    """Out of 9x8 come (9 + 2 - 3) / 2 + 1 = 5 rows and 8 + 2 - 2 + 1 = 9 columns of 6 channels."""
    counted = summarize(HandMade(), (4, 9, 8))
    conv = 6 * 5 * 9 * (4 // 2) * 3 * 2
    assert [(row.name, row.kind, row.output_shape, row.parameters, row.macs) for row in counted.rows] == [
        ("conv", "Conv2d", (1, 6, 5, 9), 6 * 2 * 3 * 2 + 6, conv),
        ("bn", "BatchNorm2d", (1, 6, 5, 9), 12, 0),
        ("pool", "AdaptiveAvgPool2d", (1, 6, 1, 1), 0, 0),
        ("fc", "Linear", (1, 5), 35, 30),
    ]
    assert counted.macs == conv + 30 and counted.parameters == 78 + 12 + 35 and counted.keys == 2 + 5 + 2


def test_multiply_adds_grow_with_the_image():
    model = models.cifar_resnet(8)
    small, large = (summarize(model, (3, n, n)) for n in (16, 32))
    linear = model.fc.in_features * model.fc.out_features
    assert large.macs - linear == 4 * (small.macs - linear) and large.parameters == small.parameters


def hooks(model):
    """Functions that were put on single modules: a module's own attributes are parts, tensors and plain values."""
    owned = [(m, name, value) for m in model.modules() for name, value in vars(m).items()]
    return [name for m, name, value in owned if callable(value) and not isinstance(value, nn.Module)]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model = models.create_model("resnet8").train(training)
    model.layer2.eval()  # a mode of its own
    modes = [m.training for m in model.modules()]
    state = {k: v.numpy().tobytes() for k, v in model.state_dict().items()}
    summarize(model, (3, 8, 8))
    assert [m.training for m in model.modules()] == modes
    assert not hooks(model)
    assert {k: v.numpy().tobytes() for k, v in model.state_dict().items()} == state
    assert all(p.grad is None for p in model.parameters())


def test_the_model_is_left_as_it_was_where_the_image_does_not_fit():
    model = models.create_model("resnet8").train()
    with pytest.raises((ValueError, RuntimeError)):
        summarize(model, (5, 8, 8))
    assert not hooks(model) and all(m.training for m in model.modules())
    summarize(model.double(), (3, 8, 8))
    assert model(Tensor(np.zeros((2, 3, 8, 8)))).dtype == np.float64


def test_the_table_ends_with_the_totals():
    lines = str(summarize(models.create_model("resnet20"), (3, 32, 32))).splitlines()
    assert lines[0].split()[:2] == ["layer", "kind"]
    assert lines[-1].split() == ["total", "269,722", "40,551,040"]
    assert set(lines[-2]) == {"-"} and lines[-3].split() == ["fc", "Linear", "10", "650", "640"]
    assert lines[2].split() == ["conv1", "Conv2d", "16x32x32", "432", "442,368"]
    assert not any(line.endswith(" ") for line in lines)


def printed(capsys, *arguments):
    assert cli.main(["summary", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize(
    "name, expected",
    [
        ("resnet18", (11_689_512, 1_814_073_344, 122, [3, 224, 224])),
        ("resnet20", (269_722, 40_551_040, None, [3, 32, 32])),
    ],
)
def test_json(capsys, name, expected):
    found = json.loads(printed(capsys, name, "--json"))
    keys = found["state_dict_keys"] if expected[2] is not None else None
    assert (found["parameters"], found["macs"], keys, found["input"]) == expected
    assert found["model"] == name and sum(layer["macs"] for layer in found["layers"]) == found["macs"]
    assert sum(layer["parameters"] for layer in found["layers"]) == found["parameters"]


@pytest.mark.slow
def test_options_of_the_command(capsys):
    found = json.loads(printed(capsys, "resnet20", "--input", "1x8x6", "--num-classes", "3", "--json"))
    assert found["input"] == [1, 8, 6] and found["layers"][0]["output_shape"] == [1, 16, 8, 6]
    assert found["layers"][0]["parameters"] == 144 and found["layers"][-1]["output_shape"] == [1, 3]
    assert found["parameters"] == 269_722 - 288 - 7 * 65
    assert printed(capsys, "resnet20", "--shortcut", "B").splitlines()[-1].split()[1] == f"{269_722 + 2752:,}"
    small = ("--input", "3X32X32", "--num-classes", "10", "--stem", "cifar")
    assert printed(capsys, "resnet18", *small).splitlines()[-1].split()[1] == "11,173,962"
    first, second = (printed(capsys, "resnet50", *o, "--input", "3x32x32") for o in ((), ("--stride-in", "1x1")))
    assert first.splitlines()[-1].split()[1] == second.splitlines()[-1].split()[1]
    assert first.splitlines()[-1] != second.splitlines()[-1]
    assert json.loads(printed(capsys, "mnist_resnet20", "--json"))["input"] == [1, 28, 28]


@pytest.mark.parametrize(
    "shape", ["3x32", "3x32x32x32", "3xax32", "0x32x32", "3x-1x32", "3x32x", "3x99999x3", "", "3,8,8"]
)
def test_a_bad_input_is_refused(capsys, shape):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["summary", "resnet20", f"--input={shape}"])
    assert stopped.value.code == 2
    assert "expected CHANNELSxHEIGHTxWIDTH such as 3x224x224" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("resnt20", "did you mean 'resnet20'"),
        ("resnet20 --num-classes 0", "positive"),
        ("resnet18 --stride-in 1x1", "BasicBlock has no"),
    ],
)
def test_refused_in_one_line(capsys, arguments, message):
    assert cli.main(["summary", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("minires summary: ") and message in err and err.count("\n") == 1
