# %% [markdown]
# # Deeper is worse
#
# You need: batch norm and its backward (`tutorials/04_batch_norm.py`), ReLU and cross entropy
# (`tutorials/05_relu_pooling_loss.py`). It takes about a minute and a half on two cores.
#
# In 2015 networks got better as they got deeper, up to a point, and worse beyond it. This lesson reproduces that on
# real digits with four networks and three seeds, shows what it is not, and follows the gradients back through the
# layers to see what depth does to them. Many explanations say that they vanish. With batch norm they explode, and
# that is not the whole story either.

# %%
import math
from pathlib import Path

import matplotlib.pyplot as plt
import minires.functional as F
import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import minires
from minires import Tensor, nn
from minires.data import DataLoader, digits
from minires.optim import SGD
from minires.train.training import evaluate, train_step

threadpool_limits(1)  # these matrix products are too small for more threads
figures = Path(__file__).parent / "figures" if "__file__" in globals() else Path("figures")
figures.mkdir(exist_ok=True)

# %% [markdown]
# ## The question of 2015
#
# Two families of networks, the same in all but one line. A plain block is conv, batch norm, ReLU, conv, batch norm,
# ReLU. A residual block adds its input before the last ReLU (read both in `minires/models/blocks.py`). The networks
# are those that He et al. trained on CIFAR-10, with half the channels: three stages of 3 blocks make 20 layers,
# three stages of 9 blocks make 56.

# %%
NAMES, SEEDS = ("plain20", "plain56", "resnet20", "resnet56"), (0, 1, 2)
WIDTH, EPOCHS, RATE = 8, 8, 0.1
data = digits()
print(f"{len(data.train):,} digits to train, {len(data.test)} to test, of 8x8 pixels")


def network(name, seed, **options):
    """A network for the digits; the same seed gives the plain and the residual one the same weights."""
    return minires.create_model(name, in_channels=1, width=WIDTH, generator=np.random.default_rng(seed), **options)


def number_of_weights(name):
    return sum(math.prod(parameter.shape) for parameter in network(name, 0).parameters())


for name in NAMES:
    print(f"{name}: {number_of_weights(name):,} weights")

# %% [markdown]
# The plain and the residual network of one depth have equally many weights: the skip has none (where the shape
# changes it takes every second pixel and fills the new channels with zeros, the paper's option A).
#
# **Question before you scroll on:** plain-56 has about three times the weights of plain-20. Suppose that it does
# worse on the test images. Is it overfitting? Which number would decide that?
#
# The error on the training images: a network that overfits does well there, and badly elsewhere. So count, epoch by
# epoch, the share of the training digits that a network gets wrong as they pass. Four networks, three seeds each.


# %%
def train(name, seed, bar):
    """Train a network. Returns: it, and by epoch the share of the training digits that it got wrong as they passed."""
    model = network(name, seed)
    loader = DataLoader(data.train, batch_size=64, shuffle=True, seed=seed)
    optimizer = SGD(model.parameters(), lr=RATE, momentum=0.9)
    errors = []
    for _ in range(EPOCHS):
        right = 0
        for images, labels in loader:
            _, correct = train_step(model, optimizer, images, labels)
            right += int(correct.item())
            bar.update()
        errors.append(1 - right / len(data.train))
    return model, errors


trained, curves = {}, {}
steps = len(NAMES) * len(SEEDS) * EPOCHS * math.ceil(len(data.train) / 64)
with tqdm(total=steps, unit="step", desc="training") as bar:
    for name in NAMES:
        for seed in SEEDS:
            trained[name, seed], curves[name, seed] = train(name, seed, bar)
        last = ", ".join(f"{curves[name, seed][-1]:.1%}" for seed in SEEDS)
        bar.write(f"{name}: wrong in the last epoch, by seed: {last}")

# %%
last_epoch, judged, tested = {}, {}, {}  # medians over the seeds
for name in NAMES:
    last_epoch[name] = np.median([curves[name, seed][-1] for seed in SEEDS])
    judged[name] = np.median([1 - evaluate(trained[name, seed], data.train).accuracy for seed in SEEDS])
    tested[name] = np.median([1 - evaluate(trained[name, seed], data.test).accuracy for seed in SEEDS])
print("error, median of three seeds   training, last epoch   training, judged afterwards   test")
for name in NAMES:
    print(f"{name:30} {last_epoch[name]:20.1%} {judged[name]:28.1%} {tested[name]:6.1%}")

# %% [markdown]
# Draw plain and residual side by side, as He et al. did in their figure 6 (bold is our deeper network; in the paper
# it is the test error), and put their published numbers below. The settings differ: theirs are errors on held-out
# photographs after tens of thousands of steps or more, with networks at least twice as wide; ours are training errors
# on small digits, after 8 epochs.

# %%
# He et al. 2015. ImageNet, top-1 error in percent, ten crops (tables 2 and 3; ResNet-34 with option A).
IMAGENET = {"plain": {18: 27.94, 34: 28.54}, "residual": {18: 27.88, 34: 25.03}}
# CIFAR-10, test error of the residual networks in percent (table 6). Plain-110: over 60 percent (figure 6).
CIFAR10 = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43}


def draw_curves(axes, name, depth, width, marker):
    """The median of the seeds as a line, their range as a band."""
    percent = 100 * np.array([curves[name, seed] for seed in SEEDS])
    percent = np.maximum(percent, 100 / len(data.train))  # none wrong is drawn as one wrong: the scale has no 0
    epochs, median = range(1, EPOCHS + 1), np.median(percent, axis=0)
    axes.fill_between(epochs, percent.min(axis=0), percent.max(axis=0), color="black", alpha=0.15, linewidth=0)
    label = f"{depth} layers, at last {median[-1]:.1f} %"
    axes.semilogy(epochs, median, marker, color="black", linewidth=width, markersize=5, label=label)


figure, ((plain, residual), (imagenet, cifar)) = plt.subplots(2, 2, figsize=(8, 6.4), layout="constrained")
for axes, family, title in ((plain, "plain", "plain: F(x)"), (residual, "resnet", "residual: F(x) + x")):
    draw_curves(axes, f"{family}56", 56, 3, "s-")
    draw_curves(axes, f"{family}20", 20, 1, "o-")
    axes.set(ylim=(0.06, 130), xticks=range(1, EPOCHS + 1), xlabel="epoch", title=f"here: digits, {title}")
    axes.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="lower left")
plain.set_ylabel("training error (%)")
for family, style in (("plain", "s--"), ("residual", "o-")):
    imagenet.plot(IMAGENET[family].keys(), IMAGENET[family].values(), style, color="black", label=family)
imagenet.set(xticks=[18, 34], xlim=(14, 38), ylim=(24, 30), title="He et al. 2015, ImageNet")
imagenet.set(xlabel="layers", ylabel="top-1 error, 10 crops (%)")
imagenet.legend(loc="lower left")
cifar.plot(CIFAR10.keys(), CIFAR10.values(), "o-", color="black", label="residual")
cifar.set(xticks=list(CIFAR10), ylim=(6, 10), xlabel="layers", ylabel="test error (%)")
cifar.set_title("He et al. 2015, CIFAR-10")
cifar.annotate("plain, 110 layers: over 60 %", (110, 10), (45, 9.4), arrowprops={"arrowstyle": "->"})
cifar.legend(loc="lower left")
figure.savefig(figures / "06_degradation.png", dpi=90)

# %% [markdown]
# On the left the bold line hardly falls: plain-56 makes more than 5 times the errors of plain-20 (lines are medians
# of three seeds, bands their range). It is not overfitting, for it is worse on the very digits that it was trained
# on. The paper calls this degradation, and found it on CIFAR-10 (plain-56 above plain-20, on training and on test
# images) and on ImageNet (28.54% with 34 plain layers against 27.94% with 18).
#
# On the right the same layers with the skip: 56 of them do better than plain-20. ResNet-20 makes fewer than 2%
# errors already: these digits are too easy for more depth to be of use. On CIFAR-10 it was, from 8.75% with 20
# layers to 6.43% with 110.
#
# ## A deeper network contains the shallower one
#
# Does plain-56 lack the power? No: take the trained plain-20, and fill up each stage with blocks that do nothing. A
# 3x3 kernel with a single 1 in its middle copies its channel, batch norm with mean 0 and variance 1 keeps it, and
# ReLU keeps what an earlier ReLU left, for that is never negative.


# %%
def become_identity(block):
    """Set the weights of a plain block so that in evaluation mode it returns an input without negative values."""
    channels = block.conv1.weight.shape[0]
    copy = np.zeros((channels, channels, 3, 3))
    copy[range(channels), range(channels), 1, 1] = 1
    gamma = np.full(channels, math.sqrt(1 + block.bn1.eps))  # running mean and variance are 0 and 1 in a fresh block
    weights = {"conv1.weight": copy, "bn1.weight": gamma, "conv2.weight": copy, "bn2.weight": gamma}
    block.load_state_dict(weights, strict=False)


def answers(model):
    """The logits for all training digits, in evaluation mode."""
    model.eval()
    with minires.no_grad():
        logits = model(Tensor(data.train.images)).numpy()
    model.train()
    return logits


deep_plain = network("plain56", seed=0)
for stage in (deep_plain.layer1, deep_plain.layer2, deep_plain.layer3):
    for block in list(stage)[3:]:
        become_identity(block)
deep_plain.load_state_dict(trained["plain20", 0].state_dict(), strict=False)  # the first 3 blocks of each stage

wanted = answers(trained["plain20", 0])
plain_difference = np.abs(answers(deep_plain) - wanted).max() / np.abs(wanted).max()
print(f"plain-56 made from plain-20: largest difference in the logits {plain_difference:.0e} of the largest logit")
print(f"its training error {1 - evaluate(deep_plain, data.train).accuracy:.1%}, plain-56 as trained", end=" ")
print(f"{1 - evaluate(trained['plain56', 0], data.train).accuracy:.1%}")

# %% [markdown]
# There it is: a plain-56 that is as good as plain-20. Good weights exist, and gradient descent did not find them.
# Degradation is a trouble of optimisation, not of what the network can represent.
#
# Look at how much had to be set: every kernel to one exact pattern, every gamma to one value, and it holds in
# evaluation mode only (in training, batch norm normalises by the batch, and a copy is no longer a copy). In a
# residual block the identity is next door: set the last gamma of the block to zero, and relu(x + 0) = x, whatever
# the kernels are. That is what the option `zero_init_residual` does. (To see what becomes of the gradient at the
# addition, write it yourself: `minires exercise start residual_add`.)

# %%
deep_residual = network("resnet56", seed=0, zero_init_residual=True)
deep_residual.load_state_dict(trained["resnet20", 0].state_dict(), strict=False)
residual_equal = np.array_equal(answers(deep_residual), answers(trained["resnet20", 0]))
print(f"resnet-56 made from resnet-20: the same logits, bit for bit: {residual_equal}")

# %% [markdown]
# Bit for bit, with random kernels in all the blocks that were added.
#
# ## Gradients by depth
#
# Why does gradient descent fail? Take fresh networks, send one batch through, and measure the gradient on its way
# back. At each block: the norm of the loss's gradient with respect to the block's output (call it the signal), and
# with respect to the kernel of its first convolution. (By hand it is
# `minires exercise start basic_block_backward`.)
#
# **Question before you scroll on:** the first block of plain-110 is more than a hundred layers away from the loss.
# Is its signal much smaller than that of the last block, much larger, or about equal?

# %%
DEPTHS = (20, 56, 110)


def gradients_by_block(model, seed):
    """Norms of the gradient at each block's output, and at its first kernel, from the first block to the last."""
    images, labels = next(iter(DataLoader(data.train, batch_size=64, shuffle=True, seed=seed)))
    model.zero_grad()
    blocks = [*model.layer1, *model.layer2, *model.layer3]
    x = model.relu(model.bn1(model.conv1(images.double())))
    outputs = []
    for block in blocks:
        x = block(x)
        x.retain_grad()
        outputs.append(x)
    F.cross_entropy(model.fc(model.avgpool(x).flatten(1)), labels).backward()
    signals = [np.linalg.norm(output.grad.numpy()) for output in outputs]
    kernels = [np.linalg.norm(block.conv1.weight.grad.numpy()) for block in blocks]
    return np.array([signals, kernels])


def fresh(name, seed):
    return network(name, seed).double()  # float64: some of what follows is smaller than float32 can hold


def over_seeds(make, name):
    """The median of three seeds. Returns: signals and kernels, each (blocks,)."""
    return np.median([gradients_by_block(make(name, seed), seed) for seed in SEEDS], axis=0)


with_norm, ratio = {}, {}
print("first block over last     signal      kernel")
for family in ("plain", "resnet"):
    for depth in DEPTHS:
        name = f"{family}{depth}"
        with_norm[name] = over_seeds(fresh, name)
        ratio[name] = with_norm[name][:, 0] / with_norm[name][:, -1]  # (2,): of the signals, of the kernels
        print(f"{name:20} {ratio[name][0]:11.3g} {ratio[name][1]:11.3g}")

# %% [markdown]
# Much larger. In plain networks with batch norm the gradient grows by about the same factor a layer: more than 100
# times over 56 layers, more than 100,000 times over 110. With the skip it grows slowly: less than 100 times over
# 110 layers. "Without skips the gradients vanish", the usual explanation of ResNets, does not describe the plain
# networks that they were compared with: those had batch norm, and the paper says itself that they do not vanish
# there. (It calls their norms healthy; its plain ImageNet networks had at most 34 layers.)
#
# So where do gradients vanish? Take batch norm out of the plain network, and compare two initialisations of the
# kernels: Kaiming's, made for ReLU, and the default of `nn.Conv2d`, ours and PyTorch's, with a variance 6 times
# smaller.


# %%
def without_norm(name, seed):
    """A plain network whose batch norms do nothing, with Kaiming's initialisation."""
    model = fresh(name, seed)
    model.bn1 = nn.Identity()
    for block in [*model.layer1, *model.layer2, *model.layer3]:
        block.bn1, block.bn2 = nn.Identity(), nn.Identity()
    return model


def without_norm_default(name, seed):
    """The same with the default initialisation of Conv2d: variance 1/(3 fan_in), 6 times smaller than 2/fan_out."""
    model = without_norm(name, seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=np.random.default_rng([seed, 1]))
    return model


kaiming = over_seeds(without_norm, "plain110")
default = over_seeds(without_norm_default, "plain110")
vanished = {"Kaiming": kaiming[0, 0] / kaiming[0, -1], "default": default[0, 0] / default[0, -1]}
for name, value in vanished.items():
    print(f"plain-110 without batch norm, {name}: signal at the first block over the last {value:.0e}")
last_stage = (kaiming[0, 36] / kaiming[0, 53]) ** (1 / 34)  # blocks 36 to 53 see images of 2x2; 34 layers between them
print(f"with Kaiming, factor a layer in the last stage: {last_stage:.3f}; sqrt(4/9) = {math.sqrt(4 / 9):.3f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")


def draw_signal(axes, signals, style, label):
    """Signals over that of the last block, against the number of blocks between them."""
    before = np.arange(len(signals))[::-1]
    every = max(1, len(signals) // 8)
    axes.semilogy(before, signals / signals[-1], style, color="black", markevery=every, markersize=5, label=label)


for depth, style in ((110, "s-"), (56, "D-"), (20, "v-")):
    draw_signal(left, with_norm[f"plain{depth}"][0], style, f"plain-{depth}")
draw_signal(left, with_norm["resnet110"][0], "o--", "ResNet-110")
left.set(title="with batch norm", ylabel="gradient at a block, over that at the last", ylim=(0.3, 1e8))
draw_signal(right, kaiming[0], "s-", "plain-110, Kaiming")
draw_signal(right, default[0], "^--", "plain-110, default")
right.set(title="without batch norm")
for axes in (left, right):
    axes.set_xlabel("blocks before the last (the input is on the left)")
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
left.legend()
right.legend(loc="lower right")
figure.savefig(figures / "06_gradients.png", dpi=90)

# %% [markdown]
# On the left straight lines on a logarithmic scale, with one slope for three depths: exponential growth. On the
# right it vanishes: by more than a million times with Kaiming's initialisation, and the default makes it smaller
# than float32 can hold. (Kaiming's is meant to keep the signal's size, and does in the fully connected layers
# below. Here the padding eats it: in a 2x2 image only 4 of the 9 taps of a 3x3 kernel meet a pixel, and the norm is
# multiplied by sqrt(4/9) a layer.)
#
# **Question before you scroll on:** without batch norm the signal at the first block is more than a million times
# smaller than at the last. Is the gradient of its kernel, too?

# %%
kernel_ratio = {"Kaiming": kaiming[1, 0] / kaiming[1, -1], "default": default[1, 0] / default[1, -1]}
for name, values in (("Kaiming", kaiming[1]), ("default", default[1])):
    print(f"{name:8} kernel's gradient: first block {values[0]:.0e}, last block {values[-1]:.0e}")

# %% [markdown]
# It is not: first and last are less than a factor of 1,000 apart. A kernel's gradient is the signal that comes back
# times the input that came forwards, and the input shrinks on its way forwards as the signal does on its way back.
# All kernels have vanishing gradients, the last as much as the first. "The first layers learn slowly" is wrong for
# such a network too: none of its kernels has a gradient to learn from. (Exactly: multiply one layer of a ReLU
# network without biases by a number, and the output is multiplied by it, whichever layer it is. So the sum of w dw
# is the same for every layer.)
#
# ## Why batch norm makes them explode
#
# Three facts and one division. Let z be what a batch norm returns: mean 0 and variance 1 over the batch, and about
# normally distributed. After the ReLU:
#
#     mean of relu(z)^2 = 1/2      mean of relu(z) = 1/sqrt(2 pi)
#     variance of relu(z) = 1/2 - 1/(2 pi) = (pi - 1)/(2 pi)
#
# Forwards: a layer with random weights of variance s^2/n makes an output of it whose variance over the batch is s^2
# times that. (The mean is the same for all images, so it only moves all outputs, and batch norm takes that away.)
# Batch norm divides by the root of that variance.
#
# Backwards: batch norm divides the gradient by the same root (`batch_norm_backward` in
# `minires/kernels/fast/batch_norm.py`, its last step); the layer multiplies its norm by s; the ReLU lets half of the
# entries pass, which multiplies the norm by sqrt(1/2). Together
#
#     s sqrt(1/2) / (s sqrt((pi - 1)/(2 pi))) = sqrt(pi / (pi - 1))
#
# a layer: more than 1, since the variance that batch norm sees is less than the half that the ReLU lets pass. And s
# is gone: no variance of the weights helps (Yang et al. 2019). Without batch norm the factor is s sqrt(1/2): it is 1
# for Kaiming's s^2 = 2, which was made for it, and sqrt(1/2) for s^2 = 1. Try all of it on 50 wide layers.

# %%
LAYERS, UNITS = 50, 128  # and as many images as units


def signals_back(s_squared, norm, seed):
    """Norms of the gradient before each fully connected layer and after the last, for a random upstream one."""
    rng = np.random.default_rng(seed)
    x = Tensor(rng.standard_normal((UNITS, UNITS)), requires_grad=True)
    states = [x]
    for _ in range(LAYERS):
        weight = Tensor(rng.standard_normal((UNITS, UNITS)) * math.sqrt(s_squared / UNITS))
        x = F.linear(x, weight)
        if norm:
            x = F.batch_norm(x, None, None, training=True)
        x = F.relu(x)
        x.retain_grad()
        states.append(x)
    x.backward(rng.standard_normal(x.shape))
    return np.array([np.linalg.norm(state.grad.numpy()) for state in states])


z = np.maximum(np.random.default_rng(0).standard_normal(1_000_000), 0)
print(f"relu(z): mean of squares {np.mean(z**2):.3f}, derived 0.5; variance {z.var():.3f}", end=", ")
print(f"derived {(math.pi - 1) / (2 * math.pi):.3f}")
explosion = math.sqrt(math.pi / (math.pi - 1))
cases = [  # s^2, batch norm, style, the derived factor
    (2, True, "s-", explosion),
    (0.1, True, "x:", explosion),
    (2, False, "o--", 1.0),
    (1, False, "^-.", math.sqrt(1 / 2)),
]
factors = {}
figure, axes = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
for s_squared, norm, style, theory in cases:
    what = f"{'batch norm' if norm else 'no batch norm'}, s^2 = {s_squared}"
    signals = np.median([signals_back(s_squared, norm, seed) for seed in SEEDS], axis=0)
    factor = (signals[0] / signals[-1]) ** (1 / LAYERS)
    factors[what] = factor / theory
    print(f"{what:26} factor a layer {factor:.3f}, derived {theory:.3f}")
    back = np.arange(LAYERS + 1)[::-1]
    axes.semilogy(
        back,
        signals / signals[-1],
        style,
        color="black",
        markevery=5,
        markerfacecolor="none",
        markersize=7,
        linewidth=1,
        label=what,
    )
    axes.semilogy(back, theory**back, color="gray", linewidth=3, alpha=0.4)
axes.plot([], [], color="gray", linewidth=3, alpha=0.4, label="as derived")
axes.set(xlabel="layers back from the output", ylabel="gradient, over that at the output")
axes.set_title(f"{LAYERS} fully connected layers")
axes.legend()
axes.grid(alpha=0.3)
figure.savefig(figures / "06_factor.png", dpi=90)

per_layer = ratio["plain110"][0] ** (1 / 106)  # 106 layers lie between the outputs of the first and the last block
print(f"the same factor in plain-110: {per_layer:.3f}")

# %% [markdown]
# The derived factors hold to within 3%. In the convolutional plain-110 the factor is somewhat smaller, but between
# 1.1 and 1.25: it has few channels, its pixels are not independent, and its images are padded.
#
# ## Is that why plain-56 does not learn?
#
# It sounds plausible. Test it. First: what does such a gradient do to a kernel? Compare the step of the first
# kernel with the kernel's length, in the fresh network and after the 8 epochs.


# %%
def step_share(model, block, seed):
    """The length of a step (the rate times the gradient) over that of the block's first kernel, and the latter."""
    gradients_by_block(model, seed)
    kernel = block.conv1.weight
    length = np.linalg.norm(kernel.detach().numpy())
    return RATE * np.linalg.norm(kernel.grad.numpy()) / length, length


first_steps, first_lengths = {}, {}
for name in ("plain56", "resnet56"):
    for state in ("fresh", "trained"):
        measured = []  # of each seed: share and length of the first block's kernel, and of the last block's
        for seed in SEEDS:
            model = fresh(name, seed) if state == "fresh" else trained[name, seed].double()
            measured.append([*step_share(model, model.layer1[0], seed), *step_share(model, model.layer3[-1], seed)])
        first, first_length, last, last_length = np.median(measured, axis=0)
        first_steps[name, state], first_lengths[name, state] = first, first_length
        print(f"{name:8} {state:7} step over length of the kernel: first block {first:.1g}, last {last:.1g};", end=" ")
        print(f"lengths {first_length:.0f} and {last_length:.0f}")

# %% [markdown]
# The first step of plain-56 is longer than the first kernel itself, and throws it anywhere. Batch norm does not
# mind the length of the kernel before it: the outputs stay the same, so the gradient is at right angles to the
# kernel, and a step along it can only lengthen that; and the longer the kernel, the smaller its gradient. It ends
# up more than 10 times as long as it was, and hardly moves any more: a step is less than a thousandth of it
# (0.001). First thrown, then frozen. (Yang et al. saw a part of this: after a single step the gradients are of far
# less different sizes. Whoever measures only now may find small ones at the front, and say "vanished".)
#
# Is it the cause? Then steps of equal size should be a cure: scale every gradient so that each weight matrix
# changes by one hundredth (0.01) of its length a step, before momentum, whatever the gradient's own size. (You et
# al. 2017 made an optimiser of the idea, LARS.)


# %%
def train_with_equal_steps(name, seed=0, share=0.01, epochs=5):
    """Training where each kernel's step is the same share of its length. Returns: the error in the last epoch."""
    model = network(name, seed)
    loader = DataLoader(data.train, batch_size=64, shuffle=True, seed=seed)
    optimizer = SGD(model.parameters(), lr=share, momentum=0.9)
    for _ in tqdm(range(epochs), unit="epoch", desc=f"{name}, equal steps"):
        wrong = 0
        for images, labels in loader:
            optimizer.zero_grad()
            logits = model(images)
            F.cross_entropy(logits, labels).backward()
            for parameter in model.parameters():
                if parameter.ndim > 1:  # kernels and the matrix of the last layer
                    length = np.linalg.norm(parameter.detach().numpy())
                    parameter.grad *= length / np.linalg.norm(parameter.grad.numpy())
            optimizer.step()
            wrong += int((logits.detach().argmax(dim=1) != labels).sum().item())
    return wrong / len(data.train)


equal_steps = {name: train_with_equal_steps(name) for name in ("plain20", "plain56")}
print("equal steps, wrong in the last epoch:", ", ".join(f"{name} {error:.1%}" for name, error in equal_steps.items()))

# %% [markdown]
# Equal steps train plain-20 (to fewer than 20% errors in 5 epochs), and plain-56 still makes more than 3 times its
# errors. (One seed and one share: a test, not a proof. Yang et al. do take the explosion for the cause.) So the sizes
# of the gradients are hardly the whole reason: "they explode" is true, and does not explain enough. Another candidate
# is their direction: in a deep plain network the gradients at two neighbouring inputs have almost nothing to do with
# each other (Balduzzi et al. 2017).
# `tutorials/10_what_the_network_does.py` measures that, and `tutorials/07_residual_block_in_detail.py` looks at the
# one line that mends it: read `residual_add_backward` in `minires/kernels/residual.py`.
#
# Try more: other seeds (with some, ResNet-56 starts slowly at this rate; the paper gave its 110 layers a smaller
# one for the first steps), warm-up, a smaller rate for plain-56, the widths of the paper. The claims of this
# lesson, for its three seeds:

# %%
# Degradation: not overfitting, not a lack of power.
assert last_epoch["plain56"] > 5 * last_epoch["plain20"] and judged["plain56"] > judged["plain20"]
assert last_epoch["resnet56"] < last_epoch["plain20"] and last_epoch["resnet20"] < 0.02
assert plain_difference < 1e-4 and residual_equal
# With batch norm gradients explode, and with the skip they do not: signals and kernels.
assert ratio["plain56"].min() > 100 and ratio["plain110"].min() > 100_000
assert ratio["resnet110"].max() < 100
assert all(abs(measured_over_derived - 1) < 0.03 for measured_over_derived in factors.values())
assert 1.1 < per_layer < 1.25
# Without batch norm the signal vanishes by the initialisation, and the kernels' gradients all alike.
assert vanished["Kaiming"] < 1 / 1_000_000 and vanished["default"] < np.finfo(np.float32).smallest_subnormal
assert abs(last_stage / math.sqrt(4 / 9) - 1) < 0.05
assert all(1 / 1_000 < value < 1_000 for value in kernel_ratio.values())
# Thrown, then frozen; and equal steps are no cure.
assert first_steps["plain56", "fresh"] > 1 and first_steps["plain56", "trained"] < 0.001
assert first_lengths["plain56", "trained"] > 10 * first_lengths["plain56", "fresh"]
assert equal_steps["plain20"] < 0.2 and equal_steps["plain56"] > 3 * equal_steps["plain20"]
