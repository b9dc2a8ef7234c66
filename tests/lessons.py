"""The lessons: their cells, what their prose names, and their runs, one after another beside the other tests."""

import ast
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
LESSONS = sorted((ROOT / "tutorials").glob("[0-9][0-9]_*.py"))
DATA = ROOT.parent / "shared" / "data"  # what a lesson can use beyond the core install, where it is there
SECONDS = 600  # until a lesson that hangs is ended


class Cell(NamedTuple):
    """A cell of a lesson: its text without the comment signs of prose."""

    kind: str  # "prose" or "code"
    text: str


def cells_of(source):
    """The cells of a lesson in jupytext's percent format."""
    cells = []
    for part in re.split(r"^# %%", source, flags=re.M)[1:]:
        head, _, body = part.partition("\n")
        if head.strip() == "[markdown]":
            cells.append(Cell("prose", re.sub(r"^# ?", "", body, flags=re.M)))
        else:
            assert not head.strip(), f"a cell begins with '# %%{head}'"
            cells.append(Cell("code", body))
    return cells


def prose_of(cells):
    return "\n".join(cell.text for cell in cells if cell.kind == "prose")


def code_of(cells):
    return "\n".join(cell.text for cell in cells if cell.kind == "code")


# ---- Numbers ---------------------------------------------------------------------------------------------------------

NAME = r"[A-Za-z_]\w*(?:[-/]\d+)+|\w*[A-Za-z_]\w*"  # ResNet-56, 3x3, conv2d, layer1: no numbers
YEAR = r"\b(?:19|20)\d\d\b"
NUMBER = r"\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"


def value_of(written):
    """A number as it is written, with commas between its thousands and perhaps one behind it."""
    return float(written.replace(",", ""))


def numbers_in_prose(text):
    """The numbers that a text states, as (as written, value)."""
    text = re.sub(r"`[^`]*`|\$[^$]*\$", " ", text)  # code and formulas
    text = re.sub(r"(\d)[x×](?=\d)", r"\1x", text)
    found = []
    for match in re.finditer(rf"(?P<number>(?<![\w.-]){NUMBER}(?![\w-]*[A-Za-z_]))|{NAME}", text):
        number = match["number"]
        if number and not re.fullmatch(YEAR, number):
            found.append((number, value_of(number)))
    return found


def numbers_in_code(code):
    """All numbers that code holds, its texts and comments too."""
    values = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
    numbers = {abs(float(value)) for value in values if type(value) in (int, float)}
    for text in [*(value for value in values if isinstance(value, str)), *re.findall(r"#.*", code)]:
        numbers |= numbers_in_text(text)
    return numbers


def numbers_in_text(text):
    """All numbers of a printed text."""
    return {value_of(written) for written in re.findall(NUMBER, text)}


def unfounded_numbers(cells, printed):
    """The numbers of the prose that are neither in the code nor in what it prints."""
    known = numbers_in_code(code_of(cells)) | numbers_in_text(printed) | {0.0, 1.0, 2.0}
    wrong = []
    for written, value in numbers_in_prose(prose_of(cells)):
        if not any(abs(value - one * scale) <= 1e-9 * abs(value) for one in known for scale in (1, 100)):
            wrong.append(written)
    return wrong


# ---- Names -----------------------------------------------------------------------------------------------------------

PATH = re.compile(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|png|md|json|csv|npz|html|safetensors))`|`((?:[\w.-]+/)+)`")
COMMAND = re.compile(r"`((?:minires|pytest|python|pip|jupytext)\s[^`]*)`")
FUNCTION_IN_FILE = re.compile(r"`([A-Za-z_][\w.]*)(?:\([^`]*\))?` (?:in|of) `(minires/[\w/]+\.py)`")
DOTTED = re.compile(r"`((?:minires|kernels|nn|F|debug|plots|models|optim|gradcheck)(?:\.\w+)+)")


def defined_in(path):
    """The names of functions and classes of a file, and of the methods as Class.method."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            inside = [inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)]
            names |= {f"{node.name}.{name}" for name in inside} | set(inside)
    return names


# ---- Runs ------------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """What came of a lesson."""

    status: int
    printed: str
    errors: str
    folder: Path


class Runs:
    """Every lesson that was asked for, one after another in a thread: a process each, in a copy of the checkout.

    A lesson finds what it would find in a checkout, `tests` beside `tutorials` say, and writes into the copy.
    """

    def __init__(self, lessons, folder):
        self.lessons, self.folder = list(lessons), Path(folder)
        self.done = {lesson.stem: threading.Event() for lesson in self.lessons}
        self.results = {}
        self.process = None
        self.ended = False
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def work(self):
        for name in ("tests", "minires", "README.md"):
            (self.folder / name).symlink_to(ROOT / name)
        tutorials = self.folder / "tutorials"
        tutorials.mkdir()
        for lesson in self.lessons:
            if not self.ended:
                shutil.copy(lesson, tutorials)
                self.results[lesson.stem] = self.run(lesson, tutorials)
            self.done[lesson.stem].set()

    def run(self, lesson, tutorials):
        environment = {**os.environ, "MPLBACKEND": "Agg", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        if DATA.is_dir():
            environment["MINIRES_DATA"] = str(DATA)
        self.process = subprocess.Popen(
            [sys.executable, lesson.name],
            cwd=tutorials,
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            printed, errors = self.process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            printed, errors = self.process.communicate()
            errors += f"\nit was ended after {SECONDS} s"
        return Run(self.process.returncode, printed, errors, tutorials)

    def result(self, lesson):
        """What came of a lesson, once it has run."""
        self.done[lesson.stem].wait()
        return self.results[lesson.stem]

    def end(self):
        """Nothing goes on after the tests."""
        self.ended = True
        if self.process is not None:
            self.process.kill()
        self.thread.join()
        shutil.rmtree(self.folder, ignore_errors=True)
