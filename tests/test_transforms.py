"""Transforms of batches against torchvision's definitions, image by image, with the same random choices."""

import numpy as np
import pytest

from minires.data import Compose, Cutout, Normalize, Pad, RandomCrop, RandomHorizontalFlip


def batch(dtype=np.uint8, shape=(13, 3, 9, 7), seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 256, shape, dtype=np.uint8) if dtype == np.uint8 else rng.standard_normal(shape).astype(dtype)
    )


class Replay:
    """A transform's choices, kept so that a loop can make the same ones."""

    def __init__(self, monkeypatch, transform):
        self.made = []
        choose = transform.choose

        def kept(shape, generator):
            self.made.append(choose(shape, generator))
            return self.made[-1]

        monkeypatch.setattr(transform, "choose", kept)


def padded_pixel(image, c, row, column, fill, mode):
    """The pixel of a padded image at a place of the original that may lie outside."""
    _, H, W = image.shape
    for place, size in ((row, H), (column, W)):
        if not 0 <= place < size and mode == "constant":
            return fill[c] if isinstance(fill, tuple) else fill

    def inside(place, size):
        if mode == "edge":
            return min(max(place, 0), size - 1)
        if mode == "reflect":  # the border itself is not repeated
            return -place if place < 0 else 2 * (size - 1) - place if place >= size else place
        return -place - 1 if place < 0 else 2 * size - 1 - place if place >= size else place  # symmetric

    return image[c, inside(row, H), inside(column, W)]


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_random_crop(monkeypatch, mode, dtype):
    images = batch(dtype)
    fill = (7, 0, 255) if mode == "constant" else 0
    transform = RandomCrop((6, 5), padding=(1, 2), fill=fill, padding_mode=mode)  # left and right 1, top and bottom 2
    replay = Replay(monkeypatch, transform)
    out = transform(images, np.random.default_rng(1))
    assert out.shape == (13, 3, 6, 5) and out.dtype == dtype
    ((tops, lefts),) = replay.made
    for n, image in enumerate(images):
        for c, i, j in np.ndindex(3, 6, 5):
            row, column = tops[n] + i - 2, lefts[n] + j - 1
            assert out[n, c, i, j] == padded_pixel(image, c, row, column, fill, mode)


def test_random_crop_reaches_every_place():
    transform = RandomCrop(3, padding=1)
    tops, lefts = transform.choose((5000, 1, 6, 5), np.random.default_rng(0))
    counts = np.zeros((4, 3))
    np.add.at(counts, (tops, lefts), 1)
    assert (abs(counts - 5000 / 12) < 100).all()
    whole = batch(shape=(4, 1, 3, 3))
    assert np.array_equal(RandomCrop(3)(whole, np.random.default_rng(0)), whole)


def test_pad_on_four_sides():
    images = batch()
    out = Pad((1, 2, 3, 4), fill=9)(images)  # left, top, right, bottom
    assert out.shape == (13, 3, 15, 11)
    assert np.array_equal(out[:, :, 2:11, 1:8], images)
    assert (out[:, :, :2] == 9).all() and (out[:, :, -4:] == 9).all()
    assert (out[..., :1] == 9).all() and (out[..., -3:] == 9).all()


def test_flip(monkeypatch):
    images = batch(shape=(50, 2, 3, 4))
    transform = RandomHorizontalFlip(0.3)
    replay = Replay(monkeypatch, transform)
    out = transform(images, np.random.default_rng(5))
    (flipped,) = replay.made
    assert 5 <= flipped.sum() <= 25
    for n, image in enumerate(images):
        assert np.array_equal(
            out[n], np.stack([[row[::-1] for row in plane] for plane in image]) if flipped[n] else image
        )
    rng = np.random.default_rng(0)
    assert np.array_equal(RandomHorizontalFlip(0)(images, rng), images)
    assert np.array_equal(RandomHorizontalFlip(1)(images, rng), images[..., ::-1])


def test_normalize():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    images = batch()
    out = Normalize(mean, std)(images)
    assert out.dtype == np.float32
    for n, c, i, j in np.ndindex(out.shape):
        assert out[n, c, i, j] == pytest.approx((images[n, c, i, j] / 255 - mean[c]) / std[c], abs=1e-5)
    assert np.allclose(Normalize(mean, std)(images.astype(np.float32) / 255), out, atol=1e-5)
    assert np.array_equal(Normalize(mean, std)(images[3]), out[3])
    assert Normalize(mean, std)(images / 255).dtype == np.float64


@pytest.mark.parametrize("size", [1, 4, 5, 30])
def test_cutout(monkeypatch, size):
    images = batch(np.float32)
    transform = Cutout(size)
    replay = Replay(monkeypatch, transform)
    out = transform(images, np.random.default_rng(2))
    ((ys, xs),) = replay.made
    N, C, H, W = images.shape
    for n in range(N):  # as the published code has it
        mask = np.ones((H, W), np.float32)
        y1, y2 = np.clip(ys[n] - size // 2, 0, H), np.clip(ys[n] + size // 2, 0, H)
        x1, x2 = np.clip(xs[n] - size // 2, 0, W), np.clip(xs[n] + size // 2, 0, W)
        mask[y1:y2, x1:x2] = 0.0
        assert np.array_equal(out[n], images[n] * mask)


def test_cutout_fills_each_channel():
    out = Cutout(30, fill=(1, 2, 3))(batch(), np.random.default_rng(0))
    assert set(map(tuple, out.transpose(0, 2, 3, 1)[:, 4, 3])) == {(1, 2, 3)}


def every_transform():
    return [
        RandomCrop(7, padding=2),
        RandomCrop(5, padding=1, padding_mode="reflect"),
        RandomHorizontalFlip(),
        Pad(2, fill=3),
        Cutout(4),
        Normalize((0.5,) * 3, (0.2,) * 3),
        Compose([RandomCrop(7, padding=2), RandomHorizontalFlip(), Normalize((0.5,) * 3, (0.2,) * 3), Cutout(4)]),
    ]


@pytest.mark.parametrize("transform", every_transform(), ids=lambda t: type(t).__name__)
def test_the_same_seed_gives_the_same_and_the_batch_is_left_as_it_was(transform):
    images = batch()
    before = images.copy()
    first = transform(images, np.random.default_rng(3))
    assert np.array_equal(images, before) and not np.shares_memory(first, images)
    images.flags.writeable = False
    assert np.array_equal(transform(images, np.random.default_rng(3)), first)
    global_state = np.random.get_state()[1].tolist()
    transform(images, np.random.default_rng(4))
    assert np.random.get_state()[1].tolist() == global_state


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: RandomCrop(0), "RandomCrop: size must be at least 1"),
        (lambda: RandomCrop(2.5), "an int or a pair of ints, got 2.5"),
        (lambda: RandomCrop((1, 2, 3)), "an int or a pair"),
        (lambda: RandomCrop(10)(batch(), np.random.default_rng(0)), "window is 10x10 and the padded image 9x7"),
        (lambda: RandomCrop(4, padding=-1), "padding must be at least 0"),
        (lambda: RandomCrop(4, 1, padding_mode="wrap"), "padding_mode must be one of constant, edge"),
        (
            lambda: RandomCrop(4)(batch()[0], np.random.default_rng(0)),
            r"expected images \(N, C, H, W\), got \(3, 9, 7\)",
        ),
        (lambda: Pad(1, fill=(1, 2))(batch()), "one for each of 3 channels"),
        (lambda: Pad(1, fill=-0.5)(batch()), "whole numbers between 0 and 255"),
        (lambda: RandomHorizontalFlip(1.5), "p must lie between 0 and 1"),
        (lambda: Cutout(0), "positive int, got 0"),
        (lambda: Normalize((0.5,), (0.0,)), "deviations above 0"),
        (lambda: Normalize((0.5,), (0.1, 0.2)), "as many means"),
        (lambda: Normalize((0.5,), (0.1,))(batch()), "expected images of 1 channels"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
