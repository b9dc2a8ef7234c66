"""How a result is held against what it should be, and what is said where they differ.

Where a result is wrong, the names that a function computes on its way, as they were when they were first computed, are
held against the same names of the shipped function: they tell a student which step is the first to go wrong.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from minires.exercises.blank import source_of, steps_of, stores

#: Relative to the largest entry, in float64: rounding stays far below, and no mistake does.
TOLERANCE = 1e-8


class Failed(Exception):
    """A check that was not passed. The message is for the student; the code is what ``hint`` gives hints for."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


def shown(value: Any) -> str:
    """A number or an object in a few characters."""
    return number(value, 6) if isinstance(value, (float, np.floating)) else repr(value)[:80]


def number(value: Any, digits: int) -> str:
    """A number with so many digits; zero has no sign."""
    text = f"{value:.{digits}g}"
    return "0" if text == "-0" else text


def both(expected: Any, got: Any) -> tuple[str, str]:
    """Two values that differ, with as many digits as it takes to see it."""
    texts = shown(expected), shown(got)
    if texts[0] == texts[1] and all(isinstance(value, (float, np.floating)) for value in (expected, got)):
        return number(expected, 12), number(got, 12)
    return texts


def difference(name: str, expected: Any, got: Any, tolerance: float = TOLERANCE) -> tuple[str, str] | None:
    """What differs between a result and what it should be: a code and a sentence; None where nothing does."""
    if expected is None or got is None:
        if expected is None and got is None:
            return None
        wanted, came = (describe(value) for value in (expected, got))
        return "wrong-shape", f"{name} must be {wanted}, got {came}"
    if not isinstance(expected, (np.ndarray, np.generic)):
        same = bool(expected == got)
        return None if same else ("wrong-cache", "{} must be {}, got {}".format(name, *both(expected, got)))
    if not isinstance(got, (np.ndarray, np.generic)):
        return "wrong-shape", f"{name} must be {describe(expected)}, got {describe(got)}"
    if expected.shape != got.shape:
        return "wrong-shape", f"{name} must have shape {expected.shape}, got {got.shape}{repair(expected, got)}"
    if expected.dtype.kind != got.dtype.kind:
        return "wrong-dtype", f"{name} must have dtype {expected.dtype}, got {got.dtype}"
    index = worst(expected, got, tolerance)
    if index is None:
        return None
    wrong = count_wrong(expected, got, tolerance)
    at = f" at {index}" if index else ""
    of = f" ({wrong} of {expected.size} entries differ)" if expected.size > 1 else ""
    wanted, came = both(expected[index], got[index])
    return "wrong-value", f"{name}: expected {wanted}{at}, got {came}{of}"


def describe(value: Any) -> str:
    """What kind of thing a value is, with its shape where it has one."""
    if value is None:
        return "None"
    if isinstance(value, (np.ndarray, np.generic)):
        return f"an array of shape {value.shape}"
    return f"a {type(value).__name__}"


def repair(expected: Any, got: Any) -> str:
    """What may have happened to a shape, as a question."""
    if sorted(expected.shape) == sorted(got.shape):
        return ": are its axes in another order?"
    if expected.size == got.size:
        return ": is a reshape missing?"
    if got.size > expected.size and got.size % expected.size == 0:
        return ": is a sum missing?"
    return ""


def gaps(expected: Any, got: Any) -> Any:
    """The size of the difference, entry by entry; infinite where only one of the two is a number."""
    expected, got = np.asarray(expected), np.asarray(got)
    if expected.dtype.kind != "f":
        return (expected != got).astype(float)
    same = (expected == got) | (np.isnan(expected) & np.isnan(got))
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(expected.astype("float64") - got)
    return np.where(same, 0.0, np.where(np.isfinite(gap), gap, np.inf))


def limit(expected: Any, tolerance: float) -> float:
    """How large a difference may be."""
    finite = np.abs(np.asarray(expected, "float64"))
    finite = finite[np.isfinite(finite)]
    return tolerance * max(1.0, float(finite.max()) if finite.size else 1.0)


def worst(expected: Any, got: Any, tolerance: float) -> tuple[int, ...] | None:
    """The index of the largest difference that matters; None where there is none."""
    gap = gaps(expected, got)
    if not gap.size or gap.max() <= limit(expected, tolerance):
        return None
    return tuple(int(i) for i in np.unravel_index(gap.argmax(), gap.shape))


def count_wrong(expected: Any, got: Any, tolerance: float) -> int:
    """How many entries differ."""
    return int((gaps(expected, got) > limit(expected, tolerance)).sum())


# ---- step by step


def watch(function: Callable, *arguments: Any, **options: Any) -> dict[str, Any]:
    """Run a function, and copy each of its arrays when a line has just made it: what it was given is not its own."""
    seen: dict[str, Any] = {}
    given: dict[str, Any] = {}
    code = getattr(inspect.unwrap(function), "__code__", None)  # a partial has none, and is not watched

    def on_line(frame: Any, event: str, _: Any) -> Any:
        for name, value in frame.f_locals.items():
            if name not in seen and value is not given.get(name) and isinstance(value, (np.ndarray, np.generic)):
                seen[name] = np.array(value)
        return on_line

    def on_call(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code is not code:
            return None
        if not given:
            given.update(frame.f_locals)
        return on_line

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        function(*arguments, **options)
    finally:
        sys.settrace(before)
    return seen


def names_written_once(function: Callable) -> set[str]:
    """The names that one statement of a function writes, and no other changes; none where it has no source."""
    try:
        tree = ast.parse(source_of(function))
    except (OSError, TypeError, SyntaxError):
        return set()
    return {name for name, times in Counter(stores(tree)).items() if times == 1}


def first_difference(shipped: dict[str, Any], function: Callable, student: Callable, own: dict[str, Any]) -> str:
    """A sentence about the first name of the shipped function that the student's has too, with other values.

    Args: shipped and own, what ``watch`` saw in the shipped function and in the student's. Only names that both write
        once are compared: what was first seen of another may have been changed later.
    """
    once = names_written_once(function) & names_written_once(student)
    for step in steps_of(function):
        for name in step.names:
            if name not in once or name not in shipped or name not in own:
                continue
            expected, got = np.squeeze(shipped[name]), np.squeeze(own[name])
            found = difference(f"`{name}`", expected, got) if expected.shape == got.shape else None
            if found is not None:
                return f"The first of your names that differs from the solution's is {found[1]}"
    return ""
