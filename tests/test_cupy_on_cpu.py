"""The device tests once more, with CuPy itself in place of the stand-in and without a GPU.

cupy_on_cpu.py runs the real CuPy in host memory: its own code unchanged, its GPU kernels compiled by g++. That shows
that MiniRes asks for what CuPy has, gets the right numbers, and is counted as the stand-in counts it. Two processes
share the files. Each new kernel costs a run of g++ and is kept in ~/.cache/cupy_on_cpu (CUPY_ON_CPU_CACHE), for this
place of CuPy: the first run takes a minute or two, later ones a third of that.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
TOOL = ROOT.parent / "shared" / "cupy_on_cpu"
NEEDS = "14.2.0"  # the tool relies on this release's private function table
SECONDS = 900  # until a process that hangs is ended

KERNELS = ["test_device_kernels.py", "test_device_layers.py"]
#: Two processes, of about the same length when nothing is compiled yet.
PARTS = {
    "kernels": KERNELS,
    "networks": sorted({path.name for path in ROOT.glob("tests/test_device_*.py")} - set(KERNELS)),
}


def what_is_missing():
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed: pip install cupy-cuda12x==" + NEEDS
    try:
        version = importlib.metadata.version("cupy-cuda12x")
    except importlib.metadata.PackageNotFoundError:
        version = "of another kind"
    if version != NEEDS:
        return f"this takes cupy-cuda12x=={NEEDS}, installed is {version}"
    if not (TOOL / "cupy_on_cpu.py").exists():
        return "cupy_on_cpu.py, which runs CuPy in host memory, is not beside this checkout"
    return None if shutil.which("g++") else "g++, which compiles CuPy's kernels for the processor, is not installed"


MISSING = what_is_missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(MISSING is not None, reason=str(MISSING))]


def tool_with_precompiled_header():
    """A copy of the tool whose header, which every kernel includes, g++ has read already: half of a kernel's cost.

    It lies in the cache: the place of the header is a part of what a compiled kernel is kept under. g++ takes what it
    has read only where the options are the same, and else reads the header itself.
    """
    cache = Path(os.environ.get("CUPY_ON_CPU_CACHE") or Path.home() / ".cache" / "cupy_on_cpu")
    tool = cache / "tool"
    tool.mkdir(parents=True, exist_ok=True)
    for source in TOOL.iterdir():
        target = tool / source.name
        if source.is_file() and not (target.exists() and target.read_bytes() == source.read_bytes()):
            target.write_bytes(source.read_bytes())
    header, beside = tool / "cuda_on_host.h", tool / f"{os.getpid()}.gch"
    options = "-O1 -fPIC -w -ffp-contract=off -std=c++17 -x c++-header".split()
    subprocess.run(["g++", *options, header, "-o", beside], check=True)
    os.replace(beside, f"{header}.gch")
    return tool


class Run(NamedTuple):
    """A process that runs a part of the device tests, and the file that it writes to."""

    process: subprocess.Popen
    output: Path


def begin(folder):
    """Both processes, under way. conftest.py begins them before the first test: they take minutes, and a core each."""
    if MISSING is not None:
        return {}
    tool = tool_with_precompiled_header()
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    begun = {}
    for name, files in PARTS.items():
        command = [sys.executable, tool / "cupy_on_cpu.py", "-m", "pytest", "--device", "cuda", "-m", "not thorough"]
        command += ["-q", "-p", "no:cacheprovider", "--tb=short", "--color=no", *[f"tests/{file}" for file in files]]
        path = Path(folder) / f"{name}.txt"
        with open(path, "w") as output:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        begun[name] = Run(process, path)
    return begun


@pytest.fixture(scope="module")
def runs(begun):
    """What both processes wrote, by the name of their part: (exit status, text)."""
    found = {}
    for name, run in begun.items():
        found[name] = (run.process.wait(SECONDS), run.output.read_text())
    return found


@pytest.mark.parametrize("name", PARTS)
def test_the_device_tests_pass_with_cupy_itself(runs, notes, name):
    status, text = runs[name]
    lines = text.strip().splitlines()
    kept = [line for line in lines if "on the device" in line or "in host memory" in line]
    notes.append(f"CuPy itself, {name}: {lines[-1]}")
    notes.extend(f"    {line}" for line in kept)
    assert status == 0, text[-20000:]
    passed = re.search(r"(\d+) passed", lines[-1])
    assert passed and int(passed[1]) >= 50 and "skipped" not in lines[-1], lines[-1]


def test_the_stand_in_counts_as_cupy_does(runs):
    """A training step of ResNet-20, counted by both. The stand-in counts matrix products too, CuPy leaves them to
    cuBLAS: about every seventh launch."""
    import strict_cupy
    from test_device_training import counted_training_step

    found = re.search(r"(\d+) launches, (\d+) uploads, (\d+) waits", runs["networks"][1])
    launches, *others = (int(number) for number in found.groups())
    with strict_cupy.installed():
        counts = counted_training_step()
    assert [counts.uploads, counts.waits] == others
    assert launches <= counts.launches <= 1.3 * launches
