"""Every lesson runs from start to end in a process of its own, its claims hold, its pictures appear, and what its prose
names is there.

The lessons run one after another beside the other tests (conftest.py begins them) and are asked for at the end.
"""

import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr

import lessons
import pytest
from lessons import LESSONS, ROOT, cells_of, code_of, prose_of
from PIL import Image

NAMES = [lesson.stem for lesson in LESSONS]
CELLS = {lesson.stem: cells_of(lesson.read_text()) for lesson in LESSONS}
each = pytest.mark.parametrize("lesson", LESSONS, ids=NAMES)
#: For what runs a lesson: one is quick.
BY_TIER = [pytest.param(x, marks=() if "chain_rule" in x.stem else pytest.mark.slow) for x in LESSONS]
runs = pytest.mark.parametrize("lesson", BY_TIER, ids=NAMES)
#: Lessons that are run as notebooks too: quick ones, one that only computes and one that trains.
NOTEBOOKS = ["01_chain_rule", "04_batch_norm"]


def pictures_of(lesson):
    return list(dict.fromkeys(re.findall(r'figures / "([\w.]+)"', lesson.read_text())))


def test_the_lessons_are_numbered():
    assert [name[:2] for name in NAMES] == [f"{i:02}" for i in range(len(NAMES))] and len(NAMES) >= 13


def test_the_table_of_contents_has_every_lesson_with_a_picture():
    text = (ROOT / "tutorials" / "README.md").read_text()
    for lesson in LESSONS:
        title = CELLS[lesson.stem][0].text.lstrip().partition("\n")[0].removeprefix("# ")
        section = text.split(f"\n## {lesson.stem[:2]}. {title}\n")[1].partition("\n## ")[0]
        assert f"]({lesson.name})" in section
        (picture,) = re.findall(r"!\[[^\]]{20,}\]\(figures/([\w.]+)\)", section)
        assert picture in pictures_of(lesson)
    named = re.findall(r"tutorials/(\w+\.py)", text)
    assert named and set(named) <= {lesson.name for lesson in LESSONS} | {"microres.py"}


def test_every_script_is_a_lesson_or_the_whole_on_one_page():
    scripts = {path.name for path in (ROOT / "tutorials").glob("*.py")}
    assert scripts == {lesson.name for lesson in LESSONS} | {"microres.py"}  # that one: test_microres.py


@runs
def test_a_lesson_runs(begun_lessons, lesson):
    run = begun_lessons.result(lesson)
    assert run.status == 0, run.printed + run.errors
    assert run.printed.strip(), "a lesson prints what it measures"
    for picture in pictures_of(lesson):
        with Image.open(run.folder / "figures" / picture) as image:
            image.load()
            assert min(image.size) >= 200


@each
def test_its_pictures_are_committed_and_small(lesson):
    assert pictures_of(lesson)
    for picture in pictures_of(lesson):
        assert picture.startswith(lesson.stem[:2])
        committed = ROOT / "tutorials" / "figures" / picture
        assert committed.exists(), f"{committed} is missing"
        assert committed.stat().st_size < 100_000


@each
def test_it_is_cells_that_ask_and_assert(lesson):
    cells = CELLS[lesson.stem]
    assert cells[0].kind == "prose" and cells[0].text.lstrip().startswith("# ") and len(cells) >= 6
    first = " ".join(cells[0].text.split())
    assert "You need:" in first and re.search(r"It takes [^.]* on two cores\b", first)
    assert cells[-1].kind == "code" and "assert" in cells[-1].text, "a lesson ends by asserting what its prose claims"
    assert "**Question before you scroll on:**" in prose_of(cells)
    for cell in cells:
        if cell.kind == "code":
            compile(cell.text, lesson.name, "exec")


@runs
def test_its_numbers_are_its_own(begun_lessons, lesson):
    """A number in the prose is in the code, asserted say, or is printed."""
    printed = begun_lessons.result(lesson).printed
    assert lessons.unfounded_numbers(CELLS[lesson.stem], printed) == []


@each
def test_the_files_that_it_names_exist(lesson):
    cells = CELLS[lesson.stem]
    for groups in lessons.PATH.findall(prose_of(cells)):
        path = next(filter(None, groups))
        made = re.escape(path.rsplit("/", 1)[-1])
        there = any((folder / path).exists() for folder in (ROOT, ROOT / "tutorials"))
        assert there or re.search(made, code_of(cells)), f"there is no {path}"


@each
def test_the_commands_that_it_names_are_understood(lesson):
    from minires.cli import make_parser
    from minires.exercises.table import EXERCISES

    prose = prose_of(CELLS[lesson.stem])
    for command in lessons.COMMAND.findall(prose):
        program, *arguments = shlex.split(command)
        if program == "minires" and "..." not in command:
            with redirect_stderr(io.StringIO()) as said:
                try:
                    make_parser().parse_args([word if not word.isupper() else "x" for word in arguments])
                except SystemExit as ending:
                    assert ending.code == 0, f"`{command}`: {said.getvalue()}"
        if program == "python" and arguments[0].endswith(".py"):
            assert (ROOT / arguments[0]).exists() or (ROOT / "tutorials" / arguments[0]).exists()
    started = re.findall(r"`minires exercise start (\w+)`", prose)
    assert set(started) <= set(EXERCISES)
    assert started or lesson.stem.startswith("00"), "a lesson points to an exercise"


@each
def test_the_functions_that_it_names_are_there(lesson):
    prose = " ".join(prose_of(CELLS[lesson.stem]).split())
    for name, path in lessons.FUNCTION_IN_FILE.findall(prose):
        assert name.split(".", 1)[-1] in lessons.defined_in(ROOT / path), f"{path} has no {name}"
    for name in lessons.DOTTED.findall(prose):
        assert resolve(name) is not None, f"there is no {name}"


def resolve(dotted):
    """What a dotted name stands for; None where there is no such thing."""
    usual = {"F": "functional", "minires": ""}
    first, *rest = dotted.split(".")
    names = ["minires", *filter(None, [usual.get(first, first)]), *rest]
    found = importlib.import_module("minires")
    for i, name in enumerate(names[1:], 2):
        try:
            found = getattr(found, name)
        except AttributeError:
            try:
                found = importlib.import_module(".".join(names[:i]))
            except ImportError:
                return None
    return found


def test_a_number_without_ground_is_found():
    cells = cells_of(
        "# %% [markdown]\n# In 2015 ResNet-56 beat 3x3 by 7.5 % and 1,234 times, 41 in all (`13`).\n"
        "# %%\nassert 0.075 < n\nprint(1234)\n"
    )
    assert lessons.unfounded_numbers(cells, "") == ["41"]
    assert lessons.unfounded_numbers(cells, "there were 41\n") == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_lesson_is_a_notebook_too(tmp_path, name):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    for needed in ("jupytext", "ipykernel"):
        pytest.importorskip(needed)
    source = (ROOT / "tutorials" / f"{name}.py").read_text()
    (tmp_path / f"{name}.py").write_text(source)
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    converted = subprocess.run(
        [sys.executable, "-m", "jupytext", "--to", "ipynb", f"{name}.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert converted.returncode == 0, converted.stderr
    notebook = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4)
    kinds = {"prose": "markdown", "code": "code"}
    assert [cell.cell_type for cell in notebook.cells] == [kinds[cell.kind] for cell in CELLS[name]]
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(cwd=str(tmp_path), env=environment)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    drawn = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(drawn) >= len(pictures_of(ROOT / "tutorials" / f"{name}.py")), "pictures show in the notebook"
    assert not [output for output in outputs if output.output_type == "error"]
