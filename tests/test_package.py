"""What importing MiniRes does and does not do, and how the house is built."""

import ast
import importlib
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


# ---- The house -------------------------------------------------------------------------------------------------------

#: The floors from the top down, as the map lists the rooms; a module imports from its own room and from floors below.
FLOORS = [
    ["cli"],
    ["exercises", "bench"],
    ["train"],
    ["debug"],
    ["models"],
    ["data", "optim"],
    ["nn"],
    ["engine"],
    ["gradcheck"],
    ["kernels"],
]
ROOMS = [room for rooms in FLOORS for room in rooms]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def room_behind(name):
    """The room in which ``minires.name`` stands; None for a plain value, as the version."""
    if name in FLOOR:
        return name
    if name in minires.SHORT:
        return minires.SHORT[name].split(".")[0]
    module = getattr(getattr(minires, name), "__module__", "")
    return module.split(".")[1] if module.startswith("minires.") else None


def rooms_used(path):
    """Every room that a file imports or reaches by ``minires.name``, also inside functions and for types alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: an import without the package's name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "minires":
            names = [f"minires.{node.attr}"]
        for name in names:
            parts = name.split(".")
            room = room_behind(parts[1]) if parts[0] == "minires" and len(parts) > 1 else None
            if room is not None:
                yield room, node.lineno


def test_there_are_twelve_rooms_at_most():
    there = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {path.stem for path in PACKAGE.glob("*.py")}
    there -= {"__init__", "__main__"}
    assert sorted(there) == sorted(ROOMS) and len(ROOMS) <= 12


def test_every_room_uses_only_rooms_below():
    for path in MODULES:
        room = room_of(path)
        if room not in ("__init__", "__main__"):
            for other, line in rooms_used(path):
                below = other == room or FLOOR[other] > FLOOR[room]
                assert below, f"{path.relative_to(PACKAGE)}, line {line}: {room} uses {other}"


def test_an_import_from_above_would_be_seen(tmp_path):
    above = {
        "from minires.train.training import Epoch": "train",
        "def f():\n    import minires.train.runs": "train",
        "def f():\n    from minires import training": "train",
        "import minires\nminires.plots.plot_curves": "debug",
        "from minires import functional": "nn",
        "if TYPE_CHECKING:\n    from minires import Tensor": "engine",
        "import minires\nminires.no_grad": "engine",
    }
    for code, room in above.items():
        (tmp_path / "file.py").write_text(code)
        assert [found for found, _ in rooms_used(tmp_path / "file.py")] == [room], code


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in MODULES}


def at_import(body):
    """The statements that run while a file is imported: not those inside functions, nor for types alone."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from at_import(node.orelse)
            continue
        for part in ("body", "orelse", "handlers", "finalbody"):
            yield from at_import(getattr(node, part, []))


def files_imported(name):
    """The files that a file imports by name while it is imported itself (its own packages' come with any import)."""
    found = set()
    for node in at_import(ast.parse(FILES[name].read_text()).body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & set(FILES)
            found |= inside
            if len(inside) < len(node.names):
                found.add(node.module)
    return found & set(FILES)


def test_no_file_imports_itself_by_way_of_others():
    imported = {name: files_imported(name) for name in FILES}
    done = set()

    def walk(name, way):
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(imported[name]):
                walk(other, [*way, name])
            done.add(name)

    for name in imported:
        walk(name, [])
    assert imported["minires.engine.tensor"] >= {"minires.engine.operators", "minires.kernels.backend"}


# ---- Names -----------------------------------------------------------------------------------------------------------

PUBLIC = (Path(__file__).parent / "public_names.txt").read_text().split()


def find(dotted):
    """What a dotted name means: its longest part that can be imported, and attributes from there on."""
    parts = dotted.split(".")
    for i in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("minires"):
                raise
            continue
        for part in parts[i:]:
            found = getattr(found, part)
        return found
    raise AttributeError(dotted)


def test_every_name_that_was_ever_public_is_still_there():
    missing = []
    for dotted in PUBLIC:
        try:
            find(dotted)
        except AttributeError:
            missing.append(dotted)
    assert not missing and len(PUBLIC) > 500


def test_a_name_that_is_gone_would_be_missed():
    for dotted in ("minires.nn.Conv3d", "minires.no_such_room.name"):
        with pytest.raises(AttributeError):
            find(dotted)
