"""Every operation beside PyTorch itself, on shapes that hypothesis draws."""

import numpy as np
import pytest
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from operations import NAMES, OPERATIONS, as_float32, float32_options, run_kernel, run_torch

torch = pytest.importorskip("torch", reason="PyTorch is not installed: compared with golden files instead")


def compare(operation, arrays, options, dy, tolerance):
    expected, expected_grads = run_torch(operation, arrays, options, dy)
    y, grads = run_kernel(operation, arrays, options, dy)
    assert_close(y, expected, tolerance, "y")
    for i, array in enumerate(arrays):
        if array.dtype.kind == "f":
            assert_close(grads[i], expected_grads[i], tolerance, f"gradient {i}")
            assert grads[i].dtype == array.dtype
        else:
            assert grads[i] is None


@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
@settings(max_examples=60)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_equals_pytorch(operation, data, seed):
    rng = np.random.default_rng(seed)
    arrays, options = operation.sample(lambda low, high: data.draw(st.integers(low, high)), rng)
    y, _ = operation.forward(*arrays, **options)
    dy = rng.standard_normal(np.shape(y))
    compare(operation, arrays, options, dy, 1e-10)
    if operation.name != "convert":
        small = as_float32(arrays)
        compare(operation, small, float32_options(options), dy.astype(np.float32), 1e-5)
