# %% [markdown]
# # Many machines, one gradient
#
# You need: the lessons on the chain rule, batch norm and training. It takes less than a minute on two cores. It runs
# alone, with nothing but the core install; with `pip install ".[mpi]"` several processes share its last part.
#
# Where one machine is too slow, several share the work. The simplest way is data-parallel training: every worker has
# the whole model and a part of each batch. Each computes the gradient of its part, all gradients are averaged, and all
# workers make the same step. Here you see why that is not an approximation, where batch norm spoils it, what it costs
# to send a gradient around, and what changes when the batch grows with the workers.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import minires.functional as F
import numpy as np
from threadpoolctl import threadpool_limits

import minires
from minires import Tensor, nn, parallel
from minires.bench import scaling
from minires.data import DataLoader, digits
from minires.optim import SGD, LinearLR

threadpool_limits(1)  # these matrix products are too small for more threads

figures = Path(__file__).parent / "figures" if "__file__" in globals() else Path("figures")
figures.mkdir(exist_ok=True)
rank, workers = parallel.rank(), parallel.size()


def say(text):
    """One worker prints for all."""
    if rank == 0:
        print(text)


say(f"this is worker {rank} of {workers}")

# %% [markdown]
# ## The average of gradients is the gradient of the average
#
# The loss of a batch is the mean of its images' losses, and the gradient of a sum is the sum of the gradients. So the
# gradient of a batch is the mean of its images' gradients, however they are grouped:
#
#     L = (1/N) sum of l_i     so     dL/dw = (1/N) sum of dl_i/dw = sum over workers of (n_k / N) (dL_k/dw)
#
# where worker k has n_k of the N images, and L_k is the mean loss of those. With parts of equal size the weights
# n_k / N are all the same: the plain average. With parts of other sizes they are not, and a plain average would be
# wrong.


# %%
def gradient(model, images, labels):
    """All gradients of a model in one array, for one batch."""
    model.zero_grad()
    F.cross_entropy(model(Tensor(images)), Tensor(labels)).backward()
    return np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])


train = digits().train
images, labels = train.images[:100].astype(np.float64), train.labels[:100]
generator = np.random.default_rng(0)
without_norm = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1, generator=generator),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(512, 10, generator=generator),
).double()
whole = gradient(without_norm, images, labels)


def averaged(model, sizes, weights):
    """The weighted sum of the gradients of parts of the batch."""
    ends = np.cumsum(sizes)
    parts = [gradient(model, images[end - n : end], labels[end - n : end]) for n, end in zip(sizes, ends, strict=True)]
    return sum(weight * part for weight, part in zip(weights, parts, strict=True))


def distance(a, b):
    """The difference of two gradients, relative to the first."""
    return np.linalg.norm(a - b) / np.linalg.norm(a)


equal = distance(whole, averaged(without_norm, [25] * 4, [1 / 4] * 4))
weighted = distance(whole, averaged(without_norm, [40, 30, 20, 10], [0.4, 0.3, 0.2, 0.1]))
plain = distance(whole, averaged(without_norm, [40, 30, 20, 10], [1 / 4] * 4))
say(f"four equal parts, averaged: off by {equal:.1e}")
say(f"four unequal parts: weighted by their size {weighted:.1e}, plainly averaged {plain:.1%}")

# %% [markdown]
# Nothing here is special to a convolution: it holds for every network whose loss is a mean over images that do not
# know of each other.
#
# **Question before you scroll on:** in which layer of a ResNet do the images of a batch know of each other?
#
# ## What batch norm sees
#
# Batch norm normalises by the mean and the variance of its batch, so an image's output depends on its neighbours. A
# worker that has a quarter of the batch normalises by the statistics of a quarter, and the loss is another function.


# %%
resnet = minires.create_model("resnet8", in_channels=1, width=8, generator=np.random.default_rng(1)).double()
whole_resnet = gradient(resnet, images, labels)
split = {}
for count in (2, 4, 10, 20):
    split[count] = distance(whole_resnet, averaged(resnet, [100 // count] * count, [1 / count] * count))
    say(f"batch norm, {count:2d} workers, {100 // count:2d} images each: gradient off by {split[count]:.1%}")

# %% [markdown]
# This is no small difference, and it is the usual practice all the same: "batch norm per worker". It is not wrong, it
# is another training, with the noise of a smaller batch in its statistics. Where a given batch is cut into more parts,
# the number of workers changes the result. (Goyal et al. 2017 gave each GPU 32 images however many there were, so the
# function that they minimised stayed the same.)
#
# Synchronised batch norm adds up the sums of all workers before it divides: two small sums a layer forward and one
# backward, and the result is that of one worker with the whole batch. Mean and variance need only sums, and so does the
# backward: of dy, and of dy times x_hat. Read `SyncBatchNorm` in `minires/nn/more_layers.py`, and do
# `minires exercise start batch_norm_backward` with the question in mind which of its sums run over the batch.
#
# Let four "workers" in one process show it for the forward: each gives its count, its sum, then its sum of squares of
# what is left.

# %%
x = np.random.default_rng(2).standard_normal((100, 3, 4, 4)) * 2 + 1
parts = np.split(x, [40, 70, 90])
count = sum(part[:, 0].size for part in parts)
mean = sum(part.sum(axis=(0, 2, 3)) for part in parts) / count
var = sum(((part - mean[:, None, None]) ** 2).sum(axis=(0, 2, 3)) for part in parts) / count
synced = max(np.abs(mean - x.mean(axis=(0, 2, 3))).max(), np.abs(var - x.var(axis=(0, 2, 3))).max())
own = np.array([part.mean(axis=(0, 2, 3)) for part in parts])
say(
    f"synchronised statistics: off by {synced:.1e}; each worker's own mean: off by up to {np.abs(own - mean).max():.2f}"
)

# %% [markdown]
# ## Adding up in a ring
#
# Every worker has an array of n numbers, and every worker wants the sum of all. If all sent theirs to one, that one
# would receive (p - 1) n numbers while the others wait. A ring does better: cut each array into p pieces. In each of
# p - 1 rounds every worker sends one piece to its right neighbour, which adds it to its own; then each worker has the
# complete sum of one piece, and in p - 1 more rounds the complete pieces go around.
#
# **Question before you scroll on:** how many numbers does each worker send in all, and how does that grow with p?


# %%
def ring_allreduce(arrays):
    """The sum of one array a worker, on every worker, by neighbours alone; and how many numbers each one sent."""
    p = len(arrays)
    pieces = [np.array_split(array.copy(), p) for array in arrays]
    sent = np.zeros(p, int)
    for step in range(2 * (p - 1)):
        gathering = step >= p - 1
        moving = []
        for worker in range(p):
            piece = (worker - step) % p
            moving.append((worker, (worker + 1) % p, piece, pieces[worker][piece].copy()))
        for worker, right, piece, values in moving:
            sent[worker] += values.size
            pieces[right][piece] = values if gathering else pieces[right][piece] + values
    return [np.concatenate(mine) for mine in pieces], sent


n = 12_000
sent_by_each, ring_errors = {}, []
for p in (2, 3, 4, 8, 16):
    arrays = [np.random.default_rng(worker).standard_normal(n) for worker in range(p)]
    sums, sent = ring_allreduce(arrays)
    wrong = max(np.abs(total - sum(arrays)).max() for total in sums)
    ring_errors.append(wrong)
    sent_by_each[p] = sent.max() / n
    say(f"{p:2d} workers: each sends {sent_by_each[p]:.2f} n, and all have the sum to {wrong:.0e}")

# %% [markdown]
# Each sends 2 (p - 1) / p n numbers: less than 2 n, however many workers there are. What does grow is the number of
# messages, 2 (p - 1), each of which costs its latency. So gradients are not sent layer by layer: they are copied into
# a few large buckets, and a bucket leaves as soon as backward has filled it, while backward goes on with earlier
# layers. Read `backward` in `minires/train/parallel.py`: MPI does the adding (`Iallreduce`), the rest is bookkeeping.
#
# ## What that costs
#
# A model of one line: a step takes the time of its computation plus 2 (p - 1) (latency + n / (p bandwidth)), n in bytes
# now. The gradient of ResNet-50 is 102 MB. How long its step takes depends on the worker: a processor core needs
# seconds for a few images, a machine with eight GPUs of 2017 needs a quarter of a second for 256.

# %%
published = scaling.GOYAL
model_says = scaling.efficiency(published.work, published.machines, published.link)
seconds_here = 5.0  # about: minires bench --mpi measures it
slow = scaling.Work("ResNet-50, 4 images on one core", seconds_here, published.work.gradient)
say(f"ResNet-50's gradient: {published.work.gradient / 1e6:.0f} MB")
say(f"a machine of 8 GPUs of 2017: {published.work.compute:.2f} s a step of 256 images")
say(f"{published.source}: {published.machines} machines, {published.efficiency:.0%}; by the model {model_says:.0%}")
for link in scaling.NETWORKS:
    here, there = (scaling.efficiency(work, 32, link) for work in (slow, published.work))
    say(f"32 workers at {link.name:>10}: efficiency {here:4.0%} with slow workers, {there:4.0%} with fast ones")

# %%
figure, axes = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
for link, style in zip(scaling.NETWORKS, (":", "--", "-"), strict=True):
    for work, color in ((slow, "0.65"), (published.work, "black")):
        shares = [100 * scaling.efficiency(work, p, link) for p in scaling.WORKERS]
        name = "one core a worker" if work is slow else "8 GPUs a worker"
        axes.semilogx(scaling.WORKERS, shares, style, color=color, base=2, label=f"{link.name}, {name}")
axes.plot([32], [90], "k*", markersize=13, label="Goyal et al. 2017 (50 Gbit/s)")
axes.set_xticks([1, 4, 16, 64, 256, 1024], ["1", "4", "16", "64", "256", "1,024"])
axes.set(xlabel="workers", ylabel="efficiency (%)", ylim=(0, 105), title="ResNet-50 by the model: nothing overlaps")
axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
if rank == 0:
    figure.savefig(figures / "13_scaling.png", dpi=90)

# %% [markdown]
# Two things to see. Slow workers scale better on every network, which is no merit: efficiency compares them with
# themselves. And after the first few workers the curves are nearly flat, since each worker sends less than twice the
# gradient; only the latencies add up, slowly. The model is coarse (no overlap with backward, no waiting for a slower
# worker, assumed latencies). That it lands within 5 points of the published 90 % says that its size is right, and no
# more: that run did overlap, and the time of its one machine was worked out here from its hour and the same 90 %.
#
# ## A larger batch wants a larger rate
#
# More workers mean a larger batch, and fewer steps an epoch. If k small steps are replaced by one with k times the
# batch, the gradients add up to about the same direction as long as the weights moved little in between:
#
#     k steps:    w - lr (g1 + g2 + ... + gk)        one large step:    w - k lr (g1 + g2 + ... + gk) / k
#
# So the rate grows with the batch: the linear scaling rule, as Goyal et al. 2017 call it (others had used it). At the
# beginning the weights do not move little, and the large rate can do harm: so it is reached in a warm-up, from the
# small rate upwards.


# %%
def losses(batch_size, lr, warmup=0, epochs=4, seed=0):
    """The training loss by epoch, a mean over its batches; with a warm-up from the small rate over so many steps."""
    model = minires.create_model("resnet8", in_channels=1, width=8, generator=np.random.default_rng(seed))
    loader = DataLoader(train, batch_size, shuffle=True, drop_last=True, seed=seed)
    optimizer = SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    schedule = LinearLR(optimizer, start_factor=0.05 / lr, total_iters=warmup) if warmup else None
    found = []
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            found.append(loss.item())
            if schedule is not None:
                schedule.step()
    return np.array(found).reshape(epochs, -1).mean(axis=1)


SETTINGS = {
    "batch 16, rate 0.05": (16, 0.05, 0),
    "batch 256, rate 0.05": (256, 0.05, 0),
    "batch 256, rate 0.8": (256, 0.8, 0),
    "batch 256, rate 0.8, warm-up": (256, 0.8, 5),
}
curves = {}
if rank == 0:
    for name, setting in SETTINGS.items():
        curves[name] = np.mean([losses(*setting, seed=seed) for seed in range(2)], axis=0)
        print(f"{name:<30} training loss by epoch:", " ".join(f"{loss:.3f}" for loss in curves[name]))

# %%
if rank == 0:
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for (name, loss), style in zip(curves.items(), ("o-", "s--", "^:", "d-."), strict=True):
        axes.semilogy(range(1, 5), loss, style, label=name)
    axes.set_xticks(range(1, 5))
    axes.set(
        xlabel="epoch", ylabel="training loss (mean of 2 seeds)", title="ResNet-8 on digits: the rate follows the batch"
    )
    axes.legend(fontsize=8)
    figure.savefig(figures / "13_linear_scaling.png", dpi=90)

# %% [markdown]
# With 16 times the batch and the same rate, four epochs are far too few steps: the loss is more than 3 times what it is
# with the rate 16 times as large, which comes much nearer to the small batch's. The warm-up of one epoch gains
# nothing here: a ResNet-8 with batch norm survives the large rate from the start. Goyal et al. needed it for batches
# of thousands of images on ImageNet; it is a remedy, not a law.
#
# **Question before you scroll on:** the rule cannot hold for ever. Which assumption breaks when the batch is all of the
# training images?
#
# (The weights must not move much during the k steps that one replaces. If k is the whole epoch, they do.)
#
# ## The loop, on as many workers as there are
#
# What changes in a training loop is five lines: give all workers the weights of the first, let the loader hand out this
# worker's part of each batch, use synchronised batch norm if the number of workers must not matter, let
# `parallel.backward` average the gradients, and add up the loss for whoever reads it. Run it with
# `mpiexec -n 2 python tutorials/13_many_machines.py` and the losses stay what they are.
# (`mpiexec -n 4 minires train --sync-batch-norm` does the same, and the rest: checkpoints, a progress bar, and an end
# of all workers when one fails.)


# %%
def train_together(steps=12):
    """The losses of a few steps of a ResNet-8, of the whole batch, by all workers together."""
    model = minires.create_model("resnet8", in_channels=1, width=8, generator=np.random.default_rng(rank)).double()
    parallel.broadcast(model.state_dict())  # 1: everyone begins with the weights of worker 0
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # 2: the batch is that of all workers
    loader = DataLoader(train, 60, shuffle=True, seed=0, num_replicas=parallel.size(), rank=parallel.rank())  # 3
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    found = []
    for step, (x, y) in enumerate(loader):
        if step == steps:
            break
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x.double()), y)
        parallel.backward(loss, model.parameters(), loader.share(step))  # 4: the gradient of the whole batch
        optimizer.step()
        found.append(parallel.total(loss.detach().numpy() * loader.share(step)))  # 5: and its loss
    return np.array(found)


together = train_together()
if rank == 0:
    with parallel.alone():
        single = train_together()
    apart = np.abs(together - single).max()
    print(f"{workers} workers and one: losses {together[0]:.6f} ... {together[-1]:.6f}, apart by {apart:.1e}")
    print(f"worker 0 spent {parallel.seconds():.2f} s in communication")

# %% [markdown]
# Alone, that compares one worker with itself. With two or three it compares them with one, and the losses agree to the
# last few digits: the order in which numbers are added differs, and nothing else.

# %%
assert equal < 1e-12 and weighted < 1e-12 and plain > 0.05
assert split[2] > 0.01 and split[20] > split[2]
assert synced < 1e-12 and np.abs(own - mean).max() > 0.01
assert max(ring_errors) < 1e-12
assert all(abs(each - 2 * (p - 1) / p) < 0.01 for p, each in sent_by_each.items())
for link in scaling.NETWORKS:
    assert scaling.efficiency(slow, 32, link) > scaling.efficiency(published.work, 32, link)
assert abs(model_says - published.efficiency) < 0.05
if rank == 0:
    *_, last_unscaled, last_scaled, last_warm = (curves[name][-1] for name in SETTINGS)
    assert last_unscaled > 3 * last_scaled and max(last_scaled, last_warm) < 0.3
    assert apart < 1e-9
