"""Synchronised batch norm: workers that are threads, each with its part, against one batch norm of the whole batch."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from minires import kernels as K


class Workers:
    """Threads that work in step: total() is called by all of them, and gives each the sum."""

    def __init__(self, n):
        self.n = n
        self.barrier = threading.Barrier(n)
        self.given = {}

    def run(self, function, parts):
        """function(part, total) of each part, in a thread of its own."""

        def total_of(rank):
            def total(x):
                self.given[rank] = x.copy()
                self.barrier.wait(10)
                result = sum(self.given[other] for other in range(self.n))
                self.barrier.wait(10)
                return result

            return total

        with ThreadPoolExecutor(self.n) as pool:
            return list(pool.map(function, parts, map(total_of, range(self.n))))


def parts(array, ends):
    return np.split(array, ends)


@pytest.mark.parametrize("ends", [[3], [1, 2], [2, 6]], ids=str)
@pytest.mark.parametrize("shape", [(7, 3, 4, 2), (7, 3)], ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_parts_of_any_size_equal_the_whole(ends, shape, affine):
    rng = np.random.default_rng(0)
    x, dy = 3 * rng.standard_normal(shape) + 2, rng.standard_normal(shape)
    gamma, beta = (rng.standard_normal(3), rng.standard_normal(3)) if affine else (None, None)
    y, cache = K.batch_norm_forward(x, gamma, beta, eps=1e-3)
    dx, dgamma, dbeta = K.batch_norm_backward(dy, cache)

    def work(part, total):
        y, cache = K.sync_batch_norm_forward(part[0], gamma, beta, total=total, eps=1e-3)
        return y, cache, K.sync_batch_norm_backward(part[1], cache)

    results = Workers(len(ends) + 1).run(work, list(zip(parts(x, ends), parts(dy, ends), strict=True)))
    np.testing.assert_allclose(np.concatenate([y for y, _, _ in results]), y, rtol=0, atol=1e-13)
    np.testing.assert_allclose(np.concatenate([grads[0] for _, _, grads in results]), dx, rtol=0, atol=1e-13)
    for _, own, _ in results:
        np.testing.assert_allclose(own.mean, cache.mean, rtol=1e-13)
        np.testing.assert_allclose(own.var, cache.var, rtol=1e-13)
        assert own.number == x.size / 3
    for i, whole in ((1, dgamma), (2, dbeta)):
        found = [grads[i] for _, _, grads in results]
        if affine:
            np.testing.assert_allclose(sum(found), whole, rtol=0, atol=1e-13)
        else:
            assert found == [None] * len(results)


def test_one_value_a_channel_in_all_is_refused():
    with pytest.raises(ValueError, match="sync_batch_norm: training needs more than one value a channel"):
        K.sync_batch_norm_forward(np.ones((1, 3)), total=np.copy)
    y, _ = K.sync_batch_norm_forward(np.array([[1.0, 2.0]]), total=lambda a: 2 * a)
    np.testing.assert_allclose(y, 0, atol=1e-12)


def test_float32_stays_float32_and_arguments_are_left_alone():
    x, dy = np.random.default_rng(1).standard_normal((2, 5, 3, 4, 4)).astype(np.float32)
    before = x.copy(), dy.copy()
    y, cache = K.sync_batch_norm_forward(x, total=np.copy)
    dx, *_ = K.sync_batch_norm_backward(dy, cache)
    assert {a.dtype for a in (y, dx, cache.mean, cache.var, cache.inv_std, cache.x_hat)} == {np.dtype("float32")}
    assert (x == before[0]).all() and (dy == before[1]).all()
    whole, plain = K.batch_norm_forward(x)
    np.testing.assert_allclose(y, whole, atol=1e-6)
    np.testing.assert_allclose(dx, K.batch_norm_backward(dy, plain)[0], atol=1e-6)
