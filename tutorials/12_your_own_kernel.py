# %% [markdown]
# # An exercise of your own: from derivation to a checked kernel
#
# You need: lessons 02 (checking gradients) and 04 (batch norm), and MiniRes installed. It takes about half a
# minute on two cores.
#
# Everything in this library was made in the same way: write down the definition, derive the backward, check it, bind
# it to the graph, train with it, and hand it on. Here you go that way once, with an operation that MiniRes lacks:
# group normalisation (Wu and He 2018), the batch norm that needs no batch. The first attempt has mistakes that
# people do make, and the lesson is in how they are found.

# %%
import inspect
import json
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import minires.functional as F
import numpy as np
from threadpoolctl import threadpool_limits

import minires
from minires import Tensor, apply, debug, nn
from minires.data import digits
from minires.gradcheck import check_function, check_kernel
from minires.kernels.backend import Array, array_module
from minires.optim import SGD, CosineAnnealingLR
from minires.train.training import evaluate

threadpool_limits(1)  # these matrix products are too small for more threads
figures = Path(__file__).parent / "figures" if "__file__" in globals() else Path("figures")
figures.mkdir(exist_ok=True)

# %% [markdown]
# ## What it normalises
#
# A batch of feature maps is a block of numbers of N images, C channels and H x W pixels. Every normalisation
# subtracts a mean and divides by a standard deviation. They differ in one thing only: which numbers share a mean.
#
# - batch norm: one channel of all images
# - layer norm: all channels of one image
# - instance norm: one channel of one image
# - group norm: some neighbouring channels of one image; with one group it is layer norm, with C groups instance norm

# %%
N, C = 4, 6  # images down, channels to the right; the pixels lie behind each other
shares = {
    "batch norm": np.array([[c for c in range(C)] for n in range(N)]),
    "layer norm": np.array([[n for c in range(C)] for n in range(N)]),
    "instance norm": np.arange(N * C).reshape(N, C),
    "group norm, 2 groups": np.array([[2 * n + c // 3 for c in range(C)] for n in range(N)]),
}
figure, axes = plt.subplots(1, 4, figsize=(11, 2.9), layout="constrained")
for cell, (name, group) in zip(axes, shares.items(), strict=True):
    cell.imshow(group == group[0, 0], cmap="Greys", vmin=0, vmax=1.8)
    for n in range(N):
        for c in range(C):
            cell.text(c, n, str(group[n, c] + 1), ha="center", va="center")
    cell.set_xticks(np.arange(C + 1) - 0.5, [])
    cell.set_yticks(np.arange(N + 1) - 0.5, [])
    cell.grid(color="black", linewidth=0.6)
    cell.tick_params(length=0)
    cell.set(xlabel="channels C", ylabel="images N", title=name)
figure.suptitle("Cells (each H x W pixels) with the same number share a mean and a variance; grey: those of the first")
figure.savefig(figures / "12_what_is_normalised.png", dpi=80)

# %% [markdown]
# ## The definition, in loops
#
# First the slowest and plainest form, one number at a time. It is no use for training. It is what everything else is
# held against, so it must be readable against the formula:
#
#     y = gamma[c] (x - mean) / sqrt(var + eps) + beta[c]
#
# with mean and variance over the channels of the group and all pixels, of this image.


# %%
def group_norm_loops(x, gamma, beta, *, groups, eps=1e-5):
    """The definition, one number at a time."""
    N, C, H, W = x.shape
    size = C // groups
    y = np.zeros(x.shape)
    for n in range(N):
        for c in range(C):
            first = c // size * size
            together = x[n, first : first + size]
            mean = together.sum() / together.size
            var = ((together - mean) ** 2).sum() / together.size
            for h in range(H):
                for w in range(W):
                    y[n, c, h, w] = gamma[c] * (x[n, c, h, w] - mean) / (var + eps) ** 0.5 + beta[c]
    return y


# %% [markdown]
# ## The forward
#
# A kernel of this library is two plain functions on arrays: `forward(*arrays, **options)` returns `y` and a cache,
# `backward(dy, cache)` returns a gradient for each array. The cache is a NamedTuple with the names of the formula.
# Seen as (N, G, M), the numbers that share a mean lie along the last axis, M = C/G H W of them. The docstring gives
# shapes, formula, errors and source; a comment says which step of the derivation a line is.


# %%
class GroupNormCache(NamedTuple):
    x_hat: Array  # (N, G, M), the normalised input
    inv_std: Array  # (N, G, 1), 1 / sqrt(var + eps)
    gamma: Array  # (C,)


def group_norm_forward(
    x: Array, gamma: Array, beta: Array, *, groups: int, eps: float = 1e-5
) -> tuple[Array, GroupNormCache]:
    """Group normalisation: each image by itself, some channels at a time.

    Shapes: x (N, C, H, W), gamma and beta (C,) -> y (as x).
    Formula: y = gamma (x - mean) / sqrt(var + eps) + beta, mean and biased var over a group's C/G channels and pixels.
    Errors: ValueError for another number of axes, channels that do not divide into groups, or other shapes.
    Source: Wu & He 2018; torch.nn.functional.group_norm.
    """
    xp = array_module(x)
    if x.ndim != 4:
        raise ValueError(f"group_norm: x must be (N, C, H, W), got {x.ndim} axes with shape {x.shape}")
    N, C, H, W = x.shape
    if groups < 1 or C % groups:
        raise ValueError(f"group_norm: {C} channels do not divide into {groups} groups")
    if gamma.shape != (C,) or beta.shape != (C,):
        raise ValueError(f"group_norm: gamma and beta must have shape ({C},), got {gamma.shape} and {beta.shape}")
    # What shares a mean lies along the last axis.
    rows = x.reshape(N, groups, -1)  # (N, G, M)
    mean = rows.mean(axis=2, keepdims=True)  # (N, G, 1)
    centred = rows - mean  # (N, G, M)
    var = (centred * centred).mean(axis=2, keepdims=True)  # (N, G, 1)
    inv_std = 1 / xp.sqrt(var + eps)  # (N, G, 1)
    x_hat = centred * inv_std  # (N, G, M)
    # Scale and shift belong to a channel, not to a group.
    y = x_hat.reshape(N, C, H, W) * gamma[:, None, None] + beta[:, None, None]
    return y, GroupNormCache(x_hat, inv_std, gamma)


rng = np.random.default_rng(0)
x = 1.5 + 2 * rng.standard_normal((3, 4, 5, 7))  # sizes that are all different: a wrong axis cannot hide
gamma, beta = rng.uniform(0.5, 2, 4), rng.standard_normal(4)
forward_gap = {}
for groups in (1, 2, 4):
    y, _ = group_norm_forward(x, gamma, beta, groups=groups)
    forward_gap[groups] = float(np.abs(y - group_norm_loops(x, gamma, beta, groups=groups)).max())
print("largest difference from the loops, by groups:", {g: f"{gap:.0e}" for g, gap in forward_gap.items()})

# %% [markdown]
# The forward comes first, because no gradient check can see a wrong one: it would check the right derivative of the
# wrong function.
#
# ## The backward, first attempt
#
# Group norm is batch norm with other rows, one might think, and lesson 04 has derived that backward already:
#
#     dx = gamma inv_std (dy - mean(dy) - x_hat mean(dy x_hat))
#     dgamma = sum(dy x_hat), dbeta = sum(dy)
#
# So take it over, with the means along the rows of (N, G, M); and as every image is on its own now, take the sums of
# dgamma and dbeta over the pixels of each image.
#
# **Question before you scroll on:** two things are wrong with this. Which?


# %%
def first_backward(dy: Array, cache: GroupNormCache) -> tuple[Array, Array, Array]:
    """The first attempt."""
    x_hat = cache.x_hat
    maps = x_hat.reshape(dy.shape)  # (N, C, H, W)
    dbeta = dy.sum(axis=(2, 3))
    dgamma = (dy * maps).sum(axis=(2, 3))
    rows = dy.reshape(x_hat.shape)  # (N, G, M)
    rows = rows - rows.mean(axis=2, keepdims=True) - x_hat * (rows * x_hat).mean(axis=2, keepdims=True)
    dx = (rows * cache.inv_std).reshape(dy.shape) * cache.gamma[:, None, None]
    return dx, dgamma, dbeta


first_report = check_kernel(group_norm_forward, first_backward, [x, gamma, beta], options={"groups": 2})
print(first_report)

# %% [markdown]
# Read it from the bottom. About dgamma and dbeta the checker is certain: a sum is missing, `yours.sum(axis=0)` has
# the right shape, and with that sum the numbers are right to rounding. Of course: an image has its own mean, but
# gamma is shared by all images, and what is used several times gets the sum of its gradients.
#
# Of dx it says "unexplained": it knows this operation's name as little as its usual mistakes. So mend what is known,
# and question the rest. `check_kernel` is an instrument: change one thing of the input, and see whether the mistake
# is still there.


# %%
def second_backward(dy: Array, cache: GroupNormCache) -> tuple[Array, Array, Array]:
    """The second attempt: dgamma and dbeta are sums over the images too."""
    dx, dgamma, dbeta = first_backward(dy, cache)
    return dx, dgamma.sum(axis=0), dbeta.sum(axis=0)


trials = {
    "2 groups of 2 channels": ([x, gamma, beta], 2),
    "a group a channel": ([x, gamma, beta], 4),
    "2 groups, one image": ([x[:1], gamma, beta], 2),
    "2 groups, gamma of ones": ([x, np.ones(4), beta], 2),
}
verdicts = {}
for name, (inputs, groups) in trials.items():
    report = check_kernel(group_norm_forward, second_backward, inputs, options={"groups": groups})
    verdicts[name] = report.ok
    print(f"{name:26} {'pass' if report.ok else 'FAIL'}")

# %% [markdown]
# One image or three makes no difference. With a single channel a group the mistake is gone, and with gamma = 1 too.
# So it is about gamma, where channels of one group have different ones. (A check with gamma of ones, as a fresh
# layer has, would have let it pass. Inputs of a check should be random wherever they can be.)
#
# ## Derive it anew
#
# Batch norm may pull gamma out of the means, because one mean never meets two channels. Here it does. In steps:
#
# 1. y = gamma x_hat + beta, so dbeta = sum(dy), dgamma = sum(dy x_hat), over images and pixels, and dx_hat = gamma dy.
# 2. x_hat = (x - mean) inv_std. Directly, x gets inv_std dx_hat.
# 3. The mean moves by 1/M when one x moves by 1, and every x_hat of the group by minus inv_std times that:
#    together minus inv_std mean(dx_hat).
# 4. The variance moves by 2 (x - mean) / M, and inv_std by minus inv_std^3 / 2 times that. Every x_hat of the group
#    is stretched: together minus inv_std x_hat mean(dx_hat x_hat).
#
# The sum of 2 to 4 is dx. It has batch norm's form, with dx_hat in place of dy and no gamma in front: the mean must
# see gamma dy.


# %%
def group_norm_backward(dy: Array, cache: GroupNormCache) -> tuple[Array, Array, Array]:
    """Gradients of group_norm_forward.

    Shapes: dy (as x) -> dx (as x), dgamma (C,), dbeta (C,).
    Formula: dx = inv_std (dx_hat - mean(dx_hat) - x_hat mean(dx_hat x_hat)) with dx_hat = gamma dy, means over a group;
        dgamma = sum(dy x_hat), dbeta = sum(dy).
    Source: Wu & He 2018; the derivation in this lesson.
    """
    x_hat = cache.x_hat
    # All images share gamma and beta: sums over images and pixels.
    dbeta = dy.sum(axis=(0, 2, 3))  # (C,)
    dgamma = (dy * x_hat.reshape(dy.shape)).sum(axis=(0, 2, 3))  # (C,)
    # Gamma belongs to a channel, and a group has several: it comes before the means.
    dx_hat = (dy * cache.gamma[:, None, None]).reshape(x_hat.shape)  # (N, G, M)
    # Through the mean: what all of a group has in common would only move it.
    through_mean = dx_hat.mean(axis=2, keepdims=True)  # (N, G, 1)
    # Through the variance: what lies along x_hat would only stretch it.
    through_var = x_hat * (dx_hat * x_hat).mean(axis=2, keepdims=True)  # (N, G, M)
    # The three ways together.
    dx = (cache.inv_std * (dx_hat - through_mean - through_var)).reshape(dy.shape)  # (N, C, H, W)
    return dx, dgamma, dbeta


final_reports = {}
for groups in (1, 2, 4):
    final_reports[groups] = check_kernel(
        group_norm_forward, group_norm_backward, [x, gamma, beta], options={"groups": groups}
    )
    print(f"{groups} groups:", str(final_reports[groups]).replace("\n", ", "))

# %% [markdown]
# ## When is a kernel done?
#
# A passed gradient check is one line of a list. The others are as short:

# %%
dy = np.random.default_rng(7).standard_normal(x.shape)


def run_kernel(x, gamma, beta, dy, groups=2):
    """y and the three gradients."""
    y, cache = group_norm_forward(x, gamma, beta, groups=groups)
    return (y, *group_norm_backward(dy, cache))


def close(a, b, tolerance):
    """Whether all arrays are equal, relative to the largest entry of each."""
    return all(np.abs(p - q).max() <= tolerance * np.abs(p).max() for p, q in zip(a, b, strict=True))


checklist = {}
wanted = run_kernel(x, gamma, beta, dy)
checklist["shapes are those of the inputs"] = [g.shape for g in wanted] == [x.shape, x.shape, (4,), (4,)]
narrow = run_kernel(*(a.astype(np.float32) for a in (x, gamma, beta, dy)))
checklist["float32 stays float32"] = all(a.dtype == np.float32 for a in narrow)
checklist["float32 equals float64 to 1e-5"] = close(wanted, narrow, 1e-5)
strided = np.empty((7, 5, 3, 4)).transpose(2, 3, 1, 0)  # the same shape, another order in memory
strided[...] = x
checklist["any order in memory"] = close(wanted, run_kernel(strided, gamma, beta, dy.copy(order="F")), 1e-12)
arrays = [x.copy(), gamma.copy(), beta.copy(), dy.copy()]
run_kernel(*arrays)
checklist["inputs and dy stay as they were"] = all(
    np.array_equal(a, b) for a, b in zip(arrays, (x, gamma, beta, dy), strict=True)
)
twice = run_kernel(x, gamma, beta, dy)
checklist["the same bits twice"] = all(np.array_equal(a, b) for a, b in zip(wanted, twice, strict=True))
constant = run_kernel(np.full((2, 4, 3, 3), 5.0), gamma, beta, dy[:2, :, :3, :3])
checklist["a constant image gives finite numbers"] = all(np.isfinite(a).all() for a in constant)
try:
    group_norm_forward(x, gamma, beta, groups=3)
    checklist["wrong groups are refused in words"] = False
except ValueError as refusal:
    checklist["wrong groups are refused in words"] = "do not divide" in str(refusal)
_, cache = group_norm_forward(x, gamma, beta, groups=2)
kept = sum(a.nbytes for a in cache)
checklist["the cache is hardly more than one array like x"] = kept < 1.1 * x.nbytes
if find_spec("torch"):
    import torch

    tensors = [torch.tensor(a, requires_grad=True) for a in (x, gamma, beta)]
    output = torch.nn.functional.group_norm(tensors[0], 2, tensors[1], tensors[2])
    output.backward(torch.tensor(dy))
    theirs = (output.detach().numpy(), *(t.grad.numpy() for t in tensors))
    checklist["equal to PyTorch to 1e-12"] = close(wanted, theirs, 1e-12)
else:
    print("With PyTorch installed the kernel is compared with torch.nn.functional.group_norm here: pip install torch")
for name, passed in checklist.items():
    print(f"{'yes' if passed else 'NO ':4} {name}")

# %% [markdown]
# (One line is missing, because group norm has no kinks. Where yours has, such as a ReLU or a maximum, decide what the
# gradient is there, and say so.)
#
# ## Into the graph
#
# One call of the engine's `apply` runs the kernel on the arrays of some Tensors and remembers the backward. A Module
# around it holds the parameters.


# %%
def group_norm(input, num_groups, weight, bias, eps=1e-5):
    """Group normalisation of a Tensor."""
    return apply(group_norm_forward, group_norm_backward, input, weight, bias, groups=num_groups, eps=eps)


class GroupNorm(nn.Module):
    """Group normalisation with a learned scale and shift: the same in training and in evaluation, and no statistics."""

    def __init__(self, num_groups, num_channels):
        super().__init__()
        self.num_groups = num_groups
        self.weight = nn.Parameter(np.ones(num_channels, np.float32))
        self.bias = nn.Parameter(np.zeros(num_channels, np.float32))

    def forward(self, input):
        return group_norm(input, self.num_groups, self.weight, self.bias)


def with_norm(model, layer, num_groups=4):
    """The model with every batch norm replaced by a layer of another kind."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, layer(num_groups, child.num_features))
    return model


LAYERS = {"group norm": GroupNorm}


def network(norm, seed=0):
    """A ResNet-8 of width 8 for the digits, with batch norm or one of the layers above."""
    model = minires.create_model("resnet8", in_channels=1, width=8, generator=np.random.default_rng(seed))
    return with_norm(model, LAYERS[norm]) if norm in LAYERS else model


block_report = check_function(network("group norm").double(), Tensor(rng.standard_normal((2, 1, 8, 8))))
print(f"the network's gradients: {sum(g.ok for g in block_report.gradients)} of {len(block_report.gradients)} pass")

# %% [markdown]
# The tools of `minires.debug` know it already, because all they need is what `apply` records (it is in
# `minires/engine/tensor.py`). Here they watch an eps of 0, on an image with a blank group.

# %%
model = network("group norm")
with debug.record() as record:
    F.cross_entropy(model(Tensor(digits().train.images[:16])), digits().train.labels[:16]).backward()
own_rows = [row for row in record.rows if row.operation == "group_norm"]
print(f"{len(own_rows)} of {len(record.rows)} operations are group_norm, the first one in {own_rows[0].module}")

blank = np.zeros((1, 4, 3, 3), np.float32)
blank[0, 2:] = rng.standard_normal((2, 3, 3))
anomaly = ""
try:
    with debug.detect_anomaly(), np.errstate(all="ignore"):
        group_norm(Tensor(blank), 2, Tensor(np.ones(4, np.float32)), Tensor(np.zeros(4, np.float32)), eps=0.0)
except debug.Anomaly as found:
    anomaly = str(found)
print(anomaly)

# %% [markdown]
# ## Does the batch matter?
#
# The claim of the paper, first as an exact statement: the result for an image does not depend on its batch. Send one
# digit through a fresh network in the company of others, and compare with another company. (Training mode: it is
# there that batch norm looks at the batch.)

# %%
data = digits()
SIZES = [2, 4, 8, 16, 32, 64]


def change_by_company(norm, size, draws=12):
    """How much the logits of one digit move with the rest of its batch, relative to their own spread."""
    model = network(norm)
    generator = np.random.default_rng(size)
    logits = []
    with minires.no_grad():
        for _ in range(draws):
            others = generator.choice(np.arange(1, len(data.train)), size - 1, replace=False)
            batch = data.train.images[np.concatenate([[0], others])]
            logits.append(model(Tensor(batch)).numpy()[0])
    logits = np.array(logits)
    return float(logits.std(axis=0).mean() / logits.mean(axis=0).std())


change = {norm: np.array([change_by_company(norm, n) for n in SIZES]) for norm in ("batch norm", "group norm")}
for norm, values in change.items():
    print(f"{norm}: logits move by", "  ".join(f"{v:.0%} (batch {n})" for n, v in zip(SIZES, values, strict=True)))

# %% [markdown]
# **Question before you scroll on:** memory is short, so a batch of 60 goes through the network as ten parts of 6,
# and the gradients add up before the step. With which normalisation is that the gradient of the batch?


# %%
def gradient(norm, parts):
    """The gradient of the mean loss over 60 digits that go through the network in parts."""
    model = network(norm).double()
    for images, labels in zip(
        np.split(data.train.images[:60], parts), np.split(data.train.labels[:60], parts), strict=True
    ):
        (F.cross_entropy(model(Tensor(images).double()), labels) / parts).backward()
    return np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])


accumulation_gap = {}
for norm in ("batch norm", "group norm"):
    whole, added = gradient(norm, 1), gradient(norm, 10)
    accumulation_gap[norm] = float(np.linalg.norm(whole - added) / np.linalg.norm(whole))
    print(f"{norm}: gradient of 10 parts against that of the whole batch, relative {accumulation_gap[norm]:.0e}")

# %% [markdown]
# With group norm it is the same number; with batch norm it is the gradient of another network.
#
# Does it hurt? On ImageNet the paper shows batch norm getting worse with fewer than 16 images a device. On these
# digits it did not, when it was tried with batches of 2 to 64. (Even 2 images give a mean of the first stage 2 x 8 x
# 8 pixels.) What batch norm needs more is that a batch is a *fair sample*. So train twice with ten parts of 6 digits
# a step: once mixed, and once with each part from a single class, as happens where data come sorted, or as
# neighbouring frames of a video.

# %%
STEPS = 40
BY_CLASS = [np.flatnonzero(data.train.labels == c) for c in range(10)]


def train_in_parts(norm, mixed, seed=0):
    """Losses of each step, and the test error afterwards."""
    model = network(norm, seed)
    generator = np.random.default_rng(seed)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = CosineAnnealingLR(optimizer, T_max=STEPS)
    losses = []
    for _ in range(STEPS):
        parts = np.stack([generator.choice(members, 6, replace=False) for members in BY_CLASS])  # a class a row
        if mixed:
            parts = generator.permutation(parts.ravel()).reshape(parts.shape)
        optimizer.zero_grad()
        total = 0.0
        for part in parts:
            loss = F.cross_entropy(model(Tensor(data.train.images[part])), data.train.labels[part]) / len(parts)
            loss.backward()
            total += loss.item()
        optimizer.step()
        schedule.step()
        losses.append(total)
    return losses, 1 - evaluate(model, data.test).accuracy


curves, errors = {}, {}
for norm in ("batch norm", "group norm"):
    for mixed in (True, False):
        key = norm, "mixed" if mixed else "one class a part"
        curves[key], errors[key] = train_in_parts(norm, mixed)
        print(f"{key[0]}, {key[1]:16} loss of the last step {curves[key][-1]:.3f}, test error {errors[key]:.1%}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.7), layout="constrained")
for (norm, values), style in zip(change.items(), ("s--", "o-"), strict=True):
    color = "tab:red" if norm == "batch norm" else "tab:blue"
    left.plot(SIZES, 100 * values, style, color=color, label=norm)
left.set_xscale("log", base=2)
left.set_xticks(SIZES, [str(n) for n in SIZES])
left.set(xlabel="batch size", ylabel="change of an image's logits (%)", title="One image, other company")
left.legend()
places = np.arange(2)
for i, (norm, hatch, color) in enumerate((("batch norm", "//", "tab:red"), ("group norm", "", "tab:blue"))):
    values = [100 * errors[norm, kind] for kind in ("mixed", "one class a part")]
    bars = right.bar(places + 0.36 * i - 0.18, values, 0.34, color=color, alpha=0.7, hatch=hatch, label=norm)
    right.bar_label(bars, fmt="%.1f")
right.set_xticks(places, ["mixed", "one class a part"])
right.set(xlabel="what the images of a part have in common", ylabel="test error (%)", title=f"After {STEPS} steps")
right.margins(y=0.15)
right.legend(loc="upper left")
figure.savefig(figures / "12_batches.png", dpi=80)

# %% [markdown]
# With one class a part, batch norm subtracts what the images have in common, and that is the class. And the running
# statistics that it uses in evaluation, averages over all classes, fit none of the parts that it was trained with.
# Group norm hardly notices. With mixed parts batch norm does well: this is a matter of what your batches are, not of
# one norm being better.
#
# One more thing to know about training: it is no gradient check. The second attempt, whose dx is wrong, trains as
# well:


# %%
class WrongGroupNorm(GroupNorm):
    """Group norm with the gradients of the second attempt."""

    def forward(self, input):
        return apply(group_norm_forward, second_backward, input, self.weight, self.bias, groups=self.num_groups)


LAYERS["wrong dx"] = WrongGroupNorm
right_losses, right_error = curves["group norm", "mixed"], errors["group norm", "mixed"]
wrong_losses, wrong_error = train_in_parts("wrong dx", mixed=True)
ends = np.mean(right_losses[-10:]), np.mean(wrong_losses[-10:])
print(f"right dx: loss {ends[0]:.3f}, test error {right_error:.1%};  wrong dx: loss {ends[1]:.3f}, {wrong_error:.1%}")

# %% [markdown]
# No curve would have told you. A check did, in a second or so.
#
# ## In place of a shipped kernel
#
# An operation that MiniRes has needs no module of yours: inside `with minires.using(...):` any network runs on your
# pair of functions. Here is a convolution without groups and dilation, from the definition, in the training above.


# %%
def my_conv2d_forward(x, w, b=None, *, stride, padding):
    (SH, SW), (PH, PW) = np.broadcast_to(stride, 2), np.broadcast_to(padding, 2)
    padded = np.pad(x, ((0, 0), (0, 0), (PH, PH), (PW, PW)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], (2, 3))[:, :, ::SH, ::SW]
    y = np.einsum("nchwij,ocij->nohw", windows, w, optimize=True)  # windows: (N, C, OH, OW, KH, KW)
    return y if b is None else y + b[:, None, None], (windows, w, padded.shape, SH, SW, PH, PW)


def my_conv2d_backward(dy, cache):
    windows, w, (N, C, H, W), SH, SW, PH, PW = cache
    dpadded = np.zeros((N, C, H, W), dy.dtype)
    for i, j in np.ndindex(w.shape[2:]):  # a place of the kernel, and the pixels that it met: each window has one
        met = dpadded[:, :, i : i + SH * dy.shape[2] : SH, j : j + SW * dy.shape[3] : SW]
        met += np.einsum("nohw,oc->nchw", dy, w[:, :, i, j], optimize=True)
    dw = np.einsum("nohw,nchwij->ocij", dy, windows, optimize=True)
    return dpadded[:, :, PH : H - PH, PW : W - PW], dw, dy.sum(axis=(0, 2, 3))


own_report = check_kernel(my_conv2d_forward, my_conv2d_backward, kind="conv2d")
with minires.using(conv2d=(my_conv2d_forward, my_conv2d_backward)):
    own_losses, _ = train_in_parts("group norm", mixed=True)
own_gap = np.abs(np.subtract(own_losses, right_losses)).max()
print(f"your convolution passes: {own_report.ok}; {STEPS} losses, at most {own_gap:.0e} from those of the shipped one")

# %% [markdown]
# ## Hand it on: an exercise for a course
#
# `minires exercise new` prints a whole example to start from: solution, definition in loops, trials, three hints,
# and the list `EXERCISES`; `minires/exercises/example.py` is that example. For group norm all of it is here already:
# the file is put together from this lesson's own functions. (The cache is written out: not every notebook can give
# the source of a class.)

# %%
HEADER = '''"""Group normalisation as an exercise."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minires.kernels.backend import Array, array_module
from minires.exercises.table import Exercise
from minires.exercises.trials import Trial


class GroupNormCache(NamedTuple):
    x_hat: Array  # (N, G, M), the normalised input
    inv_std: Array  # (N, G, 1), 1 / sqrt(var + eps)
    gamma: Array  # (C,)
'''
FOOTER = '''
def trials() -> list[Trial]:
    """The gradient of the first is checked numerically: sizes that differ, and random gamma."""
    rng = np.random.default_rng(3)
    kernel = (group_norm_forward, group_norm_backward, group_norm_loops, ("x", "gamma", "beta"))
    inputs = (1.5 + rng.standard_normal((3, 4, 5, 7)), rng.uniform(0.5, 2, 4), rng.standard_normal(4))
    return [Trial(*kernel, inputs, {"groups": groups}) for groups in (2, 1, 4)]


EXERCISES = [
    Exercise(
        name="group_norm",
        title="group normalisation, forward and backward",
        functions=(group_norm_forward, group_norm_backward),
        trials=trials,
        hints=(
            "Which numbers share a mean? Give them an axis of their own.",
            "Gamma belongs to a channel. How many channels does a mean see?",
            "With dx_hat = gamma dy, dx has three terms: direct, through the mean, through the variance.",
        ),
    )
]
'''
functions = (group_norm_forward, group_norm_backward, group_norm_loops)
course = "\n\n".join([HEADER, *(inspect.getsource(function) for function in functions), FOOTER])
folder = Path(tempfile.mkdtemp())
(folder / "my_exercises.py").write_text(course)


def minires_command(*words):
    """Run a command in the folder, as in a terminal, and show what it prints."""
    command = [sys.executable, "-m", "minires", *words]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    print("$ minires", *words)
    print(result.stdout + result.stderr)
    return result


minires_command("exercise", "start", "group_norm", "--from", "my_exercises.py")
started = (folder / "group_norm.py").read_text()
print(started[started.index("def group_norm_backward") :])

# %% [markdown]
# That is what a student gets: the solution's own signature, docstring, comments and shapes, and a step to write
# wherever a name was computed. Now two submissions. Ada hands in the second attempt of this lesson, Bob the right
# one. A line `EXERCISE = "group_norm"` says what a file is.

# %%
preamble = started[: started.index("def group_norm_forward")] + '\nEXERCISE = "group_norm"\n\n\n'
wrong = "\n\n".join(
    inspect.getsource(function).replace("second_backward", "group_norm_backward")
    for function in (group_norm_forward, first_backward, second_backward)
)
(folder / "ada.py").write_text(preamble + wrong)
right = "\n\n".join(inspect.getsource(function) for function in (group_norm_forward, group_norm_backward))
(folder / "bob.py").write_text(preamble + right)
checked = minires_command("exercise", "check", "group_norm", "ada.py", "--from", "my_exercises.py")
hinted = minires_command("exercise", "hint", "group_norm", "ada.py", "--from", "my_exercises.py")
graded = minires_command("exercise", "grade", "ada.py", "bob.py", "--from", "my_exercises.py", "--json", "results.json")
results = json.loads((folder / "results.json").read_text())
shutil.rmtree(folder)

# %% [markdown]
# Ada's report says what a teacher would: forward and cache are right, dgamma and dbeta are right, dx is wrong and
# from which name on. The points follow the stages. The file results.json is what Gradescope reads. Nobody had to
# write a checker: a definition in loops and a right solution are enough.
#
# Yours could be layer norm, dropout of whole blocks (Huang et al. 2016), squeeze-and-excitation (Hu et al. 2018) or
# a blur before each stride (Zhang 2019). To practise, `minires exercise start batch_norm_backward` has the
# derivation of this lesson's relative in steps: compare `batch_norm_backward` in `minires/kernels/batch_norm.py`.
# And `minires exercise start kill_the_mutants` turns the tables: there you write the checker, and eight broken
# kernels try to get past it.
#
# ## The claims, once more

# %%
assert max(forward_gap.values()) < 1e-12
assert first_report.codes == {"missing-sum", "unexplained"}
assert verdicts == {
    "2 groups of 2 channels": False,
    "a group a channel": True,
    "2 groups, one image": False,
    "2 groups, gamma of ones": True,
}
assert all(report.ok for report in final_reports.values()) and block_report.ok
assert all(checklist.values()), [name for name, passed in checklist.items() if not passed]
assert len(own_rows) == 7 and "group_norm made it" in anomaly
assert change["group norm"].max() < 1e-4 < 0.02 < change["batch norm"].min()
assert change["batch norm"][0] > 2 * change["batch norm"][-1]
assert accumulation_gap["group norm"] < 1e-10 and accumulation_gap["batch norm"] > 0.05
assert errors["batch norm", "one class a part"] > 2 * errors["batch norm", "mixed"]
assert errors["batch norm", "one class a part"] > 2 * errors["group norm", "one class a part"]
assert own_report.ok and own_gap < 1e-3
assert ends[0] < 0.5 and ends[1] < 0.5 and right_error < 0.2 and wrong_error < 0.2
assert "dx is wrong" in checked.stdout and "dgamma is right" in checked.stdout and checked.returncode == 1
assert "hint 1 of 3" in hinted.stdout and graded.returncode == 0
points = {name: sum(t["score"] for t in results["tests"] if t["name"].startswith(name)) for name in ("ada", "bob")}
assert points["bob"] == 10 and 0 < points["ada"] < 10
