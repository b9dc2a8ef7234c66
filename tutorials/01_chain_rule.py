# %% [markdown]
# # A graph and the chain rule
#
# You need: NumPy, the chain rule, and MiniRes installed. It takes less than a minute on two cores, and a quiet half
# hour to read.
#
# Everything that trains a ResNet-152 is in one multiplication: a value goes forward, a gradient comes back. This
# lesson starts there, looks at what the engine remembers, writes `backward()` a second time in under twenty lines,
# trains a small network by hand, and ends with what goes wrong when a chain is long: the reason why residual networks
# exist.

# %%
from operator import attrgetter
from pathlib import Path

import matplotlib.pyplot as plt
import minires.functional as F
import numpy as np
from threadpoolctl import threadpool_limits

import minires
from minires import Tensor, debug
from minires.data import digits
from minires.engine.tensor import Node

threadpool_limits(1)  # these matrix products are too small for more threads
figures = Path(__file__).parent / "figures" if "__file__" in globals() else Path("figures")
figures.mkdir(exist_ok=True)

# %% [markdown]
# ## One multiplication
#
# y = a b. By hand: dy/da = b, because a step of h in a moves y by h b, and in the same way dy/db = a. The gradient
# answers a question about steps, so it can be asked without any calculus: go a little up, go a little down, and divide
# the difference of the results by the distance. That is the central difference.


# %%
def multiply(a, b):
    return a * b


A, B, STEP = 3.0, -4.0, 1e-6
by_hand = (B, A)
numeric = (
    (multiply(A + STEP, B) - multiply(A - STEP, B)) / (2 * STEP),
    (multiply(A, B + STEP) - multiply(A, B - STEP)) / (2 * STEP),
)

a = Tensor(A, requires_grad=True, dtype="float64")
b = Tensor(B, requires_grad=True, dtype="float64")
y = multiply(a, b)
y.backward()
engine = (a.grad.item(), b.grad.item())
print(f"by hand               dy/da = {by_hand[0]:.9f}   dy/db = {by_hand[1]:.9f}")
print(f"central differences   dy/da = {numeric[0]:.9f}   dy/db = {numeric[1]:.9f}")
print(f"y.backward()          dy/da = {engine[0]:.9f}   dy/db = {engine[1]:.9f}")

# %% [markdown]
# Three ways, one answer. The first needs a person, the second needs two runs for every number, and a network has
# millions of them. The third needs one run forward and one back, however many numbers there are. What makes that
# possible is memory.
#
# ## What is remembered
#
# A Tensor that was computed carries a Node, and a Node keeps four things: which operation it was, what that operation
# will need on the way back (its cache), where its inputs came from (its parents), and the line of your file that asked
# for it. The rest is bookkeeping: read `Node` in `minires/engine/tensor.py`.

# %%
y = multiply(a, b)
file, line = y.node.where
print("operation:", y.node.operation)
print("cache:    ", y.node.cache)
print("parents:  ", y.node.parents)
print(f"where:     {Path(file).name}, line {line}")

# %% [markdown]
# The cache holds both factors, because each is the other's derivative. The operation itself is two plain functions on
# arrays, `multiply_forward` and `multiply_backward` in `minires/kernels/arithmetic.py`: they know nothing of graphs.
# The backward function gets dy, the gradient of the end result with respect to y, and multiplies: da = dy b, db = dy a.
# That product with dy is the chain rule. Every backward function in this library is such a product, if of larger
# arrays, and the rest of the engine only carries the dy around.

# %%
from_kernel = y.node.backward(np.array(10.0), y.node.cache)
print(f"multiply_backward(dy=10): da = {from_kernel[0]:.0f}, db = {from_kernel[1]:.0f}")

# %% [markdown]
# ## A value that is used twice
#
# Now three operations in a row: c = a b, then d = c + a, then the loss d^2. Note that a goes into two of them.

# %%
a = Tensor(A, requires_grad=True, dtype="float64")
b = Tensor(B, requires_grad=True, dtype="float64")
c = a * b
d = c + a
loss = d**2
print(f"c = {c.item():.0f}, d = {d.item():.0f}, loss = {loss.item():.0f}")

debug.draw(loss, figures / "01_graph.png")
figure, axes = plt.subplots(figsize=(4, 4), layout="constrained")  # and show it, where this is a notebook
axes.imshow(plt.imread(figures / "01_graph.png"))
axes.axis("off")

# %% [markdown]
# `debug.draw` has put the graph into `tutorials/figures/01_graph.png`. The long arrow is a, on its way past the
# multiplication to the addition: the same shape as the skip of a residual block, where x goes past F and is added.
#
# **Question before you scroll on:** what is the derivative of the loss with respect to a? And what would come out if
# an engine stored the second gradient that arrives at a in place of the first?
#
# ## backward() is one loop
#
# Here is the engine's loop again, with no optimisation and no error messages. It collects the Nodes behind the loss
# and walks through them from the newest to the oldest. Each Node's kernel turns the gradient of its result into the
# gradients of its inputs, and these are handed to the parents. The one line to look at is the one with the plus.


# %%
def nodes_behind(loss):
    found, waiting = set(), [loss.node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Node) and node not in found:
            found.add(node)
            waiting.extend(node.parents)
    return sorted(found, key=attrgetter("number"), reverse=True)  # the newest first


def walk_back(loss):
    """The gradient of the loss with respect to every Node and every leaf behind it."""
    grads = {loss.node: np.ones(loss.shape, loss.dtype)}  # d loss / d loss
    for node in nodes_behind(loss):
        returned = node.backward(grads[node], node.cache)
        returned = returned if isinstance(returned, tuple) else (returned,)
        for parent, grad in zip(node.parents, returned, strict=False):  # a bias that is not there has no parent
            if parent is not None:  # an input that wants no gradient has None
                grads[parent] = grads.get(parent, 0) + grad
    return grads


ours = walk_back(loss)
loss.backward()
a_used_twice = a.grad.item()
print(f"our loop: dloss/da = {ours[a]:.0f}, dloss/db = {ours[b]:.0f}")
print(f"backward: dloss/da = {a_used_twice:.0f}, dloss/db = {b.grad.item():.0f}")

# %% [markdown]
# By hand: the loss is (a b + a)^2, its derivative with respect to a is 2 d (b + 1). The 1 is the way past the
# multiplication, the b is the way through it. A value that is used in several places moves the result along every one
# of them, and the steps add up: that is the chain rule for several variables, and the whole reason for the plus. With
# `grads[parent] = grad` the way that reports last would stay (through the multiplication) and the other be lost:

# %%
d_value = A * B + A
exact = 2 * d_value * (B + 1)
through, past = 2 * d_value * B, 2 * d_value * 1
print(f"through the multiplication {through:.0f}, past it {past:.0f}, together {exact:.0f}")

# %% [markdown]
# The order matters as much as the plus. A Node may only be asked once all that used its result have handed their
# gradient back, and an operation is always younger than its inputs: so the newest go first. What if each gradient were
# passed on at once, as soon as it arrives? The sums would still be right, but every path from the end to the beginning
# would be walked on its own, and a graph can have very many paths. In the next cell a value is added to itself a
# dozen times over.

# %%
DOUBLINGS = 12
start = Tensor(1.0, requires_grad=True)
end = start
for _ in range(DOUBLINGS):
    end = end + end


def walk_every_path(node, dy):
    """Pass each gradient on at once. Returns how often a kernel was called."""
    if not isinstance(node, Node):
        return 0
    da, db = node.backward(dy, node.cache)
    return 1 + walk_every_path(node.parents[0], da) + walk_every_path(node.parents[1], db)


calls_by_path = walk_every_path(end.node, np.ones((), np.float32))
calls_in_order = len(nodes_behind(end))
print(f"{DOUBLINGS} additions: {calls_in_order} calls in order, {calls_by_path} calls path by path")

# %% [markdown]
# Each addition doubles the number of paths. A residual network has such a fork in every block, so it too has a number
# of paths that is exponential in its depth (a later lesson measures what they are good for), and the loop in order
# still visits each operation once.
#
# Is our loop the real thing? Give it a whole residual network and compare every parameter's gradient with what
# `backward()` leaves.

# %%
network = minires.create_model("resnet8", in_channels=1)
images, labels = digits().train.images[:32], digits().train.labels[:32]
loss = F.cross_entropy(network(Tensor(images)), Tensor(labels))
ours = walk_back(loss)
loss.backward()
same_bits = [np.array_equal(ours[p], p.grad.numpy()) for p in network.parameters()]
print(f"ResNet-8: {sum(same_bits)} of {len(same_bits)} parameters have the same gradient, bit for bit")

# %% [markdown]
# Every one of them is equal to the last bit. So few lines are enough for a residual network. `Tensor.backward` in
# `minires/engine/tensor.py` is this loop too, and finds the newest Node with a heap; the functions that it calls beside
# it, in `minires/engine/armour.py`, check, free memory, and say at which line of yours something went wrong.
#
# ## Broadcasting: its gradient is a sum
#
# NumPy repeats what is too small: a bias of ten numbers is added to every row of a batch. Repeating is using a value
# several times, and we know what that means on the way back: the sum of all the gradients.

# %%
rng = np.random.default_rng(0)
column = Tensor(rng.standard_normal((3, 1)), requires_grad=True)
row = Tensor(rng.standard_normal((1, 4)), requires_grad=True)
table = column + row  # (3, 4)
dy = rng.standard_normal(table.shape)
table.backward(dy)
print("dcolumn is dy summed along the rows:   ", np.allclose(column.grad.numpy(), dy.sum(axis=1, keepdims=True)))
print("drow is dy summed along the columns:   ", np.allclose(row.grad.numpy(), dy.sum(axis=0, keepdims=True)))

# %% [markdown]
# Forward copies, backward adds; the transpose of a copy is a sum. You will meet this pair again: im2col copies pixels
# into columns and col2im adds them up, a convolution uses one weight at every pixel. Write it yourself with
# `minires exercise start add_broadcast`; the shipped one is `unbroadcast` in `minires/kernels/arithmetic.py`.
#
# ## What is freed, and what stays
#
# Caches are most of the memory of training. `backward()` frees each of them when it has been used, so a second
# `backward()` has nothing to work with, and says so. With `retain_graph=True` the first one keeps them. Gradients are
# added to what is in `.grad` already: two walks leave twice the gradient, which is why a training loop clears
# them at each step. And inside `no_grad()` nothing is remembered at all.

# %%
a = Tensor(A, requires_grad=True)
y = a * a
y.backward()
try:
    y.backward()
    second = "a second backward worked"
except RuntimeError as error:
    second = str(error)
print(second.replace(file, Path(file).name))

a.grad = None
y = a * a
y.backward(retain_graph=True)
once = a.grad.item()
y.backward()
twice = a.grad.item()
print(f"after one backward {once:.0f}, after two {twice:.0f}")

with minires.no_grad():
    unrecorded = a * a
print("inside no_grad:", unrecorded, "its Node:", unrecorded.node)

# %% [markdown]
# ## A network by hand
#
# Two linear layers with a ReLU between them, on real handwritten digits. First all of its calculus in NumPy. The
# second half goes through the first one from its last line to its first: each line belongs to one of the forward's,
# and is a product with the gradient that the line before it left. (That the gradient of softmax and cross entropy
# together is p minus the one-hot labels is a subject of the lesson on losses.)


# %%
def by_hand_network(x, labels, w1, b1, w2, b2):
    """The loss and the gradients of the four parameters."""
    N = len(x)
    # Forward.
    z1 = x @ w1.T + b1  # (N, HIDDEN)
    h = np.maximum(z1, 0)
    z2 = h @ w2.T + b2  # (N, 10)
    e = np.exp(z2 - z2.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(N), labels]).mean()
    # Backward.
    dz2 = p.copy()
    dz2[np.arange(N), labels] -= 1
    dz2 /= N
    dw2, db2 = dz2.T @ h, dz2.sum(axis=0)
    dh = dz2 @ w2
    dz1 = dh * (z1 > 0)
    dw1, db1 = dz1.T @ x, dz1.sum(axis=0)
    return loss, (dw1, db1, dw2, db2)


HIDDEN = 32
data = digits()
train_x = data.train.images.reshape(len(data.train), -1).astype(np.float64)  # (1437, 64)
test_x = data.test.images.reshape(len(data.test), -1).astype(np.float64)
rng = np.random.default_rng(0)
initial = [
    rng.standard_normal((HIDDEN, 64)) * np.sqrt(2 / 64),  # (out, in)
    np.zeros(HIDDEN),
    rng.standard_normal((10, HIDDEN)) * np.sqrt(2 / HIDDEN),
    np.zeros(10),
]


def forward(x, parameters):
    w1, b1, w2, b2 = parameters
    h = F.relu(F.linear(x, w1, b1))
    return F.linear(h, w2, b2)


parameters = [Tensor(array, requires_grad=True) for array in initial]
loss = F.cross_entropy(forward(Tensor(train_x), parameters), Tensor(data.train.labels))
loss.backward()
hand_loss, hand_grads = by_hand_network(train_x, data.train.labels, *initial)
largest = max(np.abs(p.grad.numpy() - g).max() for p, g in zip(parameters, hand_grads, strict=True))
print(f"loss {loss.item():.6f}, by hand {hand_loss:.6f}; largest difference of a gradient {largest:.1e}")

# %% [markdown]
# The engine has done nothing that you could not write down. But the calculus by hand is for this one network; the next
# one needs it anew, and by a hundred layers nobody gets it right. With the engine only the first half is written.
# (`minires exercise start linear` is the linear layer's share of it.)
#
# And a gradient is all that training needs: take a step against it, again and again. This is gradient descent in its
# plainest form, every digit in every step. The update happens on the bare arrays, because it is not
# part of what is differentiated.

# %%
STEPS, RATE = 300, 0.5
losses, test_errors = [], []
for _ in range(STEPS):
    for p in parameters:
        p.grad = None
    loss = F.cross_entropy(forward(Tensor(train_x), parameters), Tensor(data.train.labels))
    loss.backward()
    for p in parameters:
        p.data = p.detach().numpy() - RATE * p.grad.numpy()
    with minires.no_grad():
        wrong = forward(Tensor(test_x), parameters).argmax(dim=1) != Tensor(data.test.labels)
    losses.append(loss.item())
    test_errors.append(wrong.double().mean().item())
print(f"loss {losses[0]:.2f} -> {losses[-1]:.3f}; wrong on the test digits: {test_errors[-1]:.1%}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
left.semilogy(losses, "-", color="tab:blue")
left.axhline(np.log(10), color="gray", linewidth=0.8)
left.annotate("guessing: ln 10", (STEPS * 0.5, np.log(10)), xytext=(0, 4), textcoords="offset points", fontsize=8)
left.set(ylim=(0.01, 5), xlabel="step", ylabel="training loss", title="Gradient descent on 1,437 digits")
right.semilogy(100 * np.array(test_errors), "-", color="tab:red")
right.set(xlabel="step", ylabel="wrong on 360 test digits (%)", title="Two linear layers and a ReLU")
right.set_yticks([2, 5, 10, 20, 50], labels=["2", "5", "10", "20", "50"])
right.minorticks_off()
figure.savefig(figures / "01_descent.png", dpi=80)

# %% [markdown]
# ## A long chain
#
# Two layers train by the plainest method. Why not a hundred? Because the chain rule is a product, with one factor for
# each layer on the way.
#
# **Question before you scroll on:** each of fifty layers multiplies the gradient by 0.9. How much of it arrives at
# the first layer? And with 1.1?

# %%
DEPTH, WIDTH = 50, 64


def scalar_chain(factor, skip=False, dtype="float64"):
    """d end / d start of DEPTH multiplications by a factor, each with a skip or without."""
    start = Tensor(1.0, requires_grad=True, dtype=dtype)
    stream = start
    for _ in range(DEPTH):
        branch = stream * factor
        stream = stream + branch if skip else branch
    stream.backward()
    return start.grad.item()


print(f"fifty times 0.9: {scalar_chain(0.9):.4f}      fifty times 1.1: {scalar_chain(1.1):.0f}")
print(f"fifty times 0.1 in float32: {scalar_chain(0.1, dtype='float32')}")

# %% [markdown]
# Ten percent less than 1 leaves less than 1% of the gradient; ten percent more makes it more than 100 times too large.
# (And a factor of 0.1, in float32, leaves nothing: the smallest number above 0 that it knows is larger than the
# product.) A product of many factors does not stay where it is unless their geometric mean is 1, almost exactly.
#
# In a network the factors are matrices. Take random ones, a fresh one for each layer, with entries of spread s /
# sqrt(width): on average such a matrix makes a vector s times as long. Send a gradient of length 1 through fifty of
# them, and note its length at every layer. Then do it once more with a skip in each layer: y = x + F(x), whose
# derivative is 1 + F'(x).


# %%
def gradient_along(scale, skip, seed):
    """The length of the gradient before each layer and at the end, for an upstream gradient of length 1."""
    rng = np.random.default_rng(seed)
    stream = Tensor(rng.standard_normal((1, WIDTH)), requires_grad=True)
    stations = [stream]
    for _ in range(DEPTH):
        w = Tensor(rng.standard_normal((WIDTH, WIDTH)) * scale / np.sqrt(WIDTH))
        branch = F.linear(stream, w)
        stream = F.residual_add(stream, branch) if skip else branch
        stream.retain_grad()  # backward() leaves gradients at leaves alone, unless it is asked
        stations.append(stream)
    dy = rng.standard_normal(stream.shape)
    stream.backward(dy / np.linalg.norm(dy))
    return np.array([np.linalg.norm(station.grad.numpy()) for station in stations])


def arriving(scale, skip):
    """The length that arrives at the first layer: the geometric mean over three seeds."""
    return np.exp(np.mean([np.log(gradient_along(scale, skip, seed)[0]) for seed in range(3)]))


scales = [0.03, 0.05, 0.1, 0.14, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0, 1.1, 1.5]
plain = {scale: arriving(scale, skip=False) for scale in scales}
residual = {scale: arriving(scale, skip=True) for scale in scales}
print("spread s      plain     (s^50)        with a skip   ((1 + s^2)^25)")
for scale in scales:
    skip_expected = (1 + scale**2) ** (DEPTH / 2)
    print(f"{scale:<8} {plain[scale]:10.1e}   ({scale**DEPTH:.0e})    {residual[scale]:12.2e}   ({skip_expected:.2e})")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
layers = np.arange(1, DEPTH + 2)
for scale, skip, style, color in (
    (1.1, False, "--", "tab:red"),
    (0.9, False, "-.", "tab:red"),
    (0.5, False, ":", "tab:red"),
    (0.5, True, "-", "tab:blue"),
    (0.14, True, "s-", "tab:blue"),
):
    label = f"{'with a skip' if skip else 'plain'}, s = {scale}"
    left.semilogy(layers, gradient_along(scale, skip, 0), style, color=color, markevery=10, markersize=4, label=label)
left.set(xlabel="layer (the gradient starts on the right)", ylabel="length of the gradient", title="One chain")
left.legend(fontsize=8)
right.loglog(scales, list(plain.values()), "s--", color="tab:red", markersize=4, label="plain: F'")
right.loglog(scales, list(residual.values()), "o-", color="tab:blue", markersize=4, label="with a skip: 1 + F'")
right.axhline(1, color="gray", linewidth=0.8)
right.set(
    xlabel="spread s of a layer's factor", ylabel="length at the first layer", title="What arrives after 50 layers"
)
right.set_xticks([0.03, 0.1, 0.3, 1], labels=["0.03", "0.1", "0.3", "1"])
right.legend(fontsize=8)
figure.savefig(figures / "01_chain.png", dpi=80)

# %% [markdown]
# The dashed line crosses 1 at a single point: a plain chain works where every layer keeps the length, and nowhere
# else. That is what careful initialisation and batch norm are for. With the skip the left half of the picture is
# flat: the gradient arrives whatever the branch is, down to a branch of nothing. It does not vanish.
#
# Common explanations go on: "so the gradient neither vanishes nor explodes, because of the 1". The measurement says
# only half of that. With the skip a layer makes the gradient sqrt(1 + s^2) times as long on average, never shorter, and
# fifty branches of full size (s = 1) make it more than 100,000 times too long. The skip helps where the branch is
# small beside it: at s = 0.14, about one over the square root of the depth, the gradient stays within a factor of 3.
# How real residual networks keep their branches small, by batch norm, by a last weight of zero, is told in the lessons
# on depth and on the block.
#
# Nor is the 1 a guarantee. Random branches point in all directions, and on average they only add. A branch that
# works against the stream in every layer can still cancel it, as one multiplication by -0.5 shows:

# %%
opposed = scalar_chain(-0.5, skip=True)
print(f"fifty layers of 1 + F' with F' = -0.5: {opposed:.1e}")

# %% [markdown]
# What the skip changes is where a fresh network starts: near the identity, where everything arrives, and not
# somewhere in the space of all products, where almost nothing does. The next lesson makes sure that each factor of
# the product is right.

# %%
assert engine == by_hand and np.allclose(engine, numeric, rtol=1e-7)
assert from_kernel == (10 * B, 10 * A)
assert exact == through + past == a_used_twice
assert calls_in_order == DOUBLINGS and calls_by_path == 2**DOUBLINGS - 1
assert all(same_bits) and len(same_bits) > 20
assert "was freed by an earlier backward" in second and twice == 2 * once and unrecorded.node is None
assert largest < 1e-12
assert losses[-1] < 0.1 and test_errors[-1] < 0.06
assert scalar_chain(0.9) < 0.01 and scalar_chain(1.1) > 100 and scalar_chain(0.1, dtype="float32") == 0
assert plain[0.5] < 1e-10 and plain[1.5] > 1e4 and residual[1.0] > 100_000
assert all(0.5 < residual[scale] for scale in scales) and 1 / 3 < residual[0.14] < 3
assert opposed < 1e-12
