"""The networks: parameter counts, keys, shapes, names."""

import numpy as np
import pytest
from closeness import assert_close

import minires
from minires import Tensor, models

#: name: parameters and state_dict keys (counted with torch and torchvision)
COUNTS = {
    "resnet18": (11_689_512, 122),
    "resnet34": (21_797_672, 218),
    "resnet50": (25_557_032, 320),
    "resnet101": (44_549_160, 626),
    "resnet152": (60_192_808, 932),
    "resnet20": (269_722, None),
    "resnet32": (464_154, None),
    "resnet44": (658_586, None),
    "resnet56": (853_018, None),
    "resnet110": (1_727_962, None),
    "resnet1202": (19_421_274, None),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    model = models.create_model(name)
    parameters, keys = COUNTS[name]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert keys is None or len(model.state_dict()) == keys


def test_option_b_adds_2752_parameters_on_cifar():
    counts = {option: sum(p.numel() for p in models.cifar_resnet(20, shortcut=option).parameters()) for option in "ABC"}
    assert counts["B"] - counts["A"] == 2752 and counts["C"] > counts["B"]


def test_keys_are_torchvisions():
    keys = list(models.create_model("resnet50").state_dict())
    assert keys[0] == "conv1.weight" and keys[-1] == "fc.bias"
    for key in ("layer1.0.conv1.weight", "layer2.0.downsample.0.weight", "layer4.2.bn3.num_batches_tracked"):
        assert key in keys


@pytest.mark.parametrize("name, shape", [("resnet18", (2, 3, 65, 48)), ("resnet50", (2, 3, 33, 40))])
def test_imagenet_networks_run(name, shape):
    model = models.create_model(name, num_classes=7)
    y = model(Tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32)))
    assert y.shape == (2, 7)
    minires.functional.cross_entropy(y, Tensor([1, 6])).backward()
    assert all(p.grad is not None and np.isfinite(p.grad.numpy()).all() for p in model.parameters())


def test_zero_init_makes_every_block_the_identity():
    model = models.cifar_resnet(14, zero_init_residual=True)
    block = model.layer1[1]
    x = Tensor(np.random.default_rng(0).uniform(0, 1, (2, 16, 5, 5)).astype(np.float32))
    assert_close(block(x).detach().numpy(), x.numpy(), 1e-6)


def test_initial_convolutions_are_kaiming_normal_fan_out():
    model = models.create_model("resnet18")
    weight = model.layer3[1].conv1.weight.detach().numpy()
    assert abs(weight.std() / np.sqrt(2 / (256 * 9)) - 1) < 0.02


def test_the_same_generator_gives_the_same_network():
    first, second, other = (models.create_model("resnet8", generator=np.random.default_rng(s)) for s in (1, 1, 2))
    state = {key: value.tolist() for key, value in first.state_dict().items()}
    assert state == {key: value.tolist() for key, value in second.state_dict().items()}
    assert state != {key: value.tolist() for key, value in other.state_dict().items()}


def test_the_name_table():
    assert "resnet20" in models.list_models() and "resnet152" in models.list_models()
    assert sum(p.numel() for p in models.resnet8(num_classes=3).parameters()) > 0
    with pytest.raises(AttributeError, match="list_models"):
        models.resnet9  # noqa: B018


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: models.create_model("resnet1204"), "did you mean 'resnet1202'"),
        (lambda: models.create_model("resnt50"), "did you mean 'resnet50'"),
        (lambda: models.cifar_resnet(21), "6n \\+ 2"),
        (lambda: models.create_model("resnet20", shortcut="D"), '"A", "B" or "C"'),
        (lambda: models.create_model("resnet20", stem="mnist"), "stem"),
        (lambda: models.ResNet(models.BasicBlock, (1, 1), (4,)), "number of blocks"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("option", ["A", "B", "C"])
@pytest.mark.parametrize("block", ["BasicBlock", "Bottleneck"])
def test_training_step_equals_pytorchs(block, option):
    """Logits, gradients and statistics of a small network beside the same one in torch.nn; then its evaluation."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import torch_resnet

    widths, classes = (4, 6, 10), 3
    theirs = torch_resnet.ResNet(getattr(torch_resnet, block), (1, 2, 1), widths, classes, 2, "cifar", option).double()
    mine = models.ResNet(getattr(models, block), (1, 2, 1), widths, classes, 2, stem="cifar", shortcut=option).double()
    mine.load_state_dict({key: value.numpy() for key, value in theirs.state_dict().items()})
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((4, 2, 9, 8)), np.array([0, 2, 1, 1])
    a, b = Tensor(x, requires_grad=True), torch.from_numpy(x.copy()).requires_grad_()
    loss = minires.functional.cross_entropy(mine(a), Tensor(labels))
    expected = torch.nn.functional.cross_entropy(theirs(b), torch.from_numpy(labels))
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert_close(a.grad.numpy(), b.grad.numpy(), 1e-10)
    for (name, p), q in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert_close(p.grad.numpy(), q.grad.numpy(), 1e-9, name)
    for key, value in theirs.state_dict().items():
        assert_close(mine.state_dict()[key].numpy(), value.numpy(), 1e-11, key)
    mine.eval()
    theirs.eval()
    assert_close(mine(a).detach().numpy(), theirs(b).detach().numpy(), 1e-10)
