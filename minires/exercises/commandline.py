"""The commands that are printed for a student to type."""

from __future__ import annotations

import shlex
from pathlib import Path


def command_for(action: str, exercise: str, path: str = "", course: str = "") -> str:
    """A command that works where it is read: with the file, where it is not the one that is taken without a name.

    Args: path, the student's file; course, the file that the exercise is from, if it is not MiniRes's own.
    """
    words = ["minires", "exercise", action, exercise]
    if path and Path(path) != Path(f"{exercise}.py"):
        words.append(shlex.quote(path))
    if course:
        words += ["--from", shlex.quote(course)]
    return " ".join(words)
