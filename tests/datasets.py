"""Small files in the formats of MNIST and CIFAR, made up, with the checksums that go with them."""

import contextlib
import gzip
import hashlib
import io
import struct
import tarfile
import tracemalloc

import numpy as np

from minires.data import cifar, published
from minires.data.downloads import Published


@contextlib.contextmanager
def at_most(size):
    """No more memory than so many bytes, whether the inside ends well or not."""
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < size, f"{peak:,} bytes"


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def mnist_arrays(seed=0, train=30, test=20):
    rng = np.random.default_rng(seed)
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (train, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": rng.integers(0, 10, train, dtype=np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (test, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": rng.integers(0, 10, test, dtype=np.uint8),
    }


def publish_idx(monkeypatch, name="MNIST", folder="MNIST/raw", mirrors=("http://127.0.0.1:9/",), unpacked=True, seed=0):
    """Make up a data set like MNIST: its arrays, and its .gz files by name."""
    arrays = mnist_arrays(seed)
    files = {f"{key}.gz": gzip.compress(idx(array), mtime=0) for key, array in arrays.items()}
    checksums = {
        key: (
            hashlib.md5(files[f"{key}.gz"]).hexdigest(),
            hashlib.sha256(idx(array)).hexdigest() if unpacked else "",
        )
        for key, array in arrays.items()
    }
    monkeypatch.setattr(published, name, published.idx_files(folder, mirrors, checksums))
    monkeypatch.setattr(published, "IDX_COUNTS", (30, 20))
    return arrays, files


def cifar_records(name="CIFAR10", seed=0, each=6):
    """The layout of CIFAR with a few records in each file, and the files: {name: (n, record) uint8}."""
    rng = np.random.default_rng(seed)
    layout = getattr(cifar, name)._replace(train_records=each, test_records=each - 1)
    arrays = {}
    for file in (*layout.train, layout.test):
        count = layout.test_records if file == layout.test else layout.train_records
        labels = [rng.integers(0, classes, (count, 1)) for classes in layout.labels]
        pixels = rng.integers(0, 256, (count, cifar.PIXELS))
        arrays[file] = np.concatenate([*labels, pixels], axis=1).astype(np.uint8)
    return layout, arrays


def tar(members, folder, mode="w:gz", **more):
    """An archive as the CIFAR page has them: a folder, its files, a readme."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        info = tarfile.TarInfo(folder)
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
        for name, content in {**members, "readme.html": b"<html>", **more}.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def publish_cifar(monkeypatch, name="CIFAR10", mirrors=("http://127.0.0.1:9/",)):
    """Make up a data set like CIFAR: its layout, arrays and archive."""
    layout, arrays = cifar_records(name)
    content = tar({key: array.tobytes() for key, array in arrays.items()}, layout.folder)
    file = getattr(published, f"{name}_ARCHIVE").name
    checksum = f"md5:{hashlib.md5(content).hexdigest()}"
    made = Published(file, tuple(mirror + file for mirror in mirrors), checksum)
    monkeypatch.setattr(published, f"{name}_ARCHIVE", made)
    monkeypatch.setattr(published, name, layout)
    return layout, arrays, content
