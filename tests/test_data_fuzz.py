"""Damaged files of data, by the hundred: each is read as it was, or refused in MiniRes's own words; memory is bounded.

What carries a checksum (.gz, .png, the published files) is never read as something else. What carries none (unpacked
IDX and CIFAR files, .jpg, .bmp) may give other pixels or labels, but never fewer of them, nor any out of range.
"""

import gzip
import struct

import numpy as np
import pytest
from datasets import at_most, cifar_records, idx, mnist_arrays, tar
from PIL import Image

from minires.data import image_folder
from minires.data.binary import DataError
from minires.data.cifar import read_cifar
from minires.data.idx import read_idx_images, read_idx_labels

ROUNDS = 60
SPECIAL = [0, 1, 0x7F, 0x80, 0xFF]


def mutate(content, rng):
    """One fault or a few: bytes changed, cut off, put in, taken out, doubled, or a run of one value."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        early = rng.random() < 0.5  # half of the faults in the first bytes, where headers are
        at = int(rng.integers(min(len(content), 64) if early else len(content) or 1)) if content else 0
        size = int(rng.integers(1, 40))
        kind = rng.integers(7)
        if kind == 0 and content:
            content[at] ^= 1 << int(rng.integers(8))
        elif kind == 1 and content:
            content[at] = SPECIAL[rng.integers(5)]
        elif kind == 2:
            del content[at:]
        elif kind == 3:
            content[at:at] = rng.bytes(size)
        elif kind == 4:
            del content[at : at + size]
        elif kind == 5:
            content[at:at] = content[at : at + size]
        else:
            content[at : at + 4] = struct.pack(">I", int(rng.choice([0, 1, 2**16, 2**31 - 1, 2**32 - 1])))
    return bytes(content)


def tries(content, seed):
    for i in range(ROUNDS):
        yield mutate(content, np.random.default_rng([seed, i]))


def attempt(read, limit):
    """What a reader gives, or None where it refuses. Anything but DataError is a failure, and so is much memory."""
    with at_most(limit):
        try:
            return read()
        except DataError as error:
            assert "\n" not in str(error) or len(str(error)) < 500
            return None


IMAGES = mnist_arrays(train=12)["train-images-idx3-ubyte"]
LABELS = mnist_arrays(train=500)["train-labels-idx1-ubyte"]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("array, reader", [(IMAGES, read_idx_images), (LABELS, read_idx_labels)])
def test_idx(tmp_path, packed, array, reader):
    content = gzip.compress(idx(array), mtime=0) if packed else idx(array)
    path, refused = tmp_path / "file", 0
    for i, damaged in enumerate(tries(content, 1)):
        path.write_bytes(damaged)
        got = attempt(lambda: reader(path), limit=3 << 20)
        if got is None:
            refused += 1
        elif packed:
            assert np.array_equal(got.reshape(array.shape), array), i
        else:  # every byte after the header is data, and the file as long as it says
            assert got.size == array.size == len(damaged) - 4 - 4 * array.ndim, i
            assert array.ndim > 1 or got.max() <= 9
    assert refused > ROUNDS / 3


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
@pytest.mark.parametrize("packed", ["w:gz", "w"])
def test_cifar_archives(tmp_path, name, packed):
    layout, arrays = cifar_records(name, each=4)
    content = tar({key: array.tobytes() for key, array in arrays.items()}, layout.folder, packed)
    path, refused = tmp_path / "file", 0
    path.write_bytes(content)
    (images, labels), (test_images, test_labels) = read_cifar(path, layout)
    for i, damaged in enumerate(tries(content, 2)):
        path.write_bytes(damaged)
        got = attempt(lambda: read_cifar(path, layout), limit=5 << 20)
        if got is None:
            refused += 1
            continue
        assert got[0][0].shape == images.shape and got[1][0].shape == test_images.shape, i
        assert max(got[0][1].max(), got[1][1].max()) < layout.labels[-1], i
        if packed == "w:gz":
            assert np.array_equal(got[0][0], images) and np.array_equal(got[0][1], labels), i
            assert np.array_equal(got[1][0], test_images) and np.array_equal(got[1][1], test_labels), i
    assert refused > ROUNDS / 4


def test_cifar_folders(tmp_path):
    layout, arrays = cifar_records(each=4)
    for name, array in arrays.items():
        (tmp_path / name).write_bytes(array.tobytes())
    path, refused = tmp_path / "data_batch_2.bin", 0
    for damaged in tries(arrays[path.name].tobytes(), 3):
        path.write_bytes(damaged)
        got = attempt(lambda: read_cifar(tmp_path, layout), limit=3 << 20)
        refused += got is None
        if got is not None:
            assert got[0][0].shape == (20, 3, 32, 32) and got[0][1].max() <= 9
            assert np.array_equal(got[0][0][8:], arrays_of(arrays, layout)[8:])
    assert refused > ROUNDS / 3


def arrays_of(arrays, layout):
    return np.concatenate([arrays[name] for name in layout.train])[:, 1:].reshape(-1, 3, 32, 32)


FORMATS = {".png": {}, ".jpg": {}, ".bmp": {}, ".ppm": {}, ".tif": {"compression": "tiff_deflate"}, ".webp": {}}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("extension", FORMATS)
def test_image_folders(tmp_path, extension):
    rng = np.random.default_rng(4)
    for i in range(2):
        (tmp_path / "class").mkdir(exist_ok=True)
        pixels = np.kron(rng.integers(0, 256, (6, 5, 3)), np.ones((40, 40, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "class" / f"{i}{extension}", **FORMATS[extension])
    path, refused = tmp_path / "class" / f"1{extension}", 0
    good = path.read_bytes()

    def read():
        split = image_folder(tmp_path)
        return np.concatenate([split.train.images, split.test.images])

    expected = read()
    for i, damaged in enumerate(tries(good, 5)):
        path.write_bytes(damaged)
        got = attempt(read, limit=16 << 20)
        if got is None:
            refused += 1
            continue
        assert len(got) == 2 and got.dtype == np.uint8 and got.shape[1] == 3
        if extension == ".png":
            assert np.array_equal(got, expected), i
    assert refused > ROUNDS / 6
