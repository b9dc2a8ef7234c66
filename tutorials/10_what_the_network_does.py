# %% [markdown]
# # What the network does
#
# You need: lesson 06 (deeper is worse) and lesson 07 (the residual block). It takes about a minute on two cores, up to
# four on a busy machine.
#
# The addition F(x) + x lets a deep network be trained. What does it do to the network that comes out? Five
# experiments from the literature, each repeated here on real digits or on networks fresh from their initial weights:
# look at the feature maps; cut blocks out of a trained network; follow the gradient along a line of inputs; walk
# around in the loss; and measure how much of the image one output pixel sees. Several of the usual explanations do
# not survive.

# %%
import copy
from pathlib import Path

import matplotlib.pyplot as plt
import minires.functional as F
import numpy as np
from matplotlib.colors import LogNorm
from threadpoolctl import threadpool_limits

import minires
from minires import Tensor, nn
from minires.data import DataLoader, digits
from minires.debug.plots import loss_landscape, plot_feature_maps, plot_filters
from minires.optim import SGD, OneCycleLR
from minires.train.training import evaluate

threadpool_limits(1)  # these matrix products are too small for more threads
figures = Path(__file__).parent / "figures" if "__file__" in globals() else Path("figures")
figures.mkdir(exist_ok=True)

# %% [markdown]
# ## Four networks
#
# Plain and residual, 20 and 56 layers: the networks of He et al. 2015 for CIFAR-10, half as wide. All four are trained
# alike, for 8 epochs with momentum 0.9; the learning rate climbs to 0.1 and falls again.

# %%
EPOCHS, SEED = 8, 0
data = digits()


def train(name, seed=SEED):
    network = minires.create_model(name, in_channels=1, width=8, generator=np.random.default_rng(seed))
    loader = DataLoader(data.train, 64, shuffle=True, seed=seed)
    optimizer = SGD(network.parameters(), lr=0.1, momentum=0.9)
    schedule = OneCycleLR(optimizer, max_lr=0.1, total_steps=EPOCHS * len(loader))
    for _ in range(EPOCHS):
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def test_error(network):
    return 1 - evaluate(network, data.test).accuracy


networks, errors = {}, {}
for name in ("plain20", "resnet20", "plain56", "resnet56"):
    networks[name] = train(name)
    errors[name] = test_error(networks[name])
    print(f"{name:8}  test error {errors[name]:.1%}")

# %% [markdown]
# The plain network of 56 layers has hardly learned: that is the degradation of lesson 06. So in what follows the
# trained plain network is plain-20, and its residual partners are ResNet-20 and ResNet-56.
#
# ## What passes through
#
# One digit on its way through ResNet-56: after the stem, after five blocks of the first stage that follow each other,
# and after the last block of the other two stages.

# %%
image = data.test.images[0]
stages = ["relu", "layer1.4", "layer1.5", "layer1.6", "layer1.7", "layer1.8", "layer2.8", "layer3.8"]
figure = plot_feature_maps(networks["resnet56"], image, stages=stages, title="one digit through ResNet-56")
figure.savefig(figures / "10_feature_maps.png", dpi=80)

# %% [markdown]
# The usual explanation says: every layer of a deep network computes new features from those of the layer before it,
# first edges, then parts, then objects. **Question before you scroll on:** take one block inside a stage, and
# correlate what goes in with what comes out, pixel by pixel and channel by channel. What do you expect of a plain
# block, and what of a residual one?


# %%
def block_outputs(network, images):
    """What each block makes of the images, in order, with the stem's output first."""
    with minires.no_grad():
        x = network.relu(network.bn1(network.conv1(images)))
        outputs = [x]
        for stage in (network.layer1, network.layer2, network.layer3):
            for block in stage:
                x = block(x)
                outputs.append(x)
    return [output.numpy() for output in outputs]


def correlation(a, b):
    """Of two arrays (N, C, H, W), each channel around its own mean."""
    a = a - a.mean(axis=(0, 2, 3), keepdims=True)
    b = b - b.mean(axis=(0, 2, 3), keepdims=True)
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


kept = {}
for name in ("plain20", "resnet20", "resnet56"):
    outputs = block_outputs(networks[name], Tensor(data.test.images[:200]))
    pairs = zip(outputs[:-1], outputs[1:], strict=True)
    kept[name] = np.array([correlation(a, b) for a, b in pairs if a.shape == b.shape])
    print(f"{name:8}  correlation of a block's input and output: {' '.join(f'{c:.2f}' for c in kept[name])}")

# %% [markdown]
# A plain block hands on nothing of its input as it was: channel 3 before it has nothing to do with channel 3 behind
# it (median below 0.2 in size). A residual block of the deep network keeps its input almost unchanged (above 0.9): the
# whole stage works on one set of feature maps, and each block corrects them a little. You see it in the picture: a
# channel looks alike from block to block, and over many blocks it drifts.
#
# And the filters themselves? First-layer kernels are often shown as edge detectors that training found. Here are the
# 8 kernels of the stem, and how much each convolution still resembles the random numbers that it started from.

# %%
figure = plot_filters(networks["resnet56"])
figure.savefig(figures / "10_filters.png", dpi=80)

fresh = minires.create_model("resnet56", in_channels=1, width=8, generator=np.random.default_rng(SEED))
trained_layers = dict(networks["resnet56"].named_modules())
resemblance = {}
for name, layer in fresh.named_modules():
    if isinstance(layer, nn.Conv2d):
        before, after = layer.weight.detach().numpy(), trained_layers[name].weight.detach().numpy()
        resemblance[name] = float(np.corrcoef(before.ravel(), after.ravel())[0, 1])
for name in ("conv1", "layer1.0.conv1", "layer1.8.conv1", "layer2.8.conv1", "layer3.8.conv1"):
    print(f"{name:15} correlation with its initial weights {resemblance[name]:.2f}")

# %% [markdown]
# Most are still largely what they were (the median correlation is above 0.7): training moved the
# weights a little, and that was enough for these digits. Do not read a meaning into every kernel of a picture.
#
# ## The lesion study
#
# If a block only corrects a little, the network might do without it. Veit et al. 2016 tried: train a network, delete
# one block, do not train again, and count the errors.
#
# Deleting a block of a residual network means to delete its branch: F(x) + x becomes x. (The ReLU behind the addition
# may go too: x comes out of a ReLU already.) Where the block changes the shape, the shortcut stays and only the branch
# goes. A plain block has only its branch: inside a stage the block is passed over, and where it changes the shape it
# has to stay, so 2 of the 9 blocks of plain-20 cannot be tried.


# %%
def blocks_of(network):
    """Every block's place: (stage, number in the stage)."""
    stages = (network.layer1, network.layer2, network.layer3)
    return [(s + 1, i) for s in range(len(stages)) for i in range(len(stages[s]))]


def changes_shape(place):
    stage, i = place
    return stage > 1 and i == 0


def without(network, places):
    """A copy of the network in which these blocks pass on their input: through their shortcut, if they have one."""
    lesioned = copy.deepcopy(network)
    for stage, i in places:
        row = lesioned.get_submodule(f"layer{stage}")
        shortcut = getattr(row[i], "downsample", None)
        row.add_module(str(i), nn.Identity() if shortcut is None else shortcut)
    return lesioned


# %% [markdown]
# **Question before you scroll on:** plain-20 loses one of its nine blocks, ResNet-56 one of its 27. Guessing is wrong
# in 90 % of the digits. What will the median block cost in each?

# %%
GUESSING = 0.90
tried = {
    "plain20": [place for place in blocks_of(networks["plain20"]) if not changes_shape(place)],
    "resnet20": blocks_of(networks["resnet20"]),
    "resnet56": blocks_of(networks["resnet56"]),
}
assert len(tried["plain20"]) == 9 - 2 and len(tried["resnet56"]) == 27
lesions = {}
for name, places in tried.items():
    lesions[name] = np.array([test_error(without(networks[name], [place])) for place in places])
    print(f"{name:8}  all blocks {errors[name]:.1%}, one deleted: median {np.median(lesions[name]):.1%}; by block (%):")
    print("          " + " ".join(f"{100 * error:.0f}" for error in lesions[name]))

# %% [markdown]
# In plain-20 every block is a link of a chain: without any one of them the median error is above 70 %, not far from
# guessing. In ResNet-56 the median stays below 10 %, hardly more than with all blocks. The first blocks matter
# most. Depth is not the reason: ResNet-20 has the same nine blocks as plain-20, and its median stays below 20 %.
#
# How many can go at once? Delete several, chosen at random, 8 choices for each number.

# %%
counts = [1, 2, 4, 6, 8, 12, 16, 20]
rng = np.random.default_rng(SEED)
places = tried["resnet56"]
several = np.zeros((len(counts), 8))
for k, count in enumerate(counts):
    for choice in range(8):
        chosen = rng.choice(len(places), count, replace=False)
        several[k, choice] = test_error(without(networks["resnet56"], [places[i] for i in chosen]))
    print(f"{count:2} of {len(places)} blocks deleted: test error {several[k].mean():.0%} on average")


# %%
def draw_lesions(axes, name, title):
    """A bar for each deleted block; a cross where there is nothing to delete."""
    everywhere = blocks_of(networks[name])
    values = dict(zip(tried[name], lesions[name], strict=True))
    for number, place in enumerate(everywhere, start=1):
        if place not in values:
            axes.plot(number, 4, "x", color="black", markersize=6)
        elif changes_shape(place):
            axes.bar(number, 100 * values[place], color="white", edgecolor="black", hatch="////")
        else:
            axes.bar(number, 100 * values[place], color="tab:gray", edgecolor="black", linewidth=0.6)
    axes.axhline(100 * errors[name], color="black", linestyle="--", linewidth=1.5)
    axes.axhline(100 * GUESSING, color="black", linestyle=":", linewidth=1)
    axes.set(xlabel="deleted block", title=title, ylim=(0, 100))


figure, panels = plt.subplot_mosaic(
    [["plain20", "resnet20", "several"], ["resnet56", "resnet56", "several"]], figsize=(10, 6), layout="constrained"
)
draw_lesions(panels["plain20"], "plain20", "plain-20, one block deleted")
draw_lesions(panels["resnet20"], "resnet20", "ResNet-20, one block deleted")
draw_lesions(panels["resnet56"], "resnet56", "ResNet-56, one block deleted")
for name in ("plain20", "resnet20"):
    panels[name].set_xticks(range(1, 10))
panels["resnet56"].set_xticks([1, 5, 10, 15, 19, 23, 27])
legend = panels["resnet56"]
legend.bar([1], [0], color="tab:gray", edgecolor="black", linewidth=0.6, label="block inside a stage")
legend.bar([1], [0], color="white", edgecolor="black", hatch="////", label="block that changes the shape")
legend.plot([], [], "kx", label="the same in a plain network: cannot be deleted")
legend.plot([], [], "k--", label="all blocks in place")
legend.plot([], [], "k:", label="guessing")
legend.legend(loc="center right", fontsize=9)
several_panel = panels["several"]
several_panel.plot(np.repeat(counts, 8), 100 * several.ravel(), "o", color="gray", markersize=3, label="one choice")
several_panel.plot(counts, 100 * several.mean(axis=1), "ks-", markersize=5, label="mean of 8")
several_panel.axhline(100 * GUESSING, color="black", linestyle=":", linewidth=1)
several_panel.set(xlabel="blocks deleted at once (of 27)", title="ResNet-56, several deleted", ylim=(0, 100))
several_panel.legend(loc="lower right", fontsize=9)
for name in ("plain20", "resnet56", "several"):
    panels[name].set_ylabel("test error (%)")
figure.savefig(figures / "10_lesions.png", dpi=90)

# %% [markdown]
# Veit et al. used CIFAR-10, a ResNet-110 and, as the plain network, a VGG. They found the same: without any layer the
# VGG falls to chance, without any block the ResNet loses little, and a little more where the stage changes; with
# several blocks gone the error grows smoothly. Here the images are digits of 8x8 pixels, the networks are smaller, the
# plain network has the same batch norms as the residual ones, and the blocks that matter most are the first. The
# error grows gradually here too: with 4 blocks gone it is below 40 % on average, with 20 gone above 60 %.
#
# Their reading: unfold the additions, and a network of 27 blocks is a bundle of 2^27 paths, each through or past every
# block. Deleting one block halves their number. The plain network has one path, and deleting a block cuts it.
#
# ### An objection
#
# A block that is missing shifts the mean and the spread of all that comes behind it, and the batch norms there
# still use the statistics of the whole network. Is that all the damage? It can be tested: after the lesion, send some
# training digits through, and let every batch norm take its statistics anew. No weight changes.


# %%
def use_statistics_of(network, x):
    """Every batch norm takes its mean and variance from this batch, and keeps them: evaluation mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()
    with minires.no_grad():
        network(x)
    return network.eval()


calibration = Tensor(data.train.images[:512])
renewed = {}
for name in ("plain20", "resnet20"):
    lesioned = [without(networks[name], [place]) for place in tried[name]]
    renewed[name] = np.array([test_error(use_statistics_of(network, calibration)) for network in lesioned])
    before, after = np.median(lesions[name]), np.median(renewed[name])
    print(f"{name:8}  one deleted: median {before:.1%}, with new statistics {after:.1%}")

# %% [markdown]
# The residual network is then almost whole (median below 10 %): much of the little damage was in the statistics. The
# plain network stays broken (above 70 %): what is missing there is the features that the next layer was made for.
#
# To read where the two ways part: `residual_add_backward` in `minires/kernels/residual.py` hands dy to both, and
# `basic_block_backward` in `minires/exercises/basic_block.py` adds what comes back. To write them yourself:
# `minires exercise start residual_add`, then `minires exercise start basic_block_backward`.
#
# ## Shattered gradients
#
# "Without skips the gradient vanishes." Lesson 06 measured that with batch norm it explodes instead. But a gradient of
# the wrong size could be rescaled. Balduzzi et al. 2017 found something that could not: it stops being a gradient of
# anything smooth.
#
# Take a network of one number: f(x), with layers 200 wide, at its initial weights. Every layer is batch norm, ReLU and
# a linear map, with a skip or without. Compute f'(x) at 256 points of a line. If neighbouring points have similar
# slopes, a step of gradient descent leads where the slope said. So look at the correlation between the slope at a
# point and at its neighbour.
#
# The 256 points are the pixels of one image, and 1x1 convolutions do the same to each. The statistics of batch norm
# are taken from these points and then held fixed, so that the pixels do not mix and the gradient of the sum is the
# slope at every point.


# %%
class Stack(nn.Module):
    """Layers of batch norm (or none), ReLU and a convolution, each with a skip past it or without."""

    def __init__(self, depth, channels, kernel_size, skip, norm, generator):
        super().__init__()
        self.skip = skip
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels) if norm else nn.Identity() for _ in range(depth)])
        self.convs = nn.ModuleList()
        for _ in range(depth):
            conv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, bias=False)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu", generator=generator)
            self.convs.append(conv)

    def forward(self, x):
        for norm, conv in zip(self.norms, self.convs, strict=True):
            branch = conv(F.relu(norm(x)))
            x = F.residual_add(x, branch) if self.skip else branch
        return x


WIDTH = 200
inputs = np.linspace(-2, 2, 256, dtype=np.float32)


def slopes(depth, skip, seed):
    """f'(x) at the inputs, for a fresh network from one number to one number."""
    generator = np.random.default_rng(seed)
    first = nn.Conv2d(1, WIDTH, 1, generator=generator)
    last = nn.Conv2d(WIDTH, 1, 1, generator=generator)
    network = nn.Sequential(first, Stack(depth, WIDTH, 1, skip, True, generator), last)
    x = Tensor(inputs.reshape(1, 1, 1, 256), requires_grad=True)
    use_statistics_of(network, x.detach())
    network(x).sum().backward()
    return x.grad.numpy().ravel()


def lag_one(series):
    """The correlation of a series with itself, one step on."""
    series = series - series.mean()
    return float((series[:-1] * series[1:]).sum() / (series * series).sum())


depths = [1, 3, 6, 12, 24]
seeds = range(8)
neighbours, size = {}, {}
for skip, name in ((False, "plain"), (True, "residual")):
    found = [[slopes(depth, skip, seed) for seed in seeds] for depth in depths]
    neighbours[name] = [np.mean([lag_one(series) for series in row]) for row in found]
    size[name] = [np.sqrt(np.mean(np.square(row))) for row in found]
    for depth, c, rms in zip(depths, neighbours[name], size[name], strict=True):
        print(f"{name:8}  {depth:2} layers: correlation of neighbours {c:5.2f}, typical slope {rms:.2f}")

# %%
figure, panels = plt.subplot_mosaic(
    [["shallow", "plain", "residual"], ["depth", "depth", "depth"]], figsize=(9, 5.4), layout="constrained"
)
examples = {"shallow": (3, False), "plain": (24, False), "residual": (24, True)}
titles = {"shallow": "3 layers, plain", "plain": "24 layers, plain", "residual": "24 layers, residual"}
for key, (depth, skip) in examples.items():
    series = slopes(depth, skip, seed=0)
    panels[key].plot(inputs, series / np.sqrt(np.mean(series**2)), color="black", linewidth=0.8)
    panels[key].set(xlabel="input x", ylim=(-4.2, 4.2), title=titles[key])
panels["shallow"].set_ylabel("slope f'(x) (in its own rms)")
panels["depth"].plot(depths, neighbours["residual"], "o-", color="tab:blue", label="residual")
panels["depth"].plot(depths, neighbours["plain"], "s--", color="tab:red", label="plain")
panels["depth"].axhline(0, color="gray", linewidth=0.8)
panels["depth"].set(
    xlabel="layers", ylabel="correlation at lag 1", title="slopes of neighbouring inputs, mean of 8 seeds"
)
panels["depth"].set_xticks(depths)
panels["depth"].legend(loc="center left")
figure.savefig(figures / "10_shattered.png", dpi=90)

# %% [markdown]
# The slope of a shallow network changes in small steps, one for each ReLU that turns on or off. After 24 plain layers
# the slope at a point says nothing about its neighbour (correlation below 0.1): white noise, although `backward()` got
# every slope right. Nor is it small: it is typically more than 3 times that of the residual network. With the skips the
# correlation is still above 0.6. The paper derives that it decays exponentially with the depth of plain networks, and
# slower than linearly with skips.
#
# So "the skip keeps the gradient from vanishing" is half of it: the skip keeps the gradient of one point usable at
# the next.
#
# ## The loss landscape
#
# Walk away from the trained weights in two random directions, and draw the loss. Li et al. 2018 showed how to make
# such pictures comparable: give each filter of the random direction the length of the network's own filter
# (`filter_normalised_direction` in `minires/debug/plots/landscape.py`). A step of 1 then means: as far as each filter
# is long. For each of the four networks, the grid has 11 x 11 points, and the loss is that of 128 training digits.

# %%
landscapes, below = {}, {}
for name, network in networks.items():
    landscape = loss_landscape(network, data.train.images[:128], data.train.labels[:128], count=11, radius=1, seed=SEED)
    landscapes[name] = landscape
    below[name] = float(np.mean(landscape.losses < np.log(10)))
    middle, highest = landscape.losses[5, 5], landscape.losses.max()
    print(f"{name:8}  loss in the middle {middle:.3f}, highest {highest:.3g}, better than guessing: {below[name]:.0%}")

# %%
levels = np.geomspace(0.01, 1000, 11)
figure, panels = plt.subplots(2, 2, figsize=(7.6, 6.4), sharex=True, sharey=True, layout="constrained")
titles = {"plain20": "plain-20", "resnet20": "ResNet-20", "plain56": "plain-56", "resnet56": "ResNet-56"}
for axes, (name, landscape) in zip(panels.flat, landscapes.items(), strict=True):
    losses = np.clip(landscape.losses, levels[0], levels[-1])
    steps = landscape.steps
    filled = axes.contourf(steps, steps, losses, levels=levels, norm=LogNorm(levels[0], levels[-1]), cmap="cividis")
    axes.contour(steps, steps, losses, levels=[0.1, 1, 10, 100], colors="black", linewidths=0.6)
    axes.contour(steps, steps, losses, levels=[np.log(10)], colors="white", linewidths=2.5)
    axes.plot(0, 0, "x", color="white", markersize=9, markeredgewidth=3.5)
    axes.plot(0, 0, "x", color="black", markersize=8, markeredgewidth=1.5)
    axes.set_aspect("equal")
    axes.set_title(f"{titles[name]}\n{below[name]:.0%} better than guessing")
bar = figure.colorbar(filled, ax=panels, label="cross entropy (logarithmic); white line: guessing, ln 10")
bar.set_ticks([0.01, 0.1, 1, 10, 100, 1000], labels=["0.01", "0.1", "1", "10", "100", "1000 and more"])
figure.supxlabel("step along the first direction (1: as long as each filter)")
figure.supylabel("step along the second direction")
figure.savefig(figures / "10_landscape.png", dpi=80)

# %% [markdown]
# With 56 layers the difference is large: around the residual network the loss is better than guessing in more than
# twice the share of the grid than around the plain one. With 20 layers it is small, and another pair of
# directions may turn it round; so it was for Li et al.: shallow landscapes are smooth with and without skips, deep
# ones without skips are not.
#
# Two cautions that usually go unsaid. The plain network of 56 layers had not been trained to a low loss in the first
# place, so less of its surroundings can be low: the picture shows an outcome together with its cause. And it is a
# plane through a space of as many dimensions as there are weights:

# %%
weights = sum(parameter.numel() for parameter in networks["resnet56"].parameters())
print(f"ResNet-56 of this width has {weights:,} weights; the picture shows 2 directions")

# %% [markdown]
# ## The effective receptive field
#
# One 3x3 layer sees 3x3 pixels, and each further layer adds a pixel on every side: 20 layers see 41 x 41. So say the
# tables. Luo et al. 2016 asked how much each of these pixels counts: take the gradient of the central output pixel
# with respect to the input, square it, and average over initial weights and random images.
#
# A guess first. On the way back, each layer spreads what it gets evenly over three neighbours a side: a random walk
# whose step is -1, 0 or 1, with variance 2/3. After n layers the spread (standard deviation along one axis) is
# sqrt(2/3) sqrt(n). With a skip and no batch norm, branch and shortcut carry equally much at these initial weights,
# so that each step is taken half of the time: sqrt(1/3) sqrt(n).
#
# **Question before you scroll on:** and with batch norm in the branch? (What passes by grows with every addition; what
# the branch adds is always of size one.)

# %%
SIZE, MIDDLE, CHANNELS = 41, 20, 8


def field(depth, skip, norm, seed):
    """The squared gradient of the central output pixel, by input pixel, with sum 1. Shape: (SIZE, SIZE)."""
    generator = np.random.default_rng(seed)
    network = Stack(depth, CHANNELS, 3, skip, norm, generator)
    x = Tensor(generator.standard_normal((1, CHANNELS, SIZE, SIZE)), dtype="float32", requires_grad=True)
    use_statistics_of(network, x.detach())
    y = network(x)
    dy = np.zeros(y.shape, dtype=np.float32)
    dy[0, :, MIDDLE, MIDDLE] = generator.standard_normal(CHANNELS)
    y.backward(dy)
    energy = np.square(x.grad.numpy()[0], dtype=np.float64).sum(axis=0)
    return energy / energy.sum()


def spread(energy):
    """The standard deviation along one axis, in pixels, mean of both axes."""
    squares = (np.arange(SIZE) - MIDDLE) ** 2
    return float(np.sqrt((energy.sum(axis=0) * squares).sum() + (energy.sum(axis=1) * squares).sum()) / np.sqrt(2))


def central_square(energy, share):
    """The side, in pixels, of the smallest central square that holds this share of the energy."""
    reach = 0
    while energy[MIDDLE - reach : MIDDLE + reach + 1, MIDDLE - reach : MIDDLE + reach + 1].sum() < share:
        reach += 1
    return 2 * reach + 1


layers = [5, 10, 20, 40]
kinds = {"plain": (False, False), "residual": (True, False), "residual, batch norm": (True, True)}
fields, scaled, sides = {}, {}, {}
for name, (skip, norm) in kinds.items():
    fields[name] = [np.mean([field(depth, skip, norm, seed) for seed in range(10)], axis=0) for depth in layers]
    scaled[name] = [spread(energy) / np.sqrt(depth) for energy, depth in zip(fields[name], layers, strict=True)]
    sides[name] = central_square(fields[name][layers.index(20)], 0.95)
    print(f"{name:20}  spread / sqrt(layers): {' '.join(f'{s:.2f}' for s in scaled[name])} for {layers} layers;")
    print(f"{'':20}  95% of the gradient of 20 layers in {sides[name]} x {sides[name]} pixels of 41 x 41")
print(f"expected: plain {np.sqrt(2 / 3):.2f}, residual {np.sqrt(1 / 3):.2f}")

# %%
figure, panels = plt.subplot_mosaic(
    [["plain", "residual", "residual, batch norm"], ["depth", "depth", "depth"]],
    figsize=(9, 6.4),
    height_ratios=[1.1, 1],
    layout="constrained",
)
for name in kinds:
    energy = fields[name][layers.index(20)]
    panels[name].imshow(np.sqrt(energy / energy.max()), cmap="gray_r", extent=(-20.5, 20.5, -20.5, 20.5))
    panels[name].set(title=f"{name}, 20 layers", xlabel="pixels from the middle")
    panels[name].set_xticks([-20, -10, 0, 10, 20])
    panels[name].set_yticks([-20, -10, 0, 10, 20])
styles = {"plain": "s--", "residual": "o-", "residual, batch norm": "^-."}
for name in kinds:
    found = [spread(energy) for energy in fields[name]]
    panels["depth"].loglog(layers, found, styles[name], label=name)
line = np.array([5, 40])
panels["depth"].loglog(
    line, np.sqrt(2 / 3 * line), color="gray", linewidth=0.8, label="sqrt(2/3) sqrt(n), sqrt(1/3) sqrt(n)"
)
panels["depth"].loglog(line, np.sqrt(1 / 3 * line), color="gray", linewidth=0.8)
panels["depth"].set(xlabel="layers n", ylabel="spread (pixels)")
panels["depth"].set_xticks(layers, [str(n) for n in layers])
panels["depth"].set_yticks([1, 2, 5], ["1", "2", "5"])
panels["depth"].minorticks_off()
panels["depth"].legend()
figure.savefig(figures / "10_receptive_field.png", dpi=80)

# %% [markdown]
# Each panel above is the whole field that the tables promise. The plain network uses the middle of it, the residual
# one less, and the residual one with batch norm least. The first two follow the square root of the depth, as the
# random walk says (both within a fifth of the expected factor); with batch norm the field grows more slowly still,
# because the n-th branch is added to a sum of n such branches and counts for about 1/n of it.
#
# So a deep network does not see far because it is deep: twice the depth is not twice the view. Halving the image is
# what widens it. (All this is at the initial weights; Luo et al. report that training widens the field.)
#
# What remains of the halved image at the end of a network is averaged away: `global_avg_pool_forward` is the exercise
# `minires exercise start global_avg_pool`.
#
# ## What the additions did
#
# One picture from five sides: with F(x) + x the network is its input plus many small corrections. So the feature
# maps stay what they are through a stage, no single block is indispensable, the slope at one point is good for the
# next, the loss near the weights stays low, and most of the gradient takes short paths, which see little of the image.

# %%
assert errors["plain20"] < 0.15 and errors["resnet20"] < 0.1 and errors["resnet56"] < 0.1
assert errors["plain56"] > 5 * errors["resnet56"]
assert abs(np.median(kept["plain20"])) < 0.2 and np.median(kept["resnet56"]) > 0.9
assert np.median(list(resemblance.values())) > 0.7
assert np.median(lesions["plain20"]) > 0.7  # 70 %
assert np.median(lesions["resnet56"]) < 0.1  # 10 %
assert np.median(lesions["resnet20"]) < 0.2  # 20 %
assert np.median(renewed["plain20"]) > 0.7 and np.median(renewed["resnet20"]) < 0.1
assert np.median(renewed["resnet20"]) < np.median(lesions["resnet20"])
assert several[0].mean() < several[3].mean() < several[5].mean()
assert several[2].mean() < 0.4 and several[7].mean() > 0.6  # 40 %, 60 %
assert lesions["resnet56"][:3].mean() > np.median(lesions["resnet56"])
assert size["plain"][-1] > 3 * size["residual"][-1]
assert neighbours["plain"][-1] < 0.1 and neighbours["residual"][-1] > 0.6
assert below["resnet56"] > 2 * below["plain56"]
for plain, residual in zip(scaled["plain"], scaled["residual"], strict=True):
    assert residual < 0.9 * plain
    assert abs(plain / np.sqrt(2 / 3) - 1) < 0.2 and abs(residual / np.sqrt(1 / 3) - 1) < 0.2
assert sides["residual, batch norm"] < sides["residual"] < sides["plain"] < SIZE
assert scaled["residual, batch norm"][-1] < 0.75 * scaled["residual, batch norm"][0]
