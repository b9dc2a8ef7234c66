"""Grading many files: each is checked, whatever happens to the others."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from minires.exercises.process import Result, check
from minires.exercises.readable import parsed
from minires.exercises.report import gradescope
from minires.exercises.table import EXERCISES, Exercise, find


def exercise_of(file: str, course: dict[str, Exercise]) -> Exercise:
    """The exercise that a file says it is: its line EXERCISE = "name", or else its own name.

    Errors: ValueError where neither is an exercise, or the file is not Python.
    """
    stem = Path(file).stem
    known = {**EXERCISES, **course}
    try:
        body = parsed(Path(file).read_bytes()).body
    except ValueError:
        if stem not in known:
            raise
        body = []  # the check will say so
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = any(isinstance(target, ast.Name) and target.id == "EXERCISE" for target in targets)
        if named and isinstance(getattr(node, "value", None), ast.Constant):
            return find(str(node.value.value), course)
    if stem in known:
        return find(stem, course)
    raise ValueError('no line EXERCISE = "name" says which exercise this is')


def grade(
    files: list[str], course: dict[str, Exercise], course_file: str, time_limit: float
) -> list[Result | tuple[str, str]]:
    """Check every file; a file that cannot be checked comes with its problem instead."""
    results: list[Result | tuple[str, str]] = []
    for file in files:
        try:
            results.append(check(exercise_of(file, course), file, time_limit, course_file))
        except (OSError, ValueError) as error:
            results.append((file, getattr(error, "strerror", None) or str(error)))
    return results


def write_json(results: list[Result | tuple[str, str]], file: str) -> None:
    """Write Gradescope's results.json."""
    Path(file).write_text(json.dumps(gradescope(results), indent=2) + "\n", encoding="utf-8")
