"""Weights on disk: what comes back, what PyTorch reads and writes, and what is refused without running anything."""

import functools
import hashlib
import http.server
import io
import pickle
import struct
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

import minires
from minires import CheckpointError, Tensor, models, nn
from minires.data import torch_format
from minires.data.checkpoint import state_dict_of
from minires.data.torch_format import integer, text
from minires.models import pretrained

SUFFIXES = (".safetensors", ".npz", ".pth")
DATA = Path(__file__).parent.parent.parent / "shared" / "data"
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def sample_arrays():
    """One of each kind that a state_dict may hold, and those that are easily lost: 0-d, empty, not contiguous."""
    rng = np.random.default_rng(0)
    return {
        "conv.weight": rng.standard_normal((3, 2, 3, 3)).astype(np.float32),
        "double": rng.standard_normal((4, 5)),
        "bn.num_batches_tracked": np.array(2**53 + 1),
        "scalar": np.array(-0.0, np.float32),
        "flags": np.array([True, False, True]),
        "empty": np.zeros((0, 3), np.float32),
        "transposed": rng.standard_normal((3, 4)).T,
        "strided": np.arange(12, dtype=np.int64)[::-3],
        "half": np.array([0.5, np.inf], np.float16),
        "special": np.array([np.nan, -np.inf, 5e-324]),
    }


def assert_same(loaded, arrays):
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        got = loaded[name]
        assert isinstance(got, Tensor) and got.dtype == array.dtype and got.shape == array.shape, name
        assert got.numpy().tobytes() == np.ascontiguousarray(array).tobytes(), name


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".pt", ".th", ".PTH"])
def test_round_trip_keeps_every_bit(tmp_path, suffix):
    arrays = sample_arrays()
    path = tmp_path / f"weights{suffix}"
    minires.save(path, {name: Tensor(a) if a.ndim == 4 else a for name, a in arrays.items()})
    assert_same(minires.load(path), arrays)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_model_comes_back(tmp_path, suffix):
    first, second = (models.create_model("resnet8", generator=np.random.default_rng(s)) for s in (1, 2))
    minires.save(tmp_path / f"m{suffix}", first.state_dict())
    second.load_state_dict(minires.load(tmp_path / f"m{suffix}"))
    assert_same(second.state_dict(), {k: v.numpy() for k, v in first.state_dict().items()})


def test_what_cannot_be_saved(tmp_path):
    for state in ({"a": np.array([{}], object)}, {"a": np.ones(2, complex)}, {"a": np.array(["x"])}, {1: np.ones(2)}):
        for suffix in SUFFIXES:
            with pytest.raises(TypeError):
                minires.save(tmp_path / f"a{suffix}", state)
    with pytest.raises(TypeError, match="uint16"):
        minires.save(tmp_path / "a.pth", {"a": np.ones(2, np.uint16)})
    with pytest.raises(ValueError, match="ends in"):
        minires.save(tmp_path / "a.bin", {"a": np.ones(2)})
    assert not list(tmp_path.iterdir())


# ---- PyTorch's files, made by hand ------------------------------------------------------------------------------

FOUR = struct.pack("<4f", 1, 2, 3, 4)


def tensor_pickle(kind="FloatStorage", key="0", numel=4, offset=0, size=(4,), stride=(1,), legacy=False):
    """The opcodes of one tensor as torch.save writes them."""
    return b"".join(
        [
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + integer(numel),
            b"N" if legacy else b"",  # the sixth entry of before 1.6: no view
            b"tQ" + integer(offset),
            b"(" + b"".join(map(integer, size)) + b"t(" + b"".join(map(integer, stride)) + b"t",
            b"\x89ccollections\nOrderedDict\n)RtR",
        ]
    )


def entry(name, value):
    """A dict with one entry, as a pickle without its beginning and end."""
    return b"}" + text(name) + value + b"s"


def zip_file(body, storages, compression=zipfile.ZIP_STORED, byteorder=b"little"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("archive/byteorder", byteorder)
        for key, numbers in storages.items():
            archive.writestr(f"archive/data/{key}", numbers)
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def legacy_file(body, storages, counts=None, magic=torch_format.MAGIC, version=1001, system=None):
    """The format before 1.6. Args: storages, keys to bytes; counts, keys to the numbers each one promises."""
    system = {"protocol_version": 1001, "little_endian": True} if system is None else system
    start = [pickle.dumps(value, 2) for value in (magic, version, system)]
    rest = [pickle.dumps(list(storages), 2)]
    for key, numbers in storages.items():
        rest += [struct.pack("<q", len(numbers) // 4 if counts is None else counts[key]), numbers]
    return b"".join([*start, b"\x80\x02" + body + b".", *rest])


def make(form, value, storages=None, **options):
    storages = {"0": FOUR} if storages is None else storages
    return (zip_file if form == "zip" else legacy_file)(entry("a", value), storages, **options)


def load_bytes(tmp_path, content, name="a.pth"):
    path = tmp_path / name
    path.write_bytes(content)
    return minires.load(path)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_files_made_by_hand_are_read(tmp_path, form):
    legacy = form == "legacy"
    whole = load_bytes(tmp_path, make(form, tensor_pickle(legacy=legacy)))
    assert whole["a"].tolist() == [1, 2, 3, 4]
    view = tensor_pickle(offset=1, size=(2, 1), stride=(2, 1), legacy=legacy)
    assert load_bytes(tmp_path, make(form, view))["a"].tolist() == [[2], [4]]
    repeated = tensor_pickle(size=(2, 2), stride=(0, 3), legacy=legacy)  # an expanded tensor, not above its storage
    assert load_bytes(tmp_path, make(form, repeated))["a"].tolist() == [[1, 4], [1, 4]]
    nothing = tensor_pickle(size=(0, 3), stride=(3, 1), legacy=legacy)
    assert load_bytes(tmp_path, make(form, nothing))["a"].shape == (0, 3)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_loaded_tensors_can_be_written_and_share_nothing(tmp_path, form):
    one = tensor_pickle(legacy=form == "legacy")
    content = (zip_file if form == "zip" else legacy_file)(b"](" + one + one + b"e", {"0": FOUR})
    first, second = load_bytes(tmp_path, content)
    first.array[0] = 9
    assert second.tolist() == [1, 2, 3, 4]


def test_bfloat16_is_widened(tmp_path):
    raw = struct.pack("<4H", 0x3F80, 0xC000, 0x7F80, 0x0001)  # the upper halves of 1, -2, inf and a subnormal
    loaded = load_bytes(tmp_path, make("zip", tensor_pickle("BFloat16Storage"), {"0": raw}))["a"]
    assert loaded.dtype == np.float32 and loaded.tolist() == [1, -2, np.inf, 2.0**-133]


# ---- Live PyTorch -----------------------------------------------------------------------------------------------


def live_torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


def torch_network(kind):
    torch_resnet = pytest.importorskip("torch_resnet", reason="PyTorch is not installed")
    blocks = {"resnet18": ("BasicBlock", (2, 2, 2, 2)), "resnet50": ("Bottleneck", (3, 4, 6, 3))}
    return torch_resnet.ResNet(*blocks[kind], (16, 32, 64, 128), 1000, 3, "imagenet", "B")


def test_torch_load_reads_what_save_writes(tmp_path):
    torch = live_torch()
    arrays = sample_arrays()
    minires.save(tmp_path / "a.pth", arrays)
    loaded = torch.load(tmp_path / "a.pth", weights_only=True)
    assert list(loaded) == list(arrays)
    for name, array in arrays.items():
        got = loaded[name].numpy()
        assert got.dtype == array.dtype and got.shape == array.shape and loaded[name].is_contiguous(), name
        assert got.tobytes() == np.ascontiguousarray(array).tobytes(), name


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_networks_go_both_ways(tmp_path, name, new):
    """Names, order and values of a whole network, from MiniRes to PyTorch and back; the logits are then the same."""
    torch = live_torch()
    theirs = torch_network(name).eval()
    mine = models.create_model(name, width=16).eval()
    assert list(mine.state_dict()) == list(theirs.state_dict())
    minires.save(tmp_path / "mine.pth", mine.state_dict())
    theirs.load_state_dict(torch.load(tmp_path / "mine.pth", weights_only=True))
    x = np.random.default_rng(0).standard_normal((2, 3, 40, 33)).astype(np.float32)
    expected = theirs(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(mine(Tensor(x)).detach().numpy(), expected, rtol=1e-3, atol=1e-4)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth", _use_new_zipfile_serialization=new)
    other = models.create_model(name, width=16, generator=np.random.default_rng(5))
    loaded = minires.load(tmp_path / "theirs.pth")
    assert list(loaded) == list(other.state_dict())
    other.load_state_dict(loaded)
    assert_same(other.state_dict(), {k: v.numpy() for k, v in mine.state_dict().items()})


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_what_torch_saves_is_read(tmp_path, new):
    torch = live_torch()
    base = torch.arange(24, dtype=torch.float64).reshape(4, 6)
    tensors = {
        "whole": base,
        "transposed": base.t(),
        "strided": base[1::2, ::3],  # these three share a storage
        "diagonal": torch.arange(9.0).reshape(3, 3).diagonal(),
        "half": torch.tensor([0.5, 65504.0]).half(),
        "bfloat16": torch.tensor([[1.0, -2.5], [3e38, 0.0]]).bfloat16().t(),
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "long": torch.tensor(7),
        "int": torch.arange(3, dtype=torch.int32),
        "short": torch.arange(3, dtype=torch.int16),
        "char": torch.arange(-1, 2, dtype=torch.int8),
        "byte": torch.arange(3, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 2),
    }
    saved = {"epoch": 3, "best": 0.5, "state_dict": tensors, "history": [(1, "a"), None], "optimizer": {"state": {}}}
    torch.save(saved, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    loaded = minires.load(tmp_path / "a.pt")
    assert list(loaded) == list(saved)
    assert {key: loaded[key] for key in saved if key != "state_dict"} == {
        key: saved[key] for key in saved if key != "state_dict"
    }
    expected = {k: v.detach().float() if v.dtype == torch.bfloat16 else v.detach() for k, v in tensors.items()}
    assert_same(loaded["state_dict"], {name: value.numpy() for name, value in expected.items()})
    loaded["state_dict"]["whole"].array[...] = 0
    assert loaded["state_dict"]["transposed"].tolist() == base.t().tolist()


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_whole_torch_module_is_refused(tmp_path, new):
    torch = live_torch()
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(CheckpointError, match="torch.nn.modules.linear.Linear"):
        minires.load(tmp_path / "a.pt")


# ---- Refusals ---------------------------------------------------------------------------------------------------


def payloads(target):
    """Pickles that would create the file ``target`` (or run something) in an unpickler that obeys."""
    code = f"open({str(target)!r}, 'w').close()"
    return {
        "os.system": b"cos\nsystem\n(" + text(f"touch '{target}'") + b"tR",
        "posix.system": b"cposix\nsystem\n(" + text(f"touch '{target}'") + b"tR",
        "builtins.eval": b"cbuiltins\neval\n(" + text(code) + b"tR",
        "builtins.exec": b"cbuiltins\nexec\n(" + text(code) + b"tR",
        "builtins.getattr": b"cbuiltins\ngetattr\n",
        "numpy.core.multiarray.scalar": b"cnumpy.core.multiarray\nscalar\n",
        "numpy._core.multiarray._reconstruct": b"cnumpy._core.multiarray\n_reconstruct\n",
        "torch.load": b"ctorch\nload\n",
        "torch._utils._rebuild_tensor_v2.__globals__": b"\x80\x04"
        + text("torch._utils")
        + text("_rebuild_tensor_v2.__globals__")
        + b"\x93",  # protocol 4 walks dotted names
        "minires.data.torch_format.read": b"cminires.data.torch_format\nread\n",
    }


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("name", payloads("x"))
def test_a_pickle_that_asks_for_code_is_refused_and_nothing_runs(tmp_path, form, name):
    target = tmp_path / "created"
    payload = payloads(target)[name]
    if name in ("os.system", "builtins.eval", "builtins.exec"):
        pickle.loads(b"\x80\x02" + payload + b".")  # the payload is a real one ...
        assert target.exists()
        target.unlink()
    model = nn.Linear(2, 2)
    before = model.weight.tolist()
    with pytest.raises(CheckpointError, match=f"asks for {name}, which no tensor needs"):
        model.load_state_dict(load_bytes(tmp_path, make(form, payload)))
    assert not target.exists() and model.weight.tolist() == before  # ... and did not run here


@pytest.mark.parametrize("place", ["magic", "version", "system", "keys"])
def test_code_in_the_other_pickles_of_a_legacy_file(tmp_path, place):
    target = tmp_path / "created"
    parts = [pickle.dumps(v, 2) for v in (torch_format.MAGIC, 1001, {"little_endian": True})]
    parts += [b"\x80\x02" + entry("a", tensor_pickle(legacy=True)) + b".", pickle.dumps(["0"], 2)]
    parts[{"magic": 0, "version": 1, "system": 2, "keys": 4}[place]] = (
        b"\x80\x02" + payloads(target)["builtins.exec"] + b"."
    )
    with pytest.raises(CheckpointError, match="builtins.exec"):
        load_bytes(tmp_path, b"".join([*parts, struct.pack("<q", 4), FOUR]), "a.th")
    assert not target.exists()


def bad(value, form="zip", storages=None, **options):
    return lambda: make(form, value, storages, **options)


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


T = tensor_pickle
LEGACY = functools.partial(tensor_pickle, legacy=True)
DAMAGED = {
    "a storage with more numbers than promised": (bad(T(numel=3, size=(3,))), "has 16 bytes"),
    "a storage with fewer numbers than promised": (bad(T(numel=5)), "has 16 bytes"),
    "a huge promise": (bad(T(numel=2**62)), "has 16 bytes"),
    "a negative promise": (bad(T(numel=-1)), "no size of an array"),
    "a storage that is missing": (bad(T(key="7")), "storage 7 are not in the file"),
    "a tensor longer than its storage": (bad(T(size=(5,))), "reaches outside"),
    "a tensor behind its storage": (bad(T(offset=1)), "reaches outside"),
    "an offset far behind": (bad(T(offset=2**40, size=(1,))), "reaches outside"),
    "strides that leave the storage": (bad(T(size=(2, 2), stride=(3, 1))), "reaches outside"),
    "a negative offset": (bad(T(offset=-1, size=(2,))), "no size of an array"),
    "a negative stride": (bad(T(offset=3, stride=(-1,))), "stride"),
    "a negative size": (bad(T(size=(-4,))), "size"),
    "more strides than sizes": (bad(T(stride=(1, 1))), "stride"),
    "stride 0, larger than the storage": (bad(T(size=(1000, 1000), stride=(0, 0))), "many times as large"),
    "stride 0, larger than any memory": (bad(T(size=(2**40, 2**40), stride=(0, 0))), "many times as large"),
    "an unknown storage class": (bad(T("QInt8Storage")), "torch.QInt8Storage"),
    "a size that is no tuple": (bad(T().replace(b"(" + integer(4) + b"t", integer(4), 1)), "description"),
    "a big-endian file": (bad(T(), byteorder=b"big"), "big-endian"),
    "a compressed zip": (bad(T(), compression=zipfile.ZIP_DEFLATED), "compressed"),
    "another zip": (lambda: npz(a=np.ones(3)), "without data.pkl"),
    "a legacy count that lies": (bad(LEGACY(), "legacy", counts={"0": 5}), "does not match"),
    "a legacy count of billions": (bad(LEGACY(numel=2**40), "legacy", counts={"0": 2**40}), "larger than the rest"),
    "a legacy tensor that reaches outside": (bad(LEGACY(size=(5,)), "legacy"), "reaches outside"),
    "a legacy storage that is missing": (bad(LEGACY(), "legacy", {}), "does not match"),
    "legacy bytes too many": (lambda: make("legacy", LEGACY()) + b"x", "after the last storage"),
    "another magic number": (bad(LEGACY(), "legacy", magic=5), "magic number"),
    "another version": (bad(LEGACY(), "legacy", version=1002), "not a PyTorch file of version 1001"),
    "a big-endian legacy file": (bad(LEGACY(), "legacy", system={"little_endian": False}), "big-endian"),
    "nothing": (lambda: b"", "damaged, or not a file of PyTorch"),
    "text": (lambda: b"not a file of weights at all", "damaged, or not a file of PyTorch"),
    "an npz called .pth": (lambda: npz(a=np.ones(3, np.float32)), "not a file of weights that PyTorch wrote"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_and_lying_pytorch_files_are_refused(tmp_path, name):
    content, message = DAMAGED[name]
    with pytest.raises(CheckpointError, match=message) as refused:
        load_bytes(tmp_path, content())
    assert "a.pth" in str(refused.value), "the message names the file"


def test_other_refusals(tmp_path):
    refused = [
        ("object.npz", npz(a=np.array([{}], object))),  # reading it would unpickle
        ("complex.npz", npz(a=np.ones(2, complex))),
        ("text.npz", npz(a=np.array(["x"]))),
        ("torch.npz", make("zip", tensor_pickle())[:-30]),
        ("torch.safetensors", make("zip", tensor_pickle())),
        ("numpy.safetensors", npz(a=np.ones(2))),
        ("empty.npz", b""),
        ("empty.safetensors", b""),
    ]
    for name, content in refused:
        with pytest.raises(CheckpointError, match=name):
            load_bytes(tmp_path, content, name)
    with pytest.raises(ValueError, match="ends in .safetensors, .npz"):
        minires.load(tmp_path / "weights.bin")
    for suffix in SUFFIXES:
        with pytest.raises(FileNotFoundError):
            minires.load(tmp_path / f"missing{suffix}")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    """A megabyte of zeros said to be 2 TB: the directory lies, or the compression does."""
    content = bytearray(npz(a=np.zeros(10)))
    place = content.rindex(b"PK\x01\x02")
    content[place + 24 : place + 28] = struct.pack("<I", 2**32 - 2)  # the uncompressed size in the directory
    with pytest.raises(CheckpointError):
        load_bytes(tmp_path, bytes(content), "a.npz")


def good_files():
    """A small file of each format."""
    arrays = {"fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "fc.bias": np.arange(2.0), "n": np.array(3)}
    tensors = b"".join(text(k) + tensor_pickle(key=k, legacy=True, size=(2, 2), stride=(2, 1)) for k in "ab")
    from safetensors.numpy import save as to_safetensors

    return {
        ".pth": torch_format.write(arrays),
        ".th": legacy_file(b"}(" + tensors + b"u", {"a": FOUR, "b": FOUR}),
        ".npz": npz(**arrays),
        ".safetensors": to_safetensors(arrays),
    }


@pytest.mark.parametrize("suffix", [".pth", ".th", ".npz", ".safetensors"])
def test_every_truncation_is_refused(tmp_path, suffix):
    whole = good_files()[suffix]
    assert isinstance(load_bytes(tmp_path, whole, f"a{suffix}"), dict)
    model = nn.Linear(3, 2)
    before = model.state_dict()["weight"].tolist()
    lengths = {*range(0, len(whole), 7), *range(len(whole) - 30, len(whole))}
    for length in sorted(lengths):
        with pytest.raises(CheckpointError):
            model.load_state_dict(load_bytes(tmp_path, whole[:length], f"a{suffix}"))
    assert model.weight.tolist() == before


def mutations(whole, count, seed):
    """Copies of a file with one bit or two turned over."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 3)):
            content[place] ^= 1 << int(rng.integers(8))
        yield bytes(content)


def assert_a_dict_or_refused(content, tmp_path, suffix):
    try:
        assert isinstance(load_bytes(tmp_path, content, f"a{suffix}"), dict)
    except CheckpointError:
        return 1
    return 0


@pytest.mark.parametrize("suffix", [".pth", ".npz", ".safetensors"])
def test_turned_bits_never_crash(tmp_path, suffix):
    refused = [assert_a_dict_or_refused(c, tmp_path, suffix) for c in mutations(good_files()[suffix], 400, 1)]
    assert sum(refused) > 40


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_turned_bits_in_a_pickle_never_crash(tmp_path, form):
    """The zip's checksum is made anew: the pickle itself meets the unpickler, as in a legacy file."""
    one = tensor_pickle(legacy=form == "legacy", size=(2, 2), stride=(2, 1))
    body = entry("epoch", integer(3))[:-1] + b"s" + text("a") + one + b"s"
    refused = 0
    for content in mutations(body, 600, 2):
        whole = (zip_file if form == "zip" else legacy_file)(content, {"0": FOUR})
        refused += assert_a_dict_or_refused(whole, tmp_path, ".pth")
    assert refused > 200


@pytest.mark.parametrize(
    "options",
    [
        {"size": (1,), "stride": (2**70,)},
        {"size": (0, 2**62, 2**62), "stride": (1, 1, 1)},
        {"size": (1,) * 65, "stride": (1,) * 65},
        {"size": (10**500,)},
    ],
)
def test_sizes_that_no_array_has_are_refused(tmp_path, options):
    with pytest.raises(CheckpointError):
        load_bytes(tmp_path, make("zip", tensor_pickle(**options)))


def test_a_legacy_storage_larger_than_any_memory_is_refused(tmp_path):
    content = make("legacy", tensor_pickle(numel=2**62, legacy=True), None, counts={"0": 2**62})
    with pytest.raises(CheckpointError, match="larger than the rest of the file"):
        load_bytes(tmp_path, content)


def test_a_memo_larger_than_the_file_is_refused(tmp_path):
    """Eight bytes that would make CPython's unpickler fill gigabytes."""
    with pytest.raises(CheckpointError, match="numbers its objects up to"):
        load_bytes(tmp_path, b"\x80\x02}r" + struct.pack("<I", 50_000_000) + b".", "a.th")


def test_lists_that_share_lists_stay_small(tmp_path):
    """Ten references a level, thirty levels: 10^30 items if each were written out."""
    body = b"]q\x000"
    for i in range(1, 30):
        body += b"](" + (b"h" + bytes([i - 1])) * 10 + b"eq" + bytes([i]) + b"0"
    loaded = load_bytes(tmp_path, zip_file(body + entry("a", b"h" + bytes([29])), {}))
    assert loaded["a"][0] is loaded["a"][9]


TUPLES = b")" + b"q\x00h\x00\x86" * 60  # a tuple of itself twice, sixty deep: 2^60 items if it were walked over


@pytest.mark.slow
@pytest.mark.parametrize(
    "pickled",
    [
        b"}" + TUPLES + b"Ns.",
        b"})" + b"\x85" * 200_000 + b"Ns.",
        TUPLES + b"Q.",
        entry("a", tensor_pickle().replace(text("0"), TUPLES, 1)),
        b"}" + text("a") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + TUPLES + integer(0) + b")" + TUPLES + b"tRs.",
    ],
    ids=["a key of tuples", "a deep key", "a storage of tuples", "a storage called a tuple", "a size of tuples"],
)
def test_tuples_without_end_are_refused_at_once(tmp_path, pickled):
    """As a key they would be hashed, in a message printed: for ever, or until the interpreter falls."""
    for content in (zip_file(pickled, {"0": FOUR}), b"\x80\x02" + pickled):
        with pytest.raises(CheckpointError):
            load_bytes(tmp_path, content)


def test_a_legacy_version_of_tuples_is_refused(tmp_path):
    content = pickle.dumps(torch_format.MAGIC, 2) + b"\x80\x02" + TUPLES + b"." + pickle.dumps({}, 2)
    with pytest.raises(CheckpointError, match="version 1001"):
        load_bytes(tmp_path, content)


def test_many_views_of_one_storage_do_not_fill_memory(tmp_path):
    numbers = np.zeros(250_000, np.float32).tobytes()
    view = tensor_pickle(numel=250_000, size=(250_000,))
    body = b"".join(entry(str(i), view) if i == 0 else text(str(i)) + view + b"s" for i in range(40))
    with pytest.raises(CheckpointError, match="many times as large as the file"):
        load_bytes(tmp_path, zip_file(body, {"0": numbers}))


def test_a_file_cannot_change_the_reader(tmp_path):
    """BUILD with a state for slots would write to the function that stands in for PyTorch's."""
    state = b"N}" + text("__defaults__") + integer(0) * 3 + b"\x87s\x86b"
    for name in (b"_rebuild_tensor_v2", b"_rebuild_parameter"):
        with pytest.raises(CheckpointError):
            load_bytes(tmp_path, zip_file(b"ctorch._utils\n" + name + b"\n" + state + b"0}", {}))


def test_what_is_no_data_is_refused(tmp_path):
    for value in (b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n"):
        with pytest.raises(CheckpointError, match="expected tensors, numbers and text"):
            load_bytes(tmp_path, zip_file(entry("a", value), {}))
    with pytest.raises(CheckpointError, match="expected a state_dict"):
        state_dict_of({0: minires.Tensor([1.0])})
    with pytest.raises(RuntimeError, match="names must be text"):
        nn.Linear(1, 1).load_state_dict({0: minires.Tensor([1.0])})


def test_arrays_in_the_other_byte_order(tmp_path):
    swapped = np.arange(3, dtype=">f4")
    np.savez(tmp_path / "a.npz", a=swapped)
    assert minires.load(tmp_path / "a.npz")["a"].tolist() == [0, 1, 2]
    for suffix in (".npz", ".pth", ".safetensors"):
        minires.save(tmp_path / f"b{suffix}", {"a": swapped})
        assert minires.load(tmp_path / f"b{suffix}")["a"].tolist() == [0, 1, 2]


def test_names_that_a_format_keeps_for_itself(tmp_path):
    state = {name: np.ones(2, np.float32) for name in ("file", "allow_pickle", "args")}
    minires.save(tmp_path / "a.npz", state)
    assert set(minires.load(tmp_path / "a.npz")) == set(state)
    with pytest.raises(TypeError, match="__metadata__"):
        minires.save(tmp_path / "a.safetensors", {"__metadata__": np.ones(2)})


def test_a_single_bfloat16_number(tmp_path):
    torch = live_torch()
    torch.save({"a": torch.tensor(1.5, dtype=torch.bfloat16)}, tmp_path / "a.pth")
    assert minires.load(tmp_path / "a.pth")["a"].item() == 1.5


def test_nested_too_deep_is_refused(tmp_path):
    body = entry("a", b"]" * 100_000 + b"a" * 99_999)
    with pytest.raises(CheckpointError, match="too deep"):
        load_bytes(tmp_path, zip_file(body, {}))


# ---- Names ------------------------------------------------------------------------------------------------------


def linear_state(prefix=""):
    return {f"{prefix}weight": np.full((2, 2), 7.0), f"{prefix}bias": np.full(2, 8.0)}


class Net(nn.Module):
    def __init__(self):
        self.fc = nn.Linear(2, 2)
        self.bn = nn.BatchNorm2d(1)


def test_the_prefix_of_data_parallel_is_dropped():
    model = nn.Linear(2, 2)
    assert model.load_state_dict(linear_state("module.")) == ([], [])
    assert model.weight.tolist() == [[7, 7], [7, 7]]
    with pytest.raises(RuntimeError, match="missing keys: bias"):  # only where every name has it
        model.load_state_dict({"weight": np.zeros((2, 2)), "module.bias": np.zeros(2)})
    wrapped = nn.Sequential()
    wrapped.add_module("module", nn.Linear(2, 2))
    wrapped.load_state_dict(linear_state("module."))  # its own names begin with it: nothing is dropped
    assert wrapped.state_dict()["module.bias"].tolist() == [8, 8]


def test_a_missing_num_batches_tracked_keeps_its_value():
    model = Net()
    model.bn.num_batches_tracked.array[...] = 5
    state = {k: v for k, v in Net().state_dict().items() if not k.endswith("num_batches_tracked")}
    assert model.load_state_dict(state) == ([], [])
    assert model.bn.num_batches_tracked.item() == 5
    del state["bn.running_mean"]
    with pytest.raises(RuntimeError, match="missing keys: bn.running_mean"):
        model.load_state_dict(state)


def test_rename():
    model = Net()
    others = {k: v for k, v in Net().state_dict().items() if k.startswith("bn")}
    model.load_state_dict({**others, **linear_state("linear.")}, rename={"linear": "fc"})
    assert model.fc.weight.tolist() == [[7, 7], [7, 7]]
    model.load_state_dict(
        {f"module.{k}": v for k, v in {**others, **linear_state("linear.")}.items()}, rename={"linear": "fc"}
    )
    with pytest.raises(RuntimeError, match="unexpected keys: linear2.weight"):  # whole names alone, not beginnings
        model.load_state_dict({**others, **linear_state("linear2.")}, rename={"linear": "fc"})
    before = model.fc.weight.tolist()
    both = {**others, **linear_state("linear."), **{k: v * 0 for k, v in linear_state("fc.").items()}}
    with pytest.raises(RuntimeError, match="two entries are both called fc.weight"):
        model.load_state_dict(both, rename={"linear": "fc"})
    assert model.fc.weight.tolist() == before


def test_state_dict_of_finds_it():
    state = {"a": Tensor([1.0])}
    for loaded in (state, {"state_dict": state, "epoch": 3}, {"model": state, "optimizer": {"lr": 1}}):
        assert state_dict_of(loaded) is state
    for loaded in ({}, {"epoch": 3}, {"state_dict": {"a": 1}}, [Tensor([1.0])], 3, {"weights": state}):
        with pytest.raises(CheckpointError, match="expected a state_dict"):
            state_dict_of(loaded)


# ---- Published weights ------------------------------------------------------------------------------------------

published = pytest.mark.skipif(not (DATA / "resnet20-12fca82f.th").exists(), reason="the data folder is not there")
PUBLISHED = {"resnet20": ("resnet20-12fca82f.th", 804), "resnet56": ("resnet56-4bfd9763.th", 825)}


@pytest.mark.slow
@published
@pytest.mark.parametrize(
    "name, dtype, tolerance, count",
    [
        ("resnet20", "float64", 1e-9, 200),
        ("resnet20", "float32", 1e-3, 1000),
        ("resnet56", "float64", 1e-9, 200),
        ("resnet56", "float32", 1e-3, 1000),
    ],
)
def test_published_weights_give_the_published_logits(name, dtype, tolerance, count):
    """Weights that PyTorch 1 saved, on 1,000 test images of CIFAR-10, beside the logits of PyTorch in float64."""
    file, right = PUBLISHED[name]
    model = models.create_model(name).to(np.dtype(dtype)).eval()
    model.load_state_dict(state_dict_of(minires.load(DATA / file)), rename={"linear": "fc"})
    with np.load(DATA / "cifar10_test_1000.npz") as data:
        pixels, labels = data["images"], data["labels"]
    with np.load(DATA / "cifar10_test_1000_logits.npz") as data:
        expected = data[name]
    x = ((pixels / 255 - MEAN[:, None, None]) / STD[:, None, None]).astype(dtype)
    with minires.no_grad():
        logits = np.concatenate([model(Tensor(x[i : i + 100])).numpy() for i in range(0, count, 100)])
    expected, labels = expected[:count], labels[:count]
    difference = np.abs(logits - expected).max()
    print(f"{name} {dtype}: largest difference {difference:.3g}")
    assert logits.dtype == dtype and difference < tolerance
    assert (logits.argmax(1) == expected.argmax(1)).all()
    assert (logits.argmax(1) == labels).sum() == right or count < 1000


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on this machine in place of the published address: the folder it serves, and what was asked of it."""
    served, asked = tmp_path / "served", []
    served.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("MINIRES_DATA", str(tmp_path / "cache"))
        monkeypatch.setattr(pretrained, "ADDRESS", f"http://127.0.0.1:{running.server_port}/")
        yield served, asked
        running.shutdown()
        thread.join()


def publish(served, monkeypatch, content, prefix=None):
    """Put a file on the server under a name that says its checksum, as resnet8's published weights."""
    prefix = hashlib.sha256(content).hexdigest()[:8] if prefix is None else prefix
    file = f"resnet8-{prefix}.pth"
    (served / file).write_bytes(content)
    monkeypatch.setattr(pretrained, "FILES", {"resnet8": (None, file)})
    return file


def resnet8_file(seed):
    model = models.create_model("resnet8", generator=np.random.default_rng(seed))
    return model, torch_format.write({k: v.numpy() for k, v in model.state_dict().items()})


def test_weights_are_fetched_once_and_kept(server, monkeypatch, tmp_path):
    served, asked = server
    first, content = resnet8_file(3)
    file = publish(served, monkeypatch, content)
    for _ in range(2):
        model = models.create_model("resnet8", weights="imagenet-v2")
        assert_same(model.state_dict(), {k: v.numpy() for k, v in first.state_dict().items()})
    assert asked == [f"/{file}"]
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [file]
    assert (tmp_path / "cache" / file).read_bytes() == content
    with pytest.raises(RuntimeError, match="fc.weight"):  # another number of classes
        models.create_model("resnet8", weights="imagenet-v2", num_classes=3)


def test_a_file_with_another_checksum_is_not_kept(server, monkeypatch, tmp_path):
    served, asked = server
    file = publish(served, monkeypatch, resnet8_file(3)[1], prefix="00000000")
    with pytest.raises(OSError, match="SHA-256") as refused:
        models.create_model("resnet8", weights="imagenet-v2")
    assert file in str(refused.value) and asked == [f"/{file}"]
    assert not list((tmp_path / "cache").iterdir())


def test_a_damaged_file_in_the_cache_is_said(server, monkeypatch, tmp_path):
    served, asked = server
    file = publish(served, monkeypatch, resnet8_file(3)[1])
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / file).write_bytes(b"half a file")
    with pytest.raises(OSError, match="damaged") as refused:
        models.create_model("resnet8", weights="imagenet-v2")
    assert str(tmp_path / "cache" / file) in str(refused.value) and not asked


@pytest.mark.parametrize("what", ["no file", "no server"])
def test_what_cannot_be_fetched_says_what_to_put_where(server, monkeypatch, tmp_path, what):
    served, _ = server
    file = publish(served, monkeypatch, b"")
    (served / file).unlink()
    if what == "no server":
        monkeypatch.setattr(pretrained, "ADDRESS", "http://127.0.0.1:9/")  # the discard port: nothing listens
    with pytest.raises(OSError) as refused:
        models.create_model("resnet8", weights="imagenet-v2")
    message = str(refused.value)
    assert pretrained.ADDRESS + file in message and f"put it at {tmp_path / 'cache' / file}" in message
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    "name, weights, message",
    [
        ("resnet8", "imagenet", "no published weights for 'resnet8'"),
        ("resnet18", "cifar", 'must be "imagenet" or "imagenet-v2", got \'cifar\''),
        ("resnet18", "", "must be"),
        ("resnext101_64x4d", "imagenet", "imagenet-v2"),
        ("resnet19", "imagenet", "no published weights"),
    ],
)
def test_weights_that_were_not_published(name, weights, message):
    with pytest.raises(ValueError, match=message):
        pretrained.weights_file(name, weights)
    with pytest.raises(ValueError):
        models.create_model(name, weights=weights, width=4 if name == "resnet8" else 16)


def test_every_published_file_is_one_of_the_zoo():
    for name, files in pretrained.FILES.items():
        assert name in models.MODELS
        for file in files:
            assert file is None or (file.startswith(f"{name}-") and len(file) == len(name) + 13), file
