"""minires.fuse: the same outputs with no batch norm left, on every family, and a clear word where that cannot be."""

import minires.functional as F
import numpy as np
import pytest
from families import FAMILIES, minires_network

import minires
from minires import Tensor, nn


def used(model, seed=0):
    """The model with batch norms as after training: with fresh ones, a fusion that forgot half of them would pass."""
    rng = np.random.default_rng(seed)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.weight, 0.5, 1.5),
                (layer.bias, -0.5, 0.5),
                (layer.running_mean, -0.5, 0.5),
                (layer.running_var, 0.5, 2.0),
            ):
                if tensor is not None:
                    tensor.array[...] = rng.uniform(low, high, tensor.shape)
    return model


def outputs(model, x):
    with minires.no_grad():
        return model(Tensor(x)).numpy()


def norms(model):
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize(
    "name", [name if name.endswith("20") else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_every_family_gives_the_same_outputs(name, dtype, tolerance):
    model = used(minires_network(name, generator=np.random.default_rng(5))).to(dtype=dtype).eval()
    x = np.random.default_rng(1).standard_normal((2, *FAMILIES[name].image[1:])).astype(dtype)
    fused = minires.fuse(model)
    expected, got = outputs(model, x), outputs(fused, x)
    assert got.dtype == dtype
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()
    assert len(norms(model)) > len(norms(fused))  # the model keeps its own
    if "preact" not in name:
        assert not norms(fused)


def test_without_its_fusion_the_test_would_notice():
    model = used(minires_network("resnet20", generator=np.random.default_rng(5))).eval()
    x = np.random.default_rng(1).standard_normal((2, 3, 16, 12)).astype(np.float32)
    fused = minires.fuse(model)
    fused.layer2[0].conv1.bias.array += 1e-3
    expected = outputs(model, x)
    assert np.abs(outputs(fused, x) - expected).max() > 1e-5 * np.abs(expected).max()


def test_the_model_and_the_images_stay_as_they_are():
    model = used(minires_network("resnet20", generator=np.random.default_rng(5))).train()
    before = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    x = np.random.default_rng(1).standard_normal((2, 3, 16, 12)).astype(np.float32)
    kept = x.copy()
    fused = minires.fuse(model)
    outputs(fused, x)
    assert np.array_equal(x, kept)
    assert model.training and not fused.training
    after = model.state_dict()
    assert list(before) == list(after)
    for name, tensor in after.items():
        assert np.array_equal(before[name], tensor.numpy()), name


def test_a_bias_and_a_norm_without_weights():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.BatchNorm2d(5, affine=False, eps=1e-2), nn.ReLU())
    model.double().eval()
    used(model)
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 9))
    np.testing.assert_allclose(outputs(minires.fuse(model), x), outputs(model, x), rtol=0, atol=1e-13)


def test_what_cannot_be_folded_stays():
    live = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, track_running_stats=False))
    assert norms(minires.fuse(live))  # it normalises by the batch's own statistics
    first = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3))
    assert norms(minires.fuse(first))
    between = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.BatchNorm2d(5))
    assert norms(minires.fuse(between))


class Twice(nn.Module):
    """One convolution and one batch norm, each run twice."""

    def __init__(self):
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn(self.conv(self.bn(self.conv(x))))


def test_a_layer_that_runs_twice_stays():
    model = used(Twice()).eval()
    fused = minires.fuse(model)
    assert norms(fused)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    assert np.array_equal(outputs(fused, x), outputs(model, x))


class Forked(nn.Module):
    """The convolution's output is used both with and without its batch norm."""

    def __init__(self, detach):
        self.conv, self.bn, self.detach = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), detach

    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + (y.detach() if self.detach else y)


def test_a_convolution_whose_output_is_shared_stays():
    model = used(Forked(detach=False)).eval()
    assert norms(minires.fuse(model))


def test_where_the_graph_does_not_show_it_the_outputs_do():
    with pytest.raises(RuntimeError, match="with and without its batch norm"):
        minires.fuse(used(Forked(detach=True)))


class Aliased(nn.Module):
    """relu(x) + x: a ReLU in place would change the x that is added."""

    def __init__(self):
        self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, x):
        y = self.conv(x)
        return F.residual_add(y, self.relu(y))


def test_relu_goes_in_place_only_where_nothing_else_sees_it():
    assert minires.fuse(minires_network("resnet20", generator=np.random.default_rng(5))).relu.inplace
    model = Aliased()
    fused = minires.fuse(model)
    assert not fused.relu.inplace
    alone = minires.fuse(nn.Sequential(nn.ReLU()))  # it would write over the caller's images
    assert not alone[0].inplace


@pytest.mark.parametrize("name", ["resnet20", "preact_resnet20", "resnet50"])
def test_the_additions_of_a_fused_network_write_over_the_branch(name):
    model = minires_network(name, generator=np.random.default_rng(5)).eval()
    fused = minires.fuse(model)
    rng = np.random.default_rng(0)
    for block, own in ((fused.layer1[0], True), (model.layer1[0], False)):
        x, branch = (Tensor(rng.standard_normal((2, 3, 4, 4))) for _ in range(2))
        with minires.no_grad():
            y = block.residual_add(x, branch)
        assert np.shares_memory(y.numpy(), branch.numpy()) == own


class Odd(nn.Module):
    """A ReLU on something that is read again: a parameter, a view, the branch of an addition."""

    def __init__(self, way):
        self.way, self.conv, self.relu = way, nn.Conv2d(3, 3, 1, bias=False), nn.ReLU()
        self.p = nn.Parameter(np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 3, 2, 2))

    def forward(self, x):
        h = self.conv(x)
        if self.way == "parameter":
            return F.adaptive_avg_pool2d(h, 2) + self.relu(self.p) + self.p
        if self.way == "view":
            return self.relu(h.transpose(2, 3)) + h
        return F.residual_add(self.relu(h), h, self.relu.inplace)


@pytest.mark.parametrize("way", ["parameter", "view", "branch"])
def test_no_example_misleads_it(way):
    model = Odd(way).eval()
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    for example in (None, Tensor(np.zeros_like(x)), Tensor(np.abs(x))):
        fused = minires.fuse(model, example)
        for _ in range(2):  # a parameter that was written over would show the second time
            np.testing.assert_allclose(outputs(fused, x.copy()), outputs(model, x), rtol=0, atol=1e-6)


class HalfNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * 0.5


def test_layers_with_a_forward_of_their_own_stay():
    model = used(nn.Sequential(nn.Conv2d(3, 4, 3), HalfNorm(4))).eval()
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)
    fused = minires.fuse(model)
    assert norms(fused) and np.array_equal(outputs(fused, x), outputs(model, x))


def test_frozen_weights_stay_frozen_and_infinite_outputs_pass():
    model = used(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())).requires_grad_(False)
    assert not any(p.requires_grad for p in minires.fuse(model).parameters())

    class Log(nn.Module):
        def forward(self, x):
            return x.log()

    with np.errstate(all="ignore"):
        assert not norms(minires.fuse(nn.Sequential(model, Log())))


def test_in_place_only_where_nothing_is_recorded():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 4))
    recorded = Tensor(x.copy(), requires_grad=True)
    F.relu(recorded, inplace=True)
    F.residual_add(recorded, recorded, inplace=True)
    assert np.array_equal(recorded.detach().numpy(), x)
    over = Tensor(x.copy())
    with minires.no_grad():
        y = nn.ReLU(inplace=True)(over)
    assert np.array_equal(over.numpy(), np.maximum(x, 0)) and np.shares_memory(over.numpy(), y.numpy())
    branch = Tensor(x.copy())
    with minires.no_grad():
        F.residual_add(over, branch, inplace=True)
    assert np.array_equal(branch.numpy(), x + np.maximum(x, 0))


def test_an_example_shows_the_input_where_the_guess_does_not_fit():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, 2))
    used(model).eval()
    with pytest.raises(ValueError, match=r"call fuse\(model, example\)"):
        minires.fuse(model)
    x = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)
    fused = minires.fuse(model, Tensor(x))
    assert not norms(fused)
    np.testing.assert_allclose(outputs(fused, x), outputs(model, x), rtol=0, atol=1e-6)


def test_no_module_is_refused():
    with pytest.raises(TypeError, match="fuse: model must be a Module"):
        minires.fuse("resnet18")


def test_a_fused_model_is_saved_and_loaded(tmp_path):
    fused = minires.fuse(used(minires_network("resnet20", generator=np.random.default_rng(5))))
    minires.save(tmp_path / "fused.safetensors", fused.state_dict())
    again = minires.fuse(minires_network("resnet20", generator=np.random.default_rng(5)))
    again.load_state_dict(minires.load(tmp_path / "fused.safetensors"))
    x = np.random.default_rng(1).standard_normal((2, 3, 16, 12)).astype(np.float32)
    assert np.array_equal(outputs(fused, x), outputs(again, x))
