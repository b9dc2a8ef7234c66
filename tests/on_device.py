"""What the device tests share: there and back, a comparison with the host, and counts of what crosses between them.

The tests say "cuda" and never ask what answers: strict_cupy.py, or with ``pytest --device cuda`` CuPy itself, on a GPU
or in host memory (test_cupy_on_cpu.py).
"""

import sys
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pytest
from closeness import assert_close

from minires.engine.tensor import Tensor
from minires.kernels.backend import device_of, to_device, to_numpy

FLOAT32, FLOAT64 = np.dtype("float32"), np.dtype("float64")


def thorough(*values):
    """A parameter that a slow stand-in leaves out: pytest -m "not thorough"."""
    return pytest.param(*values, marks=pytest.mark.thorough)


def there(value):
    """Arrays and Tensors moved to the device, also those inside tuples, lists and dicts."""
    if isinstance(value, np.ndarray):
        return to_device(value, "cuda")
    if isinstance(value, Tensor):
        return value.to("cuda")
    if isinstance(value, dict):
        return {name: there(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(there(part) for part in value)
    return value


def back(value, what="the result"):
    """A device array or Tensor as a NumPy array; it must really lie on the device."""
    array = value.array if isinstance(value, Tensor) else value
    assert device_of(array) == "cuda", f"{what} is not on the device"
    return to_numpy(array)


def assert_same(device, host, tolerance, what="the result"):
    """Fail unless both sides hold the same: on the device, of one dtype, and equal within the tolerance."""
    if isinstance(host, (tuple, list)):
        assert type(device) is type(host) and len(device) == len(host), f"{what}: {device} is not like {host}"
        for i, (one, other) in enumerate(zip(device, host, strict=True)):
            assert_same(one, other, tolerance, f"{what}, part {i}")
    elif isinstance(host, (Tensor, np.ndarray, np.generic)):
        expected = host.array if isinstance(host, Tensor) else np.asarray(host)
        found = back(device, what)
        assert found.dtype == expected.dtype, f"{what}: {found.dtype}, on the host {expected.dtype}"
        assert_close(found, expected, tolerance, what)
    else:
        assert type(device) is type(host), f"{what}: {type(device).__name__}, on the host {type(host).__name__}"
        same = device == pytest.approx(host, rel=tolerance) if isinstance(host, float) else device == host
        assert same, f"{what}: {device!r}, on the host {host!r}"


class Counts(NamedTuple):
    """What the host asked of the device."""

    launches: int
    uploads: int
    waits: int  # for a copy from the device, a value, or all work: on a GPU a copy to the host is always a wait


def counters():
    """What has been counted so far, None where nothing counts: a real GPU."""
    emulated = sys.modules.get("cupy_on_cpu")
    if emulated is not None:
        C = emulated.C
        return Counts(C["launch"], C["H2D"], max(C["D2H"], C["sync"]))
    strict = sys.modules.get("strict_cupy")
    if strict is None or sys.modules.get("cupy") is not strict.module:
        return None
    C = strict.counts
    return Counts(C.launches, C.uploads, C.downloads + C.waits)


@contextmanager
def counting():
    """``with counting() as seen: ...`` and then ``seen[0]``, the Counts of what happened inside."""
    before = counters()
    if before is None:
        pytest.skip("a real GPU does not count its copies and waits")
    seen = []
    yield seen
    seen.append(Counts(*[after - one for after, one in zip(counters(), before, strict=True)]))
