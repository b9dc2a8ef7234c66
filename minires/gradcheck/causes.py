"""Mistakes that any operation can have, worked out from its Jacobian; and which further causes belong to which kind."""

from __future__ import annotations

import numpy as np

from minires.gradcheck import causes_batch_norm, causes_convolution, causes_pointwise, causes_pooling
from minires.gradcheck.candidates import Candidate, evidence_of
from minires.gradcheck.problem import Problem

OF_KIND = {
    "conv2d": causes_convolution.candidates,
    "batch_norm": causes_batch_norm.candidates,
    "relu": causes_pointwise.relu_candidates,
    "max_pool2d": causes_pooling.max_candidates,
    "avg_pool2d": causes_pooling.avg_candidates,
    "global_avg_pool": causes_pooling.global_candidates,
    "linear": causes_pointwise.linear_candidates,
    "residual": causes_pointwise.residual_candidates,
    "cross_entropy": causes_pointwise.cross_entropy_candidates,
    "softmax": causes_pointwise.softmax_candidates,
}


def candidates(problem: Problem, which: int, u: np.ndarray) -> list[Candidate]:
    """Every gradient that the student may have computed for input ``which`` and upstream u, the right one first."""
    found = general(problem, which, u)
    if problem.kind in OF_KIND:
        found += OF_KIND[problem.kind](problem, which, u)
        if which > 0:  # and of a parameter's gradient, one sample's share
            for code, part, words in upstream_parts(u)[:2]:
                for candidate in OF_KIND[problem.kind](problem, which, part):
                    evidence = {own: evidence_of(candidate, own) for own in candidate.codes}
                    evidence[code] = words
                    found.append(Candidate((*candidate.codes, code), candidate.gradient, evidence))
    return found


def general(problem: Problem, which: int, u: np.ndarray) -> list[Candidate]:
    """What needs no knowledge of the operation: parts of the upstream lost, factors and couplings lost."""
    jacobian = problem.jacobian(which)
    right = jacobian.vjp(u)
    found = [Candidate((), right)]
    for code, part, words in upstream_parts(u) + repeated_parts(u, right.shape):
        found.append(Candidate((code,), jacobian.vjp(part), words))
    found += halves(right)
    found += moved_out(right)
    if problem.y.shape == right.shape and (problem.kind is None or problem.kind == "softmax"):
        found += pointwise(problem, which, u, right)
    if problem.kind is None:
        found += factors(problem, which, right)
    return found


def upstream_parts(u: np.ndarray) -> list[tuple[str, np.ndarray, str]]:
    """The upstream with all but one sample, or all but one pixel, set to 0."""
    parts = []
    if u.ndim >= 1 and u.shape[0] > 1:
        for n in (u.shape[0] - 1, 0):
            part = np.zeros_like(u)
            part[n] = u[n]
            parts.append(("last-sample-only", part, f"it is the gradient of sample {n} alone"))
    if u.ndim == 4:
        N, C, H, W = u.shape
        misread = u.reshape(C, N, H, W).transpose(1, 0, 2, 3)
        parts.append(("reshaped-not-transposed", misread, "dy is reshaped to channels first, and not transposed"))
        misread = u.transpose(1, 0, 2, 3).reshape(u.shape)
        parts.append(("reshaped-not-transposed", misread, "dy is reshaped back to samples first, and not transposed"))
    if u.ndim == 4 and u.shape[2] * u.shape[3] > 1:
        for h, w in ((0, 0), (-1, -1)):
            part = np.zeros_like(u)
            part[:, :, h, w] = u[:, :, h, w]
            parts.append(("first-pixel-only", part, f"it is the gradient of output pixel ({h}, {w}) alone"))
    return parts


def repeated_parts(u: np.ndarray, shape: tuple[int, ...]) -> list[tuple[str, np.ndarray, str]]:
    """Where an axis of y is a multiple of x's: the upstream of the first, or the last, of each group alone."""
    parts = []
    if u.ndim == len(shape):
        for axis, (many, few) in enumerate(zip(u.shape, shape, strict=True)):
            if few > 0 and many > few and many % few == 0:
                for place in (0, many // few - 1):
                    part = np.zeros_like(u)
                    chosen = (slice(None),) * axis + (slice(place, None, many // few),)
                    part[chosen] = u[chosen]
                    words = f"along axis {axis} only entry {place} of each {many // few} of dy counts"
                    parts.append(("first-pixel-only", part, words))
    return parts


def moved_out(right: np.ndarray) -> list[Candidate]:
    """The right gradient moved by one along an axis, with zeros coming in."""
    found = []
    for axis in range(right.ndim):
        for step in (1, -1):
            moved = np.roll(right, step, axis)
            edge = (slice(None),) * axis + (0 if step == 1 else -1,)
            moved[edge] = 0
            found.append(Candidate(("shifted",), moved, f"yours is moved by {step} along axis {axis}"))
    return found


def halves(right: np.ndarray) -> list[Candidate]:
    """The right gradient in one sample, or one pixel, and 0 in the others."""
    found = []
    if right.ndim >= 1 and right.shape[0] > 1:
        for n in (right.shape[0] - 1, 0):
            part = np.zeros_like(right)
            part[n] = right[n]
            found.append(
                Candidate(("last-sample-only",), part, f"yours is right in entry {n} of axis 0, and 0 elsewhere")
            )
    if right.ndim == 4:
        part = np.zeros_like(right)
        part[:, :, 0, 0] = right[:, :, 0, 0]
        found.append(Candidate(("first-pixel-only",), part, "yours is right in pixel (0, 0), and 0 elsewhere"))
    return found


def pointwise(problem: Problem, which: int, u: np.ndarray, right: np.ndarray) -> list[Candidate]:
    """For outputs of the input's shape: only the diagonal of the Jacobian, or only the rest of it, or dy itself."""
    diagonal = np.diag(problem.jacobian(which).value).reshape(u.shape) * u
    if np.allclose(diagonal, right, rtol=1e-9, atol=1e-12):
        return [Candidate(("scale-other",), u, "yours is dy itself, times a constant: the derivative is missing")]
    if np.ptp(np.diag(problem.jacobian(which).value)) < 1e-9:
        return [Candidate(("missing-sum",), u, "yours is dy: each entry also changes the other outputs")]
    words = "each entry of yours sees only the same entry of dy: it also changes the other outputs"
    found = [Candidate(("missing-sum",), diagonal, words)]
    return [*found, Candidate(("missing-sum",), right - diagonal, "the same entry of dy is missing in yours")]


def factors(problem: Problem, which: int, right: np.ndarray) -> list[Candidate]:
    """The right gradient with one factor too many or too few: an input, the output, or 1 minus it."""
    found = []
    values = [(name, x) for name, x in zip(problem.names, problem.inputs, strict=True) if x.dtype.kind == "f"]
    values += [("y", problem.y), ("(1 - y)", 1 - problem.y)]
    for name, value in values:
        if value.ndim and value.shape == right.shape and (np.abs(value) > 1e-9).all():
            found.append(Candidate(("scale-other",), right * value, f"the factor {name} is there once too often"))
            found.append(Candidate(("scale-other",), right / value, f"the factor {name} is missing"))
    return found
