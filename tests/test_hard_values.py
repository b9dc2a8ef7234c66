"""What is easily got wrong: infinities behind masks, long sums, NumPy scalars, strange axes, half-done changes."""

import copy
import pickle

import minires.functional as F
import numpy as np
import pytest
from closeness import assert_close

import minires
from minires import Tensor, nn, no_grad, optim, set_grad_enabled


def test_masked_logits_give_a_finite_loss():
    logits = Tensor([[1.0, 2.0, -np.inf], [0.0, 1.0, 2.0]], requires_grad=True)
    loss = F.cross_entropy(logits, Tensor([0, 1]))
    loss.backward()
    expected = (np.log(1 + np.e) + np.log(1 + np.e + np.exp(-1))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert logits.grad.numpy()[0, 2] == 0 and np.isfinite(logits.grad.numpy()).all()


def test_a_batch_that_is_all_ignored_has_no_loss_and_no_gradient():
    logits = Tensor(np.ones((2, 3)), requires_grad=True)
    loss = F.cross_entropy(logits, Tensor([-100, -100]))
    loss.backward()
    assert np.isnan(loss.item()) and (logits.grad.numpy() == 0).all()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clamp(min=0),
        lambda x: F.where(x > 0, x, x.detach() * 0),
        lambda x: F.maximum(x, Tensor(0.0)),
        lambda x: -F.minimum(-x, Tensor(0.0)),
    ],
)
def test_an_infinite_gradient_is_not_multiplied_by_a_mask(function):
    """sqrt has an infinite slope at 0: 0 times that would be NaN where no gradient flows at all."""
    x = Tensor([-1.0, 4.0], requires_grad=True)
    function(x).sqrt().sum().backward()
    assert x.grad.tolist() == [0.0, 0.25]


def test_long_float32_sums_keep_their_digits():
    x = Tensor(np.full((1_000_000, 2), 0.1, np.float32), requires_grad=True)
    assert_close(x.mean(0).detach().numpy(), np.full(2, np.float32(0.1)), 1e-6)
    assert_close(x.sum(0).detach().numpy(), np.full(2, 1e6 * float(np.float32(0.1))), 1e-6)
    row = Tensor(np.zeros(2, np.float32), requires_grad=True)
    (x.detach() + row).backward(np.full((1_000_000, 2), 0.1, np.float32))
    assert_close(row.grad.numpy(), np.full(2, 1e6 * float(np.float32(0.1))), 1e-6)


@pytest.mark.parametrize("kind", [np.uint8, np.uint64, np.int64, np.int8])
def test_numpy_integers_are_options(kind):
    rng = np.random.default_rng(0)
    x, w = Tensor(rng.standard_normal((1, 2, 6, 5))), Tensor(rng.standard_normal((4, 1, 3, 3)))
    expected = F.conv2d(x, w, stride=2, padding=1, dilation=1, groups=2).numpy()
    found = F.conv2d(x, w, stride=kind(2), padding=(kind(1), kind(1)), dilation=kind(1), groups=kind(2)).numpy()
    assert np.array_equal(found, expected)


def test_numpy_scalars_do_not_change_the_dtype():
    x = Tensor([1.0, 2.0], requires_grad=True)
    logits, labels = Tensor([[1.0, 2.0]]), Tensor([1])
    for y in (
        x ** np.float64(2),
        x.clamp(min=np.float64(0.5)),
        F.dropout(x, np.float64(0.5)),
        F.cross_entropy(logits, labels, label_smoothing=np.float64(0.1)),
        Tensor([1, 2]) ** 2.0,
        Tensor([1, 2]).clamp(0.5),
        F.cat([Tensor([1]), Tensor([1.5])]),
    ):
        assert y.dtype == minires.float32
    assert (Tensor([True]) ** 2).dtype == minires.int64
    assert Tensor(np.ones(3, np.uint8)).sum().dtype == minires.int64
    assert Tensor([np.ones(2)]).dtype == minires.float64 and Tensor([np.float32(1)]).dtype == minires.float32


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.unsqueeze(4),
        lambda x: x.squeeze(3),
        lambda x: x.flatten(3),
        lambda x: x.flatten(-4),
        lambda x: x.transpose(0, 3),
        lambda x: x.max(3),
        lambda x: x.argmin(-4),
        lambda x: F.softmax(x, 3),
        lambda x: x.size(5),
    ],
)
def test_an_axis_that_is_not_there(call):
    with pytest.raises(IndexError, match="dim must lie between"):
        call(Tensor(np.zeros((2, 1, 4))))


def test_odd_shapes():
    assert Tensor(np.zeros((0, 3, 4))).flatten(1).shape == (0, 12)
    assert Tensor(1.0).flatten().shape == (1,)
    assert Tensor(np.zeros((1, 2, 1))).squeeze((0, 2)).shape == (2,)
    assert Tensor(np.ones((2, 3))).sum(()).item() == 6
    with pytest.raises(ValueError, match="lies after"):
        Tensor(np.zeros((1, 1, 4))).flatten(2, 0)
    with pytest.raises(ValueError, match="add: shapes .* do not broadcast"):
        Tensor(np.zeros((2, 3))) + Tensor(np.zeros(2))


def test_an_array_where_a_tensor_is_expected():
    array = np.ones((1, 1, 4, 4), np.float32)
    for call in (
        lambda: F.relu(array),
        lambda: nn.Linear(4, 2)(array),
        lambda: nn.Conv2d(1, 2, 3)(array),
        lambda: nn.BatchNorm2d(1)(array),
        lambda: F.sigmoid(array),
        lambda: F.max_pool2d(array, 2),
    ):
        with pytest.raises(TypeError, match=r"expected a Tensor, got numpy.ndarray: wrap it in minires.Tensor"):
            call()


def test_float16_is_refused_where_its_sums_would_overflow():
    half = Tensor(np.ones((1, 1, 4, 4), np.float16))
    for call in (lambda: F.avg_pool2d(half, 2), lambda: F.batch_norm(half, None, None, training=True)):
        with pytest.raises(TypeError, match="float32 or float64, got float16"):
            call()


def test_a_failed_backward_leaves_no_gradient():
    def broken(dy, cache):
        raise ArithmeticError("broken")

    a, b = Tensor([1.0], requires_grad=True), Tensor([2.0], requires_grad=True)
    y = minires.apply(minires.kernels.exp_forward, broken, a) * b
    with pytest.raises(ArithmeticError):
        y.backward()
    assert a.grad is None and b.grad is None


@pytest.mark.parametrize("wrong", [lambda dy: dy.sum(), lambda dy: [dy], lambda dy: (dy, dy)])
def test_a_gradient_of_another_shape_is_found(wrong):
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = minires.apply(minires.kernels.exp_forward, lambda dy, cache: wrong(dy), x)
    with pytest.raises(RuntimeError, match="gave|returned a list"):
        y.backward([1.0, 1.0])


def test_switching_recording_as_a_statement_and_as_a_decorator():
    x = Tensor([1.0], requires_grad=True)
    set_grad_enabled(False)
    try:
        assert not (x * 2).requires_grad
    finally:
        set_grad_enabled(True)
    with set_grad_enabled(False):
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad

    @set_grad_enabled(False)
    def silent():
        return x * 2

    assert (x * 2).requires_grad and not silent().requires_grad and (x * 2).requires_grad
    with pytest.raises(TypeError, match="brackets"):
        no_grad(silent)
    with pytest.raises(TypeError, match="generator"):

        @no_grad()
        def rows():
            yield x * 2


def test_copies():
    w = Tensor([1.0, 2.0], requires_grad=True)
    (w * w).sum().backward()
    for other in (copy.deepcopy(w), pickle.loads(pickle.dumps(w))):
        assert other.requires_grad and other.tolist() == [1, 2] and other.grad.tolist() == [2, 4]
        other.array[0] = 9
    assert w.tolist() == [1, 2]
    for call in (copy.deepcopy, pickle.dumps):
        with pytest.raises(RuntimeError, match="detach"):
            call(w * 2)
    model = copy.deepcopy(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(2)))
    assert isinstance(model[0].weight, nn.Parameter) and len(model.state_dict()) == 7


def test_a_module_keeps_what_it_is_made_of():
    linear, bn = nn.Linear(2, 2), nn.BatchNorm2d(2)
    for assign in (
        lambda: setattr(linear, "weight", np.ones((2, 2))),
        lambda: setattr(bn, "running_mean", np.ones(2)),
        lambda: setattr(nn.Sequential(linear), "0", 3),
        lambda: linear.register_parameter("w", Tensor([1.0])),
    ):
        with pytest.raises(TypeError):
            assign()
    for name in ("a.b", "forward", ""):
        with pytest.raises(KeyError):
            linear.register_buffer(name, Tensor([1.0]))
    with pytest.raises(KeyError):
        linear.register_buffer("weight", Tensor([1.0]))
    assert [name for name, _ in linear.named_parameters()] == ["weight", "bias"] and linear.buffer_names == ()
    del bn.running_mean
    assert "running_mean" not in bn.state_dict()


def test_a_frozen_batch_norm_stays_frozen():
    class Frozen(nn.BatchNorm2d):
        def train(self, mode=True):
            return super().train(False)

    model = nn.Sequential(Frozen(2), nn.ReLU()).train()
    assert model.training and model[1].training and not model[0].training


def test_a_module_that_contains_itself_is_found():
    model = nn.Sequential(nn.Linear(1, 1))
    model[0].parent = model
    with pytest.raises((RuntimeError, RecursionError)):
        model.state_dict()


def test_batch_norm_that_refuses_leaves_both_statistics():
    mean = Tensor(np.zeros(3))
    with pytest.raises(ValueError, match="running_var must have shape"):
        F.batch_norm(Tensor(np.ones((2, 3, 4, 4))), mean, Tensor(np.ones(2)), training=True)
    assert mean.tolist() == [0, 0, 0]


def test_optimisers_refuse_what_would_go_wrong_in_silence():
    w = Tensor([1.0, 2.0], requires_grad=True)
    for groups in ([{"params": [w]}, {"params": [w]}], [{"params": [w], "momentun": 0.9}], [{"lr": 0.1}]):
        with pytest.raises(ValueError):
            optim.SGD(groups, lr=0.1)
    optimizer = optim.SGD([w], lr=0.1)
    w.grad = Tensor([5.0])
    with pytest.raises(ValueError, match="gradient of shape"):
        optimizer.step()
    schedule = optim.OneCycleLR(optimizer, 0.1, total_steps=2)
    schedule.step()
    schedule.step()
    with pytest.raises(ValueError, match="total_steps=2"):
        schedule.step()


def test_formatting():
    assert f"{Tensor(1.23456):.2f}" == "1.23" and f"{Tensor([1, 2])}" == "Tensor([1, 2])"
    assert "[12340, 12341, 12342, ...]" in repr(minires.arange(12340, 12350))
    assert "[True, False, True, ...]" in repr(Tensor(np.arange(8) % 2 == 0))


def test_masks():
    x = Tensor([1.0, 2.0, 3.0])
    assert (~(x > 1) | (x > 2)).tolist() == [True, False, True]
    assert ((x > 1) & (x < 3)).tolist() == [False, True, False]


def test_random_tensors_by_seed():
    minires.manual_seed(4)
    first = minires.randn(2, 3)
    minires.manual_seed(4)
    assert first.tolist() == minires.randn((2, 3)).tolist() and first.dtype == minires.float32
    given = [minires.rand(3, generator=np.random.default_rng(1)).tolist() for _ in range(2)]
    assert given[0] == given[1]


def test_module_list():
    layers = nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])
    layers.append(nn.Linear(2, 1))
    assert len(list(layers.parameters())) == 4 and len(layers) == 3 and isinstance(layers[1], nn.ReLU)
    with pytest.raises(TypeError):
        layers.append("relu")


def test_rates_may_be_tensors():
    p = Tensor([1.0, 2.0], requires_grad=True)
    optimizer = optim.SGD([p], lr=Tensor(0.5), weight_decay=Tensor(0.0))
    p.grad = Tensor([1.0, 1.0])
    optimizer.step()
    assert p.tolist() == [0.5, 1.5]
    optimizer.param_groups[0]["lr"] = Tensor(0.25)
    optimizer.step()
    assert p.tolist() == [0.25, 1.25]
    with pytest.raises(ValueError, match="stands alone"):
        optim.SequentialLR(optimizer, [optim.OneCycleLR(optimizer, 0.1, 5), optim.StepLR(optimizer, 1)], [5])


@pytest.mark.parametrize("name", ["preact_resnet20", "resnet20"])
def test_zero_init_makes_every_block_the_identity(name):
    block = minires.create_model(name, width=4, zero_init_residual=True).layer1[1]
    x = minires.rand(2, 4, 5, 5)
    assert_close(block(x).detach().numpy(), x.numpy(), 1e-6)
    with pytest.raises(ValueError, match="plain"):
        minires.create_model("plain20", zero_init_residual=True)
