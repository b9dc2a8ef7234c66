"""Files made to harm whoever reads them: each is refused in a sentence, soon, and in little memory."""

import bz2
import io
import json
import lzma
import os
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib

import numpy as np
import pytest
from datasets import at_most
from PIL import Image
from test_checkpoint import FOUR, TUPLES, entry, integer, tensor_pickle, text, zip_file

import minires
from minires import CheckpointError, cli
from minires.data.checkpoint import state_dict_of
from minires.train.prediction import load_model, predict

T = tensor_pickle


def load_apart(path, seconds=20):
    """Load a file in a process of its own, for what would make the interpreter fall or hang; returns what was said."""
    code = f"import minires\ntry:\n    minires.load({str(path)!r})\nexcept ValueError as error:\n    print(error)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds)
    assert result.returncode == 0, result.stderr[-500:] or f"the interpreter fell: {result.returncode}"
    return result.stdout.strip()


def refused_apart(tmp_path, content, message, name="a.pth"):
    """Every form of a pickle is refused with this message."""
    path = tmp_path / name
    path.write_bytes(content)
    said = load_apart(path)
    assert message in said and name in said, said


# ---- Pickles -----------------------------------------------------------------------------------------------------

ORDERED = b"ccollections\nOrderedDict\n"


def items_by_call(*keys):
    """OrderedDict(((key, None), ...)): keys that reach a dict as the arguments of a call."""
    return ORDERED + b"(" + b"".join(key + b"N\x86" for key in keys) + b"t\x85R"


@pytest.mark.parametrize("key", [TUPLES, b")" + b"\x85" * 200_000], ids=["without end", "deep"])
def test_tuples_as_keys_in_the_arguments_of_a_call(tmp_path, key):
    refused_apart(tmp_path, zip_file(items_by_call(key), {}), "neither text nor whole numbers")
    refused_apart(tmp_path, b"\x80\x02" + items_by_call(key) + b".", "neither text nor whole numbers", "a.th")


def test_an_ordered_dict_as_python_2_wrote_it(tmp_path):
    """Its items as the arguments of a call, each a list of two."""
    body = ORDERED + b"](](" + text("a") + tensor_pickle() + b"e](" + integer(7) + text("b") + b"ee\x85R"
    (tmp_path / "a.pth").write_bytes(zip_file(body, {"0": b"\0\0\x80?" * 4}))
    loaded = minires.load(tmp_path / "a.pth")
    assert list(loaded) == ["a", 7] and loaded["a"].tolist() == [1] * 4 and loaded[7] == "b"


@pytest.mark.parametrize("arguments", [integer(3) + b"\x85", b"(" + integer(1) + integer(2) + b"t", b"]N]\x86a\x85"])
def test_other_arguments_of_an_ordered_dict_are_refused(tmp_path, arguments):
    (tmp_path / "a.pth").write_bytes(zip_file(ORDERED + arguments + b"R", {}))
    with pytest.raises(CheckpointError):
        minires.load(tmp_path / "a.pth")


def in_seconds(limit, content, tmp_path, name="a.pth"):
    """Load it; refused or not, it must not take longer."""
    (tmp_path / name).write_bytes(content)
    start = time.perf_counter()
    try:
        return minires.load(tmp_path / name)
    except CheckpointError as error:
        return error
    finally:
        assert time.perf_counter() - start < limit


def test_marks_on_a_tall_stack_take_a_time_that_grows_with_the_file(tmp_path):
    """A hundred thousand empty tuples made on top of three hundred thousand values: each must not look at all."""
    body = b"N" * 300_000 + b"(t0" * 100_000
    assert isinstance(in_seconds(10, zip_file(b"](" + body + b"e", {}), tmp_path), list)


@pytest.mark.parametrize("step", [2**61 - 1, 2**40], ids=["one hash", "one place in the table"])
def test_numbers_as_keys_that_collide_are_refused(tmp_path, step):
    keys = [i * step if step > 2**60 else i * step % (2**63) for i in range(1, 65_000)]
    body = b"}(" + b"".join(integer(key) + b"N" for key in keys) + b"u"
    error = in_seconds(10, zip_file(body, {}), tmp_path)
    assert isinstance(error, CheckpointError) and "as keys" in str(error)


def test_numbers_as_keys_that_count_or_are_few_are_read(tmp_path):
    """Classes by their numbers, and the state of an optimizer under the addresses that PyTorch once used."""
    counting = b"}(" + b"".join(integer(i) + integer(i) for i in range(30_000)) + b"u"
    addresses = [140_000_000_000_000 + 16 * i for i in range(5_000)]
    body = b"](" + counting + b"}(" + b"".join(integer(n) + b"N" for n in addresses) + b"ue"
    first, second = in_seconds(10, zip_file(body, {}), tmp_path)
    assert first == {i: i for i in range(30_000)} and list(second) == addresses


def test_dicts_inside_each_other_end_without_a_crash(tmp_path):
    body = ORDERED + b"q\x000" + (b"h\x00" + text("a")) * 100_000 + b"N" + b"\x86\x85\x85R" * 100_000
    refused_apart(tmp_path, zip_file(body, {}), "too deep")


# ---- Zips --------------------------------------------------------------------------------------------------------


def zip_by_hand(method, packed, size, name=b"a.npy"):
    """A zip of one entry whose directory says what it likes. Args: method, the number of a compression."""
    numbers = (method, 0, 0, 0, len(packed), size, len(name))
    local = struct.pack("<4s2H3H3I2H", b"PK\3\4", 63, 0, *numbers, 0) + name + packed
    central = struct.pack("<4s3H3H3I5H2I", b"PK\1\2", 63, 63, 0, *numbers, 0, 0, 0, 0, 0, 0) + name
    return local + central + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)


@pytest.mark.parametrize("method", ["bzip2", "lzma"])
def test_entries_that_unpack_to_more_than_they_say_are_refused(tmp_path, method):
    """bzip2 and LZMA give out a whole block before anyone counts: 64 MB here, 1 kB in the directory."""
    zeros = np.lib.format.magic(1, 0) + bytes(64 << 20)
    if method == "bzip2":
        content = zip_by_hand(12, bz2.compress(zeros), 1000)
    else:
        content = zip_by_hand(14, b"\x09\x04\x05\x00" + lzma.compress(zeros, lzma.FORMAT_ALONE)[:5], 1000)
    (tmp_path / "a.npz").write_bytes(content)
    with at_most(4 << 20), pytest.raises(CheckpointError, match="stored or deflated"):
        minires.load(tmp_path / "a.npz")


def overlapping(count, size):
    """A .pth whose storages lie in each other: each is the rest of the file from its own header on."""
    entries = b""
    inner = bytes(size)
    for i in range(count)[::-1]:
        header = zip_by_hand(0, inner, len(inner), f"archive/data/{i}".encode())
        name = f"archive/data/{i}".encode()
        local = bytearray(header[: 30 + len(name)])
        struct.pack_into("<I", local, 14, zlib.crc32(inner))
        inner = bytes(local) + inner
    sizes, place = [], 0
    for i in range(count):
        name = f"archive/data/{i}".encode()
        head = 30 + len(name)
        rest = len(inner) - place - head
        crc = zlib.crc32(inner[place + head :])
        entries += struct.pack(
            "<4s3H3H3I5H2I", b"PK\1\2", 63, 63, 0, 0, 0, 0, crc, rest, rest, len(name), *[0] * 5, place
        )
        entries += name
        sizes.append(rest)
        place += head
    body = b"](" + b"".join(T("CharStorage", str(i), n, size=(1,)) for i, n in enumerate(sizes)) + b"e"
    pickled = b"\x80\x02" + body + b"."
    name = b"archive/data.pkl"
    numbers = (0, 0, 0, zlib.crc32(pickled), len(pickled), len(pickled), len(name))
    entries += struct.pack("<4s3H3H3I5H2I", b"PK\1\2", 63, 63, 0, *numbers, *[0] * 5, len(inner)) + name
    content = inner + struct.pack("<4s2H3H3I2H", b"PK\3\4", 63, 0, *numbers, 0) + name + pickled
    return (
        content
        + entries
        + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count + 1, count + 1, len(entries), len(content), 0)
    )


def test_entries_that_overlap_are_refused(tmp_path):
    content = overlapping(40, 1 << 20)
    (tmp_path / "a.pth").write_bytes(content)
    with at_most(8 << 20), pytest.raises(CheckpointError, match="overlap"):
        minires.load(tmp_path / "a.pth")


def test_a_limit_on_what_is_unpacked_that_can_be_raised(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(40_000_000))
    with at_most(4 << 20), pytest.raises(CheckpointError, match=r"320,000,128 bytes.*limit=320000128"):
        minires.load(tmp_path / "a.npz")
    assert minires.load(tmp_path / "a.npz", limit=320_000_128)["a"].shape == (40_000_000,)
    with pytest.raises(CheckpointError, match="limit=320000128"):
        minires.load(tmp_path / "a.npz", limit=320_000_127)
    np.savez_compressed(tmp_path / "b.npz", a=np.zeros(30_000_000))
    with at_most(260 << 20):  # once, not twice
        minires.load(tmp_path / "b.npz")


def test_a_limit_on_views_of_the_same_numbers_that_can_be_raised(tmp_path):
    view = T(numel=250_000, size=(250_000,))
    body = b"](" + view * 40 + b"e"
    (tmp_path / "a.pth").write_bytes(zip_file(body, {"0": bytes(1_000_000)}))
    with at_most(16 << 20), pytest.raises(CheckpointError, match="limit="):
        minires.load(tmp_path / "a.pth")
    assert len(minires.load(tmp_path / "a.pth", limit=50_000_000)) == 40
    for limit in (-1, 1.5, "2", True):
        with pytest.raises((TypeError, ValueError), match="limit"):
            minires.load(tmp_path / "a.pth", limit=limit)


# ---- safetensors -------------------------------------------------------------------------------------------------


def safetensors(header, numbers=b""):
    return struct.pack("<Q", len(header)) + header + numbers


def test_a_safetensors_header_larger_than_any_network_needs_is_refused(tmp_path):
    entries = [f'"{i:0200}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(45_000)]
    header = ("{" + ",".join(entries) + "}").encode()
    error = in_seconds(2, safetensors(header), tmp_path, "a.safetensors")
    assert isinstance(error, CheckpointError) and f"{len(header):,} bytes" in str(error) and "10,000,000" in str(error)
    with pytest.raises(TypeError, match="10,000,000"):
        minires.save(tmp_path / "b.safetensors", {f"{i:02000}": np.zeros(0, np.float32) for i in range(5_000)})
    assert not (tmp_path / "b.safetensors").exists()


# ---- What is no regular file -------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither pipes in folders nor /dev")
@pytest.mark.parametrize("suffix", [".pth", ".npz", ".safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_regular_file_is_refused(tmp_path, suffix, kind):
    path = tmp_path / f"a{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    code = f"""if True:
        import resource, sys
        from minires import cli, load
        from minires.train.run_checkpoint import read_checkpoint
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        for read in (load, read_checkpoint):
            try:
                read({str(path)!r})
            except ValueError as error:
                print(error)
        cli.main(["eval", "--model", "resnet8", "--weights", "no.pth", "--data", {str(path)!r}])"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    lines = result.stdout.splitlines()
    assert len(lines) == 2 and all(f"{path} is not a file" in line for line in lines), result.stdout + result.stderr
    assert suffix != ".npz" or "is not a file" in result.stderr, result.stderr


# ---- PyTorch's files that are read as they are meant -------------------------------------------------------------


def view(metadata=b"", **options):
    """A tensor with a seventh argument, in which PyTorch notes lazy changes of sign."""
    return tensor_pickle(**options)[: -len(b"tR")] + metadata + b"tR"


def test_a_tensor_that_is_to_be_negated_is(tmp_path):
    for flag, expected in ((b"\x88", [-1, -2, -3, -4]), (b"\x89", [1, 2, 3, 4])):
        (tmp_path / "a.pth").write_bytes(zip_file(view(entry("neg", flag)), {"0": FOUR}))
        assert minires.load(tmp_path / "a.pth").tolist() == expected
    (tmp_path / "a.pth").write_bytes(zip_file(view(entry("conj", b"\x88")), {"0": FOUR}))
    with pytest.raises(CheckpointError, match="complex"):
        minires.load(tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes(zip_file(tensor_pickle("ComplexFloatStorage"), {"0": FOUR}))
    with pytest.raises(CheckpointError, match=r"complex.*view_as_real"):
        minires.load(tmp_path / "a.pth")


def test_a_tensor_that_repeats_its_numbers_is_read(tmp_path):
    (tmp_path / "a.pth").write_bytes(zip_file(tensor_pickle(size=(3, 4, 2), stride=(0, 1, 0)), {"0": FOUR}))
    assert minires.load(tmp_path / "a.pth").tolist() == [[[1, 1], [2, 2], [3, 3], [4, 4]]] * 3


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_lazy_and_expanded_tensors_of_live_torch(tmp_path, new):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "neg": torch._neg_view(x),
        "bfloat16": torch._neg_view(x.bfloat16()),
        "expanded": torch.tensor([[1.0], [2.0]]).expand(2, 5),
        "scalar": torch.tensor(3.0).expand(4, 4),
    }
    torch.save(tensors, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    loaded = minires.load(tmp_path / "a.pth")
    for name, tensor in tensors.items():
        assert loaded[name].tolist() == tensor.float().tolist(), name


def test_a_torchscript_archive_is_called_by_its_name(tmp_path):
    for name in ("constants.pkl", "code/__torch__.py"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02}.")
            archive.writestr(f"archive/{name}", b"def forward(self): pass\n" * 40)
        (tmp_path / "a.pt").write_bytes(buffer.getvalue())
        with pytest.raises(CheckpointError, match=r"TorchScript.*torch\.jit\.load\(.*\)\.state_dict\(\)"):
            minires.load(tmp_path / "a.pt")


# ---- Networks of a size that a file names ------------------------------------------------------------------------


@pytest.mark.parametrize("name, shape", [("fc.weight", [40_000_000, 0]), ("conv1.weight", [0, 40_000_000, 3, 3])])
def test_an_empty_array_does_not_say_how_large_a_network_is(tmp_path, name, shape):
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors(f'{{"{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}'.encode()))
    with at_most(64 << 20), pytest.raises(CheckpointError, match=rf"{path.name}.*{name}.*40000000"):
        load_model("resnet8", path)


def test_an_array_of_another_width_does_not_say_how_large_a_network_is(tmp_path):
    minires.save(tmp_path / "a.npz", {"fc.weight": np.zeros((1_000_000, 1), np.float32)})
    message = r"fc.weight: expected shape \(10, 64\), got \(1000000, 1\)"
    with at_most(64 << 20), pytest.raises(RuntimeError, match=message):
        load_model("resnet8", tmp_path / "a.npz")


# ---- What reaches the terminal -----------------------------------------------------------------------------------

CODES = "\x1b[2J\x1b]0;owned\x07\u202e\r"  # clear the screen, name the window, turn the direction, go back


def clean(said):
    return said and all(c.isprintable() or c == "\n" for c in said) and r"\x1b[2j" in said.lower()


def test_codes_in_names_are_printed_as_text(tmp_path):
    model = minires.nn.Linear(2, 2)
    state = {"weight": np.zeros((2, 2)), f"{CODES}a": np.zeros(1)}
    for change in (state, {**state, f"{CODES}\n": 1}, {f"{CODES}b": np.zeros(1)}):
        with pytest.raises(RuntimeError) as refused:
            model.load_state_dict(change)
        assert clean(str(refused.value)), repr(str(refused.value))
    with pytest.raises(RuntimeError) as refused:
        model.load_state_dict({f"{CODES}.weight": np.zeros(1), "b.weight": np.zeros(1)}, rename={CODES: "b"})
    assert "both called b.weight" in str(refused.value)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names of files")
def test_codes_in_files_and_their_names_are_printed_as_text(tmp_path, capsys, monkeypatch):
    path = tmp_path / f"{CODES}.pth"
    for body in (b"c" + CODES.encode() + b"\nx\n", entry(CODES, integer(1)), tensor_pickle(key=CODES)):
        path.write_bytes(zip_file(body, {}))
        with pytest.raises(CheckpointError) as refused:
            state_dict_of(minires.load(path))
        assert clean(str(refused.value)), repr(str(refused.value))
    for name in ("missing", path.name):
        assert cli.main(["predict", "--model", "resnet8", "--weights", str(path) + name, f"{CODES}.png"]) == 2
        assert clean(capsys.readouterr().err)
    model = minires.create_model("resnet8", in_channels=3, num_classes=2)
    minires.save(tmp_path / "good.npz", model.state_dict())
    Image.new("RGB", (40, 40)).save(tmp_path / f"{CODES}.png")
    (tmp_path / "labels").write_text(f"{CODES[:-1]}\nb\n")
    command = ["predict", "--model", "resnet8", "--weights", str(tmp_path / "good.npz")]
    command += ["--labels", str(tmp_path / "labels"), str(tmp_path / f"{CODES}.png"), f"{CODES}none.png"]
    assert cli.main(command) == 2
    said = capsys.readouterr()
    assert clean(said.out) and clean(said.err) and said.out.count("\n") == 3


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names of files")
def test_codes_in_folders_of_images_and_runs_are_printed_as_text(tmp_path, capsys):
    for name in ("a", f"{CODES}b"):
        for i in range(2):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "data" / name / f"{i}.png")
    (tmp_path / "data" / "a" / f"0.{CODES}").write_text("")
    with pytest.warns(UserWarning) as warned:
        minires.data.image_folder(tmp_path / "data")
    assert clean(str(warned[0].message))
    (tmp_path / "data" / f"{CODES}c").mkdir()
    with pytest.raises(minires.DataError) as refused:
        minires.data.image_folder(tmp_path / "data")
    assert clean(str(refused.value))
    run = tmp_path / f"{CODES}run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"model": CODES, "data": "digits", "seed": 0, CODES: CODES}))
    (run / "metrics.csv").write_text("epoch\n")
    shutil.copytree(run, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model": "resnet8", "data": "digits", "seed": 0}))
    picture = str(tmp_path / "a.png")
    assert cli.main(["compare", str(run), str(tmp_path / "other"), "--picture", picture]) in (0, 2)
    said = capsys.readouterr()
    assert clean(said.out) and "\x1b" not in said.err


# ---- Weights that are no numbers ---------------------------------------------------------------------------------


def test_weights_that_are_not_numbers_are_said(tmp_path, capsys):
    """An accuracy would be that of class 0, or of whatever argmax makes of NaN."""
    model = minires.create_model("resnet8", in_channels=1)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    state["layer2.0.bn1.weight"][3] = np.nan
    path = tmp_path / "nan.npz"
    minires.save(path, state)
    picture = tmp_path / "confusion.png"
    arguments = ["eval", "--model", "resnet8", "--weights", str(path), "--data", "digits", "--picture", str(picture)]
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert "accuracy" not in said.out and not picture.exists()
    assert "layer2.0.bn1.weight" in said.err and "NaN" in said.err and "minires eval:" in said.err
    model = minires.create_model("resnet8")
    model.conv1.weight.array[0, 0, 0, 0] = np.inf
    Image.new("RGB", (40, 40), (200, 100, 50)).save(tmp_path / "a.png")
    with pytest.raises(FloatingPointError, match=r"conv1\.weight"):
        predict(model, "resnet8", tmp_path / "a.png", [str(i) for i in range(10)])
