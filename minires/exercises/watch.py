"""The names that a function computes on its way, as they were when they were first computed.

Held against the same names of the shipped function, they tell a student which step is the first to go wrong.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from minires.exercises.blank import source_of, steps_of
from minires.exercises.compare import difference


def watch(function: Callable, *arguments: Any, **options: Any) -> dict[str, Any]:
    """Run a function, and copy each of its arrays when a line has just made it."""
    seen: dict[str, Any] = {}
    code = getattr(inspect.unwrap(function), "__code__", None)  # a partial has none, and is not watched

    def on_line(frame: Any, event: str, _: Any) -> Any:
        for name, value in frame.f_locals.items():
            if name not in seen and isinstance(value, (np.ndarray, np.generic)):
                seen[name] = np.array(value)
        return on_line

    def on_call(frame: Any, event: str, _: Any) -> Any:
        return on_line if frame.f_code is code else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        function(*arguments, **options)
    finally:
        sys.settrace(before)
    return seen


def names_written_once(function: Callable) -> list[str]:
    """The names that one statement of a function writes, and no other changes; none where it has no source."""
    try:
        tree = ast.parse(source_of(function))
    except (OSError, TypeError, SyntaxError):
        return []
    written: dict[str, int] = {}
    for part in ast.walk(tree):
        base = part
        while isinstance(base, ast.Subscript):
            base = base.value
        if isinstance(base, ast.Name) and isinstance(getattr(part, "ctx", None), ast.Store):
            written[base.id] = written.get(base.id, 0) + 1
    return [name for name, times in written.items() if times == 1]


def single_names(function: Callable) -> list[str]:
    """The names that one statement computes and none changes: what may be compared when it was first seen."""
    once = names_written_once(function)
    return [name for step in steps_of(function) for name in step.names if name in once]


def first_difference(shipped: dict[str, Any], function: Callable, student: Callable, own: dict[str, Any]) -> str:
    """A sentence about the first name of the shipped function that the student's has too, with other values."""
    once = set(names_written_once(student))
    for name in single_names(function):
        if (
            name in shipped
            and name in once
            and name in own
            and np.squeeze(own[name]).shape == np.squeeze(shipped[name]).shape
        ):
            found = difference(f"`{name}`", np.squeeze(shipped[name]), np.squeeze(own[name]))
            if found is not None:
                return f"The first of your names that differs from the solution's is {found[1]}"
    return ""
