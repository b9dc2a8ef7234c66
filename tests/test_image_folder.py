"""Folders of image files as a data set."""

import os
import struct
import time

import numpy as np
import pytest
from PIL import Image

from minires.data import DataLoader, folder, image_folder, load_data
from minires.data.binary import DataError
from minires.data.images import MEAN, STD, open_image, read_image


def picture(path, size=(12, 10), seed=0, mode="RGB"):
    """Write an image file of random pixels; its pixels (3, H, W) as they should be read (of formats without loss)."""
    width, height = size
    rng = np.random.default_rng([seed, *map(ord, path.parent.name + path.name)])
    shape = (height, width) if mode == "L" else (height, width, 3)
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return np.broadcast_to(pixels[None], (3, height, width)) if mode == "L" else pixels.transpose(2, 0, 1)


def test_train_and_test_folders(tmp_path):
    expected = {}
    for part, classes in (("train", ["dog", "Cat", "ant"]), ("val", ["ant", "Cat"])):
        for name in classes:
            for file in ("b.png", "a.PNG", "inner/c.bmp", "inner/deep/d.ppm", "z.tiff", "e.webp"):
                path = tmp_path / part / name / file
                pixels = picture(path, seed=len(expected), mode="L" if file == "b.png" else "RGB")
                if file != "e.webp":  # which loses something
                    expected[str(path)] = pixels
    (tmp_path / "train" / "dog" / ".notes.txt").write_text("no image")
    (tmp_path / "train" / ".hidden").mkdir()
    split = load_data(tmp_path)
    assert split.classes == ("Cat", "ant", "dog") and split.num_classes == 3 and split.in_channels == 3
    assert len(split.train) == 18 and len(split.test) == 12
    assert (
        split.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6 and split.test.labels.tolist() == [0] * 6 + [1] * 6
    )
    order = ["a.PNG", "b.png", "e.webp", "z.tiff", "inner/c.bmp", "inner/deep/d.ppm"]  # by folder, then by name
    for part, dataset, classes in (("train", split.train, split.classes), ("val", split.test, split.classes[:2])):
        for i, path in enumerate(str(tmp_path / part / name / file) for name in classes for file in order):
            if path in expected:
                assert np.array_equal(dataset.images[i], expected[path]), path
    taken, _ = split.train[0]
    assert np.allclose(
        taken, (split.train.images[0] / 255 - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None], atol=1e-5
    )
    assert taken.dtype == np.float32


def classes_of(tmp_path, counts, size=(8, 8)):
    for name, count in counts.items():
        for i in range(count):
            picture(tmp_path / name / f"{i:02}.png", size, seed=i)
    return tmp_path


def test_class_folders_alone_are_split_the_same_way_every_time(tmp_path):
    classes_of(tmp_path, {"a": 20, "b": 10, "c": 2, "d": 1})
    first, second = load_data(str(tmp_path)), load_data(str(tmp_path))
    assert np.bincount(first.test.labels).tolist() == [4, 2, 1] and np.bincount(first.train.labels).tolist() == [
        16,
        8,
        1,
        1,
    ]
    assert first.num_classes == 4
    assert np.array_equal(first.train.images, second.train.images) and np.array_equal(
        first.test.images, second.test.images
    )
    everything = [image.tobytes() for part in first[:2] for image in part.images]
    assert len(set(everything)) == len(everything) == 33
    numbers = folder.share_out(np.zeros(20, int))[1].tolist()
    assert numbers != list(range(4)) and numbers != list(range(16, 20))


def test_a_class_called_train_is_refused(tmp_path):
    classes_of(tmp_path, {"Train": 3, "bus": 3, "car": 3})
    with pytest.raises(DataError, match="has Train/ and neither test/ nor val/.*a class of this name needs another"):
        load_data(tmp_path)


@pytest.mark.parametrize(
    "train, test",
    [("train", "valid"), ("Train", "Validation"), ("TRAIN", "val"), ("Training", "Testing"), ("train", "TEST")],
)
def test_the_parts_by_other_names(tmp_path, train, test):
    classes_of(tmp_path, {f"{train}/cat": 3, f"{train}/dog": 3, f"{test}/cat": 1, f"{test}/dog": 2})
    split = load_data(tmp_path)
    assert split.classes == ("cat", "dog") and (len(split.train), len(split.test)) == (6, 3)


def test_a_folder_that_is_not_used_is_said(tmp_path):
    classes_of(tmp_path, {"train/a": 2, "val/a": 1, "test/a": 3})
    with pytest.warns(UserWarning, match="left out the folder val/$"):
        assert len(load_data(tmp_path).test) == 3


def test_files_that_are_left_out_are_said_once(tmp_path):
    classes_of(tmp_path, {"a": 5, "b": 5})
    for name in ("a/1.heic", "a/2.HEIC", "b/3.heic", "b/notes.txt", "b/Thumbs.db", "b/inner/none"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    for name in ("a/.DS_Store", ".hidden", "README.txt"):
        (tmp_path / name).write_text("")
    picture(tmp_path / "lost.png")
    with pytest.warns(UserWarning) as said:
        split = load_data(tmp_path)
    assert len(split.train) + len(split.test) == 10
    assert [str(warning.message) for warning in said] == [
        f"{tmp_path}: left out 7 files: 3 .heic, 1 .db, 1 .txt, 1 in no class folder, 1 without an ending"
    ]
    for path in (tmp_path / "a").glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"a has no image in it: .*\(it has 2 files: 2 .heic\)"):
        load_data(tmp_path)


def test_the_first_frame_of_a_gif(tmp_path):
    classes_of(tmp_path, {"a": 3})
    first, second = (Image.fromarray(np.full((8, 8), grey, np.uint8)) for grey in (70, 200))
    first.save(tmp_path / "a" / "00.gif", save_all=True, append_images=[second])
    assert (open_image(tmp_path / "a" / "00.gif").getpixel((3, 4))) == (70, 70, 70)
    split = load_data(tmp_path)
    assert len(split.train) + len(split.test) == 4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes by name here")
def test_a_pipe_is_no_image_and_does_not_hang(tmp_path):
    classes_of(tmp_path, {"a": 3})
    os.mkfifo(tmp_path / "a" / "p.png")
    with pytest.warns(UserWarning, match="left out 1 file: 1 no regular file$"):
        load_data(tmp_path)
    with pytest.raises(DataError, match="p.png is not a file"):
        open_image(tmp_path / "a" / "p.png")


def test_sizes(tmp_path):
    one_size = classes_of(tmp_path / "one", {"a": 3, "b": 3}, (20, 30))
    assert load_data(one_size).train.images.shape[1:] == (3, 30, 20)
    many = classes_of(tmp_path / "many", {"a": 3, "b": 3}, (20, 30))
    picture(many / "a" / "other.png", (300, 40))
    assert load_data(many).train.images.shape[1:] == (3, 224, 224)
    split = image_folder(many, resize=16, crop=12)
    assert split.train.images.shape[1:] == (3, 12, 12)
    paths, _ = folder.find_images(many, ["a", "b"])
    train, _ = folder.share_out(np.array([0] * 4 + [1] * 3))
    for i, number in enumerate(train):
        assert np.array_equal(split.train[i][0], read_image(paths[number], 16, 12)), "as minires predict reads it"
    large = classes_of(tmp_path / "large", {"a": 2, "b": 2}, (300, 300))
    assert load_data(large).train.images.shape[1:] == (3, 224, 224)


def test_large_folders_are_read_batch_by_batch(tmp_path, monkeypatch):
    classes_of(tmp_path, {"a": 9, "b": 9})
    at_once = load_data(tmp_path)
    monkeypatch.setattr(folder, "KEPT", 100)
    later = load_data(tmp_path)
    assert isinstance(later.train.images, folder.ImageFiles) and later.train.images.shape == at_once.train.images.shape
    for index in (0, np.int64(3), slice(2, 5), np.array([4, 1])):
        assert np.array_equal(later.train[index][0], at_once.train[index][0])
    for workers in (0, 2):
        one, other = (DataLoader(s.train, 4, shuffle=True, workers=workers) for s in (at_once, later))
        for (a, b), (c, d) in zip(one, other, strict=True):
            assert np.array_equal(a.numpy(), c.numpy()) and b.tolist() == d.tolist()
    (tmp_path / "a" / "00.png").write_bytes(b"gone wrong")
    with pytest.raises(DataError, match="00.png is not an image file"):
        for split in (later.train, later.test):
            list(DataLoader(split, 4, workers=1))


def test_files_come_in_the_order_of_torchvision(tmp_path):
    for name in "qbxazkm":
        for file in ("2.png", "1.png"):
            picture(tmp_path / "class" / name / file)
    picture(tmp_path / "class" / "b" / "inner" / "0.png")
    names = [os.path.relpath(path, tmp_path / "class") for path in folder.image_paths(str(tmp_path / "class"))]
    walked = sorted(os.walk(tmp_path / "class", followlinks=True))  # as torchvision does it
    expected = [
        os.path.relpath(os.path.join(at, name), tmp_path / "class") for at, _, n in walked for name in sorted(n)
    ]
    assert names == expected and len(names) == 15


def test_a_changed_pixel_of_a_png_is_noticed(tmp_path):
    classes_of(tmp_path, {"a": 3})
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a" / "00.png", compress_level=0)
    load_data(tmp_path)
    content = bytearray((tmp_path / "a" / "00.png").read_bytes())
    at = content.index(bytes(100)) + 50
    content[at] = 200
    (tmp_path / "a" / "00.png").write_bytes(content)
    with pytest.raises(DataError, match="00.png is damaged"):
        load_data(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_are_followed_but_not_for_ever(tmp_path):
    classes_of(tmp_path / "data", {"a": 5, "b": 5})
    classes_of(tmp_path / "elsewhere", {"c": 5})
    (tmp_path / "data" / "c").symlink_to(tmp_path / "elsewhere" / "c")
    (tmp_path / "data" / "a" / "loop").symlink_to(tmp_path / "data" / "a")
    (tmp_path / "data" / "a" / "again").symlink_to(tmp_path / "data" / "a")
    split = load_data(tmp_path / "data")
    assert len(split.train) + len(split.test) == 15 and split.classes == ("a", "b", "c")


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_folders_that_link_to_each_other_are_each_visited_once(tmp_path):
    """Ten folders with a link in each to every other: as many ways through them as ten people can stand in a row."""
    root = tmp_path / "class"
    for i in range(10):
        picture(root / f"f{i}" / "0.png")
        for j in range(10):
            (root / f"f{i}" / f"a{j}").symlink_to(root / f"f{j}")
    (root / "a").symlink_to(root / "f3")  # comes before what it links to: the folder itself is taken all the same
    (root / "elsewhere").symlink_to(tmp_path / "elsewhere")
    picture(tmp_path / "elsewhere" / "inner" / "0.png")
    start = time.perf_counter()
    names = [os.path.relpath(path, root) for path in folder.image_paths(str(root))]
    assert time.perf_counter() - start < 2
    assert names == ["elsewhere/inner/0.png"] + [f"f{i}/0.png" for i in range(10)]


def test_a_header_that_lies_is_refused_before_memory_is_given(tmp_path):
    classes_of(tmp_path, {"a": 3})
    header = b"BM" + struct.pack("<IHHI", 1000, 0, 0, 54)
    info = struct.pack("<IiiHHIIiiII", 40, 7000, 9000, 1, 24, 0, 0, 0, 0, 0, 0)
    (tmp_path / "a" / "00.bmp").write_bytes(header + info + bytes(946))
    with pytest.raises(DataError, match="00.bmp says that it has 7000x9000 pixels, and it has 1,000 bytes"):
        load_data(tmp_path)


def broken(tmp_path, change):
    root = classes_of(tmp_path / "data", {"train/a": 2, "train/b": 2, "test/a": 1})
    change(root)
    return root


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda root: (root / "train" / "a" / "01.png").write_bytes(b"text"), "train.a.01.png is not an image file"),
        (lambda root: (root / "train" / "a" / "01.png").write_bytes(b""), "train.a.01.png is not an image file"),
        (lambda root: cut(root / "test" / "a" / "00.png"), "test.a.00.png is damaged"),
        (lambda root: (root / "train" / "c").mkdir(), "train.c has no image in it: expected files that end in .jpg"),
        (lambda root: picture(root / "test" / "c" / "0.png"), "test.c: there is no such class to train on"),
        (lambda root: [os.remove(root / "test" / "a" / "00.png")], "test.a has no image"),
        (lambda root: (root / "test" / "a").rename(root / "elsewhere"), "test: expected a folder of images for each"),
    ],
)
def test_broken_folders_are_refused(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        load_data(broken(tmp_path, change))


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def test_folders_that_are_none(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: expected a folder of images for each class"):
        load_data(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_data(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="unknown data set 'nowhere'.*a folder of images is named by its path"):
        load_data("nowhere")
    classes_of(tmp_path / "half", {"train/a": 2, "train/b": 2})
    with pytest.raises(DataError, match="has train/ and neither test/ nor val/"):
        load_data(tmp_path / "half")
    classes_of(tmp_path / "single", {"a": 1, "b": 1})
    with pytest.raises(DataError, match="a single image, which leaves none to test on"):
        load_data(tmp_path / "single")


@pytest.mark.parametrize("sizes", [{"resize": 8}, {"crop": 8}, {"resize": 8, "crop": 9}, {"resize": 0, "crop": 0}])
def test_sizes_that_cannot_be(tmp_path, sizes):
    with pytest.raises(ValueError, match="image_folder: "):
        image_folder(classes_of(tmp_path, {"a": 2}), **sizes)


@pytest.mark.skipif(os.name == "nt", reason="the program is a shell script")
@pytest.mark.parametrize("read", [open_image, read_image, lambda path: folder.common_size([str(path)])])
def test_postscript_by_another_name_starts_no_program(tmp_path, monkeypatch, read):
    program, ran = tmp_path / "gs", tmp_path / "ran"
    program.write_text(f"#!/bin/sh\ntouch {ran}\necho 10.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    path = tmp_path / "cat.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(DataError, match=r"cat.jpg is not an image file of a kind that is read \(JPEG, PNG, "):
        read(path)
    assert not ran.exists()
