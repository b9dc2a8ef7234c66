"""Bad input: each gets an error that names the operation, the argument, what was expected and what came."""

import sys
import types

import minires.functional as F
import numpy as np
import pytest

import minires
from minires import Tensor, kernels, nn

X = np.zeros((2, 4, 5, 6))
W = np.zeros((6, 4, 3, 3))
LOGITS = np.zeros((3, 5))


def tensor(*shape, dtype=np.float64):
    return Tensor(np.zeros(shape, dtype))


CASES = {
    "channels that do not fit": (
        lambda: F.conv2d(tensor(2, 3, 5, 5), Tensor(W)),
        "conv2d: x has 3 channels.*expects 4",
    ),
    "groups that do not divide": (lambda: F.conv2d(Tensor(X), Tensor(W), groups=4), "groups=4 must divide.*6 outputs"),
    "groups of zero": (lambda: F.conv2d(Tensor(X), Tensor(W), groups=0), "groups must be a positive int, got 0"),
    "a kernel larger than its input": (
        lambda: F.conv2d(tensor(1, 4, 2, 9), Tensor(W)),
        "kernel spans 3x3 and the padded input is 2x9",
    ),
    "a dilated kernel larger than its input": (
        lambda: F.conv2d(Tensor(X), Tensor(W), dilation=3, padding=0),
        "kernel spans 7x7 and the padded input is 5x6",
    ),
    "a stride of zero": (lambda: F.conv2d(Tensor(X), Tensor(W), stride=0), "stride must be at least 1, got 0"),
    "a negative stride": (lambda: F.conv2d(Tensor(X), Tensor(W), stride=(1, -2)), r"stride .* got \(1, -2\)"),
    "a negative padding": (lambda: F.conv2d(Tensor(X), Tensor(W), padding=-1), "padding must be at least 0"),
    "a stride of three numbers": (lambda: F.conv2d(Tensor(X), Tensor(W), stride=(1, 1, 1)), "int or a pair"),
    "a broken stride": (lambda: F.conv2d(Tensor(X), Tensor(W), stride=1.5), "stride must be an int .* got 1.5"),
    "a bias that does not fit": (lambda: F.conv2d(Tensor(X), Tensor(W), tensor(5)), r"b must have shape \(6,\)"),
    "an image without its batch": (lambda: F.conv2d(tensor(4, 5, 6), Tensor(W)), r"\(N, C, H, W\)"),
    "an empty batch in conv2d": (lambda: F.conv2d(tensor(0, 4, 5, 5), Tensor(W)), "no empty axis"),
    "integers in conv2d": (lambda: F.conv2d(tensor(1, 4, 5, 5, dtype=int), Tensor(W)), "float32 or float64, got int64"),
    "two dtypes in conv2d": (lambda: F.conv2d(tensor(1, 4, 5, 5, dtype=np.float32), Tensor(W)), "one dtype"),
    "a window larger than its input": (lambda: F.max_pool2d(tensor(1, 1, 2, 2), 3), "max_pool2d: the window"),
    "padding over half the window": (lambda: F.max_pool2d(Tensor(X), 3, padding=2), "at most half"),
    "a pooling stride of zero": (lambda: F.avg_pool2d(Tensor(X), 2, 0), "avg_pool2d: stride must be at least 1"),
    "an empty batch in pooling": (lambda: F.max_pool2d(tensor(0, 1, 4, 4), 2), "max_pool2d: x is empty"),
    "an output size of zero": (lambda: F.adaptive_avg_pool2d(Tensor(X), (0, 1)), "output_size must be at least 1"),
    "a label out of range": (
        lambda: F.cross_entropy(Tensor(LOGITS), Tensor([0, 5, 1])),
        "labels must lie between 0 and 4.*got 5 in row 1",
    ),
    "a negative label": (lambda: F.cross_entropy(Tensor(LOGITS), Tensor([0, -1, 1])), "got -1 in row 1"),
    "float labels": (lambda: F.cross_entropy(Tensor(LOGITS), Tensor([0.0, 1.0, 2.0])), "labels must be integers"),
    "labels of another length": (lambda: F.cross_entropy(Tensor(LOGITS), Tensor([0, 1])), r"labels .* shape \(3,\)"),
    "an empty batch of logits": (
        lambda: F.cross_entropy(tensor(0, 5), Tensor(np.zeros(0, int))),
        "cross_entropy: the batch is empty",
    ),
    "an unknown reduction": (
        lambda: F.cross_entropy(Tensor(LOGITS), Tensor([0, 1, 2]), reduction="avg"),
        "reduction must be",
    ),
    "label smoothing over 1": (
        lambda: F.cross_entropy(Tensor(LOGITS), Tensor([0, 1, 2]), label_smoothing=1.5),
        "label_smoothing must lie",
    ),
    "batch norm on one value a channel": (
        lambda: nn.BatchNorm2d(4)(tensor(1, 4, 1, 1, dtype=np.float32)),
        "batch_norm: training needs more than one value a channel",
    ),
    "batch norm of other channels": (lambda: nn.BatchNorm2d(3)(Tensor(X)), r"BatchNorm2d: expected \(N, 3, H, W\)"),
    "batch norm in evaluation without statistics": (
        lambda: F.batch_norm(Tensor(X), None, None),
        "needs running_mean and running_var",
    ),
    "an empty batch in batch norm": (lambda: kernels.batch_norm_forward(np.zeros((0, 3, 2, 2))), "x is empty"),
    "a linear layer of other features": (lambda: nn.Linear(3, 2)(Tensor([[1.0, 2.0]])), "linear: x .* must share in"),
    "matrices that do not fit": (lambda: Tensor(np.zeros((2, 3))) @ Tensor(np.zeros((2, 3))), "matmul: .* differ"),
    "shapes that do not broadcast": (lambda: tensor(2, 3) + tensor(4), "broadcast"),
    "a residual of another shape": (lambda: F.residual_add(tensor(2, 3), tensor(2, 1)), "option A, B or C"),
    "a shortcut to fewer channels": (lambda: F.shortcut_a(Tensor(X), 2), "at least the 4 channels"),
    "a reshape that does not fit": (lambda: tensor(2, 3).reshape(4, 2), r"reshape: cannot see 6 values"),
    "an axis that is not there": (lambda: tensor(2, 3).sum(2), r"sum: axis 2 is not there"),
    "a permutation with a repeat": (lambda: tensor(2, 3).permute(0, 0), "permute: expected each of the 2 axes"),
    "concatenating other shapes": (lambda: F.cat([tensor(2, 3), tensor(3)]), r"cannot join"),
    "the mean of integers": (lambda: Tensor([1, 2]).mean(), "mean: x must be floating point"),
    "dropout over 1": (lambda: F.dropout(Tensor(X), 1.5), "p must lie between 0 and 1"),
    "backward on many values": (
        lambda: (Tensor([1.0, 2.0], requires_grad=True) * 2).backward(),
        r"single value, this tensor has shape \(2,\)",
    ),
    "backward with a gradient of another shape": (
        lambda: (Tensor([1.0, 2.0], requires_grad=True) * 2).backward([1.0]),
        r"gradient must have the tensor's shape \(2,\), got \(1,\)",
    ),
    "backward without anything to learn": (lambda: Tensor(1.0).backward(), "no input of it had requires_grad"),
    "an integer that requires a gradient": (lambda: Tensor([1, 2], requires_grad=True), "only floating-point"),
    "a boolean that requires a gradient": (lambda: Tensor([True]).requires_grad_(), "only floating-point"),
    "a frozen result": (
        lambda: (Tensor([1.0], requires_grad=True) * 2).requires_grad_(False),
        "use detach",
    ),
    "numpy of what requires a gradient": (lambda: Tensor([1.0], requires_grad=True).numpy(), "detach"),
    "ragged lists": (lambda: Tensor([[1, 2], [3]]), "ragged"),
    "text": (lambda: Tensor(["a"]), "real numbers"),
    "complex numbers": (lambda: Tensor(np.zeros(2, complex)), "real numbers"),
    "an unknown device": (lambda: Tensor([1.0]).to("tpu"), "expected a dtype"),
    "a convolution layer whose groups do not divide": (lambda: nn.Conv2d(4, 6, 3, groups=4), "divisible by groups"),
    "a convolution layer of stride zero": (lambda: nn.Conv2d(4, 6, 3, stride=0), "Conv2d: stride must be at least 1"),
    "a normal generator of another kind": (
        lambda: nn.Linear(2, 2, generator=np.random.RandomState),
        "numpy.random.default_rng",
    ),
    "a list in a kernel": (lambda: kernels.relu_forward([1.0]), "expected a NumPy or CuPy array, got list"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused_clearly(name):
    call, message = CASES[name]
    with pytest.raises((ValueError, TypeError, RuntimeError, KeyError), match=message) as caught:
        call()
    assert len(str(caught.value)) < 300


def test_a_batch_norm_that_refused_has_changed_nothing():
    layer = nn.BatchNorm2d(2)
    with pytest.raises(ValueError):
        layer(tensor(1, 2, 1, 1, dtype=np.float32))
    assert layer.num_batches_tracked.item() == 0


def test_cuda_without_cupy_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    for call in (lambda: Tensor([1.0]).to("cuda"), lambda: Tensor([1.0], device="cuda"), lambda: nn.ReLU().to("cuda")):
        with pytest.raises(RuntimeError, match="CuPy is not installed: pip install"):
            call()


def fake_cupy(is_available=lambda: True, ones=None):
    fake = types.ModuleType("cupy")
    fake.ndarray = type("ndarray", (), {})
    fake.cuda = types.SimpleNamespace(is_available=is_available)
    fake.ones = ones
    return fake


def fails(error):
    def function(*args):
        raise error

    return function


class NoToolkit:
    def __matmul__(self, other):
        raise ImportError("libcublas.so.12: cannot open shared object file")


@pytest.mark.parametrize(
    "fake, sentence",
    [
        (fake_cupy(lambda: False), "finds no GPU: check the driver"),
        (fake_cupy(fails(OSError("libcuda.so.1 is broken"))), "does not work here .*libcuda.so.1 is broken"),
        (fake_cupy(ones=fails(MemoryError("cudaErrorMemoryAllocation"))), "MemoryError: cudaErrorMemoryAllocation"),
        (fake_cupy(ones=lambda *a: NoToolkit()), r"without the CUDA toolkit .*libcublas.*cupy-cuda12x\[ctk\]"),
        (fake_cupy(ones=lambda *a: np.zeros((2, 2))), "computes wrong numbers"),
        (types.ModuleType("cupy"), "is not CuPy .*AttributeError.*move it out of the way"),
    ],
)
def test_a_cupy_that_cannot_be_used_is_refused_in_one_sentence(fake, sentence, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake)
    assert not minires.cuda.is_available() and minires.cuda.device_count() == 0
    for call in (Tensor([1.0]).cuda, nn.ReLU().cuda, lambda: minires.zeros(2, device="cuda")):
        with pytest.raises(RuntimeError, match=f'device "cuda" is not available: .*{sentence}') as caught:
            call()
        assert "\n" not in str(caught.value)
    assert (Tensor([1.0, 2.0]) * 2).tolist() == [2, 4]  # and nothing else notices


def test_a_cupy_that_cannot_be_imported(monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text("raise OSError('libnvrtc is of another version\\nsecond line')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    assert not minires.cuda.is_available()
    problem = minires.cuda_problem()
    assert "does not work here (OSError: libnvrtc is of another version)" in problem


def test_mixing_devices_names_both(monkeypatch):
    """An array of another library stands in for the GPU's: the check looks at who holds the memory."""

    class DeviceArray:
        shape, dtype, ndim, size = (4,), np.dtype(float), 1, 4

    fake = types.ModuleType("cupy")
    fake.ndarray = DeviceArray
    monkeypatch.setitem(sys.modules, "cupy", fake)
    there = tensor(4)
    there.array = DeviceArray()
    for call in (lambda: tensor(2, 4) + there, lambda: F.linear(tensor(2, 4), there), lambda: there * tensor(4)):
        with pytest.raises(
            ValueError, match=r"^(add|linear|mul): all tensors must be on one device, got .* on cuda"
        ) as caught:
            call()
        assert "on cpu" in str(caught.value)
