"""What a gradient would be, had a certain mistake been made; and the search for the one that fits.

A candidate is an array and the codes of the mistakes that lead to it. The right gradient is a candidate without codes.
The student's gradient is compared with every candidate up to one constant factor, as it is and with its axes exchanged,
reversed or moved. Numbers are random, so a match to 1e-6 is hardly ever a coincidence; it is tried on a second upstream
all the same.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

#: A candidate fits when its largest difference is at most this share of the gradient's largest entry.
FIT = 1e-6


class Candidate(NamedTuple):
    """A gradient, and the mistakes that would give it."""

    codes: tuple[str, ...]
    gradient: np.ndarray
    evidence: str | dict[str, str] = ""  # of all its codes together, or of each


class Move(NamedTuple):
    """A way in which right numbers land in wrong places."""

    codes: tuple[str, ...]
    gradient: np.ndarray  # the student's, moved back
    evidence: str = ""


class Match(NamedTuple):
    """The mistakes that reproduce the student's gradient, and how well they do."""

    causes: list[tuple[str, str]]  # each code with its evidence
    residual: float


def moves(g: np.ndarray, shape: tuple[int, ...], kind: str | None) -> list[Move]:
    """The gradient itself, and with axes exchanged, reversed, moved by one or summed, where that gives ``shape``."""
    found: list[Move] = []
    if g.shape == shape:
        found.append(Move((), g))
        found.extend(same_shape_moves(g, kind))
    else:
        found.extend(other_shape_moves(g, shape))
    return found


def same_shape_moves(g: np.ndarray, kind: str | None) -> list[Move]:
    """Moves that keep the shape."""
    found = []
    axes = [axis for axis in range(g.ndim) if g.shape[axis] > 1]
    for count in (1, 2):
        for some in itertools.combinations(axes, count):
            code = "kernel-flipped" if kind == "conv2d" and g.ndim == 4 and some == (2, 3) else "flipped"
            found.append(Move((code,), np.flip(g, some), f"yours runs backwards along axis {listed(some)}"))
    for order in itertools.permutations(range(g.ndim)):
        if order == tuple(range(g.ndim)):
            continue
        inverse = np.argsort(order)
        name = f"transpose{order}"
        if tuple(g.shape[axis] for axis in order) == g.shape:
            code = "kernel-transposed" if kind == "conv2d" and g.ndim == 4 and order == (0, 1, 3, 2) else "transposed"
            found.append(Move((code,), g.transpose(inverse), f"yours is the right gradient's {name}"))
        else:  # yours = right.transpose(order).reshape(shape): undo the reshape, then the transpose
            moved = g.reshape(tuple(g.shape[axis] for axis in order)).transpose(inverse)
            found.append(Move(("reshaped-not-transposed",), moved, f"yours is the right gradient's {name}, reshaped"))
            back = g.transpose(order).reshape(g.shape)
            found.append(Move(("reshaped-not-transposed",), back, "yours was reshaped where it should be transposed"))
    for axis in axes:
        for step in (1, -1, 2, -2):
            found.append(Move(("shifted",), np.roll(g, -step, axis), f"yours is moved by {step} along axis {axis}"))
    return found


def other_shape_moves(g: np.ndarray, shape: tuple[int, ...]) -> list[Move]:
    """Moves from another shape to the right one."""
    found = []
    if g.ndim == len(shape) and sorted(g.shape) == sorted(shape):
        for order in itertools.permutations(range(g.ndim)):
            if tuple(g.shape[axis] for axis in order) == shape:
                found.append(Move(("transposed",), g.transpose(order), f"yours.transpose{order} has the right shape"))
    if g.size == int(np.prod(shape)):
        found.append(Move(("wrong-shape",), g.reshape(shape), f"yours has shape {g.shape}, its input {shape}"))
        return found
    for count in range(1, g.ndim + 1):
        for some in itertools.combinations(range(g.ndim), count):
            summed = g.sum(axis=some)
            if without_ones(summed.shape) == without_ones(shape):
                words = f"yours.sum(axis={listed(some)}) has the right shape"
                found.append(Move(("missing-sum",), summed.reshape(shape), words))
    return found


def without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without axes of length 1."""
    return tuple(size for size in shape if size != 1)


def listed(axes: tuple[int, ...]) -> str:
    """Axes as text: ``2`` or ``(2, 3)``."""
    return str(axes[0]) if len(axes) == 1 else str(axes)


def fits(move: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each candidate (a row), the factor that brings it closest to the moved gradient, and what is left."""
    g = move.ravel()
    size = float(np.abs(g).max())
    norms = np.einsum("kn,kn->k", candidates, candidates)
    factors = candidates @ g / np.where(norms > 0, norms, 1)
    left = np.abs(factors[:, None] * candidates - g).max(axis=1) / size
    return factors, np.where(norms > 0, left, np.inf)


def scale_codes(factor: float, sizes: dict[str, set[float]]) -> tuple[tuple[str, ...], str]:
    """The names of a constant factor, from the sizes it may come from; and the evidence."""
    if abs(factor - 1) < 10 * FIT:
        return (), ""
    codes: list[str] = []
    size = abs(factor)
    if factor < 0:
        codes.append("sign")
    if abs(size - 1) > 10 * FIT:
        known = {"factor-2": {2.0}, **sizes}
        names = [
            code
            for code, values in known.items()
            if any(abs(size / value - 1) < 10 * FIT or abs(size * value - 1) < 10 * FIT for value in values)
        ]
        codes.append(names[0] if names else "scale-other")
    return tuple(codes), f"yours = {factor:.6g} times what it should be"


def search(
    pairs: list[tuple[np.ndarray, list[Candidate]]],
    shape: tuple[int, ...],
    kind: str | None,
    sizes: dict[str, set[float]],
) -> Match | None:
    """The fewest mistakes that reproduce the student's gradient.

    Args: pairs, for each of two upstreams the student's gradient and the list of candidates, in one order; shape, the
    right one; sizes, the numbers that a factor may be named after.
    Returns: the best match, or None where nothing fits on both upstreams.
    """
    (g, candidates), (g2, candidates2) = pairs
    if not candidates or not np.abs(g).max() > 0:
        return None
    matrix = np.stack([candidate.gradient.ravel() for candidate in candidates])
    found = []
    for place, move in enumerate(moves(g, shape, kind)):
        factors, left = fits(move.gradient, matrix)
        for k in np.flatnonzero(left < FIT):
            scale, evidence = scale_codes(float(factors[k]), sizes)
            codes = tuple(dict.fromkeys(candidates[k].codes + move.codes + scale))
            if codes:
                order = (len(codes), bool(scale), place, int(k))
                found.append((*order, float(left[k]), codes, (candidates[k], move, evidence)))
    found.sort(key=rank)
    moves2 = moves(g2, shape, kind) if found else []
    for _, _, place, k, left_k, codes, (candidate, move, evidence) in found[:20]:
        _, left2 = fits(moves2[place].gradient, candidates2[k].gradient.reshape(1, -1))
        if left2[0] < FIT:
            causes = {code: evidence_of(candidate, code) for code in candidate.codes}
            causes.update({code: move.evidence for code in move.codes})
            scale = [code for code in codes if code not in causes]
            causes.update({code: evidence for code in scale})
            return Match(list(causes.items()), max(left_k, float(left2[0])))
    return None


def evidence_of(candidate: Candidate, code: str) -> str:
    """What shows one of a candidate's mistakes."""
    words = candidate.evidence
    return words.get(code, "") if isinstance(words, dict) else words


def rank(entry: tuple) -> tuple:
    """Fewest codes first; then without a factor; then in their places before moved; then the candidates' own order."""
    return entry[:4]
