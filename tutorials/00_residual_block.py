# %% [markdown]
# # A residual block, built, checked, trained and opened
#
# You need: NumPy, the chain rule, and MiniRes installed. It takes less than a minute on two cores.
#
# A plain block computes F(x). A residual block computes F(x) + x. That one addition is what lets a network be a
# hundred layers deep. Here you build both blocks from the same parts, check the gradient of the one with the skip,
# train a deep stack of each on real handwritten digits, and then look at what differs inside.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import minires.functional as F
import numpy as np
from threadpoolctl import threadpool_limits

import minires
from minires import Tensor, nn
from minires.data import DataLoader, digits
from minires.optim import SGD, CosineAnnealingLR

threadpool_limits(1)  # these matrix products are too small for more threads

figures = Path(__file__).parent / "figures" if "__file__" in globals() else Path("figures")
figures.mkdir(exist_ok=True)

# %% [markdown]
# ## Build it
#
# F is two 3x3 convolutions, each followed by batch norm, with a ReLU between them. The only difference between the
# two blocks is one line. (Why no bias in the convolutions? Batch norm subtracts the mean, and the bias with it.)


# %%
class Block(nn.Module):
    def __init__(self, channels, skip, generator):
        super().__init__()
        self.skip = skip
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False, generator=generator)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False, generator=generator)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.skip:
            out = F.residual_add(x, out)  # F(x) + x
        return F.relu(out)


print(Block(8, skip=True, generator=np.random.default_rng(0)))

# %% [markdown]
# ## Check its gradient
#
# Nudge one number of the input up and down by a little, see how the output changes, and compare with what
# `backward()` says. The output is a whole array, so weigh it with an upstream gradient dy and look at the sum of dy *
# y.
#
# dy must be random. **Question before you scroll on:** what would a dy of ones find out about a batch norm?

# %%
rng = np.random.default_rng(1)
block = Block(3, skip=True, generator=rng).double()
x = Tensor(rng.standard_normal((4, 3, 5, 6)), requires_grad=True)
y = block(x)
dy = rng.standard_normal(y.shape)
y.backward(dy)

step = 1e-6
worst = 0.0
for _ in range(40):
    index = tuple(int(rng.integers(n)) for n in x.shape)
    values = []
    for sign in (1, -1):
        nudged = x.detach().numpy().copy()
        nudged[index] += sign * step
        values.append(float((block(Tensor(nudged)).detach().numpy() * dy).sum()))
    numeric = (values[0] - values[1]) / (2 * step)
    worst = max(worst, abs(numeric - x.grad[index].item()))
print(f"largest difference between backward() and central differences: {worst:.1e}")
assert worst < 1e-6

# %% [markdown]
# And the answer: after batch norm every channel has the same sum whatever x is, so with a dy of ones the true
# gradient is zero, and a batch norm whose backward returns nothing but zeros passes the check.

# %%
bn = nn.BatchNorm2d(3).double()
x.grad = None
bn(x).backward(np.ones(x.shape))
blind = float(np.abs(x.grad.numpy()).max())
print(f"largest entry of batch norm's gradient for a dy of ones: {blind:.1e}")
assert blind < 1e-12

# %% [markdown]
# ## Train it beside the same block without the skip
#
# Two networks of 20 blocks, 42 layers: the same parts, the same initial weights, the same batches in the same order.
# One has the skips, the other has not.

# %%
BLOCKS, CHANNELS, EPOCHS = 20, 8, 4


class Network(nn.Module):
    def __init__(self, skip, seed):
        super().__init__()
        generator = np.random.default_rng(seed)
        self.stem = nn.Sequential(
            nn.Conv2d(1, CHANNELS, 3, padding=1, bias=False, generator=generator), nn.BatchNorm2d(CHANNELS), nn.ReLU()
        )
        self.blocks = nn.Sequential(*[Block(CHANNELS, skip, generator) for _ in range(BLOCKS)])
        self.head = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4 * CHANNELS, 10, generator=generator))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)))


def train(skip, seed=0):
    network = Network(skip, seed)
    loader = DataLoader(digits().train, 64, shuffle=True, seed=seed)
    optimizer = SGD(network.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    schedule = CosineAnnealingLR(optimizer, T_max=EPOCHS * len(loader))
    losses = []
    for _ in range(EPOCHS):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return network, losses


def training_error(network):
    """The share of the training digits that the network gets wrong, in evaluation mode."""
    network.eval()
    data = digits().train
    with minires.no_grad():
        wrong = network(Tensor(data.images)).argmax(dim=1) != Tensor(data.labels)
    return wrong.float().mean().item()


print(f"{2 * BLOCKS + 2} layers, {CHANNELS} channels, {EPOCHS} epochs")
residual, residual_losses = train(skip=True)
plain, plain_losses = train(skip=False)
errors = {"residual": training_error(residual), "plain": training_error(plain)}
print(f"training error after {EPOCHS} epochs: residual {errors['residual']:.1%}, plain {errors['plain']:.1%}")

# %%
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.plot(plain_losses, "--", color="tab:red", label="plain: F(x)")
axes.plot(residual_losses, "-", color="tab:blue", label="residual: F(x) + x")
axes.axhline(np.log(10), color="gray", linewidth=0.8)
axes.annotate("guessing: ln 10", (60, np.log(10)), xytext=(0, 4), textcoords="offset points", fontsize=8)
axes.set(xlabel="step", ylabel="training loss", title=f"{2 * BLOCKS + 2} layers, with the skip and without")
axes.legend()
figure.savefig(figures / "00_training.png", dpi=80)

# %% [markdown]
# This is not overfitting: the plain network is worse on the digits that it was trained on. Any plain network could
# imitate a shallower one by making its last blocks the identity; gradient descent does not find that. With the skip
# the identity is nearby: a block only has to learn to add little. (The residual network starts worse than guessing,
# though: every fresh block adds a branch with a spread of its own. Starting the last batch norm of each block with
# weight 0 would cure that.)
#
# ## Look inside
#
# What differs before the first step? Take fresh networks, send one batch through, and measure how large the gradient
# is at every block, from the last (which the loss reaches first) to the first.


# %%
def gradient_by_block(skip, seed):
    network = Network(skip, seed)
    images, labels = next(iter(DataLoader(digits().train, 128, shuffle=True, seed=seed)))
    F.cross_entropy(network(images), labels).backward()
    return np.array([np.linalg.norm(block.conv1.weight.grad.numpy()) for block in network.blocks])


seeds = range(3)
norms = {
    "plain": np.mean([gradient_by_block(False, seed) for seed in seeds], axis=0),
    "residual": np.mean([gradient_by_block(True, seed) for seed in seeds], axis=0),
}
growth = {name: values[0] / values[-1] for name, values in norms.items()}
print(f"gradient at the first block over the last: residual {growth['residual']:.1f}, plain {growth['plain']:.0f}")

# %%
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.semilogy(range(1, BLOCKS + 1), norms["plain"], "s--", color="tab:red", markersize=3, label="plain: F(x)")
axes.semilogy(range(1, BLOCKS + 1), norms["residual"], "o-", color="tab:blue", markersize=3, label="residual: F(x) + x")
axes.set_xticks([1, 5, 10, 15, 20])
axes.set(xlabel="block (the loss is on the right)", ylabel="norm of the weight gradient", title="At initialisation")
axes.legend()
figure.savefig(figures / "00_gradients.png", dpi=80)

# %% [markdown]
# Many explanations say that the gradients of a deep plain network vanish. With batch norm it is the other way round:
# on the way back they grow by a constant factor a block, exponentially in depth (a straight line in this picture).
# With the skip the growth is slow: dy reaches every block through the additions, past all the convolutions and batch
# norms on the way; only the ReLU after each addition still masks it. (The growth alone does not explain why the plain
# network learns so badly: `tutorials/06_deeper_is_worse.py` tests that.)
#
# And after training? Take one block at a time out of the trained residual network, without training again, and count
# how many training digits it then gets wrong.


# %%
def error_without(network, removed):
    """The training error with one block passed over."""
    blocks = [block for i, block in enumerate(network.blocks) if i != removed]
    lesioned = nn.Sequential(network.stem, *blocks, network.head)
    return training_error(lesioned)


lesions = np.array([error_without(residual, i) for i in range(BLOCKS)])
print(f"all blocks {errors['residual']:.1%}; without one, by block:", " ".join(f"{e:.1%}" for e in lesions))

# %%
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.bar(range(1, BLOCKS + 1), 100 * lesions, color="tab:blue", label="one block removed")
axes.axhline(100 * errors["residual"], color="black", linestyle="--", label="all blocks")
axes.set_xticks([1, 5, 10, 15, 20])
axes.set(xlabel="block that was removed", ylabel="training error (%)", title="The residual network, one block short")
axes.legend()
figure.savefig(figures / "00_lesions.png", dpi=80)

# %% [markdown]
# Most blocks can go and the network hardly notices; the first ones matter more. Each block adds a little to what
# passes by, and the others can mostly do without it: a residual network is less a chain than a crowd of paths of
# different lengths (Veit et al. 2016). (Try the same with the plain network once it is shallow enough to train: there
# every block is a link, and the chain breaks.)

# %%
assert errors["residual"] < 0.1 and errors["plain"] > 5 * errors["residual"]
assert growth["plain"] > 10 * growth["residual"]
assert np.median(lesions) - errors["residual"] < 0.1 and lesions[:3].mean() > 2 * np.median(lesions)
