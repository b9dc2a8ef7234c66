"""How many threads both sides may use, and what they run on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

import minires
from minires.train.launch import processors


def check_threads(threads: int) -> None:
    """Errors: ValueError for fewer threads than one, or more than there are processors to run them."""
    if not 1 <= threads <= processors():
        raise ValueError(
            f"--threads must be between 1 and {processors()}, the number of processors here, got {threads}"
        )


@contextmanager
def limited_to(threads: int, pytorch: ModuleType | None) -> Iterator[None]:
    """Both sides get the same number of threads; afterwards each has what it had before.

    PyTorch's side is loaded before, if at all: the limits reach only libraries that are there.
    """
    from threadpoolctl import threadpool_limits

    before = pytorch.torch.get_num_threads() if pytorch else None
    with threadpool_limits(threads):
        if pytorch:
            pytorch.torch.set_num_threads(threads)
        try:
            yield
        finally:
            if pytorch:
                pytorch.torch.set_num_threads(before)


def numpys_blas() -> dict[str, Any] | None:
    """What threadpoolctl knows about the library of NumPy's matrix products; None where it knows nothing."""
    from threadpoolctl import threadpool_info

    found = [library for library in threadpool_info() if library["user_api"] == "blas"]
    numpys = [library for library in found if "numpy" in library["filepath"]]  # SciPy brings one of its own
    return (numpys or found or [None])[0]


def describe_system(threads: int, pytorch: ModuleType | None) -> dict[str, Any]:
    """What the figures depend on, to be asked for inside limited_to()."""
    blas = numpys_blas()
    return {
        "processors": os.cpu_count(),
        "minires": minires.__version__,
        "numpy": np.__version__,
        "blas": f"{blas['internal_api']} {blas['version']}" if blas else "unknown BLAS",
        "blas_architecture": blas.get("architecture") if blas else None,
        "blas_threads": blas["num_threads"] if blas else None,
        "torch": str(pytorch.torch.__version__) if pytorch else None,
        "torch_threads": pytorch.torch.get_num_threads() if pytorch else None,
        "threads": threads,
    }
