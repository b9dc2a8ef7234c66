"""A check: a process of its own, a time limit, and what came back, whatever happened inside.

Outside, ``check`` starts the process, waits, and reads the result file. Inside, ``main`` loads the student's file and
runs the stages; the process may be lost at any moment, so what is known so far stands in the result file after every
stage, with the name of the stage that is running.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import minires
from minires.exercises.compare import Failed
from minires.exercises.stages import STAGES, Skipped, Submission, prepare
from minires.exercises.table import Exercise, find, load_course, stage_names

TIME_LIMIT = 30.0  # seconds
PRINTED = 4000  # characters that are kept of what a student's code prints

#: The current directory stays off the path: a student's random.py is not to be taken for Python's.
START = "import sys; sys.path[0] = sys.argv[1]; from minires.exercises.process import main; main(*sys.argv[2:])"


# ---- outside


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
        status, printed = run_process(command, path.parent, time_limit)
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


def run_process(command: list[str], folder: Path, time_limit: float) -> tuple[str, str]:
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


# ---- inside


def main(name: str, file: str, result_file: str, course: str, limit: str) -> None:
    """What the process of a check runs."""
    if hasattr(signal, "alarm"):
        signal.alarm(int(float(limit)) + 5)  # where the outside was lost and cannot stop this process any more
    path = Path(file).resolve()
    exercise = find(name, load_course(course))

    def save(result: dict[str, Any]) -> None:
        Path(result_file + ".new").write_text(json.dumps(result), encoding="utf-8")
        os.replace(result_file + ".new", result_file)

    run_stages(exercise, path, save)


def run_stages(exercise: Exercise, path: Path, save: Callable[[dict[str, Any]], None]) -> None:
    """Check a file, and hand the result to ``save`` after every step."""
    references, losses = prepare(exercise)
    result: dict[str, Any] = {"stages": [], "running": "file"}
    save(result)
    functions: dict[str, Callable] = {}
    outcome = run_stage(path, lambda: functions.update(load_student(path, exercise)))
    result["stages"].append({"name": "file", **outcome})
    submission = Submission(exercise, functions, references, losses)
    for name in stage_names(exercise)[1:]:
        if outcome["status"] == "failed":
            break
        result["running"] = name
        save(result)
        outcome = run_stage(path, STAGES[name], submission)
        result["stages"].append({"name": name, **outcome})
    result["running"] = None
    save(result)


def run_stage(path: Path, stage: Callable[..., Any], *given: Any) -> dict[str, str]:
    """Run one stage, whatever it raises: its status, code and message."""
    try:
        stage(*given)
    except Failed as failure:
        return {"status": "failed", "code": failure.code, "message": str(failure)}
    except Skipped as skipped:
        return {"status": "skipped", "code": "", "message": str(skipped)}
    except NotImplementedError as error:
        return {"status": "failed", "code": "not-written", "message": f"not written yet: {error}"}
    except SystemExit as error:
        return {"status": "failed", "code": "crashed", "message": f"your code ends the program{where(error, path)}"}
    except BaseException as error:  # a KeyboardInterrupt too: it is the student's code that raises it
        said = f"{type(error).__name__}: {str(error)[:500]}".removesuffix(": ")
        return {"status": "failed", "code": "crashed", "message": f"{said}{where(error, path)}"}
    return {"status": "passed", "code": "", "message": ""}


def where(error: BaseException, path: Path) -> str:
    """Line and code of the student's file that an exception came through last; nothing where it did not."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f" (line {frames[-1].lineno}: {frames[-1].line})" if frames else ""


def load_student(path: Path, exercise: Exercise) -> dict[str, Callable]:
    """The student's functions by name.

    Errors: Failed for a file that is no Python, or lacks a function.
    """
    sys.path.append(str(path.parent))  # a student may split the work over several files
    try:
        spec = importlib.util.spec_from_file_location("exercise_" + exercise.name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        data = path.read_bytes()
        parsed(data)
        code = compile(data, str(path), "exec")
    except SyntaxError as error:  # what is Python by its form, and a return outside of a function all the same
        raise Failed("file", f"line {error.lineno} is not Python ({error.msg}): {(error.text or '').strip()}") from None
    except ValueError as error:
        raise Failed("file", str(error)) from None
    exec(code, module.__dict__)  # never a .pyc of an older file
    functions = {}
    for shipped in exercise.functions:
        name = shipped.__name__
        if not callable(getattr(module, name, None)):
            said = getattr(module, "EXERCISE", exercise.name)
            other = f": its line EXERCISE says that this is {said!r}" if said != exercise.name else ""
            raise Failed("file", f"expected a function called {name}, and there is none{other}")
        functions[name] = getattr(module, name)
    return functions


def parsed(data: bytes) -> ast.Module:
    """The syntax tree of a file's contents.

    Errors: ValueError that names the line, for what is not Python or not text.
    """
    try:
        return ast.parse(data)
    except (SyntaxError, ValueError) as error:
        raise ValueError(problem(data, error)) from None
    except (RecursionError, MemoryError):
        raise ValueError("is not Python that can be read: it is nested too deeply") from None


def problem(data: bytes, error: Exception) -> str:
    """A sentence about the first line that is not Python."""
    if b"\0" in data:
        return f"line {line_of(data, data.index(0))} is not Python (it holds a null byte)"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as undecodable:
        if not getattr(error, "lineno", None) or "codec" in str(error) or "UTF-8" in str(error):
            return f"line {line_of(data, undecodable.start)} is not text in UTF-8"
    message, text = getattr(error, "msg", str(error)), getattr(error, "text", None) or ""
    line = f"line {error.lineno}" if getattr(error, "lineno", None) else "the file"
    return f"{line} is not Python ({message})" + (f": {text.strip()}" if text.strip() else "")


def line_of(data: bytes, place: int) -> int:
    """The number of the line, counted from 1, that holds a byte."""
    return data.count(b"\n", 0, place) + 1
