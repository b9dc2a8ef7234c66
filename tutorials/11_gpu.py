# %% [markdown]
# # The same source on a GPU: CuPy, what differs, how it is tested
#
# You need: NumPy and MiniRes; a GPU is not needed. It takes less than ten seconds on two cores.
#
# CuPy is NumPy's interface on an NVIDIA GPU, and MiniRes is written once for both. This lesson shows how one source
# serves two libraries, where they differ, what a training step costs on a device whose unit of cost is the launch,
# how that is counted and tested without a GPU, and which mistakes only such a test finds.
#
# **No physical GPU has been tried** in the making of MiniRes. What is said about launches, copies and waits below is
# counted; what is said about time is a model, and is called one.

# %%
import inspect
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import minires.functional as F
import numpy as np
from threadpoolctl import threadpool_limits

import minires
from minires import Tensor, cuda, kernels, nn
from minires.data import DataLoader, digits
from minires.engine.modes import Watcher, mode
from minires.kernels.backend import array_module, device_of, to_device, to_numpy
from minires.optim import SGD
from minires.optim.sgd import momentum_step

threadpool_limits(1)  # these matrix products are too small for more threads

here = Path(__file__).resolve().parent if "__file__" in globals() else Path.cwd()
figures = here / "figures"
figures.mkdir(exist_ok=True)

# %% [markdown]
# ## One source
#
# A kernel asks once which library holds its array, calls the answer xp, and goes on as if there were one library.
# Here is `relu_forward` from `minires/kernels/residual.py`, and `array_module` from `minires/kernels/backend.py`, which
# gives the answer.

# %%
print(inspect.getsource(kernels.relu_forward))
print(inspect.getsource(array_module))

# %% [markdown]
# There is no list of backends and no registry. CuPy is imported only when "cuda" is asked for, and a machine without
# it never notices.
#
# What answers to "cuda" in the rest of this lesson? A GPU, if you have one and CuPy is installed. Without it, the
# *strict stand-in* of the tests, `tests/strict_cupy.py`: it has CuPy's names and CuPy's refusals, computes with
# NumPy, and counts what a GPU would have been asked for. It is part of MiniRes's source and not of the installed
# package, so it is there if this file lies in a checkout. Without both, the lesson goes on with NumPy and the counts
# that its author saw.

# %%
GPU = cuda.is_available()
strict_cupy = None
if (here.parent / "tests" / "strict_cupy.py").exists():
    sys.path.insert(0, str(here.parent / "tests"))
    import strict_cupy

DEVICE = GPU or strict_cupy is not None
print(f"a GPU: {'yes' if GPU else minires.cuda_problem()}")
if strict_cupy:
    print(f"the stand-in: found, made after CuPy {strict_cupy.module.__version__}")
else:
    print("the stand-in: not found. For all of this lesson, run it in a checkout, with tests/ beside tutorials/")


def device():
    """A with block in which "cuda" works: on the GPU, or else in the stand-in."""
    return nullcontext() if GPU else strict_cupy.installed()


def cupy_module():
    """The module cupy: CuPy itself, or within the block of device() the stand-in."""
    return sys.modules["cupy"]


# %% [markdown]
# Three steps of training on both, from the same seed. Weights, batches, crops and dropout masks are drawn with NumPy
# on the host and then copied: the random streams of the two libraries never agree, so nothing else would give the
# same start.


# %%
def losses_on(name, steps=3):
    """The losses of the first steps of a ResNet-8 on digits."""
    model = minires.create_model("resnet8", in_channels=1, generator=np.random.default_rng(0)).to(name)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    losses = []
    for _, (images, labels) in zip(range(steps), DataLoader(digits().train, 32, shuffle=True, seed=0), strict=False):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images.to(name)), labels.to(name))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())  # this waits; a real loop asks only when it prints
    return losses


host_losses = losses_on("cpu")
device_losses = host_losses
print("NumPy: ", " ".join(f"{loss:.6f}" for loss in host_losses))
if DEVICE:
    with device():
        device_losses = losses_on("cuda")
    print("device:", " ".join(f"{loss:.6f}" for loss in device_losses))

# %% [markdown]
# ## What differs
#
# Not the formulas: the manners. Each line below is tried with NumPy and with the device.
#
# **Question before you scroll on:** an index array holds 5 and the axis has 3 entries. NumPy raises an error. What
# can a GPU do, where thousands of threads look up an entry each and none of them can stop the program?


# %%
def add_host_array(xp):
    return (xp.ones(3) + np.ones(3)).shape


def assign_host_array(xp):
    a = xp.zeros(3)
    a[:] = np.ones(3)
    return "done"


def add_numpy_scalar(xp):
    return (xp.ones(3) + np.float64(1)).shape


def index_out_of_range(xp):
    return f"{float(xp.arange(3.0)[xp.asarray([5])][0]):.0f}"


def order_after_maximum(xp):
    y = xp.maximum(xp.ones((2, 3)).T, 0)
    return "kept" if y.flags.f_contiguous else "row-major"


def asarray_of_host(xp):
    host = np.zeros(3)
    view = xp.asarray(host)
    view += 1
    return "the host's memory" if host[0] == 1 else "a copy"


def write_broadcast_view(xp):
    wide = xp.broadcast_to(xp.zeros(1), (3,))
    wide[:] = 5
    return "written"


def sum_with_where(xp):
    return float(xp.ones(3).sum(where=xp.ones(3) > 0))


def numpy_function(xp):
    return type(np.maximum(xp.ones(3), 0)).__module__


def numpy_array_of_it(xp):
    return type(np.asarray(xp.ones(3))).__module__


MANNERS = {
    "a + host array": add_host_array,
    "a[:] = host array": assign_host_array,
    "a + a NumPy scalar": add_numpy_scalar,
    "a[5], as an array index, of 3 entries": index_out_of_range,
    "maximum(a.T, 0): memory order": order_after_maximum,
    "asarray(host array) is": asarray_of_host,
    "write to broadcast_to's view": write_broadcast_view,
    "a.sum(where=...)": sum_with_where,
    "np.maximum(a, 0) is an array of": numpy_function,
    "np.asarray(a) is an array of": numpy_array_of_it,
}


def answer(action, xp):
    """What an action returned, or the name of the error that it raised."""
    try:
        return str(action(xp))
    except (TypeError, ValueError, IndexError) as error:
        return type(error).__name__


manners = {name: [answer(action, np)] for name, action in MANNERS.items()}
if DEVICE:
    with device():
        for name, action in MANNERS.items():
            manners[name].append(answer(action, cupy_module()))
print(f"{'':40}{'NumPy':20}{'CuPy' if DEVICE else ''}")
for name, answers in manners.items():
    print(f"{name:40}" + "".join(f"{one:20}" for one in answers))

# %% [markdown]
# What follows from each, in MiniRes:
#
# - Host and device arrays never mix. Nothing is copied behind your back; `to_device` and `to_numpy` in
#   `minires/kernels/backend.py` are the only two doors.
# - Indices wrap: 5 becomes 5 modulo 3. A wrong class number raises an error on the host; on the device nobody looks,
#   since looking would mean waiting, and the loss becomes NaN.
# - NumPy keeps the memory order of its operands, CuPy writes row-major. MiniRes keeps images last in memory, so
#   `relu_forward` passes `out=xp.empty_like(x)`: with the plain call the next layer would have to copy first.
# - `asarray` shares or copies, and CuPy lets you write to a broadcast view, whose entries share memory: an update in
#   place may reach more or less than you meant. Kernels do not write into their arguments unless they are told to.
# - Some keywords are missing. That is found by a list of names and keywords, taken from CuPy.
# - With a duplicate index, as in `a[[0, 0]] = [1, 2]`, NumPy's last one wins; on a GPU nobody knows which. MiniRes
#   has no such line. (Neither the stand-in nor one run on a GPU can show that: the absence of a race is read, not
#   tested.)
#
# The line about `np.maximum` is a surprise for many: NumPy's functions hand a CuPy array on to CuPy, so writing `np.`
# for `xp.` is often no mistake at all, until the function *makes* an array. More on that below.
#
# ## Launches, copies, waits
#
# Python does not compute on the GPU; it sends orders. Sending one (a *launch*) takes some microseconds, whatever the
# size of the arrays, and the GPU works while Python sends the next. So three things count: how many launches; how
# many copies between host and device; and how often Python must stand still for a value (a *wait*), while the queue
# runs empty.
#
# Waits are silent. Look at what some innocent lines ask for.


# %%
def costs_of(action, *arrays):
    """Launches, uploads and waits (downloads included) of one call, in the stand-in."""
    counts = strict_cupy.counts
    counts.reset()
    action(*arrays)
    return counts.launches, counts.uploads, counts.waits + counts.downloads


def view(a, mask):
    return a.T[1:]


def add(a, mask):
    return a + a


def two_steps(a, mask):
    return a * 2 + a


def as_float(a, mask):
    return float(a.sum())


def as_text(a, mask):
    return f"{a.sum():.3f}"


def ask_if(a, mask):
    return 1 if (a > 0).all() else 0


def select(a, mask):
    return a[mask]


def where(a, mask):
    return array_module(a).where(mask, a, 0)


def host_index(a, mask):
    return a[np.array([0, 2])]


def windows(a, mask):
    return array_module(a).lib.stride_tricks.sliding_window_view(a, (2, 2))


LINES = {
    "a.T[1:]": view,
    "a + a": add,
    "a * 2 + a": two_steps,
    "float(a.sum())": as_float,
    'f"{a.sum():.3f}"': as_text,
    "if (a > 0).all():": ask_if,
    "a[mask]": select,
    "where(mask, a, 0)": where,
    "a[host index]": host_index,
    "sliding_window_view(a, (2, 2))": windows,
}
costs = {}
if strict_cupy:
    with strict_cupy.installed():
        a = to_device(np.random.default_rng(0).standard_normal((4, 4)), "cuda")
        for name, action in LINES.items():
            costs[name] = costs_of(action, a, a > 0)
    print(f"{'':34}launches  uploads  waits")
    for name, (launches, uploads, waits) in costs.items():
        print(f"{name:34}{launches:8} {uploads:8} {waits:6}")

# %% [markdown]
# A view is free. A mask as an index waits, since the size of the result depends on the values; `where` does the same
# work without. The im2col that runs takes `as_strided` for its windows, because CuPy's `sliding_window_view` uploads
# the window's shape to check it, and waits for the answer.
#
# Two operations are two launches. Where many small steps follow each other, `one_launch` in
# `minires/kernels/backend.py` has CuPy compile them into one kernel (`cupy.fuse`). On the host it is the function
# itself, so you can step through it. The update of SGD is such a chain, for every parameter of the network.

# %%
apart = fused = 0
if strict_cupy:
    with strict_cupy.installed():
        p, g, v = [to_device(np.ones(5, np.float32), "cuda") for _ in range(3)]
        apart = costs_of(momentum_step, p, g, v, 0.1, 0.9, 1e-4)[0]
        fused = costs_of(minires.backend.one_launch(momentum_step, p), p, g, v, 0.1, 0.9, 1e-4)[0]
    print(f"momentum_step: {apart} launches a parameter line by line, {fused} by one_launch")

# %% [markdown]
# ## A training step, counted
#
# Now a whole step of ResNet-20 on images of 3x32x32: forward, loss, backward, update.
#
# **Question before you scroll on:** the batch goes from 2 to 4 to 16 images. How does the number of launches grow?
#
# `Watcher` in `minires/engine/modes.py` is told before and after every operation, forward and backward; it is what the
# debug tools are made of. This one notes launches and bytes by operation. The bytes are rough, and rather too few: each
# operation reads its inputs and writes its result once, and a convolution writes and reads its columns besides
# (lesson `tutorials/03_convolution.py`).


# %%
class Meter(Watcher):
    """Launches and bytes by operation. ``counts.launches`` says how many launches there were so far."""

    def __init__(self, counts):
        self.counts = counts
        self.forward, self.backward, self.calls = Counter(), Counter(), Counter()
        self.bytes = 0
        self.before = 0

    def before_forward(self, operation, inputs, options):
        self.before = self.counts.launches

    def after_forward(self, result, cache, backward, inputs):
        operation = backward.__name__.removesuffix("_backward")
        self.calls[operation] += 1
        self.forward[operation] += self.counts.launches - self.before
        self.bytes += result.array.nbytes + sum(x.array.nbytes for x in inputs if x is not None)
        self.bytes += columns_bytes(cache)

    def before_backward(self, node):
        self.before = self.counts.launches
        self.bytes += node.grad.nbytes + sum(part.nbytes for part in node.cache or () if hasattr(part, "nbytes"))
        self.bytes += columns_bytes(node.cache)

    def after_backward(self, node, grads):
        self.backward[node.operation] += self.counts.launches - self.before
        self.bytes += (
            sum(grad.nbytes for grad in grads if grad is not None) if isinstance(grads, tuple) else grads.nbytes
        )


def columns_bytes(cache):
    """A convolution's columns, written and read; 0 for anything else and for a 1x1 kernel."""
    size = getattr(cache, "size", None)
    if size is None or size.KH * size.KW == 1:
        return 0
    return 2 * size.N * size.OH * size.OW * size.C * size.KH * size.KW * cache.x.itemsize


def counted_step(batch, where, counts):
    """The counts of one training step after a first one, with its batch's way to the device."""
    rng = np.random.default_rng(0)
    model = minires.create_model("resnet20", generator=rng).to(where)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    images, labels = rng.standard_normal((batch, 3, 32, 32)).astype(np.float32), rng.integers(0, 10, batch)
    for step in range(2):  # the first step makes the velocities
        meter = Meter(counts)
        counts.launches = counts.uploads = counts.downloads = counts.waits = 0
        if step == 1:
            mode.watchers += (meter,)
        x, y = Tensor(images).to(where), Tensor(labels).to(where)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        forward = counts.launches
        loss.backward()
        backward = counts.launches - forward
        optimizer.step()
        mode.watchers = tuple(watcher for watcher in mode.watchers if watcher is not meter)
    meter.parts = (forward, backward, counts.launches - forward - backward)
    meter.crossed = (counts.uploads, counts.waits + counts.downloads)
    return meter


BATCHES = (2, 4, 16)
meters = {}
if strict_cupy:
    with strict_cupy.installed():
        for batch in BATCHES:
            meters[batch] = counted_step(batch, "cuda", strict_cupy.counts)
    print("batch   forward  backward  update   launches  uploads  waits")
    for batch, meter in meters.items():
        forward, backward, update = meter.parts
        uploads, waits = meter.crossed
        print(f"{batch:5}{forward:10}{backward:10}{update:8}{sum(meter.parts):11}{uploads:9}{waits:7}")

# %% [markdown]
# Not at all. A launch handles an array of any size; only a loop over the images in Python would make the number grow.
# (One exception: where a convolution's columns for the whole batch pass a GiB, they are made in parts.) Two uploads,
# the images and the labels, and not one wait: Python runs ahead of the device all through the step.
#
# `blocks_pay` in `minires/kernels/backend.py` is the other side of this. On the host a convolution is cut into blocks
# that fit the cache; on a device each block would be another round of launches, so there it is one.
#
# Where do they go? Where the stand-in is missing, the picture shows what it counted when this lesson was written.

# %%
SEEN = {  # operation: launches forward, backward, in all of ResNet-20
    "batch_norm": (228, 190),
    "conv2d": (85, 178),
    "relu": (19, 38),
    "residual_add": (9, 0),
    "cross_entropy": (31, 14),
}
SEEN_PARTS = (398, 499, 59)
if meters:
    meter = meters[BATCHES[-1]]
    by_operation = {name: (meter.forward[name], meter.backward[name]) for name in SEEN}
    parts = meter.parts
else:
    by_operation, parts = SEEN, SEEN_PARTS
named = np.array(list(by_operation.values())).sum(axis=0)
by_operation = {**by_operation, "all the rest": (parts[0] - int(named[0]), parts[1] - int(named[1]))}
by_operation["SGD's update"] = (parts[2], 0)
launches = sum(parts)

figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
names = list(by_operation)[::-1]
forward = np.array([by_operation[name][0] for name in names])
backward = np.array([by_operation[name][1] for name in names])
axes.barh(names, forward, color="lightgray", edgecolor="black", label="forward (and update)")
axes.barh(names, backward, left=forward, color="white", edgecolor="black", hatch="///", label="backward")
for place, total in enumerate(forward + backward):
    axes.annotate(f"{total}", (total, place), xytext=(4, 0), textcoords="offset points", va="center")
axes.set(xlabel="launches in one training step, any batch size", xlim=(0, 1.12 * (forward + backward).max()))
axes.set_title(f"ResNet-20: {launches} launches, counted without a GPU")
axes.legend(loc="lower right")
figure.savefig(figures / "11_launches.png", dpi=90)
print(f"{launches} launches: " + ", ".join(f"{name} {sum(both)}" for name, both in by_operation.items()))

# %% [markdown]
# Batch norm has a small part of the arithmetic and the largest part of the launches: it is a chain of many short
# steps. On a device that is what you look for, and not the largest matrix product. ("All the rest" is option A's
# shortcuts, pooling, the last layer, and what the engine does itself: adding gradients where two paths meet, and
# keeping that of each parameter.)
#
# ## A model of the time
#
# **This is a model, not a measurement.** Assume a GPU on which Python sends a launch every 10 microseconds, and whose
# memory moves 500 GB a second. Both numbers are assumptions, of a plausible size and of no particular card. Then
#
#     time = launches * t0 + bytes / bandwidth
#
# for the bytes counted above, which grow with the batch. (A kinder model takes the larger of the two instead of the
# sum, since the device works while Python sends. The time of the arithmetic itself is left out.)

# %%
T0 = 10e-6  # seconds a launch: an assumption
BANDWIDTH = 500e9  # bytes a second: an assumption


def step_bytes(batch):
    """Bytes of a step; sizes are the same on every device, so NumPy will do."""
    return counted_step(batch, "cpu", SimpleNamespace(launches=0, uploads=0, downloads=0, waits=0)).bytes


bytes_of_two, bytes_of_four = step_bytes(2), step_bytes(4)
bytes_per_image = (bytes_of_four - bytes_of_two) / 2
bytes_fixed = bytes_of_two - 2 * bytes_per_image
batches = 2 ** np.arange(0, 11)
launch_time = np.full(len(batches), launches * T0)
memory_time = (bytes_fixed + batches * bytes_per_image) / BANDWIDTH
crossing = (launches * T0 * BANDWIDTH - bytes_fixed) / bytes_per_image
print(f"assumed: {1e6 * T0:.0f} microseconds a launch, {BANDWIDTH / 1e9:.0f} GB a second")
print(f"bytes of a step: roughly {bytes_per_image / 1e6:.1f} MB an image, and {bytes_fixed / 1e6:.1f} MB")
print(f"the model: {1000 * launches * T0:.1f} ms of launches; memory takes as long from {crossing:.0f} images on")

measured = {}
if GPU:
    for batch in (4, 32, 256):
        rng = np.random.default_rng(0)
        model = minires.create_model("resnet20", generator=rng).to("cuda")
        x = Tensor(rng.standard_normal((batch, 3, 32, 32)).astype(np.float32)).to("cuda")
        y = Tensor(rng.integers(0, 10, batch)).to("cuda")
        times = []
        for _ in range(4):
            cuda.synchronize()  # without this the clock would see the sending only
            start = time.perf_counter()
            F.cross_entropy(model(x), y).backward()
            cuda.synchronize()
            times.append(time.perf_counter() - start)
        measured[batch] = min(times[1:])
        print(f"measured on this machine, without the update: batch {batch}, {1000 * measured[batch]:.1f} ms")

# %%
figure, axes = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
axes.loglog(batches, 1000 * launch_time, "k--", label=f"{launches} launches of {1e6 * T0:.0f} µs")
axes.loglog(batches, 1000 * memory_time, "k:", label=f"bytes at {BANDWIDTH / 1e9:.0f} GB/s")
axes.loglog(batches, 1000 * (launch_time + memory_time), "ko-", markersize=4, label="the sum")
if measured:
    axes.loglog(list(measured), 1000 * np.array(list(measured.values())), "k*", markersize=10, label="measured here")
axes.set_xticks(batches[::2], batches[::2])
axes.minorticks_off()
axes.set(xlabel="images in a batch", ylabel="time of a training step (ms)")
axes.set_title(
    "A model with two assumed numbers; no GPU was measured" if not measured else "The model, and this machine"
)
axes.legend()
figure.savefig(figures / "11_model.png", dpi=90)

# %% [markdown]
# If anything like this holds, a small batch costs as much as a larger one: well below the crossing the device idles
# between launches, and doubling the batch is nearly free. "A GPU is faster" is a statement about large batches. It is
# also why the launches are counted in a test: they are the only part of the time that can be seen without a GPU.
#
# A clock on a real GPU needs `cuda.synchronize()` before each look: launches return at once, and without it you time
# the sending.
#
# ## Mistakes, planted
#
# Six ways to write ReLU. All six give the right numbers with NumPy, so a test on the host passes them all.
#
# **Question before you scroll on:** which of them fail on a device, which are only slow there, and which are fine?


# %%
def relu_np_function(x):
    return np.maximum(x, 0)


def relu_np_array(x):
    return np.maximum(x, np.zeros(x.shape, x.dtype))


def relu_hidden_float(x):
    xp = array_module(x)
    if float(x.max()) <= 0:  # a shortcut for what is negative everywhere
        return xp.zeros_like(x)
    return xp.maximum(x, 0, out=xp.empty_like(x))


def relu_mask(x):
    y = x.copy()
    y[y < 0] = 0
    return y


def relu_loop(x):
    y = array_module(x).empty_like(x)
    for i in range(len(x)):
        y[i] = array_module(x).maximum(x[i], 0)
    return y


def relu_shipped(x):
    return kernels.relu_forward(x)[0]


RELUS = [relu_shipped, relu_np_function, relu_np_array, relu_hidden_float, relu_mask, relu_loop]


def images_last(batch):
    """Feature maps that lie in memory as those of a network do: (C, H, W, N)."""
    return np.random.default_rng(batch).standard_normal((4, 5, 6, batch)).transpose(3, 0, 1, 2)


def on_device(x):
    """x there, in the same memory order: an upload alone would make it row-major."""
    return to_device(x.transpose(1, 2, 3, 0), "cuda").transpose(3, 0, 1, 2)


def judge(relu):
    """What a test on the host says, and what a test on the device says."""
    host = images_last(4)
    passes = np.array_equal(relu(host), np.maximum(host, 0))
    on_host = "passes" if passes else "FAILS"
    if not strict_cupy:
        return on_host, ""
    x, larger = on_device(host), on_device(images_last(8))
    try:
        y = relu(x)
    except (TypeError, ValueError) as error:
        return on_host, f"FAILS: {type(error).__name__}: {error}"
    if not np.array_equal(to_numpy(y), np.maximum(host, 0)):
        return on_host, "FAILS: other numbers"
    few, uploads, waits = costs_of(relu, x)
    many = costs_of(relu, larger)[0]
    if waits or uploads:
        return on_host, f"FAILS: waits {waits}, uploads {uploads}"
    if many > few:
        return on_host, f"FAILS: {few} launches for 4 images, {many} for 8"
    if y.strides != x.strides:
        return on_host, "FAILS: another memory order than x's"
    return on_host, f"passes: launches {few}"


verdicts = {}
with strict_cupy.installed() if strict_cupy else nullcontext():
    for relu in RELUS:
        verdicts[relu.__name__] = judge(relu)
print(f"{'':20}{'host':9}device")
for name, (on_host, there) in verdicts.items():
    print(f"{name:20}{on_host:9}{there}")

# %% [markdown]
# Only one of the five mistakes is an error message. `np.maximum(x, 0)` finds its way to CuPy and gives the right
# numbers, in another memory order. The float and the mask wait, the loop launches again for each image; on a GPU all
# these would give right numbers, slowly, and nobody would be told. That is why the tests count.
#
# The tests of MiniRes hold a whole training step to this: `tests/test_device_training.py` asserts two uploads, no
# wait, and as many launches for a batch of 6 as for 3. Plant the hidden float in a network and see the step's count.


# %%
class HiddenFloat(nn.Module):
    """ReLU, with a look at a value on the way: to print it, say."""

    def forward(self, x):
        self.largest = float(x.detach().max())
        return F.relu(x)


def waits_of(activation):
    """Waits of one forward and backward of a small network."""
    rng = np.random.default_rng(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, generator=rng), activation, nn.Flatten(), nn.Linear(256, 10))
    net.to("cuda")
    x, labels = Tensor(rng.standard_normal((4, 3, 8, 8)).astype(np.float32)).to("cuda"), Tensor([1, 2, 3, 4]).to("cuda")
    strict_cupy.counts.reset()
    F.cross_entropy(net(x), labels).backward()
    return strict_cupy.counts.waits + strict_cupy.counts.downloads


waits = {}
if strict_cupy:
    with strict_cupy.installed():
        waits = {"nn.ReLU": waits_of(nn.ReLU()), "HiddenFloat": waits_of(HiddenFloat())}
    print("waits in a step: " + ", ".join(f"{name} {count}" for name, count in waits.items()))

# %% [markdown]
# ## How it is tested
#
# Three layers, each finding what the one before cannot.
#
# 1. The strict stand-in, in every run of the tests, on any machine. Names and keywords come from a list that was made
#    from CuPy (`tests/cupy_api.json`), and its answers are held against recorded ones of CuPy's
#    (`tests/cupy_behaviour.json`, by `tests/test_strict_cupy.py`). It finds mixing, missing keywords, waits, uploads
#    and launches that grow. It rounds as NumPy does, so it says nothing about numbers.
# 2. CuPy itself with its GPU kernels compiled for the processor, where the tool for that is at hand
#    (`tests/test_cupy_on_cpu.py`): the same tests, CuPy's own code. It finds what the stand-in's author believed
#    wrongly.
# 3. `pytest --device cuda`: the same tests on a GPU. This layer is written and has never run. If you have a GPU, it
#    is the most useful thing that you can do for MiniRes.
#
# What none of the first two can know: speed, the order in which threads write, drivers, running out of the device's
# memory.
#
# For code of your own the rules are short. Ask `array_module` once. Make arrays with xp, or with `empty_like`. No
# `float`, `if`, `print` or mask on device values inside a step. No loop over images. Then run it on the stand-in. The
# nearest exercises are the kernels with the least arithmetic: `minires exercise start relu` and `minires exercise
# start residual_add` check your file with NumPy; run your function through `judge` above and see what it says.
#
# The claims of this lesson:

# %%
assert np.allclose(host_losses, device_losses, rtol=1e-3)
assert [answers[0] for answers in manners.values()][:4] == ["(3,)", "done", "(3,)", "IndexError"]
if DEVICE:
    there = {name: answers[1] for name, answers in manners.items()}
    assert there["a + host array"] == "TypeError" and there["a[:] = host array"] == "ValueError"
    assert there["a + a NumPy scalar"] == "(3,)" and there["maximum(a.T, 0): memory order"] == "row-major"
    assert there["a[5], as an array index, of 3 entries"] == f"{5 % 3}"
    assert there["asarray(host array) is"] == "a copy" and there["np.asarray(a) is an array of"] == "TypeError"
    assert there["a.sum(where=...)"] == "TypeError" and there["write to broadcast_to's view"] == "written"
    assert there["np.maximum(a, 0) is an array of"].startswith("cupy")
if strict_cupy:
    assert costs["a.T[1:]"] == (0, 0, 0) and costs["a + a"] == (1, 0, 0) and costs["a * 2 + a"] == (2, 0, 0)
    for name in ("float(a.sum())", 'f"{a.sum():.3f}"', "if (a > 0).all():", "a[mask]"):
        assert costs[name][2] == 1, name
    assert costs["where(mask, a, 0)"][1:] == (0, 0) and costs["a[host index]"][1] == 1
    assert costs["sliding_window_view(a, (2, 2))"][2] > 0
    assert fused == 1 and apart > 3
    assert len({meter.parts for meter in meters.values()}) == 1, "the same launches whatever the batch"
    assert all(meter.crossed == (2, 0) for meter in meters.values()), "two uploads, no wait"
    assert abs(launches - sum(SEEN_PARTS)) < 0.25 * sum(SEEN_PARTS)
    fails = [name for name, (_, said) in verdicts.items() if said.startswith("FAILS")]
    assert fails == [relu.__name__ for relu in RELUS[1:]]
    assert waits == {"nn.ReLU": 0, "HiddenFloat": 1}
assert all(on_host == "passes" for on_host, _ in verdicts.values())
assert max(by_operation, key=lambda name: sum(by_operation[name])) == "batch_norm"
assert device_of(np.zeros(1)) == "cpu" and 1 < crossing
