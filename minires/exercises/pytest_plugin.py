"""The stages of a check as tests of pytest: ``pytest --exercise batch_norm_backward FILE``.

Installing MiniRes makes pytest know this plugin; a course's repository may also name it in its conftest.py:
``pytest_plugins = "minires.exercises.pytest_plugin"``. Without --exercise it does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("minires")
    group.addoption("--exercise", metavar="NAME", help="check the given files as this exercise of MiniRes")
    group.addoption("--exercises-from", metavar="COURSE", default="", help="a file with more exercises")
    group.addoption("--exercise-time-limit", type=float, default=30.0, metavar="SECONDS", help="a file (default: 30)")


def pytest_configure(config: pytest.Config) -> None:
    """Errors: pytest.UsageError where --exercise has no file to check, or names no exercise."""
    name = config.getoption("--exercise")
    if not name:
        return
    from minires.exercises.table import find, load_course

    try:
        find(name, load_course(config.getoption("--exercises-from")))
    except (OSError, ValueError) as error:
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        raise pytest.UsageError(f"--exercise: {where}{getattr(error, 'strerror', None) or error}") from None
    folder = any((config.invocation_params.dir / argument).is_dir() for argument in config.args)
    if folder or config.args_source != config.ArgsSource.ARGS:
        raise pytest.UsageError(f"--exercise: name the file, as in: pytest --exercise {name} {name}.py")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> ExerciseFile | None:
    """The files that are named on the command line, where --exercise is given."""
    if not parent.config.getoption("--exercise") or not parent.session.isinitpath(file_path):
        return None
    return ExerciseFile.from_parent(parent, path=file_path)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> Any:
    """Such a file is checked, in a process of its own, and never imported by pytest."""
    if parent.config.getoption("--exercise") and parent.session.isinitpath(module_path):
        return ExerciseFile.from_parent(parent, path=module_path, again=True)
    return None


class ExerciseFile(pytest.File):
    """A student's file: one test for each stage."""

    def __init__(self, again: bool = False, **more: Any):
        super().__init__(**more)
        self.again = again  # pytest's own collector of Python files comes by too: one collection is enough
        self.result: Any = None

    def collect(self) -> Iterator[pytest.Item]:
        """The stages of the exercise."""
        from minires.exercises.table import find, load_course, stage_names

        if self.again:
            return
        course = load_course(self.config.getoption("--exercises-from"))
        self.exercise = find(self.config.getoption("--exercise"), course)
        for name in stage_names(self.exercise):
            yield StageItem.from_parent(self, name=name)

    def check(self) -> Any:
        """The result of the check, which is made once."""
        if self.result is None:
            from minires.exercises.hints import remember
            from minires.exercises.process import check

            limit = self.config.getoption("--exercise-time-limit")
            course = self.config.getoption("--exercises-from")
            shown = os.path.relpath(self.path, self.config.invocation_params.dir)
            self.result = check(self.exercise, str(self.path), limit, course)._replace(path=shown)
            remember(self.path, self.result)
        return self.result


class NotPassed(Exception):
    """A stage that failed: its message is all that is shown."""


class StageItem(pytest.Item):
    """One stage as a test."""

    def runtest(self) -> None:
        """Errors: NotPassed where the stage failed; a stage that was not reached is skipped."""
        from minires.exercises.report import hint_line

        result = self.parent.check()
        stage = next(stage for stage in result.stages if stage.name == self.name)
        if stage.status == "failed":
            raise NotPassed(f"{stage.message}\n{hint_line(result)}")
        if stage.status != "passed":
            pytest.skip(stage.message or "a stage before was not passed")

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        """The message without a traceback, and what the student's code printed."""
        if not isinstance(excinfo.value, NotPassed):
            return super().repr_failure(excinfo, style)
        printed = self.parent.check().printed.rstrip()
        return f"{excinfo.value}" + (f"\n---- what your code printed ----\n{printed}" if printed else "")

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where the test is, for pytest's report."""
        return self.path, None, f"{self.parent.exercise.name}: {self.name}"
