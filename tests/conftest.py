"""What all tests share: where the device tests run, the notes in the summary, and hypothesis without a deadline."""

import importlib.util
import os
import shutil
import signal
import sys
import tempfile

import lessons
import pytest
import threadpoolctl
from hypothesis import HealthCheck, settings

from minires.kernels.backend import cuda_problem

TORCH = importlib.util.find_spec("torch") is not None

settings.register_profile(
    "minires",
    deadline=None,  # speed lives in a benchmark, not in a test
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.load_profile("minires")

NOTES = pytest.StashKey[list]()
LEFT_OUT = pytest.StashKey[int]()
BEGUN = pytest.StashKey[dict]()
BEGUN_LESSONS = pytest.StashKey[object]()


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        choices=["cuda"],
        help="run the device tests, and only them, on this machine's GPU (without it: everything, and the device tests "
        "on a stand-in for CuPy that needs no GPU)",
    )
    parser.addoption(
        "--slow",
        action="store_true",
        help="run the slow tests, which are left out otherwise: whole trainings, large networks, lessons, CuPy itself",
    )


def pytest_configure(config):
    # One thread, here and in the processes that tests start: others run beside, and threads that wait for each other in
    # small matrix products make a busy machine many times slower.
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    threadpoolctl.threadpool_limits(1)
    # Ignored where the tests run in the background, and then in the processes that they start: some are interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if TORCH:
        import torch

        torch.set_num_threads(1)
    config.stash[NOTES] = []
    config.stash[LEFT_OUT] = 0
    config.addinivalue_line("markers", "slow: left to `pytest --slow`; without it, only what takes a newcomer minutes")
    config.addinivalue_line("markers", "thorough: cases that a slow stand-in for a GPU leaves out")


def pytest_collection_modifyitems(config, items):
    """The quick tests, or with --slow the others; a test that is named by its own name (file::test) runs anyway.

    With --device cuda the device tests alone, on the real CuPy; each says why where there is no GPU.
    """
    if config.getoption("--device") is None:
        items.sort(key=is_last)
        if not any("::" in argument for argument in config.args):
            choose_tier(config, items)
        return
    others = [item for item in items if not item.path.name.startswith("test_device_")]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item.path.name.startswith("test_device_")]
    problem = cuda_problem()
    for item in items:
        if problem is not None:
            item.add_marker(pytest.mark.skip(reason=f"no GPU: {problem}"))


def choose_tier(config, items):
    """Keep the tests of this tier."""
    slow = config.getoption("--slow")
    others = [item for item in items if (item.get_closest_marker("slow") is not None) != slow]
    config.stash[LEFT_OUT] = len(others)
    config.hook.pytest_deselected(items=others)
    left = set(others)
    items[:] = [item for item in items if item not in left]


def is_last(item):
    """What runs beside the other tests, in processes of its own, is asked for at the end."""
    return item.path.name in ("test_cupy_on_cpu.py", "test_tutorials.py")


def pytest_collection_finish(session):
    """Begin what runs beside the other tests."""
    if session.config.option.collectonly:
        return
    cupy = [item for item in session.items if item.path.name == "test_cupy_on_cpu.py"]
    if cupy:
        session.config.stash[BEGUN] = cupy[0].module.begin(tempfile.mkdtemp(prefix="minires-tests-"))
    asked = [item for item in session.items if "begun_lessons" in getattr(item, "fixturenames", ())]
    if asked:
        chosen = dict.fromkeys(item.callspec.params["lesson"] for item in asked)
        session.config.stash[BEGUN_LESSONS] = lessons.Runs(chosen, tempfile.mkdtemp(prefix="minires-lessons-"))


def pytest_unconfigure(config):
    """Nothing goes on after the tests."""
    for run in config.stash.get(BEGUN, {}).values():
        run.process.kill()  # nothing happens to one that has ended
        run.process.wait()
        shutil.rmtree(run.output.parent, ignore_errors=True)
    if BEGUN_LESSONS in config.stash:
        config.stash[BEGUN_LESSONS].end()


@pytest.fixture(scope="session")
def begun(request):
    """What was begun."""
    return request.config.stash[BEGUN]


@pytest.fixture(scope="session")
def begun_lessons(request):
    """The lessons under way."""
    return request.config.stash[BEGUN_LESSONS]


@pytest.fixture
def cuda(request):
    """Something that answers to "cuda": the machine's GPU with --device cuda, else a strict stand-in for CuPy."""
    if request.config.getoption("--device") == "cuda":
        yield
        return
    import strict_cupy

    with strict_cupy.installed():
        yield


@pytest.fixture
def notes(request):
    """Lines for the end of the run's output."""
    return request.config.stash[NOTES]


def real_cupy():
    """What stands behind "cuda" with --device cuda."""
    import cupy

    emulated = sys.modules.get("cupy_on_cpu")
    if emulated is not None:
        return f"CuPy {cupy.__version__} in host memory; g++ compiled {emulated.C['g++']} kernels"
    return f"CuPy {cupy.__version__} on {cupy.cuda.runtime.getDeviceProperties(0)['name'].decode()}"


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[LEFT_OUT] and not config.getoption("--slow"):
        terminalreporter.write_line(
            f"these were the quick tests; `pytest --slow` runs the other {config.stash[LEFT_OUT]}: large networks, "
            "whole trainings, several workers, the lessons, CuPy itself (about ten minutes)"
        )
    if TORCH:
        import torch

        terminalreporter.write_line(f"live comparisons ran against PyTorch {torch.__version__}")
    else:
        terminalreporter.write_line("PyTorch is not installed: live comparisons were skipped, golden files were used")
    if config.getoption("--device") == "cuda":
        problem = cuda_problem()
        said = f"ran with {real_cupy()}" if problem is None else f"were skipped: {problem}"
        terminalreporter.write_line(f"the device tests {said}")
    for line in config.stash[NOTES]:
        terminalreporter.write_line(line)
