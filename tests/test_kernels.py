"""Kernels against their definitions: loops, central differences, and what each promises beside its numbers."""

import inspect
import re

import numpy as np
import pytest
from closeness import assert_close, numeric_gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import ELSEWHERE, NAMES, OPERATIONS, TEXTBOOK, conv_sample, run_kernel, sizes_from

import minires.kernels as K
from minires.engine.armour import HINTS
from minires.kernels import fast
from minires.kernels.fast import FAST

BOTH = pytest.mark.parametrize("K", [K, fast], ids=["textbook", "fast"])
TEXTBOOKS = [row for row in OPERATIONS if row.name.endswith(TEXTBOOK)]


def as_tuple(grads):
    return grads if isinstance(grads, tuple) else (grads,)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_backward_is_the_derivative(operation, seed):
    rng = np.random.default_rng(seed)
    arrays, options = operation.sample(sizes_from(rng), rng)
    if sum(a.size for a in arrays) > 400:
        rng = np.random.default_rng(seed + 100)
        arrays, options = operation.sample(lambda low, high: min(high, low + 1), rng)
    y, _ = operation.forward(*arrays, **options)
    dy = rng.standard_normal(np.shape(y))
    _, grads = run_kernel(operation, arrays, options, dy)

    def function(*moved):
        return operation.forward(*moved, **options)[0]

    for i, array in enumerate(arrays):
        if array.dtype.kind == "f" and array.size <= 2000:
            assert_close(grads[i], numeric_gradient(function, arrays, i, dy), 2e-7, f"gradient {i}")


@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_arguments_are_left_alone(operation):
    """Neither forward nor backward writes to what it was given, and a backward can run twice."""
    rng = np.random.default_rng(7)
    arrays, options = operation.sample(sizes_from(rng), rng)
    before = [a.copy() for a in arrays]
    y, cache = operation.forward(*arrays, **options)
    dy = rng.standard_normal(np.shape(y))
    dy_before = dy.copy()
    first = operation.backward(dy, cache)
    second = operation.backward(dy, cache)
    np.testing.assert_array_equal(dy, dy_before)
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)
    for one, other in zip(as_tuple(first), as_tuple(second), strict=True):
        np.testing.assert_array_equal(one, other)  # the cache was left alone too


@settings(max_examples=40)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_three_convolutions_agree(data, seed):
    """Seven loops, the textbook's im2col and what runs."""
    rng = np.random.default_rng(seed)
    arrays, options = conv_sample(lambda low, high: data.draw(st.integers(low, min(high, low + 2))), rng)
    by_loops = K.conv2d_loops(*arrays, **options)
    assert_close(fast.conv2d_forward(*arrays, **options)[0], by_loops, 1e-12, "conv2d")
    assert_close(K.conv2d_forward(*arrays, **options)[0], by_loops, 1e-12, "im2col")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("operation", TEXTBOOKS, ids=[row.name for row in TEXTBOOKS])
def test_textbook_equals_what_runs(operation, seed):
    """Outputs and gradients, and the running statistics that batch norm moves."""
    rng = np.random.default_rng(seed)
    arrays, options = operation.sample(sizes_from(rng), rng)
    if operation.forward is K.batch_norm_forward:
        C = arrays[0].shape[1]
        arrays = [*arrays, *[None] * (3 - len(arrays)), rng.standard_normal(C), rng.uniform(0.5, 2, C)]
        options = {**options, "momentum": 0.3}
    running = FAST[operation.forward, operation.backward]
    results = []
    for forward, backward in ((operation.forward, operation.backward), running):
        inputs = [None if a is None else a.copy() for a in arrays]
        y, cache = forward(*inputs, **options)
        dy = np.random.default_rng(seed + 1).standard_normal(y.shape)
        results.append([y, *as_tuple(backward(dy, cache)), *inputs[3:]])
    for i, (one, other) in enumerate(zip(*results, strict=True)):
        assert (one is None) == (other is None)
        if one is not None:
            assert_close(one, other, 1e-12, f"result {i}")


@pytest.mark.parametrize("shipped", FAST, ids=lambda pair: pair[0].__name__)
def test_textbook_and_fast_are_called_alike(shipped):
    """The same arrays and options, in one order; the fast form may take hints besides."""
    mine, fast_one = (inspect.signature(f).parameters for f in (shipped[0], FAST[shipped][0]))
    assert list(mine) == [name for name in fast_one if name not in HINTS]
    assert all(fast_one[name].default == parameter.default for name, parameter in mine.items())


def test_col2im_is_the_transpose_of_im2col():
    """<im2col(x), c> = <x, col2im(c)> for any x and c."""
    rng = np.random.default_rng(0)
    options = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    x = rng.standard_normal((2, 3, 7, 6))
    cols = K.im2col(x, (3, 2), **options)
    c = rng.standard_normal(cols.shape)
    assert np.isclose((cols * c).sum(), (x * K.col2im(c, x.shape, (3, 2), **options)).sum(), rtol=1e-12)


def test_conv2d_without_dx():
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((4, 3, 3, 3))
    full, data = fast.conv2d_forward(x, w)[1], fast.conv2d_forward(x, w, needs_dx=False)[1]
    dy = rng.standard_normal((2, 4, 3, 2))
    assert fast.conv2d_backward(dy, data)[0] is None
    np.testing.assert_array_equal(fast.conv2d_backward(dy, data)[1], fast.conv2d_backward(dy, full)[1])


def max_pool_loops(x, kernel, stride, padding):
    N, C, H, W = x.shape
    OH = (H + 2 * padding - kernel) // stride + 1
    OW = (W + 2 * padding - kernel) // stride + 1
    y, where = np.full((N, C, OH, OW), -np.inf), np.zeros((N, C, OH, OW, 2), int)
    for n, c, i, j in np.ndindex(N, C, OH, OW):
        for h in range(i * stride - padding, i * stride - padding + kernel):
            for w in range(j * stride - padding, j * stride - padding + kernel):
                if 0 <= h < H and 0 <= w < W and x[n, c, h, w] > y[n, c, i, j]:
                    y[n, c, i, j] = x[n, c, h, w]
                    where[n, c, i, j] = h, w
    return y, where


@BOTH
def test_max_pool_gives_a_tie_to_the_first(K):
    """Small integers tie all the time; the gradient goes to the first maximum in row-major order."""
    rng = np.random.default_rng(2)
    x = rng.integers(0, 3, (2, 3, 7, 6)).astype(float)
    y, where = max_pool_loops(x, 3, 2, 1)
    forward, cache = K.max_pool2d_forward(x, kernel_size=3, stride=2, padding=1)
    np.testing.assert_array_equal(forward, y)
    dy = rng.standard_normal(y.shape)
    dx = np.zeros_like(x)
    for n, c, i, j in np.ndindex(*y.shape):
        dx[(n, c, *where[n, c, i, j])] += dy[n, c, i, j]
    assert_close(K.max_pool2d_backward(dy, cache), dx, 1e-14)


@BOTH
def test_max_pool_nan_wins(K):
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    x[0, 0, 0, 1] = np.nan
    y, cache = K.max_pool2d_forward(x, kernel_size=2)
    assert np.isnan(y[0, 0, 0, 0]) and np.isfinite(y[0, 0, 1:]).all()
    dx = K.max_pool2d_backward(np.full((1, 1, 2, 2), 2.0), cache)
    assert dx[0, 0, 0, 1] == 2 and dx[0, 0, 0, 0] == 0


def test_relu_at_zero():
    y, cache = K.relu_forward(np.array([-1.0, 0.0, 2.0]))
    np.testing.assert_array_equal(y, [0, 0, 2])
    np.testing.assert_array_equal(K.relu_backward(np.array([3.0, 5.0, 7.0]), cache), [0, 0, 7])


@BOTH
def test_batch_norm_statistics_leave_by_name(K):
    rng = np.random.default_rng(3)
    x = 5 + 2 * rng.standard_normal((4, 3, 2, 5))
    y, cache = K.batch_norm_forward(x)
    assert_close(cache.mean, x.mean(axis=(0, 2, 3)), 1e-13)
    assert_close(cache.var, x.var(axis=(0, 2, 3)), 1e-13)
    assert_close(y.mean(axis=(0, 2, 3)) + 1, np.ones(3), 1e-12)


@BOTH
def test_batch_norm_of_a_large_mean_in_float32(K):
    """A variance as E[x^2] - E[x]^2 would lose all its digits here."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((8, 3, 6, 6)) + 1e4
    y, _ = K.batch_norm_forward(x.astype(np.float32))
    assert_close(y, K.batch_norm_forward(x.astype(np.float32).astype(np.float64))[0], 1e-3)


def test_softmax_and_cross_entropy_of_huge_logits():
    logits = np.array([[1e4, 0.0, -1e4], [-1e4, -1e4, -1e4]], np.float32)
    y, _ = K.softmax_forward(logits)
    assert np.isfinite(y).all() and np.allclose(y.sum(axis=1), 1)
    loss, cache = K.cross_entropy_forward(logits, np.array([1, 2]), reduction="none")
    assert_close(loss, np.array([1e4, np.log(3)]), 1e-6)
    assert np.isfinite(K.cross_entropy_backward(np.ones(2, np.float32), cache)[0]).all()


def test_cross_entropy_of_a_batch_that_is_all_ignored():
    loss, _ = K.cross_entropy_forward(np.zeros((2, 3)), np.array([-100, -100]))
    assert np.isnan(loss)


def test_dropout():
    """The share that is dropped, the scale of the rest, and the same mask on the way back."""
    x = np.full((200, 50), 3.0)
    y, cache = K.dropout_forward(x, p=0.3, generator=np.random.default_rng(0))
    dropped = (y == 0).mean()
    assert abs(dropped - 0.3) < 0.02  # 4 standard deviations of 10,000 draws
    assert_close(y[y != 0], np.full((y != 0).sum(), 3 / 0.7), 1e-12)
    dy = np.random.default_rng(1).standard_normal(x.shape)
    assert_close(K.dropout_backward(dy, cache), dy * (y / 3), 1e-12)
    same, _ = K.dropout_forward(x, p=0.3, generator=np.random.default_rng(0))
    np.testing.assert_array_equal(y, same)
    assert (K.dropout_forward(x, p=1.0, generator=np.random.default_rng(0))[0] == 0).all()


def kernel_functions():
    return {name: getattr(K, name) for name in K.__all__}


def test_every_kernel_is_in_the_table():
    known = {o.forward for o in OPERATIONS} | {o.backward for o in OPERATIONS}
    for name, function in kernel_functions().items():
        if name.endswith(("_forward", "_backward")) and name.rsplit("_", 1)[0] not in ELSEWHERE:
            assert function in known, f"{name} has no row in operations.py"


#: A field that says that there is nothing to say.
EMPTY_FIELD = re.compile(r"\b[A-Z][a-z]+: *(nothing|any)?[.;]? *$|: none\b", re.MULTILINE)


@pytest.mark.parametrize("name", K.__all__)
def test_docstrings_say_what_a_reader_needs_and_nothing_empty(name):
    """Shapes, a formula or a sentence, and where it is from; a gradient has the shape of what it is the gradient of."""
    function = kernel_functions()[name]
    text = inspect.getdoc(function)
    first = text.splitlines()[0]
    assert first.endswith((".", ":")) or "." in first
    assert "Formula:" in text or " = " in text or len(first.split()) >= 5, f"{name}: no formula and no sentence"
    if not name.endswith("_backward"):
        assert "Shapes:" in text or "element by element" in text, f"{name}: no shapes"
        assert "Source:" in text, f"{name}: no source"
    empty = EMPTY_FIELD.search(text)
    assert not empty, f"{name}: an empty field, {empty.group(0)!r}"
    assert len(text.splitlines()) <= 12, f"{name}: a docstring longer than the kernel"
