"""Wrong gradients of ReLU, of a residual block, of softmax and of cross entropy."""

from __future__ import annotations

import numpy as np

from minires.gradcheck.candidates import Candidate
from minires.gradcheck.problem import Problem


def relu_candidates(problem: Problem, which: int, u: np.ndarray) -> list[Candidate]:
    """Another mask, or another factor than the mask."""
    x = problem.inputs[0]
    found = [
        Candidate(("relu-no-mask",), u),
        Candidate(("relu-mask-inverted",), u * (x < 0)),
        Candidate(("relu-mask-from-upstream",), u * (u > 0)),
        Candidate(("relu-mask-from-upstream",), u * (u > 0) * (x > 0)),
        Candidate(("relu-times-x",), u * np.maximum(x, 0)),
        Candidate(("relu-times-x",), u * x),
    ]
    levels = np.unique(x)
    between = (levels[1:] + levels[:-1]) / 2
    for level in between[np.argsort(np.abs(between))]:
        low, high = levels[levels < level][-1], levels[levels > level][0]
        words = f"the gradient passes where x > t, with t between {low:.3g} and {high:.3g}"
        found.append(Candidate(("relu-threshold",), u * (x > level), words))
    for level in between[between > 0]:
        words = f"the gradient passes where |x| is above or below about {level:.3g}"
        found.append(Candidate(("relu-threshold",), u * (np.abs(x) > level), words))
        found.append(Candidate(("relu-threshold",), u * ((x > 0) & (x < level)), words))
    return found


def residual_candidates(problem: Problem, which: int, u: np.ndarray) -> list[Candidate]:
    """Every combination of masks that are there or not with ways that are counted or not."""
    x, w1, w2 = problem.inputs
    h = x @ w1
    a = np.maximum(h, 0)
    z = a @ w2
    outer = [
        ((), u * (x + z > 0)),
        (("res-relu-skipped",), u),
        (("res-mask-from-branch",), u * (z > 0)),
        (("res-mask-from-branch",), u * (x > 0)),
    ]
    inner = [((), h > 0), (("res-inner-mask-missing",), np.ones_like(h)), (("relu-mask-inverted",), h < 0)]
    found = []
    for outer_codes, ds in outer:
        for inner_codes, mask in inner:
            dh = (ds @ w2.T) * mask
            if which == 0:
                found += ways(outer_codes + inner_codes, ds, dh @ w1.T, u)
            elif which == 1:
                found.append(Candidate(outer_codes + inner_codes, x.T @ dh))
            else:
                hidden = a if not inner_codes else h  # forward's ReLU left out of the cache
                found.append(Candidate(outer_codes + inner_codes, hidden.T @ ds))
    return [candidate for candidate in found if candidate.codes]


def ways(codes: tuple[str, ...], skip: np.ndarray, branch: np.ndarray, u: np.ndarray) -> list[Candidate]:
    """The two ways of a residual block, counted rightly and wrongly."""
    return [
        Candidate(codes, skip + branch),
        Candidate((*codes, "res-missing-skip"), branch, {"res-missing-skip": "yours is what comes through the branch"}),
        Candidate((*codes, "res-missing-branch"), skip, {"res-missing-branch": "yours is what comes through the skip"}),
        Candidate((*codes, "res-skip-twice"), 2 * skip + branch),
        Candidate((*codes, "res-skip-bypasses-relu"), u + branch),
        Candidate((*codes, "res-averaged"), (skip + branch) / 2),
        Candidate((*codes, "sign"), skip - branch, {"sign": "the branch is subtracted"}),
        Candidate((*codes, "factor-2"), skip + 2 * branch, {"factor-2": "the branch is counted twice"}),
    ]


def linear_candidates(problem: Problem, which: int, u: np.ndarray) -> list[Candidate]:
    """With square weights, the product with w.T runs as well."""
    w = problem.inputs[1]
    if which == 0 and w.shape[0] == w.shape[1]:
        return [Candidate(("transposed",), u @ w.T, "yours is dy w.T: it is dy w")]
    return []


def softmax_candidates(problem: Problem, which: int, u: np.ndarray) -> list[Candidate]:
    """The sum along another axis. (A missing sum is among the general causes.)"""
    x, y = problem.inputs[0], problem.y
    axis = problem.options.get("axis", -1) % x.ndim
    found = []
    for other in range(x.ndim):
        if other != axis:
            words = f"the sum goes along axis {other} and not along axis {axis}"
            found.append(Candidate(("ce-wrong-axis",), y * (u - (u * y).sum(other, keepdims=True)), words))
            e = np.exp(x - x.max(other, keepdims=True))
            p = e / e.sum(other, keepdims=True)
            found.append(Candidate(("ce-wrong-axis",), p * (u - (u * p).sum(axis, keepdims=True)), words))
            found.append(Candidate(("ce-wrong-axis",), p * (u - (u * p).sum(other, keepdims=True)), words))
    along = (u * y).sum(axis, keepdims=True)
    found.append(Candidate(("missing-sum",), y * u, "yours is y dy: the sum of dy y is missing"))
    found.append(Candidate(("sign",), y * (u + along), "the sum of dy y is added and not subtracted"))
    found.append(Candidate(("scale-by-C",), y * (u - along / x.shape[axis]), "a mean stands for the sum of dy y"))
    found.append(Candidate(("missing-sum",), y * (u - u * y), "dy y stands for its sum"))
    found.append(Candidate(("scale-other",), u - along, "the factor y in front is missing"))
    found.append(
        Candidate(("scale-other",), y * (u - u.sum(axis, keepdims=True)), "y is missing inside the sum of dy y")
    )
    return found


def cross_entropy_candidates(problem: Problem, which: int, u: np.ndarray) -> list[Candidate]:
    """Softmax and one-hot, each right, missing, or along the wrong axis."""
    logits, labels = problem.inputs
    N, C = logits.shape
    counted = (labels != problem.options.get("ignore_index", -100)).astype(float)
    share = counted / counted.sum() if problem.options.get("reduction", "mean") == "mean" else counted
    share = (np.asarray(u) * share).reshape(N, 1)
    smoothing = problem.options.get("label_smoothing", 0.0)
    onehot = np.zeros((N, C))
    onehot[np.arange(N), np.where(counted > 0, labels, 0)] = 1 - smoothing
    onehot += smoothing / C
    columns = np.zeros((N, C))
    columns[:, labels[counted > 0]] = 1
    e = np.exp(logits - logits.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    p0 = e / e.sum(0, keepdims=True)
    q = np.exp(logits - logits.max(0, keepdims=True))
    p00 = q / q.sum(0, keepdims=True)
    whole = e / e.sum()
    rows = np.zeros((N, C))
    rows[np.arange(N) % C, np.arange(N) % C] = 1
    found = [
        Candidate(("ce-no-onehot",), share * p, "yours is softmax"),
        Candidate(("ce-wrong-axis",), share * (p00 - onehot), "softmax is taken over the batch"),
        Candidate(("ce-wrong-axis",), share * (p0 - onehot), "softmax is summed over the batch"),
        Candidate(("ce-wrong-axis",), share * (whole - onehot), "softmax is taken over the whole array"),
        Candidate(("ce-wrong-axis",), share * (p - columns), "1 is subtracted in the labels' columns of every row"),
        Candidate(("ce-wrong-axis",), share * (p - 1), "1 is subtracted everywhere"),
        Candidate(("ce-no-onehot", "ce-wrong-axis"), share * p00, "yours is softmax over the batch"),
        Candidate(("sign",), share * (p + onehot), "the one-hot is added and not subtracted"),
        Candidate(("ce-wrong-axis",), share * (p - rows), "the one-hot marks the row's number and not its label"),
    ]
    exchanged = np.zeros((max(N, C), max(N, C)))
    exchanged[np.where(counted > 0, labels, 0), np.arange(N)] = 1
    words = "1 is subtracted at [label, row] and not at [row, label]"
    found.append(Candidate(("ce-wrong-axis",), share * (p - exchanged[:N, :C]), words))
    for step in (1, -1):
        found.append(Candidate(("shifted",), share * (p - np.roll(onehot, step, 1)), "the labels are off by one"))
    return found
