"""The binding: each functional under PyTorch's signature, against PyTorch."""

import minires.functional as F
import numpy as np
import pytest
from closeness import assert_close

from minires import Tensor
from minires.nn import functional

torch = pytest.importorskip("torch", reason="PyTorch is not installed: the kernels are compared with golden files")
TF = torch.nn.functional

rng = np.random.default_rng(0)
X = rng.standard_normal((2, 4, 7, 6))
LABELS = np.array([1, 0, 3])
LOGITS = rng.standard_normal((3, 5))

CALLS = {
    "conv2d": ([X, rng.standard_normal((6, 2, 3, 2)), rng.standard_normal(6)], ((2, 1), (1, 0), 1, 2), {}),
    "conv2d without bias": ([X, rng.standard_normal((3, 4, 1, 1))], (), {}),
    "relu": ([X], (), {}),
    "sigmoid": ([X], (), {}),
    "tanh": ([X], (), {}),
    "max_pool2d": ([X], (3, 2, 1, 1, True), {}),
    "max_pool2d default stride": ([X], (2,), {}),
    "avg_pool2d": ([X], (3, (2, 1), 1, True, False), {}),
    "adaptive_avg_pool2d": ([X], ((3, 5),), {}),
    "adaptive_avg_pool2d to one": ([X], (1,), {}),
    "adaptive_avg_pool2d keeping": ([X], ((None, 2),), {}),
    "linear": ([X, rng.standard_normal((3, 6)), rng.standard_normal(3)], (), {}),
    "linear without bias": ([LOGITS, rng.standard_normal((3, 5))], (), {}),
    "softmax": ([X], (1,), {}),
    "log_softmax": ([X], (), {"dim": -2}),
    "cross_entropy": ([LOGITS], (), {"target": LABELS, "label_smoothing": 0.1, "ignore_index": 3}),
    "pad": ([X], ((1, 2, 0, 3),), {"value": 2.0}),
}


@pytest.mark.parametrize("name", CALLS)
def test_equals_pytorch(name):
    arrays, arguments, options = CALLS[name]
    function = name.split()[0]
    mine = [Tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]
    torch_options = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    y = getattr(functional, function)(*mine, *arguments, **options)
    expected = getattr(TF, function)(*theirs, *arguments, **torch_options)
    assert_close(y.detach().numpy(), expected.detach().numpy(), 1e-11)
    dy = np.asarray(np.random.default_rng(1).standard_normal(y.shape))
    y.backward(dy)
    expected.backward(torch.from_numpy(dy))
    for one, other in zip(mine, theirs, strict=True):
        assert_close(one.grad.numpy(), other.grad.numpy(), 1e-11)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm(training, affine):
    rng = np.random.default_rng(2)
    arrays = [X] + ([rng.standard_normal(4), rng.standard_normal(4)] if affine else [])
    mean, var = rng.standard_normal(4), rng.uniform(0.5, 2, 4)
    mine, theirs = [], []
    for a in arrays:
        mine.append(Tensor(a, requires_grad=True))
        theirs.append(torch.from_numpy(a.copy()).requires_grad_())
    my_stats = [Tensor(mean), Tensor(var)]
    their_stats = [torch.from_numpy(mean.copy()), torch.from_numpy(var.copy())]
    y = F.batch_norm(mine[0], *my_stats, *mine[1:], training=training, momentum=0.3, eps=1e-3)
    expected = TF.batch_norm(theirs[0], *their_stats, *theirs[1:], training=training, momentum=0.3, eps=1e-3)
    dy = rng.standard_normal(y.shape)
    y.backward(dy)
    expected.backward(torch.from_numpy(dy))
    assert_close(y.detach().numpy(), expected.detach().numpy(), 1e-11)
    for one, other in zip(mine, theirs, strict=True):
        assert_close(one.grad.numpy(), other.grad.numpy(), 1e-10)
    for one, other in zip(my_stats, their_stats, strict=True):
        assert_close(one.numpy(), other.numpy(), 1e-12)


def test_joining_and_choosing():
    a, b = rng.standard_normal((2, 3)), rng.standard_normal((2, 3))
    for name, call in {
        "cat": lambda m, x, y: m.cat([x, y], 1),
        "stack": lambda m, x, y: m.stack([x, y], -1),
        "maximum": lambda m, x, y: m.maximum(x, y),
        "minimum": lambda m, x, y: m.minimum(x, y),
        "where": lambda m, x, y: m.where(x > y, x, y * 2),
        "matmul": lambda m, x, y: m.matmul(x, y.T),
        "flatten": lambda m, x, y: m.flatten(x * y),
    }.items():
        mine = [Tensor(v, requires_grad=True) for v in (a, b)]
        theirs = [torch.from_numpy(v.copy()).requires_grad_() for v in (a, b)]
        y, expected = call(functional, *mine), call(torch, *theirs)
        dy = rng.standard_normal(y.shape)
        y.backward(dy)
        expected.backward(torch.from_numpy(dy))
        assert_close(y.detach().numpy(), expected.detach().numpy(), 1e-12, name)
        for one, other in zip(mine, theirs, strict=True):
            assert_close(one.grad.numpy(), other.grad.numpy(), 1e-12, name)
