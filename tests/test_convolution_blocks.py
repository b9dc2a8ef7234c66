"""How a convolution is cut into products changes its speed and nothing else: every way of cutting gives one result."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minires.kernels import conv2d_loops
from minires.kernels.fast import convolution
from minires.kernels.fast.convolution import conv2d_backward, conv2d_forward, conv2d_plan
from minires.kernels.shapes import conv2d_size


def never(xp):
    return False


NEVER = {"ROW_PIXELS": 10**9}
ALWAYS = {"ROW_PIXELS": 1, "ROW_WEIGHTS": 10**9}
WAYS = {
    "by pixels, whole": {**NEVER, "PIXEL_COLUMNS": 10**9},
    "by pixels, one output row a block": {**NEVER, "PIXEL_COLUMNS": 1},
    "by pixels, some output rows a block": {**NEVER, "PIXEL_COLUMNS": 40},
    "by pixels, as on a GPU": {"blocks_pay": never},
    "by pixels, as on a GPU with little memory": {"blocks_pay": never, "WHOLE": 1},
    "by rows, whole": {**ALWAYS, "SMALL_PRODUCT": 0, "COLUMNS": 10**9, "ROW_BLOCK": 10**9},
    "by rows, some rows a block": {**ALWAYS, "SMALL_PRODUCT": 0, "COLUMNS": 10**9, "ROW_BLOCK": 1},
    "by rows, parts of a row": {**ALWAYS, "FEW": 1, "SMALL_PRODUCT": 0, "COLUMNS": 8, "ROW_BLOCK": 10**9},
    "by rows, small products": {**ALWAYS, "SMALL_PRODUCT": 10**9, "FEW": 1, "ROW_BLOCK": 1},
    "by rows, one pixel of some images": {**ALWAYS, "FEW": 1, "SMALL_PRODUCT": 0, "COLUMNS": 2, "ROW_BLOCK": 1},
}

CASES = {
    "plain": ((3, 4, 9, 7), (6, 4, 3, 3), {"padding": 1}),
    "no padding": ((3, 4, 9, 8), (6, 4, 3, 3), {}),
    "stride": ((3, 4, 10, 9), (6, 4, 3, 3), {"stride": 2, "padding": 1}),
    "strides and paddings that differ": ((2, 2, 11, 13), (4, 2, 3, 5), {"stride": (3, 2), "padding": (2, 1)}),
    "stride over the kernel": ((2, 3, 9, 9), (4, 3, 2, 2), {"stride": 3}),
    "dilated columns": ((3, 2, 8, 11), (3, 2, 3, 3), {"dilation": (1, 3), "padding": (1, 3)}),
    "dilated rows": ((3, 2, 11, 8), (3, 2, 3, 3), {"dilation": (2, 1), "padding": (2, 1)}),
    "groups": ((3, 6, 8, 7), (4, 3, 3, 3), {"groups": 2, "padding": 1}),
    "depthwise": ((3, 5, 8, 7), (10, 1, 3, 3), {"groups": 5, "padding": 1}),
    "one image": ((1, 3, 12, 10), (4, 3, 3, 3), {"padding": 1}),
    "more padding than kernel": ((2, 3, 4, 5), (4, 3, 2, 3), {"padding": (3, 4)}),
    "a window wholly in the padding": ((2, 2, 3, 3), (2, 2, 3, 3), {"padding": 5, "stride": 2}),
    "wide kernel": ((2, 3, 6, 9), (2, 3, 1, 7), {"padding": (0, 3)}),
    "tall kernel": ((2, 3, 9, 6), (2, 3, 7, 1), {"padding": (3, 0)}),
    "1x1": ((3, 4, 6, 5), (7, 4, 1, 1), {}),
    "1x1 with a stride": ((3, 4, 6, 5), (7, 4, 1, 1), {"stride": 2}),
    "1x1 with padding": ((3, 4, 6, 5), (7, 4, 1, 1), {"padding": 1}),
}


def cut(monkeypatch, way):
    for name, value in WAYS[way].items():
        monkeypatch.setattr(convolution, name, value)


def arrays(x_shape, w_shape, options, seed=0):
    rng = np.random.default_rng(seed)
    x, w, b = rng.standard_normal(x_shape), rng.standard_normal(w_shape), rng.standard_normal(w_shape[0])
    size = conv2d_size(
        x,
        w,
        b,
        *(options.get(k, d) for k, d in zip(("stride", "padding", "dilation"), (1, 0, 1), strict=True)),
        options.get("groups", 1),
    )
    return x, w, b, rng.standard_normal((size.N, size.O, size.OH, size.OW)), size


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_every_way_gives_the_definition(case, way, monkeypatch):
    cut(monkeypatch, way)
    x, w, b, dy, _ = arrays(*CASES[case])
    y, cache = conv2d_forward(x, w, b, **CASES[case][2])
    np.testing.assert_allclose(y, conv2d_loops(x, w, b, **CASES[case][2]), rtol=0, atol=1e-12)
    dx, dw, db = conv2d_backward(dy, cache)
    assert dx.shape == x.shape and dw.shape == w.shape
    # The convolution is linear in x and in w, so its gradients are its transposes: <dy, A v> = <A' dy, v> for any v.
    rng = np.random.default_rng(1)
    v, u = rng.standard_normal(x.shape), rng.standard_normal(w.shape)
    options = CASES[case][2]
    np.testing.assert_allclose((dx * v).sum(), (dy * conv2d_loops(v, w, **options)).sum(), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose((dw * u).sum(), (dy * conv2d_loops(x, u, **options)).sum(), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(db, dy.sum((0, 2, 3)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_all_ways_agree_in_every_entry(case, monkeypatch):
    options = CASES[case][2]
    x, w, b, dy, _ = arrays(*CASES[case])
    results = []
    for way in WAYS:
        with monkeypatch.context() as patch:
            cut(patch, way)
            y, cache = conv2d_forward(x, w, b, **options)
            results.append((y, *conv2d_backward(dy, cache)))
            without_dx = conv2d_backward(dy, cache._replace(needs_dx=False))
            assert without_dx[0] is None
            np.testing.assert_allclose(without_dx[1], results[-1][2], rtol=0, atol=1e-11)
    for result, (got, expected) in itertools.product(results[1:], [(i, i) for i in range(4)]):
        np.testing.assert_allclose(result[got], results[0][expected], rtol=0, atol=1e-11)


@pytest.mark.parametrize("itemsize", [4, 8])
def test_the_columns_of_a_block_stay_within_the_limit_of_memory(itemsize, monkeypatch):
    """As on a GPU; a block is at least one output row."""
    monkeypatch.setattr(convolution, "WHOLE", 50_000)
    size = arrays((2, 3, 40, 11), (4, 3, 3, 3), {"padding": 1})[-1]
    a_row = size.C * size.KH * size.KW * size.OW * size.N * itemsize
    rows = [block.oh1 - block.oh0 for block in conv2d_plan(size, itemsize, in_blocks=False).blocks]
    assert sum(rows) == size.OH and max(rows) * a_row <= 50_000 < (max(rows) + 1) * a_row


@pytest.mark.parametrize("way", WAYS)
def test_inputs_stay_as_they_are(way, monkeypatch):
    cut(monkeypatch, way)
    x, w, b, dy, _ = arrays(*CASES["plain"])
    copies = [a.copy() for a in (x, w, b, dy)]
    y, cache = conv2d_forward(x, w, b, padding=1)
    conv2d_backward(dy, cache)
    for array, copy in zip((x, w, b, dy), copies, strict=True):
        assert np.array_equal(array, copy)


#: Sizes of real networks, each cut as the limits say: by rows with small and with wide products, and by pixels.
REAL = {
    "ResNet-20 stage 1": (16, 32, 16, 3, 1, True),
    "ResNet-20 stage 2": (32, 16, 32, 3, 1, True),
    "ResNet-20 stage 3": (64, 8, 64, 3, 1, True),
    "ResNet-20 stage 2, stride": (16, 32, 32, 3, 2, True),
    "ResNet-18 stage 2": (128, 14, 128, 3, 1, True),
    "ResNet-18 stage 4": (512, 4, 512, 3, 1, False),
}


@pytest.mark.parametrize("name", REAL)
def test_real_sizes_as_they_are_cut(name, monkeypatch):
    C, H, O, K, S, expected = REAL[name]
    options = {"stride": S, "padding": K // 2}
    x, w, b, dy, size = arrays((50, C, H, H), (O, C, K, K), options)
    assert conv2d_plan(size, 4).by_rows is expected
    x, w, dy = x.astype(np.float32), w.astype(np.float32), dy.astype(np.float32)
    y, cache = conv2d_forward(x, w, **options)
    gradients = conv2d_backward(dy, cache)
    cut(monkeypatch, "by pixels, whole")
    x, w, dy = x.astype(np.float64), w.astype(np.float64), dy.astype(np.float64)
    y64, cache = conv2d_forward(x, w, **options)
    for got, wanted in zip((y, *gradients[:2]), (y64, *conv2d_backward(dy, cache)[:2]), strict=True):
        assert got.dtype == np.float32
        assert np.abs(got - wanted).max() < 2e-5 * np.abs(wanted).max()


sizes = st.integers(1, 40)


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(sizes, sizes, sizes, sizes, sizes),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([4, 8]),
    st.sampled_from(list(WAYS.values()) + [{}]),
)
def test_blocks_cover_every_output_pixel_once(shape, kernel, stride, itemsize, limits):
    N, C, H, W, O = shape
    x, w = np.broadcast_to(np.float32(0), (N, C, H + 4, W + 4)), np.broadcast_to(np.float32(0), (O, C, *kernel))
    size = conv2d_size(x, w, None, stride, 0, 1, 1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in limits.items():
            patch.setattr(convolution, name, value)
        by_rows, ows, blocks = conv2d_plan(size, itemsize)
    covered = np.zeros((size.OH, N), int)
    for oh0, oh1, n0, n1 in blocks:
        assert 0 <= oh0 < oh1 <= size.OH and 0 <= n0 < n1 <= N
        covered[oh0:oh1, n0:n1] += 1
        # ... and (ow, n) is one axis in memory, or the product would land in a copy
        assert (n1 - n0 == N) or (by_rows and ows == 1)
    assert (covered == 1).all() and size.OW % ows == 0
