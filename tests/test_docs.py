"""The README is executed: its commands, its code, its debugger session, its files."""

import gzip
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.S)


def blocks(language):
    return [text for kind, text in BLOCKS if kind == language]


def python(code, folder, *more, text=None):
    path = folder / "step.py"
    path.write_text(code)
    return subprocess.run(
        [sys.executable, *more, path.name], cwd=folder, input=text, capture_output=True, text=True, timeout=120
    )


def test_the_two_commands_stand_at_the_top():
    lines = [line.strip() for line in README.splitlines() if line.strip()]
    assert lines[1:3] == ["pip install . && minires train", 'pip install ".[test]" && pytest']
    assert lines[2] in (ROOT / ".ci" / "run").read_text().splitlines(), "CI runs the second one"


def test_the_residual_block_prints_what_it_says(tmp_path):
    code = next(code for code in blocks("python") if "class ResidualBlock" in code)
    assert 15 <= len([line for line in code.splitlines() if line.strip()]) <= 22
    result = python(code, tmp_path)
    assert result.returncode == 0, result.stderr

    number = r"-?\d+\.\d+(?:e-?\d+)?"
    promised = blocks("")[0].strip()
    printed = result.stdout.strip()
    assert re.sub(number, "#", printed) == re.sub(number, "#", promised)
    found, expected = ([float(n) for n in re.findall(number, text)] for text in (printed, promised))
    assert found == pytest.approx(expected, rel=1e-2)  # float32, and another BLAS may round otherwise


def test_the_training_loop_learns_and_saves(tmp_path):
    result = python(next(code for code in blocks("python") if "CosineAnnealingLR(" in code), tmp_path)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.strip().rstrip("%")) >= 85 and (tmp_path / "resnet8.safetensors").exists()


def test_fit_learns(tmp_path):
    result = python(next(code for code in blocks("python") if "TrainOptions(" in code), tmp_path)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.strip().splitlines()[-1].rstrip("%")) >= 85


def test_adamw_with_clipping_learns(tmp_path):
    result = python(next(code for code in blocks("python") if "clip_grad_norm_(" in code), tmp_path)
    assert result.returncode == 0, result.stderr
    loss, norm = re.fullmatch(r"loss (\d+\.\d+), norm (\d+\.\d+)", result.stdout.strip()).groups()
    assert float(loss) < 2.1 and float(norm) > 0


def test_the_test_files_of_mnist_become_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 28, 28), dtype=np.uint8)
    labels = np.arange(30, dtype=np.uint8) % 10
    for name, kind, array in (("images-idx3", 0x803, images), ("labels-idx1", 0x801, labels)):
        content = struct.pack(f">I{array.ndim}I", kind, *array.shape) + array.tobytes()
        (tmp_path / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    result = python(next(code for code in blocks("python") if "read_idx_images" in code), tmp_path)
    assert result.returncode == 0, result.stderr
    from minires.data import load_data

    split = load_data(tmp_path / "t10k")
    assert (len(split.train), len(split.test), split.num_classes) == (20, 10, 10)
    stored = {image[0].tobytes(): label for image, label in zip(split.train.images, split.train.labels, strict=True)}
    truth = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert all(truth[image] == label for image, label in stored.items())


def test_the_loader_says_what_it_says(tmp_path):
    code = next(code for code in blocks("python") if "load_state_dict(state)" in code)
    result = python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == next(text for text in blocks("") if "batches to go" in text).strip()


def test_the_data_sets_that_are_named_exist():
    from minires.data import DATASETS

    table = README[README.index("| name | what it is |") : README.index("What does not come with MiniRes")]
    named = [name.strip() for row in table.splitlines()[2:] if row for name in row.split("|")[1].split(",")]
    assert named == [*DATASETS, "the path of a folder"]


def test_the_gradient_check_says_what_it_says(tmp_path):
    code = next(code for code in blocks("python") if "check_kernel" in code)
    result = python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    promised = next(text for text in blocks("") if "kernel-flipped" in text)
    tiny = r"\d+e-\d\d"  # the last digits differ between machines
    assert re.sub(tiny, "#", result.stdout.strip()) == re.sub(tiny, "#", promised.strip())


def test_the_record_leaves_what_it_says(tmp_path):
    code = next(code for code in blocks("python") if "debug.record()" in code)
    result = python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "\n72 operations " in result.stdout
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
        result = python(next(code for code in blocks("python") if sign in code), tmp_path)
        assert result.returncode == 0, result.stderr
        promised = next(promised for promised in blocks("") if text in promised)
        assert printed_as(promised, result.stdout), result.stdout
    result = python(next(code for code in blocks("python") if "debug.watch(" in code), tmp_path, text="p dy.shape\nc\n")
    assert "(2, 64, 2, 2)" in result.stdout and "grad of fc.weight (10, 64): norm 0 ->" in result.stdout


def test_the_names_of_the_networks_are_all_there():
    import minires

    table = README[README.index("| family |") : README.index("Options: `num_classes`")]
    named = set(re.findall(r"\b(?:\w+_)?(?:resnet|resnext|plain)\w+", table.split("\n", 1)[1]))
    named |= {f"preact_resnet{depth}" for depth in re.findall(r"\b\d+\b", table[table.index("preact_resnet18") :])}
    assert named - {"preact_resnet2016"} == set(minires.list_models())


def test_the_other_commands_parse():
    from minires.cli import make_parser

    commands = [line.split()[1:] for line in README.splitlines() if line.startswith("    minires ")]
    assert len(commands) >= 3
    for command in commands:
        make_parser().parse_args(command)


def test_the_commands_of_several_workers_parse():
    from minires.cli import make_parser

    commands = [line.split() for line in README.splitlines() if line.startswith("    mpiexec ")]
    assert len(commands) >= 2
    for mpiexec, n, count, minires, *command in commands:
        assert (mpiexec, n, minires) == ("mpiexec", "-n", "minires") and count.isdecimal()
        make_parser().parse_args(command)


def test_the_loop_of_several_workers_learns(tmp_path):
    """Alone; and by two workers, where mpi4py and mpiexec are there."""
    from test_parallel import MISSING, mpiexec

    code = next(code for code in blocks("python") if "parallel.backward(" in code)
    printed = [python(code, tmp_path).stdout]
    if MISSING is None:
        printed.append(mpiexec(2, "step.py", folder=tmp_path).stdout)
    for n, text in enumerate(printed, 1):
        workers, loss = re.fullmatch(r"(\d) workers, last loss (\d\.\d+), \d+\.\d s in communication\n", text).groups()
        assert int(workers) == n and float(loss) < 1.5


def test_the_debugger_session_is_real(tmp_path):
    session = next(text for text in blocks("") if "(Pdb)" in text).splitlines()
    commands = [line.removeprefix("(Pdb) ") for line in session if line.startswith("(Pdb) ")]
    code = next(code for code in blocks("python") if "y.sum().backward()" in code)
    result = python(code, tmp_path, "-m", "pdb", text="\n".join([*commands, "quit", ""]))
    printed = [line.removeprefix("(Pdb) ") for line in result.stdout.splitlines()]
    position = 0
    for line in session:
        if not line.startswith("(Pdb) "):
            assert line in printed[position:], f"pdb did not print: {line}\n{result.stdout}"
            position = printed.index(line, position) + 1


def test_the_drawings_are_made(tmp_path):
    result = python(next(code for code in blocks("python") if "debug.draw(" in code), tmp_path)
    assert result.returncode == 0, result.stderr
    shown = ROOT / "tutorials" / "figures" / "residual_block.png"
    assert shown.stat().st_size < 100_000
    with Image.open(shown) as committed, Image.open(tmp_path / "block.png") as drawn:
        assert committed.size == pytest.approx(drawn.size, rel=0.02), "draw the committed picture anew"
    assert (tmp_path / "resnet20.svg").read_text().count("BasicBlock") == 9


def test_the_map_names_every_file_and_no_other():
    named = set(re.findall(r"^\| `(minires/[\w/.]+)` \|", README, re.M))
    there = {str(p.relative_to(ROOT)) for p in (ROOT / "minires").rglob("*.py") if not p.name.startswith("__")}
    assert named == there


def test_every_file_that_is_named_exists():
    for path in re.findall(r"`((?:minires|tests|tutorials)/[\w/.]+\.\w+)`", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([\w/.]+)\)", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"python (tutorials/\w+\.py)", README):
        assert (ROOT / path).exists(), path


def test_launch_json_is_json():
    assert json.loads(blocks("json")[0])["configurations"][0]["justMyCode"] is False


def test_extras_and_tests_that_are_named_exist():
    setup = (ROOT / "setup.cfg").read_text()
    for extras in re.findall(r'pip install "?\.\[([\w,]+)\]', README):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} =", setup, re.M), extra


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
