"""A run's checkpoint as a file: what comes back, and hundreds of files that lie."""

import io
import json
import struct
import tracemalloc
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest

import minires
from minires import nn
from minires.data import digits
from minires.data.binary import CheckpointError
from minires.data.checkpoint import to_safetensors
from minires.train.recipes import TrainOptions
from minires.train.run_checkpoint import NO_DIGEST, Checkpoint, Checkpoints, decode, digest, encode
from minires.train.training import Training, fit

OPTIONS = TrainOptions(epochs=2, batch_size=100, optimizer="adam", lr=0.01, ema=0.5)


def small_training():
    split = digits()
    train = type(split.train)(split.train.images[:300], split.train.labels[:300])
    test = type(split.test)(split.test.images[:50], split.test.labels[:50])
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, generator=rng), nn.Dropout(0.1, np.random.default_rng(1)))
    return Training(model, train, test, OPTIONS)


@pytest.fixture(scope="module")
def whole():
    """A checkpoint from the middle of the second epoch, as values and as a file."""
    kept = []

    class Memory:
        def begin(self, training):
            pass

        def due(self, training):
            return True

        def write(self, training):
            arrays, values = training.state_dict()
            kept.append(Checkpoint({name: array.copy() for name, array in arrays.items()}, values))

    training = small_training()
    fit(training.model, training.loader.dataset, training.test, OPTIONS, keeper=Memory())
    checkpoint = next(c for c in kept if c.values["step"] == 4)
    return checkpoint, encode(checkpoint)


def test_everything_comes_back(whole):
    checkpoint, content = whole
    again = decode(content)
    assert again.values == json.loads(json.dumps(checkpoint.values)) and again.options == OPTIONS
    assert set(again.arrays) == set(checkpoint.arrays)
    parts = {name.split(".")[0] for name in again.arrays}
    assert parts == {"model", "optimizer", "average"}
    for name, array in checkpoint.arrays.items():
        assert again.arrays[name].dtype == array.dtype and again.arrays[name].tobytes() == array.tobytes(), name


def test_it_is_a_safetensors_file_that_others_read(whole, tmp_path):
    checkpoint, content = whole
    (tmp_path / "a.safetensors").write_bytes(content)
    from safetensors import safe_open

    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert set(file.keys()) == set(checkpoint.arrays) and set(file.metadata()) == {"training", "sha256"}
    assert set(minires.load(tmp_path / "a.safetensors")) == set(checkpoint.arrays)


@contextmanager
def memory_below(limit):
    """Errors: AssertionError where more than so many bytes were taken at once."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield
        taken = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert taken < limit, f"{taken} bytes were taken"


def test_every_turned_bit_and_every_cut_is_refused(whole):
    """The checksum covers every byte: 250 files with a bit turned, bytes missing, doubled, or exchanged."""
    _, content = whole
    rng = np.random.default_rng(1)
    header = 8 + struct.unpack("<Q", content[:8])[0]
    for i in range(250):
        bad = bytearray(content)
        end = header if i % 2 else len(content)  # half of them in the header
        place = int(rng.integers(end))
        if i % 10 < 7:
            bad[place] ^= 1 << int(rng.integers(8))
        elif i % 10 == 7:
            del bad[place : place + int(rng.integers(1, 50))]
        elif i % 10 == 8:
            bad[place:place] = bad[place : place + int(rng.integers(1, 50))] or b"x"
        else:
            bad = bad[:place]
        with memory_below(10 * len(content) + 2**20), pytest.raises(CheckpointError):
            decode(bytes(bad))


def forged(arrays, text):
    """A file whose checksum is right, whatever its text says."""
    content = to_safetensors(arrays, {"training": text, "sha256": NO_DIGEST})
    return content.replace(NO_DIGEST.encode(), digest(content).encode(), 1)


JUNK = [None, -1, 0, 3, 2**31, 2**63, 2**200, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "0", True, False]
JUNK += [[], {}, [[]], [None], {"x": 1}, [1] * 3, "__import__('os').abort()", {"__reduce__": ["os.system", ["x"]]}]


def mutated(value, rng):
    """A copy of nested dicts and lists with one value changed, removed, or put elsewhere."""
    if isinstance(value, dict) and value and rng.random() < 0.93:
        key = list(value)[rng.integers(len(value))]
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutated(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.93:
        i = int(rng.integers(len(value)))
        if rng.random() < 0.1:
            return value[:i] + value[i + 1 :]
        return [*value[:i], mutated(value[i], rng), *value[i + 1 :]]
    return JUNK[rng.integers(len(JUNK))]


def read_whole(content, training):
    """Read a checkpoint into a training as --resume does. Returns: whether it was refused, with MiniRes's own error."""
    try:
        checkpoint = decode(content)
        checkpoint.options  # noqa: B018  # they are checked when they are asked for
        Checkpoints("nowhere", "5m", checkpoint).begin(training)
    except CheckpointError:
        return True
    return False


def test_forged_values_are_read_or_refused(whole):
    """300 files with a right checksum and one value changed: nothing but CheckpointError, and little memory."""
    checkpoint, content = whole
    rng = np.random.default_rng(2)
    values = json.loads(json.dumps(checkpoint.values))
    training, refused = small_training(), 0
    for _ in range(300):
        bad = forged(checkpoint.arrays, json.dumps(mutated(values, rng)))
        with memory_below(10 * len(content) + 2**20):
            refused += read_whole(bad, training)
    assert 200 < refused < 300
    assert not read_whole(content, small_training()), "the whole one is read"


def test_forged_arrays_are_read_or_refused(whole):
    """Arrays of other shapes, kinds and names, in well-formed files."""
    checkpoint, content = whole
    rng = np.random.default_rng(3)
    names, refused = list(checkpoint.arrays), 0
    others = [np.zeros(0), np.zeros((2, 3)), np.float32(1), np.zeros(10, np.int64), np.zeros((10, 64), bool)]
    training = small_training()
    for i in range(60):
        arrays = dict(checkpoint.arrays)
        name = names[rng.integers(len(names))]
        if i % 3 == 0:
            arrays[name] = np.asarray(others[rng.integers(len(others))])
        elif i % 3 == 1:
            del arrays[name]
        else:
            arrays[["x", "model.x", "optimizer.7.exp_avg", "optimizer.x.y", "average", ""][rng.integers(6)]] = others[1]
        refused += read_whole(encode(Checkpoint(arrays, checkpoint.values)), training)
    assert refused > 50


HUGE = [2**16, 2**31, 2**40, 2**62, 2**63, 10**30, -1, 0, 1.5, "8", None]


def test_safetensors_headers_that_lie(tmp_path):
    """100 files whose header promises other sizes, places and kinds than there are."""
    rng = np.random.default_rng(4)
    refused = 0
    for _ in range(100):
        header = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
        entry = header["a"]
        choice = rng.integers(4)
        if choice == 0:
            entry["shape"][rng.integers(2)] = HUGE[rng.integers(len(HUGE))]
        elif choice == 1:
            entry["data_offsets"][rng.integers(2)] = HUGE[rng.integers(len(HUGE))]
        elif choice == 2:
            entry["dtype"] = ["F64", "I8", "BOOL", "BF16", "F8_E4M3", "O", "", 3][rng.integers(8)]
        else:
            size = int(HUGE[rng.integers(4)])
            entry["shape"], entry["data_offsets"] = [size], [0, 4 * size]
        text = json.dumps(header).encode()
        size = len(text) if rng.random() < 0.9 else int(rng.integers(2**40))
        path = tmp_path / "a.safetensors"
        path.write_bytes(struct.pack("<Q", size) + text + bytes(24))
        with memory_below(2**20):
            refused += refused_by_load(path)
    assert refused > 70


def refused_by_load(path):
    try:
        assert isinstance(minires.load(path), dict)
    except CheckpointError:
        return 1
    return 0


def npz_of(header, numbers):
    """A .npz file whose one array has this header, with every checksum of the zip right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", header + numbers)
    return buffer.getvalue()


def test_npz_headers_that_lie(tmp_path):
    """100 arrays whose header promises other sizes and kinds than there are: numpy.load would take the memory first."""
    rng = np.random.default_rng(5)
    path = tmp_path / "a.npz"
    kinds = ["<f4", "<f8", "|b1", "<i2", "|O", "<U9", "<c16", "|V8", "<M8[s]", "f4,f4", 7, None, "__import__('os')"]
    refused = 0
    for i in range(100):
        shape = (2, int(HUGE[rng.integers(7)])) if i % 2 else (2, 3)
        kind = kinds[rng.integers(len(kinds))] if i % 4 else "<f4"
        text = repr({"descr": kind, "fortran_order": bool(i % 3), "shape": shape})
        text += " " * (63 - (10 + len(text)) % 64) + "\n"
        version = bytes([1 + i % 20 // 18, 0])
        sizes = struct.pack("<H" if version[0] == 1 else "<I", len(text))
        path.write_bytes(npz_of(b"\x93NUMPY" + version + sizes + text.encode(), bytes(24)))
        with memory_below(2**20):
            refused += refused_by_load(path)
    assert 60 < refused < 100, "a few are what they say"


def test_npz_in_fortran_order_and_not_arrays(tmp_path):
    path = tmp_path / "a.npz"
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.savez_compressed(path, a=array, b=np.array(7))
    loaded = minires.load(path)
    assert loaded["a"].tolist() == array.tolist() and loaded["b"].item() == 7
    loaded["a"].array[0] = 1
    path.write_bytes(npz_of(b"no array at all", b""))
    with pytest.raises(CheckpointError, match="a.npz"):
        minires.load(path)


def test_nothing_in_a_file_is_run(whole, tmp_path):
    """A pickle under the name of a checkpoint, and one inside its metadata, create no file."""
    target = tmp_path / "created"
    pickled = f"cbuiltins\nexec\n(Vopen({str(target)!r}, 'w').close()\ntR.".encode()
    for content in (pickled, struct.pack("<Q", len(pickled)) + pickled, npz_of(pickled, b"")):
        with pytest.raises(CheckpointError):
            decode(content)
    checkpoint, _ = whole
    for key in checkpoint.values:
        values = {**checkpoint.values, key: pickled.decode()}
        assert read_whole(encode(Checkpoint(checkpoint.arrays, values)), small_training())
    assert not target.exists()


def test_a_header_nested_without_end_is_refused(whole):
    checkpoint, _ = whole
    for deep in ("[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000):
        with pytest.raises(CheckpointError):
            decode(forged(checkpoint.arrays, deep))
