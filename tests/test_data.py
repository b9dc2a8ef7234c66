"""The digits that are shipped, and the loader."""

import importlib

import numpy as np
import pytest

from minires import data
from minires.data import ArrayDataset, DataLoader, digits


def test_digits():
    split = digits()
    assert split.train.images.shape == (1437, 1, 8, 8) and split.test.images.shape == (360, 1, 8, 8)
    assert split.train.images.dtype == np.float32 and split.train.labels.dtype == np.int64
    assert abs(split.train.images.mean()) < 1e-4 and abs(split.train.images.std() - 1) < 1e-4
    assert split.num_classes == 10 and split.in_channels == 1
    counts = np.bincount(np.concatenate([split.train.labels, split.test.labels]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as published
    assert (np.bincount(split.test.labels, minlength=10) > 20).all()


def test_the_split_is_the_same_every_time_and_disjoint():
    first, second = digits(), digits()
    assert np.array_equal(first.test.images, second.test.images)
    seen = {image.tobytes() for image in first.train.images}
    assert sum(image.tobytes() in seen for image in first.test.images) == 0


def test_digits_equal_scikit_learns():
    sklearn = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    published = sklearn.load_digits()
    with np.load(data.digits.__globals__["__file__"].replace("digits.py", "digits.npz")) as file:
        assert np.array_equal(file["images"], published.images)
        assert np.array_equal(file["labels"], published.target)
        assert sorted(file["order"]) == list(range(1797))


def small(n=10):
    return ArrayDataset(np.arange(n, dtype=np.float32).reshape(n, 1, 1, 1), np.arange(n) % 3)


def values(loader):
    return [images.numpy().ravel().astype(int).tolist() for images, _ in loader]


def test_loader_in_order():
    assert values(DataLoader(small(), 4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert values(DataLoader(small(), 4, drop_last=True)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(DataLoader(small(), 4)) == 3 and len(DataLoader(small(), 5)) == 2
    images, labels = next(iter(DataLoader(small(), 4)))
    assert images.shape == (4, 1, 1, 1) and labels.tolist() == [0, 1, 2, 0]


def test_loader_shuffles_by_seed():
    a, b, c = (DataLoader(small(), 3, shuffle=True, seed=s) for s in (1, 1, 2))
    first, second = values(a), values(a)
    assert sorted(sum(first, [])) == list(range(10)) and first != second
    assert [values(b), values(b)] == [first, second] and values(c) != first


def test_images_and_labels_stay_together():
    dataset = digits().train
    labels_of = {image.tobytes(): label for image, label in zip(dataset.images, dataset.labels, strict=True)}
    for images, labels in DataLoader(dataset, 100, shuffle=True, seed=4):
        for image, label in zip(images.numpy(), labels.numpy(), strict=True):
            assert labels_of[image.tobytes()] == label


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: data.load_data("digit"), "did you mean 'digits'"),
        (lambda: DataLoader(small(), 0), "batch_size"),
        (lambda: DataLoader(small(), 2.5), "batch_size"),
        (lambda: DataLoader(small(), 11, drop_last=True), "drop_last"),
        (lambda: ArrayDataset(np.zeros((3, 1, 1, 1)), np.zeros(2, int)), "as many images"),
        (lambda: ArrayDataset(np.zeros((0, 1, 1, 1)), np.zeros(0, int)), "is empty"),
        (lambda: ArrayDataset(np.zeros((2, 1, 1, 1)), np.zeros(2)), "integers"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_what_is_imported_later_is_what_its_file_has():
    for name, file in data.LATER.items():
        assert name in data.__all__ and name in dir(data)
        assert getattr(data, name) is getattr(importlib.import_module(f"minires.data.{file}"), name)
    with pytest.raises(AttributeError, match="'minires.data' has no attribute 'imagenet'"):
        data.imagenet  # noqa: B018
