"""The processes of a run over MPI: how many a launcher started, whether they agree, and how they end.

A single process never imports mpi4py. What the workers compute together is in parallel.py.
"""

from __future__ import annotations

import atexit
import faulthandler
import functools
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np

import minires
from minires.engine import cuda
from minires.kernels.backend import Array, array_module, to_numpy

#: Where launchers leave the number of processes and that of this one: MPICH and its kin, Open MPI, MVAPICH, Slurm.
LAUNCHERS = [
    ("PMI_SIZE", "PMI_RANK"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
]
PATIENCE = 2.0  # seconds, for a worker that may come a little later
START = 300  # seconds, for all processes to start MPI: it waits for one that has failed before as long as it is let


def launched() -> tuple[int, int]:
    """The number of this process, and how many there are, as the launcher says; (0, 1) without a launcher."""
    for size, rank in LAUNCHERS:
        if os.environ.get(size, "").isdecimal() and os.environ.get(rank, "").isdecimal():
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


@contextmanager
def quiet() -> Iterator[None]:
    """What every worker would print, the first prints alone."""
    if launched()[0] == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


@functools.cache
def communicator() -> Any:
    """The workers as mpi4py's communicator; None for a single process.

    From here on an exception that nobody catches ends all of them.
    Errors: RuntimeError where a launcher started several processes and mpi4py is missing, or sees another number;
        ValueError where they run different versions.
    """
    size = launched()[1]
    if size == 1 and "mpi4py.MPI" not in sys.modules:
        return None
    if size > 1:
        faulthandler.dump_traceback_later(START, exit=True)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(
            f"a launcher started {size} processes, and mpi4py cannot be used ({str(error).splitlines()[0]}): "
            'pip install "minires[mpi]", or start one process'
        ) from error
    finally:
        if size > 1:
            faulthandler.cancel_dump_traceback_later()
    if MPI.COMM_WORLD.size != size > 1:
        raise RuntimeError(
            f"the launcher started {size} processes, and the MPI of mpi4py sees {MPI.COMM_WORLD.size}: they belong to "
            f"two kinds of MPI. mpi4py uses {MPI.Get_library_version().splitlines()[0].strip()}: start with its mpiexec"
        )
    if MPI.COMM_WORLD.size == 1:
        return None
    ending()
    sys.excepthook = end_all
    atexit.register(leave)
    versions = {"MiniRes": minires.__version__, "NumPy": np.__version__, "Python": sys.version.split()[0]}
    check_same(versions, MPI.COMM_WORLD)
    for made_together in (node, gradients):  # now: later, some might wait here for others who wait for something else
        made_together()
    return MPI.COMM_WORLD.Dup()


def group() -> Any:
    """The workers that this one computes with; None for a single process, and inside ``alone``."""
    return None if separate[0] else communicator()


@functools.cache
def ending() -> Any:
    """A communicator of its own for the end: whatever else is under way does not meet it."""
    from mpi4py import MPI

    return MPI.COMM_WORLD.Dup()


@functools.cache
def node() -> tuple[int, int]:
    """The number of this worker on its machine, and how many workers are there."""
    from mpi4py import MPI

    here = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    return here.rank, here.size


@functools.cache
def gradients() -> Any:
    """A communicator for gradients alone.

    MPI pairs sums by their order in a communicator, and where workers use other parameters, their gradients come before
    a sum of synchronised batch norm on one and after it on another.
    """
    from mpi4py import MPI

    return MPI.COMM_WORLD.Dup()


@functools.cache
def takes_device_memory() -> bool:
    """Whether this MPI takes buffers in GPU memory ("CUDA-aware"), as far as it says so.

    Source: MPI 4.1, mpi_memory_alloc_kinds; Open MPI's own parameter.
    """
    kinds = communicator().Get_info().Get("mpi_memory_alloc_kinds") or ""
    return "cuda" in kinds or os.environ.get("OMPI_MCA_opal_cuda_support") == "true"


def message(x: Array) -> Array:
    """An array as MPI takes it: in one piece, finished, and on the host unless this MPI reads GPU memory."""
    xp = array_module(x)
    if xp is np or not takes_device_memory():
        return np.ascontiguousarray(to_numpy(x))
    cuda.synchronize()  # MPI knows nothing of the GPU's queue
    return xp.ascontiguousarray(x)


def choose_gpu() -> None:
    """Each worker of a machine takes another GPU, as far as there are any."""
    cuda.share_devices(node()[0])


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores() -> int | None:
    """How many of this machine's cores are for this worker; None where it is the only one."""
    if communicator() is None:
        return None
    return max(1, min(processors(), (os.cpu_count() or 1) // node()[1]))


# ---- Time -----------------------------------------------------------------------------------------------------------

spent = [0.0]  # seconds


@contextmanager
def clock() -> Iterator[None]:
    """The time inside counts as communication."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        spent[0] += time.perf_counter() - begin


def wait(requests: list[Any]) -> None:
    """Wait until communication that was begun is done; whoever else wants this core has it meanwhile.

    It ends all workers where one has left that this one waits for.
    """
    from mpi4py import MPI

    status, since = MPI.Status(), 0.0
    with clock():
        while not MPI.Request.Testall(requests):
            time.sleep(0)
            if ending().Iprobe(status=status):
                since = since or time.monotonic()
                if time.monotonic() - since > PATIENCE:  # it has left, and what it sent before has had its time
                    end_without(status.source)


def seconds() -> float:
    """How many seconds this worker has spent in communication so far, waiting for slower workers included."""
    return spent[0]


separate = [False]  # whether inside alone()


@contextmanager
def alone(really: bool = True) -> Iterator[None]:
    """Inside, this worker computes as if there were no others: it is rank 0 of 1, and nothing here asks them."""
    before, separate[0] = separate[0], really or separate[0]
    try:
        yield
    finally:
        separate[0] = before


# ---- Agreement ------------------------------------------------------------------------------------------------------


def first(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function on rank 0 alone, while the others wait. All get what it returns, or raise what it raises."""
    comm = group()
    return function(*arguments) if comm is None else first_of(comm, function, *arguments)


def first_of(comm: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """``first``, for the workers of a communicator."""
    result, error = None, None
    if comm.rank == 0:
        try:
            result = function(*arguments)
        except Exception as raised:
            error = raised
    wait([comm.Ibarrier()])
    others, failed = comm.bcast((result, None if error is None else to_send(error)))
    if failed is not None:
        raise failed if error is None else error
    return result if comm.rank == 0 else others


def to_send(error: Exception) -> Exception:
    """An exception as the others can get it: one that holds a file, say, in words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def gathered(value: Any) -> list[Any]:
    """What each worker gave, on all of them."""
    comm = group()
    if comm is None:
        return [value]
    wait([comm.Ibarrier()])
    return comm.allgather(value)


def check_same(facts: Mapping[str, Any], comm: Any = None) -> None:
    """Errors: ValueError, on every worker, where one of these facts is not the same on all: which, and who has what."""
    comm = group() if comm is None else comm
    if comm is not None:
        wait([comm.Ibarrier()])
        first_of(comm, compare, comm.gather(dict(facts)))


def compare(said: list[dict[str, Any]]) -> None:
    """Errors: ValueError that names what is not the same in these dicts, one of each worker."""
    problems = []
    for name in dict.fromkeys(name for facts in said for name in facts):
        ranks: dict[str, list[str]] = {}
        for rank, facts in enumerate(said):
            ranks.setdefault(str(facts.get(name, "not there")), []).append(str(rank))
        if len(ranks) > 1:
            found = [f"{v} on rank{'s' * (len(who) > 1)} {', '.join(who)}" for v, who in ranks.items()]
            problems.append(f"{name} is {' and '.join(found)}")
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ValueError("the workers are not alike: " + "; ".join(problems[:3]) + more)


# ---- The end --------------------------------------------------------------------------------------------------------


def together() -> bool:
    """Whether every worker has come to its end here, or does so in a moment: what they met, they all met."""
    arrived, begin = ending().Ibarrier(), time.monotonic()
    while not arrived.Test():
        if time.monotonic() - begin > PATIENCE:
            return False
        time.sleep(0.01)
    return True


def end_all(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """sys.excepthook of a worker: say what happened and where, and end all: none waits for one that is gone."""
    comm = ending()
    alike = together()
    if not alike or comm.rank == 0:
        lines = "".join(traceback.format_exception(kind, error, trace))
        print(f"rank {comm.rank} of {comm.size}:\n{lines}", end="", file=sys.stderr, flush=True)
    sys.stdout.flush()
    if not alike:
        comm.Abort(130 if issubclass(kind, KeyboardInterrupt) else 1)


def leave() -> None:
    """At the end of the program: say so to the others, and stay until they are at theirs."""
    from mpi4py import MPI

    if MPI.Is_finalized():
        return
    comm = ending()
    others = [rank for rank in range(comm.size) if rank != comm.rank]
    said = [comm.isend(None, rank) for rank in others]
    for rank in others:
        while not comm.Iprobe(source=rank):
            time.sleep(0.01)
        comm.recv(source=rank)
    for one in said:
        one.wait()


def end_without(gone: int) -> None:
    """End all workers, since one has left that this one waits for."""
    comm = ending()
    words = f"rank {comm.rank} of {comm.size} waits for rank {gone}, whose program is at its end"
    print(f"{words}: does every worker make the same steps?", file=sys.stderr, flush=True)
    comm.Abort(1)


def end_with(words: str, error: BaseException, status: int) -> int:
    """Say once, in words, what ended the command.

    What only one worker met comes with its rank and its traceback, and ends the others too.
    Returns: the exit status, where all workers met it, or there is only one.
    """
    rank, size = launched()
    if communicator.cache_info().currsize == 0 or communicator() is None:  # MPI was not needed yet, or is not there
        if rank == 0:
            print(words, file=sys.stderr)
        return status
    if together():
        if rank == 0:
            print(words, file=sys.stderr)
        return status
    lines = "".join(traceback.format_exception(error))
    print(f"rank {rank} of {size}:\n{lines}{words}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    ending().Abort(status)
    return status
