"""SGD and the schedules, step for step beside PyTorch's."""

import numpy as np
import pytest
from closeness import assert_close

from minires import Tensor, optim

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
        np.testing.assert_array_equal(state["velocity"][0], [1.0, -2.0, 0.5])
        assert second.state_dict()["velocity"][0].dtype == tensor.dtype == dtype


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
        (lambda p: optim.SGD([p], lr=0.1).load_state_dict({"param_groups": [], "velocity": {}}), "groups"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(Tensor([1.0], requires_grad=True))
