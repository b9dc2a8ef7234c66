# %% [markdown]
# # ReLU, pooling, softmax and cross entropy
#
# You need: NumPy, the chain rule, and what a gradient check is (`tutorials/02_checking_gradients.py`). It takes less
# than a minute on two cores.
#
# Between the convolutions stand small functions that look too simple to go wrong: a maximum with 0, a maximum over a
# window, an average. At the end stand softmax and cross entropy, which look harder and have the simplest gradient of
# all. Each has one or two things to know that cost hours when one does not, and some have explanations that do not
# hold. In the end a small classifier uses all of them, and you read off what it gets wrong, and how surely.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import minires.functional as F
import numpy as np
from threadpoolctl import threadpool_limits

import minires
from minires import Tensor, kernels, nn, plots
from minires.data import ArrayDataset, DataLoader, digits
from minires.gradcheck import check_kernel
from minires.optim import SGD
from minires.train.recipes import TrainOptions
from minires.train.training import evaluate, fit

threadpool_limits(1)  # these matrix products are too small for more threads
figures = Path(__file__).parent / "figures" if "__file__" in globals() else Path("figures")
figures.mkdir(exist_ok=True)
data = digits()


def central_differences(f, x, dy, step=1e-6):
    """The gradient of sum(dy * f(x)), one number of x at a time."""
    numeric = np.empty_like(x)
    for index in np.ndindex(*x.shape):
        sums = []
        for sign in (1, -1):
            nudged = x.copy()
            nudged[index] += sign * step
            sums.append((dy * f(nudged)).sum())
        numeric[index] = (sums[0] - sums[1]) / (2 * step)
    return numeric


# %% [markdown]
# ## ReLU
#
#     y = max(x, 0)        dx = dy where x > 0, and 0 elsewhere
#
# The backward is a mask. The kernel takes it from the output, which is positive exactly where the input is: the next
# layer keeps that array anyway, so ReLU needs no memory of its own. Read `relu_backward` in
# `minires/kernels/residual.py`: it is one line. (To write it: `minires exercise start relu`.)
#
# **Question before you scroll on:** what is the derivative at exactly 0, and what do central differences say there?

# %%
rng = np.random.default_rng(0)
x = np.array([-2.0, -0.5, 0.0, 0.5, 2.0])
dy = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
y, cache = kernels.relu_forward(x)
dx = kernels.relu_backward(dy, cache)


def relu(x):
    return kernels.relu_forward(x)[0]


relu_numeric = central_differences(relu, x, dy)
print("x                   ", x)
print("dy                  ", dy)
print("dx by the kernel    ", dx)
print("central differences ", relu_numeric.round(6))

# %% [markdown]
# There is none: the slope is 0 on the left and 1 on the right. Central differences average the two, 0.5, and that is an
# artefact. Any number between would do in theory, and the convention is 0, as in PyTorch. The checker of MiniRes
# notices such a kink and accepts what lies between the two sides.
#
# ### Dead units
#
# Where a unit's input is negative for every image, its gradient is exactly 0 for every image: it is dead, and no
# gradient will wake it. Train a small network, gently and much too fast, and count the hidden units that are 0 on all
# training digits. Then go on with the second one, gently.


# %%
def two_layers(seed):
    generator = np.random.default_rng(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64, generator=generator), nn.ReLU(), nn.Linear(64, 10, generator=generator)
    )


def descend(net, lr, epochs):
    optimizer = SGD(net.parameters(), lr=lr, momentum=0.9)
    loader = DataLoader(data.train, 64, shuffle=True, seed=0)
    for images, labels in [batch for epoch in range(epochs) for batch in loader]:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()


def dead_units(net):
    """Which hidden units are 0 for every training image."""
    with minires.no_grad():
        hidden = net[:3](Tensor(data.train.images)).numpy()  # (1437, 64)
    return (hidden == 0).all(axis=0)


gentle, rough = two_layers(seed=0), two_layers(seed=0)
descend(gentle, lr=0.1, epochs=3)
descend(rough, lr=1.0, epochs=3)
dead_gentle, dead_rough = dead_units(gentle), dead_units(rough)
weights_before = rough[1].weight.detach().numpy()[dead_rough].copy()
accuracy_rough = evaluate(rough, data.test).accuracy
descend(rough, lr=0.05, epochs=3)
still_dead = dead_units(rough)
unmoved = np.array_equal(weights_before, rough[1].weight.detach().numpy()[dead_rough])
print(f"dead units: learning rate 0.1 {dead_gentle.mean():.0%}, learning rate 1.0 {dead_rough.mean():.0%}")
print(f"after three more epochs at 0.05: {still_dead.mean():.0%}, their weights moved: {not unmoved}")
print(
    f"test accuracy: gentle {evaluate(gentle, data.test).accuracy:.0%}, rough {accuracy_rough:.0%}, and after its "
    f"gentle epochs {evaluate(rough, data.test).accuracy:.0%}"
)

# %% [markdown]
# Not a bit of the dead units' weights has moved. One large step that pushes a unit below 0 for all images is enough.
# (In a deeper layer a unit may come back, because its inputs still change; and weight decay shrinks its bias too. In a
# ResNet a batch norm stands before the ReLU inside a block: no step of the weights before it can push a channel below 0
# for all images, only its own gamma and beta can.)
#
# ## Where the 2 in Kaiming's rule comes from
#
# A layer z = W y adds up fan_in products. With independent weights of mean 0:
#
#     mean(z^2) = fan_in var(W) mean(y^2)
#
# ReLU throws half of z away: z is symmetric about 0, so mean(y^2) = mean(z^2) / 2 behind it. Together, one layer
# multiplies mean(z^2) by fan_in var(W) / 2, and it stays what it was if var(W) = 2 / fan_in (He et al. 2015: the paper
# before the one on residual networks). Written with a gain, std(W) = gain / sqrt(fan_in): the factor a layer on the
# spread of z is gain / sqrt(2).

# %%
DEPTH, WIDTH = 24, 512


def spread_by_depth(gain, seed=0):
    """The standard deviation of z at each of DEPTH layers."""
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((64, WIDTH))  # 64 inputs
    spreads = []
    for _ in range(DEPTH):
        w = gain / np.sqrt(WIDTH) * rng.standard_normal((WIDTH, WIDTH))
        z = y @ w
        spreads.append(z.std())
        y, _ = kernels.relu_forward(z)
    return np.array(spreads)


gains = {"2": 2.0, "sqrt(2), Kaiming": np.sqrt(2), "1": 1.0, "1 / sqrt(3), nn.Linear": 1 / np.sqrt(3)}
spreads = {name: spread_by_depth(gain) for name, gain in gains.items()}
factors = {name: (values[-1] / values[3]) ** (1 / (DEPTH - 4)) for name, values in spreads.items()}
for name, gain in gains.items():
    print(
        f"gain {name:22}: factor a layer {factors[name]:.3f}, gain / sqrt(2) = {gain / np.sqrt(2):.3f}, "
        f"spread of layer {DEPTH}: {spreads[name][-1]:.1e}"
    )

figure, axes = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
for (name, values), style in zip(spreads.items(), ("^-.", "o-", "s--", "v:"), strict=True):
    axes.semilogy(range(1, DEPTH + 1), values, style, markersize=4, label=f"gain {name}")
axes.set(xlabel="layer", ylabel="standard deviation of z", title="linear layers with ReLU, before training")
axes.legend(fontsize=8, loc="lower left")
figure.savefig(figures / "05_spread_by_depth.png", dpi=80)

# %% [markdown]
# Straight lines on a logarithmic axis: exponential in depth, up or down, except for one gain. The lowest line is what
# `nn.Linear` and `nn.Conv2d` draw by default, in PyTorch too (uniform within 1 / sqrt(fan_in) is a gain of
# 1 / sqrt(3)): fine for a few layers, not for 24 without a batch norm. The networks of MiniRes draw their convolutions
# by `kaiming_normal_` in `minires/nn/init.py`, with fan_out in place of fan_in, which does for the gradients on their
# way back what fan_in does for the signal.
#
# ## Max pooling
#
# The largest value of each window. Its gradient goes to the pixel that was the largest, and to no other. Where several
# tie, somebody must get it: the first in row-major order, as in PyTorch. Windows that overlap may name the same pixel,
# and then it gets the sum. `max_pool2d_backward` in `minires/kernels/pooling.py` says so window by window: `argmax`
# takes the first of equals, and `+=` adds up. (What runs by default, in `minires/kernels/fast/pooling.py`, goes through
# the places of the window instead, all windows at once.)

# %%
image = np.array([[1, 1, 0, 2], [1, 0, 3, 2], [0, 5, 0, 0], [4, 5, 0, 0]], np.float64)[None, None]
pooled, pool_cache = kernels.max_pool2d_forward(image, kernel_size=2)
print("image:", *image[0, 0], "maxima:", *pooled[0, 0], sep="\n")
print("gradient of dy = 10, 20, 30, 40:")
print(kernels.max_pool2d_backward(np.array([[10.0, 20], [30, 40]])[None, None], pool_cache)[0, 0])

# %% [markdown]
# Where the window hangs over the border, as in the stem of a ResNet (3x3, stride 2, padding 1), it has only its pixels
# inside the image: the padding never wins, as if it were minus infinity. With zeros for padding a border of negative
# values would be replaced by 0. Behind a ReLU nobody would notice, and elsewhere everybody should.

# %%
negative = -1 - rng.random((1, 1, 4, 4))
framed, _ = kernels.max_pool2d_forward(negative, kernel_size=3, stride=2, padding=1)
with_zeros, _ = kernels.max_pool2d_forward(np.pad(negative, ((0, 0), (0, 0), (1, 1), (1, 1))), kernel_size=3, stride=2)
print(f"maximum of negative pixels: padding left out {framed.max():.2f}, padding with zeros {with_zeros.max():.2f}")

# %% [markdown]
# ## Average pooling, and the global average
#
# An average hands each pixel of its window an equal share of dy. At the border there is a choice: divide by the size
# of the window, padding included (the default, `count_include_pad=True`), or by the number of real pixels.

# %%
ones = np.ones((1, 1, 4, 4))
counted, _ = kernels.avg_pool2d_forward(ones, kernel_size=3, stride=2, padding=1)
not_counted, _ = kernels.avg_pool2d_forward(ones, kernel_size=3, stride=2, padding=1, count_include_pad=False)
print("average of ones in the corner: padding counted", counted[0, 0, 0, 0].round(3), "not", not_counted[0, 0, 0, 0])

# %% [markdown]
# A ResNet ends with the average over the whole map, one number a channel: `global_avg_pool_forward` in
# `minires/kernels/pooling.py`. Two things follow. The linear layer behind it is small: for ResNet-18 it has 512 inputs,
# where the flattened map would have 512 times 7x7. And the network takes any image size, since the number of channels
# does not depend on it.

# %%
FEATURES, SIDE, CLASSES = 512, 7, 1000
with_average, with_flatten = FEATURES * CLASSES, FEATURES * SIDE**2 * CLASSES
print(f"weights of ResNet-18's last layer: {with_average:,}; behind a flattened map: {with_flatten:,}")
resnet = minires.create_model("resnet8", in_channels=1, width=8)
sizes = (8, 13, 32)
with minires.no_grad():
    shapes = [resnet(Tensor(np.zeros((2, 1, size, size), np.float32))).shape for size in sizes]
for size, shape in zip(sizes, shapes, strict=True):
    print(f"the same ResNet-8 on images of {size}x{size}: {shape}")

# %% [markdown]
# Where do the gradients go? One image, a random dy, three poolings. (`minires exercise start max_pool` and
# `minires exercise start global_avg_pool` are about these kernels.)

# %%
picture = rng.standard_normal((1, 1, 6, 6)).round(1)
upstream = rng.uniform(0.5, 2.0, (1, 1, 3, 3)).round(1)
_, max_cache = kernels.max_pool2d_forward(picture, kernel_size=2)
_, overlapping_cache = kernels.max_pool2d_forward(picture, kernel_size=3, stride=2, padding=1)
_, avg_cache = kernels.avg_pool2d_forward(picture, kernel_size=2)
_, global_cache = kernels.global_avg_pool_forward(picture)
maps = {
    "the image": picture,
    "max, 2x2": kernels.max_pool2d_backward(upstream, max_cache),
    "max, 3x3, stride 2": kernels.max_pool2d_backward(upstream, overlapping_cache),
    "average, 2x2": kernels.avg_pool2d_backward(upstream, avg_cache),
    "global average": kernels.global_avg_pool_backward(upstream.sum(axis=(2, 3), keepdims=True), global_cache),
}
receivers = {name: int((values != 0).sum()) for name, values in maps.items()}
totals = {name: float(values.sum()) for name, values in maps.items()}
for name in list(maps)[1:]:
    print(f"{name:20} reaches {receivers[name]:2} of 36 pixels, {totals[name]:.1f} in all")

figure, panels = plt.subplots(1, 5, figsize=(12, 2.9), layout="constrained")
for axes, (name, values) in zip(panels, maps.items(), strict=True):
    axes.imshow(values[0, 0], cmap="Greys", vmin=values.min(), vmax=max(2 * values.max(), 1))
    for h, w in np.ndindex(6, 6):
        axes.text(w, h, f"{values[0, 0, h, w]:.2g}", ha="center", va="center", fontsize=7)
    axes.set(title=name if name == "the image" else f"gradient: {name}", xticks=[], yticks=[])
    axes.title.set_fontsize(9)
    if "2x2" in name or name == "the image":
        axes.set_xticks([1.5, 3.5], ["", ""])
        axes.set_yticks([1.5, 3.5], ["", ""])
        axes.grid(color="black", linewidth=1)
        axes.tick_params(length=0)
figure.savefig(figures / "05_where_gradients_go.png", dpi=80)

# %% [markdown]
# All four pass on the whole of dy here; they differ in who gets it. The checker goes over the shipped kernels, with
# random dy, overlapping windows and padding:

# %%
KINDS = ("relu", "max_pool2d", "avg_pool2d", "global_avg_pool", "softmax", "cross_entropy")
passed = {}
for kind in KINDS:
    passed[kind] = check_kernel(getattr(kernels, f"{kind}_forward"), getattr(kernels, f"{kind}_backward"), kind=kind).ok
print("check_kernel:", ", ".join(f"{kind} {'pass' if ok else 'FAIL'}" for kind, ok in passed.items()))

# %% [markdown]
# ## Softmax
#
#     p_i = exp(z_i) / sum over j of exp(z_j)
#
# Taken literally this overflows: exp of 89 is already too large for float32. But p does not change when a constant is
# added to all z, so subtract the largest z first: then the largest exponential is 1, and the others can only underflow
# to 0, which is harmless.


# %%
def softmax_naive(z):
    e = np.exp(z)
    return e / e.sum(axis=-1, keepdims=True)


large = np.array([[1000.0, 999.0, 0.0]])
with np.errstate(over="ignore", invalid="ignore"):
    naive = softmax_naive(large)
    overflow32 = np.exp(np.float32(89))
stable, _ = kernels.softmax_forward(large)
print("exp(89) in float32:", overflow32)
print("softmax of 1000, 999, 0: naive", naive[0], "stable", stable[0].round(4))

# %% [markdown]
# Its derivative is a matrix, since every p depends on every z:
#
#     dp_i / dz_j = p_i (delta_ij - p_j)         the matrix diag(p) - p p^T
#
# Each column sums to 0, because the p always sum to 1: what one gains the others lose. So, like batch norm, softmax
# gives 0 for a dy of ones, and hides every mistake from a gradient check that sums its outputs.

# %%
z = rng.standard_normal((1, 4))
p, softmax_cache = kernels.softmax_forward(z)
jacobian = np.diag(p[0]) - np.outer(p[0], p[0])
dy = rng.standard_normal((1, 4))
softmax_difference = np.abs(dy @ jacobian - kernels.softmax_backward(dy, softmax_cache)).max()


def softmax(z):
    return kernels.softmax_forward(z)[0]


numeric = central_differences(softmax, z, dy)
numeric_difference = np.abs(dy @ jacobian - numeric).max()
of_ones = np.abs(kernels.softmax_backward(np.ones((1, 4)), softmax_cache)).max()
print(f"matrix against kernel {softmax_difference:.1e}, against central differences {numeric_difference:.1e}")
print(f"sums of the columns: {np.abs(jacobian.sum(axis=0)).max():.1e}, gradient of a dy of ones: {of_ones:.1e}")

# %% [markdown]
# ## Cross entropy
#
# The loss of one image is minus the logarithm of the probability of the right class, t:
#
#     loss = -log p_t = log(sum of exp(z_j)) - z_t
#
# The first part has a name, log-sum-exp: a soft maximum, never below the largest z and never more than ln C above it
# (C classes). Its slope by z_i is p_i, the softmax. The slope of the second part is 1 at t and 0 elsewhere. So,
# averaged over N images,
#
#     dz = (softmax(z) - onehot) / N
#
# The logarithm and the exponential have cancelled. A gradient entry lies between -1/N and 1/N whatever the logits are,
# and each row sums to 0.


# %%
def log_sum_exp(z):
    """Shapes: z (N, C) -> (N, 1)."""
    largest = z.max(axis=1, keepdims=True)
    return largest + np.log(np.exp(z - largest).sum(axis=1, keepdims=True))


N, C = 5, 10
logits = 3 * rng.standard_normal((N, C))
labels = rng.integers(0, C, N)
onehot = np.eye(C)[labels]
by_hand = (log_sum_exp(logits)[:, 0] - logits[np.arange(N), labels]).mean()
loss, loss_cache = kernels.cross_entropy_forward(logits, labels)
dz_by_hand = (kernels.softmax_forward(logits)[0] - onehot) / N
dz = kernels.cross_entropy_backward(np.array(1.0), loss_cache)[0]


def cross_entropy(z):
    return kernels.cross_entropy_forward(z, labels)[0]


numeric = central_differences(cross_entropy, logits, 1.0)
gap = log_sum_exp(logits)[:, 0] - logits.max(axis=1)
print(f"loss by hand {by_hand:.6f}, by the kernel {loss:.6f}")
dz_difference, dz_numeric = np.abs(dz_by_hand - dz).max(), np.abs(dz - numeric).max()
print(f"gradient: by hand against the kernel {dz_difference:.1e}, against central differences {dz_numeric:.1e}")
print(f"log-sum-exp above the maximum: {gap.min():.2f} to {gap.max():.2f}; ln {C} = {np.log(C):.2f}")

# %% [markdown]
# This is `cross_entropy_backward` in `minires/kernels/loss.py`, with two additions. To write all of it yourself:
# `minires exercise start softmax_cross_entropy`.
#
# Label smoothing takes a share s of the target from the right class and spreads it over all C. The gradient is the
# softmax less this target, and it is 0 at a finite margin: ln(1 + C (1 - s) / s). Without smoothing the loss wants the
# margin to be infinite.
#
# `ignore_index` marks labels that do not count: no loss, no gradient, and the mean is over the others.

# %%
SMOOTHING = 0.1
best_margin = np.log(1 + C * (1 - SMOOTHING) / SMOOTHING)
at_rest = np.zeros((1, C))
at_rest[0, 3] = best_margin
_, rest_cache = kernels.cross_entropy_forward(at_rest, np.array([3]), label_smoothing=SMOOTHING)
rest_gradient = np.abs(kernels.cross_entropy_backward(np.array(1.0), rest_cache)[0]).max()
print(f"label smoothing {SMOOTHING}: the gradient at a margin of {best_margin:.2f} is {rest_gradient:.1e}")

some = labels.copy()
some[1] = -100
ignoring, ignoring_cache = kernels.cross_entropy_forward(logits, some, ignore_index=-100)
without, _ = kernels.cross_entropy_forward(np.delete(logits, 1, axis=0), np.delete(labels, 1))
ignored_gradient = np.abs(kernels.cross_entropy_backward(np.array(1.0), ignoring_cache)[0][1]).max()
print(f"one of {N} ignored: loss {ignoring:.6f}, of the others alone {without:.6f}, its gradient {ignored_gradient}")

# %% [markdown]
# A number to know: small logits mean p = 1/C for every class, and a loss of ln C. With ten classes a fresh network
# should start at 2.30; if it starts much higher, its logits are large, and it begins by being sure of nonsense.

# %%
starts = {}
batch, batch_labels = Tensor(data.train.images[:256]), Tensor(data.train.labels[:256])
for factor in (0.0, 1.0, 10.0, 100.0):
    net = two_layers(seed=1)
    for parameter in net[3].parameters():
        parameter.array[...] *= factor
    with minires.no_grad():
        starts[factor] = F.cross_entropy(net(batch), batch_labels).item()
print(f"ln 10 = {np.log(10):.2f}; loss at start, last layer's parameters times", end=" ")
print(", ".join(f"{factor:g}: {value:.2f}" for factor, value in starts.items()))

# %% [markdown]
# ### Together, not apart
#
# **Question before you scroll on:** softmax is stable now, and the logarithm is exact. Why must `cross_entropy` be one
# operation, and not `-log(softmax(z))[t]`?
#
# Because in between stands a probability in float32, and that cannot say what it has to. Where the network is very
# wrong, p rounds to 0, its logarithm is minus infinity, and the gradient is 0 times infinity. (Where the network is
# very right, p rounds to 1 and both ways say that the loss is 0. There nothing is lost that anybody would miss.)


# %%
def apart(logits, label):
    """Loss and gradient by softmax, then log."""
    z = Tensor(np.array([logits], np.float32), requires_grad=True)
    loss = -F.softmax(z, dim=1).log()[0, label]
    loss.backward()
    return loss.item(), z.grad.numpy()[0]


def together(logits, label):
    z = Tensor(np.array([logits], np.float32), requires_grad=True)
    loss = F.cross_entropy(z, np.array([label]))
    loss.backward()
    return loss.item(), z.grad.numpy()[0]


with np.errstate(all="ignore"):
    wrong_apart, right_apart = apart([0, 120], label=0), apart([20, 0], label=0)
wrong_together, right_together = together([0, 120], label=0), together([20, 0], label=0)
print("very wrong (margin -120): apart", *wrong_apart, " together", *wrong_together)
print("very right (margin 20):   apart", *right_apart, " together", *right_together)

# %% [markdown]
# ### The loss by margin
#
# With two classes everything depends on the margin m = z_right - z_wrong: p = 1 / (1 + exp(-m)), the loss is
# ln(1 + exp(-m)), and its slope is p - 1. A mistake, however large, pulls with a force of nearly 1. Compare the
# squared error of the probability, (1 - p)^2: its slope has p (1 - p) as a factor, from the softmax, and it vanishes
# where the network is sure and wrong. It learns next to nothing from its worst mistakes.
#
# Dividing the logits by a temperature T before the softmax stretches this axis. It changes every probability and no
# answer.

# %%
margins = np.linspace(-10, 10, 201)
pairs = np.stack([margins, 0 * margins], axis=1)  # logits of the right and the wrong class
p_right = kernels.softmax_forward(pairs)[0][:, 0]
losses, margin_cache = kernels.cross_entropy_forward(pairs, np.zeros(201, int), reduction="none")
slopes = kernels.cross_entropy_backward(np.ones(201), margin_cache)[0][:, 0]
squared, squared_slopes = (1 - p_right) ** 2, -2 * (1 - p_right) * p_right * (1 - p_right)
print(f"slope at a margin of {margins[0]:g}: cross entropy {slopes[0]:.5f}, squared error {squared_slopes[0]:.5f}")

scores = np.array([2.0, 1.0, 0.0, -1.0])
tempered = {T: kernels.softmax_forward(scores / T)[0] for T in (0.25, 1, 4)}
entropies = {T: float(-(p * np.log(p)).sum()) for T, p in tempered.items()}
print("entropy by temperature:", ", ".join(f"T = {T}: {entropy:.2f}" for T, entropy in entropies.items()))

figure, panels = plt.subplots(1, 3, figsize=(11.5, 3.3), layout="constrained")
panels[0].plot(margins, losses, "-", color="tab:blue", label="cross entropy")
panels[0].plot(margins, squared, "--", color="tab:red", label="squared error of p")
panels[0].set(xlabel="margin", ylabel="loss")
panels[1].plot(margins, slopes, "-", color="tab:blue", label="cross entropy: p - 1")
panels[1].plot(margins, squared_slopes, "--", color="tab:red", label="squared error of p")
panels[1].set(xlabel="margin", ylabel="slope of the loss")
for k, (T, probabilities) in enumerate(tempered.items()):
    places = np.arange(4) + 0.27 * (k - 1)
    panels[2].bar(places, probabilities, 0.25, label=f"T = {T}", hatch=("", "//", "..")[k], edgecolor="black")
panels[2].set(xlabel="logit", ylabel="probability")
panels[2].set_xticks(range(4), [f"{score:g}" for score in scores])
for axes in panels:
    axes.legend(fontsize=8)
figure.savefig(figures / "05_loss_by_margin.png", dpi=80)

# %% [markdown]
# ## A classifier of all these parts
#
# Two convolutions without bias, each with ReLU and max pooling, the global average, a linear layer, cross entropy. The
# digits stand in the middle of an empty frame of 16x16 pixels, and background is 0, so that we can move them about
# without losing anything. Kaiming's rule for the convolutions.

# %%
FRAME, MARGIN = 16, 4


def framed_digits(dataset):
    """8x8 digits in the middle of frames of 16x16; the background is 0."""
    frames = np.zeros((len(dataset), 1, FRAME, FRAME), np.float32)
    frames[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN] = dataset.images - dataset.images.min()
    return ArrayDataset(frames, dataset.labels)


class Classifier(nn.Module):
    def __init__(self, seed):
        super().__init__()
        generator = np.random.default_rng(seed)
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False, generator=generator)
        self.conv2 = nn.Conv2d(8, 32, 3, padding=1, bias=False, generator=generator)
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu", generator=generator)
        self.fc = nn.Linear(32, 10, generator=generator)

    def first_maps(self, x):
        return F.max_pool2d(F.relu(self.conv1(x)), 2)

    def forward(self, x):
        out = F.max_pool2d(F.relu(self.conv2(self.first_maps(x))), 2)
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))


train_set, test_set = framed_digits(data.train), framed_digits(data.test)
classifier = Classifier(seed=0)
score = fit(classifier, train_set, test_set, TrainOptions(epochs=8, batch_size=32, lr=0.1, schedule="cosine"))
print(f"test accuracy {score.accuracy:.1%}")

# %% [markdown]
# ### "Max pooling makes a network invariant to translation"
#
# One reads it often. Move every test digit sideways, pixel by pixel: nothing of it is lost, and a reader would not
# even notice.


# %%
def probabilities_of(images, network):
    with minires.no_grad():
        return F.softmax(network(Tensor(np.ascontiguousarray(images))), dim=1).numpy()


def right_and_sure(images, network):
    """The share of right answers, and the mean probability of the answers given."""
    p = probabilities_of(images, network)
    return float((p.argmax(axis=1) == test_set.labels).mean()), float(p.max(axis=1).mean())


moves = range(-MARGIN, MARGIN + 1)
accuracy_moved = {d: right_and_sure(np.roll(test_set.images, d, axis=3), classifier)[0] for d in moves}
print("accuracy by pixels moved:", ", ".join(f"{d}: {value:.0%}" for d, value in accuracy_moved.items()))

with minires.no_grad():
    still = classifier.first_maps(Tensor(test_set.images)).numpy()  # (360, 8, 8, 8)
    moved_1 = classifier.first_maps(Tensor(np.roll(test_set.images, 1, axis=3))).numpy()
    moved_2 = classifier.first_maps(Tensor(np.roll(test_set.images, 2, axis=3))).numpy()
exact = bool(np.allclose(moved_2, np.roll(still, 1, axis=3), atol=1e-5))
changes = [np.linalg.norm(moved_1 - np.roll(still, k, axis=3)) / np.linalg.norm(still) for k in (0, 1)]
print(f"maps behind the first pooling: an image moved by 2 gives the same maps, moved by 1: {exact}")
print(f"an image moved by 1 changes them by {min(changes):.0%} of their norm, moved along or not")

# %% [markdown]
# It does not. One pixel costs more than 5% of the answers, in this run several times that. What a pooling of stride 2
# gives is this: from an image that is moved by 2 pixels come the same maps, moved by 1. From an image that is moved by
# 1 pixel come other maps, for other pixels share a window. With two poolings only 4 pixels make a whole step, and
# there the accuracy returns (nearly: the frame's border is near then). In between it sinks, most at the odd moves: a
# sawtooth. And the step from moved maps to equal answers is not the work of the maximum but of the global average at
# the end, which forgets the place.
#
# What helps is to have seen moved images. The same network, trained on random crops:

# %%
cropped = Classifier(seed=0)
options = TrainOptions(epochs=8, batch_size=32, lr=0.1, schedule="cosine", augment="crop")
fit(cropped, train_set, test_set, options)
accuracy_cropped = {d: right_and_sure(np.roll(test_set.images, d, axis=3), cropped)[0] for d in moves}
print("trained on crops:", ", ".join(f"{d}: {value:.0%}" for d, value in accuracy_cropped.items()))

# %% [markdown]
# The teeth are less than half as long. (In this run the middle is less accurate, after as many epochs: there was more
# to learn.) Both networks have the same poolings: what this one gained on digits moved by 1 pixel, it learned.
#
# ### "Softmax gives the probability that the answer is right"
#
# It gives positive numbers that sum to 1. Whether of a hundred answers given with 90% each ninety are right must be
# measured. On test digits from the same source the mean probability and the accuracy do go together here, to within
# 12%. Now transpose each image, so that most digits stand as none stood in training, and measure again.

# %%
accuracy_test, sure_test = right_and_sure(test_set.images, classifier)
accuracy_transposed, sure_transposed = right_and_sure(test_set.images.transpose(0, 1, 3, 2), classifier)
print(f"test digits:       right {accuracy_test:.0%}, mean probability of the answer {sure_test:.0%}")
print(f"transposed digits: right {accuracy_transposed:.0%}, mean probability of the answer {sure_transposed:.0%}")

# %% [markdown]
# The network cannot say "none of these": the outputs sum to 1 whatever comes in. And since a temperature changes the
# probabilities and no answer, the accuracy alone does not fix them: calibration is a property to check, for each kind
# of input.
#
# ### The mistakes it is most sure of
#
# The first thing to look at after a training. `plots.confident_mistakes` lists them (`plots.plot_confident_mistakes`
# draws them): a wrong label, a digit that you cannot read either, or a kind of input that the network never met.

# %%
mistakes, total = plots.confident_mistakes(classifier, test_set, count=4)
for mistake in mistakes:
    print(f"image {mistake.index}: is {mistake.truth}, read {mistake.prediction}, {mistake.probability:.0%} sure")
print(f"{total} mistakes among {len(test_set)}")

figure = plt.figure(figsize=(10, 3.2), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(1, 1))
left.suptitle("the mistakes that it is most sure of", fontsize=10)
for axes, mistake in zip(np.ravel(left.subplots(1, 4)), mistakes, strict=False):
    axes.imshow(data.test.images[mistake.index, 0], cmap="Greys")
    axes.set(xticks=[], yticks=[])
    axes.set_title(f"is {mistake.truth}, read {mistake.prediction}\n{mistake.probability:.0%} sure", fontsize=9)
axes = right.subplots()
axes.plot(moves, [100 * accuracy_moved[d] for d in moves], "o-", color="tab:blue", label="trained as they stand")
axes.plot(moves, [100 * accuracy_cropped[d] for d in moves], "s--", color="tab:red", label="trained on random crops")
axes.legend(fontsize=8, loc="lower center")
axes.set(xlabel="test digits moved sideways by (pixels)", ylabel="accuracy (%)", ylim=(0, 104))
axes.set_xticks(list(moves))
axes.grid(alpha=0.3)
figure.savefig(figures / "05_classifier.png", dpi=80)

# %% [markdown]
# All of this stands on measurements that this file repeats whenever it runs:

# %%
assert dx.tolist() == [0, 0, 0, 4, 5] and abs(relu_numeric[2] - 0.5 * 3) < 1e-6
assert dead_gentle.mean() < 0.25 and dead_rough.mean() > 0.4
assert np.array_equal(still_dead | dead_rough, still_dead) and unmoved
for name, gain in gains.items():
    assert abs(factors[name] / (gain / np.sqrt(2)) - 1) < 0.05
assert 0.5 < spreads["sqrt(2), Kaiming"][-1] < 5 and spreads["2"][-1] > 1e3
assert spreads["1"][-1] < 1e-2 and spreads["1 / sqrt(3), nn.Linear"][-1] < 1e-7
assert kernels.max_pool2d_backward(np.array([[10.0, 20], [30, 40]])[None, None], pool_cache)[0, 0].tolist() == [
    [10, 0, 0, 0],
    [0, 0, 20, 0],
    [0, 30, 40, 0],
    [0, 0, 0, 0],
]
assert framed.max() < -1 and with_zeros.max() == 0
assert abs(counted[0, 0, 0, 0] - 4 / 9) < 1e-12 and not_counted[0, 0, 0, 0] == 1
assert with_flatten == 49 * with_average and all(shape == (2, 10) for shape in shapes)
assert receivers["max, 2x2"] == 9 and receivers["average, 2x2"] == receivers["global average"] == 36
for name in list(maps)[1:]:
    assert abs(totals[name] - upstream.sum()) < 1e-9
assert all(passed.values())
assert np.isnan(naive[0, :2]).all() and np.isinf(overflow32) and abs(stable.sum() - 1) < 1e-12
assert max(softmax_difference, of_ones, np.abs(jacobian.sum(axis=0)).max()) < 1e-12 and numeric_difference < 1e-8
assert abs(by_hand - loss) < 1e-12 and dz_difference < 1e-12 and dz_numeric < 1e-8
assert np.abs(dz).max() < 1 / N and np.abs(dz.sum(axis=1)).max() < 1e-12
assert (gap >= 0).all() and (gap <= np.log(C)).all()
assert rest_gradient < 1e-12 and abs(ignoring - without) < 1e-12 and ignored_gradient == 0
assert abs(starts[0.0] - np.log(10)) < 1e-6 and abs(starts[1.0] - np.log(10)) < 0.3 and starts[100.0] > 10
assert np.isinf(wrong_apart[0]) and np.isnan(wrong_apart[1]).all()
assert wrong_together[0] == 120 and wrong_together[1].tolist() == [-1, 1]
assert right_apart[0] == right_together[0] == 0 and np.allclose(right_apart[1], right_together[1], atol=1e-12)
assert slopes[0] < -0.99 and abs(squared_slopes[0]) < 1e-3
assert entropies[0.25] < entropies[1] < entropies[4] < np.log(4)
assert all(p.argmax() == scores.argmax() for p in tempered.values())
assert score.accuracy > 0.9
for d in (-3, -1, 1, 3):
    assert accuracy_moved[d] < accuracy_moved[0] - 0.05
assert min(accuracy_moved[d] for d in (-4, -2, 2, 4)) > max(accuracy_moved[d] for d in (-3, -1, 1, 3))
teeth = max(accuracy_moved.values()) - min(accuracy_moved.values())
assert max(accuracy_cropped.values()) - min(accuracy_cropped.values()) < teeth / 2
assert exact and min(changes) > 0.2
assert abs(accuracy_test - sure_test) < 0.12 and sure_transposed > accuracy_transposed + 0.2
assert mistakes[0].probability >= mistakes[-1].probability and total == round((1 - accuracy_test) * len(test_set))
