"""Networks of every kind on the device, beside the same on the host: training, folding, summaries and gradients."""

import copy

import minires.functional as F
import numpy as np
import pytest
from on_device import FLOAT32, FLOAT64, assert_same, thorough
from test_device_layers import assert_same_state, assert_same_step, both

import minires
from minires import Tensor, create_model, fuse, models, optim
from minires.gradcheck import check_function, gradcheck
from minires.models import BasicBlock, Bottleneck, PlainBlock, PreActBlock, PreActBottleneck
from minires.models.summary import summarize

pytestmark = pytest.mark.usefixtures("cuda")


def network(block, **options):
    generator = np.random.default_rng(12)
    small = {"widths": (4, 6), "num_classes": 5, "in_channels": 2, "stem": "cifar", "shortcut": "A"}
    return models.ResNet(block, (1, 2), generator=generator, **{**small, **options})


NETWORKS = {
    "BasicBlock, option A": lambda: network(BasicBlock),
    "BasicBlock, option B": lambda: network(BasicBlock, shortcut="B"),
    "BasicBlock, option C": lambda: network(BasicBlock, shortcut="C"),
    "BasicBlock, ImageNet stem": lambda: network(BasicBlock, stem="imagenet", shortcut="B", zero_init_residual=True),
    "Bottleneck": lambda: network(Bottleneck, shortcut="B"),
    "Bottleneck, stride in the 1x1": lambda: network(Bottleneck, shortcut="B", stride_in="1x1"),
    "Bottleneck, dilated": lambda: network(Bottleneck, shortcut="B", replace_stride_with_dilation=(True,)),
    "Bottleneck, ResNeXt": lambda: network(Bottleneck, widths=(8, 16), shortcut="B", groups=4, width_per_group=16),
    "PlainBlock": lambda: network(PlainBlock),
    "PreActBlock": lambda: network(PreActBlock, final_norm=True),
    "PreActBottleneck": lambda: network(PreActBottleneck, shortcut="B"),
    "ShortcutA": lambda: models.ShortcutA(5, 2),
    "ResNet without a top": lambda: network(BasicBlock, include_top=False),
}
FAST = ("BasicBlock, option A", "BasicBlock, ImageNet stem", "Bottleneck, ResNeXt", "PreActBlock", "ShortcutA")


def test_every_block_has_a_case():
    named = {name.split(",")[0].split()[0] for name in NETWORKS}
    blocks = {
        kind.__name__
        for kind in vars(models).values()
        if isinstance(kind, type) and issubclass(kind, minires.nn.Module)
    }
    assert blocks <= named


@pytest.mark.parametrize("dtype", [FLOAT32, thorough(FLOAT64)], ids=str)
@pytest.mark.parametrize("name", [name if name in FAST else thorough(name) for name in NETWORKS])
def test_network(name, dtype):
    host, device = both(NETWORKS[name], dtype)
    assert_same_step(device, host, (3, 2, 9, 10), dtype, 2e-4 if dtype == FLOAT32 else 1e-10)


def train(model, device, dtype):
    """Three steps of a CIFAR network; the losses."""
    rng = np.random.default_rng(13)
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = optim.OneCycleLR(optimizer, 0.05, 3)
    losses = []
    for _ in range(3):
        images = Tensor(rng.standard_normal((4, 3, 16, 16)).astype(dtype), device=device)
        labels = Tensor(rng.integers(0, 10, 4), device=device)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return losses


@pytest.mark.parametrize("dtype, tolerance", [(FLOAT32, 1e-4), thorough(FLOAT64, 1e-9)], ids=str)
def test_three_steps_of_resnet20(dtype, tolerance):
    host, device = both(lambda: create_model("resnet20", generator=np.random.default_rng(14)), dtype)
    assert_same(train(device, "cuda", dtype), train(host, "cpu", dtype), tolerance, "losses")
    for model in (host, device):
        model.zero_grad()
    assert_same_state(device, host, tolerance)


def test_fuse():
    """Folded on the device, it stays there and answers as before; folding there and here gives the same."""
    host, device = both(lambda: network(BasicBlock, shortcut="B"))
    x = Tensor(np.random.default_rng(15).standard_normal((2, 2, 9, 10)).astype(FLOAT32))
    with minires.no_grad():
        host(x), device(x.to("cuda"))  # running statistics that are worth folding
    fused, device_fused = fuse(host, x), fuse(device, x.to("cuda"))
    assert {p.device for p in device_fused.parameters()} == {"cuda"}
    assert not [m for m in device_fused.modules() if isinstance(m, minires.nn.BatchNorm2d)]
    assert_same_state(device_fused, fused, 1e-5)
    with minires.no_grad():
        assert_same(device_fused(x.to("cuda")), host.eval()(x), 1e-4)
    with pytest.raises(ValueError, match="cuda.*cpu|cpu.*cuda"):
        fuse(device, x)


@pytest.mark.thorough
def test_fuse_without_an_example():
    assert {p.device for p in fuse(network(BasicBlock).to("cuda")).parameters()} == {"cuda"}


def test_summary():
    host, device = both(lambda: network(BasicBlock))
    assert summarize(device, (2, 8, 8)) == summarize(host, (2, 8, 8))
    assert str(summarize(device, (2, 8, 8))) == str(summarize(host, (2, 8, 8)))


def leaf(*shape):
    return Tensor(np.random.default_rng(16).standard_normal(shape), requires_grad=True, device="cuda")


@pytest.mark.slow
@pytest.mark.thorough
def test_gradcheck():
    assert gradcheck(lambda x, w: F.conv2d(x, w, padding=1), (leaf(1, 2, 3, 3), leaf(2, 2, 2, 2)))
    assert check_function(lambda x: F.softmax(x, 1), leaf(2, 3)).ok
    assert check_function(network(BasicBlock).to(FLOAT64).to("cuda"), leaf(2, 2, 4, 4)).ok


@pytest.mark.thorough
def test_gradcheck_finds_a_wrong_factor():
    def doubled(dy, cache):
        return 2 * minires.kernels.exp_backward(dy, cache)

    def wrong(x):
        return minires.apply(minires.kernels.exp_forward, doubled, x)

    assert not gradcheck(wrong, leaf(3), raise_exception=False)
    assert not check_function(wrong, leaf(3)).ok


def test_a_copy_of_a_model_on_the_device_is_its_own():
    model = network(BasicBlock).to("cuda")
    other = copy.deepcopy(model)
    with minires.no_grad():
        model.fc.bias += 1
    assert other.fc.bias.device == "cuda" and other.fc.bias.tolist() != model.fc.bias.tolist()
