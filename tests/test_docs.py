"""The README files are executed: their commands, code, debugger session, files and links, wherever they stand."""

import ast
import configparser
import gzip
import importlib
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minires

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minires"
READMES = [ROOT / "README.md", *sorted(PACKAGE.rglob("README.md")), ROOT / "tutorials" / "README.md"]
NAMES = [str(path.relative_to(ROOT)) for path in READMES]
TEXTS = {name: path.read_text() for name, path in zip(NAMES, READMES, strict=True)}
TOP, MAP = "README.md", "minires/README.md"
TRAIN, DATA, DEBUG, GRADCHECK, EXERCISES, BENCH, MODELS, KERNELS = (
    f"minires/{room}/README.md"
    for room in ("train", "data", "debug", "gradcheck", "exercises", "bench", "models", "kernels")
)

#: Each program of the README files: where it stands, and what it alone holds.
PROGRAMS = [
    (TOP, "class ResidualBlock"),
    (TOP, "minires.textbook()"),
    (TRAIN, "CosineAnnealingLR("),
    (TRAIN, "TrainOptions("),
    (TRAIN, "clip_grad_norm_("),
    (TRAIN, "parallel.backward("),
    (DATA, "load_state_dict(state)"),
    (DATA, "read_idx_images"),
    (DEBUG, "y.sum().backward()"),
    (DEBUG, "debug.watch("),
    (DEBUG, "debug.draw("),
    (DEBUG, "debug.record()"),
    (DEBUG, "detect_anomaly()"),
    (DEBUG, "debug.compare("),
    (GRADCHECK, "check_kernel"),
    (KERNELS, "conv2d_loops("),
]

every_readme = pytest.mark.parametrize("name", NAMES)


def blocks(language, file):
    """The texts of a README file between fences of this language; "" is what a program prints."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", TEXTS[file], re.S | re.M)
    return [text for kind, text in fenced if kind == language]


def program(file, sign):
    assert (file, sign) in PROGRAMS
    return next(code for code in blocks("python", file) if sign in code)


def printed_by(file, sign):
    """What a README file says that a program prints."""
    return next(text for text in blocks("", file) if sign in text).strip()


def section(file, first, behind):
    """The part of a README file from one text to another."""
    text = TEXTS[file]
    return text[text.index(first) : text.index(behind, text.index(first))]


def commands(text, name):
    """The lines in a README file that are commands of this name, as words."""
    return [line.split() for line in text.splitlines() if line.startswith(f"    {name} ")]


def python(code, folder, *more, text=None, **environment):
    """This code as step.py in this folder, run by Python with more options, an input, more in its environment."""
    path = folder / "step.py"
    path.write_text(code)
    return subprocess.run(
        [sys.executable, *more, path.name],
        cwd=folder,
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def run(file, sign, folder, text=None):
    """A program of a README file, run as step.py in this folder."""
    result = python(program(file, sign), folder, text=text)
    assert result.returncode == 0, result.stderr
    return result.stdout


# ---- All of them -----------------------------------------------------------------------------------------------------


def test_the_top_is_short():
    assert len(TEXTS[TOP].splitlines()) <= 200


def test_a_room_that_users_enter_has_a_readme_and_the_top_leads_to_it():
    assert {TRAIN, DATA, DEBUG, GRADCHECK, EXERCISES, BENCH, MODELS, KERNELS, MAP} <= set(NAMES)
    for name in NAMES[1:]:
        assert f"]({name})" in TEXTS[TOP], name


def test_they_are_installed_too():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options.package_data"]["*"] == "README.md"
    for path in READMES[1:-1]:
        assert (path.parent / "__init__.py").exists(), "package data belongs to a package"


@every_readme
def test_it_begins_by_saying_what_it_is_for(name):
    title, prose = [part for part in TEXTS[name].split("\n\n") if not part.startswith("    ")][:2]
    assert title.startswith("# ") and "\n" not in title
    assert re.match(r"[A-Z`]", prose) and not prose.startswith("```"), prose


@every_readme
def test_its_programs_are_run_by_these_tests(name):
    for code in blocks("python", name):
        ast.parse(code)
        signs = [sign for file, sign in PROGRAMS if file == name and sign in code]
        assert len(signs) == 1, code
    assert len(blocks("python", name)) == len([file for file, sign in PROGRAMS if file == name])


def test_every_program_in_the_table_has_its_test():
    source = Path(__file__).read_text().partition("every_readme =")[2]
    for _, sign in PROGRAMS:
        assert f'"{sign}"' in source, sign


@every_readme
def test_its_commands_parse(name):
    from minires.cli import make_parser

    inside = re.findall(r"`(minires [a-z]+ [^`]*--[^`.]*(?:\.py)?)`", " ".join(TEXTS[name].split()))
    for command in [*commands(TEXTS[name], "minires"), *(text.split() for text in inside)]:
        make_parser().parse_args(command[1:])


def test_the_other_commands_are_there():
    assert len([command for text in TEXTS.values() for command in commands(text, "minires")]) >= 3


def test_the_commands_of_several_workers_parse():
    from minires.cli import make_parser

    found = [command for text in TEXTS.values() for command in commands(text, "mpiexec")]
    assert len(found) >= 2
    for mpiexec, n, count, name, *command in found:
        assert (mpiexec, n, name) == ("mpiexec", "-n", "minires") and count.isdecimal()
        make_parser().parse_args(command)


@every_readme
def test_every_file_that_is_named_exists(name):
    text = " ".join(TEXTS[name].split())
    for path in re.findall(r"`((?:minires|tests|tutorials)/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"python (tutorials/\w+\.py)", text):
        assert (ROOT / path).exists(), path


def headings(text):
    """The headings of a text as links name them."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", prose, re.M)}


@every_readme
def test_every_link_leads_somewhere(name):
    links = re.findall(r"\]\(([^)\s]+)\)", " ".join(TEXTS[name].split()))
    assert links
    for link in links:
        path, _, heading = link.partition("#")
        target = ((ROOT / name).parent / path).resolve()
        assert target.exists() and ROOT in target.parents, link
        if heading:
            assert heading in headings(target.read_text()), link


@every_readme
def test_every_name_of_minires_that_is_named_exists(name):
    for dotted in re.findall(r"`(minires(?:\.\w+)+)", TEXTS[name]):
        found = minires
        for part in dotted.split(".")[1:]:
            found = getattr(found, part, None) or importlib.import_module(f"{found.__name__}.{part}")


@every_readme
def test_extras_that_are_named_exist(name):
    setup = (ROOT / "setup.cfg").read_text()
    for extras in re.findall(r'`?(?:pip install )?"\.\[([\w,]+)\]', TEXTS[name]):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} =", setup, re.M), extra


# ---- The top ---------------------------------------------------------------------------------------------------------


def test_the_two_commands_stand_at_the_top():
    lines = [line.strip() for line in TEXTS[TOP].splitlines() if line.strip()]
    assert lines[1:3] == ["pip install . && minires train", 'pip install ".[test]" && pytest']
    assert lines[2] in (ROOT / ".ci" / "run").read_text().splitlines(), "CI runs the second one"


def test_the_residual_block_prints_what_it_says(tmp_path):
    code = program(TOP, "class ResidualBlock")
    assert 15 <= len([line for line in code.splitlines() if line.strip()]) <= 22
    printed = run(TOP, "class ResidualBlock", tmp_path).strip()

    number = r"-?\d+\.\d+(?:e-?\d+)?"
    promised = blocks("", TOP)[0].strip()
    assert re.sub(number, "#", printed) == re.sub(number, "#", promised)
    found, expected = ([float(n) for n in re.findall(number, text)] for text in (printed, promised))
    assert found == pytest.approx(expected, rel=1e-2)  # float32, and another BLAS may round otherwise


def test_the_textbook_mode_and_kernels_of_ones_own_work(tmp_path):
    loss, accuracy = run(TOP, "minires.textbook()", tmp_path).strip().splitlines()[-1].split(", ")
    assert 1.5 < float(loss) < 3.5, "about ln 10, before training"
    assert int(accuracy.rstrip("%")) >= 85


@pytest.mark.parametrize("value, same", [("1", "True"), ("0", "False")])
def test_the_textbook_mode_of_the_environment(value, same, tmp_path):
    assert "`MINIRES_TEXTBOOK=1`" in TEXTS[TOP] and "MINIRES_TEXTBOOK" in TEXTS[DEBUG]
    code = """
import minires
import minires.functional as F

x, w = minires.randn(2, 16, 8, 8), minires.randn(16, 16, 3, 3, requires_grad=True)
y = F.conv2d(x, w)
with minires.textbook():
    z = F.conv2d(x, w)
print(y.node.backward is z.node.backward)
"""
    result = python(code, tmp_path, MINIRES_TEXTBOOK=value)
    assert result.stdout.strip() == same, result.stderr


def test_the_names_of_the_networks_are_all_there():
    table = section(TOP, "| family |", "\n\n")
    named = set(re.findall(r"\b(?:\w+_)?(?:resnet|resnext|plain)\w+", table.split("\n", 1)[1]))
    named |= {f"preact_resnet{depth}" for depth in re.findall(r"\b\d+\b", table[table.index("preact_resnet18") :])}
    assert named - {"preact_resnet2016"} == set(minires.list_models())


def test_the_speeds_at_the_top_are_those_of_the_bench():
    rows = section(TOP, "| work |", "\n\n").splitlines()
    assert set(rows) <= set(section(BENCH, "| work |", "\n\n").splitlines()) and len(rows) >= 5


def test_the_map_names_every_room_and_no_other():
    named = re.findall(r"^\| \[?`(\w+/|\w+\.py)`", TEXTS[MAP], re.M)
    there = [f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")]
    assert sorted(named) == sorted([*there, "cli.py"])


def test_nothing_else_at_the_top():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode == 0 and tracked.stdout:
        top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
        assert top <= {
            ".ci",
            ".gitignore",
            "LICENSE",
            "README.md",
            "minires",
            "pyproject.toml",
            "setup.cfg",
            "tests",
            "tutorials",
        }


# ---- Training and data -----------------------------------------------------------------------------------------------


def test_the_training_loop_learns_and_saves(tmp_path):
    printed = run(TRAIN, "CosineAnnealingLR(", tmp_path)
    assert int(printed.strip().rstrip("%")) >= 85 and (tmp_path / "resnet8.safetensors").exists()


def test_fit_learns(tmp_path):
    printed = run(TRAIN, "TrainOptions(", tmp_path)
    assert int(printed.strip().splitlines()[-1].rstrip("%")) >= 85


def test_adamw_with_clipping_learns(tmp_path):
    printed = run(TRAIN, "clip_grad_norm_(", tmp_path)
    loss, norm = re.fullmatch(r"loss (\d+\.\d+), norm (\d+\.\d+)", printed.strip()).groups()
    assert float(loss) < 2.1 and float(norm) > 0


def test_the_loop_of_several_workers_learns(tmp_path):
    """Alone; and by two workers, where mpi4py and mpiexec are there."""
    from test_parallel import MISSING, mpiexec

    printed = [run(TRAIN, "parallel.backward(", tmp_path)]
    if MISSING is None:
        printed.append(mpiexec(2, "step.py", folder=tmp_path).stdout)
    for n, text in enumerate(printed, 1):
        workers, loss = re.fullmatch(r"(\d) workers, last loss (\d\.\d+), \d+\.\d s in communication\n", text).groups()
        assert int(workers) == n and float(loss) < 1.5


def test_the_recipes_that_are_named_exist():
    from minires.train.recipes import RECIPES

    assert re.findall(r"^\| `([\w-]+)` \|", section(TRAIN, "| recipe |", "\n\n"), re.M) == [*RECIPES]


def test_the_test_files_of_mnist_become_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 28, 28), dtype=np.uint8)
    labels = np.arange(30, dtype=np.uint8) % 10
    for name, kind, array in (("images-idx3", 0x803, images), ("labels-idx1", 0x801, labels)):
        content = struct.pack(f">I{array.ndim}I", kind, *array.shape) + array.tobytes()
        (tmp_path / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    run(DATA, "read_idx_images", tmp_path)
    from minires.data import load_data

    split = load_data(tmp_path / "t10k")
    assert (len(split.train), len(split.test), split.num_classes) == (20, 10, 10)
    stored = {image[0].tobytes(): label for image, label in zip(split.train.images, split.train.labels, strict=True)}
    truth = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert all(truth[image] == label for image, label in stored.items())


def test_the_loader_says_what_it_says(tmp_path):
    assert run(DATA, "load_state_dict(state)", tmp_path).strip() == printed_by(DATA, "batches to go")


def test_the_data_sets_that_are_named_exist():
    from minires.data import DATASETS

    table = section(DATA, "| name | what it is |", "What does not come with MiniRes")
    named = [name.strip() for row in table.splitlines()[2:] if row for name in row.split("|")[1].split(",")]
    assert named == [*DATASETS, "the path of a folder"]


# ---- Kernels, checks, exercises --------------------------------------------------------------------------------------


def test_the_kernels_say_what_they_say(tmp_path):
    assert run(KERNELS, "conv2d_loops(", tmp_path).strip() == printed_by(KERNELS, "None")


def test_the_gradient_check_says_what_it_says(tmp_path):
    printed = run(GRADCHECK, "check_kernel", tmp_path)
    tiny = r"\d+e-\d\d"  # the last digits differ between machines
    assert re.sub(tiny, "#", printed.strip()) == re.sub(tiny, "#", printed_by(GRADCHECK, "kernel-flipped"))


def test_the_kinds_of_a_check_are_all_there():
    from minires.gradcheck.kinds import KINDS

    assert set(re.findall(r"`(\w+)`", section(GRADCHECK, "`kind` is one of", ";"))) - {"kind"} == set(KINDS)


def test_sixteen_exercises():
    from minires.exercises.table import EXERCISES as TABLE

    assert "Sixteen exercises" in TEXTS[EXERCISES] and len(TABLE) == 16


# ---- Debugging -------------------------------------------------------------------------------------------------------


def test_the_debugger_session_is_real(tmp_path):
    session = printed_by(DEBUG, "(Pdb)").splitlines()
    commands = [line.removeprefix("(Pdb) ") for line in session if line.startswith("(Pdb) ")]
    code = program(DEBUG, "y.sum().backward()")
    result = python(code, tmp_path, "-m", "pdb", text="\n".join([*commands, "quit", ""]))
    printed = [line.removeprefix("(Pdb) ") for line in result.stdout.splitlines()]
    position = 0
    for line in session:
        if not line.startswith("(Pdb) "):
            assert line in printed[position:], f"pdb did not print: {line}\n{result.stdout}"
            position = printed.index(line, position) + 1


def test_launch_json_is_json():
    assert json.loads(blocks("json", DEBUG)[0])["configurations"][0]["justMyCode"] is False


def test_the_drawings_are_made(tmp_path):
    run(DEBUG, "debug.draw(", tmp_path)
    shown = ROOT / "tutorials" / "figures" / "residual_block.png"
    assert shown.stat().st_size < 100_000
    with Image.open(shown) as committed, Image.open(tmp_path / "block.png") as drawn:
        assert committed.size == pytest.approx(drawn.size, rel=0.02), "draw the committed picture anew"
    assert (tmp_path / "resnet20.svg").read_text().count("BasicBlock") == 9


def test_the_record_leaves_what_it_says(tmp_path):
    assert "\n72 operations " in run(DEBUG, "debug.record()", tmp_path)
    assert len((tmp_path / "ops.csv").read_text().splitlines()) == 1 + 72
    assert "<details" in (tmp_path / "trace.html").read_text(encoding="utf-8")
    for picture in (tmp_path / "ops.png", ROOT / "tutorials" / "figures" / "record.png"):
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size < 100_000


def printed_as(promised, printed):
    """Whether a text was printed at the end, whatever its min, max and mean and the folder of step.py."""
    vary = r"(?<=min |max )[^,]+|(?<=mean )[^,]+|/\S*/(?=step.py)"
    same = [re.sub(vary, "", text.strip()) for text in (promised, printed)]
    return same[1].endswith(same[0])


def test_the_debug_tools_say_what_they_say(tmp_path):
    for sign, text in (("detect_anomaly()", "the result is not finite"), ("debug.compare(", "they part at bn1")):
        printed = run(DEBUG, sign, tmp_path)
        assert printed_as(printed_by(DEBUG, text), printed), printed
    result = python(program(DEBUG, "debug.watch("), tmp_path, text="p dy.shape\nc\n")
    assert "(2, 64, 2, 2)" in result.stdout and "grad of fc.weight (10, 64): norm 0 ->" in result.stdout
