"""``minires exercise``: its options, and which function answers each action."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

from minires.exercises import blank, example, hints, process, report
from minires.exercises.blank import command_for
from minires.exercises.table import EXERCISES, Exercise, find, load_course

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
                "--time-limit",
                type=float,
                default=process.TIME_LIMIT,
                metavar="SECONDS",
                help="a file (default: %(default)g)",
            )
        if action != "new":
            one.add_argument("--from", dest="course", metavar="COURSE", default="", help="a file with more exercises")


def run(arguments: argparse.Namespace) -> int:
    """Run ``minires exercise``; returns the exit status."""
    return ANSWERS[arguments.action](arguments)


def exercise_of(arguments: argparse.Namespace) -> Exercise:
    """The exercise that was named."""
    return find(arguments.name, load_course(arguments.course))


def file_of(arguments: argparse.Namespace) -> Path:
    """The student's file.

    Errors: FileNotFoundError where there is none; one that was not started yet comes with the command that does.
    """
    path = Path(arguments.file or f"{arguments.name}.py")
    if not path.is_file():
        starts = f": {command_for('start', arguments.name, course=arguments.course)} writes it"
        raise FileNotFoundError(2, "there is no such file" + ("" if arguments.file else starts), str(path))
    return path


def show_list(arguments: argparse.Namespace) -> int:
    """Run ``minires exercise list``; returns the exit status."""
    exercises = {**EXERCISES, **load_course(arguments.course)}
    width = max(len(name) for name in exercises)
    for name, exercise in exercises.items():
        print(f"{name.ljust(width)}  {exercise.title}")
    return 0


def start(arguments: argparse.Namespace) -> int:
    """Run ``minires exercise start``; returns the exit status.

    Errors: FileExistsError where the file is there already; FileNotFoundError where the folder is not.
    """
    exercise = exercise_of(arguments)
    path = Path(arguments.dir) / f"{exercise.name}.py"
    if not path.parent.is_dir():
        raise FileNotFoundError(2, "there is no such folder", str(path.parent))
    if path.exists():
        raise FileExistsError(17, "is there already, and is kept: choose another --dir, or move it", str(path))
    path.write_text(blank.blank_file(exercise, str(path), arguments.course), encoding="utf-8")
    then = command_for("check", exercise.name, str(path), arguments.course)
    print(f"{path}: fill in the steps, then: {then}")
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Run ``minires exercise check``; returns the exit status: 1 where something is not right yet."""
    exercise, path = exercise_of(arguments), file_of(arguments)
    result = process.check(exercise, str(path), arguments.time_limit, arguments.course)
    hints.remember(path, result)
    print(report.text_of(result))
    return 0 if result.passed else 1


def hint(arguments: argparse.Namespace) -> int:
    """Run ``minires exercise hint``; returns the exit status."""
    exercise = exercise_of(arguments)
    code, number = hints.next_hint(file_of(arguments), exercise.name)
    if code == hints.PASSED:
        print("The last check found nothing wrong.")
        return 0
    three = hints.hints_for(exercise, code)
    about = code if three is not exercise.hints else exercise.name
    print(f"hint {number} of 3 ({about}): {three[number - 1]}")
    if number == 3:
        then = command_for("solution", exercise.name, course=arguments.course)
        print(f"This is the last hint; the shipped code: {then}")
    return 0


def solution(arguments: argparse.Namespace) -> int:
    """Run ``minires exercise solution``; returns the exit status."""
    print(blank.solution(exercise_of(arguments)), end="")
    return 0


def grade(arguments: argparse.Namespace) -> int:
    """Run ``minires exercise grade``; returns the exit status: 0 where the grading is done, whatever the points."""
    results = report.grade(arguments.files, arguments.course, arguments.time_limit)
    print(report.table(results))
    if arguments.json:
        report.write_json(results, arguments.json)
    return 0


def new(arguments: argparse.Namespace) -> int:
    """Run ``minires exercise new``; returns the exit status."""
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
