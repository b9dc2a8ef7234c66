"""Exercises of a course's own: a Python file with a list called EXERCISES."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from minires.exercises.table import Exercise


def load_course(file: str) -> dict[str, Exercise]:
    """The exercises of a course's file, by name.

    Errors: FileNotFoundError where there is no such file; ValueError where it has no list of exercises.
    """
    path = Path(file).resolve()
    if not path.is_file():
        raise FileNotFoundError(2, "there is no such file", file)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # inspect finds the solution's source by way of its module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{file}: {type(error).__name__}: {error}") from None
    found = getattr(module, "EXERCISES", None)
    if not isinstance(found, list) or not all(isinstance(one, Exercise) for one in found):
        raise ValueError(f"{file}: expected a list called EXERCISES, of minires.exercises.table.Exercise")
    for one in found:
        if not isinstance(one.hints, (tuple, list)) or len(one.hints) != 3:
            raise ValueError(f"{file}: {one.name}: expected three hints, in a tuple")
    return {one.name: one for one in found}
