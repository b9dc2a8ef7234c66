# %% [markdown]
# # The family: from ResNet-18 to ResNet-1202, out of one table
#
# You need: the blocks of lesson 07. It takes about half a minute on two cores.
#
# The best-known residual networks are rows of one table. Here you write that table down, work out what each network
# costs from the row alone, and hold the result against the networks that MiniRes builds and against counts made on
# torchvision's. Then a thousand layers run for real; then come weights: their names, their files, how other people's
# are loaded, and how to find out layer by layer whether two networks are the same.

# %%
import copy
import importlib.util
import os
import re
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import minires.functional as F
import numpy as np
from threadpoolctl import threadpool_limits

import minires
from minires import Tensor, models, no_grad
from minires.data import digits
from minires.data.checkpoint import state_dict_of
from minires.data.images import normalize
from minires.debug import compare
from minires.models.summary import summarize

threadpool_limits(1)  # these matrix products are too small for more threads

figures = Path(__file__).parent / "figures" if "__file__" in globals() else Path("figures")
figures.mkdir(exist_ok=True)

# %% [markdown]
# ## The table
#
# A network is a stem, stages of blocks, and a linear layer. Each stage but the first halves the image and doubles the
# channels, so that a block costs about the same in all of them. Four numbers say how many blocks a stage has. (Table 1
# of He et al. 2015; ResNeXt: Xie et al. 2017; wide: Zagoruyko and Komodakis 2016.)


# %%
class Row(NamedTuple):
    block: str  # "basic" or "bottleneck"
    layers: tuple[int, ...]  # blocks in each stage
    groups: int = 1  # of a bottleneck's 3x3 convolution
    per_group: int = 64  # channels of a group in the first stage


TABLE = {
    "resnet18": Row("basic", (2, 2, 2, 2)),
    "resnet34": Row("basic", (3, 4, 6, 3)),
    "resnet50": Row("bottleneck", (3, 4, 6, 3)),
    "resnet101": Row("bottleneck", (3, 4, 23, 3)),
    "resnet152": Row("bottleneck", (3, 8, 36, 3)),
    "resnext50_32x4d": Row("bottleneck", (3, 4, 6, 3), groups=32, per_group=4),
    "resnext101_32x8d": Row("bottleneck", (3, 4, 23, 3), groups=32, per_group=8),
    "resnext101_64x4d": Row("bottleneck", (3, 4, 23, 3), groups=64, per_group=4),
    "wide_resnet50_2": Row("bottleneck", (3, 4, 6, 3), per_group=128),
    "wide_resnet101_2": Row("bottleneck", (3, 4, 23, 3), per_group=128),
    "resnet20": Row("basic", (3, 3, 3)),
    "resnet32": Row("basic", (5, 5, 5)),
    "resnet44": Row("basic", (7, 7, 7)),
    "resnet56": Row("basic", (9, 9, 9)),
    "resnet110": Row("basic", (18, 18, 18)),
    "resnet1202": Row("basic", (200, 200, 200)),
}
CIFAR = [name for name, row in TABLE.items() if len(row.layers) == 3]
IMAGENET = [name for name in TABLE if name not in CIFAR]

# %% [markdown]
# **Question before you scroll on:** ResNet-34 and ResNet-50 have the same four numbers. Where does the name 50 come
# from, and which layers does it leave out?


# %%
def depth(row):
    """The layers with weights on the longest way: the stem, those of the blocks, the linear layer."""
    return 1 + sum(row.layers) * (2 if row.block == "basic" else 3) + 1


for name, row in TABLE.items():
    print(f"{name:17} {row.block:10} {'-'.join(map(str, row.layers)):12} depth {depth(row)}")

# %% [markdown]
# A BasicBlock counts two layers, a Bottleneck three: 16 blocks make 34 or 50 layers. The projections of the shortcuts
# do not count, nor do batch norms.
#
# ## Parameters and multiply-adds, by arithmetic
#
# A convolution from C to O channels with a K x K kernel in G groups has O (C / G) K K weights, and uses each of them
# once at every pixel of its output. The batch norm behind it has 2 O parameters. The linear layer has a weight for each
# pair of channel and class, and a bias a class. That is all there is to count.


# %%
class Conv(NamedTuple):
    stage: int  # 0 is the stem
    inputs: int
    outputs: int
    kernel: int
    groups: int
    image: int  # side of the output, in pixels

    def weights(self):
        return self.outputs * (self.inputs // self.groups) * self.kernel**2

    def macs(self):
        return self.weights() * self.image**2


def block_convolutions(row, stage, inputs, channels, image, stride, projection, stride_in):
    """The convolutions of one block; its input has ``image`` times ``image`` pixels."""
    small = image // stride
    if row.block == "basic":
        outputs = channels
        convs = [Conv(stage, inputs, channels, 3, 1, small), Conv(stage, channels, channels, 3, 1, small)]
    else:
        outputs, width = 4 * channels, channels * row.per_group // 64 * row.groups
        first = small if stride_in == "1x1" else image  # v1 halves the image in the 1x1, v1.5 in the 3x3
        convs = [
            Conv(stage, inputs, width, 1, 1, first),
            Conv(stage, width, width, 3, row.groups, small),
            Conv(stage, width, outputs, 1, 1, small),
        ]
    if projection and (stride > 1 or inputs != outputs):
        convs.append(Conv(stage, inputs, outputs, 1, 1, small))
    return convs, outputs


def convolutions(row, width=None, image=None, stride_in="3x3"):
    """All convolutions of a network, and the channels that the linear layer gets."""
    imagenet = len(row.layers) == 4
    channels = width or (64 if imagenet else 16)
    if imagenet:
        image = (image or 224) // 2
        convs = [Conv(0, 3, channels, 7, 1, image)]
        image //= 2  # max pool
    else:
        image = image or 32
        convs = [Conv(0, 3, channels, 3, 1, image)]
    inputs = channels
    for stage, count in enumerate(row.layers, start=1):
        for i in range(count):
            stride = 2 if stage > 1 and i == 0 else 1
            new, inputs = block_convolutions(row, stage, inputs, channels, image, stride, imagenet, stride_in)
            convs.extend(new)
            image //= stride
        channels *= 2
    return convs, inputs


def parameters(row, **options):
    convs, features = convolutions(row, **options)
    classes = 1000 if len(row.layers) == 4 else 10
    return sum(conv.weights() + 2 * conv.outputs for conv in convs) + (features + 1) * classes


def macs(row, **options):
    convs, features = convolutions(row, **options)
    classes = 1000 if len(row.layers) == 4 else 10
    return sum(conv.macs() for conv in convs) + features * classes


# parameters and multiply-adds (224x224; CIFAR 32x32), counted on torchvision's networks and the papers' CIFAR nets
COUNTED = {
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet34": (21_797_672, 3_663_761_408),
    "resnet50": (25_557_032, 4_089_184_256),
    "resnet101": (44_549_160, 7_801_405_440),
    "resnet152": (60_192_808, 11_513_626_624),
    "resnext50_32x4d": (25_028_904, 4_230_479_872),
    "resnext101_32x8d": (88_791_336, 16_414_015_488),
    "resnext101_64x4d": (83_455_272, 15_460_270_080),
    "wide_resnet50_2": (68_883_240, 11_398_021_120),
    "wide_resnet101_2": (126_886_696, 22_753_050_624),
    "resnet20": (269_722, 40_551_040),
    "resnet32": (464_154, 68_862_592),
    "resnet44": (658_586, 97_174_144),
    "resnet56": (853_018, 125_485_696),
    "resnet110": (1_727_962, 252_887_680),
    "resnet1202": (19_421_274, 2_829_238_912),
}
print("                     parameters     multiply-adds")
for name, row in TABLE.items():
    same = (parameters(row), macs(row)) == COUNTED[name]
    print(f"{name:17} {parameters(row):14,} {macs(row):17,}  {'as counted' if same else 'NOT as counted'}")

# %% [markdown]
# "FLOPs" in the papers are these multiply-adds; elsewhere a FLOP is one addition or one multiplication, and the same
# network has twice as many.
#
# ## The same from the networks themselves
#
# MiniRes has such a table of its own: read `create_model` in `minires/models/zoo.py` and what stands above it. It
# counts by running an image: that is what `minires summary resnet50` prints. Two networks at full size; the others of
# ImageNet's with 16 channels for 64, which is as good a test of the arithmetic and much quicker.

# %%
agreed = {}
for name in ("resnet18", "resnet50"):
    summary = summarize(getattr(models, name)(), (3, 224, 224))
    agreed[name] = (summary.parameters, summary.macs) == (parameters(TABLE[name]), macs(TABLE[name]))
    print(f"{name}: {summary.parameters:,} parameters, {summary.macs:,} multiply-adds in {len(summary.rows)} layers")
for name in IMAGENET:
    summary = summarize(models.create_model(name, width=16), (3, 64, 64))
    thin = {"width": 16, "image": 64}
    agreed[name, "thin"] = (summary.parameters, summary.macs) == (
        parameters(TABLE[name], width=16),
        macs(TABLE[name], **thin),
    )
for name in CIFAR[:-1]:
    summary = summarize(models.create_model(name), (3, 32, 32))
    agreed[name] = (summary.parameters, summary.macs) == (parameters(TABLE[name]), macs(TABLE[name]))
same_rows = all(models.model_entry(name).layers == row.layers for name, row in TABLE.items())
print(f"{sum(agreed.values())} of {len(agreed)} networks agree with the arithmetic; the same rows: {same_rows}")

# %% [markdown]
# Where in the network do they sit?

# %%
stages = ["stem", "stage 1", "stage 2", "stage 3", "stage 4", "linear"]
convs, features = convolutions(TABLE["resnet50"])
by_stage = np.zeros((2, 6))
for conv in convs:
    by_stage[:, conv.stage] += conv.weights() + 2 * conv.outputs, conv.macs()
by_stage[:, 5] = (features + 1) * 1000, features * 1000
by_stage /= by_stage.sum(axis=1, keepdims=True)

figure, axes = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
place = np.arange(6)
axes.bar(place - 0.2, 100 * by_stage[0], 0.38, color="white", edgecolor="black", hatch="///", label="parameters")
axes.bar(place + 0.2, 100 * by_stage[1], 0.38, color="0.4", edgecolor="black", label="multiply-adds")
axes.set_xticks(place, stages)
axes.set(ylabel="share of ResNet-50 (%)", title="Parameters come late, work does not")
axes.legend()
figure.savefig(figures / "08_stages.png", dpi=80)

# %% [markdown]
# The last stage holds more than half of the parameters and does less than a quarter of the work. Twice the channels are
# four times the weights; half the image in both directions is a quarter of the pixels. So a block (but for the first
# of a stage) costs the same work in every stage, and four times the parameters in each next one. The dark bars differ
# mostly because the stages have different numbers of blocks.
#
# ## v1 and v1.5 again
#
# With the stride in the first 1x1 convolution, as in the paper:

# %%
v1 = {name: macs(TABLE[name], stride_in="1x1") for name in ("resnet50", "resnet101", "resnet152")}
papers = {"resnet50": 3.8, "resnet101": 7.6, "resnet152": 11.3}  # He et al. 2015, table 1, in billions
for name in v1:
    v15 = macs(TABLE[name])
    print(f"{name}: v1 {v1[name] / 1e9:.3f} G (the paper says {papers[name]}), v1.5 {v15 / 1e9:.3f} G")
thin_v1 = summarize(models.resnet50(width=16, stride_in="1x1"), (3, 64, 64)).macs

# %% [markdown]
# ## ResNeXt: the same cost, in groups
#
# A convolution in groups is several narrow convolutions side by side, each with channels of its own. ResNeXt-50 (32x4d)
# has 32 groups of 4 channels where ResNet-50 has one of 64. Its block can be read as 32 small bottlenecks whose outputs
# are added up. Both readings give the same numbers:

# %%
rng = np.random.default_rng(0)
groups, per_group, channels = 32, 4, 256
x = Tensor(rng.standard_normal((1, groups * per_group, 6, 6)))
w3 = Tensor(rng.standard_normal((groups * per_group, per_group, 3, 3)))
w1 = Tensor(rng.standard_normal((channels, groups * per_group, 1, 1)))
grouped = F.conv2d(F.conv2d(x, w3, padding=1, groups=groups), w1)
total = np.zeros(grouped.shape)
for g in range(groups):
    mine = slice(g * per_group, (g + 1) * per_group)
    total += F.conv2d(F.conv2d(x[:, mine], w3[mine], padding=1), w1[:, mine]).numpy()
group_error = float(abs(grouped.numpy() - total).max() / abs(total).max())
print(f"{groups} paths added up against one grouped convolution, largest difference: {group_error:.1e}")

top1_error = {(1, 64): 23.9, (2, 40): 23.0, (4, 24): 22.6, (8, 14): 22.3, (32, 4): 22.2}  # Xie et al. 2017, table 3
cardinality = {}
for (groups, per_group), error in top1_error.items():
    row = Row("bottleneck", (3, 4, 6, 3), groups, per_group)
    cardinality[groups] = parameters(row), macs(row)
    print(
        f"{groups:2} groups of {per_group:2}: {parameters(row) / 1e6:.1f} M parameters, {macs(row) / 1e9:.2f} G "
        f"multiply-adds, published error {error} %"
    )

# %% [markdown]
# At the same cost, more and narrower groups do better: in the published figures the error falls with each step. The
# forward of a convolution is an exercise, with groups too: `minires exercise start conv2d_forward`.
#
# ## What you get for it

# %%
TOP1 = {  # top-1 accuracy in percent, ImageNet, centre crop: torchvision, original recipe
    "resnet18": 69.758,
    "resnet34": 73.314,
    "resnet50": 76.130,
    "resnet101": 77.374,
    "resnet152": 78.312,
    "resnext50_32x4d": 77.618,
    "resnext101_32x8d": 79.312,
    "wide_resnet50_2": 78.468,
    "wide_resnet101_2": 78.848,
}
families = {"resnet": ("o--", "ResNet"), "resnext": ("^", "ResNeXt"), "wide_resnet": ("s", "wide ResNet")}
LABELS = {  # where a label stands, in points from its mark, and its side there; the others stand above
    "resnet18": (9, -3, "left"),
    "resnet34": (9, -3, "left"),
    "resnet50": (9, -5, "left"),
    "resnet101": (9, -9, "left"),
    "resnet152": (9, -10, "left"),
    "wide_resnet50_2": (-9, 4, "right"),
    "resnext101_32x8d": (-9, 2, "right"),
}
figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
for prefix, (style, label) in families.items():
    names = [name for name in TOP1 if name.startswith(prefix)]
    work, accuracy = [macs(TABLE[name]) / 1e9 for name in names], [TOP1[name] for name in names]
    axes.plot(work, accuracy, style, color="black", fillstyle="none", markersize=8, label=label)
    for name, x_place, y_place in zip(names, work, accuracy, strict=True):
        text = f"{name.replace('wide_resnet', 'wide ').removesuffix('_2')}, {parameters(TABLE[name]) / 1e6:.0f} M"
        across, up, side = LABELS.get(name, (0, 10, "center"))
        offset = (across, up)
        axes.annotate(text, (x_place, y_place), xytext=offset, textcoords="offset points", ha=side, fontsize=8)
axes.set_xscale("log")
axes.set_xticks([2, 4, 8, 16, 32], ["2", "4", "8", "16", "32"])
axes.minorticks_off()
axes.set(xlim=(1.4, 32), ylim=(68, 81.5), xlabel="multiply-adds an image (billions)", ylabel="top-1 accuracy (%)")
axes.set_title("ImageNet, with millions of parameters")
axes.legend(loc="lower right")
figure.savefig(figures / "08_family.png", dpi=80)

# %% [markdown]
# From 18 to 152 layers accuracy rises all the way, by less and less. And depth is not the only way up: the wide
# ResNet-50 has the multiply-adds of ResNet-152, a third of its layers, and is as accurate (at 14% more parameters).
#
# These are all of nearly one recipe of training. torchvision's newer weights of the very same ResNet-50 have 80.858%
# where the older have 76.130%: more than any network in this picture. Compare networks by accuracy only where the
# recipe is one.

# %%
newer_resnet50 = 80.858  # torchvision, weights "imagenet-v2"
print(f"ResNet-50: {TOP1['resnet50']} % with the original recipe, {newer_resnet50} % with the newer")

# %% [markdown]
# ## A thousand layers, for real
#
# The CIFAR networks of the paper have three stages of n blocks, 6n + 2 layers. With n = 200 that is ResNet-1202. Its
# graph is so deep that an engine that walks it by a function calling itself would run into Python's recursion limit;
# MiniRes walks it in a loop (`minires/engine/tensor.py`). Here is one forward and backward on four digits, for all
# depths.


# %%
def nodes_among(parents):
    """Those inputs of an operation that were computed."""
    return [parent for parent in parents if isinstance(parent, minires.Node)]


def operations(node):
    """The number of recorded operations behind a node, and of those on the longest way back, by loops alone."""
    found, todo = {}, [node]
    while todo:
        one = todo.pop()
        if id(one) not in found:
            found[id(one)] = one
            todo.extend(nodes_among(one.parents))
    longest = {}
    for one in sorted(found.values(), key=by_number):  # parents come before children
        longest[id(one)] = 1 + max([longest[id(parent)] for parent in nodes_among(one.parents)], default=0)
    return len(found), longest[id(node)]


def by_number(node):
    return node.number


train = digits().train
images, labels = Tensor(train.images[:4]), train.labels[:4]
deep = {}
for name in CIFAR:
    model = models.create_model(name, in_channels=1, generator=np.random.default_rng(0))
    count = sum(p.numel() for p in model.parameters())
    tracemalloc.start()
    start = time.perf_counter()
    loss = F.cross_entropy(model(images), labels)
    forward_seconds = time.perf_counter() - start
    recorded, longest = operations(loss.node)
    start = time.perf_counter()
    loss.backward()
    backward_seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    gradient = float(np.linalg.norm(model.conv1.weight.grad.numpy()))
    deep[name] = count, recorded, longest, peak, gradient
    print(
        f"{name:10} {count:10,} parameters, {recorded:5} operations, {longest:5} in a row: forward "
        f"{forward_seconds:4.1f} s, backward {backward_seconds:4.1f} s, {peak / 1e6:6.1f} MB beside the weights"
    )
print(
    f"Python's recursion limit: {sys.getrecursionlimit()}; first gradient of ResNet-1202: {deep['resnet1202'][4]:.1f}"
)

# %% [markdown]
# (One channel in place of three: 288 weights fewer than in the table.) Time and memory grow in proportion to the depth,
# and a gradient reaches the first of 1,202 layers.
#
# Does it help? The paper trained it, found more error than with 110 layers, and took that for overfitting; it is often
# told as the proof that a network can be too deep. With nearly the same recipe a public PyTorch version has its least
# error there. (That is the best of its epochs on the test images, which flatters every point of the lower line a
# little.)

# %%
paper_error = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}  # He et al. 2015, table 6, CIFAR-10
public_error = {20: 8.27, 32: 7.37, 44: 6.90, 56: 6.61, 110: 6.32, 1202: 6.18}  # Y. Idelbayev's PyTorch weights, 2018
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
axes.semilogx(list(paper_error), list(paper_error.values()), "o-", color="black", label="He et al. 2015")
axes.semilogx(
    list(public_error), list(public_error.values()), "s--", color="black", label="public PyTorch weights, 2018"
)
axes.set_xticks(list(paper_error), [str(layers) for layers in paper_error])
axes.minorticks_off()
axes.set(xlabel="layers", ylabel="test error (%)", title="CIFAR-10: the same networks, trained twice")
axes.legend()
figure.savefig(figures / "08_cifar_depth.png", dpi=80)

# %% [markdown]
# ## Weights: names and files
#
# A network's weights are a table from names to arrays, its `state_dict`. The names are torchvision's, so a file of
# theirs fits as it is. `minires.load` reads `.pth` and `.th` files without PyTorch (such a file is a zip with a pickle;
# the reader knows the few things that a tensor needs, and refuses anything else). Let us write one and read it.


# %%
def small(**options):
    """A network with Bottlenecks in two stages, small enough to look at."""
    generator = np.random.default_rng(1)
    return models.ResNet(
        models.Bottleneck, (1, 1), (8, 16), num_classes=10, in_channels=1, stem="cifar", generator=generator, **options
    )


reference = small()
print(", ".join(list(reference.state_dict())[:8]), "...")
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "small.pth"
    minires.save(path, reference.state_dict())
    print(f"{path.name}: {path.stat().st_size:,} bytes")
    loaded = small(stride_in="3x3")
    loaded.load_state_dict(minires.load(path))
    # as others publish them: another name for the linear layer, and a prefix
    old = {"fc.weight": "linear.weight", "fc.bias": "linear.bias"}
    other_names = {"module." + old.get(name, name): value for name, value in reference.state_dict().items()}
    minires.save(Path(folder) / "other.pth", other_names)
    other = minires.load(Path(folder) / "other.pth")
round_trip = all(
    (loaded.state_dict()[name].numpy() == value.numpy()).all() for name, value in reference.state_dict().items()
)
try:
    loaded.load_state_dict(other)
    complaint = ""
except RuntimeError as error:
    complaint = str(error)
print(complaint)
renamed = loaded.load_state_dict(other, rename={"linear": "fc"})
print("with rename: missing", renamed.missing_keys, "unexpected", renamed.unexpected_keys)

# %% [markdown]
# On the command line the same is `minires eval --model resnet20 --weights FILE --rename linear=fc --data FILE`.
# torchvision's weights come with `create_model("resnet50", weights="imagenet")`.
#
# ## Is it the same network?
#
# **Question before you scroll on:** the weights above went into `small()`. They fit `small(stride_in="1x1")` as well,
# the v1 network, without a complaint. How would you notice?

# %%
wrong = small(stride_in="1x1")
wrong.load_state_dict(reference.state_dict())
twin = copy.deepcopy(reference)
with no_grad():
    y, y_twin, y_wrong = (model.eval()(images).numpy() for model in (reference, twin, wrong))
for model in (reference, twin, wrong):
    model.train()
print(f"largest difference of the logits: the twin {abs(y_twin - y).max():.1e}, the other {abs(y_wrong - y).max():.1e}")
found = compare(wrong, reference, train.images[:8])

# %% [markdown]
# The logits differ, and nothing else tells. `debug.compare` runs both on the same images, forward and backward, and
# names the first layer where they part, and the option. The rule for other people's weights is therefore: load them,
# and compare numbers, not shapes.
#
# ## The same against PyTorch, where it is installed
#
# The small network once more, in torch.nn, with its own initial weights; saved by PyTorch, read without it, and
# compared layer by layer.

# %%
if importlib.util.find_spec("torch") is None:
    torch_agrees, torch_difference = True, 0.0
    print("PyTorch is not installed. With it (pip install torch) this cell compares the two, layer by layer.")
else:
    import torch

    class TorchBottleneck(torch.nn.Module):
        def __init__(self, inputs, channels, stride):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(inputs, channels, 1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(channels)
            self.conv2 = torch.nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
            self.bn2 = torch.nn.BatchNorm2d(channels)
            self.conv3 = torch.nn.Conv2d(channels, 4 * channels, 1, bias=False)
            self.bn3 = torch.nn.BatchNorm2d(4 * channels)
            projection = torch.nn.Conv2d(inputs, 4 * channels, 1, stride, bias=False)
            self.downsample = torch.nn.Sequential(projection, torch.nn.BatchNorm2d(4 * channels))

        def forward(self, x):
            out = torch.relu(self.bn1(self.conv1(x)))
            out = torch.relu(self.bn2(self.conv2(out)))
            return torch.relu(self.bn3(self.conv3(out)) + self.downsample(x))

    class TorchSmall(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(1, 8, 3, padding=1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(8)
            self.layer1 = torch.nn.Sequential(TorchBottleneck(8, 8, 1))
            self.layer2 = torch.nn.Sequential(TorchBottleneck(32, 16, 2))
            self.fc = torch.nn.Linear(64, 10)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            return self.fc(self.layer2(self.layer1(x)).mean(dim=(2, 3)))

    torch.manual_seed(0)
    theirs, ours = TorchSmall(), small()
    with tempfile.TemporaryDirectory() as folder:
        torch.save(theirs.state_dict(), Path(folder) / "theirs.pth")
        ours.load_state_dict(minires.load(Path(folder) / "theirs.pth"))
    against_torch = compare(ours, theirs, train.images[:8])
    torch_agrees = against_torch.agree
    torch_difference = max(row.output.relative for row in against_torch.rows)
    print(f"largest difference of a layer's output, relative to its norm: {torch_difference:.1e}")

# %% [markdown]
# ## Published weights, where they are at hand
#
# Y. Idelbayev's ResNet-20 for CIFAR-10 and a thousand test images, with PyTorch's logits for them: looked for in the
# folder named by the environment variable MINIRES_DATA. (These images were compressed as JPEG by their publisher, which
# costs some accuracy; the published error is on the originals.)

# %%
FILES = ["resnet20-12fca82f.th", "cifar10_test_1000.npz", "cifar10_test_1000_logits.npz"]
folder = Path(os.environ.get("MINIRES_DATA", "."))
right, logit_difference = 804, 0.0
if all((folder / name).is_file() for name in FILES):
    model = models.resnet20().eval()
    model.load_state_dict(state_dict_of(minires.load(folder / FILES[0])), rename={"linear": "fc"})
    with np.load(folder / FILES[1]) as data:
        photos, classes = data["images"], data["labels"]
    with np.load(folder / FILES[2]) as data:
        expected = data["resnet20"]
    with no_grad():
        logits = np.concatenate([model(Tensor(normalize(part))).numpy() for part in np.array_split(photos, 10)])
    right = int((logits.argmax(axis=1) == classes).sum())
    logit_difference = float(abs(logits - expected).max())
    print(f"published ResNet-20: {right} of {len(classes)} right; from PyTorch's logits at most {logit_difference:.1e}")
else:
    print(f"Published weights: put {', '.join(FILES)} into the folder named by MINIRES_DATA to see 804 of 1,000 right.")

# %% [markdown]
# What is left between the two libraries is rounding, here as in the small network.
#
# Next: lesson 09 trains these networks. If you have not yet written a whole block's backward yourself, now is the time:
# `minires exercise start basic_block_backward`.
#
# Every claim that was made, once more:

# %%
# the arithmetic, the counts and the networks
for name, row in TABLE.items():
    assert (parameters(row), macs(row)) == COUNTED[name], name
    assert depth(row) == int(re.search(r"\d+", name)[0]), name  # the first number in the name
assert all(agreed.values()) and same_rows
assert sum(TABLE["resnet34"].layers) == sum(TABLE["resnet50"].layers) == 16
assert by_stage[0, 4] > 0.5 and by_stage[1, 4] < 0.25
for name, billions in papers.items():  # the paper rounds 3.858 down
    assert abs(v1[name] / 1e9 - billions) < 0.06 and v1[name] < macs(TABLE[name])
assert round(v1["resnet50"] / 1e9, 3) == 3.858 and round(macs(TABLE["resnet50"]) / 1e9, 3) == 4.089
assert thin_v1 == macs(TABLE["resnet50"], width=16, image=64, stride_in="1x1")
# ResNeXt, and what one gets
assert group_error < 1e-12
assert max(abs(count / parameters(TABLE["resnet50"]) - 1) for count, _ in cardinality.values()) < 0.05
assert max(abs(work / macs(TABLE["resnet50"]) - 1) for _, work in cardinality.values()) < 0.05
assert sorted(top1_error.values(), reverse=True) == list(top1_error.values())
by_depth = [TOP1[name] for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")]
assert (np.diff(by_depth) > 0).all() and (np.diff(by_depth, 2) < 0).all()
assert TOP1["wide_resnet50_2"] > TOP1["resnet152"] and newer_resnet50 > max(TOP1.values())
assert round(parameters(TABLE["wide_resnet50_2"]) / parameters(TABLE["resnet152"]) - 1, 2) == 0.14
# a thousand layers
assert COUNTED["resnet1202"][0] - deep["resnet1202"][0] == 288
assert deep["resnet1202"][2] > 3 * 1000 and 0 < deep["resnet1202"][4] < np.inf
for which in (1, 3):  # operations, memory
    assert 8 < deep["resnet1202"][which] / deep["resnet110"][which] < 13  # the depth: 1202 / 110 is 10.9
assert min(public_error.values()) == public_error[1202] and paper_error[1202] > paper_error[110]
# weights
assert round_trip and "linear.weight" in complaint and not renamed.missing_keys and not renamed.unexpected_keys
assert (y_twin == y).all() and abs(y_wrong - y).max() > 1e-3
assert found.first_forward == "layer2.0.conv1" and "stride is (2, 2) here and (1, 1)" in found.verdict[0]
assert torch_agrees and torch_difference < 1e-7
assert right == 804 and logit_difference < 1e-3
print("every claim holds")
