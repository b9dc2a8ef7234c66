"""How the tests compare numbers."""

import numpy as np


def error(actual, expected):
    """The largest difference, in units of the largest expected value (at least 1e-30)."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    if expected.size == 0:
        return 0.0
    assert np.array_equal(np.isnan(actual), np.isnan(expected)), "NaN in different places"
    finite = np.isfinite(expected)
    assert np.array_equal(actual[~finite & ~np.isnan(expected)], expected[~finite & ~np.isnan(expected)])
    if not finite.any():
        return 0.0
    scale = max(np.abs(expected[finite]).max(), 1e-30)
    return float(np.abs(actual[finite].astype(np.float64) - expected[finite]).max() / scale)


def assert_close(actual, expected, tolerance, what=""):
    """Fail where the relative error of two arrays, by norm, is above the tolerance."""
    found = error(actual, expected)
    assert found <= tolerance, f"{what}: relative error {found:.3g}, allowed {tolerance:.3g}"


def numeric_gradient(function, arrays, i, dy, step=1e-5):
    """Central differences of sum(dy * function(*arrays)) with respect to every entry of arrays[i]."""
    gradient = np.zeros_like(arrays[i])
    for index in np.ndindex(arrays[i].shape):
        values = []
        for sign in (1, -1):
            moved = [a.copy() for a in arrays]
            moved[i][index] += sign * step
            values.append((function(*moved) * dy).sum())
        gradient[index] = (values[0] - values[1]) / (2 * step)
    return gradient
