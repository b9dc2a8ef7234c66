"""Every layer, optimiser and schedule on the device, beside the same on the host."""

import copy
import inspect

import numpy as np
import pytest
from on_device import FLOAT32, FLOAT64, assert_same, back, there, thorough

import minires
from minires import Tensor, nn, optim

pytestmark = pytest.mark.usefixtures("cuda")

IMAGE = (3, 4, 7, 6)


def generator():
    return np.random.default_rng(8)


#: A layer as it is made, and the shape of its input.
LAYERS = {
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1, generator=generator()), IMAGE),
    "Conv2d with stride, dilation and groups": (
        lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2, bias=False, generator=generator()),
        IMAGE,
    ),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), IMAGE),
    "BatchNorm2d that averages": (lambda: nn.BatchNorm2d(4, momentum=None), IMAGE),
    "BatchNorm2d without parameters": (lambda: nn.BatchNorm2d(4, affine=False), IMAGE),
    "BatchNorm2d without statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), IMAGE),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(4), IMAGE),
    "ReLU": (nn.ReLU, IMAGE),
    "ReLU in place": (lambda: nn.ReLU(inplace=True), IMAGE),
    "Sigmoid": (nn.Sigmoid, IMAGE),
    "Tanh": (nn.Tanh, IMAGE),
    "MaxPool2d": (lambda: nn.MaxPool2d(3, 2, 1), IMAGE),
    "AvgPool2d": (lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGE),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d((3, 4)), IMAGE),
    "AdaptiveAvgPool2d to one pixel": (lambda: nn.AdaptiveAvgPool2d(1), IMAGE),
    "Flatten": (nn.Flatten, IMAGE),
    "Linear": (lambda: nn.Linear(5, 3, generator=generator()), (4, 5)),
    "Linear without bias": (lambda: nn.Linear(5, 3, bias=False, generator=generator()), (2, 3, 5)),
    "Dropout": (lambda: nn.Dropout(0.4, generator()), IMAGE),
    "Identity": (nn.Identity, IMAGE),
    "Sequential": (lambda: nn.Sequential(nn.Conv2d(4, 2, 1, generator=generator()), nn.ReLU(), nn.Flatten()), IMAGE),
    "ModuleList": (lambda: Both(), (4, 5)),
    "CrossEntropyLoss": (lambda: WithLabels(nn.CrossEntropyLoss(label_smoothing=0.1)), (3, 5)),
}


class Both(nn.Module):
    """Two layers in a ModuleList."""

    def __init__(self):
        self.parts = nn.ModuleList([nn.Linear(5, 2, generator=generator()), nn.Linear(5, 2, generator=generator())])

    def forward(self, input):
        return self.parts[0](input) * self.parts[1](input)


class WithLabels(nn.Module):
    """A loss whose labels are a buffer, and move with it."""

    def __init__(self, loss):
        self.loss = loss
        self.register_buffer("labels", Tensor(np.array([2, 0, 4])))

    def forward(self, input):
        return self.loss(input, self.labels)


def classes(module, base):
    """The public classes below base that a module exports."""
    found = [getattr(module, name) for name in module.__all__]
    return {kind.__name__ for kind in found if inspect.isclass(kind) and issubclass(kind, base) and kind is not base}


def test_every_layer_has_a_case():
    assert classes(nn, nn.Module) <= {name.split()[0] for name in LAYERS}


def both(make, dtype=FLOAT32):
    """A module on the host, and a copy of it on the device."""
    host = make().to(dtype)
    device = copy.deepcopy(host).to("cuda")
    for tensor in (*device.parameters(), *device.buffers()):
        assert tensor.device == "cuda"
    return host, device


def assert_same_state(device, host, tolerance, what=""):
    """Parameters, buffers and gradients."""
    state = device.state_dict()
    assert list(state) == list(host.state_dict())
    for name, tensor in host.state_dict().items():
        assert_same(state[name], tensor, tolerance, f"{what}{name}")
    for (name, one), other in zip(host.named_parameters(), device.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), f"{what}gradient of {name}"
        if one.grad is not None:
            assert_same(other.grad, one.grad, tolerance, f"{what}gradient of {name}")


def assert_same_step(device, host, shape, dtype, tolerance):
    """Forward, backward and what they leave in the module; then evaluation."""
    rng = np.random.default_rng(9)
    x = Tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True)
    device_x = x.detach().to("cuda").requires_grad_()
    y, device_y = host(x), device(device_x)
    assert_same(device_y, y, tolerance, "y")
    dy = Tensor(rng.standard_normal(y.shape).astype(dtype))
    y.backward(dy)
    device_y.backward(dy.to("cuda"))
    assert_same(device_x.grad, x.grad, tolerance, "dx")
    assert_same_state(device, host, tolerance)
    with minires.no_grad():
        host.eval(), device.eval()
        assert_same(device(device_x.clone()), host(x.clone()), tolerance, "evaluation")


@pytest.mark.parametrize("dtype", [FLOAT32, thorough(FLOAT64)], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name, dtype):
    make, shape = LAYERS[name]
    host, device = both(make, dtype)
    assert_same_step(device, host, shape, dtype, 2e-5 if dtype == FLOAT32 else 1e-11)


def test_a_module_moves_there_and_back_with_its_gradients():
    layer = nn.Linear(3, 2, generator=generator())
    layer(minires.ones(1, 3)).sum().backward()
    before = {name: tensor.numpy().copy() for name, tensor in layer.state_dict().items()}
    weight = layer.weight
    assert layer.cuda() is layer and layer.weight is weight and layer.weight.grad.device == "cuda"
    layer(minires.ones(1, 3, device="cuda")).sum().backward()
    layer.cpu()
    assert layer.weight.device == layer.weight.grad.device == "cpu"
    assert layer.weight.grad.tolist() == [[2, 2, 2], [2, 2, 2]]
    for name, array in before.items():
        np.testing.assert_array_equal(layer.state_dict()[name].numpy(), array)


@pytest.mark.parametrize("source, target", [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
def test_a_state_dict_loads_from_either_side(source, target):
    one, other = (nn.Conv2d(2, 3, 1, generator=np.random.default_rng(seed)) for seed in (1, 2))
    expected = one.weight.detach().numpy().copy()
    other.to(target).load_state_dict(one.to(source).state_dict())
    assert other.weight.device == target and one.weight.device == source
    np.testing.assert_array_equal(other.weight.detach().cpu().numpy(), expected)
    with minires.no_grad():
        one.weight += 1  # nothing is shared
    np.testing.assert_array_equal(other.weight.detach().cpu().numpy(), expected)


def test_zero_grad_keeps_or_drops_the_memory():
    layer = nn.Linear(3, 2).to("cuda")
    layer(minires.ones(1, 3, device="cuda")).sum().backward()
    layer.zero_grad(set_to_none=False)
    assert_same(layer.weight.grad, np.zeros((2, 3), FLOAT32), 0)
    layer.zero_grad()
    assert layer.weight.grad is None


# ---- Optimisers and schedules ---------------------------------------------------------------------------------------

#: An optimiser with all its options in use.
OPTIMIZERS = {
    "SGD": lambda params: optim.SGD(params, 0.1),
    "SGD with momentum": lambda params: optim.SGD(params, 0.1, momentum=0.9, weight_decay=0.01),
    "SGD with dampening": lambda params: optim.SGD(params, 0.1, momentum=0.9, dampening=0.3),
    "SGD with nesterov": lambda params: optim.SGD(params, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda params: optim.Adam(params, 0.1, weight_decay=0.01),
    "AdamW": lambda params: optim.AdamW(params, 0.1),
    "SGD with groups": lambda params: optim.SGD([{"params": p, "lr": 0.1 * (i + 1)} for i, p in enumerate(params)]),
}

SCHEDULES = {
    "StepLR": lambda o: optim.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: optim.MultiStepLR(o, [1, 3]),
    "CosineAnnealingLR": lambda o: optim.CosineAnnealingLR(o, 4),
    "LinearLR": lambda o: optim.LinearLR(o, total_iters=3),
    "OneCycleLR": lambda o: optim.OneCycleLR(o, 0.2, 5),
    "SequentialLR": lambda o: optim.SequentialLR(
        o, [optim.LinearLR(o, total_iters=2), optim.CosineAnnealingLR(o, 3)], [2]
    ),
}


def test_every_optimiser_and_schedule_has_a_case():
    schedules = classes(optim, optim.LRScheduler)
    assert schedules <= set(SCHEDULES)
    everything = {name for name in optim.__all__ if not inspect.ismodule(getattr(optim, name))}
    below = {"AveragedModel", "clip_grad_norm_", "clip_grad_value_"}
    assert everything - schedules - {"LRScheduler", "Optimizer"} <= {name.split()[0] for name in OPTIMIZERS} | below


@pytest.mark.parametrize("clip", [lambda p: optim.clip_grad_norm_(p, 1.5), lambda p: optim.clip_grad_value_(p, 0.5)])
def test_gradients_are_clipped(clip):
    found = {}
    for device in ("cpu", "cuda"):
        params = parameters(device)
        steps(optim.SGD(params, 0.1), params, 0, 1)
        total = clip(params)
        found[device] = [p.grad for p in params] + ([] if total is None else [total])
    assert_same(found["cuda"], found["cpu"], 1e-5)


def test_an_averaged_model():
    host, device = both(lambda: nn.Sequential(nn.Conv2d(4, 2, 1, generator=generator()), nn.BatchNorm2d(2)))
    averages = [optim.AveragedModel(host), optim.AveragedModel(device)]
    for step in range(3):
        for model, averaged in zip((host, device), averages, strict=True):
            with minires.no_grad():
                for p in model.parameters():
                    p += step
            averaged.update_parameters(model)
    assert_same_state(averages[1].module, averages[0].module, 1e-6)


def parameters(device, dtype=FLOAT32):
    rng = np.random.default_rng(10)
    return [nn.Parameter(Tensor(rng.standard_normal(shape).astype(dtype), device=device)) for shape in ((3, 4), (4,))]


def steps(optimizer, params, first, last, schedule=None):
    """Steps with gradients that depend on the number of the step and on the parameters."""
    for number in range(first, last):
        optimizer.zero_grad()
        ((params[0] * params[1] + number) ** 2).sum().backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


@pytest.mark.parametrize("dtype", [FLOAT32, thorough(FLOAT64)], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimiser(name, dtype):
    found = {}
    for device in ("cpu", "cuda"):
        found[device] = parameters(device, dtype)
        steps(OPTIMIZERS[name](found[device]), found[device], 0, 4)
    assert_same(found["cuda"], found["cpu"], 1e-5 if dtype == FLOAT32 else 1e-12)


@pytest.mark.parametrize("source, target", [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_goes_on_from_another_devices_state(name, source, target):
    whole = parameters("cpu")
    steps(OPTIMIZERS[name](whole), whole, 0, 5)
    params = parameters(source)
    first = OPTIMIZERS[name](params)
    steps(first, params, 0, 2)
    params = [nn.Parameter(Tensor(p, device=target)) for p in params]
    second = OPTIMIZERS[name](params)
    second.load_state_dict(first.state_dict())
    steps(second, params, 2, 5)
    for one, other in zip(params, whole, strict=True):
        assert one.device == target
        assert_same(one.to("cuda"), other, 1e-5)


def test_a_model_that_moves_between_two_steps_is_refused():
    """Its velocities lie where it was, as in PyTorch."""
    params = parameters("cpu")
    optimizer = optim.SGD(params, 0.1, momentum=0.9)
    steps(optimizer, params, 0, 1)
    for p in params:
        p.array = there(p.array)
    with pytest.raises(ValueError, match="cuda.*cpu|cpu.*cuda"):
        steps(optimizer, params, 1, 2)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    found, rates = {}, {}
    for device in ("cpu", "cuda"):
        found[device] = parameters(device)
        optimizer = optim.SGD(found[device], 0.1, momentum=0.9)
        schedule = SCHEDULES[name](optimizer)
        steps(optimizer, found[device], 0, 3, schedule)
        state = schedule.state_dict()
        schedule = SCHEDULES[name](optimizer)
        schedule.load_state_dict(state)
        steps(optimizer, found[device], 3, 5, schedule)
        rates[device] = schedule.get_last_lr()
    assert rates["cuda"] == rates["cpu"]
    assert_same(found["cuda"], found["cpu"], 1e-5)


def test_a_learning_rate_may_be_a_tensor_on_the_device():
    params = parameters("cuda")
    optimizer = optim.SGD(params, lr=Tensor(0.5, device="cuda"))
    before = back(params[1]).copy()
    params[1].grad = Tensor(np.ones(4, FLOAT32), device="cuda")
    optimizer.step()
    assert_same(params[1], before - FLOAT32.type(0.5), 1e-6)
