"""Residual blocks gone wrong: y = relu(x + relu(x @ w1) @ w2)."""

from typing import NamedTuple

import numpy as np

from mistakes import Kind


class Cache(NamedTuple):
    x: np.ndarray  # (N, D)
    w1: np.ndarray  # (D, M)
    w2: np.ndarray  # (M, D)
    z: np.ndarray  # (N, M), x @ w1
    h: np.ndarray  # (N, M), relu(z)
    branch: np.ndarray  # (N, D), h @ w2
    s: np.ndarray  # (N, D), x + branch


def residual_forward(x, w1, w2):
    z = x @ w1
    h = np.maximum(z, 0)
    branch = h @ w2
    s = x + branch
    return np.maximum(s, 0), Cache(x, w1, w2, z, h, branch, s)


def through_the_branch(ds, cache):
    """From the sum's gradient to the branch's share of dx, and to dw1 and dw2."""
    dz = ds @ cache.w2.T * (cache.z > 0)
    return dz @ cache.w1.T, cache.x.T @ dz, cache.h.T @ ds


def residual_backward(dy, cache):
    ds = dy * (cache.s > 0)
    dx_branch, dw1, dw2 = through_the_branch(ds, cache)
    return ds + dx_branch, dw1, dw2


def dx_parts(dy, cache):
    """The two shares of dx: the skip's and the branch's."""
    ds = dy * (cache.s > 0)
    return ds, through_the_branch(ds, cache)[0]


residual = Kind("residual", residual_forward, residual_backward)


@residual.wrong("dx", "res-missing-skip")
def skip_forgotten(dy, cache):
    """Returns the branch's gradient only."""
    skip, branch = dx_parts(dy, cache)
    return branch


@residual.wrong("dx", "res-missing-skip")
def overwritten_by_the_branch(dy, cache):
    """Types dx = for dx += when the branch's gradient arrives."""
    ds = dy * (cache.s > 0)
    dx = ds
    dx = (ds @ cache.w2.T * (cache.z > 0)) @ cache.w1.T
    return dx


@residual.wrong("dx", "res-missing-branch")
def branch_forgotten(dy, cache):
    """Lets the gradient flow along the skip only."""
    skip, branch = dx_parts(dy, cache)
    return skip


@residual.wrong("dx", "res-skip-twice")
def skip_added_again(dy, cache):
    """Begins with dx = ds, and adds ds once more at the end."""
    skip, branch = dx_parts(dy, cache)
    return skip + branch + skip


@residual.wrong("dx", "res-skip-bypasses-relu")
def skip_from_dy(dy, cache):
    """Adds dy for the skip, not what passed the last ReLU."""
    skip, branch = dx_parts(dy, cache)
    return dy + branch


@residual.wrong("dx dw1 dw2", "res-mask-from-branch")
def mask_before_the_addition(dy, cache):
    """Takes the last ReLU's mask from the branch, before x was added."""
    ds = dy * (cache.branch > 0)
    dx_branch, dw1, dw2 = through_the_branch(ds, cache)
    return ds + dx_branch, dw1, dw2


@residual.wrong("dx dw1 dw2", "res-relu-skipped")
def last_relu_forgotten(dy, cache):
    """Forgets the last ReLU on the way back."""
    dx_branch, dw1, dw2 = through_the_branch(dy, cache)
    return dy + dx_branch, dw1, dw2


@residual.wrong("dx dw1", "res-inner-mask-missing")
def inner_relu_forgotten(dy, cache):
    """Forgets the ReLU inside the branch on the way back."""
    ds = dy * (cache.s > 0)
    dh = ds @ cache.w2.T
    return ds + dh @ cache.w1.T, cache.x.T @ dh


@residual.wrong("dx", "res-averaged")
def two_ways_averaged(dy, cache):
    """Takes the mean of the two ways, where gradients of two ways add up."""
    skip, branch = dx_parts(dy, cache)
    return (skip + branch) / 2


@residual.wrong("dx", "sign")
def dx_negated(dy, cache):
    """Subtracts both ways from zero."""
    skip, branch = dx_parts(dy, cache)
    return 0 - skip - branch


@residual.wrong("dw1", "scale-by-N")
def first_weights_averaged(dy, cache):
    """Divides dw1 by the batch size."""
    return residual_backward(dy, cache)[1] / len(dy)


@residual.wrong("dw1", "zero")
def branch_detached(dy, cache):
    """Detaches the branch, so that its first weights never learn."""
    return np.zeros_like(cache.w1)


@residual.wrong("dw1", "transposed")
def first_weights_turned(dy, cache):
    """Returns dz.T @ x."""
    return residual_backward(dy, cache)[1].T


@residual.wrong("dw1", "reshaped-not-transposed")
def first_weights_reshaped(dy, cache):
    """Repairs the shape of dz.T @ x with a reshape."""
    return residual_backward(dy, cache)[1].T.reshape(cache.w1.shape)


@residual.wrong("dw2", "last-sample-only")
def second_weights_overwritten(dy, cache):
    """Types dw2 = for dw2 += in the loop over the batch."""
    ds = dy * (cache.s > 0)
    for n in range(len(dy)):
        dw2 = np.outer(cache.h[n], ds[n])
    return dw2


@residual.wrong("dw2", "upstream-ignored")
def second_weights_of_a_mask(dy, cache):
    """Takes the mask for ds and forgets dy."""
    return cache.h.T @ (cache.s > 0).astype(float)


@residual.wrong("dw2", "unexplained")
def sum_changed_in_place(dy, cache):
    """Adds the branch's gradient to ds in place before dw2 is made of ds."""
    ds = dy * (cache.s > 0)
    dx = ds
    dx += through_the_branch(ds, cache)[0]
    return cache.h.T @ ds


def backward_without_the_last_relu(dy, cache):
    dx_branch, dw1, dw2 = through_the_branch(dy, cache)
    return dy + dx_branch, dw1, dw2


@residual.wrong_forward(backward=backward_without_the_last_relu)
def no_last_relu(x, w1, w2):
    """Leaves the last ReLU out, as pre-activation blocks do; the backward fits it."""
    _, cache = residual_forward(x, w1, w2)
    return cache.s, cache


def backward_of_addition_after_relu(dy, cache):
    dx_branch, dw1, dw2 = through_the_branch(dy * (cache.branch > 0), cache)
    return dy + dx_branch, dw1, dw2


@residual.wrong_forward(backward=backward_of_addition_after_relu)
def added_after_the_relu(x, w1, w2):
    """Adds x after the last ReLU; the backward fits it."""
    _, cache = residual_forward(x, w1, w2)
    return x + np.maximum(cache.branch, 0), cache


@residual.wrong("dx", "res-skip-twice", "sign")
def skip_twice_negated(dy, cache):
    """Adds the skip's gradient twice, and negates all."""
    skip, branch = dx_parts(dy, cache)
    return -(2 * skip + branch)


@residual.wrong("dx dw1", "res-missing-skip", "res-inner-mask-missing")
def neither_skip_nor_inner_mask(dy, cache):
    """Forgets the skip, and the ReLU inside the branch."""
    dh = dy * (cache.s > 0) @ cache.w2.T
    return dh @ cache.w1.T, cache.x.T @ dh


@residual.wrong("dx dw1", "res-averaged", "res-inner-mask-missing")
def averaged_without_inner_mask(dy, cache):
    """Takes the mean of the two ways, and forgets the ReLU inside the branch."""
    ds = dy * (cache.s > 0)
    dh = ds @ cache.w2.T
    return (ds + dh @ cache.w1.T) / 2, cache.x.T @ dh


@residual.wrong("dx dw1 dw2", "res-missing-branch", "res-mask-from-branch")
def skip_only_and_early_mask(dy, cache):
    """Lets only the skip through, masked by the branch before x was added."""
    ds = dy * (cache.branch > 0)
    _, dw1, dw2 = through_the_branch(ds, cache)
    return ds, dw1, dw2


@residual.wrong("dx dw2", "res-missing-skip", "scale-by-N")
def skip_forgotten_weights_averaged(dy, cache):
    """Forgets the skip in dx, and divides dw2 by the batch size."""
    return skip_forgotten(dy, cache), residual_backward(dy, cache)[2] / len(dy)
