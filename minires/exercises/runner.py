"""The inside of a check: load the student's file and run the stages, in a process that may be lost at any moment.

What is known so far stands in the result file after every stage, with the name of the stage that is running.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from minires.exercises.compare import Failed
from minires.exercises.course import load_course
from minires.exercises.readable import parsed
from minires.exercises.stages import STAGES, Skipped, Submission, prepare
from minires.exercises.table import Exercise, find, stage_names
from minires.exercises.training import installed


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


def where(error: BaseException, path: Path) -> str:
    """Line and code of the student's file that an exception came through last; nothing where it did not."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f" (line {frames[-1].lineno}: {frames[-1].line})" if frames else ""


def run_stage(stage: Callable[[], Any], path: Path) -> dict[str, str]:
    """Run one stage, whatever it raises: its status, code and message."""
    try:
        stage()
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


def run(exercise: Exercise, path: Path, save: Callable[[dict[str, Any]], None]) -> None:
    """Check a file, and hand the result to ``save`` after every step."""
    references, losses = prepare(exercise)
    result: dict[str, Any] = {"stages": [], "running": "file"}
    save(result)
    functions: dict[str, Callable] = {}
    outcome = run_stage(lambda: functions.update(load_student(path, exercise)), path)
    result["stages"].append({"name": "file", **outcome})
    submission = Submission(exercise, functions, references, losses)
    replacements = [(shipped, functions.get(shipped.__name__)) for shipped in exercise.functions]
    used = installed(replacements, exercise.within) if exercise.within and functions else contextlib.nullcontext()
    with used:
        for name in stage_names(exercise)[1:]:
            if outcome["status"] == "failed":
                break
            result["running"] = name
            save(result)
            outcome = run_stage(partial(STAGES[name], submission), path)
            result["stages"].append({"name": name, **outcome})
    result["running"] = None
    save(result)


def main(name: str, file: str, result_file: str, course: str, limit: str) -> None:
    """What the process of a check runs."""
    if hasattr(signal, "alarm"):
        signal.alarm(int(float(limit)) + 5)  # where the outside was lost and cannot stop this process any more
    path = Path(file).resolve()
    exercise = find(name, load_course(course) if course else None)

    def save(result: dict[str, Any]) -> None:
        Path(result_file + ".new").write_text(json.dumps(result), encoding="utf-8")
        os.replace(result_file + ".new", result_file)

    run(exercise, path, save)
