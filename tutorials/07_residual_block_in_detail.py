# %% [markdown]
# # The residual block in detail
#
# You need: the chain rule, and to know what a convolution, a batch norm and a ReLU do (lessons 01 to 05). It takes
# less than a minute on two cores.
#
# Lesson 06 showed that a deep plain network is worse than a shallow one, on the very images it learned from. The cure
# is one addition. Here you go through that addition step by step: its gradient by hand, the mistakes that are easy to
# make, the blocks that ResNets are built of, the three shortcuts, where the stride sits, where the ReLU sits, and how
# the blocks should start.

# %%
import tempfile
import time
from math import comb, log
from pathlib import Path

import matplotlib.pyplot as plt
import minires.functional as F
import numpy as np
from threadpoolctl import threadpool_limits

from minires import Tensor, debug, kernels, models, nn, no_grad
from minires.data import digits
from minires.exercises.basic_block import basic_block_backward, basic_block_forward
from minires.gradcheck import check_kernel
from minires.models import BasicBlock, BlockOptions, Bottleneck, PreActBlock
from minires.models.summary import summarize

threadpool_limits(1)  # these matrix products are too small for more threads

figures = Path(__file__).parent / "figures" if "__file__" in globals() else Path("figures")
figures.mkdir(exist_ok=True)

# %% [markdown]
# ## F(x) + x, with one number
#
# A plain block computes y = F(x). A residual block computes y = F(x) + x: F only has to learn what is missing from x,
# the residual. The derivative of the sum is the sum of the derivatives:
#
#     dy/dx = 1 + F'(x)
#
# Fifty blocks in a row multiply fifty such factors. Say that every F' is 0.1.

# %%
slope, depth = 0.1, 50
x = Tensor(2.0, requires_grad=True)
y = x
for _ in range(depth):
    y = y + slope * y  # F(y) + y
y.backward()
plain_gradient, residual_gradient = slope**depth, x.grad.item()
print(f"{depth} blocks with F' = {slope}: plain {plain_gradient:.0e}, residual {residual_gradient:.0f}")

# %% [markdown]
# Without the 1 nothing arrives. With it the gradient arrives, but nothing keeps it at 1: small positive F' make it
# grow, small negative ones make it shrink. The addition alone makes no promise about size; batch norm, the initial
# weights and the ReLU decide the rest.
#
# ## A whole block by hand
#
# The smallest block with everything in it has matrices for convolutions:
#
#     h = x w1,   a = relu(h),   s = x + a w2,   y = relu(s)
#
# Backwards: dy passes the last ReLU where s > 0, and is ds. At the addition ds is not split: both ways get all of it.
# One copy is the skip's part of dx already. The other goes down the branch. Since x was used twice, dx is the sum.


# %%
def forward(x, w1, w2):
    h = x @ w1  # (N, M)
    a = np.maximum(h, 0)
    s = x + a @ w2  # (N, D)
    return np.maximum(s, 0), (x, w1, w2, h, a, s)


def parts(dy, cache):
    """The two parts of dx, and the gradients of the weights."""
    x, w1, w2, h, a, s = cache
    ds = dy * (s > 0)  # through the last ReLU
    dw2 = a.T @ ds
    dh = (ds @ w2.T) * (h > 0)  # down the branch, through its ReLU
    dw1 = x.T @ dh
    return ds, dh @ w1.T, dw1, dw2


def backward(dy, cache):
    skip, branch, dw1, dw2 = parts(dy, cache)
    return skip + branch, dw1, dw2


rng = np.random.default_rng(0)
x, w1, w2 = rng.standard_normal((5, 4)), rng.standard_normal((4, 7)), rng.standard_normal((7, 4))
y, cache = forward(x, w1, w2)
dy = rng.standard_normal(y.shape)
by_hand = backward(dy, cache)

tensors = [Tensor(array, requires_grad=True) for array in (x, w1, w2)]
branch = F.relu(tensors[0] @ tensors[1]) @ tensors[2]
F.relu(F.residual_add(tensors[0], branch)).backward(dy)
hand_error = max(float(abs(mine - tensor.grad.numpy()).max()) for mine, tensor in zip(by_hand, tensors, strict=True))
print(f"by hand against the engine, largest difference: {hand_error:.1e}")
print(check_kernel(forward, backward, kind="residual"))

# %% [markdown]
# In the library the addition's backward is one line, `return dy, dy`: read `residual_add_backward` in
# `minires/kernels/residual.py`. There is no multiplication in it, so there is nothing to round: what the skip carries
# is dy itself.
#
# ## Ways to get it wrong
#
# Each of these runs, and no error comes. The checker is told that this is a residual block, and says which mistake
# gives these very numbers.


# %%
def skip_forgotten(dy, cache):
    skip, branch, dw1, dw2 = parts(dy, cache)
    return branch, dw1, dw2  # dx = where dx += belongs


def skip_twice(dy, cache):
    skip, branch, dw1, dw2 = parts(dy, cache)
    return skip + branch + skip, dw1, dw2


def skip_past_the_relu(dy, cache):
    skip, branch, dw1, dw2 = parts(dy, cache)
    return dy + branch, dw1, dw2  # but the last ReLU came after the addition


def mask_from_the_branch(dy, cache):
    x, w1, w2, h, a, s = cache
    skip, branch, dw1, dw2 = parts(dy, (x, w1, w2, h, a, a @ w2))  # but what met the ReLU was x + a w2
    return skip + branch, dw1, dw2


diagnoses = {}
for wrong in (skip_forgotten, skip_twice, skip_past_the_relu, mask_from_the_branch):
    diagnoses[wrong.__name__] = check_kernel(forward, wrong, kind="residual").codes
    print(f"{wrong.__name__:22} {', '.join(sorted(diagnoses[wrong.__name__]))}")

# %% [markdown]
# **Question before you scroll on:** someone puts the last ReLU before the addition, y = x + relu(a w2), and derives the
# backward of that without a slip. What does a gradient check say?


# %%
def forward_in_other_order(x, w1, w2):
    h = x @ w1
    a = np.maximum(h, 0)
    z = a @ w2
    return x + np.maximum(z, 0), (x, w1, w2, h, a, z)


def backward_in_other_order(dy, cache):
    x, w1, w2, h, a, z = cache
    dz = dy * (z > 0)
    dh = (dz @ w2.T) * (h > 0)
    return dy + dh @ w1.T, x.T @ dh, a.T @ dz


order_unseen = check_kernel(forward_in_other_order, backward_in_other_order, [x, w1, w2])
order_seen = check_kernel(forward_in_other_order, backward_in_other_order, kind="residual")
print("as any function:", "pass" if order_unseen.ok else "fail")
print("as a residual block:", ", ".join(order_seen.codes))

# %% [markdown]
# It passes. A gradient check compares a backward with its own forward; it does not know what you meant to compute. Only
# a definition, or somebody else's numbers, finds a wrong order (`debug.compare`, lesson 08). And this order is not
# harmless: the branch can then only add, never take away.

# %%
fell = {"ReLU before the addition": [], "ReLU after it": []}
v = {name: rng.standard_normal((64, 16)) for name in fell}
for _ in range(10):
    w = rng.standard_normal((16, 16)) / 4
    before, after = v["ReLU before the addition"], v["ReLU after it"]
    new = {
        "ReLU before the addition": before + np.maximum(before @ w, 0),
        "ReLU after it": np.maximum(after + after @ w, 0),
    }
    for name in fell:
        fell[name].append(float((new[name] < v[name]).mean()))
    v = new
for name, shares in fell.items():
    print(f"{name}: {np.mean(shares):.0%} of the values became smaller in a block, mean of ten blocks")

# %% [markdown]
# ## The blocks of the papers
#
# `BasicBlock` has two 3x3 convolutions on its branch. `Bottleneck` has three: a 1x1 that narrows to a quarter, a 3x3,
# and a 1x1 that widens again. `PreActBlock` has its batch norms and ReLUs before the convolutions: more about it
# below. Read them in `minires/models/blocks.py` and `minires/models/other_blocks.py`: they are flat lists of steps.

# %%
blocks = {"BasicBlock": BasicBlock(64, 64), "Bottleneck": Bottleneck(64, 16), "PreActBlock": PreActBlock(64, 64)}
figure, axes = plt.subplots(1, 3, figsize=(7, 7.6), layout="constrained")
with tempfile.TemporaryDirectory() as folder:
    for axis, (name, block) in zip(axes, blocks.items(), strict=True):
        drawing = Path(folder) / f"{name}.png"
        debug.draw(block, drawing, input_shape=(64, 8, 8), title=name)
        picture = plt.imread(drawing)
        axis.imshow(picture, extent=(0, picture.shape[1], -picture.shape[0], 0))
        axis.axis("off")
lowest = min(axis.get_ylim()[0] for axis in axes)
for axis in axes:
    axis.set_ylim(lowest, 0)  # one scale for all three
figure.savefig(figures / "07_blocks.png", dpi=80)

# %% [markdown]
# The backward of the BasicBlock with all its convolutions and batch norms is an exercise:
# `minires exercise start basic_block_backward`. Before it comes the addition with its shortcut:
# `minires exercise start residual_add`. The first one's solution equals the engine:

# %%
options = BlockOptions(shortcut="A", generator=np.random.default_rng(1))
block = BasicBlock(3, 8, stride=2, options=options).double()
x = Tensor(rng.standard_normal((4, 3, 7, 6)), requires_grad=True)
y = block(x)
dy = rng.standard_normal(y.shape)
y.backward(dy)
arrays = [tensor.detach().numpy() for tensor in (x, *block.parameters())]
by_kernels = basic_block_backward(dy, basic_block_forward(*arrays, stride=2)[1])
block_error = max(
    float(abs(mine - tensor.grad.numpy()).max())
    for mine, tensor in zip(by_kernels, (x, *block.parameters()), strict=True)
)
print(f"a BasicBlock by hand against the engine, largest difference of its seven gradients: {block_error:.1e}")

# %% [markdown]
# ## Why 1x1, 3x3, 1x1
#
# A 3x3 convolution costs 9 multiplications a pixel for each pair of channels, a 1x1 costs 1. Narrowing first makes the
# 3x3 cheap. So the Bottleneck can carry four times the channels past at the same cost in parameters and multiply-adds.


# %%
def cost(block, channels, image=56):
    """Parameters, multiply-adds, numbers that its layers put out, milliseconds of a forward."""
    summary = summarize(block, (channels, image, image))
    written = sum(int(np.prod(row.output_shape)) for row in summary.rows)
    x = Tensor(np.zeros((1, channels, image, image), np.float32))
    with no_grad():
        start = time.perf_counter()
        block(x)
        seconds = time.perf_counter() - start
    return summary.parameters, summary.macs, written, 1000 * seconds


costs = {
    "BasicBlock, 64 channels": cost(BasicBlock(64, 64).eval(), 64),
    "Bottleneck, 256 channels": cost(Bottleneck(256, 64).eval(), 256),
    "BasicBlock, 256 channels": cost(BasicBlock(256, 256).eval(), 256),
}
print("on an image of 56x56      parameters  multiply-adds    outputs")
for name, (parameters, macs, written, milliseconds) in costs.items():
    print(f"{name:24} {parameters:11,} {macs:14,} {written:10,}   {milliseconds:.0f} ms")

# %% [markdown]
# The first two rows are the comparison of the paper's figure 5: about 70,000 parameters each, and fewer in the wider
# block. Two 3x3 convolutions on 256 channels would cost 16 times as many multiply-adds as on 64, and nearly 17 times as
# many as the Bottleneck.
#
# Equal multiply-adds are not equal memory, though: the layers of the Bottleneck put out 3 times as many numbers, which
# have to be normalised, rectified and kept for the backward. That is why ResNet-50 needs much more memory in training
# than ResNet-34, at little more work.
#
# ## Three shortcuts
#
# x can only be added to F(x) where both have one shape. Where a stage begins, the image halves and the channels double,
# and the shortcut has to do the same:
#
# - option A: every second pixel, and zeros for the new channels. No parameters.
# - option B: a 1x1 convolution of stride two, with batch norm. The identity everywhere else.
# - option C: such a projection in every block, also where the shape stays.

# %%
x = Tensor(rng.standard_normal((2, 16, 8, 8)), dtype="float32")
for option in "ABC":
    for channels, stride in ((16, 1), (32, 2)):
        shortcut = BasicBlock(16, channels, stride, BlockOptions(shortcut=option)).downsample
        shape = x.shape if shortcut is None else shortcut(x).shape
        what = "identity" if shortcut is None else type(shortcut[0] if option != "A" else shortcut).__name__
        size = 0 if shortcut is None else sum(p.numel() for p in shortcut.parameters())
        print(f"option {option}, stride {stride}: {what:9} {x.shape} -> {shape}, {size} parameters")


# %% [markdown]
# What do they add to ResNet-34 (blocks 3, 4, 6, 3 of 64, 128, 256, 512 channels)? A projection from C to O channels
# has C O weights and 2 O numbers of its batch norm.


# %%
def projection(channels, out_channels):
    return channels * out_channels + 2 * out_channels


resnet34 = sum(p.numel() for p in models.resnet34(shortcut="A").parameters())
between_stages = projection(64, 128) + projection(128, 256) + projection(256, 512)
within_stages = sum(n * projection(c, c) for n, c in ((3, 64), (4 - 1, 128), (6 - 1, 256), (3 - 1, 512)))
counts = {
    "A": resnet34,
    "B": resnet34 + between_stages,
    "C": resnet34 + between_stages + within_stages,
}
for option, count in counts.items():
    print(f"ResNet-34 with option {option}: {count:,} parameters")
cifar_counts = {
    option: sum(p.numel() for p in models.resnet20(shortcut=option).parameters()) for option in ("A", "B", "C")
}
print(f"ResNet-20 for CIFAR: A {cifar_counts['A']:,}; B has {cifar_counts['B'] - cifar_counts['A']:,} more")

# %% [markdown]
# The paper finds B a little better than A, and C a little better than B. Its ResNet-50, ResNet-101 and ResNet-152
# have B, its CIFAR networks A: the projections are not what makes deep networks train.
#
# **Question before you scroll on:** option A copies every second pixel in both directions. What is its backward, and
# what share of the pixels of x gets any gradient through it?

# %%
x = rng.standard_normal((1, 2, 6, 6))
y, cache = kernels.shortcut_a_forward(x, out_channels=4, stride=2)
dy = rng.standard_normal(y.shape)
dx = kernels.shortcut_a_backward(dy, cache)
transposed = abs(float((dy * y).sum() - (dx * x).sum()))
reached = float((dx != 0).mean())
print("forward: channel of zeros, both channels of x, channel of zeros:", [bool(y[0, c].any()) for c in range(4)])
print(f"pixels of x that get a gradient: {reached:.0%}; <dy, A x> - <A' dy, x> = {transposed:.0e}")

# %% [markdown]
# Its backward is the transpose of a copy: dy goes back to the pixels that were copied, everything else gets 0, and what
# came for the channels of zeros is dropped (read `shortcut_a_backward` in `minires/kernels/residual.py`). No number is
# changed on the way, so the path stays exact, for the 25% of pixels it has. The zeros are half before and half behind
# the channels of x because the published CIFAR weights expect them there.
#
# ## Where the stride sits
#
# A Bottleneck has two places for its stride: the first 1x1 convolution (the paper; "v1") or the 3x3 ("v1.5": what
# torchvision and nearly everybody has today). Both have the same parameters under the same names. Weights of one load
# into the other without a word, and give other outputs.

# %%
x = Tensor(rng.standard_normal((2, 16, 8, 8)), requires_grad=True)
versions = {"v1": "1x1", "v1.5": "3x3"}
strided = {name: Bottleneck(16, 8, 2, BlockOptions(stride_in=place)).double() for name, place in versions.items()}
strided["v1.5"].load_state_dict(strided["v1"].state_dict())
outputs, blind = {}, {}
for name, block in strided.items():
    x.grad = None
    y = block(x)
    y.backward(rng.standard_normal(y.shape))
    outputs[name] = y.detach().numpy()
    blind[name] = float((x.grad.numpy() == 0).all(axis=(0, 1)).mean())
    print(f"{name}: {blind[name]:.0%} of the pixels of x have no influence on the output")
version_difference = float(abs(outputs["v1"] - outputs["v1.5"]).max() / abs(outputs["v1"]).max())
print(f"largest difference of their outputs, with the same weights: {version_difference:.0%} of the largest output")

# %% [markdown]
# That is what v1.5 is for. A 1x1 convolution with stride two reads one pixel in four, and the projection beside it
# reads the same ones: in v1 the other 75% of the pixels are computed and thrown away. A 3x3 with stride two reads
# them all. The price: the first 1x1 convolution runs at full size.

# %%
macs = {
    name: summarize(Bottleneck(256, 128, 2, BlockOptions(stride_in=place)), (256, 56, 56)).macs
    for name, place in versions.items()
}
extra = macs["v1.5"] - macs["v1"]
resnet50_macs = 4_089_184_256  # v1.5, counted in lesson 08
print(f"one block: {extra:,} multiply-adds more; all three of ResNet-50 cost the same, since with each stage the")
print("channels double, twice over, and the pixels are a quarter:")
print(f"ResNet-50: v1.5 {resnet50_macs / 1e9:.3f} G, v1 {(resnet50_macs - 3 * extra) / 1e9:.3f} G multiply-adds")

# %% [markdown]
# The paper's table says 3.8 billion for ResNet-50 (it did not round up); some explainers print 4.1 beside the paper's
# drawing. Both are right, about two different networks.
#
# ## The ReLU after the addition
#
# "Along the skips the gradient reaches the first layer unchanged." You will read this of ResNets in general. It is
# true, within a stage, of the pre-activation blocks of He et al. 2016, where nothing follows the addition:
#
#     x_L = x_l + F(x_l) + F(x_{l+1}) + ... + F(x_{L-1})
#
# The blocks of 2015 have a ReLU after each addition. Let us look at 54 blocks in a row, the number in ResNet-110, of
# each kind. First with all branches set to zero: is the stack the identity?

# %%
BLOCKS, CHANNELS = 54, 16


def stack(kind, count, seed):
    """Fresh blocks in float64, with the initial weights of a ResNet."""
    generator = np.random.default_rng(seed)
    blocks = nn.ModuleList([kind(CHANNELS, CHANNELS) for _ in range(count)])
    for module in blocks.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    return blocks.double()


def without_branches(blocks):
    for module in blocks.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
    return blocks


x = rng.standard_normal((16, CHANNELS, 8, 8))
dy = rng.standard_normal(x.shape)
identical = {}
for kind in (PreActBlock, BasicBlock):
    for sign, values in (("any x", x), ("x >= 0", abs(x))):
        v = start = Tensor(values, requires_grad=True)
        for block in without_branches(stack(kind, BLOCKS, seed=0)):
            v = block(v)
        v.backward(dy)
        same_values = bool((v.detach().numpy() == values).all())
        same_gradient = bool((start.grad.numpy() == dy).all())
        identical[kind.__name__, sign] = same_values, same_gradient
        print(
            f"{kind.__name__:11} {sign:7} output is x to the bit: {same_values}, dx is dy to the bit: {same_gradient}"
        )

# %% [markdown]
# Pre-activation blocks are the identity whatever x is; the others only where x is not negative, which what comes out of
# a ReLU is.
#
# Now with their branches. Take the branches' gradients away (`detach`), and see how much of dy arrives through the
# skips alone.


# %%
def pre_activation(block, v):
    branch = block(v) - v
    return branch, F.residual_add(v, branch.detach())


def post_activation(block, v):
    out = F.relu(block.bn1(block.conv1(v)))
    branch = block.bn2(block.conv2(out))
    return branch, F.relu(F.residual_add(v, branch.detach()))


def share_that_arrives(step, blocks):
    """The share of dy's numbers that reaches the input of each block unchanged, from the last block to the first."""
    v = Tensor(abs(x), requires_grad=True)
    inputs = []
    for block in blocks:
        v.retain_grad()
        inputs.append(v)
        _, v = step(block, v)
    v.backward(dy)
    return np.array([float((u.grad.numpy() == dy).mean()) for u in reversed(inputs)])


shares = {"pre-activation": [], "post-activation": []}
for seed in range(3):
    shares["pre-activation"].append(share_that_arrives(pre_activation, stack(PreActBlock, BLOCKS, seed)))
    shares["post-activation"].append(share_that_arrives(post_activation, stack(BasicBlock, BLOCKS, seed)))
shares = {name: np.array(values) for name, values in shares.items()}
for name, values in shares.items():
    one, ten, all_blocks = values[:, [0, 9, -1]].mean(axis=0)
    print(f"{name:15} after 1 block {one:.0%}, after 10 blocks {ten:.0%}, after {BLOCKS} blocks {all_blocks:.0%}")

# %%
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
passed = range(1, BLOCKS + 1)
axes.plot(passed, 100 * shares["pre-activation"].mean(axis=0), "-", color="black", label="pre-activation (2016)")
axes.plot(
    passed, 100 * shares["post-activation"].mean(axis=0), "--", color="tab:red", label="ReLU after the sum (2015)"
)
axes.set(xlabel="blocks passed on the way back", ylabel="entries of dy unchanged (%)", ylim=(0, 105))
axes.set_title("What arrives through the skips alone")
axes.legend(loc="lower left")
figure.savefig(figures / "07_identity_path.png", dpi=80)

# %% [markdown]
# Through pre-activation blocks all of dy arrives, to the bit. In the blocks of 2015 each ReLU stops the gradient where
# the sum was negative: after ten blocks more than 10% of the entries are gone, after all 54 fewer than one in five is
# left. What passes does pass unchanged, and these networks train well all the same. But the whole of dy does not
# arrive.
#
# The formula for x_L can be checked as well, and so can a remark of He et al. 2016: multiply the skip by one half in
# each block, and next to nothing arrives through the skips.

# %%
v = Tensor(x)
total = x.copy()
for block in stack(PreActBlock, BLOCKS, seed=0):
    branch, v = pre_activation(block, v)
    total += branch.detach().numpy()
sum_error = float(abs(v.detach().numpy() - total).max() / abs(total).max())
print(f"x_L against x_l + the sum of the branches, largest difference: {sum_error:.1e}")

v = start = Tensor(x, requires_grad=True)
for _ in range(BLOCKS):
    v = 0.5 * v  # and a branch, which does not matter here
v.backward(dy)
halved = float((start.grad.numpy() / dy).max())
print(f"skips of weight 0.5: dx = {halved:.0e} dy")

# %% [markdown]
# ## How a block should start
#
# Every fresh block adds a branch with a spread of its own, and the logits of a deep network come out too large: its
# first loss is worse than guessing among ten classes, which costs ln 10. Goyal et al. 2017 start the last batch norm of
# each block with gamma = 0. Then every branch is zero, and every block is its shortcut alone.

# %%
train = digits().train
images, labels = Tensor(train.images[:64]), train.labels[:64]
guessing = log(10)


def first_loss(zero, seed):
    generator = np.random.default_rng(seed)
    model = models.resnet56(width=8, in_channels=1, zero_init_residual=zero, generator=generator)
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    return loss.item(), model


first_losses = {zero: [first_loss(zero, seed)[0] for seed in range(3)] for zero in (False, True)}
print(f"guessing: {guessing:.2f}")
for zero, losses in first_losses.items():
    print(f"gamma starts at {0 if zero else 1}: first loss of ResNet-56", " ".join(f"{loss:.2f}" for loss in losses))

# %% [markdown]
# **Question before you scroll on:** if gamma is 0, the gradient that goes down a branch is multiplied by 0. Which
# parameters of a block learn in the first step, and does the block ever wake up?

# %%
_, model = first_loss(zero=True, seed=0)
block = model.layer1[0]
first_step = {name: float(np.linalg.norm(p.grad.numpy())) for name, p in block.named_parameters()}
for parameter in model.parameters():
    parameter.array -= 0.1 * parameter.grad.array  # one step of gradient descent
    parameter.grad = None
F.cross_entropy(model(images), labels).backward()
second_step = {name: float(np.linalg.norm(p.grad.numpy())) for name, p in block.named_parameters()}
print("norm of the gradient     first step   second step")
for name in first_step:
    print(f"layer1.0.{name:14} {first_step[name]:11.5f} {second_step[name]:13.5f}")

# %% [markdown]
# In the first step only the last batch norm learns; all else in the branch gets a gradient that is exactly 0. After
# that step gamma is no longer 0 and everything learns. (Had the last convolution's weights been 0 as well, the block
# would have slept for ever: only its beta would learn.) In MiniRes this start is `zero_init_residual=True`.
#
# ## A crowd of paths
#
# Veit et al. 2016 multiply the blocks out. Each block offers a choice, skip or branch, so n blocks are 2^n paths from
# the input to the output, and the gradient is the sum of what comes back along all of them. Eight blocks have few
# enough paths to walk every one.

# %%
PATHS_BLOCKS = 8


def branch_backward(block, values, dy):
    """dy sent back through one branch alone."""
    v = Tensor(values, requires_grad=True)
    block(v).backward(dy)
    return v.grad.numpy() - dy  # the block's gradient without the skip's part


def every_path(blocks, values, dy):
    """For each path: its number of branches, and its gradient of the input."""
    paths = [(0, dy)]
    for block, inputs in zip(reversed(blocks), reversed(values), strict=True):
        onward = []
        for length, gradient in paths:
            onward.append((length, gradient))  # along the skip: as it is
            onward.append((length + 1, branch_backward(block, inputs, gradient)))
        paths = onward
    return paths


def walk(seed):
    """All paths of a fresh stack, and what backward() says."""
    generator = np.random.default_rng(seed)
    blocks = list(stack(PreActBlock, PATHS_BLOCKS, seed))
    v = start = Tensor(generator.standard_normal((4, CHANNELS, 6, 6)), requires_grad=True)
    values = []
    for block in blocks:
        values.append(v.detach().numpy())
        v = block(v)
    dy = generator.standard_normal(v.shape)
    v.backward(dy)
    return every_path(blocks, values, dy), start.grad.numpy(), np.linalg.norm(dy)


def mean_norm_by_length(paths, size):
    norms = [[np.linalg.norm(g) for length, g in paths if length == k] for k in range(PATHS_BLOCKS + 1)]
    return np.array([np.mean(one) / size for one in norms])


paths, whole, size = walk(seed=0)
path_error = float(abs(sum(gradient for _, gradient in paths) - whole).max() / abs(whole).max())
by_length = [mean_norm_by_length(paths, size)]
for seed in (1, 2):
    more, _, more_size = walk(seed)
    by_length.append(mean_norm_by_length(more, more_size))
by_length = np.array(by_length)
counted = [sum(length == k for length, _ in paths) for k in range(PATHS_BLOCKS + 1)]
print(f"{len(paths)} paths; their sum against backward(), largest difference: {path_error:.1e}")
print("paths by number of branches:", counted)
print("mean norm of a path's gradient, dy being 1:", " ".join(f"{norm:.3f}" for norm in by_length.mean(axis=0)))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
styles = {"ResNet-20": (9, "o-"), "ResNet-56": (27, "s--"), "ResNet-110": (54, "^:")}
for name, (n, style) in styles.items():
    share = [100 * comb(n, k) / 2**n for k in range(n + 1)]
    left.plot(range(n + 1), share, style, markersize=3, color="black", label=f"{name}: {n} blocks")
left.set(xlabel="branches on a path", ylabel="share of the paths (%)", title="How long the paths are")
left.legend()
right.semilogy(range(PATHS_BLOCKS + 1), by_length.mean(axis=0), "o-", color="black")
right.set(xlabel="branches on a path", ylabel="norm of its gradient, dy = 1", title="What one path brings back")
figure.savefig(figures / "07_paths.png", dpi=80)

# %% [markdown]
# The lengths are binomial: of all the paths of a ResNet-110 a single one goes through all 54 branches, more than 95% go
# through between 19 and 35 of them. And a path brings back less with every branch on it, so the shorter ones count for
# more than their number. In this sense a residual network is many shallower networks as much as one deep one: take one
# block away, and half of the paths are still there (lesson 10 does that).
#
# Every claim that was made, once more:

# %%
most_paths = sum(comb(54, k) for k in range(19, 35 + 1)) / 2**54
print(f"ResNet-110: {most_paths:.1%} of the paths have between 19 and 35 branches")
# the gradient by hand, and what the checker calls the mistakes
assert np.isclose(residual_gradient, 1.1**50) and plain_gradient < 1e-49
assert hand_error < 1e-12 and block_error < 1e-10
assert check_kernel(forward, backward, kind="residual").ok
assert diagnoses["skip_forgotten"] == {"res-missing-skip"} and diagnoses["skip_twice"] == {"res-skip-twice"}
assert diagnoses["skip_past_the_relu"] == {"res-skip-bypasses-relu"}
assert diagnoses["mask_from_the_branch"] == {"res-mask-from-branch"}
assert order_unseen.ok and order_seen.codes == {"forward-wrong"}
assert max(fell["ReLU before the addition"]) == 0 and min(fell["ReLU after it"]) > 0.05
# what blocks cost
basic, bottleneck, wide = costs.values()
assert abs(basic[0] - 70_000) < 5_000 and abs(bottleneck[0] - 70_000) < 5_000 and bottleneck[0] < basic[0]
assert bottleneck[1] < basic[1] and round(wide[1] / basic[1]) == 16 and 16.9 < wide[1] / bottleneck[1] < 17
assert bottleneck[2] == 3 * basic[2]
# shortcuts and strides
assert counts == {"A": 21_623_848, "B": 21_797_672, "C": 22_716_840}  # B is torchvision's number
assert cifar_counts["A"] == 269_722 and cifar_counts["B"] - cifar_counts["A"] == 2_752
assert transposed < 1e-12 and reached == 0.25
assert blind == {"v1": 0.75, "v1.5": 0.0} and version_difference > 0.1
assert 3.8 < (resnet50_macs - 3 * extra) / 1e9 < 3.9 and round(resnet50_macs / 1e9, 1) == 4.1
# the identity path
assert identical["PreActBlock", "any x"] == (True, True)
assert identical["BasicBlock", "any x"] == (False, False) and identical["BasicBlock", "x >= 0"] == (True, True)
assert (shares["pre-activation"] == 1).all()
assert (shares["post-activation"][:, 9] < 1 - 0.1).all() and (shares["post-activation"][:, -1] < 0.2).all()
assert sum_error < 1e-12 and halved == 0.5**54
# how blocks start
assert min(first_losses[False]) > guessing + 0.3
assert max(abs(loss - guessing) for loss in first_losses[True]) < 0.15
assert {name for name, norm in first_step.items() if norm > 0} == {"bn2.weight", "bn2.bias"}
assert min(second_step.values()) > 0
# paths
assert path_error < 1e-10 and counted == [comb(PATHS_BLOCKS, k) for k in range(PATHS_BLOCKS + 1)]
assert (by_length[:, 1:] < by_length[:, :-1]).all() and most_paths > 0.95
print("every claim holds")
