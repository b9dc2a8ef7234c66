"""What the kernels refuse, and in which words: one call a kernel, by name, for a reader to step over.

Each raises ValueError or TypeError (IndexError for an axis) and names the argument, what was expected and what came.
Sizes of images and windows are checked where they are computed, in ``shapes.py``.
"""

from __future__ import annotations

from minires.kernels.backend import Array, array_module, values_are_at_hand
from minires.kernels.shapes import FLOATS, check_axis, check_fits

# ---- the layers of a network ----------------------------------------------------------------------------------------


def check_linear(x: Array, w: Array, b: Array | None) -> None:
    """Refuse x, w and b that do not fit each other, or an empty w."""
    if w.ndim != 2 or x.ndim < 1 or x.shape[-1] != w.shape[1]:
        raise ValueError(f"linear: x (..., in) and w (out, in) must share in, got x {x.shape} and w {w.shape}")
    if w.size == 0:
        raise ValueError(f"linear: w is empty, shape {w.shape} (out, in)")
    if b is not None and b.shape != (w.shape[0],):
        raise ValueError(f"linear: b must have shape ({w.shape[0]},), got {b.shape}")
    if w.dtype != x.dtype or (b is not None and b.dtype != x.dtype):
        came = f"x {x.dtype}, w {w.dtype}" + ("" if b is None else f", b {b.dtype}")
        raise TypeError(f"linear: x, w and b must have one dtype, got {came}")


def check_matmul(a: Array, b: Array) -> None:
    """Refuse a scalar, and operands whose inner sizes differ."""
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(f"matmul: both operands need at least one axis, got {a.shape} and {b.shape}; multiply with *")
    inner = b.shape[0] if b.ndim == 1 else b.shape[-2]
    if a.shape[-1] != inner:
        raise ValueError(f"matmul: the last axis of {a.shape} and the last but one of {b.shape} differ")


def check_residual_add(x: Array, branch: Array) -> None:
    """Refuse a shortcut that would have to be broadcast or converted."""
    if x.shape != branch.shape:
        raise ValueError(
            f"residual_add: the shortcut has shape {x.shape} and the branch {branch.shape}: "
            "where they differ, the shortcut needs option A, B or C"
        )
    if x.dtype != branch.dtype:
        raise TypeError(f"residual_add: x and branch must have one dtype, got {x.dtype} and {branch.dtype}")


def check_shortcut_a(in_channels: int, out_channels: int) -> None:
    """Refuse a shortcut that would have to drop channels."""
    if out_channels < in_channels:
        raise ValueError(
            f"shortcut_a: out_channels must be at least the {in_channels} channels of x, got {out_channels}"
        )


# ---- the loss -------------------------------------------------------------------------------------------------------


def check_softmax(x: Array, axis: int, operation: str) -> None:
    """Refuse an axis that x lacks, or one without entries."""
    if x.shape[check_axis(axis, x.ndim, operation)] == 0:
        raise ValueError(f"{operation}: x is empty along axis {axis}, shape {x.shape}")


def check_cross_entropy(
    logits: Array, labels: Array, label_smoothing: float, ignore_index: int, reduction: str
) -> None:
    """Refuse logits (N, C) and labels (N,) that do not belong together, and options that are none.

    On a GPU, where looking at a label would mean waiting, their values are not looked at.
    """
    if logits.ndim != 2 or logits.dtype not in FLOATS:
        raise ValueError(f"cross_entropy: logits must be float32 or float64 (N, C), got {logits.dtype} {logits.shape}")
    N, C = logits.shape
    if labels.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: labels must be integers (class numbers), got {labels.dtype}")
    if labels.shape != (N,):
        raise ValueError(f"cross_entropy: labels must have shape ({N},), one a row of logits, got {labels.shape}")
    if N == 0 or C == 0:
        raise ValueError(f"cross_entropy: the batch is empty, logits have shape {logits.shape}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing must lie between 0 and 1, got {label_smoothing}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'cross_entropy: reduction must be "mean", "sum" or "none", got {reduction!r}')
    if not values_are_at_hand(array_module(labels)):
        return
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= C))
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"cross_entropy: labels must lie between 0 and {C - 1} (or be ignore_index={ignore_index}), "
            f"got {int(labels[row])} in row {row}"
        )


# ---- element by element, and along axes -----------------------------------------------------------------------------


def check_clip(x: Array, low: float | None, high: float | None) -> None:
    """Refuse bounds that are both None, and one that x's integer dtype does not have."""
    if low is None and high is None:
        raise ValueError("clip: expected a lower bound, an upper bound or both, got neither")
    for bound in (low, high):
        if bound is not None:
            check_fits(bound, x.dtype, "clip")


def check_floating(x: Array, operation: str) -> None:
    """Refuse integers and booleans."""
    if x.dtype.kind != "f":
        raise TypeError(f"{operation}: x must be floating point, got {x.dtype}: convert it with .to(minires.float32)")


def check_not_empty(shape: tuple[int, ...], kept: tuple[int, ...], operation: str) -> None:
    """Refuse a reduction over no values, which has no extreme; kept has 1 on the axes that are reduced."""
    for axis in range(len(shape)):
        if shape[axis] == 0 and kept[axis] == 1:
            raise ValueError(f"{operation}: nothing to look at along axis {axis}, the shape is {shape}")


# ---- joining and padding --------------------------------------------------------------------------------------------


def check_concatenate(arrays: tuple[Array, ...], axis: int) -> None:
    """Refuse no arrays at all, and arrays that differ along another axis than this one."""
    if not arrays:
        raise ValueError("concatenate: expected at least one tensor, got none")
    array_module(arrays[0])  # refuses what is no array
    for array in arrays:
        if array.ndim == 0 or array.ndim != arrays[0].ndim or not -array.ndim <= axis < array.ndim:
            raise ValueError(f"concatenate: cannot join {arrays[0].shape} and {array.shape} along axis {axis}")
        alike = list(arrays[0].shape)
        alike[axis] = array.shape[axis]
        if array.shape != tuple(alike):
            raise ValueError(f"concatenate: cannot join {arrays[0].shape} and {array.shape} along axis {axis}")


def check_stack(arrays: tuple[Array, ...], axis: int) -> None:
    """Refuse no arrays at all, arrays of several shapes, and an axis that the result lacks."""
    if not arrays:
        raise ValueError("stack: expected at least one tensor, got none")
    array_module(arrays[0])  # refuses what is no array
    for array in arrays:
        if array.shape != arrays[0].shape:
            raise ValueError(f"stack: expected tensors of one shape, got {arrays[0].shape} and {array.shape}")
    check_axis(axis, arrays[0].ndim + 1, "stack")


def check_pad(x: Array, widths: tuple[tuple[int, int], ...], value: float) -> None:
    """Refuse a pair of widths too few, a value that x's dtype does not have, and a negative width."""
    if len(widths) != x.ndim:
        raise ValueError(f"pad: expected one pair an axis of {x.shape}, got {widths}")
    check_fits(value, x.dtype, "pad")
    for before, after in widths:
        if before < 0 or after < 0:
            raise ValueError(f"pad: widths must not be negative, got {widths}; slice instead")
