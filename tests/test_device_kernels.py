"""Every kernel pair on the device, beside the same kernel on NumPy and beside what PyTorch computed."""

import inspect

import numpy as np
import pytest
from on_device import FLOAT32, FLOAT64, assert_same, back, counting, there, thorough
from operations import ELSEWHERE, NAMES, OPERATIONS, as_float32, float32_options, run_kernel, sizes_from
from test_reference import check_network, check_operation

import minires.kernels as K
from minires.kernels import fast
from minires.kernels.backend import add

pytestmark = pytest.mark.usefixtures("cuda")

TOLERANCE = {FLOAT32: 2e-5, FLOAT64: 1e-11}


def case(operation, seed, dtype):
    """Inputs, options and an upstream gradient, as NumPy arrays."""
    rng = np.random.default_rng([seed, 11])
    arrays, options = operation.sample(sizes_from(rng), rng)
    if dtype == FLOAT32:
        arrays, options = as_float32(arrays), float32_options(options)
    y, _ = operation.forward(*arrays, **options)
    return arrays, options, np.asarray(rng.standard_normal(np.shape(y)), y.dtype)


@pytest.mark.parametrize("dtype", [FLOAT32, thorough(FLOAT64)], ids=str)
@pytest.mark.parametrize("seed", [0, *[thorough(seed) for seed in range(1, 6)]])
@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_kernel(operation, seed, dtype):
    arrays, options, dy = case(operation, seed, dtype)
    y, grads = run_kernel(operation, arrays, options, dy)
    device_y, device_grads = run_kernel(operation, there(arrays), there(options), there(dy))
    assert_same(device_y, y, TOLERANCE[dtype], "y")
    assert len(device_grads) == len(grads)
    for i, grad in enumerate(grads):
        assert (grad is None) == (device_grads[i] is None), f"gradient {i}"
        if grad is not None:
            assert_same(device_grads[i], grad, TOLERANCE[dtype], f"gradient {i}")


@pytest.mark.thorough
@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_arguments_are_left_alone(operation):
    """Views of the arguments can be written on the device: nothing there is read-only."""
    arrays, options, dy = there(case(operation, 2, FLOAT32))
    before = [back(a).copy() for a in (*arrays, dy)]
    y, cache = operation.forward(*arrays, **options)
    y_before = back(y).copy()
    operation.backward(dy, cache)
    for array, copy in zip((*arrays, dy, y), (*before, y_before), strict=True):
        np.testing.assert_array_equal(back(array), copy)


@pytest.mark.thorough
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_operation_beside_pytorch(operation, number):
    check_operation(operation, number, there, back)


@pytest.mark.parametrize("dtype, tolerance", [(FLOAT32, 1e-4), thorough(FLOAT64, 1e-10)], ids=str)
@pytest.mark.parametrize("name", ["basic_block", thorough("bottleneck"), thorough("resnet")])
def test_network_beside_pytorch(name, dtype, tolerance):
    check_network(name, dtype, tolerance, "cuda")


@pytest.mark.parametrize("dtype", [FLOAT32, thorough(FLOAT64)], ids=str)
def test_dropout_drops_the_same_entries(dtype):
    x, dy = np.random.default_rng(1).standard_normal((2, 3, 5, 7)).astype(dtype)
    y, cache = K.dropout_forward(x, p=0.3, generator=np.random.default_rng(5))
    device_y, device_cache = K.dropout_forward(there(x), p=0.3, generator=np.random.default_rng(5))
    np.testing.assert_array_equal(back(device_y), y)
    assert_same(K.dropout_backward(there(dy), device_cache), K.dropout_backward(dy, cache), 0, "dx")


@pytest.mark.parametrize(
    "options", [{}, {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}], ids=["", "options"]
)
def test_im2col_and_col2im(options):
    x = np.random.default_rng(2).standard_normal((2, 3, 7, 6)).astype(FLOAT32)
    cols = K.im2col(x, (3, 2), **options)
    assert_same(K.im2col(there(x), (3, 2), **options), cols, 0)
    expected = K.col2im(cols, x.shape, (3, 2), **options)
    assert_same(K.col2im(there(cols), x.shape, (3, 2), **options), expected, 1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_that_memory_cuts_into_blocks(monkeypatch, stride):
    """WHOLE is a gigabyte of columns: made small, the same sums come from several products."""
    from minires.kernels.fast import convolution

    monkeypatch.setattr(convolution, "WHOLE", 4000)
    rng = np.random.default_rng(21)
    x, w = rng.standard_normal((2, 3, 9, 8)).astype(FLOAT32), rng.standard_normal((4, 3, 3, 3)).astype(FLOAT32)
    y, cache = fast.conv2d_forward(x, w, stride=stride, padding=1)
    device_y, device_cache = fast.conv2d_forward(there(x), there(w), stride=stride, padding=1)
    assert_same(device_y, y, 1e-5)
    dy = rng.standard_normal(y.shape).astype(FLOAT32)
    for one, other in zip(
        fast.conv2d_backward(there(dy), device_cache)[:2], fast.conv2d_backward(dy, cache), strict=False
    ):
        assert_same(one, other, 1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_launches_as_much_for_large_images(stride):
    """Blocks that fit a processor's cache would show here: a GPU is to get all of the output at once."""
    w, launches = there(np.random.default_rng(22).standard_normal((2, 1, 3, 3)).astype(FLOAT32)), []
    for H in (9, 71):
        x = there(np.random.default_rng(23).standard_normal((2, 1, H, H)).astype(FLOAT32))
        with counting() as seen:
            y, cache = fast.conv2d_forward(x, w, stride=stride, padding=1)
            fast.conv2d_backward(y, cache)
        launches.append(seen[0].launches)
    assert launches[0] == launches[1]


def test_max_pooling_launches_as_much_for_more_channels(monkeypatch):
    from minires.kernels.fast import pooling

    monkeypatch.setattr(pooling, "BLOCK", 1)
    launches = []
    for C in (2, 5):
        x = there(np.random.default_rng(24).standard_normal((2, C, 7, 7)).astype(FLOAT32))
        with counting() as seen:
            y, cache = fast.max_pool2d_forward(x, kernel_size=3, stride=2, padding=1)
            fast.max_pool2d_backward(y, cache)
        launches.append(seen[0].launches)
    assert launches[0] == launches[1]


def test_results_lie_in_memory_as_the_convolution_wants_them():
    """Images last, as a convolution leaves them: in row-major order the next one would have to copy them."""
    x = there(np.random.default_rng(25).standard_normal((4, 5, 6, 3)).astype(FLOAT32)).transpose(3, 0, 1, 2)
    y, _ = K.relu_forward(x)
    total = add(x, x.copy(order="C"))
    assert y.strides == x.strides and total.strides == x.strides


@pytest.mark.thorough
def test_the_seven_loops_run_too():
    rng = np.random.default_rng(3)
    x, w, b = rng.standard_normal((1, 2, 3, 4)), rng.standard_normal((2, 2, 2, 2)), rng.standard_normal(2)
    assert_same(K.conv2d_loops(*there([x, w, b]), padding=1), K.conv2d_loops(x, w, b, padding=1), 1e-12)


@pytest.mark.parametrize("shape", [(), (4,), (3, 1), (2, 1, 4), (2, 3, 4)])
def test_unbroadcast(shape):
    dy = np.random.default_rng(4).standard_normal((2, 3, 4)).astype(FLOAT32)
    assert_same(K.unbroadcast(there(dy), shape), K.unbroadcast(dy, shape), 1e-6)


def test_max_pool_gives_a_tie_to_the_first_and_nan_wins():
    x = np.random.default_rng(5).integers(0, 3, (2, 3, 7, 6)).astype(FLOAT32)
    x[1, 2, 3, 3] = np.nan
    y, cache = fast.max_pool2d_forward(x, kernel_size=3, stride=2, padding=1)
    dy = np.random.default_rng(6).standard_normal(y.shape).astype(FLOAT32)
    device_y, device_cache = fast.max_pool2d_forward(there(x), kernel_size=3, stride=2, padding=1)
    assert_same(device_y, y, 0)
    assert_same(fast.max_pool2d_backward(there(dy), device_cache), K.max_pool2d_backward(dy, cache), 1e-6)


@pytest.mark.parametrize("label", [3, -1, 2**40])
def test_a_label_out_of_range_never_gives_a_loss(label):
    """An index out of range wraps around on the device: it would pick another class's logit."""
    logits = there(np.random.default_rng(7).standard_normal((2, 3)).astype(FLOAT32))
    try:
        loss, _ = K.cross_entropy_forward(logits, there(np.array([0, label])))
    except ValueError as error:
        assert "labels" in str(error)
    else:
        assert not np.isfinite(back(loss))


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_sync_batch_norm(dtype):
    """Of two workers with the same images, whose sums are twice one's."""
    rng = np.random.default_rng(3)
    x, dy = rng.standard_normal((2, 4, 3, 5, 2)).astype(dtype)
    gamma, beta = rng.standard_normal((2, 3)).astype(dtype)
    found = {}
    for side, move in (("host", np.asarray), ("device", there)):
        y, cache = K.sync_batch_norm_forward(move(x), move(gamma), move(beta), total=double)
        found[side] = y, *K.sync_batch_norm_backward(move(dy), cache), cache.mean, cache.var
    assert_same(found["device"], found["host"], 1e-5 if dtype == FLOAT32 else 1e-12)


def double(a):
    """The sum over two workers that are alike."""
    return 2 * a


def test_every_kernel_has_a_test():
    """Pairs are in the table of operations; what is no pair is named in a test here."""
    text = inspect.getsource(inspect.getmodule(test_every_kernel_has_a_test))
    known = {o.forward for o in OPERATIONS} | {o.backward for o in OPERATIONS}
    for name in K.__all__:
        pair = name.rsplit("_", 1)[0]
        assert getattr(K, name) in known or pair in ELSEWHERE or f"K.{name}(" in text, f"{name} has no device test"
