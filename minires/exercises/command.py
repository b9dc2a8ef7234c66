"""``minires exercise``: its options, and which function answers each action."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

from minires.exercises.process import TIME_LIMIT

DESCRIPTION = """\
Write the kernels of MiniRes yourself. "start" leaves a file with the steps taken out, "check" says what is right and
what is not, "hint" helps with the mistake that was found, and "solution" shows the shipped code.
"""

EXAMPLES = """\
examples:
  minires exercise list
  minires exercise start batch_norm_backward
  minires exercise check batch_norm_backward
  minires exercise hint batch_norm_backward
  minires exercise solution batch_norm_backward
  minires exercise grade submissions/*.py --json results.json
  minires exercise new > my_exercises.py
  minires exercise start swish --from my_exercises.py
"""

#: Each action, what it does, and its arguments by their place.
ACTIONS = {
    "list": ("the exercises", ()),
    "start": ("write the file of an exercise, with its steps taken out", ("name",)),
    "check": ("check a file; the exit status is 0 where all is right, 1 where it is not", ("name", "file")),
    "hint": ("the next of three hints for what the last check found", ("name", "file")),
    "solution": ("print the shipped code", ("name",)),
    "grade": ("check many files, for a teacher", ("files",)),
    "new": ("print an example: a kernel of one's own as an exercise", ()),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The actions of ``minires exercise`` and their options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for action, (explained, places) in ACTIONS.items():
        one = actions.add_parser(action, help=explained, description=explained)
        if "name" in places:
            one.add_argument("name", metavar="NAME", help="the exercise")
        if "file" in places:
            one.add_argument("file", metavar="FILE", nargs="?", help="the file (default: NAME.py)")
        if "files" in places:
            one.add_argument("files", metavar="FILE", nargs="+", help="files, each with a line EXERCISE = ...")
            one.add_argument("--json", metavar="OUT", help="write Gradescope's results.json to this file")
        if action == "start":
            one.add_argument("--dir", metavar="FOLDER", default=".", help="where to write it (default: here)")
        if action in ("check", "grade"):
            one.add_argument(
                "--time-limit", type=float, default=TIME_LIMIT, metavar="SECONDS", help="a file (default: %(default)g)"
            )
        if action != "new":
            one.add_argument("--from", dest="course", metavar="COURSE", default="", help="a file with more exercises")


def run(arguments: argparse.Namespace) -> int:
    """Run ``minires exercise``; returns the exit status."""
    return ANSWERS[arguments.action](arguments)


def course_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The exercises of --from."""
    from minires.exercises.course import load_course

    return load_course(arguments.course) if arguments.course else {}


def exercise_of(arguments: argparse.Namespace) -> Any:
    """The exercise that was named."""
    from minires.exercises.table import find

    return find(arguments.name, course_of(arguments))


def file_of(arguments: argparse.Namespace) -> Path:
    """The student's file.

    Errors: FileNotFoundError where there is none; one that was not started yet comes with the command that does.
    """
    from minires.exercises.commandline import command_for

    path = Path(arguments.file or f"{arguments.name}.py")
    if not path.is_file():
        starts = f": {command_for('start', arguments.name, course=arguments.course)} writes it"
        raise FileNotFoundError(2, "there is no such file" + ("" if arguments.file else starts), str(path))
    return path


def show_list(arguments: argparse.Namespace) -> int:
    """Run ``minires exercise list``; returns the exit status."""
    from minires.exercises.table import EXERCISES

    exercises = {**EXERCISES, **course_of(arguments)}
    width = max(len(name) for name in exercises)
    for name, exercise in exercises.items():
        print(f"{name.ljust(width)}  {exercise.title}")
    return 0


def start(arguments: argparse.Namespace) -> int:
    """Run ``minires exercise start``; returns the exit status.

    Errors: FileExistsError where the file is there already; FileNotFoundError where the folder is not.
    """
    from minires.exercises.blank import blank_file
    from minires.exercises.commandline import command_for

    exercise = exercise_of(arguments)
    path = Path(arguments.dir) / f"{exercise.name}.py"
    if not path.parent.is_dir():
        raise FileNotFoundError(2, "there is no such folder", str(path.parent))
    if path.exists():
        raise FileExistsError(17, "is there already, and is kept: choose another --dir, or move it", str(path))
    path.write_text(blank_file(exercise, str(path), arguments.course), encoding="utf-8")
    then = command_for("check", exercise.name, str(path), arguments.course)
    print(f"{path}: fill in the steps, then: {then}")
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Run ``minires exercise check``; returns the exit status: 1 where something is not right yet."""
    from minires.exercises import process, progress
    from minires.exercises.report import text_of

    exercise, path = exercise_of(arguments), file_of(arguments)
    result = process.check(exercise, str(path), arguments.time_limit, arguments.course)
    progress.remember(path, exercise.name, progress.cause_of(result))
    print(text_of(result))
    return 0 if result.passed else 1


def hint(arguments: argparse.Namespace) -> int:
    """Run ``minires exercise hint``; returns the exit status."""
    from minires.exercises.commandline import command_for
    from minires.exercises.hints import hints_for
    from minires.exercises.progress import PASSED, next_hint

    exercise = exercise_of(arguments)
    code, number = next_hint(file_of(arguments), exercise.name)
    if code == PASSED:
        print("The last check found nothing wrong.")
        return 0
    hints = hints_for(exercise, code)
    about = code if hints is not exercise.hints else exercise.name
    print(f"hint {number} of 3 ({about}): {hints[number - 1]}")
    if number == 3:
        solution = command_for("solution", exercise.name, course=arguments.course)
        print(f"This is the last hint; the shipped code: {solution}")
    return 0


def solution(arguments: argparse.Namespace) -> int:
    """Run ``minires exercise solution``; returns the exit status."""
    from minires.exercises.blank import solution as shipped

    print(shipped(exercise_of(arguments)), end="")
    return 0


def grade(arguments: argparse.Namespace) -> int:
    """Run ``minires exercise grade``; returns the exit status: 0 where the grading is done, whatever the points."""
    from minires.exercises import grade as grading
    from minires.exercises.report import table

    results = grading.grade(arguments.files, course_of(arguments), arguments.course, arguments.time_limit)
    print(table(results))
    if arguments.json:
        grading.write_json(results, arguments.json)
    return 0


def new(arguments: argparse.Namespace) -> int:
    """Run ``minires exercise new``; returns the exit status."""
    from minires.exercises import example

    print(inspect.getsource(example), end="")
    return 0


ANSWERS = {
    "list": show_list,
    "start": start,
    "check": check,
    "hint": hint,
    "solution": solution,
    "grade": grade,
    "new": new,
}
