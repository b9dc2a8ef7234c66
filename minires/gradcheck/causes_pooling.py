"""Wrong gradients of the poolings: who gets a window's gradient, and where it is put."""

from __future__ import annotations

import numpy as np

from minires.gradcheck.candidates import Candidate
from minires.gradcheck.causes_convolution import geometry, placed
from minires.gradcheck.problem import Problem
from minires.kernels.shapes import pair


def window_values(problem: Problem) -> np.ndarray:
    """The pixels of every window, (KH, KW, N, C, OH, OW), -inf in the padding."""
    x = problem.inputs[0]
    KH, KW = pair(problem.options["kernel_size"], "check", "kernel_size", 1)
    (SH, SW), (PH, PW), (DH, DW) = geometry(problem)
    N, C, OH, OW = problem.y.shape
    padded = np.full((N, C, x.shape[2] + 2 * PH + KH * DH, x.shape[3] + 2 * PW + KW * DW), -np.inf)
    padded[:, :, PH : PH + x.shape[2], PW : PW + x.shape[3]] = x
    values = np.empty((KH, KW, N, C, OH, OW))
    for kh in range(KH):
        for kw in range(KW):
            h, w = kh * DH, kw * DW
            values[kh, kw] = padded[:, :, h : h + (OH - 1) * SH + 1 : SH, w : w + (OW - 1) * SW + 1 : SW]
    return values


def one_hot(index: np.ndarray, KH: int, KW: int) -> np.ndarray:
    """1 at a flat position in each window: (N, C, OH, OW) -> (KH, KW, N, C, OH, OW)."""
    hot = index == np.arange(KH * KW).reshape(-1, 1, 1, 1, 1)
    return hot.reshape(KH, KW, *index.shape).astype(float)


def position(kh: np.ndarray, kw: np.ndarray, KH: int, KW: int) -> np.ndarray:
    """The flat position in a window, at its edge where a wrong row or column would lie outside."""
    return np.minimum(kh, KH - 1) * KW + np.minimum(kw, KW - 1)


def max_candidates(problem: Problem, which: int, u: np.ndarray) -> list[Candidate]:
    """Every combination of a wrong receiver with a wrong place."""
    if problem.options.get("ceil_mode"):
        return []
    values = window_values(problem)
    KH, KW = values.shape[:2]
    flat = values.reshape(KH * KW, *values.shape[2:])
    first = flat.argmax(0)  # (N, C, OH, OW)
    real = np.where(np.isinf(flat), np.inf, flat)
    inside = np.isfinite(values)
    last = KH * KW - 1 - flat[::-1].argmax(0)
    receivers = [
        ((), one_hot(first, KH, KW), ""),
        (("pool-ties",), (values == values.max((0, 1))) * 1.0, "every largest value gets all of it"),
        (("pool-argmin",), one_hot(real.argmin(0), KH, KW), ""),
        (("pool-argmin",), one_hot(np.where(np.isinf(flat), 0, flat).argmin(0), KH, KW), ""),
        (("pool-argmin",), one_hot(flat.argmin(0), KH, KW), "the padding's -inf is the smallest"),
        (("pool-average",), np.ones_like(values) / (KH * KW), ""),
        (("pool-average",), inside / inside.sum((0, 1)), ""),
        (("pool-all",), np.ones_like(values), ""),
        (("pool-index-order",), one_hot(position(first % KW, first // KW, KH, KW), KH, KW), "row and column exchanged"),
        (("pool-index-order",), one_hot(position(first // KH, first % KH, KH, KW), KH, KW), "divided by KH, not by KW"),
        (("pool-index-order",), one_hot(KH * KW - 1 - first, KH, KW), "the positions run backwards"),
        (("pool-other-sample",), one_hot(np.broadcast_to(first[:1], first.shape), KH, KW), "sample 0 decides for all"),
        (("pool-other-sample",), one_hot(np.broadcast_to(first[-1:], first.shape), KH, KW), "the last sample decides"),
        (
            ("pool-other-sample",),
            one_hot(np.broadcast_to(first[:, :1], first.shape), KH, KW),
            "channel 0 decides for all",
        ),
        (
            ("pool-other-sample",),
            one_hot(np.broadcast_to(first[:, -1:], first.shape), KH, KW),
            "the last channel decides",
        ),
        (("pool-other-sample",), one_hot(np.roll(first, 1, 0), KH, KW), "the sample before decides"),
        (("pool-other-sample",), one_hot(np.roll(first, -1, 0), KH, KW), "the sample behind decides"),
        (("pool-other-sample",), one_hot(np.roll(first, 1, 1), KH, KW), "the channel before decides"),
        (("pool-other-sample",), one_hot(np.roll(first, -1, 1), KH, KW), "the channel behind decides"),
    ]
    receivers.append((("pool-ties",), one_hot(last, KH, KW), "the last of the largest values gets it"))
    if np.array_equal(first, last):  # without ties these are right
        receivers = [r for r in receivers if r[0] != ("pool-ties",)]
    return combined(problem, u, receivers)


def avg_candidates(problem: Problem, which: int, u: np.ndarray) -> list[Candidate]:
    """The average's share, at a wrong place or to one pixel alone."""
    if problem.options.get("ceil_mode"):
        return []
    values = window_values(problem)
    KH, KW = values.shape[:2]
    inside = np.isfinite(values)
    counted = inside.sum((0, 1))
    share = 1 / (KH * KW) if problem.options.get("count_include_pad", True) else 1 / counted
    other = 1 / counted if problem.options.get("count_include_pad", True) else 1 / (KH * KW)
    receivers = [
        ((), np.ones_like(values) * share, ""),
        (("scale-other",), inside * other, "the number of cells counts, or leaves out, the padding"),
        (("first-pixel-only",), one_hot(np.zeros_like(counted), KH, KW) * share, "the first pixel of each window"),
    ]
    return combined(problem, u, receivers)


def combined(problem: Problem, u: np.ndarray, receivers: list) -> list[Candidate]:
    """Each receiver with each place."""
    found = []
    for codes, weights, words in receivers:
        alone = bool(((weights != 0).sum((0, 1)) <= 1).all())
        for place_codes, dx, place_words in placed(weights * u, problem.inputs[0].shape, *geometry(problem), alone):
            if codes + place_codes:
                evidence = {**dict.fromkeys(codes, words), **dict.fromkeys(place_codes, place_words)}
                found.append(Candidate(codes + place_codes, dx, evidence))
    return found


def global_candidates(problem: Problem, which: int, u: np.ndarray) -> list[Candidate]:
    """The upstream of another sample, or of another channel."""
    x = problem.inputs[0]
    found = []
    for axis in (0, 1):
        for step in (1, -1):
            moved = np.broadcast_to(np.roll(u, step, axis), x.shape) / (x.shape[2] * x.shape[3])
            found.append(Candidate(("pool-other-sample",), moved, f"dy of the neighbour along axis {axis}"))
    return found
