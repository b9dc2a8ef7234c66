"""debug.compare: a planted wrong layer is found by what it says alone, and both models are left as they were."""

import copy

import minires.functional as F
import numpy as np
import pytest

import minires
from minires import Tensor, debug, nn
from minires.engine.modes import mode

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 3, 16, 16)).astype("float32")


def seeded(name="resnet8", **options):
    """A model whose every value counts: batch norms too are not what they are at the start."""
    model = minires.create_model(name, num_classes=7, generator=np.random.default_rng(1), **options)
    rng = np.random.default_rng(2)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.array += rng.standard_normal(parameter.shape).astype("float32") / 5
    return model


def state(model):
    modes = [module.training for module in model.modules()]
    grads = [None if p.grad is None else p.grad.numpy().copy() for p in model.parameters()]
    forwards = ["forward" in vars(module) for module in model.modules()]
    return {n: t.numpy().copy() for n, t in model.state_dict().items()}, modes, grads, forwards


def same(a, b):
    return all(np.array_equal(a[0][name], b[0][name]) for name in a[0]) and a[1] == b[1] and a[3] == b[3]


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["resnet20", "resnet50"])
def test_two_that_are_the_same_agree(name, training, capsys):
    model = seeded(name).train(training)
    result = debug.compare(model, copy.deepcopy(model), X)
    assert result.agree and result.first_forward is None
    assert "they agree" in capsys.readouterr().out
    assert {"conv1", "layer1.0", "layer2.0.conv2", "fc", ""} <= {row.name for row in result.rows}
    assert all(row.output is not None and row.grad is not None for row in result.rows)


def test_both_are_left_as_they_were():
    model, reference = seeded(), seeded("resnet8").eval()
    model.layer1[0].eval()
    loss = model(Tensor(X)).sum()
    loss.backward()
    before, before_reference = state(model), state(reference)
    with minires.no_grad():
        debug.compare(model, reference, X, load=True)
    assert same(before, state(model)) and same(before_reference, state(reference))
    for old, new in zip(before[2], state(model)[2], strict=True):
        assert np.array_equal(old, new)
    assert mode.watchers == () and not mode.modules


def test_the_stride_in_the_wrong_convolution():
    model, reference = (seeded("resnet50", stem="cifar", width=16, stride_in=place) for place in ("1x1", "3x3"))
    result = debug.compare(model, reference, X, load=True)
    assert not result.parameters and result.first_forward == "layer2.0.conv1"
    assert "stride is (2, 2) here and (1, 1) in the reference" in result.verdict[0]
    assert "(shape (4, 32, 8, 8) here, (4, 32, 16, 16) there)" in result.verdict[0]


def test_another_eps():
    model = seeded()
    reference = copy.deepcopy(model)
    model.layer2[0].bn1.eps = 1e-3
    result = debug.compare(model, reference, X)
    assert result.first_forward == "layer2.0.bn1" and not result.parameters
    assert "eps is 0.001 here and 1e-05 in the reference" in str(result)


def test_another_momentum_shows_in_the_statistics_alone():
    model = seeded()
    reference = copy.deepcopy(model)
    model.layer3[0].bn2.momentum = 0.9
    result = debug.compare(model, reference, X)
    assert (result.first_forward, result.first_backward, result.first_statistics) == (None, None, "layer3.0.bn2")
    assert "momentum is 0.9 here and 0.1 in the reference" in str(result)


class NoReLU(nn.Module):
    def __init__(self, block):
        for name, part in block.named_children():
            setattr(self, name, part)
        self.downsample = block.downsample

    def forward(self, x):
        out = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu(F.residual_add(identity, out))


def test_a_missing_relu():
    model = seeded()
    reference = copy.deepcopy(model)
    setattr(model.layer2, "0", NoReLU(model.layer2[0]))
    result = debug.compare(model, reference, X)
    assert result.first_forward == "layer2.0.conv2"
    assert "layer2.0.relu is called 1 times here and 2 in the reference" in result.verdict
    assert "what goes into it differs already" in str(result) and "missing ReLU" in str(result)


class NoLastReLU(NoReLU):
    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        identity = x if self.downsample is None else self.downsample(x)
        return F.residual_add(identity, out)


def test_a_missing_relu_at_the_end_of_a_block():
    model = seeded()
    reference = copy.deepcopy(model)
    setattr(model.layer1, "0", NoLastReLU(model.layer1[0]))
    result = debug.compare(model, reference, X)
    assert result.first_forward == "layer1.0" and "every layer in it agrees" in str(result)


def test_swapped_weights():
    model = seeded()
    reference = copy.deepcopy(model)
    block = model.layer1[0]
    block.conv1.weight, block.conv2.weight = block.conv2.weight, block.conv1.weight
    result = debug.compare(model, reference, X)
    assert result.first_forward == "layer1.0.conv1"
    assert "other values before the run: layer1.0.conv1.weight, layer1.0.conv2.weight" in result.parameters[0]
    assert debug.compare(model, reference, X, load=True).agree


class ZerosBehind(nn.Module):
    def __init__(self, shortcut):
        self.out_channels, self.stride = shortcut.out_channels, shortcut.stride

    def forward(self, x):
        y = x[:, :, :: self.stride, :: self.stride]
        zeros = Tensor(np.zeros((x.shape[0], self.out_channels - x.shape[1], *y.shape[2:]), "float32"))
        return F.cat([y, zeros], 1)


def test_the_zeros_of_option_a_in_the_wrong_place():
    model = seeded()
    reference = copy.deepcopy(model)
    model.layer2[0].downsample = ZerosBehind(model.layer2[0].downsample)
    result = debug.compare(model, reference, X)
    assert result.first_forward == "layer2.0.downsample"


def test_a_bias_too_many():
    model = seeded()
    reference = copy.deepcopy(model)
    model.layer1[0].conv2.bias = nn.Parameter(np.full(16, 0.5, "float32"))
    result = debug.compare(model.eval(), reference, X)
    assert result.parameters == ["not in the reference: layer1.0.conv2.bias"]
    assert result.first_forward == "layer1.0.conv2" and "it has a bias here and none in the reference" in str(result)


def test_a_wrong_backward_of_ones_own():
    from minires import kernels
    from minires.engine.tensor import apply

    def relu_backward(dy, cache):
        return dy * (cache.y > 0.1)

    class WrongReLU(nn.ReLU):
        def forward(self, x):
            return apply(kernels.relu_forward, relu_backward, x)

    model = seeded()
    reference = copy.deepcopy(model)
    model.layer2[0].relu = WrongReLU()
    result = debug.compare(model, reference, X)
    assert result.first_forward is None and result.first_backward == "layer2.0.bn2"


def test_a_model_that_raises_is_compared_up_to_there():
    model = seeded()
    reference = copy.deepcopy(model)
    model.layer2[0].conv2.stride = (2, 2)
    result = debug.compare(model, reference, X)
    assert result.first_forward == "layer2.0.conv2"
    assert result.verdict[0].startswith("the model raised ValueError: residual_add: the shortcut has shape")


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="reference must be .*, got int"):
        debug.compare(seeded(), 3, X)
    with pytest.raises(TypeError, match="model must be a minires.nn.Module, got list"):
        debug.compare([], seeded(), X)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["basic_block", "bottleneck", "resnet"])
def test_against_pytorch(name, training):
    torch = pytest.importorskip("torch")
    from networks import INPUTS, minires_networks, torch_networks

    torch.manual_seed(0)
    model, reference = minires_networks()[name].train(training), torch_networks()[name]
    x = np.random.default_rng(0).standard_normal(INPUTS[name]).astype("float32")
    values = [tensor.clone() for tensor in reference.state_dict().values()]
    result = debug.compare(model, reference, x, load=True)
    assert result.agree, result
    assert reference.training and all(p.grad is None for p in reference.parameters())
    assert all(torch.equal(a, b) for a, b in zip(values, reference.state_dict().values(), strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in reference.modules())


def test_a_wrong_layer_against_pytorch():
    pytest.importorskip("torch")
    import torch_resnet as T

    model = minires.models.ResNet(
        minires.models.Bottleneck, (1, 1), (4, 8), num_classes=5, stem="cifar", shortcut="B", stride_in="1x1"
    )
    reference = T.ResNet(T.Bottleneck, (1, 1), (4, 8), num_classes=5, option="B")
    result = debug.compare(model, reference, X, load=True)
    assert result.first_forward == "layer2.0.conv1" and "stride is (2, 2) here and (1, 1)" in str(result)
    reference.layer1[0].bn2.eps, reference.layer1[0].bn3.momentum = 1e-3, 0.3
    result = debug.compare(model, reference, X, load=True)
    assert result.first_forward == "layer1.0.bn2" and result.first_statistics == "layer1.0.bn3"
