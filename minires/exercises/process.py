"""The outside of a check: a process of its own, a time limit, and what came back, whatever happened inside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple

import minires
from minires.exercises.table import Exercise, stage_names

TIME_LIMIT = 30.0  # seconds
PRINTED = 4000  # characters that are kept of what a student's code prints

#: The current directory stays off the path: a student's random.py is not to be taken for Python's.
START = "import sys; sys.path[0] = sys.argv[1]; from minires.exercises.runner import main; main(*sys.argv[2:])"


class Stage(NamedTuple):
    """How one stage ended: "passed", "failed", "skipped" (nothing to check) or "not run"."""

    name: str
    status: str
    code: str = ""
    message: str = ""


class Result(NamedTuple):
    """A checked file."""

    exercise: str
    path: str
    stages: list[Stage]
    printed: str
    course: str = ""  # the file that the exercise is from, if it is not MiniRes's own

    @property
    def passed(self) -> bool:
        """Whether no stage failed."""
        return all(stage.status in ("passed", "skipped") for stage in self.stages)

    @property
    def failure(self) -> Stage | None:
        """The stage that failed; None where none did."""
        return next((stage for stage in self.stages if stage.status == "failed"), None)


def check(exercise: Exercise, file: str, time_limit: float = TIME_LIMIT, course: str = "") -> Result:
    """Check a student's file in a process of its own.

    Args: time_limit, in seconds, for the whole check; course, the file that the exercise is from, if it is not
        MiniRes's own.
    Errors: FileNotFoundError where there is no such file; ValueError for a time limit that is not positive.
    """
    path = Path(file).resolve()
    if not path.is_file():
        raise FileNotFoundError(2, "there is no such file", file)
    if not time_limit > 0:
        raise ValueError(f"--time-limit must be positive, got {time_limit}")
    with tempfile.TemporaryDirectory() as folder:
        result_file = Path(folder) / "result.json"
        package = str(Path(minires.__file__).resolve().parent.parent)
        source = str(Path(course).resolve()) if course else ""
        command = [
            sys.executable,
            "-c",
            START,
            package,
            exercise.name,
            str(path),
            str(result_file),
            source,
            str(min(time_limit, 1e6)),
        ]
        status, printed = run(command, path.parent, time_limit)
        known: dict[str, Any] = {"stages": [], "running": "file"}
        if result_file.exists():
            known = json.loads(result_file.read_text(encoding="utf-8"))
        elif status != "time":
            raise RuntimeError(f"the check of {exercise.name} did not begin:\n{printed}")
    stages = [Stage(**stage) for stage in known["stages"]]
    if known["running"] is not None:
        stages.append(lost(known["running"], status, time_limit))
    names = stage_names(exercise)
    stages += [Stage(name, "not run") for name in names[len(stages) :]]
    return Result(exercise.name, file, stages, printed, course)


def lost(stage: str, status: str, time_limit: float) -> Stage:
    """The stage in which the process was lost."""
    if status == "time":
        return Stage(stage, "failed", "time-limit", f"not done after {time_limit:g} seconds: does a loop never end?")
    return Stage(stage, "failed", "crashed", f"your code ended the Python process ({status})")


def run(command: list[str], folder: Path, time_limit: float) -> tuple[str, str]:
    """Run a command, and stop it with all that it started when its time is up.

    Returns: "time", or how the process ended; and the beginning of what it printed.
    """
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "MPLBACKEND": "Agg"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    kept: list[bytes] = []
    reader = threading.Thread(target=keep_beginning, args=(process, kept), daemon=True)
    reader.start()
    try:
        code = process.wait(time_limit)
        ended = f"exit status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
    except subprocess.TimeoutExpired:
        ended = "time"
    finally:
        stop(process)
    reader.join(5)
    text = b"".join(kept).decode("utf-8", "replace")
    return ended, text if len(text) <= PRINTED else f"{text[:PRINTED]}\n... and more"


def keep_beginning(process: subprocess.Popen, kept: list[bytes]) -> None:
    """Read all that a process prints, and keep the beginning of it."""
    size = 0
    while chunk := process.stdout.read1(65536):
        if size <= PRINTED:
            kept.append(chunk)
            size += len(chunk)


def stop(process: subprocess.Popen) -> None:
    """End a process, and on POSIX whatever it started."""
    try:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except (ProcessLookupError, PermissionError):
        pass  # nothing is left of it
    process.wait()
