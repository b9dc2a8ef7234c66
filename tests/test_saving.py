"""Files as they are written: whole whoever else writes, and with the rights and the place of the file before them."""

import os
import stat
import threading

import numpy as np
import pytest

import minires
from minires.data.checkpoint import write_whole

POSIX = pytest.mark.skipif(os.name != "posix", reason="rights and links are those of POSIX")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_threads_that_save_one_path_leave_whole_files(tmp_path, suffix):
    """Each file that is there at any time is one that some thread saved, and nothing is left beside it."""
    path, errors, done = tmp_path / f"a{suffix}", [], threading.Event()

    def save(number):
        try:
            for _ in range(40):
                minires.save(path, {"a": np.full(20_000, number, np.float32)})
        except Exception as error:
            errors.append(error)

    def load():
        while not done.is_set():
            try:
                a = minires.load(path)["a"].numpy()
                assert (a == a[0]).all()
            except Exception as error:
                errors.append(error)

    minires.save(path, {"a": np.zeros(20_000, np.float32)})
    writers = [threading.Thread(target=save, args=(i,)) for i in range(3)]
    reader = threading.Thread(target=load)
    for thread in (*writers, reader):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert not errors, errors[:3]
    assert os.listdir(tmp_path) == [path.name]


@POSIX
def test_a_file_keeps_its_rights(tmp_path):
    path = tmp_path / "a.npz"
    before = os.umask(0o022)
    try:
        minires.save(path, {"a": np.ones(2)})
        assert stat.S_IMODE(path.stat().st_mode) == 0o644  # a new one has those of any new file
        for mode in (0o600, 0o664, 0o640):
            path.chmod(mode)
            minires.save(path, {"a": np.ones(2)})
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(before)


@POSIX
def test_a_link_is_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.pth").symlink_to(tmp_path / "elsewhere" / "b.pth")
    for value in (1.0, 2.0):  # the first time, the link leads nowhere yet
        minires.save(tmp_path / "a.pth", {"a": np.array(value)})
        assert (tmp_path / "a.pth").is_symlink()
        assert minires.load(tmp_path / "elsewhere" / "b.pth")["a"].item() == value
    assert sorted(os.listdir(tmp_path / "elsewhere")) == ["b.pth"]


@POSIX
def test_a_file_that_is_kept_under_another_name_is_kept_though_it_is_a_link(tmp_path):
    (tmp_path / "target").write_bytes(b"first")
    (tmp_path / "a").symlink_to(tmp_path / "target")
    write_whole(tmp_path / "a", b"second", previous=tmp_path / "before")
    assert (tmp_path / "a").read_bytes() == b"second" and (tmp_path / "before").read_bytes() == b"first"


def test_what_fails_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    minires.save(path, {"a": np.ones(2)})
    content = path.read_bytes()

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        minires.save(path, {"a": np.zeros(2)})
    assert os.listdir(tmp_path) == ["a.npz"] and path.read_bytes() == content
