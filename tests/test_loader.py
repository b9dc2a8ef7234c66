"""The loader: batches prepared ahead, random changes, and going on from the middle of an epoch."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback

import numpy as np
import pytest

from minires.data import ArrayDataset, Compose, DataLoader, Normalize, RandomCrop, RandomHorizontalFlip
from minires.data.loader import AHEAD

AUGMENT = Compose([RandomCrop(6, padding=2), RandomHorizontalFlip()])


def dataset(n=23, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 3, 6, 6), dtype=np.uint8)
    return ArrayDataset(images, rng.integers(0, 5, n), Normalize((0.5,) * 3, (0.25,) * 3))


def loader(workers=0, seed=7, **options):
    return DataLoader(dataset(), 4, shuffle=True, seed=seed, transform=AUGMENT, workers=workers, **options)


def bits(batch):
    images, labels = (tensor.numpy() for tensor in batch)
    assert images.dtype == np.float32 and labels.dtype == np.int64
    return images.tobytes(), labels.tobytes()


def epoch(loader):
    return [bits(batch) for batch in loader]


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("minires-loader")]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_change_nothing(workers):
    plain, threaded = loader(), loader(workers)
    for _ in range(3):
        assert epoch(plain) == epoch(threaded)
    assert not threads()


def test_epochs_and_seeds_differ():
    one = loader()
    first, second, other = epoch(one), epoch(one), epoch(loader(seed=8))
    assert first != second and first != other
    in_order = DataLoader(dataset(), 4, transform=AUGMENT)
    assert epoch(in_order) != epoch(in_order), "the transform draws anew in each epoch"


def test_a_transform_does_not_change_the_order():
    plain, changed = DataLoader(dataset(), 4, shuffle=True, seed=7), loader()
    for _ in range(2):
        assert [labels for _, labels in epoch(changed)] == [labels for _, labels in epoch(plain)]
    again, generator = DataLoader(dataset(), 4, shuffle=True, seed=7), np.random.default_rng(7)
    for _ in range(3):  # what the shuffling has always been
        order = generator.permutation(23)
        assert [y for _, labels in again for y in labels.tolist()] == dataset().labels[order].tolist()


def test_every_batch_draws_anew():
    same = ArrayDataset(np.broadcast_to(dataset().images[:1], (40, 3, 6, 6)), np.zeros(40, int))
    batches = epoch(DataLoader(same, 10, transform=lambda i, g: AUGMENT(i, g).astype(np.float32)))
    assert len(set(batches)) == 4


def test_the_transform_sees_what_is_stored_and_bytes_are_normalised_after_it():
    seen = []

    def look(images, generator):
        seen.append((images.dtype, images.shape))
        return images

    data = dataset()
    (images, labels), *_ = DataLoader(data, 4, transform=look)
    assert seen[0] == (np.uint8, (4, 3, 6, 6))
    assert np.array_equal(images.numpy(), data[:4][0]) and images.numpy().dtype == np.float32
    done = DataLoader(data, 4, transform=lambda images, generator: np.full(images.shape, 2.5, np.float32))
    assert (next(iter(done))[0].numpy() == 2.5).all(), "what is float already is left alone"


def test_batches_are_copies():
    data = dataset()
    before = data.images.copy()
    plain = ArrayDataset(data.images, data.labels)
    for images, labels in DataLoader(plain, 4):
        images.numpy()[:] = 0
        labels.numpy()[:] = 9
    assert np.array_equal(data.images, before) and data.labels.max() < 5


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("generator", [7, np.random.PCG64DXSM, np.random.MT19937])
def test_going_on_from_anywhere_gives_the_batches_that_would_have_come(workers, generator):
    def start():
        return loader(workers, seed=generator if generator == 7 else np.random.Generator(generator(7)))

    reference = start()
    whole = [epoch(reference) for _ in range(3)]
    for at in range(7):  # six batches an epoch; 6: after the last batch, 0: before the first
        running = start()
        assert epoch(running) == whole[0]
        if at:  # 0: between two epochs
            batches = iter(running)
            for _ in range(at):
                next(batches)
        state = running.state_dict()
        if at:
            batches.close()
        for goes_on in (start(), running):  # a new loader, and the same one
            goes_on.load_state_dict(state)
            assert goes_on.state_dict() is not state
            assert epoch(goes_on) == whole[1][at:]
            assert epoch(goes_on) == whole[2]
    assert not threads()


def test_a_state_taken_between_epochs():
    reference, running = loader(), loader()
    whole = [epoch(reference) for _ in range(2)]
    other = loader(seed=99)
    other.load_state_dict(running.state_dict())
    assert epoch(other) == whole[0]
    other.load_state_dict(reference.state_dict())
    assert epoch(other) == epoch(reference)


def test_a_state_goes_through_json():
    running = loader()
    for _, _ in zip(range(2), running, strict=False):
        pass
    state = json.loads(json.dumps(running.state_dict()))
    rest, goes_on = [], loader(1)
    goes_on.load_state_dict(state)
    rest = epoch(goes_on)
    assert rest == epoch(loader())[-len(rest) :] and len(rest) == 6 - state["position"]


def test_leaving_early_begins_a_new_epoch_next_time():
    reference, running = loader(), loader(2)
    whole = [epoch(reference) for _ in range(2)]
    for batch in running:
        assert bits(batch) == whole[0][0]
        break
    assert epoch(running) == whole[1]


def wrong_states():
    good = loader().state_dict()
    return {
        "none": None,
        "empty": {},
        "of another batch size": DataLoader(dataset(), 5, shuffle=True).state_dict(),
        "of another size": DataLoader(dataset(22), 4, shuffle=True).state_dict(),
        "not shuffled": DataLoader(dataset(), 4).state_dict(),
        "beyond the end": good | {"position": 7},
        "a float position": good | {"position": 1.5},
        "of another generator": loader(seed=np.random.Generator(np.random.MT19937(1))).state_dict(),
        "half a state": good | {"states": {"shuffle": good["states"]["shuffle"]}},
        "no numbers": good
        | {"states": {"shuffle": loader(seed=5).state_dict()["states"]["shuffle"], "augmentation": {}}},
    }


@pytest.mark.parametrize("state", wrong_states().values(), ids=wrong_states().keys())
def test_wrong_states_are_refused_and_change_nothing(state):
    running = loader()
    with pytest.raises(ValueError, match="DataLoader"):
        running.load_state_dict(state)
    assert epoch(running) == epoch(loader())


def broken(images, generator):
    if images[0].sum() % 2 >= 0 and broken.calls == 2:
        raise ZeroDivisionError("the third batch")
    broken.calls += 1
    return images


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_what_a_worker_raises_arrives_with_its_traceback(workers):
    broken.calls = 0
    running, got = DataLoader(dataset(), 4, transform=broken, workers=workers), 0
    with pytest.raises(ZeroDivisionError, match="third batch") as raised:
        for _ in running:
            got += 1
    assert "in broken" in "".join(traceback.format_exception(raised.value))
    assert got == 2 if workers < 2 else got <= 2
    del raised
    assert not threads()


def test_a_transform_that_loses_images_is_named():
    with pytest.raises(ValueError, match=r"was given 4 images and gave back \(3, 3, 6, 6\)"):
        list(DataLoader(dataset(), 4, transform=lambda images, generator: images[1:]))
    with pytest.raises(ValueError, match="gave back NoneType"):
        list(DataLoader(dataset(), 4, transform=lambda images, generator: None))


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_stay_a_little_ahead(workers):
    started = []

    def count(images, generator):
        started.append(1)
        return images

    data = dataset(400)
    batches = iter(DataLoader(data, 4, transform=count, workers=workers))
    next(batches)
    time.sleep(0.05)
    assert 1 <= len(started) <= AHEAD * workers + 1
    batches.close()
    assert not threads()
    assert len(started) <= AHEAD * workers + 1


def test_leaving_early_ends_the_threads():
    for _ in loader(3):
        break
    assert not threads()
    with pytest.raises(KeyError):
        for _ in loader(3):
            raise KeyError
    batches = iter(loader(2))
    next(batches)
    del batches
    assert not threads()


INTERRUPTED = """
import os, threading, time
import numpy as np
from minires.data import ArrayDataset, DataLoader

def slow(images, generator):
    time.sleep(0.3)  # both workers are there by then, and the loop waits: one that is being started counts for ever
    os.write(1, b"working\\n")
    time.sleep(0.3)
    return images

try:
    data = ArrayDataset(np.zeros((1000, 1, 2, 2), np.float32), np.zeros(1000, int))
    for batch in DataLoader(data, 1, transform=slow, workers=2):
        pass
except KeyboardInterrupt:
    end = time.monotonic() + 20
    while threading.active_count() > 1 and time.monotonic() < end:
        time.sleep(0.01)
    print("stopped", threading.active_count(), flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals differ on Windows")
def test_ctrl_c_stops_the_waiting_and_the_workers():
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert output.splitlines()[-1] == "stopped 1" and process.returncode == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"workers": -1}, "workers must be an int of at least 0"),
        ({"workers": 1.5}, "workers must be"),
        ({"transform": 3}, "transform must be called with images and a generator"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        DataLoader(dataset(), 4, **options)


# ---- Several workers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("transform", [None, AUGMENT], ids=["plain", "augmented"])
def test_the_parts_of_workers_are_the_batches_of_one(n, transform):
    """23 images in batches of 6 and one of 5: two workers cut that too, three do not."""
    given = {"shuffle": True, "seed": 7, "transform": transform}
    whole = DataLoader(dataset(), 6, **given)
    several = [DataLoader(dataset(), 6, **given, num_replicas=n, rank=rank, workers=rank) for rank in range(n)]
    for _ in range(2):
        for i, (batch, *parts) in enumerate(zip(whole, *several, strict=True)):
            sizes = [len(labels) for _, labels in parts]
            assert len(whole) == len(several[0]) and several[0].length(i) == len(batch[1]) == (5 if i == 3 else 6)
            assert several[0].is_cut(i) == (i < 3 or n == 2) and not whole.is_cut(i)
            assert sizes == ([6 // n] * n if i < 3 else [3, 2] if n == 2 else [5, 5, 5])
            shares = [one.share(i) for one in several]
            assert sum(shares) == pytest.approx(1) and whole.share(i) == 1
            np.testing.assert_allclose(shares, np.array(sizes) / sum(sizes), err_msg="every image weighs the same")
            parts = parts if several[0].is_cut(i) else parts[:1]
            for k in (0, 1):
                joined = np.concatenate([part[k].numpy() for part in parts])
                assert joined.tobytes() == batch[k].numpy().tobytes()
    assert whole.state_dict() == several[1].state_dict(), "any number of workers goes on from it"


def test_a_worker_reads_only_its_own_images():
    read = []

    class Images:
        shape, dtype = (23, 3, 6, 6), np.dtype("uint8")

        def __len__(self):
            return 23

        def __getitem__(self, index):
            read.extend(index)
            return np.zeros((len(index), 3, 6, 6), np.uint8)

    for transform in (None, AUGMENT):
        read.clear()
        list(DataLoader(ArrayDataset(Images(), np.arange(23)), 9, transform=transform, num_replicas=2, rank=1))
        assert read == [5, 6, 7, 8, 14, 15, 16, 17, 21, 22], "of 9, 9 and 5 images"


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_out_of_range(rank):
    with pytest.raises(ValueError, match=f"rank must lie between 0 and 1, got {rank}"):
        DataLoader(dataset(), 4, num_replicas=2, rank=rank)
    with pytest.raises(ValueError, match="num_replicas must be a positive int, got 0"):
        DataLoader(dataset(), 4, num_replicas=0, rank=rank)
