"""Checked files in words: one for a student; many in a table for a teacher, and as Gradescope reads them."""

from __future__ import annotations

import ast
import json
import textwrap
from pathlib import Path
from typing import Any

from minires.exercises.blank import command_for
from minires.exercises.process import Result, check, parsed
from minires.exercises.table import EXERCISES, Exercise, find, load_course

#: A checked file; or (file, problem), where the file could not be checked.
Graded = Result | tuple[str, str]

POINTS = 10.0  # of an exercise, shared evenly by its stages that check something

WORDS = {"passed": "passed", "failed": "NOT PASSED", "skipped": "nothing to check", "not run": "not run"}


def text_of(result: Result) -> str:
    """What ``minires exercise check`` prints."""
    lines = [f"{result.exercise}, {result.path}"]
    for stage in result.stages:
        if stage.name == "file" and stage.status == "passed":
            continue
        note = f": {stage.message}" if stage.status == "skipped" else ""
        lines.append(f"  {stage.name:14} {WORDS[stage.status]}{note}")
        if stage.status == "failed":
            lines.append(textwrap.indent(stage.message, "      "))
    if result.passed:
        lines.append("All of it is right.")
    else:
        lines.append(hint_line(result))
    if result.printed.strip():
        lines += ["", "---- what your code printed ----", result.printed.rstrip()]
    return "\n".join(lines)


def hint_line(result: Result) -> str:
    """The command for a hint."""
    return f"A hint: {command_for('hint', result.exercise, result.path, result.course)}"


# ---- many files, for a teacher


def grade(files: list[str], course: str, time_limit: float) -> list[Graded]:
    """Check every file, whatever happens to the others; one that cannot be checked comes with its problem instead."""
    exercises = load_course(course)
    results: list[Graded] = []
    for file in files:
        try:
            results.append(check(exercise_in(file, exercises), file, time_limit, course))
        except (OSError, ValueError) as error:
            results.append((file, getattr(error, "strerror", None) or str(error)))
    return results


def exercise_in(file: str, course: dict[str, Exercise]) -> Exercise:
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
        return known[stem]
    raise ValueError('no line EXERCISE = "name" says which exercise this is')


def scores(result: Result) -> list[tuple[str, float, float, str]]:
    """Stage, points, highest points and what to say of each stage that checks something."""
    counted = [stage for stage in result.stages if stage.name != "file" and stage.status != "skipped"]
    reading = result.stages[0]
    each = round(POINTS / len(counted), 2)
    found = []
    for place, stage in enumerate(counted, start=1):
        highest = each if place < len(counted) else round(POINTS - each * (len(counted) - 1), 2)
        message = stage.message or WORDS[stage.status]
        if reading.status == "failed":
            message = reading.message
        found.append((stage.name, highest if stage.status == "passed" else 0.0, highest, message))
    return found


def table(results: list[Graded]) -> str:
    """A line a file: points, and where it stopped."""
    rows = []
    for result in results:
        if not isinstance(result, Result):
            rows.append((result[0], "?", f"0/{POINTS:g}", result[1]))
            continue
        points = sum(score for _, score, _, _ in scores(result))
        failure = result.failure
        stopped = "passed" if failure is None else f"{failure.name}: {failure.message}"
        rows.append((result.path, result.exercise, f"{points:.3g}/{POINTS:g}", stopped))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), shortened(row[3])]) for row in rows
    )


def shortened(text: str) -> str:
    """The first line of a text, of at most 80 characters."""
    line = text.partition("\n")[0]
    return line if len(line) <= 80 else f"{line[:77]}..."


def gradescope(results: list[Graded]) -> dict[str, Any]:
    """The contents of results.json."""
    tests: list[dict[str, Any]] = []
    several = len(results) > 1
    for result in results:
        if not isinstance(result, Result):
            file, problem = result
            tests.append({"name": file, "score": 0.0, "max_score": POINTS, "output": problem})
            continue
        for stage, score, highest, message in scores(result):
            tests.append(
                {
                    "name": f"{result.path}: {result.exercise}: {stage}" if several else f"{result.exercise}: {stage}",
                    "score": score,
                    "max_score": highest,
                    "output": message,
                }
            )
    return {"score": round(sum(test["score"] for test in tests), 2), "tests": tests}


def write_json(results: list[Graded], file: str) -> None:
    """Write Gradescope's results.json."""
    Path(file).write_text(json.dumps(gradescope(results), indent=2) + "\n", encoding="utf-8")
