"""Every lesson runs from start to end in a process of its own, its claims hold, and its pictures appear."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LESSONS = sorted((ROOT / "tutorials").glob("*.py"))


def test_there_are_lessons():
    assert LESSONS


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_lesson(lesson, tmp_path):
    shutil.copy(lesson, tmp_path)
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    result = subprocess.run(
        [sys.executable, lesson.name], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    text = lesson.read_text()
    for picture in re.findall(r'figures / "([\w.]+)"', text):
        assert (tmp_path / "figures" / picture).read_bytes().startswith(b"\x89PNG")
        committed = ROOT / "tutorials" / "figures" / picture
        assert committed.exists() and committed.stat().st_size < 100_000


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_lesson_is_cells_that_assert(lesson):
    text = lesson.read_text()
    assert text.startswith("# %% [markdown]\n# # ") and text.count("# %%") >= 6
    assert "assert" in text.rsplit("# %%", 1)[1], "a lesson ends by asserting what its prose claims"
