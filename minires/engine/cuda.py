"""The GPU, under torch.cuda's names."""

from __future__ import annotations

import importlib

from minires.kernels.backend import cuda_problem


def is_available() -> bool:
    """Whether ``"cuda"`` can be used here; ``minires.cuda_problem()`` says why not. Source: torch.cuda.is_available."""
    return cuda_problem() is None


def device_count() -> int:
    """How many GPUs MiniRes can use: one or none. Source: torch.cuda.device_count."""
    return 1 if is_available() else 0


def synchronize() -> None:
    """Wait until the GPU has done all that was asked of it: before looking at a clock.

    Errors: RuntimeError where there is no GPU.
    Source: torch.cuda.synchronize.
    """
    problem = cuda_problem()
    if problem is not None:
        raise RuntimeError(f'device "cuda" is not available: {problem}')
    importlib.import_module("cupy").cuda.Device().synchronize()


def share_devices(number: int) -> None:
    """Work on GPU number % count from now on: so the processes of a machine share its GPUs.

    Errors: ImportError where there is no CuPy, and CuPy's own where there is no GPU.
    Source: cupy.cuda.Device.use.
    """
    count = importlib.import_module("cupy").cuda.runtime.getDeviceCount()
    importlib.import_module("cupy").cuda.Device(number % count).use()
