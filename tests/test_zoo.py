"""Every network of the zoo: parameters, keys and multiply-adds as published, and that each one runs."""

import numpy as np
import pytest

import minires
from minires import Tensor, kernels, models
from minires.kernels.shapes import conv2d_size
from minires.models.summary import summarize

#: name: parameters, multiply-adds at the size it was made for, entries of the state_dict (torchvision's counts)
IMAGENET = {
    "resnet18": (11_689_512, 1_814_073_344, 122),
    "resnet34": (21_797_672, 3_663_761_408, 218),
    "resnet50": (25_557_032, 4_089_184_256, 320),
    "resnet101": (44_549_160, 7_801_405_440, 626),
    "resnet152": (60_192_808, 11_513_626_624, 932),
    "resnext50_32x4d": (25_028_904, 4_230_479_872, 320),
    "resnext101_32x8d": (88_791_336, 16_414_015_488, 626),
    "resnext101_64x4d": (83_455_272, 15_460_270_080, 626),
    "wide_resnet50_2": (68_883_240, 11_398_021_120, 320),
    "wide_resnet101_2": (126_886_696, 22_753_050_624, 626),
}
#: name: parameters, multiply-adds
CIFAR = {
    "resnet20": (269_722, 40_551_040),
    "resnet32": (464_154, 68_862_592),
    "resnet44": (658_586, 97_174_144),
    "resnet56": (853_018, 125_485_696),
    "resnet110": (1_727_962, 252_887_680),
    "resnet1202": (19_421_274, 2_829_238_912),
}


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.fixture
def without_values(monkeypatch):
    """Counts do not depend on the initial weights: drawing 700 million of them would take most of the time."""
    from minires.nn import init

    for name in ("kaiming_normal_", "kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(init, name, lambda tensor, *arguments, **options: tensor)


@pytest.fixture
def without_products(monkeypatch, without_values):
    """Nor on what the convolutions give: 80 billion multiply-adds would take most of the rest."""

    def zeros(x, w, b=None, *, stride=1, padding=0, dilation=1, groups=1, needs_dx=True):
        size = conv2d_size(x, w, b, stride, padding, dilation, groups)
        return np.zeros((size.N, size.O, size.OH, size.OW), x.dtype), None

    monkeypatch.setattr(kernels, "conv2d_forward", zeros)


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_networks_have_the_published_counts(name, without_products):
    counted = summarize(models.create_model(name), (3, 224, 224))
    assert (counted.parameters, counted.macs, counted.keys) == IMAGENET[name]


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_networks_have_the_published_counts(name, without_products):
    counted = summarize(models.create_model(name), (3, 32, 32))
    assert (counted.parameters, counted.macs) == CIFAR[name]


@pytest.mark.parametrize("name, billions", [("resnet50", 3.858), ("resnet101", 7.570), ("resnet152", 11.282)])
def test_version_1_strides_in_the_first_convolution(name, billions, without_products):
    """The paper's own networks need fewer multiply-adds than torchvision's and have as many parameters."""
    counted = summarize(models.create_model(name, stride_in="1x1"), (3, 224, 224))
    assert round(counted.macs / 1e9, 3) == billions
    assert counted.parameters == IMAGENET[name][0]


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("resnet34", {"shortcut": "A"}, 21_623_848),
        ("resnet34", {"shortcut": "B"}, 21_797_672),
        ("resnet34", {"shortcut": "C"}, 22_716_840),
        ("plain18", {}, 11_515_688),
        ("resnet18", {"stem": "cifar", "num_classes": 10}, 11_173_962),
        ("resnet34", {"stem": "cifar", "num_classes": 10}, 21_282_122),
        ("resnet50", {"stem": "cifar", "num_classes": 10}, 23_520_842),
        ("preact_resnet18", {"stem": "cifar", "num_classes": 10}, 11_171_146),
        ("resnet18", {"num_classes": 10}, 11_181_642),
        ("resnet50", {"num_classes": 10}, 23_528_522),
    ],
)
def test_variants_have_the_published_counts(name, options, expected, without_values):
    assert parameters(models.create_model(name, **options)) == expected


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 1202])
def test_option_b_adds_2752_parameters_to_every_cifar_depth(depth, without_values):
    name = f"resnet{depth}"
    assert parameters(models.create_model(name, shortcut="B")) - CIFAR[name][0] == 2752
    assert parameters(models.create_model(name, shortcut="A")) == CIFAR[name][0], "option A is the default"


def test_plain_networks_are_residual_ones_without_shortcuts(without_values):
    for depth in (20, 56, 110):
        assert parameters(models.create_model(f"plain{depth}")) == CIFAR[f"resnet{depth}"][0]
    shortcuts = [m for m in models.create_model("plain34").modules() if hasattr(m, "downsample")]
    assert not shortcuts
    assert parameters(models.create_model("plain34")) == parameters(models.create_model("resnet34", shortcut="A"))


@pytest.mark.parametrize("name", models.list_models())
def test_every_network_builds_and_runs(name):
    family = models.model_entry(name).family
    model = models.create_model(name, width=16 if family == "imagenet" else 4, num_classes=7)
    channels = models.INPUTS[family][0]
    x = np.random.default_rng(0).standard_normal((2, channels, 37, 33) if family == "imagenet" else (2, channels, 9, 8))
    with minires.no_grad():
        logits = model(Tensor(x.astype(np.float32))).numpy()  # training mode: fresh deep networks overflow in eval
    assert logits.shape == (2, 7) and logits.dtype == np.float32
    assert np.isfinite(logits).all() and not np.allclose(logits[0], logits[1]), "the answer depends on the image"
    blocks = sum(models.model_entry(name).layers)
    assert sum(isinstance(m, models.model_entry(name).block) for m in model.modules()) == blocks


@pytest.mark.parametrize("name", models.list_models())
def test_names_say_the_depth(name):
    """The number in a name counts the convolutions along the main path and the linear layer."""
    entry = models.model_entry(name)
    convolutions = 3 if "Bottleneck" in entry.block.__name__ else 2
    digits = name.partition("resne")[2] if "resne" in name else name.removeprefix("plain")
    depth = int(digits.lstrip("xt").partition("_")[0])
    assert convolutions * sum(entry.layers) + 2 == depth


def test_mnist_network_takes_grey_images():
    model = models.create_model("mnist_resnet20")
    assert model(Tensor(np.zeros((2, 1, 28, 28), np.float32))).shape == (2, 10)
    assert parameters(model) == CIFAR["resnet20"][0] - 2 * 16 * 9, "two channels fewer in the first convolution"
    with pytest.raises((ValueError, RuntimeError)):
        model(Tensor(np.zeros((2, 3, 28, 28), np.float32)))


def test_dilation_keeps_the_image_large():
    """torchvision's replace_stride_with_dilation: the same parameters, feature maps four times as wide."""
    options = {"width": 16, "include_top": False}
    plain = models.create_model("resnet50", **options)
    dilated = models.create_model("resnet50", replace_stride_with_dilation=(False, True, True), **options)
    x = Tensor(np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32))
    with minires.no_grad():
        assert plain.eval()(x).shape == (1, 512, 2, 2) and dilated.eval()(x).shape == (1, 512, 8, 8)
    assert parameters(plain) == parameters(dilated)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("resnet18", {"groups": 32}, "BasicBlock has no groups"),
        ("resnet18", {"width_per_group": 128}, "BasicBlock has no groups, width_per_group"),
        ("resnet18", {"stride_in": "1x1"}, "BasicBlock has no .* stride_in"),
        ("resnet18", {"replace_stride_with_dilation": (False, False, True)}, "BasicBlock has no .* dilation"),
        ("plain18", {"groups": 2}, "PlainBlock has no groups"),
        ("preact_resnet18", {"groups": 2}, "PreActBlock has no groups"),
        ("preact_resnet50", {"groups": 2}, "PreActBottleneck has no groups"),
        ("resnet50", {"stride_in": "7x7"}, 'stride_in must be "3x3" or "1x1", got \'7x7\''),
        ("resnet50", {"replace_stride_with_dilation": (True,)}, "replace_stride_with_dilation needs one bool .* 3"),
        ("resnet50", {"groups": 0}, "positive and divisible by groups"),
        ("resnet50", {"stem": "mnist"}, "stem must be"),
        ("resnet20", {"shortcut": "D"}, '"A", "B" or "C"'),
        ("resnet20", {"weights": "cifar"}, 'weights must be "imagenet" or "imagenet-v2", got \'cifar\''),
        ("resnet20", {"weights": "imagenet"}, "no published weights for 'resnet20'"),
        ("resnet20", {"width": 0}, "positive"),
        ("resnet20", {"num_classes": 0}, "positive"),
        ("resnext50_32x4", {}, "did you mean 'resnext50_32x4d'"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, options, message):
    small = {} if "resnet20" in name else {"width": 16}
    with pytest.raises(ValueError, match=message):
        models.create_model(name, **{**small, **options})


def test_an_unknown_option_is_a_type_error():
    with pytest.raises(TypeError, match="dropout"):
        models.create_model("resnet20", dropout=0.5)
