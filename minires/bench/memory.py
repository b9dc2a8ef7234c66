"""Peak memory of a step above the idle process, each side in a fresh process of its own.

``python -m minires.bench.memory SIDE THREADS NETWORK`` is that process: it imports, builds network and batch, notes how
much memory is resident, makes two steps (the first of SGD makes the velocities) and prints the peak above that.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from minires.bench.networks import NETWORKS, Network, minires_step, pytorch_step
from minires.bench.timing import Work, limited_to, load_pytorch

STEPS = 2


def status_bytes(field: str) -> int:
    """A field of Linux's /proc/self/status, such as VmRSS, in bytes.

    Errors: OSError where there is no such file, ValueError where it has no such field.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise ValueError(f"/proc/self/status has no {field}")


def highest_bytes() -> int | None:
    """The most memory that this process ever held, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else 1024 * highest


def give_back_freed_memory() -> None:
    """Objects without owners, and (with Linux's C library) pages that the process keeps for later allocations.

    Building a network leaves such pages; steps would fill them first, and seem to need that much less.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library
        pass


def peak_above_idle(work: Callable[[], object]) -> int | None:
    """By how many bytes this process grew at most while work() ran; None where the system does not tell.

    Linux forgets the peak so far when asked to. Elsewhere the peak of the whole process is what there is, and growth
    below an earlier peak goes unnoticed: the less was done before, the better.
    """
    give_back_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident now
        idle = status_bytes("VmRSS")
        work()
        return max(status_bytes("VmHWM") - idle, 0)
    except (OSError, ValueError):  # not Linux, or a container that hides this
        before = highest_bytes()
        work()
        after = highest_bytes()
        return None if before is None or after is None else after - before


def repeated(step: Work) -> None:
    """A few steps, each forgotten before the next."""
    for _ in range(STEPS):
        step()


def measure(side: str, network: Network, threads: int) -> int | None:
    """Peak memory of one side's steps above idle, in bytes, from a process of its own; None where it cannot be told.

    Errors: RuntimeError where that process fails, with the last line that it printed.
    """
    command = [sys.executable, "-m", "minires.bench.memory", side, str(threads), network.name]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode != 0:
        last = (found.stderr.strip().splitlines() or [f"exit status {found.returncode}"])[-1]
        raise RuntimeError(f"memory of {network.name}: the process of {side} failed: {last}")
    return json.loads(found.stdout.splitlines()[-1])


def main(side: str, threads: str, name: str) -> None:
    """What the fresh process does; that of MiniRes does not load PyTorch."""
    network = next(network for network in NETWORKS if network.name == name)
    pytorch = load_pytorch() if side == "pytorch" else None
    with limited_to(int(threads), pytorch):
        step = pytorch_step(network, pytorch) if pytorch else minires_step(network)
        print(json.dumps(peak_above_idle(partial(repeated, step))))


if __name__ == "__main__":
    main(*sys.argv[1:])
