"""What importing MiniRes does and does not do, and how the house is built."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minires

PACKAGE = Path(minires.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_import_is_silent_and_light():
    code = (
        "import sys, numpy; before = (numpy.geterr(), numpy.get_printoptions(), sys.getrecursionlimit())\n"
        "import minires\n"
        "assert before == (numpy.geterr(), numpy.get_printoptions(), sys.getrecursionlimit())\n"
        "loaded = [m for m in ('matplotlib', 'torch', 'cupy', 'tqdm', 'safetensors', 'argparse', 'numpy.random')"
        " if m in sys.modules]\n"
        "assert not loaded, loaded"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "" and result.stderr == ""


#: What ``import minires`` leaves alone: rooms and readers of files that wait until they are asked for, and modules of
#: Python that take long to import.
WAITING = (
    *("minires.bench", "minires.debug", "minires.exercises", "minires.gradcheck", "minires.train"),
    *("minires.data.cifar", "minires.data.downloads", "minires.data.folder", "minires.data.images", "minires.data.idx"),
    *("minires.data.loader", "minires.data.named", "minires.data.published", "minires.data.torch_format"),
    *("minires.models.pretrained", "minires.models.summary"),
    *("asyncio", "concurrent", "csv", "ctypes", "email", "gzip", "hashlib", "http", "importlib.abc", "importlib.util"),
    *("json", "logging", "lzma", "multiprocessing", "pathlib", "pickle", "random", "shutil", "socket", "ssl"),
    *("subprocess", "tarfile", "tempfile", "urllib", "zipfile", "zlib"),
)


def test_import_reads_only_what_it_needs():
    """Beyond what NumPy has loaded. Without site (-S): an installation in place loads much before it begins."""
    folders = [str(PACKAGE.parent), str(Path(np.__file__).parents[1])]
    code = (
        f"import sys; sys.path[:0] = {folders}; import numpy; before = set(sys.modules); import minires\n"
        f"print(*sorted((set(sys.modules) - before) & set({WAITING})))"
    )
    result = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_import_does_not_seed_numpy():
    code = "import numpy as np; np.random.seed(5); import minires; minires.nn.Linear(2, 2); print(np.random.rand())"
    plain = "import numpy as np; np.random.seed(5); print(np.random.rand())"
    assert run(code).stdout == run(plain).stdout


def test_public_names_exist():
    for module in (minires, minires.nn, minires.models, minires.data, minires.kernels):
        for name in module.__all__:
            assert hasattr(module, name), name


def test_the_version_is_one():
    assert minires.__version__ == importlib.metadata.version("minires")


def test_typed():
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("path", MODULES, ids=[str(p.relative_to(PACKAGE)) for p in MODULES])
def test_files_are_short_and_explained(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 500, "a file over 500 lines is two files"
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says what it is"
    for node in tree.body:
        functions = [node] if isinstance(node, ast.FunctionDef) else []
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            functions = [n for n in node.body if isinstance(n, ast.FunctionDef)]
        for function in functions:
            if function.name.startswith("_") or function.name in ("forward", "rate", "extra_repr"):
                continue
            assert ast.get_docstring(function) or is_setter(function), f"{function.name} has no docstring"
            assert function.returns is not None or is_setter(function), f"{function.name}: no return type"


def is_setter(function):
    return any(isinstance(d, ast.Attribute) and d.attr == "setter" for d in function.decorator_list)


@pytest.mark.parametrize("path", sorted((PACKAGE / "kernels").glob("*.py")), ids=lambda p: p.name)
def test_kernels_can_be_stepped_through(path):
    """No lambda, closure, generator or comprehension; nothing but the backend and other kernels is imported."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        hidden = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Yield, ast.YieldFrom)
        assert not isinstance(node, hidden), f"{path.name}, line {node.lineno}: {type(node).__name__}"
        if isinstance(node, ast.FunctionDef):
            inner = [n for n in ast.walk(node) if isinstance(n, ast.FunctionDef) and n is not node]
            assert not inner, f"{path.name}: a function inside {node.name}"
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("minires"):
            assert re.match(r"minires\.(backend|kernels)", node.module), node.module


#: The rooms from the ground up; a module imports from its own room and from those on the floors below.
FLOORS = [
    {"kernels"},
    {"gradcheck"},
    {"engine"},
    {"nn"},
    {"data", "optim"},
    {"models"},
    {"debug"},
    {"train"},
    {"bench", "exercises"},
    {"cli"},
]

#: Imports from above that only the type checker sees.
TYPING_ONLY = [("engine", "nn"), ("debug", "train")]


def floor(room):
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def test_every_room_uses_only_rooms_below():
    for path in MODULES:
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room in ("__init__", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("minires"):
                named = node.module.split(".")[1:2] or [alias.name for alias in node.names]
                for other in named:
                    allowed = other == room or (room, other) in TYPING_ONLY or floor(other) < floor(room)
                    assert allowed, f"{path.relative_to(PACKAGE)} imports {other}"
