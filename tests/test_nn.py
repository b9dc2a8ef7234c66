"""Modules: registration, walking, modes, saving and loading, moving, printing; layers and initial values."""

import numpy as np
import pytest
from closeness import assert_close

import minires
from minires import Tensor, nn
from minires.nn import init


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(3)
        self.scale = nn.Parameter(np.ones(3))
        self.nothing = None
        self.head = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))

    def forward(self, x):
        return self.head(self.bn(self.conv(x)))


def test_names_come_in_the_order_of_registration():
    block = Block()
    assert [name for name, _ in block.named_parameters()] == [
        "scale",
        "conv.weight",
        "bn.weight",
        "bn.bias",
        "head.2.weight",
        "head.2.bias",
    ]
    assert list(block.state_dict()) == [
        "scale",
        "conv.weight",
        "bn.weight",
        "bn.bias",
        "bn.running_mean",
        "bn.running_var",
        "bn.num_batches_tracked",
        "head.2.weight",
        "head.2.bias",
    ]
    assert [name for name, _ in block.named_modules()] == ["", "conv", "bn", "head", "head.0", "head.1", "head.2"]
    assert [name for name, _ in block.named_buffers()] == [
        "bn.running_mean",
        "bn.running_var",
        "bn.num_batches_tracked",
    ]
    assert block.get_submodule("head.2") is block.head[2]


def test_the_names_are_pytorchs():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    mine = nn.Sequential({"a": nn.Conv2d(2, 4, 3), "b": nn.BatchNorm2d(4), "c": nn.Sequential(nn.Linear(3, 2))})
    theirs = torch.nn.Sequential()
    theirs.add_module("a", torch.nn.Conv2d(2, 4, 3))
    theirs.add_module("b", torch.nn.BatchNorm2d(4))
    theirs.add_module("c", torch.nn.Sequential(torch.nn.Linear(3, 2)))
    assert list(mine.state_dict()) == list(theirs.state_dict())
    mine.load_state_dict({key: value.numpy() for key, value in theirs.state_dict().items()})
    theirs.load_state_dict({key: torch.from_numpy(value.numpy()) for key, value in mine.state_dict().items()})


def test_a_shared_module_is_one_parameter_under_two_keys():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert len(list(model.parameters())) == 2
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_parameter_is_not_replaced_by_a_result():
    linear = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="weight is a Parameter"):
        linear.weight = linear.weight * 0.5
    linear.weight = nn.Parameter(np.zeros((2, 2)))
    linear.bias = None
    assert [name for name, _ in linear.named_parameters()] == ["weight"]


def test_train_and_eval_reach_all_modules():
    block = Block()
    block.eval()
    assert not any(module.training for module in block.modules())
    assert block.train() is block and all(module.training for module in block.modules())


def test_load_state_dict_names_every_problem_and_changes_nothing():
    block = Block()
    before = {key: value.numpy().copy() for key, value in block.state_dict().items()}
    state = {key: np.full_like(value, 7) for key, value in before.items()}
    del state["scale"]
    state["conv.weight"] = np.zeros((1, 2, 3))
    state["extra"] = np.zeros(1)
    with pytest.raises(RuntimeError) as caught:
        block.load_state_dict(state)
    text = str(caught.value)
    for part in ("missing keys: scale", "unexpected keys: extra", "conv.weight: expected shape (3, 2, 3, 3)"):
        assert part in text
    for key, value in block.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[key])
    del state["conv.weight"]
    result = block.load_state_dict(state, strict=False)
    assert result.missing_keys == ["scale", "conv.weight"] and result.unexpected_keys == ["extra"]
    assert (block.bn.weight.detach().numpy() == 7).all()


def test_load_state_dict_keeps_dtype_and_identity():
    linear = nn.Linear(2, 3)
    weight = linear.weight
    linear.load_state_dict({"weight": np.ones((3, 2)), "bias": np.zeros(3)})
    assert linear.weight is weight and weight.dtype == minires.float32 and (weight.detach().numpy() == 1).all()


def test_to_changes_floats_and_keeps_identity():
    block = Block()
    weight = block.conv.weight
    block.double()
    assert block.conv.weight is weight and weight.dtype == minires.float64
    assert block.bn.num_batches_tracked.dtype == minires.int64
    assert block(Tensor(np.zeros((2, 2, 2, 2)))).dtype == minires.float64
    with pytest.raises(TypeError, match="floating-point dtype"):
        block.to(minires.int64)


def test_zero_grad_and_freezing():
    block = Block().double()
    block(Tensor(np.random.default_rng(0).standard_normal((2, 2, 2, 2)))).sum().backward()
    assert all(p.grad is not None for p in block.head.parameters())
    block.zero_grad(set_to_none=False)
    assert all((p.grad.numpy() == 0).all() for p in block.head.parameters())
    block.zero_grad()
    assert all(p.grad is None for p in block.parameters())
    block.requires_grad_(False)
    assert not block(Tensor(np.zeros((2, 2, 2, 2)))).requires_grad


def test_repr_is_a_tree():
    assert repr(nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Sequential(nn.ReLU(), nn.Dropout(0.2)))) == (
        "Sequential(\n"
        "  (0): Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1), bias=False)\n"
        "  (1): Sequential(\n"
        "    (0): ReLU()\n"
        "    (1): Dropout(p=0.2)\n"
        "  )\n"
        ")"
    )


def test_sequential():
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    model.append(nn.Sigmoid())
    assert len(model) == 3 and isinstance(model[-1], nn.Sigmoid) and [type(m) for m in model[1:]][0] is nn.Tanh
    x = Tensor(np.ones((1, 2), np.float32))
    expected = 1 / (1 + np.exp(-np.tanh(model[0](x).detach().numpy())))
    assert_close(model(x).detach().numpy(), expected, 1e-6)
    with pytest.raises(TypeError, match="part 1"):
        nn.Sequential(nn.ReLU(), 3)
    with pytest.raises(KeyError, match="name"):
        nn.Sequential({"forward": nn.ReLU()})


@pytest.mark.parametrize(
    "make",
    [
        lambda n: n.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2), groups=2),
        lambda n: n.BatchNorm2d(4, eps=1e-3, momentum=0.2),
        lambda n: n.BatchNorm2d(4, momentum=None),
        lambda n: n.BatchNorm2d(4, affine=False),
        lambda n: n.BatchNorm2d(4, track_running_stats=False),
        lambda n: n.MaxPool2d(3, 2, 1, ceil_mode=True),
        lambda n: n.AvgPool2d(2, 3, 1, count_include_pad=False),
        lambda n: n.AdaptiveAvgPool2d((3, None)),
        lambda n: n.Sequential(n.Identity(), n.ReLU(), n.Flatten(), n.Linear(4 * 7 * 6, 3)),
        lambda n: n.Sequential(n.Sigmoid(), n.Identity(), n.Tanh(), n.Flatten(2)),
    ],
)
def test_layers_equal_pytorchs(make):
    """Two training steps and one evaluation, with PyTorch's initial values."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    mine, theirs = make(nn).double(), make(torch.nn).double()
    mine.load_state_dict({key: value.numpy() for key, value in theirs.state_dict().items()})
    rng = np.random.default_rng(0)
    for step in range(3):
        if step == 2:
            mine.eval()
            theirs.eval()
        x = rng.standard_normal((3, 4, 7, 6))
        a, b = Tensor(x, requires_grad=True), torch.from_numpy(x.copy()).requires_grad_()
        y, expected = mine(a), theirs(b)
        dy = rng.standard_normal(y.shape)
        y.backward(dy)
        expected.backward(torch.from_numpy(dy))
        assert_close(y.detach().numpy(), expected.detach().numpy(), 1e-11)
        assert_close(a.grad.numpy(), b.grad.numpy(), 1e-10)
    for (name, p), q in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert_close(p.grad.numpy(), q.grad.numpy(), 1e-10, name)
    for key, value in theirs.state_dict().items():
        assert_close(mine.state_dict()[key].numpy(), value.numpy(), 1e-12, key)


def test_cross_entropy_loss_layer():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    logits, labels = np.random.default_rng(0).standard_normal((5, 3)), np.array([0, 2, 1, 1, 0])
    options = {"label_smoothing": 0.2, "reduction": "sum", "ignore_index": 1}
    loss = nn.CrossEntropyLoss(**options)(Tensor(logits), Tensor(labels))
    expected = torch.nn.CrossEntropyLoss(**options)(torch.from_numpy(logits), torch.from_numpy(labels))
    assert_close(loss.numpy(), expected.numpy(), 1e-12)


def test_dropout_layer_drops_in_training_only_and_by_its_generator():
    x = Tensor(np.ones((50, 50)))
    layer = nn.Dropout(0.4, generator=np.random.default_rng(3))
    first, second = layer(x).numpy(), layer(x).numpy()
    assert not np.array_equal(first, second)
    assert np.array_equal(nn.Dropout(0.4, generator=np.random.default_rng(3))(x).numpy(), first)
    layer.eval()
    assert layer(x) is x


@pytest.mark.parametrize("shape", [(40, 30, 3, 5), (200, 300)])
def test_initial_values_have_the_spread_they_promise(shape):
    fan_in, fan_out = np.prod(shape[1:]), shape[0] * np.prod(shape[2:])
    generator = np.random.default_rng(0)
    tensor = minires.zeros(shape)
    cases = [
        (lambda: init.kaiming_normal_(tensor, nonlinearity="relu", generator=generator), np.sqrt(2 / fan_in), False),
        (
            lambda: init.kaiming_normal_(tensor, mode="fan_out", nonlinearity="relu", generator=generator),
            np.sqrt(2 / fan_out),
            False,
        ),
        (lambda: init.kaiming_uniform_(tensor, a=np.sqrt(5), generator=generator), np.sqrt(1 / 3 / fan_in), True),
        (lambda: init.xavier_normal_(tensor, generator=generator), np.sqrt(2 / (fan_in + fan_out)), False),
        (lambda: init.xavier_uniform_(tensor, 2.0, generator), 2 * np.sqrt(2 / (fan_in + fan_out)), True),
        (lambda: init.normal_(tensor, std=0.3, generator=generator), 0.3, False),
    ]
    for fill, std, bounded in cases:
        values = fill().numpy()
        assert abs(values.std() / std - 1) < 0.03 and abs(values.mean()) < 0.03 * std
        largest = np.abs(values).max() / std
        assert largest <= 1.7321 if bounded else largest > 3
    assert (init.ones_(tensor).numpy() == 1).all() and (init.zeros_(tensor).numpy() == 0).all()


def test_gains_equal_pytorchs():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for name in ("linear", "conv2d", "sigmoid", "tanh", "relu", "leaky_relu"):
        assert init.calculate_gain(name) == pytest.approx(torch.nn.init.calculate_gain(name))


def test_seeds():
    def weights():
        return nn.Linear(3, 3).weight.detach().numpy().copy()

    minires.manual_seed(1)
    first, second = weights(), weights()
    minires.manual_seed(1)
    assert np.array_equal(weights(), first) and not np.array_equal(first, second)
    given = [nn.Linear(3, 3, generator=np.random.default_rng(5)).weight.tolist() for _ in range(2)]
    assert given[0] == given[1]
