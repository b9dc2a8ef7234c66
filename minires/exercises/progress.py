"""What the last check found, in a small file beside the student's, so that ``hint`` knows what to hint at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minires.exercises.process import Result

NAME = ".minires_exercise.json"
PASSED = "passed"  # the cause where nothing was wrong


def read(folder: Path) -> dict[str, Any]:
    """What is remembered in a folder, by exercise and file; nothing where the file is missing or damaged."""
    try:
        known = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def write(folder: Path, known: dict[str, Any]) -> None:
    """Remember; a folder that cannot be written to is no reason to stop."""
    try:
        (folder / NAME).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    except OSError:
        pass


def cause_of(result: Result) -> str:
    """What is remembered of a check."""
    return result.failure.code if result.failure else PASSED


def place_of(path: Path, exercise: str) -> tuple[Path, str]:
    """The folder in which a file is remembered, and by what: one folder may hold several tries at an exercise."""
    return path.resolve().parent, f"{exercise} in {path.name}"


def remember(path: Path, exercise: str, code: str) -> None:
    """Keep the cause that was diagnosed last; with another cause the hints begin again."""
    folder, key = place_of(path, exercise)
    known = read(folder)
    before = known.get(key)
    if not isinstance(before, dict) or before.get("code") != code:
        known[key] = {"code": code, "hints": 0}
        write(folder, known)


def next_hint(path: Path, exercise: str) -> tuple[str, int]:
    """The cause that was diagnosed last, and which hint comes next: 1, 2, 3, and 3 again."""
    folder, key = place_of(path, exercise)
    known = read(folder)
    entry = known.get(key)
    if not isinstance(entry, dict):
        entry = {}
    code, given = str(entry.get("code", "")), entry.get("hints", 0)
    number = max(1, min(given + 1 if isinstance(given, int) else 1, 3))
    known[key] = {"code": code, "hints": number}
    write(folder, known)
    return code, number
