"""MNIST, Fashion-MNIST, CIFAR and folders of images: read, found, fetched and refused."""

import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import requests
from datasets import at_most, cifar_records, idx, mnist_arrays, publish_cifar, publish_idx, tar
from serving import serving

from minires import DataError, data
from minires.data import DataLoader, downloads, load_data, published
from minires.data.cifar import read_cifar
from minires.data.idx import read_idx, read_idx_images, read_idx_labels

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
IMAGES = mnist_arrays()["t10k-images-idx3-ubyte"]
LABELS = mnist_arrays()["t10k-labels-idx1-ubyte"]


@pytest.fixture
def root(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIRES_DATA", str(tmp_path / "kept"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "kept"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def check_split(split, train, test, mean, std):
    """A split against what is stored: images (N, C, H, W) and labels of both parts."""
    for part, (images, labels) in ((split.train, train), (split.test, test)):
        assert part.images.dtype == np.uint8 and np.array_equal(part.images, images)
        assert part.labels.dtype == np.int64 and np.array_equal(part.labels, labels)
        taken, _ = part[2:5]
        per_channel = np.array(mean)[:, None, None], np.array(std)[:, None, None]
        assert taken.dtype == np.float32
        assert np.allclose(taken, (images[2:5] / 255 - per_channel[0]) / per_channel[1], atol=1e-5)
    (batch, _), *_ = DataLoader(split.test, 4)
    assert batch.shape == (4, *split.test.images.shape[1:]) and np.array_equal(batch.numpy(), split.test[:4][0])
    assert split.in_channels == split.train.images.shape[1] and split.num_classes == len(split.classes)


def idx_pair(arrays, part):
    return arrays[f"{part}-images-idx3-ubyte"][:, None], arrays[f"{part}-labels-idx1-ubyte"]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "name, table, folder, mean, std, last",
    [
        ("mnist", "MNIST", "MNIST/raw", [0.1307], [0.3081], "9"),
        ("fashion-mnist", "FASHION_MNIST", "FashionMNIST/raw", [0.2860], [0.3530], "ankle boot"),
    ],
)
def test_mnist_in_the_layout_of_torchvision(root, monkeypatch, packed, name, table, folder, mean, std, last):
    arrays, files = publish_idx(monkeypatch, table, folder)
    for file, content in files.items():
        write(root / folder / (file if packed else file[:-3]), content if packed else gzip.decompress(content))
    split = load_data(name)
    check_split(split, idx_pair(arrays, "train"), idx_pair(arrays, "t10k"), mean, std)
    assert split.num_classes == 10 and split.classes[9] == last
    assert not list(root.rglob("*.part"))


def test_mnist_in_a_folder_that_is_named(monkeypatch, tmp_path):
    arrays, files = publish_idx(monkeypatch)
    for file, content in files.items():
        write(tmp_path / "elsewhere" / "MNIST" / "raw" / file, content)
    assert np.array_equal(data.mnist(tmp_path / "elsewhere").test.images, idx_pair(arrays, "t10k")[0])


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name, table", [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_cifar(root, monkeypatch, packed, name, table):
    layout, arrays, archive = publish_cifar(monkeypatch, table)
    if packed:
        write(root / getattr(published, f"{table}_ARCHIVE").name, archive)
    else:
        for file, content in arrays.items():
            write(root / layout.folder / file, content.tobytes())
    split = load_data(name)
    train = np.concatenate([arrays[file] for file in layout.train])
    skip = len(layout.labels)
    parts = [(a[:, skip:].reshape(-1, 3, 32, 32), a[:, skip - 1]) for a in (train, arrays[layout.test])]
    mean, std = getattr(published, f"{table}_MEAN"), getattr(published, f"{table}_STD")
    check_split(split, *parts, mean, std)
    assert split.num_classes == layout.labels[-1] and list(split.classes) == sorted(split.classes)


def test_fetched_from_mirrors(root, monkeypatch):
    with serving() as server:
        mirrors = (server.address + "one/", server.address + "two/")
        arrays, files = publish_idx(monkeypatch, mirrors=mirrors)
        layout, records, archive = publish_cifar(monkeypatch, mirrors=mirrors)
        server.files = {f"/two/{name}": content for name, content in files.items()}
        server.files["/two/cifar-10-binary.tar.gz"] = archive
        for _ in range(2):
            split = load_data("mnist")
            assert np.array_equal(split.train.images, idx_pair(arrays, "train")[0])
            assert np.array_equal(load_data("cifar10").test.labels, records[layout.test][:, 0])
        assert len(server.asked) == 10  # five files, each from the second mirror
    assert {p.name for p in (root / "MNIST" / "raw").iterdir()} == set(files)


def test_without_a_network_each_file_is_named(root, monkeypatch):
    monkeypatch.setattr(published, "MNIST", published.idx_files("MNIST/raw", ("http://127.0.0.1:9/",), published_md5()))
    with pytest.raises(OSError, match="get the file with MD5 f68b3c2dcbeaaa9fbdd348bbdeb94873") as refused:
        load_data("mnist")
    place = root / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    assert f"http://127.0.0.1:9/{place.name}" in str(refused.value) and f"put it at {place}" in str(refused.value)


def test_the_command_says_all_of_it(root, monkeypatch, capsys):
    from minires.cli import main

    def no_network(address, file, most):
        raise requests.ConnectionError

    monkeypatch.setattr(downloads, "download", no_network)
    assert main(["train", "--data", "mnist"]) == 2
    said = capsys.readouterr().err
    file = published.MNIST.train_images
    assert all(address in said for address in file.addresses) and file.checksum[4:] in said
    assert said.rstrip().endswith(f"put it at {root / 'MNIST' / 'raw' / 'train-images-idx3-ubyte.gz'}")


def published_md5():
    files = [Path(file.name).name.removesuffix(".gz") for file in published.MNIST]
    return dict(zip(files, [(file.checksum[4:], file.unpacked[7:]) for file in published.MNIST], strict=True))


def test_a_recompressed_copy_is_taken_and_a_damaged_one_refused(root, monkeypatch):
    arrays, files = publish_idx(monkeypatch)
    for file, content in files.items():
        write(root / "MNIST" / "raw" / file, gzip.compress(gzip.decompress(content), 1, mtime=77))
    load_data("mnist")
    damaged = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    for content in (damaged.read_bytes()[:-5], gzip.compress(idx(IMAGES[:5])), b""):
        damaged.write_bytes(content)
        with pytest.raises(DataError, match="checksum is not MD5 .* remove it") as refused:
            load_data("mnist")
        assert str(damaged) in str(refused.value)
    damaged.unlink()
    flipped = bytearray(idx(IMAGES))
    flipped[99] ^= 1
    write(damaged.with_suffix(""), flipped)
    with pytest.raises(DataError, match="checksum is not SHA-256"):
        load_data("mnist")


def test_without_a_checksum_sizes_are_still_checked(root, monkeypatch):
    _, files = publish_idx(monkeypatch, "FASHION_MNIST", "FashionMNIST/raw", unpacked=False)
    for file, content in files.items():
        write(root / "FashionMNIST" / "raw" / file[:-3], gzip.decompress(content))
    load_data("fashion-mnist")
    for name, few in (("t10k-images-idx3-ubyte", IMAGES[:19]), ("t10k-labels-idx1-ubyte", LABELS[:19])):
        path = root / "FashionMNIST" / "raw" / name
        before = path.read_bytes()
        path.write_bytes(idx(few))
        with pytest.raises(DataError, match="expected 20 "):
            load_data("fashion-mnist")
        path.write_bytes(before)


def test_a_file_of_mnist_in_the_place_of_fashion_mnist_is_refused(root, monkeypatch):
    _, files = publish_idx(monkeypatch, "FASHION_MNIST", "FashionMNIST/raw", unpacked=False)
    digits, _ = publish_idx(monkeypatch, seed=1)
    for file, content in files.items():
        write(root / "FashionMNIST" / "raw" / file[:-3], gzip.decompress(content))
    load_data("fashion-mnist")
    for name, array in digits.items():
        path = root / "FashionMNIST" / "raw" / name
        before = path.read_bytes()
        path.write_bytes(idx(array))
        with pytest.raises(DataError, match=f"{name} is MNIST's file, expected Fashion-MNIST's"):
            load_data("fashion-mnist")
        path.write_bytes(before)


def test_the_published_tables():
    files = [*published.MNIST, *published.FASHION_MNIST, published.CIFAR10_ARCHIVE, published.CIFAR100_ARCHIVE]
    assert len({file.checksum for file in files}) == len(files) == len({file.name for file in files})
    for file in files:
        assert len(file.checksum) == 4 + 32 and len(file.unpacked) in (0, 7 + 64)
        assert all(a.startswith("http") and a.endswith(Path(file.name).name) for a in file.addresses)
    assert len(published.CIFAR100_CLASSES) == 100 and len(published.FASHION_MNIST_CLASSES) == 10


IDX_FAULTS = {
    "empty": (b"", "cut short"),
    "half a header": (idx(IMAGES)[:9], "cut short"),
    "cut short": (idx(IMAGES)[:-1], "cut short: expected 15,680 bytes, got 15,679"),
    "goes on": (idx(IMAGES) + b"\0", "goes on after its last byte"),
    "labels": (idx(LABELS), "got 00000801"),
    "floats": (b"\0\0\x0d\x03" + idx(IMAGES)[4:], "got 00000d03"),
    "little-endian": (b"\3\x08\0\0" + idx(IMAGES)[4:], "got 03080000"),
    "no images": (struct.pack(">HBB3I", 0, 8, 3, 0, 28, 28), "empty"),
    "a huge claim": (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "cannot hold more"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "expected an IDX file"),
    "gz cut short": (gzip.compress(idx(IMAGES))[:-20], "cut short"),
    "gz damaged": (gzip.compress(idx(IMAGES))[:-5] + b"\0\0\0\0\0", "damaged"),
    "gz goes on": (gzip.compress(idx(IMAGES) + b"\0"), "goes on"),
    "gz with something after it": (gzip.compress(idx(IMAGES)) + b"x", "damaged"),
    "gz of a huge claim": (gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2**31, 2, 2)), "cannot hold more"),
    "gz of a false claim": (gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 9, 28, 28) + bytes(90)), "cut short"),
    "gz of nothing": (gzip.compress(b""), "cut short"),
    "only the beginning of gz": (b"\x1f\x8b", "cut short"),
}


@pytest.mark.parametrize("content, message", IDX_FAULTS.values(), ids=IDX_FAULTS.keys())
def test_idx_refuses(tmp_path, content, message):
    path = write(tmp_path / "file", content)
    with pytest.raises(DataError, match=message) as refused:
        read_idx_images(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_idx_labels(tmp_path):
    path = write(tmp_path / "file", idx(LABELS))
    assert np.array_equal(read_idx_labels(path), LABELS) and read_idx_labels(path).dtype == np.int64
    write(path, idx(np.array([1, 9, 10, 255], np.uint8)))
    with pytest.raises(DataError, match="file: labels must lie between 0 and 9, got 10 in record 2"):
        read_idx_labels(path)
    with pytest.raises(FileNotFoundError):
        read_idx_labels(tmp_path / "none")


def test_a_gzip_bomb_needs_no_memory(tmp_path):
    """64 MB of zeros in 64 KB: a small header before them is all that is unpacked; a fitting one is bounded by it."""
    small = write(tmp_path / "small", gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2, 28, 28) + bytes(64 << 20)))
    with pytest.raises(DataError, match="goes on"), at_most(3 << 20):
        read_idx_images(small)


@pytest.fixture
def cifar10(tmp_path):
    layout, arrays = cifar_records()
    return layout, {name: array.tobytes() for name, array in arrays.items()}, tmp_path / "archive"


def link(name, kind=tarfile.SYMTYPE, target="/etc/passwd"):
    def add(archive, folder):
        info = tarfile.TarInfo(f"{folder}/{name}")
        info.type, info.linkname = kind, target
        archive.addfile(info)

    return add


def again(name, content):
    def add(archive, folder):
        info = tarfile.TarInfo(f"{folder}/{name}")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))

    return add


def archive_of(layout, members, *more, mode="w:gz"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for add in more:
            add(archive, layout.folder)
    return stream.getvalue()


def cifar_faults(layout, files):
    named = {f"{layout.folder}/{name}": content for name, content in files.items()}
    first, test = f"{layout.folder}/data_batch_1.bin", f"{layout.folder}/test_batch.bin"
    without = {name: content for name, content in named.items() if name != test}
    wrong_label = {**named, first: b"\x0a" + named[first][1:]}
    good = tar(files, layout.folder)
    big = tarfile.TarInfo("x")
    big.size = 1 << 40
    pax = tarfile.TarInfo("x")
    pax.type, pax.size = tarfile.XHDTYPE, 1 << 30
    return {
        "empty": (b"", "damaged|cut short"),
        "no archive": (b"no archive" * 100, "damaged"),
        "a missing member": (archive_of(layout, without), "test_batch.bin is not in it"),
        "no folder": (archive_of(layout, files), "is not in it"),
        "a path that leads out": (archive_of(layout, {f"../{n}": c for n, c in named.items()}), "is not in it"),
        "a link": (archive_of(layout, without, link("test_batch.bin")), "no plain file"),
        "a hard link": (archive_of(layout, without, link("test_batch.bin", tarfile.LNKTYPE, first)), "no plain file"),
        "twice": (archive_of(layout, named, again("test_batch.bin", named[test])), "in it twice"),
        "a short member": (archive_of(layout, {**named, first: named[first][:-3073]}), "expected 18,438 bytes"),
        "a long member": (archive_of(layout, {**named, first: named[first] + b"\0"}), "expected 18,438 bytes"),
        "a label out of range": (archive_of(layout, wrong_label), "batch_1.bin: labels must .* got 10 in record 0"),
        "cut short": (good[:-30], "cut short|damaged"),
        "damaged": (good[:2000] + bytes([good[2000] ^ 4]) + good[2001:], "damaged|cut short|bytes|not in it"),
        "another checksum": (good[:-8] + bytes(4) + good[-4:], "damaged: CRC"),
        "a bomb": (gzip.compress(archive_of(layout, named, mode="w") + bytes(8 << 20)), "goes on after"),
        "a bomb in a member": (archive_of(layout, {**named, "big": bytes(8 << 20)}), "goes on after"),
        "a header's huge claim": (gzip.compress(big.tobuf() + bytes(1 << 12)), "goes on after"),
        "a huge name": (gzip.compress(pax.tobuf() + bytes(1 << 12)), "a header in it says"),
        "many members": (archive_of(layout, {f"{i}": b"" for i in range(200)}), "more than 100 members"),
        "something after the end": (
            gzip.compress(archive_of(layout, named, mode="w") + b"x"),
            "goes on after its last",
        ),
    }


CIFAR_FAULTS = list(cifar_faults(cifar_records()[0], {n: a.tobytes() for n, a in cifar_records()[1].items()}))


@pytest.mark.parametrize("fault", CIFAR_FAULTS)
def test_cifar_archives_are_refused(cifar10, fault):
    layout, files, path = cifar10
    content, message = cifar_faults(layout, files)[fault]
    write(path, content)
    with pytest.raises(DataError, match=message) as refused, at_most(6 << 20):  # a few pieces of a megabyte
        read_cifar(path, layout)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_cifar_archives_of_every_kind_are_read(cifar10, mode, kind, monkeypatch):
    layout, files, path = cifar10
    monkeypatch.setattr(tarfile.TarFile, "format", kind)
    write(
        path, tar(files, layout.folder, mode, **{"a long name" * (1 if kind == tarfile.USTAR_FORMAT else 30): b"more"})
    )
    (images, labels), (test_images, _) = read_cifar(path, layout)
    together = np.frombuffer(b"".join(files[name] for name in layout.train), np.uint8).reshape(-1, 3073)
    assert np.array_equal(images.reshape(-1, 3072), together[:, 1:]) and np.array_equal(labels, together[:, 0])
    assert test_images.shape == (5, 3, 32, 32)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda content: content[:-1], "data_batch_3.bin: expected 18,438 bytes, it has 18,437"),
        (lambda content: content + bytes(3073), "data_batch_3.bin: expected 18,438 bytes, it has 21,511"),
        (lambda content: content[:3073] + b"\xff" + content[3074:], "data_batch_3.bin: labels .* got 255 in record 1"),
        (lambda content: gzip.compress(content), "data_batch_3.bin: expected"),
    ],
)
def test_cifar_folders_are_refused(cifar10, tmp_path, change, message):
    layout, files, _ = cifar10
    for name, content in files.items():
        write(tmp_path / "folder" / name, content)
    read_cifar(tmp_path / "folder", layout)
    write(tmp_path / "folder" / "data_batch_3.bin", change(files["data_batch_3.bin"]))
    with pytest.raises(DataError, match=message):
        read_cifar(tmp_path / "folder", layout)
    (tmp_path / "folder" / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_3"):
        read_cifar(tmp_path / "folder", layout)


def test_coarse_labels_are_checked_too(tmp_path):
    layout, arrays = cifar_records("CIFAR100")
    arrays["train.bin"][4, 0] = 20
    for name, array in arrays.items():
        write(tmp_path / name, array.tobytes())
    with pytest.raises(DataError, match="between 0 and 19, got 20 in record 4"):
        read_cifar(tmp_path, layout)


shared = pytest.mark.skipif(not (SHARED / "t10k-images-idx3-ubyte.gz").exists(), reason="MNIST's test files: not here")


@shared
def test_the_real_test_images_of_mnist(tmp_path):
    paths = [SHARED / "t10k-images-idx3-ubyte.gz", SHARED / "t10k-labels-idx1-ubyte.gz"]
    for path, file in zip(paths, published.MNIST[2:], strict=True):
        assert downloads.is_the_file(str(path), file)
        assert not downloads.is_the_file(str(path), file._replace(checksum="md5:123456", unpacked="sha256:123456"))
    images, labels = read_idx_images(paths[0]), read_idx_labels(paths[1])
    assert images.shape == (10000, 1, 28, 28)
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # as published
    assert abs(images.mean() / 255 - 0.1325) < 1e-4 and abs(images.std() / 255 - 0.3105) < 1e-4
    unpacked = write(tmp_path / "unpacked", gzip.decompress(paths[0].read_bytes()))
    assert np.array_equal(read_idx(unpacked, 3), images[:, 0])


@pytest.mark.skipif(not (SHARED / "cifar10_test_1000.npz").exists(), reason="CIFAR-10's test images: not here")
def test_real_images_of_cifar_normalise_to_about_0_and_1():
    with np.load(SHARED / "cifar10_test_1000.npz") as file:
        images = data.Normalize(published.CIFAR10_MEAN, published.CIFAR10_STD)(file["images"])
    assert (abs(images.mean(axis=(0, 2, 3))) < 0.06).all() and (abs(images.std(axis=(0, 2, 3)) - 1) < 0.04).all()
