"""Tensors on the device: every operator, method and way of making one, beside the same on the host."""

import copy
import pickle

import minires.functional as F
import numpy as np
import pytest
from on_device import FLOAT32, FLOAT64, assert_same, there, thorough

import minires
from minires import Tensor
from minires.engine.methods import Methods
from minires.engine.operators import Operators

pytestmark = pytest.mark.usefixtures("cuda")


def beside(x, values):
    """A tensor where x lies."""
    return Tensor(values, device=x.device)


def in_place(x, change):
    with minires.no_grad():
        return change(x.detach().clone())


def iadd(x, other):
    x += other
    return x


def isub(x, other):
    x -= other
    return x


def imul(x, other):
    x *= other
    return x


def itruediv(x, other):
    x /= other
    return x


#: x (3, 4) and y (4,) are float, y positive, and require grad; the first word is the name of what is tested.
CASES = {
    "add": lambda x, y: x + y,
    "add number": lambda x, y: x + 2,
    "add NumPy number": lambda x, y: x + np.float64(0.5),
    "add list": lambda x, y: x + [1.0, 2.0, 3.0, 4.0],
    "radd": lambda x, y: 2.5 + x,
    "sub": lambda x, y: x - y,
    "rsub": lambda x, y: 1 - x,
    "mul": lambda x, y: x * y,
    "rmul": lambda x, y: 3.0 * x,
    "truediv": lambda x, y: x / y,
    "truediv integers": lambda x, y: beside(x, [1, 2, 3]) / 2,
    "rtruediv": lambda x, y: 1 / y,
    "pow": lambda x, y: x**2,
    "pow tensor": lambda x, y: y ** (0.5 * y),
    "rpow": lambda x, y: 2.0**x,
    "matmul": lambda x, y: x @ y,
    "matmul matrices": lambda x, y: x @ x.T,
    "rmatmul": lambda x, y: [[1.0, 2.0, 3.0]] @ x,
    "neg": lambda x, y: -x,
    "abs": lambda x, y: (abs(x), x.abs()),
    "iadd": lambda x, y: (in_place(x, lambda z: iadd(z, 1.5)), in_place(x, lambda z: iadd(z, y))),
    "isub": lambda x, y: in_place(x, lambda z: isub(z, y)),
    "imul": lambda x, y: in_place(x, lambda z: imul(z, y)),
    "itruediv": lambda x, y: in_place(x, lambda z: itruediv(z, 4)),
    "getitem int": lambda x, y: x[1],
    "getitem slices": lambda x, y: x[::2, 1:3],
    "getitem tensor": lambda x, y: x[beside(x, [2, 0, 2])],
    "getitem two tensors": lambda x, y: x[beside(x, [2, 0, 2]), beside(x, [1, 3, 1])],
    "getitem list": lambda x, y: x[[2, 0]],
    "getitem NumPy array": lambda x, y: x[np.array([2, 0])],
    "getitem tensor and slice": lambda x, y: x[:, beside(x, [3, 0])],
    "getitem mask": lambda x, y: x[x > 0],
    "getitem mask of rows": lambda x, y: x[beside(x, [True, False, True])],
    "getitem none": lambda x, y: x[None, ..., 0],
    "invert": lambda x, y: ~(x > 0),
    "and": lambda x, y: (x > 0) & (x < 1),
    "or": lambda x, y: (x < 0) | (x > 1),
    "eq": lambda x, y: (x == x[0], x == 0, x == [0, 0, 0, 0]),
    "ne": lambda x, y: (x != x[0], x != None),  # noqa: E711
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= 0.25,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "len": lambda x, y: len(x),
    "iter": lambda x, y: tuple(x),
    "bool": lambda x, y: bool((x > 0)[0, 0]),
    "float": lambda x, y: (float(x[0, 0]), (x > 0).float(), x.double().float()),
    "int": lambda x, y: int(x.sum()),
    "index": lambda x, y: [10, 20, 30, 40][x[0].argmax()],
    "format": lambda x, y: (f"{x.sum():.3f}", f"{x[0, 0]}".replace(', device="cuda"', "")),
    "repr": lambda x, y: repr(x).replace(', device="cuda"', ""),
    "repr small": lambda x, y: repr(y.detach()).replace(', device="cuda"', ""),
    "array": lambda x, y: np.asarray(x.detach()).tolist(),
    "numpy": lambda x, y: x.detach().numpy().tolist(),
    "item": lambda x, y: (x[1, 2].item(), (x > 0)[0, 0].item(), x.argmax().item()),
    "tolist": lambda x, y: x.tolist(),
    "deepcopy": lambda x, y: (copy.deepcopy(x), copy.copy(x.detach())),
    "reduce": lambda x, y: pickle.loads(pickle.dumps(x)),
    "size": lambda x, y: (x.size(), x.size(1)),
    "dim": lambda x, y: x.dim(),
    "ndim": lambda x, y: x.ndim,
    "shape": lambda x, y: x.shape,
    "dtype": lambda x, y: x.dtype.name,
    "numel": lambda x, y: x.numel(),
    "is_leaf": lambda x, y: (x.is_leaf, (x + 1).is_leaf),
    "grad_fn": lambda x, y: (x * y).grad_fn.operation,
    "requires_grad": lambda x, y: (x.requires_grad, x.detach().requires_grad_().requires_grad),
    "requires_grad_": lambda x, y: x.detach().requires_grad_(False).requires_grad,
    "data": lambda x, y: x.data,
    "detach": lambda x, y: x.detach(),
    "clone": lambda x, y: x.clone(),
    "retain_grad": lambda x, y: retained(x, y),
    "to": lambda x, y: (x.to(FLOAT64), x.to(y), x.to(dtype=np.int64)),
    "double": lambda x, y: x.double(),
    "long": lambda x, y: y.long(),
    "floating": lambda x, y: (x > 0).floating(),
    "exp": lambda x, y: x.exp(),
    "log": lambda x, y: y.log(),
    "sqrt": lambda x, y: y.sqrt(),
    "clamp": lambda x, y: (x.clamp(-0.5, 0.5), x.clamp(min=0), x.clamp(max=y[0])),
    "relu": lambda x, y: x.relu(),
    "sigmoid": lambda x, y: x.sigmoid(),
    "tanh": lambda x, y: x.tanh(),
    "sum": lambda x, y: (x.sum(), x.sum(1), x.sum((0, 1), keepdim=True), (x > 0).sum()),
    "mean": lambda x, y: (x.mean(), x.mean(0, keepdim=True)),
    "var": lambda x, y: (x.var(), x.var(1), x.var(0, correction=0, keepdim=True)),
    "amax": lambda x, y: (x.amax(), x.amax(1)),
    "amin": lambda x, y: (x.amin(), x.amin((0, 1), keepdim=True)),
    "max": lambda x, y: (x.max(), x.max(1), x.max(0, keepdim=True)),
    "min": lambda x, y: (x.min(), x.min(-1), x.min(0, keepdim=True)),
    "argmax": lambda x, y: (x.argmax(), x.argmax(1), x.argmax(0, keepdim=True)),
    "argmin": lambda x, y: (x.argmin(), x.argmin(1)),
    "reshape": lambda x, y: x.reshape(2, -1),
    "view": lambda x, y: x.view(4, 3),
    "flatten": lambda x, y: x.flatten(),
    "squeeze": lambda x, y: x[None].squeeze(),
    "unsqueeze": lambda x, y: x.unsqueeze(1),
    "permute": lambda x, y: x.permute(1, 0),
    "transpose": lambda x, y: x.transpose(0, 1),
    "T": lambda x, y: x.T,
    "expand": lambda x, y: y.expand(3, -1),
    "maximum": lambda x, y: minires.maximum(x, y),
    "minimum": lambda x, y: minires.minimum(x, y),
    "where": lambda x, y: minires.where(x > 0, x, y),
    "cat": lambda x, y: minires.cat([x, x * 2], dim=1),
    "stack": lambda x, y: minires.stack([y, y + 1]),
    "pad": lambda x, y: F.pad(x, (1, 2, 0, 1), value=0.5),
    "cross_entropy": lambda x, y: (
        F.cross_entropy(x, beside(x, [3, 0, 1]), label_smoothing=0.1),
        F.cross_entropy(x, beside(x, [3, -100, 1]), reduction="none"),
        F.cross_entropy(x, beside(x, [3, 1, 1]), ignore_index=1, reduction="sum"),
    ),
    "softmax": lambda x, y: (F.softmax(x, 1), F.log_softmax(x, 0)),
    "integers": lambda x, y: (beside(x, [1, 2]) + 1, beside(x, [1, 2]) * 2.5, beside(x, [True]) + beside(x, [2])),
}


def retained(x, y):
    z = x * y
    z.retain_grad()
    (z * z).sum().backward()
    return z.grad


def operands(device, dtype):
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((3, 4)).astype(dtype), requires_grad=True, device=device)
    y = Tensor(rng.uniform(0.5, 2, 4).astype(dtype), requires_grad=True, device=device)
    return x, y


def differentiable(result):
    parts = result if isinstance(result, tuple) else (result,)
    return [part for part in parts if isinstance(part, Tensor) and part.requires_grad and part.node is not None]


@pytest.mark.parametrize("dtype", [FLOAT32, thorough(FLOAT64)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_as_on_the_host(name, dtype):
    tolerance = 1e-5 if dtype == FLOAT32 else 1e-12
    x, y = operands("cpu", dtype)
    device_x, device_y = operands("cuda", dtype)
    host, device = CASES[name](x, y), CASES[name](device_x, device_y)
    assert_same(device, host, tolerance, name)
    rng = np.random.default_rng(1)
    for one, other in zip(differentiable(host), differentiable(device), strict=True):
        dy = Tensor(rng.standard_normal(one.shape).astype(one.dtype))
        one.backward(dy)
        other.backward(dy.to("cuda"))
    for leaf, other, which in ((x, device_x, "x"), (y, device_y, "y")):
        assert (leaf.grad is None) == (other.grad is None)
        if leaf.grad is not None:
            assert_same(other.grad, leaf.grad, tolerance, f"{name}: gradient of {which}")


#: What has a test of its own below, or is a part of the engine.
ELSEWHERE = {
    "Tensor.backward",
    "Methods.to",
    "Methods.cpu",
    "Methods.cuda",
    "Methods.device",
    "Tensor.grad",
    "Tensor.array",
}
ELSEWHERE |= {
    "Tensor.apply",
    "Tensor.wrap",
    "Tensor.node",
    "Operators.change",
    "Operators.in_graph",
}
ELSEWHERE |= {"Methods.select", "Methods.line", "Methods.refuse_copy"}
PYTHONS = set(dir(type("Plain", (), {"__slots__": ("__weakref__",)}))) - {"__eq__", "__ne__", "__lt__", "__le__"}
PYTHONS |= {"__annotations__", "__init__", "__array_priority__", "__static_attributes__", "__firstlineno__"}


def test_every_operator_and_method_has_a_case():
    tested = {name.split()[0] for name in CASES}
    for kind in (Methods, Operators, Tensor):
        for name in set(vars(kind)) - (PYTHONS - {"__format__", "__repr__", "__reduce__"}):
            plain = name.removeprefix("__").removesuffix("__")
            if not plain.startswith("_") and f"{kind.__name__}.{name}" not in ELSEWHERE:
                assert plain in tested, f"{kind.__name__}.{name} has no case"


MAKING = {
    "Tensor": lambda device: Tensor([[1.0, 2.0], [3.0, 4.0]], device=device),
    "Tensor of an array": lambda device: Tensor(np.arange(6.0).reshape(2, 3)[:, ::-1], dtype="f4", device=device),
    "tensor": lambda device: minires.tensor([1, 2, 3], device=device),
    "tensor of booleans": lambda device: minires.tensor([True, False], device=device),
    "zeros": lambda device: minires.zeros(2, 3, device=device),
    "ones": lambda device: minires.ones((3,), dtype=np.int64, device=device),
    "full": lambda device: minires.full((2, 2), 0.5, device=device),
    "arange": lambda device: minires.arange(2, 9, 3, device=device),
    "randn": lambda device: (minires.manual_seed(4), minires.randn(3, 5, device=device))[1],
    "rand": lambda device: minires.rand(3, 5, generator=np.random.default_rng(1), dtype="f8", device=device),
    "from_numpy": lambda device: minires.from_numpy(np.arange(3.0)).to(device),
}


@pytest.mark.parametrize("name", MAKING)
def test_making(name):
    assert_same(MAKING[name]("cuda"), MAKING[name]("cpu"), 0, name)


def test_every_way_of_making_has_a_case():
    from minires.engine import creation

    public = {name for name, value in vars(creation).items() if getattr(value, "__module__", "") == creation.__name__}
    assert public <= {name.split()[0] for name in MAKING}


def test_one_seed_gives_the_same_numbers_everywhere():
    values = []
    for device in ("cpu", "cuda"):
        minires.manual_seed(3)
        layer = minires.nn.Linear(3, 2).to(device)
        x = minires.randn(4, 3, device=device)
        values.append([F.dropout(x, 0.4), minires.rand(2, device=device), layer.weight, layer.bias])
    assert_same(values[1], values[0], 0)


def test_requires_grad_and_grad_live_on_the_device():
    x = minires.ones(3, device="cuda", requires_grad=True)
    assert x.device == "cuda" and x.cpu().device == "cpu" and x.cuda() is x
    (x * x).sum().backward()
    (x * 3).sum().backward()
    assert_same(x.grad, np.full(3, 5, FLOAT32), 0)


def test_a_gradient_flows_between_the_devices():
    x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = (x.to("cuda") * 2).cpu() * 5
    y.backward(Tensor([1.0, 10.0, 100.0]))
    assert x.grad.device == "cpu" and x.grad.tolist() == [10, 100, 1000]


def test_a_single_value_on_the_host_follows_the_other_operand():
    """From either side, as in PyTorch, and its gradient comes home."""
    x, one = minires.ones(3, device="cuda"), Tensor(2.0, requires_grad=True)
    for y in (one * x, x * one, x - one, minires.maximum(x, one)):
        assert y.device == "cuda"
    (x * one + one * x).sum().backward()
    assert one.grad.device == "cpu" and one.grad.item() == 6


def test_an_in_place_change_stays_in_its_own_array():
    """On the host asarray shares memory and on the device it copies: a caller's array must not change on either."""
    host = np.ones(3, FLOAT32)
    for given in (host, there(host)):
        t = Tensor(given, device="cuda")
        t += 1
        assert (t.numpy() == 2).all() and (np.asarray(there(host).get()) == 1).all() and (host == 1).all()
        assert given is host or (given.get() == 1).all()


def test_printing_names_the_device():
    assert repr(minires.ones(2, device="cuda")) == 'Tensor([1., 1.], device="cuda")'
    assert 'device="cuda"' in repr(minires.ones(20, device="cuda", requires_grad=True))


def test_numpy_gives_a_copy_and_refuses_a_gradient():
    x = minires.ones(3, device="cuda", requires_grad=True)
    with pytest.raises(RuntimeError, match="detach"):
        x.numpy()
    array = x.detach().numpy()
    array[:] = 7
    assert x.tolist() == [1, 1, 1]


X, Y = np.ones((2, 3), FLOAT32), np.ones(3, FLOAT32)
IMAGES, KERNEL = np.ones((1, 2, 4, 4), FLOAT32), np.ones((3, 2, 3, 3), FLOAT32)


def batch_norm(x, mean):
    return F.batch_norm(x, mean, Tensor(np.ones(2, FLOAT32), device=mean.device), training=True)


#: Two operands that lie on two devices, in both orders: the operation, and the two arrays.
MIXED = {
    "add": (lambda a, b: a + b, X, Y),
    "subtract": (lambda a, b: a - b, X, Y),
    "multiply": (lambda a, b: a * b, X, Y),
    "divide": (lambda a, b: a / b, X, Y),
    "power": (lambda a, b: a**b, X, Y),
    "matmul": (lambda a, b: a @ b, X, Y),
    "add in place": (iadd, X, Y),
    "multiply in place": (imul, X, Y),
    "equal": (lambda a, b: a == b, X, Y),
    "not equal": (lambda a, b: a != b, X, Y),
    "less": (lambda a, b: a < b, X, Y),
    "and": (lambda a, b: a & b, X > 0, Y > 0),
    "or": (lambda a, b: a | b, X > 0, Y > 0),
    "maximum": (minires.maximum, X, Y),
    "minimum": (minires.minimum, X, Y),
    "where": (lambda a, b: minires.where(a, b, b), X > 0, Y),
    "cat": (lambda a, b: minires.cat([a, b]), X, X),
    "stack": (lambda a, b: minires.stack([a, b]), Y, Y),
    "conv2d": (F.conv2d, IMAGES, KERNEL),
    "linear": (F.linear, Y, X),
    "residual_add": (F.residual_add, X, X),
    "batch_norm": (batch_norm, IMAGES, np.ones(2, FLOAT32)),
    "cross_entropy": (F.cross_entropy, X, np.array([0, 1])),
}


@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda")], ids=" and ".join)
@pytest.mark.parametrize("name", MIXED)
def test_mixing_devices_names_both(name, devices):
    operation, *arrays = MIXED[name]
    tensors = [Tensor(array, device=device) for array, device in zip(arrays, devices, strict=True)]
    with pytest.raises(ValueError) as caught:
        operation(*tensors)
    message = str(caught.value)
    assert "cuda" in message and "cpu" in message, message
    for tensor in tensors:
        assert str(tensor.shape) in message, message


@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda")], ids=" and ".join)
def test_a_gradient_from_another_device_is_refused(devices):
    x, gradient = (Tensor(X, device=device) for device in devices)
    with pytest.raises(ValueError, match="tensor is on {} and the gradient on {}".format(*devices)):
        x.requires_grad_().backward(gradient)


def test_an_index_from_the_device_into_the_host_names_both():
    with pytest.raises(ValueError, match=r"tensor \(2, 3\) on cpu .* index \(1,\) on cuda"):
        Tensor(X)[Tensor([1], device="cuda")]


def test_an_index_from_the_host_into_the_device_is_welcome():
    """As in PyTorch: it is uploaded."""
    assert_same(Tensor(X, device="cuda")[Tensor([1])], X[[1]], 0)


def test_replacing_data_by_another_devices_is_refused():
    x = Tensor(X, device="cuda")
    with pytest.raises(ValueError, match="cuda.*cpu|cpu.*cuda"):
        x.data = Tensor(X)
    assert x.device == "cuda"


def test_a_device_array_of_numbers_becomes_a_tensor_there():
    x = Tensor(there(X))
    assert x.device == "cuda" and x.shape == (2, 3)
    assert_same(
        Tensor([Tensor(Y, device="cuda"), Tensor(Y, device="cuda")], device="cuda"), np.ones((2, 3), FLOAT32), 0
    )


def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match='expected "cpu" or "cuda"'):
        Tensor(X, device="tpu")


def test_a_single_value_on_the_host_does_not_move_in_place():
    x = Tensor(2.0)
    with pytest.raises(ValueError, match="add: in place the tensor stays .* on cpu, and the result is .* on cuda"):
        x += Tensor(X, device="cuda")
    assert x.device == "cpu" and x.item() == 2


def test_a_gradient_that_a_backward_made_on_the_host_is_named():
    def forward(x):
        return x * 2, None

    def careless_backward(dy, cache):
        return np.full(dy.shape, 2.0)

    x = Tensor(X, device="cuda", requires_grad=True)
    y = minires.apply(forward, careless_backward, x)
    with pytest.raises(RuntimeError, match="careless_backward gave gradient 0 on cpu, expected cuda"):
        y.sum().backward()
    assert x.grad is None


def test_index_lists_take_tensors_of_both_devices():
    index = [Tensor(1, device="cuda"), Tensor(0)]
    assert_same(Tensor(X, device="cuda")[index], X[[1, 0]], 0)
