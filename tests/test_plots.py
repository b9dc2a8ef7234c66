"""The numbers behind the pictures of what a network learned, and that looking changes nothing."""

import minires.functional as F
import numpy as np
import pytest

import minires
from minires import Tensor, models, nn
from minires.data import ArrayDataset, digits
from minires.debug import plots
from minires.debug.plots.landscape import filter_normalised_direction

rng = np.random.default_rng(0)


@pytest.fixture
def model():
    minires.manual_seed(0)
    net = minires.create_model("resnet8", in_channels=1, width=4, shortcut="B").train()
    with minires.no_grad():
        net(Tensor(digits().train.images[:64]))  # running statistics of real images
    net.layer2.eval()  # a mode of its own
    return net


@pytest.fixture
def unchanged(model):
    """Checks after the test that parameters (the very arrays), statistics, gradients and modes are as before."""
    model.fc.bias.grad = Tensor(rng.standard_normal(10))
    arrays = [(p, p.array, p.array.copy(), p.grad) for p in model.parameters()]
    statistics = [(b, b.array.copy()) for b in model.buffers()]
    modes = [m.training for m in model.modules()]
    yield
    for p, array, values, grad in arrays:
        assert p.array is array and p.grad is grad and np.array_equal(array, values)
    assert all(np.array_equal(b.array, values) for b, values in statistics)
    assert [m.training for m in model.modules()] == modes


IMAGES, LABELS = digits().test.images[:30], digits().test.labels[:30]


def sheet(figure):
    return figure.axes[0].images[0].get_array()


def test_the_filters_shown_are_the_weights(unchanged, model, tmp_path):
    figure = plots.plot_filters(model, tmp_path / "filters.png")
    w = model.conv1.weight.array  # (4, 1, 3, 3) in a square of 2 x 2
    found = sheet(figure)
    assert found.shape == (7, 7)
    for k in range(4):
        top, left = 4 * (k // 2), 4 * (k % 2)
        assert np.array_equal(found[top : top + 3, left : left + 3], w[k, 0])
    assert np.ma.getmaskarray(found)[3].all(), "white between two kernels"
    assert figure.axes[0].images[0].get_clim() == (-np.abs(w).max(), np.abs(w).max()), "mid-grey is 0"
    assert (tmp_path / "filters.png").read_bytes().startswith(b"\x89PNG")


def test_filters_channel_by_channel_and_in_colour():
    conv = nn.Conv2d(10, 5, (3, 2))
    found = sheet(plots.plot_filters(conv, count=4, channels=6))
    assert found.shape == (4 * 4 - 1, 6 * 3 - 1)
    assert np.array_equal(found[4 * 2 : 4 * 2 + 3, 3 * 5 : 3 * 5 + 2], conv.weight.array[2, 5])
    conv = nn.Conv2d(3, 2, 5)
    w = conv.weight.array
    colour = sheet(plots.plot_filters(conv))
    assert colour.shape == (5, 11, 3) and colour.min() >= 0 and colour.max() <= 1
    assert np.allclose((colour[:, 6:] - 0.5) * 2 * np.abs(w).max(), w[1].transpose(1, 2, 0), atol=1e-7)


def test_feature_maps_are_what_the_stages_give(unchanged, model):
    image = IMAGES[3]
    maps = plots.feature_maps(model, image)
    assert list(maps) == ["conv1", "relu", "layer1", "layer2", "layer3"]
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    with minires.no_grad():
        stem = model.conv1(Tensor(image[None]))
        second = model.layer2(model.layer1(model.bn1(stem).relu()))
    for m, training in modes:
        m.training = training
    assert np.array_equal(maps["conv1"], stem.numpy()[0]) and np.array_equal(maps["layer2"], second.numpy()[0])
    figure = plots.plot_feature_maps(model, image, channels=3)
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(shown) == 1 + 5 * 3 and np.array_equal(shown[1 + 3 * 3 + 2], maps["layer2"][2])
    assert list(plots.feature_maps(model, image, ["layer3.0.conv1"])) == ["layer3.0.conv1"]
    with pytest.raises(ValueError, match="no submodule 'layer9'"):
        plots.feature_maps(model, image, ["layer9"])


def test_class_accuracy_by_hand():
    matrix = np.array([[8, 2, 0], [0, 0, 0], [1, 0, 3]])
    assert np.array_equal(plots.class_accuracy(matrix), [0.8, np.nan, 0.75], equal_nan=True)
    figure = plots.plot_class_accuracy(matrix, labels=["a", "b", "c"])
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [80, 0, 75]
    assert [text.get_text() for text in axes.texts] == ["80.0% (8/10)", "no images", "75.0% (3/4)"]
    assert axes.lines[0].get_xdata()[0] == pytest.approx(100 * 11 / 14)


def test_mistakes_are_mistakes_ordered_by_confidence(unchanged, model):
    dataset = ArrayDataset(IMAGES, LABELS)
    mistakes, total = plots.confident_mistakes(model, dataset, count=7, batch_size=11)
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    with minires.no_grad():
        probabilities = F.softmax(model(Tensor(IMAGES)), dim=1).numpy()
    for m, training in modes:
        m.training = training
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != LABELS)
    assert total == len(wrong) > 7 == len(mistakes)
    order = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:7]
    assert [m.index for m in mistakes] == order.tolist()
    for m in mistakes:
        assert m.truth == LABELS[m.index] != m.prediction == probabilities[m.index].argmax()
        assert m.probability == pytest.approx(probabilities[m.index].max(), rel=1e-5)
    figure = plots.plot_confident_mistakes(model, dataset, count=7)
    first, pixels = figure.axes[0], IMAGES[order[0], 0].astype(np.float64)
    scaled = (pixels - pixels.min()) / (pixels.max() - pixels.min())
    assert np.array_equal(first.images[0].get_array(), scaled)
    truth, read, sure = mistakes[0][1:]
    assert first.get_title() == f"is {truth}, read {read}\n{sure:.1%} sure"
    assert figure.get_suptitle() == f"the 7 surest of {total} mistakes on 30 images"


def test_no_mistake_at_all(model):
    class Right(nn.Module):
        def forward(self, x):
            return Tensor(np.eye(10)[LABELS])

    figure = plots.plot_confident_mistakes(Right(), ArrayDataset(IMAGES, LABELS))
    assert figure.get_suptitle() == "no mistake on 30 images"


def test_norms_equal_those_computed_by_hand(unchanged, model):
    norms = dict(plots.gradient_norms(model, IMAGES, LABELS))
    twin = minires.create_model("resnet8", in_channels=1, width=4, shortcut="B")
    twin.load_state_dict(model.state_dict())
    F.cross_entropy(twin.train()(Tensor(IMAGES)), LABELS).backward()
    weights = [name for name, p in twin.named_parameters() if p.ndim > 1]
    assert [f"{name}.weight" for name in norms] == weights
    for name in weights:
        by_hand = np.sqrt((twin.get_submodule(name.rsplit(".", 1)[0]).weight.grad.numpy() ** 2).sum())
        assert norms[name.removesuffix(".weight")] == pytest.approx(by_hand, rel=1e-6)
    with minires.no_grad():
        figure = plots.plot_gradient_norms({"a": model, "b": twin}, IMAGES, LABELS)
    on_the_way = [norm for name, norm in norms.items() if "downsample" not in name]
    for axes, name in zip(figure.axes, "ab", strict=True):
        assert axes.get_title() == name and axes.get_yscale() == "log"
        assert axes.lines[0].get_ydata() == pytest.approx(on_the_way, rel=1e-6)
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim(), "one scale"


def test_a_norm_of_zero_is_marked():
    model = models.cifar_resnet(8, in_channels=1, zero_init_residual=True)
    norms = [norm for _, norm in plots.gradient_norms(model, IMAGES, LABELS)]
    line, zeros = plots.plot_gradient_norms({"zero": model}, IMAGES, LABELS).axes[0].lines
    assert zeros.get_xdata().tolist() == [i + 1 for i, norm in enumerate(norms) if norm == 0] != []
    assert np.isnan(line.get_ydata()).sum() == len(zeros.get_xdata())


def test_each_direction_has_the_norm_of_every_filter(model):
    direction = filter_normalised_direction(model, np.random.default_rng(3))
    assert list(direction) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        w, d = parameter.array, direction[name]
        if w.ndim == 1:
            assert not d.any()
            continue
        for i in range(len(w)):
            assert np.linalg.norm(d[i]) == pytest.approx(np.linalg.norm(w[i].astype(np.float64)), rel=1e-9)
        assert abs((d.ravel() @ w.ravel()) / np.linalg.norm(d) / np.linalg.norm(w)) < 0.9, "a direction of its own"


def test_a_filter_of_zeros_does_not_move():
    model = nn.Linear(3, 2)
    model.weight.array[0] = 0
    direction = filter_normalised_direction(model, np.random.default_rng(0))["weight"]
    assert not direction[0].any() and direction[1].any()


def test_the_landscape(unchanged, model, capsys):
    found = plots.loss_landscape(model, IMAGES, LABELS, count=3, radius=0.5, seed=4, batch_size=8)
    assert "loss landscape" in capsys.readouterr().err, "a progress bar"
    assert found.steps.tolist() == [-0.5, 0, 0.5] and np.isfinite(found.losses).all()
    twin = minires.create_model("resnet8", in_channels=1, width=4, shortcut="B").eval()

    def loss():
        with minires.no_grad():
            return float(F.cross_entropy(twin(Tensor(IMAGES)), LABELS).item())

    twin.load_state_dict(model.state_dict())
    assert found.losses[1, 1] == pytest.approx(loss(), rel=1e-5), "the centre is the loss"
    generator = np.random.default_rng(4)
    first, second = (filter_normalised_direction(model, generator) for _ in range(2))
    for i, j in ((0, 2), (2, 1)):
        for name, p in twin.named_parameters():
            w = dict(model.named_parameters())[name].array
            p.array = (w + found.steps[j] * first[name] + found.steps[i] * second[name]).astype(np.float32)
        assert found.losses[i, j] == pytest.approx(loss(), rel=1e-5)
    again = plots.loss_landscape(model, IMAGES, LABELS, count=3, radius=0.5, seed=4, batch_size=8)
    assert np.array_equal(found.losses, again.losses)
    other = plots.loss_landscape(model, IMAGES, LABELS, count=3, radius=0.5, seed=5, batch_size=8)
    assert not np.array_equal(found.losses, other.losses)


def test_the_weights_come_back_after_an_interruption(unchanged, model, monkeypatch):
    from minires.debug.plots import landscape

    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(landscape, "mean_loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        plots.loss_landscape(model, IMAGES, LABELS, count=3)


def test_the_picture_of_the_landscape(unchanged, model, tmp_path):
    figure = plots.plot_loss_landscape(model, IMAGES, LABELS, tmp_path / "loss.svg", count=5, radius=2)
    axes = figure.axes[0]
    assert axes.get_xlim() == (-2, 2) and axes.lines[-1].get_xdata()[0] == 0
    middle = plots.loss_landscape(model, IMAGES, LABELS, count=3).losses[1, 1]
    assert axes.get_title() == f"loss around the weights (cross: {middle:.3g})"
    assert b"<svg" in (tmp_path / "loss.svg").read_bytes()


def test_float64(model):
    model.double()
    losses = plots.loss_landscape(model, IMAGES.astype(np.float64), LABELS, count=3, radius=0.1).losses
    assert losses.shape == (3, 3) and all(p.dtype == np.float64 for p in model.parameters())
    assert all(norm > 0 for _, norm in plots.gradient_norms(model, IMAGES, LABELS))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: plots.plot_filters(nn.Linear(2, 2)), "expected a Conv2d or a model with one, Linear has none"),
        (lambda m: plots.plot_filters(m, count=0), "count must be an int of at least 1, got 0"),
        (lambda m: plots.feature_maps(m, IMAGES), r"expected one image \(C, H, W\), got shape \(30, 1, 8, 8\)"),
        (lambda m: plots.feature_maps(nn.Linear(8, 2), IMAGES[0]), "gave feature maps: name some with stages="),
        (lambda m: plots.class_accuracy(np.zeros((2, 3))), r"square matrix of counts, got shape \(2, 3\)"),
        (lambda m: plots.plot_class_accuracy(np.eye(2), labels=["a"]), "expected 2 labels, got 1"),
        (lambda m: plots.confident_mistakes(m, ArrayDataset(IMAGES, LABELS), count=-1), "got -1"),
        (lambda m: plots.gradient_norms(m, IMAGES, LABELS[:4]), r"each of 30 images, got shape \(4,\)"),
        (lambda m: plots.plot_gradient_norms({}, IMAGES, LABELS), "expected models by name"),
        (lambda m: plots.plot_gradient_norms(m, IMAGES, LABELS), "expected models by name"),
        (lambda m: plots.loss_landscape(m, IMAGES, LABELS, count=4), "count must be odd"),
        (lambda m: plots.loss_landscape(m, IMAGES, LABELS, count=1), "count must be odd and at least 3"),
        (lambda m: plots.loss_landscape(m, IMAGES, LABELS, radius=0), "radius must be positive"),
        (lambda m: plots.loss_landscape(m, IMAGES, LABELS, radius=float("nan")), "radius must be positive"),
    ],
)
def test_refused(unchanged, model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


def test_a_picture_that_cannot_be_written_leaves_the_old_one(model, tmp_path):
    path = tmp_path / "filters.docx"
    path.write_text("before")
    with pytest.raises(ValueError, match="docx"):
        plots.plot_filters(model, path)
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_on_the_gpu(cuda, model):
    on_host = [plots.gradient_norms(model, IMAGES, LABELS), plots.feature_maps(model, IMAGES[0])["layer3"]]
    losses = plots.loss_landscape(model, IMAGES, LABELS, count=3, radius=0.1).losses
    mistakes, _ = plots.confident_mistakes(model, ArrayDataset(IMAGES, LABELS))
    model.to("cuda")
    assert dict(plots.gradient_norms(model, IMAGES, LABELS)) == pytest.approx(dict(on_host[0]), rel=1e-3)
    assert np.allclose(plots.feature_maps(model, IMAGES[0])["layer3"], on_host[1], atol=1e-4)
    assert np.allclose(plots.loss_landscape(model, IMAGES, LABELS, count=3, radius=0.1).losses, losses, rtol=1e-4)
    assert all(p.device == "cuda" for p in model.parameters())
    found, _ = plots.confident_mistakes(model, ArrayDataset(IMAGES, LABELS))
    assert [m.index for m in found] == [m.index for m in mistakes]
    assert sheet(plots.plot_filters(model)).shape == (7, 7)
