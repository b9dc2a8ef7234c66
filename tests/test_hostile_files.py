"""Files made to harm whoever reads them: each is refused in a sentence, soon, and in little memory."""

import subprocess
import sys
import time

import pytest
from test_checkpoint import TUPLES, integer, tensor_pickle, text, zip_file

import minires
from minires import CheckpointError


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
