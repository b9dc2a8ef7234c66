"""What is known when a gradient turns out wrong: what every kind of cause is worked out from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minires.gradcheck.numeric import Jacobian


class Problem(NamedTuple):
    """One kernel on one set of inputs."""

    kind: str | None
    inputs: list[np.ndarray]
    options: dict[str, Any]
    names: tuple[str, ...]  # of the inputs
    y: np.ndarray
    jacobian: Callable[[int], Jacobian]  # of the input at this place


def sizes_of(problem: Problem) -> dict[str, set[float]]:
    """The sizes that a wrong constant factor may be named after, by code."""
    x = problem.inputs[0]
    sizes: dict[str, set[float]] = {}
    if x.ndim >= 1:
        sizes["scale-by-N"] = {float(x.shape[0])}
    if x.ndim == 4:
        N, C, H, W = x.shape
        pixels = {float(H * W)}
        channels = {float(C)}
        if problem.y.ndim == 4:
            pixels.add(float(problem.y.shape[2] * problem.y.shape[3]))
            channels.add(float(problem.y.shape[1]))
        sizes["scale-by-HW"] = pixels
        sizes["scale-by-NHW"] = {N * p for p in pixels}
        sizes["scale-by-C"] = channels
    elif x.ndim >= 2:
        sizes["scale-by-C"] = {float(x.shape[-1])}
        if problem.y.ndim >= 1:
            sizes["scale-by-C"].add(float(problem.y.shape[-1]))
        if problem.kind is None:
            sizes["scale-by-C"].discard(float(x.shape[0]))
    return {code: {v for v in values if v > 1} for code, values in sizes.items()}
