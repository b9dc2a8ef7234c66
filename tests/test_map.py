"""The map of the house says what is there: its reading path, its walks, its places, and the guide to a first change."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from operations import NAMES, OPERATIONS, sizes_from
from test_package import FILES, FLOOR, ROOMS, files_imported, name_of, room_of

import minires
from minires import functional as F
from minires import nn

ROOT = Path(__file__).parent.parent
HOUSE = Path(minires.__file__).parent.parent  # where the package that runs lies: here, or installed
TEXT = (ROOT / "minires" / "README.md").read_text()


def section(title):
    """The text under a heading."""
    return re.search(rf"^## {re.escape(title)}[^\n]*\n(.*?)(?=^## |\Z)", TEXT, re.S | re.M)[1]


def rows(text):
    """The rows of the tables in a text, as lists of cells, without the heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    heads = [i - 1 for i, line in enumerate(lines) if set(line) <= set("|-")]
    return [
        [cell.strip() for cell in line[1:-1].split(" | ")]
        for i, line in enumerate(lines)
        if i not in heads and i - 1 not in heads
    ]


def places(text):
    """What stands as ``path.py: name, name`` in a text: pairs of a path and a name."""
    found = re.findall(r"`(minires/[\w/]+\.py): ([\w., ]+)`", text)
    return [(path, name) for path, names in found for name in names.split(", ")]


def test_the_map_is_short():
    assert len(TEXT.splitlines()) <= 175  # of which 60 are the first change, to be copied


def test_the_rooms_stand_from_the_top_down():
    named = re.findall(r"^\| \[?`(\w+)(?:/|\.py)`", TEXT, re.M)
    assert named == ROOMS and "Twelve rooms" in TEXT and len(ROOMS) == 12


# ---- The reading path ------------------------------------------------------------------------------------------------

PATH = [(file.strip("`"), int(lines), int(minutes)) for file, lines, minutes, _ in rows(section("The reading path"))]


def test_the_path_is_as_long_as_it_says():
    total, said = 0, 0
    for file, lines, minutes in PATH:
        there = len((ROOT / file).read_text().splitlines())
        assert abs(there - lines) <= 0.1 * there, f"{file} has {there} lines, the map says {lines}"
        assert abs(minutes - lines / 25) <= 1, file
        total, said = total + there, said + lines
    assert total <= 1500 and said <= 1500
    assert f"That is {said:,} lines, an hour" in TEXT and abs(sum(minutes for _, _, minutes in PATH) - 60) <= 5


def test_the_path_leads_from_an_addition_to_a_network_that_trains():
    files = [file.removeprefix("minires/") for file, _, _ in PATH]
    assert files[0] == "engine/tensor.py" and files[-1] == "optim/sgd.py"
    assert {"kernels/convolution.py", "nn/module.py", "models/resnet.py"} <= set(files) and len(set(files)) == len(
        files
    )


def test_no_file_on_the_path_imports_from_above():
    for file, _, _ in PATH:
        room = room_of(HOUSE / file)
        for other in files_imported(name_of(HOUSE / file)):
            above = room_of(FILES[other])
            assert above == room or FLOOR[above] > FLOOR[room], f"{file} imports {other}"


# ---- Walks and places ------------------------------------------------------------------------------------------------


def names_in(path):
    """Every function, class and constant at the top of a file, and every method as Class.method."""
    found = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            found |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return found


def test_every_place_that_is_named_is_there():
    assert len(places(TEXT)) >= 40
    assert TEXT.count(".py: ") == len(re.findall(r"`minires/[\w/]+\.py: [\w., ]+`", TEXT)), "`path.py: name, name`"
    for path, name in places(TEXT):
        assert name in names_in(path), f"{path}: {name}"


def calls_of(function):
    """The functions of MiniRes that run while this one does, as pairs of a path and a name."""
    seen = set()

    def look(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(HOUSE / "minires")):
            seen.add((os.path.relpath(code.co_filename, HOUSE), code.co_name))

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        function()
    finally:
        sys.setprofile(before)
    return seen


def add_and_back():
    a, b = minires.randn(3, requires_grad=True), minires.randn(3)
    (a + b).backward(np.ones(3))


def convolve_and_back():
    layer = nn.Conv2d(2, 3, 3)
    y = layer(minires.randn(2, 2, 5, 5, requires_grad=True))
    y.backward(np.ones(y.shape))


def convolve_both_ways():
    convolve_and_back()
    with minires.textbook():
        convolve_and_back()


def train(folder):
    from minires.cli import main

    options = "--model resnet8 --epochs 1 --batch-size 512 --seed 1".split()
    assert main(["train", *options, "--out", str(folder / "run")]) == 0


@pytest.mark.parametrize(
    "first, behind, walk",
    [
        ("From `a + b`", "Through a convolution", lambda folder: add_and_back()),
        ("Through a convolution", "Through `minires train`", lambda folder: convolve_both_ways()),
        ("Through `minires train`", "## What", train),
    ],
)
def test_a_walk_is_what_happens(first, behind, walk, tmp_path, capsys):
    """Each function that a walk names runs on the way; a class holds what is looked at there."""
    text = TEXT[TEXT.index(first) : TEXT.index(behind, TEXT.index(first))]
    steps = re.findall(r"^(\d)\. ", text, re.M)
    assert steps == [str(i + 1) for i in range(len(steps))] and 3 <= len(steps) <= 5
    seen = calls_of(lambda: walk(tmp_path))
    for path, name in places(text):
        body = ast.parse((ROOT / path).read_text()).body
        is_class = name in [node.name for node in body if isinstance(node, ast.ClassDef)]
        assert is_class or (path, name.split(".")[-1]) in seen, f"{path}: {name} did not run"


# ---- What always holds -----------------------------------------------------------------------------------------------


def test_every_invariant_has_its_test():
    held = rows(section("What always holds"))
    assert len(held) >= 7
    for _, file in held:
        assert (ROOT / file.strip("`")).exists(), file


@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_a_cache_is_named(operation):
    rng = np.random.default_rng(0)
    arrays, options = operation.sample(sizes_from(rng), rng)
    _, cache = operation.forward(*arrays, **options)
    assert cache is None or (isinstance(cache, tuple) and hasattr(cache, "_fields"))


def test_nodes_are_made_in_one_place():
    made = []
    for path in FILES.values():
        for function in [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]:
            calls = [n.func for n in ast.walk(function) if isinstance(n, ast.Call)]
            made += [(path.name, function.name) for f in calls if getattr(f, "id", getattr(f, "attr", "")) == "Node"]
    assert made == [("tensor.py", "apply")]


def test_what_is_said_to_be_absent_is_absent():
    x = minires.Tensor([2.0], requires_grad=True)
    (x * x).backward()
    assert not x.grad.requires_grad, "no gradient of a gradient"
    with pytest.raises(TypeError, match="float32 or float64, got float16"):
        F.conv2d(minires.Tensor(np.ones((1, 1, 3, 3), np.float16)), minires.Tensor(np.ones((1, 1, 3, 3), np.float16)))
    with pytest.raises(TypeError):
        minires.Tensor([1j])
    assert not hasattr(nn.Module, "register_forward_hook") and not hasattr(minires, "jit")


def test_questions_have_places():
    asked = rows(section("Where is it decided"))
    assert len(asked) >= 8
    for question, place in asked:
        assert question.endswith("?") and places(place), question


# ---- The first change ------------------------------------------------------------------------------------------------

GUIDE = section("Your first change")
WHERE = r"(above|below) `([^`]+)`"
#: What the guide says to write: file, above or below, the line to look for, and the text.
BLOCKS = re.findall(rf"In `([\w/.]+)`, {WHERE}, [^\n]+:\n\n```py\n(.*?)```", GUIDE, re.S)
LINES = [
    (file.strip("`"), *re.fullmatch(WHERE, where).groups(), text.strip("`"))
    for file, where, text in [row for row in rows(GUIDE) if len(row) == 3]
]
TABLES = {
    "tests/test_kernels.py::test_every_kernel_is_in_the_table",
    "tests/test_random_calls.py::test_every_public_operation_is_called",
    "tests/test_device_kernels.py::test_every_kernel_has_a_test",
    "tests/test_device_layers.py::test_every_layer_has_a_case",
}

#: Rules of the house that the new lines keep.
RULES = [
    f"tests/test_package.py::{name}"
    for name in (
        "test_files_are_short_and_explained",
        "test_kernels_can_be_stepped_through",
        "test_public_names_exist",
        "test_every_room_uses_only_rooms_below",
    )
]


def write(folder, edits):
    for file, side, line, text in edits:
        path = folder / file
        lines = path.read_text().splitlines()
        found = [i for i, one in enumerate(lines) if one.strip().startswith(line)]
        assert len(found) == 1, f"{file}: {line} stands there {len(found)} times"
        indent = lines[found[0]][: -len(lines[found[0]].lstrip())]
        new = [*text.splitlines(), "", ""] if "\n" in text else [indent + text]
        place = found[0] + (side == "below")
        path.write_text("\n".join([*lines[:place], *new, *lines[place:], ""]))


def run(folder, *command):
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A copy of the package and its tests in which the package alone is changed, as the guide says."""
    folder = tmp_path_factory.mktemp("changed")
    for part in ("minires", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / file, folder / file)
    write(folder, [edit for edit in BLOCKS + LINES if edit[0].startswith("minires/")])
    return folder


CHECK = """
import numpy as np

import minires
from minires import nn
from minires.gradcheck import gradcheck

rng = np.random.default_rng(0)
x = minires.Tensor(2 * rng.standard_normal((3, 4)), requires_grad=True)
y = minires.functional.gelu(x)
assert gradcheck(minires.functional.gelu, (x,)) is True
assert (nn.GELU()(x).detach().numpy() == y.detach().numpy()).all()
try:
    minires.functional.gelu(x, "none")
    raise SystemExit("the exact form is not refused")
except ValueError:
    pass
try:
    import torch
except ImportError:
    raise SystemExit(0)
theirs = torch.from_numpy(x.detach().numpy().copy()).requires_grad_()
expected = torch.nn.functional.gelu(theirs, approximate="tanh")
expected.sum().backward()
y.sum().backward()
assert abs(y.detach().numpy() - expected.detach().numpy()).max() < 1e-12
assert abs(x.grad.numpy() - theirs.grad.numpy()).max() < 1e-12
"""


def failed_tests(result):
    return {name.split(" - ")[0] for name in re.findall(r"^FAILED (.+)$", result.stdout, re.M)}


def test_the_guide_makes_gelu(copied):
    assert not hasattr(F, "gelu") and not hasattr(nn, "GELU"), "it is here to be added"
    assert len(BLOCKS) == 4 and len(LINES) == 5
    result = run(copied, "-c", CHECK)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_the_tests_ask_for_the_rows_that_the_guide_names_and_then_pass(copied, tmp_path):
    """First each table of the tests misses its row; then all is there, golden numbers too where PyTorch wrote them."""
    options = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert failed_tests(run(copied, *options, *TABLES)) == TABLES
    folder = tmp_path / "all"
    shutil.copytree(copied, folder)
    write(folder, [edit for edit in BLOCKS + LINES if edit[0].startswith("tests/")])
    result = run(folder, *options, *TABLES, *RULES)
    assert result.returncode == 0, result.stdout
    pytest.importorskip("torch", reason="PyTorch is not installed: the golden numbers cannot be written")
    command = re.search(r"`python (tests/reference/make_reference\.py operations)`", " ".join(GUIDE.split()))[1]
    assert run(folder, *command.split()).returncode == 0
    files = ("kernels", "reference", "live", "random_calls", "device_kernels", "device_layers")
    result = run(folder, *options, "-k", "gelu or GELU", *[f"tests/test_{name}.py" for name in files])
    assert result.returncode == 0, result.stdout
    ran = int(re.search(r"(\d+) passed", result.stdout)[1])
    assert ran >= 12, result.stdout
