"""The optimisers, the schedules and what goes with them, step for step beside PyTorch's."""

import numpy as np
import pytest
from closeness import assert_close

from minires import Tensor, nn, optim

OPTIONS = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.05},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True},
    {"lr": 0.1, "momentum": 0.7, "dampening": 0.3},
    {"lr": 0.1, "momentum": 0.7, "dampening": 0.3, "weight_decay": 0.05},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_sgd_equals_its_formula(options):
    """Written out here once more, so that it is checked without PyTorch too."""
    rng = np.random.default_rng(0)
    p = rng.standard_normal((2, 3))
    tensor = Tensor(p, requires_grad=True)
    optimizer = optim.SGD([tensor], **options)
    momentum, decay = options.get("momentum", 0), options.get("weight_decay", 0)
    v = None
    for _ in range(5):
        grad = rng.standard_normal(p.shape)
        tensor.grad = Tensor(grad)
        optimizer.step()
        g = grad + decay * p
        v = g if v is None else momentum * v + (1 - options.get("dampening", 0)) * g
        p = p - options["lr"] * (g + momentum * v if options.get("nesterov") else v if momentum else g)
        assert_close(tensor.detach().numpy(), p, 1e-14)
        np.testing.assert_array_equal(tensor.grad.numpy(), grad)


@pytest.mark.parametrize("options", OPTIONS)
def test_sgd_equals_pytorchs(options):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal((2, 3)), rng.standard_normal(4), rng.standard_normal(2)]
    mine = [Tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]
    a = optim.SGD([{"params": mine[:1]}, {"params": mine[1:], "lr": 0.02}], **options)
    b = torch.optim.SGD([{"params": theirs[:1]}, {"params": theirs[1:], "lr": 0.02}], **options)
    schedule = optim.StepLR(a, 3)
    torch_schedule = torch.optim.lr_scheduler.StepLR(b, 3)
    for step in range(8):
        for i, (p, q) in enumerate(zip(mine, theirs, strict=True)):
            grad = rng.standard_normal(p.shape)
            skip = i == 2 and step in (0, 4)  # a parameter that has no gradient in some steps
            p.grad, q.grad = (None, None) if skip else (Tensor(grad), torch.from_numpy(grad))
        a.step()
        b.step()
        schedule.step()
        torch_schedule.step()
        for p, q in zip(mine, theirs, strict=True):
            assert_close(p.detach().numpy(), q.detach().numpy(), 1e-13)


def rates(module, make, groups=(0.1, 0.3), steps=20, tensor=None):
    optimizer = module.SGD([{"params": [tensor()], "lr": lr} for lr in groups], lr=0.1)
    schedule = make(optimizer)
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return np.array(seen)


SCHEDULES = {
    "StepLR": lambda s, o: s.StepLR(o, 4, gamma=0.5),
    "MultiStepLR": lambda s, o: s.MultiStepLR(o, [3, 8, 8, 15]),
    "CosineAnnealingLR": lambda s, o: s.CosineAnnealingLR(o, T_max=20, eta_min=0.01),
    "LinearLR": lambda s, o: s.LinearLR(o, start_factor=0.1, total_iters=6),
    "SequentialLR": lambda s, o: s.SequentialLR(
        o, [s.LinearLR(o, start_factor=0.25, total_iters=5), s.MultiStepLR(o, [4, 9], gamma=0.2)], milestones=[5]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_equal_pytorchs(name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    mine = rates(optim, lambda o: SCHEDULES[name](optim, o), tensor=lambda: Tensor([1.0], requires_grad=True))
    theirs = rates(
        torch.optim,
        lambda o: SCHEDULES[name](torch.optim.lr_scheduler, o),
        tensor=lambda: torch.ones(1, requires_grad=True),
    )
    assert_close(mine, theirs, 1e-12)


def test_one_cycle_equals_pytorchs():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for total, start in ((20, 0.3), (10, 0.5), (7, 0.25), (100, 0.1)):
        mine = rates(
            optim,
            lambda o, t=total, s=start: optim.OneCycleLR(o, 0.5, t, pct_start=s),
            steps=total - 1,
            tensor=lambda: Tensor([1.0], requires_grad=True),
        )
        theirs = rates(
            torch.optim,
            lambda o, t=total, s=start: torch.optim.lr_scheduler.OneCycleLR(
                o, 0.5, total_steps=t, pct_start=s, cycle_momentum=False
            ),
            steps=total - 1,
            tensor=lambda: torch.ones(1, requires_grad=True),
        )
        assert_close(mine, theirs, 1e-12)


def test_schedules_without_pytorch():
    def one(make, steps=10):
        tensor = [lambda: Tensor([1.0], requires_grad=True)]
        return rates(optim, make, groups=(1.0,), steps=steps, tensor=tensor[0])[:, 0]

    assert_close(one(lambda o: optim.StepLR(o, 2), 6), np.array([1, 1, 0.1, 0.1, 0.01, 0.01]), 1e-12)
    assert_close(one(lambda o: optim.CosineAnnealingLR(o, 4), 5), (1 + np.cos(np.pi * np.arange(5) / 4)) / 2, 1e-12)
    cycle = one(lambda o: optim.OneCycleLR(o, 2.0, 10, pct_start=0.3), 10)
    assert cycle.argmax() == 2 and cycle.max() == pytest.approx(2.0) and cycle[-1] == pytest.approx(2 / 25 / 1e4)


def test_state_dict_continues():
    rng = np.random.default_rng(2)
    grads = rng.standard_normal((6, 3))

    def run(stop=None):
        tensor = Tensor(np.ones(3), requires_grad=True)
        optimizer = optim.SGD([tensor], lr=0.1, momentum=0.9)
        for i, grad in enumerate(grads):
            if i == stop:
                state = optimizer.state_dict()
                optimizer = optim.SGD([tensor], lr=99.0)
                optimizer.load_state_dict(state)
            tensor.grad = Tensor(grad)
            optimizer.step()
        return tensor.tolist()

    assert run() == run(stop=3)


def test_a_loaded_state_is_a_copy_of_the_parameters_dtype():
    """The state stays what it was, so that it can be loaded again; a float64 run's state serves a float32 model."""
    first = Tensor(np.ones(3), requires_grad=True)
    first.grad = Tensor(np.array([1.0, -2.0, 0.5]))
    optimizer = optim.SGD([first], lr=0.1, momentum=0.9)
    optimizer.step()
    for dtype in (np.float64, np.float32):
        state = optimizer.state_dict()
        tensor = Tensor(np.ones(3, dtype), requires_grad=True)
        tensor.grad = Tensor(np.ones(3, dtype))
        second = optim.SGD([tensor], lr=0.1, momentum=0.9)
        second.load_state_dict(state)
        second.step()
        np.testing.assert_array_equal(state["state"][0]["momentum_buffer"], [1.0, -2.0, 0.5])
        assert second.state_dict()["state"][0]["momentum_buffer"].dtype == tensor.dtype == dtype


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: optim.SGD([], lr=0.1), "got none"),
        (lambda p: optim.SGD([p], lr=-1), "lr must be"),
        (lambda p: optim.SGD([p], lr=float("nan")), "lr must be"),
        (lambda p: optim.SGD([p], lr=0.1, nesterov=True), "nesterov"),
        (lambda p: optim.SGD([p * 2], lr=0.1), "leaf"),
        (lambda p: optim.SGD([np.ones(2)], lr=0.1), "leaf"),
        (lambda p: optim.StepLR(optim.SGD([p], lr=0.1), 0), "step_size"),
        (lambda p: optim.SequentialLR(optim.SGD([p], lr=0.1), [], [1, 2]), "milestones"),
        (lambda p: optim.SGD([p], lr=0.1).load_state_dict({"param_groups": [], "state": {}}), "groups"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(Tensor([1.0], requires_grad=True))


# ---- Adam and AdamW ---------------------------------------------------------------------------------------------

ADAMS = [
    ("Adam", {}),
    ("Adam", {"lr": 0.05, "betas": (0.7, 0.95), "eps": 1e-4, "weight_decay": 0.1}),
    ("Adam", {"betas": (0.0, 0.9)}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.05, "weight_decay": 0.3}),
]
# Of PyTorch 2.13, in three steps from (1, -2): for machines without it.
GOLDEN = {"Adam": (0.9367411201637104, -1.819036986143441), "AdamW": (0.8681446449525052, -1.6388213755328092)}


@pytest.mark.parametrize("name", GOLDEN)
def test_adam_gives_the_golden_numbers(name):
    p = Tensor(np.array([1.0, -2.0]), requires_grad=True)
    optimizer = getattr(optim, name)([p], lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.5)
    for grad in ([0.5, -1.0], [-2.0, 0.25], [0.0, 3.0]):
        p.grad = Tensor(np.array(grad))
        optimizer.step()
    assert_close(p.detach().numpy(), np.array(GOLDEN[name]), 1e-14)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_adams_first_step_by_hand(name):
    """In the first step m / (1 - beta1) is g and v / (1 - beta2) is g^2: p moves by lr g / (|g| + eps)."""
    p = Tensor(np.array([3.0, -4.0, 0.5]), requires_grad=True)
    grad = np.array([0.25, -2.0, 1e-3])
    p.grad = Tensor(grad)
    getattr(optim, name)([p], lr=0.01, eps=1e-2, weight_decay=0.0).step()
    expected = np.array([3.0, -4.0, 0.5]) - 0.01 * grad / (abs(grad) + 1e-2)
    assert_close(p.detach().numpy(), expected, 1e-14)


@pytest.mark.parametrize("name, options", ADAMS)
def test_adam_equals_pytorchs(name, options):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal((2, 3)), rng.standard_normal(4), rng.standard_normal(())]
    mine = [Tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.from_numpy(np.array(a)).requires_grad_() for a in arrays]
    a = getattr(optim, name)([{"params": mine[:1]}, {"params": mine[1:], "lr": 0.02}], **options)
    b = getattr(torch.optim, name)([{"params": theirs[:1]}, {"params": theirs[1:], "lr": 0.02}], **options)
    schedules = optim.CosineAnnealingLR(a, 12), torch.optim.lr_scheduler.CosineAnnealingLR(b, 12)
    for step in range(12):
        for i, (p, q) in enumerate(zip(mine, theirs, strict=True)):
            grad = rng.standard_normal(p.shape) * 10.0 ** rng.integers(-4, 3)
            skip = i == 2 and step in (0, 4)  # then its own count of steps lags behind
            p.grad, q.grad = (None, None) if skip else (Tensor(grad), torch.from_numpy(np.array(grad)))
        a.step()
        b.step()
        for schedule in schedules:
            schedule.step()
        for p, q in zip(mine, theirs, strict=True):
            assert_close(p.detach().numpy(), q.detach().numpy(), 1e-12)


MAKERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: optim.Adam(p, lr=0.1, weight_decay=0.01),
    "AdamW": lambda p: optim.AdamW(p, lr=0.1, betas=(0.5, 0.75)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_state_dict_continues_to_the_same_bits_and_shares_nothing(name):
    grads = np.random.default_rng(3).standard_normal((6, 2, 2))

    def steps(tensor, optimizer, some):
        for grad in some:
            tensor.grad = Tensor(grad)
            optimizer.step()
        return tensor.tolist()

    p = Tensor(np.ones((2, 2)), requires_grad=True)
    first = MAKERS[name]([p])
    steps(p, first, grads[:3])
    state = first.state_dict()
    q = Tensor(p.detach().numpy().copy(), requires_grad=True)
    other = type(first)([q], lr=77.0)
    other.load_state_dict(state)
    assert steps(p, first, grads[3:]) == steps(q, other, grads[3:])
    third = Tensor(np.ones((2, 2)), requires_grad=True)
    again = type(first)([third])
    again.load_state_dict(state)  # neither of the two has written into it
    assert again.state_dict()["state"].keys() == {0}
    steps(third, again, grads[3:])
    assert type(first.state_dict()["param_groups"][0]["lr"]) is float


@pytest.mark.parametrize("name", MAKERS)
def test_the_state_of_pytorchs_optimiser_is_read(name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    q = torch.ones(3, dtype=torch.float64, requires_grad=True)
    options = {"lr": 0.1, **({"momentum": 0.9} if name == "SGD" else {})}
    theirs = getattr(torch.optim, name)([q], **options)
    grads = np.random.default_rng(4).standard_normal((4, 3))
    for grad in grads[:2]:
        q.grad = torch.from_numpy(grad)
        theirs.step()
    p = Tensor(q.detach().numpy().copy(), requires_grad=True)
    mine = getattr(optim, name)([p])
    mine.load_state_dict(theirs.state_dict())
    for grad in grads[2:]:
        p.grad, q.grad = Tensor(grad), torch.from_numpy(grad)
        mine.step()
        theirs.step()
    assert_close(p.detach().numpy(), q.detach().numpy(), 1e-12)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.update(state={5: s["state"][0]}), "no parameter 5"),
        (lambda s: s["state"][0].update(exp_avg=np.ones(3)), "exp_avg of shape"),
        (lambda s: s["state"][0].pop("exp_avg"), "expected step and exp_avg and exp_avg_sq of parameter 0"),
        (lambda s: s["state"][0].update(max_exp_avg_sq=np.ones((2, 2))), "got step and exp_avg"),
        (lambda s: s["param_groups"][0].update(lr=float("nan")), "lr must be"),
        (lambda s: s["param_groups"][0].update(betas=(0.5, 1.5)), "betas"),
        (lambda s: s["param_groups"][0].update(params=[0, 1]), "groups of"),
        (lambda s: s.pop("state"), "as state_dict"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, message):
    p = Tensor(np.ones((2, 2)), requires_grad=True)
    p.grad = Tensor(np.ones((2, 2)))
    optimizer = optim.Adam([p])
    optimizer.step()
    state = optimizer.state_dict()
    before = repr(state)
    change(state)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert repr(optimizer.state_dict()) == before


def test_a_group_may_be_added_later():
    p, q = (Tensor([1.0], requires_grad=True) for _ in range(2))
    optimizer = optim.Adam([p], lr=0.1)
    optimizer.add_param_group({"params": q, "lr": 0.5})
    p.grad = q.grad = Tensor([1.0])
    optimizer.step()
    assert p.item() == pytest.approx(0.9) and q.item() == pytest.approx(0.5)
    with pytest.raises(ValueError, match="appears twice"):
        optimizer.add_param_group({"params": [q]})


# ---- Clipping ---------------------------------------------------------------------------------------------------


def with_gradients(seed, dtype=np.float64):
    """Tensors whose gradients were drawn at random; one has none."""
    rng = np.random.default_rng(seed)
    tensors = [Tensor(np.zeros(shape, dtype), requires_grad=True) for shape in ((2, 3), (4,), (), (5,))]
    for tensor in tensors[:-1]:
        tensor.grad = Tensor(rng.standard_normal(tensor.shape).astype(dtype) * 3)
    return tensors


def arrays_of(tensors):
    return [t.grad.numpy().copy() for t in tensors if t.grad is not None]


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.5, float("inf")])
@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clip_grad_norm_equals_pytorchs_and_its_formula(norm_type, max_norm):
    tensors = with_gradients(5)
    before = arrays_of(tensors)
    norm = optim.clip_grad_norm_(tensors, max_norm, norm_type)
    flat = np.concatenate([a.ravel() for a in before])
    assert norm.shape == () and norm.item() == pytest.approx(np.linalg.norm(flat, norm_type), rel=1e-13)
    factor = min(1, max_norm / (norm.item() + 1e-6))
    for after, array in zip(arrays_of(tensors), before, strict=True):
        assert_close(after, array * factor, 1e-14)
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    theirs = [torch.zeros(a.shape, dtype=torch.float64, requires_grad=True) for a in before]
    for q, array in zip(theirs, before, strict=True):
        q.grad = torch.from_numpy(array.copy())
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    assert norm.item() == pytest.approx(expected.item(), rel=1e-12)
    for after, q in zip(arrays_of(tensors), theirs, strict=True):
        assert_close(after, q.grad.numpy(), 1e-12)


def test_clip_grad_value():
    tensors = with_gradients(6, np.float32)
    before = arrays_of(tensors)
    optim.clip_grad_value_(tensors, 1.25)
    for after, array in zip(arrays_of(tensors), before, strict=True):
        np.testing.assert_array_equal(after, np.clip(array, -1.25, 1.25))
        assert after.dtype == np.float32
    assert max(abs(a).max() for a in before) > 1.25, "something was clipped"
    with pytest.raises(ValueError, match="clip_value"):
        optim.clip_grad_value_(tensors, -1)


def test_a_norm_that_is_not_finite():
    tensors = with_gradients(7)
    tensors[1].grad.array[2] = np.inf
    before = arrays_of(tensors)
    with pytest.raises(RuntimeError, match="nothing was changed"):
        optim.clip_grad_norm_(tensors, 1.0, error_if_nonfinite=True)
    for after, array in zip(arrays_of(tensors), before, strict=True):
        np.testing.assert_array_equal(after, array)
    for max_norm, norm_type in ((-1.0, 2.0), (1.0, 0.0), (float("nan"), 2.0)):
        with pytest.raises(ValueError, match="max_norm"):
            optim.clip_grad_norm_(tensors, max_norm, norm_type)
    assert optim.clip_grad_norm_([Tensor([1.0], requires_grad=True)], 1.0).item() == 0


# ---- Averaged weights -------------------------------------------------------------------------------------------


def small_network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def changed(model, rng):
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.dtype.kind == "f":
            tensor.array[...] = rng.standard_normal(tensor.shape)
    return model


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("decay", [None, 0.9])
def test_averaged_model_equals_its_formula(decay, use_buffers):
    rng = np.random.default_rng(8)
    model = small_network().double()
    average = optim.AveragedModel(model, decay and optim.swa_utils.get_ema_avg_fn(decay), use_buffers)
    expected = None
    for count in range(4):
        changed(model, rng)
        w = model[0].weight.detach().numpy().copy()
        mean = model[1].running_mean.numpy().copy()
        both = np.concatenate([w.ravel(), mean])
        if expected is None:
            expected = both
        else:
            expected = decay * expected + (1 - decay) * both if decay else expected + (both - expected) / (count + 1)
        average.update_parameters(model)
        assert_close(average.module[0].weight.detach().numpy().ravel(), expected[:18], 1e-13)
        assert_close(average.module[1].running_mean.numpy(), expected[18:] if use_buffers else mean, 1e-13)
    assert average.n_averaged.item() == 4
    other = optim.AveragedModel(small_network().double(), decay and optim.swa_utils.get_ema_avg_fn(decay))
    other.load_state_dict(average.state_dict())
    assert other.n_averaged.item() == 4
    assert other.module[0].weight.tolist() == average.module[0].weight.tolist() != model[0].weight.tolist()


def test_averaged_model_equals_pytorchs():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(9)
    mine = small_network().double()
    theirs = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)).double()
    swa = torch.optim.swa_utils
    a = optim.AveragedModel(mine, optim.swa_utils.get_ema_avg_fn(0.75))
    b = swa.AveragedModel(theirs, avg_fn=swa.get_ema_avg_fn(0.75))
    assert list(a.state_dict()) != [] and set(a.state_dict()) == set(b.state_dict())
    for _ in range(5):
        changed(mine, rng)
        theirs.load_state_dict({k: torch.from_numpy(np.array(v.numpy())) for k, v in mine.state_dict().items()})
        a.update_parameters(mine)
        b.update_parameters(theirs)
    for name, value in b.state_dict().items():
        assert_close(a.state_dict()[name].numpy(), value.numpy(), 1e-12)
    with pytest.raises(ValueError, match="decay"):
        optim.swa_utils.get_ema_avg_fn(1.5)
