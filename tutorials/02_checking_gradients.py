# %% [markdown]
# # Checking gradients, and reading the diagnosis
#
# You need: the lesson on the chain rule, or to know what a backward function gets and returns. It takes less than a
# minute on two cores, and a good half hour to read.
#
# A wrong gradient does not crash. The network trains, only worse, and nobody can see why. So every backward function
# is checked against differences of its forward. This lesson looks at how good such a check can be, at the ways in which
# it lies, at how MiniRes gets from "wrong" to the name of the mistake, and at what no gradient check can see.

# %%
import time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

from minires import kernels
from minires.data import digits
from minires.exercises import mutants
from minires.gradcheck import check_kernel

threadpool_limits(1)  # these matrix products are too small for more threads
figures = Path(__file__).parent / "figures" if "__file__" in globals() else Path("figures")
figures.mkdir(exist_ok=True)

# %% [markdown]
# ## How small a step?
#
# Three formulas for the slope of f at x, from values of f alone:
#
# - one-sided: (f(x + h) - f(x)) / h
# - central: D(h) = (f(x + h) - f(x - h)) / (2 h)
# - Richardson: (4 D(h/2) - D(h)) / 3, two central differences whose largest errors cancel
#
# **Question before you scroll on:** all three become exact as h goes to 0. Is the smallest h that the computer has
# then the best?
#
# Take tanh at many points, where the slope is known, and measure.


# %%
def one_sided(f, x, h):
    return (f(x + h) - f(x)) / h


def central(f, x, h):
    return (f(x + h) - f(x - h)) / (2 * h)


def richardson(f, x, h):
    return (4 * central(f, x, h / 2) - central(f, x, h)) / 3


points = np.linspace(-2, 2, 201)
exact = 1 - np.tanh(points) ** 2
steps = np.logspace(-13, 0, 53)


def errors_of(formula, dtype):
    """The largest error over all points, for every step."""
    x = points.astype(dtype)
    return np.array([np.abs(formula(np.tanh, x, dtype(h)) - exact).max() for h in steps])


curves = {
    "one-sided, float32": errors_of(one_sided, np.float32),
    "central, float32": errors_of(central, np.float32),
    "one-sided, float64": errors_of(one_sided, np.float64),
    "central, float64": errors_of(central, np.float64),
    "Richardson, float64": errors_of(richardson, np.float64),
}
best = {name: (steps[errors.argmin()], errors.min()) for name, errors in curves.items()}
for name, (step, error) in best.items():
    print(f"{name:<20} best step {step:.0e}, error there {error:.0e}")

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
looks = [("s--", "tab:orange"), ("s-", "tab:red"), ("o--", "tab:cyan"), ("o-", "tab:blue"), ("^-", "black")]
for (name, errors), (style, color) in zip(curves.items(), looks, strict=True):
    axes.loglog(steps, errors, style, color=color, markersize=4, markevery=4, linewidth=1.2, label=name)
axes.set(
    ylim=(1e-15, 10),
    xlabel="step h",
    ylabel="largest error of the slope",
    title="The derivative of tanh, by its values",
)
axes.legend(fontsize=8, loc="lower left")
figure.savefig(figures / "02_step.png", dpi=90)

# %% [markdown]
# Every curve is a V. On its right arm the formula is at fault: a curve is not a straight line over a step of that
# size (truncation; the arm falls by one, two or four powers of ten for each power of ten in h). On its left arm the
# arithmetic is: f(x + h) and f(x - h) share more and more digits, the difference keeps the few that are left, and
# dividing by a small h makes their rounding errors large. The best step lies between, and depends on the formula and
# on the number of digits.
#
# Two things to remember. In float32 the best that a central difference can do here is worse than 1e-6, whatever the
# step: check in float64. And there 1e-5 to 1e-6 is a good step for central differences, good to about ten digits.
#
# ## What to differentiate: dy must be random
#
# y is an array, and backward wants to know the gradient dy of something after it. So weigh the outputs with a dy and
# differentiate the sum of dy * y. Here is the whole of a gradient check:


# %%
def numeric_gradient(f, x, dy, step=1e-5):
    """The gradient of sum(dy * f(x)) with respect to x, entry by entry."""
    grad = np.empty_like(x)
    for i in np.ndindex(x.shape):
        moved = x.copy()
        moved[i] = x[i] + step
        above = f(moved)
        moved[i] = x[i] - step
        below = f(moved)
        grad[i] = (dy * (above - below)).sum() / (2 * step)
    return grad


def difference(yours, numeric):
    """The largest difference, as a share of the largest entry."""
    return np.abs(yours - numeric).max() / max(np.abs(numeric).max(), 1e-300)


# %% [markdown]
# What dy? Ones are tempting: then it is the gradient of y.sum(), and nothing has to be made up.
#
# **Question before you scroll on:** somebody's batch norm and softmax have backward functions that return nothing but
# zeros. What does a check with a dy of ones say?

# %%
rng = np.random.default_rng(0)
GAMMA = np.array([0.5, 2.0])


def batch_norm(x):
    return kernels.batch_norm_forward(x, GAMMA)[0]


def softmax(x):
    return kernels.softmax_forward(x)[0]


blind = {}
for name, f, x in (
    ("batch norm", batch_norm, rng.standard_normal((3, 2, 4, 4))),
    ("softmax", softmax, rng.standard_normal((4, 5))),
):
    y = f(x)
    of_ones = np.abs(numeric_gradient(f, x, np.ones(y.shape))).max()
    of_random = np.abs(numeric_gradient(f, x, rng.standard_normal(y.shape))).max()
    blind[name] = of_ones, of_random
    print(f"{name:<10} largest entry of the true gradient: dy of ones {of_ones:.0e}, random dy {of_random:.2f}")

# %% [markdown]
# Zeros pass. A batch norm's outputs have the sum that beta gives them, a softmax's sum is 1, whatever x is: the true
# gradient of y.sum() is zero, and so is everything that could have been compared. A random dy gives every output its
# own weight, and no backward function can know it in advance.
#
# ## Kinks
#
# ReLU has no slope at 0, and a difference over a step of h cannot tell 0 from a point that is closer to it than h.

# %%
STEP = 1e-6


def relu(v):
    return np.maximum(v, 0.0)


at_zero = central(relu, 0.0, STEP)
close_by = central(relu, STEP / 4, STEP)
print(f"slope of ReLU at 0: numeric {at_zero:.3f}, the kernel's 0")
print(f"slope of ReLU at {STEP / 4}: numeric {close_by:.3f}, the kernel's 1")

pixels = digits().train.images[:200].astype(np.float64)  # (200, 1, 8, 8)
windows = pixels.reshape(200, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 4)
ties = ((windows == windows.max(axis=1, keepdims=True)).sum(axis=1) > 1).mean()
print(f"2x2 windows of real digits in which two pixels tie for the maximum: {ties:.0%}")

# %% [markdown]
# At a kink any slope between the one from the left and the one from the right is a good answer, so 0 is as good as the
# numeric value; a quarter of a step beside the kink there is one right answer, and the numeric value is not it. Both
# times a correct kernel would be called wrong. With random inputs a kink is seldom that near. With pictures it is
# everywhere: many pixels show the same bare paper, so max pooling meets ties. A check should choose inputs away from
# kinks, or look from both sides and accept what lies between. `check_kernel` does both.


# %%
def plain_pool(x):
    return kernels.max_pool2d_forward(x, kernel_size=2)[0]


digit = pixels[:1]
dy = rng.standard_normal((1, 1, 4, 4))
_, cache = kernels.max_pool2d_forward(digit, kernel_size=2)
false_alarm = difference(kernels.max_pool2d_backward(dy, cache), numeric_gradient(plain_pool, digit, dy))
pool_report = check_kernel(
    kernels.max_pool2d_forward, kernels.max_pool2d_backward, [digit], kind="max_pool2d", options={"kernel_size": 2}
)
print(f"the right max pooling on a digit: plain central differences disagree by {false_alarm:.0%}; check_kernel says")
print(pool_report)

# %% [markdown]
# ## Linear operations need no step
#
# A convolution is linear in its input: y = A x for some huge matrix A, and its backward is the transpose, dx = A'
# dy. Then <A x, u> = <x, A' u> for any x and u: two dot products, no step, no truncation. One random pair is enough to
# unmask a wrong A', and it costs one forward and one backward at any size, where central differences need two
# forwards for every entry.

# %%
x, w = rng.standard_normal((8, 16, 32, 32)), rng.standard_normal((16, 16, 3, 3))
began = time.perf_counter()
y, cache = kernels.conv2d_forward(x, w, stride=2, padding=1)
u = rng.standard_normal(y.shape)
dx, _, _ = kernels.conv2d_backward(u, cache)
left, right = (y * u).sum(), (x * dx).sum()
seconds = time.perf_counter() - began
adjoint_error = abs(left - right) / np.linalg.norm(y * u)
print(f"<A x, u> = {left:.10f}\n<x, A'u> = {right:.10f}   in {1000 * seconds:.0f} ms")
print(f"central differences for all {x.size} entries would take {2 * x.size} forwards")

# %% [markdown]
# The two agree to the last digits of float64. For what is not linear there is the same test along one direction v:
# the central difference of the forward along v, weighed with u, against <v, backward(u)>.

# %%
v = rng.standard_normal(x.shape)
y, cache = kernels.batch_norm_forward(x)
u = rng.standard_normal(y.shape)
dx = kernels.batch_norm_backward(u, cache)[0]
above, below = kernels.batch_norm_forward(x + 1e-5 * v)[0], kernels.batch_norm_forward(x - 1e-5 * v)[0]
along = ((above - below) / (2 * 1e-5) * u).sum()
directional_error = abs(along - (v * dx).sum()) / np.linalg.norm(v * dx)
print(f"batch norm along v: numeric {along:.6f}, <v, backward(u)> {(v * dx).sum():.6f}, in two forwards")

# %% [markdown]
# Both say that something is wrong, not where; that is what entries are for.
#
# ## Where is it wrong? Look
#
# The classic mistake of a convolution's backward: windows overlap, a pixel is in several of them, and its gradient is
# the sum of what they say. Somebody writes `=` where `col2im` in `minires/kernels/convolution.py` has `+=`. The
# last one that is written then wins.
#
# **Question before you scroll on:** with stride 2 a 3x3 window overlaps each neighbour in one row or one column. Where
# will the gradient be wrong? And does the adjoint test notice?


# %%
def col2im_overwriting(cols, size):
    """col2im with = in place of +=."""
    N, C, H, W, O, KH, KW, SH, SW, PH, PW, DH, DW, G, OH, OW = size
    windows = cols.reshape(N, OH, OW, C, KH, KW).transpose(0, 3, 4, 5, 1, 2)  # (N, C, KH, KW, OH, OW)
    padded = np.zeros((N, C, H + 2 * PH, W + 2 * PW))
    for kh in range(KH):
        for kw in range(KW):
            padded[:, :, kh : kh + (OH - 1) * SH + 1 : SH, kw : kw + (OW - 1) * SW + 1 : SW] = windows[:, :, kh, kw]
    return padded[:, :, PH : PH + H, PW : PW + W]


def overwriting(dy, cache):
    _, dw, db = kernels.conv2d_backward(dy, cache)
    O = len(cache.w)
    dcols = dy.transpose(0, 2, 3, 1).reshape(-1, O) @ cache.w.reshape(O, -1)
    return col2im_overwriting(dcols, cache.size), dw, db


image, w = rng.standard_normal((1, 1, 9, 9)), rng.standard_normal((1, 1, 3, 3))


def convolve(x):
    return kernels.conv2d_forward(x, w, stride=2)[0]


y, cache = kernels.conv2d_forward(image, w, stride=2)
dy = rng.standard_normal(y.shape)
yours = overwriting(dy, cache)[0]
numeric = numeric_gradient(convolve, image, dy)
ones = np.ones((y.shape[2] * y.shape[3], 9))
times_seen = kernels.col2im(ones, image.shape, 3, stride=2)[0, 0]  # how many windows hold each pixel
off = np.abs(yours - numeric)[0, 0]
unmasked = abs((y * dy).sum() - (image * yours).sum()) / np.linalg.norm(y * dy)
print(f"adjoint test of the wrong backward: the sides differ by {unmasked:.0%} of the norm of y * dy")

# %%
figure, axes = plt.subplots(1, 4, figsize=(10.5, 2.7), layout="constrained")
largest = np.abs(numeric).max()
for place, (title, picture, colors, limits) in enumerate(
    (
        ("yours", yours[0, 0], "gray", (-largest, largest)),
        ("numeric", numeric[0, 0], "gray", (-largest, largest)),
        ("size of difference", off, "Greys", (0, np.median(off[off > 1e-6]))),  # black from the median on
        ("number of windows", times_seen, "Greys", (0, 4)),
    )
):
    shown = axes[place].imshow(picture, cmap=colors, vmin=limits[0], vmax=limits[1])
    axes[place].set(title=title, xlabel="column (pixels)", ylabel="row (pixels)" if place == 0 else "")
    axes[place].set_xticks(range(0, 9, 2))
    axes[place].set_yticks(range(0, 9, 2))
    figure.colorbar(shown, ax=axes[place], shrink=0.7)
figure.savefig(figures / "02_heat_map.png", dpi=80)
wrong_where_shared = bool(((off > 1e-6) == (times_seen > 1)).all())
print(f"wrong exactly where more than one window comes by: {wrong_where_shared}")

# %% [markdown]
# The error draws the cause: wrong rows and columns are those that two windows share. Someone with experience reads
# that at once. A beginner sees two matrices of numbers that differ. So the last step is to let the program read.
#
# ## From an error to the name of a mistake
#
# Looking at the size of the error helps little: many mistakes give the same size. This idea works: **commit the
# suspected mistake on purpose, on the right gradient, and see whether you get the student's numbers.** The right
# gradient is there already, the numeric one. There are two ways to commit a mistake on it:
#
# - change the answer: another sign, a division by N, two axes exchanged;
# - change the question: the numeric gradient of another forward. Whoever forgets that the batch's mean depends on x has
#   computed the right gradient of a batch norm with a frozen mean. Nobody has to write the wrong backward.
#
# Here is a diagnosis of batch norm in some twenty lines.

# %%
EPS = 1e-5
x0 = rng.standard_normal((3, 2, 4, 4)) * 2 + 1
dy = rng.standard_normal(x0.shape)
AXES, PER_CHANNEL = (0, 2, 3), (1, -1, 1, 1)


def changed_batch_norm(x, frozen_mean=False, frozen_var=False, gamma=True):
    """Batch norm, with statistics that may stay those of x0."""
    mean = (x0 if frozen_mean else x).mean(AXES, keepdims=True)
    var = (x0 if frozen_var else x).var(AXES, keepdims=True)
    y = (x - mean) / np.sqrt(var + EPS)
    return y * GAMMA.reshape(PER_CHANNEL) if gamma else y


def suspects():
    """What the gradient would be, had a certain mistake been made."""
    right = numeric_gradient(changed_batch_norm, x0, dy)
    found = {
        "none": right,
        "sign": -right,
        "1/N too often": right / len(x0),
        "axes exchanged": right.swapaxes(2, 3),
    }
    for name, change in {
        "mean constant": {"frozen_mean": True},
        "variance constant": {"frozen_var": True},
        "both constant": {"frozen_mean": True, "frozen_var": True},
        "gamma forgotten": {"gamma": False},
    }.items():
        found[name] = numeric_gradient(partial(changed_batch_norm, **change), x0, dy)
    return found


# %% [markdown]
# And here are some students, each with a backward function of their own. They go by the formula
#
#     dx = gamma inv_std (dy - mean(dy) - x_hat mean(dy x_hat))
#
# whose middle term comes from the mean and whose last comes from the variance. Only the first of them gets all of it
# right, and the last has a mistake that is not among the suspects.

# %%
centred = x0 - x0.mean(AXES, keepdims=True)
inv_std = 1 / np.sqrt(x0.var(AXES, keepdims=True) + EPS)
x_hat = centred * inv_std
mean_term = dy.mean(AXES, keepdims=True)
var_term = x_hat * (dy * x_hat).mean(AXES, keepdims=True)
scale = GAMMA.reshape(PER_CHANNEL) * inv_std
students = {
    "Ada: right": scale * (dy - mean_term - var_term),
    "Ben: dx has the wrong sign": scale * (mean_term + var_term - dy),
    "Cyd: divides by N again": scale * (dy - mean_term - var_term) / len(x0),
    "Dan: rows for columns": (scale * (dy - mean_term - var_term)).swapaxes(2, 3),
    "Eve: no mean term": scale * (dy - var_term),
    "Fay: no variance term": scale * (dy - mean_term),
    "Gus: neither": scale * dy,
    "Hal: no gamma": inv_std * (dy - mean_term - var_term),
    "Ivy: halves the variance term": scale * (dy - mean_term - var_term / 2),
}
committed = suspects()
residuals = np.array([[difference(yours, wrong) for wrong in committed.values()] for yours in students.values()])
for student, row in zip(students, residuals, strict=True):
    name, residual = list(committed)[row.argmin()], row.min()
    print(
        f"{student:<30}", f"{name}, to {residual:.0e}" if residual < 1e-6 else f"unexplained ({residual:.2f} at best)"
    )

# %%
figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
shown = axes.imshow(np.log10(residuals), cmap="Greys_r", vmin=-12, vmax=1, aspect="auto")
for (row, column), residual in np.ndenumerate(residuals):
    text = f"{residual:.0e}" if residual < 1e-6 else f"{residual:.2f}"
    axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if residual < 1e-6 else "black")
axes.set_xticks(range(len(committed)), labels=list(committed), rotation=25, ha="right", fontsize=8)
axes.set_yticks(range(len(students)), labels=list(students), fontsize=8)
axes.set(xlabel="mistake committed on the numeric gradient", title="Largest difference from the student's gradient")
figure.colorbar(shown, ax=axes, label="power of ten", shrink=0.8)
figure.savefig(figures / "02_suspects.png", dpi=80)

# %% [markdown]
# Dark or light, and nothing between: the mistake that was made reproduces the student's numbers to about ten digits,
# every other one misses by more than 0.1%. The data are random, so a match of so many digits in so many entries does
# not happen by chance: it is close to a proof. And Ivy's row stays light, so that the answer "unexplained" can be
# trusted as well.
#
# `check_kernel` in `minires/gradcheck/check.py` does this for each kind of kernel that it knows, with many more
# suspects, every combination of batch norm's terms, one constant factor beside each, and a second dy that a match must
# pass too. Before all that it puts the check itself in doubt (the same result twice? inputs left alone?), then the
# forward, then whether backward is linear in dy at all.
#
# ## Reading what it says
#
# Seven backward functions, one after the other. Read each diagnosis as you would in an exercise: which gradients pass,
# where the worst entry is, which mistake is named, and how closely that mistake gives the numbers.


# %%
def no_mean_term(dy, cache):
    """Batch norm: the term of the mean forgotten."""
    _, dgamma, dbeta = kernels.batch_norm_backward(dy, cache)
    along = (dy * cache.x_hat).mean(axis=(0, 2, 3), keepdims=True)  # (1, C, 1, 1)
    return cache.gamma[:, None, None] * cache.inv_std * (dy - cache.x_hat * along), dgamma, dbeta


def flipped_kernel(dy, cache):
    """Convolution: the kernel turned around on the way back."""
    _, dw, db = kernels.conv2d_backward(dy, cache)
    dx, _, _ = kernels.conv2d_backward(dy, cache._replace(w=cache.w[:, :, ::-1, ::-1]))
    return dx, dw, db


def averaged_twice(dy, cache):
    """Cross entropy: the loss is a mean over the batch, and so is its gradient, once."""
    dlogits, _ = kernels.cross_entropy_backward(dy, cache)
    return dlogits / len(dlogits), None


def mask_of_upstream(dy, cache):
    """ReLU: the mask asks the wrong array."""
    return dy * (dy > 0)


def two_at_once(dy, cache):
    """Batch norm: gamma forgotten, and the term of the variance."""
    _, dgamma, dbeta = kernels.batch_norm_backward(dy, cache)
    return cache.inv_std * (dy - dy.mean(axis=(0, 2, 3), keepdims=True)), dgamma, dbeta


def squashed(dy, cache):
    """Linear layer: something that nobody expects."""
    dx, _, db = kernels.linear_backward(dy, cache)
    return dx, dy.T @ np.tanh(cache.x), db


planted = [
    (no_mean_term, kernels.batch_norm_forward, "batch_norm", {"bn-mean-constant"}),
    (flipped_kernel, kernels.conv2d_forward, "conv2d", {"kernel-flipped"}),
    (averaged_twice, kernels.cross_entropy_forward, "cross_entropy", {"scale-by-N"}),
    (overwriting, kernels.conv2d_forward, "conv2d", {"col2im-overlap"}),
    (mask_of_upstream, kernels.relu_forward, "relu", {"relu-mask-from-upstream"}),
    (two_at_once, kernels.batch_norm_forward, "batch_norm", {"bn-missing-gamma", "bn-var-constant"}),
    (squashed, kernels.linear_forward, "linear", {"unexplained"}),
]
diagnosed = {}
for backward, forward, kind, expected in planted:
    report = check_kernel(forward, backward, kind=kind)
    diagnosed[backward.__name__] = report.codes == expected
    print(f"---- {backward.__name__}\n{report}")

# %% [markdown]
# Note the ReLU: its report has no worst entry. A mask from dy makes a backward that is not linear in dy, and that shows
# before any difference is taken: backward(-dy) is not -backward(dy). Note the two at once: both are named, because
# their combination is a suspect of its own. And note the last: no name, but which gradient, which entries, and both
# values at the worst.
#
# ## What a gradient check cannot see
#
# It asks whether backward belongs to forward. If both are wrong together it is content. Here is a convolution in the
# mathematicians' sense, with the kernel turned around both ways. Its gradient is right; it is not the convolution of
# deep learning, and with published weights it computes nonsense.


# %%
def turned_forward(x, w, b=None, **options):
    y, cache = kernels.conv2d_forward(x, w[:, :, ::-1, ::-1], b, **options)
    return y, cache


def turned_backward(dy, cache):
    dx, dw, db = kernels.conv2d_backward(dy, cache)
    return dx, dw[:, :, ::-1, ::-1], db


small = [rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 3, 3, 3)), rng.standard_normal(2)]
without_kind = check_kernel(turned_forward, turned_backward, small, names=["x", "w", "b"])
with_kind = check_kernel(turned_forward, turned_backward, kind="conv2d")
print(f"gradients alone:\n{without_kind}\nknowing what it should be:\n{with_kind}")

# %% [markdown]
# Told which operation it is, `check_kernel` first holds the forward against a definition in loops. A check also vouches
# only for what it ran: these sizes, this stride, this padding. Use odd ones, all different, or a factor N cannot be
# told from a factor 3.
#
# ## What common rules let through
#
# Course notes and homework graders use shorter rules. How good are they? The exercise `kill_the_mutants` ships eight
# wrong kernels that look right. Add three more, and try seven rules on them all:
#
# - **one entry**: a dy of ones, one entry of each gradient, chosen at random;
# - **ones**: a dy of ones, the norm of the difference over the sum of the norms (over 1, where that is less);
# - **first**: a random dy, only the gradient of the first input;
# - **norms**: a random dy, the norms of both gradients compared;
# - **loose**: a random dy, every entry, but a tolerance of 1%, as float32 seems to need;
# - **relative**: a random dy, in each entry the difference over the sum of both sizes;
# - **share**: a random dy, the largest difference as a share of the largest entry, which `check_kernel` uses.


# %%
def bessel(dy, cache):
    """Batch norm whose variance term divides by M - 1."""
    dx, dgamma, dbeta = kernels.batch_norm_backward(dy, cache)
    M = dy.size // len(dgamma)
    extra = cache.gamma * (dgamma / M - dgamma / (M - 1))  # (C,)
    return dx + extra[:, None, None] * cache.inv_std * cache.x_hat, dgamma, dbeta


def transposed(dy, cache):
    """Linear layer, square, whose dw is transposed."""
    dx, dw, db = kernels.linear_backward(dy, cache)
    return dx, dw.T, db


def strided_convolution(x, w):
    return kernels.conv2d_forward(x, w, stride=2)


def overwriting_xw(dy, cache):
    return overwriting(dy, cache)[:2]


def output_of(candidate, inputs, which, x):
    """y, with x as the input at one place."""
    return candidate.forward(*inputs[:which], x, *inputs[which + 1 :])[0]


def gradients(candidate, dy):
    """Pairs: what the candidate's backward says, and what differences of its forward say."""
    inputs = [x.copy() for x in candidate.inputs]
    answer = candidate.backward(dy, candidate.forward(*inputs)[1])
    answer = answer if isinstance(answer, tuple) else (answer,)
    pairs = []
    for which, yours in enumerate(answer):
        output = partial(output_of, candidate, inputs, which)
        pairs.append((yours, numeric_gradient(output, inputs[which], dy)))
    return pairs


# Each rule: two lists of (yours, numeric), for a dy of ones and for a random one -> the chance that it accepts them.


def one_entry(ones, some):
    chances = [(np.abs(a - b) <= 1e-6 * np.maximum(1, np.abs(b))).mean() for a, b in ones]
    return np.prod(chances)


def norm_of_difference(ones, some):
    sums = [np.linalg.norm(a) + np.linalg.norm(b) for a, b in ones]
    return float(all(np.linalg.norm(a - b) <= 1e-6 * max(s, 1) for (a, b), s in zip(ones, sums, strict=True)))


def first_gradient(ones, some):
    return float(difference(*some[0]) <= 1e-6)


def norms_compared(ones, some):
    return float(all(abs(np.linalg.norm(a) / np.linalg.norm(b) - 1) <= 1e-4 for a, b in some))


def loose(ones, some):
    return float(all(difference(a, b) <= 1e-2 for a, b in some))


def relative_error(a, b):
    return (np.abs(a - b) / np.maximum(1e-8, np.abs(a) + np.abs(b))).max()


def relative(ones, some):
    return float(all(relative_error(a, b) <= 1e-6 for a, b in some))


def share(ones, some):
    return float(all(difference(a, b) <= 1e-6 for a, b in some))


rules = {
    "one entry": one_entry,
    "ones": norm_of_difference,
    "first": first_gradient,
    "norms": norms_compared,
    "loose": loose,
    "relative": relative,
    "share": share,
}
Candidate = mutants.Candidate
norm_inputs = (rng.standard_normal((4, 3, 5, 5)), rng.uniform(0.5, 2, 3), rng.standard_normal(3))
square_inputs = (rng.standard_normal((3, 4)), rng.standard_normal((4, 4)), rng.standard_normal(4))
conv_inputs = (rng.standard_normal((1, 2, 5, 5)), rng.standard_normal((2, 2, 3, 3)))
candidates = mutants.candidates() + [
    Candidate("bessel", kernels.batch_norm_forward, bessel, norm_inputs, "a batch norm that divides by M - 1"),
    Candidate("transposed", kernels.linear_forward, transposed, square_inputs, "a square layer, dw transposed"),
    Candidate("overlap", strided_convolution, overwriting_xw, conv_inputs, "a convolution with = for +="),
]


def verdicts(candidate):
    """For each rule, the chance that it accepts this kernel."""
    shape = candidate.forward(*candidate.inputs)[0].shape
    ones = gradients(candidate, np.ones(shape))
    some = gradients(candidate, rng.standard_normal(shape))
    return [rule(ones, some) for rule in rules.values()]


faults = [candidate.fault for candidate in candidates if candidate.fault]
wrong = np.array([verdicts(candidate) for candidate in candidates if candidate.fault])
let_through = dict(zip(rules, wrong.sum(axis=0), strict=True))
for name, count in let_through.items():
    print(f"{name:<10} lets through {count:4.1f} of {len(wrong)} wrong kernels")

# %% [markdown]
# And the other way round: what do the last two say of a kernel that is right? The shipped batch norm, under forty
# different dy:

# %%
DRAWS = 40
shipped = Candidate("right", kernels.batch_norm_forward, kernels.batch_norm_backward, norm_inputs, None)
worst_relative, worst_share = 0.0, 0.0
for _ in range(DRAWS):
    yours, numeric = gradients(shipped, rng.standard_normal(norm_inputs[0].shape))[0]
    worst_relative = max(worst_relative, relative_error(yours, numeric))
    worst_share = max(worst_share, difference(yours, numeric))
print(f"dx of a right batch norm, worst of {DRAWS}: relative {worst_relative:.0e}, share {worst_share:.0e}")

# %%
figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
shown = axes.imshow(wrong, cmap="Greys", vmin=0, vmax=1, aspect="auto")
for (row, column), chance in np.ndenumerate(wrong):
    words = "passes" if chance == 1 else "found" if chance == 0 else f"{chance:.0%} pass"
    axes.text(column, row, words, ha="center", va="center", fontsize=8, color="white" if chance > 0.5 else "black")
axes.set_xticks(range(len(rules)), labels=list(rules))
axes.set_yticks(range(len(wrong)), labels=faults, fontsize=8)
axes.set(xlabel="rule", title="Which wrong kernels does a rule let through?")
figure.savefig(figures / "02_rules.png", dpi=80)

# %% [markdown]
# A dy of ones lets three of them through for certain, and who then looks at a single entry misses others by chance.
# Comparing norms, or one gradient of several, or loosely, each has its own blind spot. (The batch norm with M - 1 is
# off along x_hat, at right angles to its gradient: that hardly changes the norm.) The relative error of each entry
# lets nothing through here, but it asks much of an entry that happens to be small and whose numeric value has few
# digits: for a kernel that is right it comes out more than 100 times the share of the largest entry, and the
# smallest entry of the draw decides. With bad luck it rejects what is right, and who then loosens the limit is back at
# "loose". What remains is plain: float64, a random dy, every entry of every gradient, and the error measured against
# the largest entry.
#
# Now it is your turn. `minires exercise start relu` and `minires exercise start batch_norm_backward` ask for the
# kernels, and answer with diagnoses like those above; `minires exercise start kill_the_mutants` asks for the check
# itself.

# %%
assert best["central, float64"][1] < 1e-9 and 1e-7 < best["central, float64"][0] < 1e-3
assert best["one-sided, float64"][1] < 1e-6 < best["central, float32"][1]
assert best["Richardson, float64"][1] < best["central, float64"][1] < best["one-sided, float64"][1]
assert all(of_ones < 1e-8 and of_random > 0.01 for of_ones, of_random in blind.values())
assert 0.4 < at_zero < 0.6 and 0.5 < close_by < 0.7 and ties > 0.1
assert false_alarm > 0.1 and pool_report.ok
assert adjoint_error < 1e-12 and directional_error < 1e-6 and unmasked > 1e-6 and wrong_where_shared
diagonal = residuals[np.arange(len(committed)), np.arange(len(committed))]
others = residuals[residuals > 1e-6]
assert diagonal.max() < 1e-8 and others.min() > 0.001 and len(others) == residuals.size - len(committed)
assert all(diagnosed.values()), diagnosed
assert without_kind.ok and with_kind.codes == {"forward-wrong"}
assert (
    let_through["one entry"] > 3 and let_through["ones"] == 3 and let_through["share"] == let_through["relative"] == 0
)
assert let_through["first"] == 3 and let_through["norms"] == 3 and let_through["loose"] == 1
assert worst_share < 1e-8 and worst_relative > 100 * worst_share
