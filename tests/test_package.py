"""What importing MiniRes does and does not do, and how the house is built."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

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


#: Which floor each module stands on; a module may import from its own floor and below.
FLOORS = [
    {"backend", "names", "errors", "downloads"},
    {"kernels", "cuda"},
    {"gradcheck"},
    {"values", "graph", "random"},
    {"methods"},
    {"operands"},
    {"tensor"},
    {"creation"},
    {"functional"},
    {"launch", "torch_format"},
    {"parallel"},
    {"nn", "optim", "data", "checkpoint"},
    {"models", "tracing"},
    {"plots", "summary", "prediction", "fusion", "progress", "recipes", "divergence"},
    {"debug"},
    {"evaluation", "training", "run_checkpoint", "runs", "comparison", "bench", "exercises"},
    {"cli"},
]


#: Imports from above that only the type checker sees.
TYPING_ONLY = [("graph", "tensor"), ("graph", "nn"), ("operands", "tensor"), ("plots", "training")]


def floor(module):
    return next(i for i, names in enumerate(FLOORS) if module in names)


def test_every_room_uses_only_rooms_below():
    for path in MODULES:
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room in ("__init__", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("minires"):
                named = node.module.split(".")[1:2] or [alias.name for alias in node.names]
                for other in named:
                    typing_only = (room, other) in TYPING_ONLY
                    assert typing_only or floor(other) <= floor(room), f"{path.name} imports {other}"
