"""Checks of what is built with Tensors: check_function for blocks and whole models, gradcheck as PyTorch has it.

Nothing here imports the engine. A Tensor is what has an array, and whose result knows backward().
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minires.gradcheck.candidates import scale_codes
from minires.gradcheck.check import TOLERANCE
from minires.gradcheck.report import Gradient, Report, finding
from minires.kernels.backend import to_device, to_numpy

#: Tensors with at most this many entries are checked entry by entry, larger ones along this many random directions.
ENTRIES, DIRECTIONS = 64, 6
#: Steps for directional derivatives, until h and h/2 agree: a large one where f is smooth, a small one near kinks.
STEPS = (1e-3, 1e-4, 1e-5, 1e-6)


def check_function(f: Callable, *tensors: Any, seed: int = 0) -> Report:
    """Check the gradients of a function of Tensors: an expression, a block, a whole model.

    Args: f, called as f(*tensors), returning one Tensor; where it is a Module its parameters are checked too. tensors,
    float64; those that require grad are checked: small ones entry by entry, large ones along random directions v,
    <gradient, v> against the numeric derivative of f along v.
    Returns: a Report. Of a composed function only a wrong factor can be named; what else is wrong is "unexplained",
    with its worst entry.
    Errors: TypeError for Tensors that are not float64; ValueError where nothing requires grad.
    """
    named = [(f"x{i}", tensor) for i, tensor in enumerate(tensors)]
    buffers = []
    if hasattr(f, "named_parameters"):
        named += list(f.named_parameters())
        buffers = [(buffer, buffer.array.copy()) for _, buffer in f.named_buffers()]
    checked = [(name, tensor) for name, tensor in named if getattr(tensor, "requires_grad", False)]
    if not checked:
        raise ValueError("check_function: none of the tensors requires grad")
    for name, tensor in named:
        if tensor.array.dtype.kind == "f" and tensor.array.dtype != np.float64:
            raise TypeError(f"check_function: {name} is {tensor.array.dtype}, and needs float64: call .double() on it")
    try:
        # A stream of its own, as in check_kernel: dy must not equal an input that default_rng(seed) drew.
        return check_named(f, tensors, checked, np.random.default_rng(seed).spawn(1)[0])
    finally:
        for buffer, array in buffers:  # batch norm's running statistics moved with every call
            buffer.array[...] = array


def check_named(f: Callable, tensors: tuple, checked: list, rng: np.random.Generator) -> Report:
    """check_function, once its arguments are known to be good."""
    y = f(*tensors)
    if not hasattr(y, "backward"):
        raise TypeError(f"check_function: f must return one Tensor, got {type(y).__name__}")
    u = np.asarray(rng.standard_normal(y.shape)) + 0.0
    for _, tensor in checked:
        tensor.grad = None
    y.backward(type(y)(u, device=y.device))
    grads = [None if tensor.grad is None else to_numpy(tensor.grad.array).copy() for _, tensor in checked]
    for _, tensor in checked:
        tensor.grad = None
    again = f(*tensors)
    if not np.array_equal(to_numpy(again.array), to_numpy(y.array)):
        words = "f gives another result the second time: is there dropout, or another random part? Use eval()"
        return Report([], [finding("forward", "unexplained", words)])
    report = Report()
    for (name, tensor), grad in zip(checked, grads, strict=True):
        entry, factor = check_tensor(f, tensors, tensor, grad, u, "d" + name, rng)
        report.gradients.append(entry)
        if not entry.ok:
            if grad is None or not np.abs(grad).max(initial=0) > 0:
                report.findings.append(finding(entry.name, "zero", "it should not be zero", 0.0))
            elif factor is not None:
                codes, words = scale_codes(factor, {})
                report.findings.extend(finding(entry.name, code, words) for code in codes)
            else:
                report.findings.append(finding(entry.name, "unexplained", f"relative error {entry.error:.1e}"))
    return report


def check_tensor(f, tensors, tensor, grad, u, name: str, rng) -> tuple[Gradient, float | None]:
    """One tensor's gradient: every entry of a small one, some directions of a large one.

    Returns: the worst of them, and the factor by which all of them are off, if it is one.
    """
    size = tensor.array.size
    if grad is None:
        grad = np.zeros(tensor.shape)
    worst = Gradient(name, True, error=0.0)
    scale = 1e-12 + float(np.abs(grad).max(initial=0))
    values = []
    for k in range(size if size <= ENTRIES else DIRECTIONS):
        if size <= ENTRIES:
            v = np.zeros(size)
            v[k] = 1
            index = tuple(int(i) for i in np.unravel_index(k, tensor.shape))
        else:
            v, index = rng.standard_normal(size) / np.sqrt(size), None
        v = v.reshape(tensor.shape)
        yours = float((grad * v).sum())
        low, high = directional(f, tensors, tensor, u, v)
        numeric = min(max(yours, low), high)  # at a kink, whatever lies between the one-sided derivatives
        values.append((yours, numeric))
        error = abs(yours - numeric) / max(scale, abs(numeric))
        if error > (worst.error or 0.0):
            worst = Gradient(name, error <= 10 * TOLERANCE, index, yours, numeric, error)
    a, b = np.array(values).T
    factor = float(a @ b / (b @ b)) if b @ b > 0 else None
    if factor is None or len(values) < 2 or np.abs(a - factor * b).max() > 1e-5 * max(scale, np.abs(a).max()):
        factor = None
    return worst, factor


def directional(f, tensors, tensor, u, v) -> tuple[float, float]:
    """The numeric derivative of sum(u * f) along v, from below and from above; equal where f has no kink there."""
    kept = tensor.array.copy()
    v_there = to_device(v, tensor.device)

    def at(step: float) -> float:
        tensor.array[...] = kept + step * v_there
        try:
            return float((u * to_numpy(f(*tensors).array)).sum())
        finally:
            tensor.array[...] = kept

    h, middle = STEPS[-1], at(0.0)
    left, right = (middle - at(-h)) / h, (at(h) - middle) / h
    if abs(right - left) > 1e-2 * (abs(right) + abs(left)) + 1e-6:  # x lies on a kink, or as good as
        return min(left, right), max(left, right)
    for h in STEPS:
        wide, narrow = (at(h) - at(-h)) / (2 * h), (at(h / 2) - at(-h / 2)) / h
        value = (4 * narrow - wide) / 3
        if abs(narrow - wide) <= 1e-6 * abs(value) + 1e-9:  # no kink between them, or none that matters
            return value, value
    return min(left, right), max(left, right)


def gradcheck(
    func: Callable,
    inputs: Any,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
) -> bool:
    """Every entry of the Jacobian against central differences of step eps, as torch.autograd.gradcheck.

    Args: func, of Tensors, returning a Tensor or a tuple of them; inputs, a Tensor or a tuple, in float64.
    Returns: True where |analytic - numeric| <= atol + rtol |numeric| everywhere; else False, or with raise_exception:
    Errors: RuntimeError that names the output, the input and the entry; ValueError where no input requires grad.
    Source: torch.autograd.gradcheck.
    """
    tensors = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    checked = [(i, t) for i, t in enumerate(tensors) if getattr(t, "requires_grad", False)]
    if not checked:
        raise ValueError("gradcheck: expected at least one input tensor that requires grad")
    count = len(outputs_of(func, tensors))
    for o in range(count):
        for i, tensor in checked:
            analytic = analytic_jacobian(func, tensors, o, tensor)
            numeric = numeric_jacobian(func, tensors, o, tensor, eps)
            wrong = ~(np.abs(analytic - numeric) <= atol + rtol * np.abs(numeric))
            if wrong.any():
                if not raise_exception:
                    return False
                m, k = (int(j) for j in np.argwhere(wrong)[0])
                raise RuntimeError(
                    f"gradcheck: the Jacobian of output {o} by input {i} is wrong in {int(wrong.sum())} of {wrong.size}"
                    f" entries, first d output[{m}] / d input[{k}] (flat): analytic {analytic[m, k]:.6g}, "
                    f"numeric {numeric[m, k]:.6g}"
                )
    return True


def outputs_of(func: Callable, tensors: tuple) -> tuple:
    """func's results as a tuple of Tensors."""
    result = func(*tensors)
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def analytic_jacobian(func: Callable, tensors: tuple, o: int, tensor: Any) -> np.ndarray:
    """One backward for each entry of the output."""
    y = outputs_of(func, tensors)[o]
    rows = np.zeros((y.array.size, tensor.array.size))
    for m in range(y.array.size):
        u = np.zeros(y.array.size)
        u[m] = 1
        tensor.grad = None
        if getattr(y, "requires_grad", False):
            y.backward(type(y)(u.reshape(y.shape), device=y.device), retain_graph=True)
        if tensor.grad is not None:
            rows[m] = to_numpy(tensor.grad.array).ravel()
    tensor.grad = None
    return rows


def numeric_jacobian(func: Callable, tensors: tuple, o: int, tensor: Any, eps: float) -> np.ndarray:
    """Two forwards for each entry of the input."""
    columns = []
    for k in range(tensor.array.size):
        index = np.unravel_index(k, tensor.shape)
        kept = float(tensor.array[index])
        sides = []
        for step in (eps, -eps):
            tensor.array[index] = kept + step
            sides.append(np.array(to_numpy(outputs_of(func, tensors)[o].array), np.float64).ravel())
        tensor.array[index] = kept
        columns.append((sides[0] - sides[1]) / (2 * eps))
    return np.stack(columns, axis=1)
