"""Image files and data sets as a user has them: `minires predict` and `minires eval`."""

import re

import numpy as np
import pytest
from PIL import Image

import minires
from minires import cli, models
from minires.data import digits
from minires.data.images import read_image
from minires.train.prediction import confusion, evaluation_data, load_model, predict, read_labels
from minires.train.recipes import TrainOptions
from minires.train.runs import run

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
rng = np.random.default_rng(0)


def noise(height, width, channels=3):
    """Smooth noise: what a photograph is to a resampling filter."""
    small = rng.integers(0, 256, (max(height // 8, 1), max(width // 8, 1), channels), dtype=np.uint8)
    return np.asarray(Image.fromarray(small.squeeze()).resize((width, height), Image.Resampling.BICUBIC))


def expected_pixels(path, resize=256, crop=224):
    """torchvision's Resize, CenterCrop, ToTensor and Normalize, as its documentation says them, in float64."""
    image = Image.open(path).convert("RGB")
    width, height = image.size
    if width <= height:
        size = (resize, int(resize * height / width))
    else:
        size = (int(resize * width / height), resize)
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    top, left = round((size[1] - crop) / 2), round((size[0] - crop) / 2)
    pixels = pixels[top : top + crop, left : left + crop]
    return ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)


@pytest.mark.parametrize("size", [(300, 411), (411, 300), (257, 257), (40, 31), (224, 600), (333, 500)], ids=str)
@pytest.mark.parametrize("resize, crop", [(256, 224), (32, 32)])
def test_preprocessing_is_torchvisions(tmp_path, size, resize, crop):
    path = tmp_path / "a.png"
    Image.fromarray(noise(*size)).save(path)
    pixels = read_image(path, resize, crop)
    assert pixels.shape == (3, crop, crop) and pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, expected_pixels(path, resize, crop), atol=1e-5)


def test_a_colour_comes_out_normalised(tmp_path):
    """By hand: an even colour stays even, and each channel is shifted and scaled by its own numbers."""
    Image.new("RGB", (400, 300), (255, 0, 51)).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    assert np.allclose(pixels, np.array(expected)[:, None, None], atol=1e-5)


def test_kinds_of_images(tmp_path):
    """Grey, palette, transparent and CMYK files become red, green and blue as Pillow's convert makes them."""
    colour = Image.fromarray(noise(90, 120))
    files = {
        "rgb.png": colour,
        "rgb.jpg": colour,
        "grey.png": colour.convert("L"),
        "grey.jpg": colour.convert("L"),
        "one-bit.png": colour.convert("1"),
        "palette.png": colour.quantize(16),
        "palette.gif": colour.quantize(16),
        "rgba.png": Image.fromarray(np.dstack([np.asarray(colour), noise(90, 120, 1)])),
        "grey-alpha.png": colour.convert("LA"),
        "cmyk.jpg": colour.convert("CMYK"),
        "colour.bmp": colour,
        "one pixel wide.png": colour.crop((0, 0, 1, 90)),
        "one pixel high.png": colour.crop((0, 0, 120, 1)),
        "one pixel.png": colour.crop((5, 5, 6, 6)),
    }
    for name, image in files.items():
        image.save(tmp_path / name)
        np.testing.assert_allclose(
            read_image(tmp_path / name), expected_pixels(tmp_path / name), atol=1e-5, err_msg=name
        )


def test_16_bits_of_grey_keep_their_upper_half(tmp_path):
    grey = noise(90, 120, 1)
    Image.fromarray(grey.astype(np.uint16) * 256 + 77).save(tmp_path / "16.png")
    Image.fromarray(grey).save(tmp_path / "8.png")
    assert np.array_equal(read_image(tmp_path / "16.png"), read_image(tmp_path / "8.png"))


def test_images_that_are_refused(tmp_path):
    whole = tmp_path / "whole.png"
    Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(whole)
    content = whole.read_bytes()
    files = {
        "text.png": b"this is not an image",
        "empty.png": b"",
        "half.png": content[: len(content) // 2],
        "header.png": content[:20],
        "checksum.png": content[:20] + bytes([content[20] ^ 1]) + content[21:],
    }
    for name, damaged in files.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=name):
            read_image(tmp_path / name)
    Image.fromarray(np.ones((9, 9), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="32 bits"):
        read_image(tmp_path / "float.tiff")
    Image.new("1", (1, 2_000_000)).save(tmp_path / "narrow.png")
    with pytest.raises(ValueError, match="too narrow"):
        read_image(tmp_path / "narrow.png")
    Image.new("1", (8_001, 8_000)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="more than 64,000,000"):
        read_image(tmp_path / "large.png")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "missing.png")
    with pytest.raises(OSError):
        read_image(tmp_path)


# ---- minires predict --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with weights, two good images and one that is none, and the working directory in it."""
    monkeypatch.chdir(tmp_path)
    model = models.create_model("resnet8", num_classes=10, generator=np.random.default_rng(0))
    minires.save("weights.npz", model.state_dict())
    for name in ("cat.png", "dog.png"):
        Image.fromarray(noise(40, 50)).save(name)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "labels.txt").write_text("".join(f"name {i}\n" for i in range(10)))
    return tmp_path


def predicted(capsys, *arguments, status=0):
    assert cli.main(["predict", "--model", "resnet8", "--weights", "weights.npz", *arguments]) == status
    out, err = capsys.readouterr()
    found = {}
    for line in out.splitlines():
        if not line.startswith(" "):
            answers = found[line] = []
        else:
            share, label = re.fullmatch(r" +([0-9.]+)%  (.+)", line).groups()
            answers.append((float(share) / 100, label))
    return found, err


def test_predict_prints_falling_probabilities(folder, capsys):
    found, err = predicted(capsys, "cat.png", "dog.png")
    assert list(found) == ["cat.png", "dog.png"] and err == ""
    for answers in found.values():
        shares = [share for share, _ in answers]
        assert len(shares) == 5 and shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) <= 1 + 5 * 0.00005, "percentages are rounded to two digits"
        assert all(re.fullmatch("class [0-9]", label) for _, label in answers)


def test_predict_gives_the_networks_own_answer(folder, capsys):
    found, _ = predicted(capsys, "cat.png", "--top", "10", "--labels", "labels.txt")
    model = load_model("resnet8", "weights.npz")
    logits = model(minires.Tensor(expected_pixels("cat.png", 32, 32)[None].astype(np.float32))).detach().numpy()[0]
    shares = np.exp(logits.astype(np.float64) - logits.max())
    shares /= shares.sum()
    assert [label for _, label in found["cat.png"]] == [f"name {i}" for i in np.argsort(-shares)]
    np.testing.assert_allclose([share for share, _ in found["cat.png"]], np.sort(shares)[::-1], atol=6e-5)
    assert sum(share for share, _ in found["cat.png"]) == pytest.approx(1, abs=1e-3)


def test_top(folder, capsys):
    ten, _ = predicted(capsys, "cat.png", "--top", "10")
    two, _ = predicted(capsys, "cat.png", "--top", "2")
    more, _ = predicted(capsys, "cat.png", "--top", "99")
    assert two["cat.png"] == ten["cat.png"][:2] and more == ten and len(ten["cat.png"]) == 10


def test_a_bad_image_does_not_hide_the_others(folder, capsys):
    found, err = predicted(capsys, "cat.png", "text.png", "missing.png", ".", "dog.png", status=2)
    assert list(found) == ["cat.png", "dog.png"] and all(len(answers) == 5 for answers in found.values())
    lines = err.splitlines()
    assert len(lines) == 3 and all(line.startswith("minires predict: ") for line in lines)
    assert "text.png is not an image file" in lines[0] and "missing.png" in lines[1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--labels short.txt", "short.txt has 3 lines and the network 10 classes"),
        ("--labels binary.txt", "binary.txt is not a text file"),
        ("--labels missing.txt", "missing.txt"),
        ("--top 0", "--top must be at least 1, got 0"),
        ("--weights missing.npz", "missing.npz"),
        ("--weights cat.png", "ends in"),
        ("--weights text.npz", "text.npz: damaged"),
        ("--model resnet20", "missing keys"),
        ("--model resnet9", "did you mean"),
        ("--rename fc=linear", "unexpected keys: linear.weight, linear.bias"),
    ],
)
def test_predict_refuses(folder, capsys, arguments, message):
    (folder / "short.txt").write_text("a\nb\nc\n")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00a")
    (folder / "text.npz").write_text("no weights")
    found, err = predicted(capsys, "cat.png", *arguments.split(), status=2)
    assert not found and err.startswith("minires predict: ") and message in err and "Traceback" not in err


def test_predict_wants_a_network_for_colours(folder):
    model = models.create_model("resnet8", in_channels=1)
    with pytest.raises(ValueError, match="images of 1 channels, expected 3"):
        predict(model.eval(), "resnet8", "cat.png", read_labels(None, 10))


def test_imagenet_networks_get_224_pixels(folder):
    model = models.create_model("resnet18", width=4, num_classes=3).eval()
    seen = []
    forward = model.forward
    model.forward = lambda x: seen.append(x.shape) or forward(x)
    predict(model, "resnet18", "cat.png", ["a", "b", "c"])
    assert seen == [(1, 3, 224, 224)]


def test_load_model_takes_the_sizes_from_the_file(folder):
    minires.save("other.npz", models.create_model("resnet8", num_classes=7, in_channels=2).state_dict())
    model = load_model("resnet8", "other.npz")
    assert model.fc.out_features == 7 and model.conv1.in_channels == 2 and not model.training


# ---- minires eval -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A resnet8 after one epoch on the digits: its weights, and how many of the 360 test images it knows."""
    result = run(TrainOptions(model="resnet8", epochs=1), out=str(tmp_path_factory.mktemp("run") / "mine"))
    return result.folder / "last.safetensors", result.score


def test_eval_on_digits(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path, score = trained
    assert cli.main(["eval", "--model", "resnet8", "--weights", str(path), "--data", "digits"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"accuracy: {score.accuracy:.2%} ({score.correct}/360)",
        "confusion matrix in confusion.png",
    ]
    assert "evaluating" in err, "a progress bar"
    assert score.correct > 100, "better than chance, so that the matrix has something to say"
    with Image.open("confusion.png") as picture:
        assert picture.format == "PNG" and min(picture.size) >= 400 and len(np.unique(picture.convert("L"))) > 10


def test_rows_of_the_matrix_are_the_truth(trained):
    path, score = trained
    test = digits().test
    model = load_model("resnet8", path)
    found = confusion(model, test, batch_size=77)
    assert found.matrix.shape == (10, 10) and found.matrix.sum(axis=1).tolist() == np.bincount(test.labels).tolist()
    answers = model(minires.Tensor(test.images)).detach().numpy().argmax(1)
    assert found.matrix.sum(axis=0).tolist() == np.bincount(answers, minlength=10).tolist()
    assert found.correct == score.correct == (answers == test.labels).sum() and found.count == 360


def test_eval_on_a_file(folder, capsys):
    images = rng.integers(0, 256, (25, 3, 12, 12), dtype=np.uint8)
    pixels = ((images / 255 - MEAN[:, None, None]) / STD[:, None, None]).astype(np.float32)
    model = load_model("resnet8", "weights.npz")
    labels = model(minires.Tensor(pixels)).detach().numpy().argmax(1)
    labels[:5] = (labels[:5] + 1) % 10
    np.savez("mine.npz", images=images, labels=labels.astype(np.uint8))
    arguments = "eval --model resnet8 --weights weights.npz --data mine.npz --picture mine.png".split()
    assert cli.main(arguments) == 0
    assert "accuracy: 80.00% (20/25)" in capsys.readouterr().out.splitlines()
    assert (folder / "mine.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "confusion.png").exists()


IMAGES, LABELS = np.zeros((4, 3, 8, 8), np.uint8), np.arange(4)
BAD_DATA = {
    "no labels": ({"images": IMAGES}, "expected a .npz file with the arrays images and labels"),
    "no images": ({"labels": LABELS}, "expected a .npz file with the arrays images and labels"),
    "float images": ({"images": IMAGES / 1.0, "labels": LABELS}, "must be uint8 .* got float64"),
    "flat images": ({"images": IMAGES[0], "labels": LABELS}, r"must be uint8 \(N, 3, H, W\)"),
    "grey images": ({"images": IMAGES[:, :1], "labels": LABELS}, r"must be uint8 \(N, 3, H, W\)"),
    "labels that are objects": ({"images": IMAGES, "labels": LABELS.astype(object)}, "array of object"),
    "fewer labels": ({"images": IMAGES, "labels": LABELS[:3]}, r"labels must be integers \(4,\)"),
    "nothing": ({"images": IMAGES[:0], "labels": LABELS[:0]}, "is empty"),
    "a label too large": ({"images": IMAGES, "labels": LABELS + 7}, "label 10, and the model has 10 classes"),
    "a negative label": ({"images": IMAGES, "labels": LABELS - 1}, "label -1, and the model has 10 classes"),
    "labels in a column": ({"images": IMAGES, "labels": LABELS[:, None]}, r"labels must be integers \(4,\)"),
    "float labels": ({"images": IMAGES, "labels": LABELS.astype(float)}, "labels must be integers"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_files_are_refused(folder, capsys, name):
    arrays, message = BAD_DATA[name]
    np.savez("bad.npz", **arrays)
    assert cli.main("eval --model resnet8 --weights weights.npz --data bad.npz".split()) == 2
    out, err = capsys.readouterr()
    assert re.search(message, err) and "minires eval: " in err and out == ""
    assert not (folder / "confusion.png").exists()


def test_files_that_are_no_data(folder, capsys):
    np.savez("good.npz", images=IMAGES, labels=LABELS)
    whole = (folder / "good.npz").read_bytes()
    for content in (b"", b"text", whole[:100], whole[:-10]):
        (folder / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match="bad.npz"):
            evaluation_data("bad.npz")
    with pytest.raises(FileNotFoundError):
        evaluation_data("missing.npz")
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        evaluation_data("digit")


def test_eval_with_a_network_for_other_images_is_refused(folder, capsys):
    assert cli.main("eval --model resnet8 --weights weights.npz --data digits".split()) == 2
    assert "minires eval: " in capsys.readouterr().err
    assert not (folder / "confusion.png").exists()


@pytest.mark.parametrize("picture", ["nofolder/x.png", "x.foo", ".", "", ".png"])
def test_a_picture_that_cannot_be_drawn_is_refused_first(trained, tmp_path, monkeypatch, capsys, picture):
    monkeypatch.chdir(tmp_path)
    arguments = ["eval", "--model", "resnet8", "--weights", str(trained[0]), "--picture", picture]
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and "evaluating" not in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_weights_of_another_network_are_refused_in_a_few_lines(trained, capsys):
    assert cli.main(["eval", "--model", "resnet18", "--weights", str(trained[0])]) == 2
    err = capsys.readouterr().err
    assert "was not changed" in err and len(err.splitlines()) <= 7 and len(err) < 2500
