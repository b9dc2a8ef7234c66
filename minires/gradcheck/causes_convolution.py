"""Wrong gradients of a convolution: the kernel, the stride, the overlap and the padding, each right or wrong.

dx puts w.T dy of every tap (kh, kw) onto a canvas, at (oh SH + kh DH, ow SW + kw DW), and cuts the padding off. Each of
these four steps has its mistakes, and they combine.
"""

from __future__ import annotations

import numpy as np

from minires.gradcheck.candidates import Candidate
from minires.gradcheck.problem import Problem
from minires.kernels.shapes import pair

#: Room around the canvas, so that it can be cut at a wrong place.
MARGIN = 3


def geometry(problem: Problem) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Stride, padding and dilation as pairs."""
    options = problem.options
    stride = options.get("stride", 1)
    if stride is None or ("kernel_size" in options and "stride" not in options):
        stride = options["kernel_size"]
    return (
        pair(stride, "check", "stride", 1),
        pair(options.get("padding", 0), "check", "padding", 0),
        pair(options.get("dilation", 1), "check", "dilation", 1),
    )


def candidates(problem: Problem, which: int, u: np.ndarray) -> list[Candidate]:
    """Wrong dx and dw of a convolution without groups (with groups, only the general causes are tried)."""
    if problem.options.get("groups", 1) != 1 or which > 1:
        return []
    x, w = problem.inputs[:2]
    return input_candidates(problem, x, w, u) if which == 0 else weight_candidates(problem, x, w, u)


def kernels(w: np.ndarray) -> list[tuple[tuple[str, ...], np.ndarray]]:
    """The kernel, and what it is mistaken for, as (O, C, KH, KW)."""
    O, C, KH, KW = w.shape
    found = [((), w), (("kernel-flipped",), w[:, :, ::-1, ::-1])]
    if KH > 1 and KW > 1:
        found += [(("kernel-flipped",), w[:, :, ::-1]), (("kernel-flipped",), w[:, :, :, ::-1])]
    if KH == KW and KH > 1:
        found.append((("kernel-transposed",), w.swapaxes(2, 3)))
        found.append((("kernel-flipped", "kernel-transposed"), w[:, :, ::-1, ::-1].swapaxes(2, 3)))
    found.append((("kernel-transposed",), w.reshape(C, O, KH, KW).transpose(1, 0, 2, 3)))
    if O == C:
        found.append((("kernel-transposed",), w.transpose(1, 0, 2, 3)))
    return found


def input_candidates(problem: Problem, x: np.ndarray, w: np.ndarray, u: np.ndarray) -> list[Candidate]:
    """Every combination of a kernel with a stride, an overlap and a crop."""
    found = []
    for kernel_codes, kernel in kernels(w):
        taps = np.einsum("nohw,ocij->ijnchw", u, kernel)  # (KH, KW, N, C, OH, OW)
        for codes, dx, words in placed(taps, x.shape, *geometry(problem)):
            if kernel_codes + codes:
                found.append(Candidate(kernel_codes + codes, dx, words))
    for taps in misread(np.einsum("nohw,ocij->ijnchw", u, w)):
        _, dx, _ = placed(taps, x.shape, *geometry(problem))[0]
        words = "the columns are reshaped to their windows, and not transposed"
        found.append(Candidate(("reshaped-not-transposed",), dx, words))
    return found


def misread(taps: np.ndarray) -> list[np.ndarray]:
    """The columns in one order of axes, read as if they were in another."""
    KH, KW, N, C, OH, OW = taps.shape
    channels_first = taps.transpose(3, 0, 1, 2, 4, 5)  # (C, KH, KW, N, OH, OW)
    samples_first = taps.transpose(2, 4, 5, 3, 0, 1)  # (N, OH, OW, C, KH, KW), the textbook's
    return [
        channels_first.reshape(N, OH, OW, C, KH, KW).transpose(4, 5, 0, 3, 1, 2),
        samples_first.reshape(C, KH, KW, N, OH, OW).transpose(1, 2, 3, 0, 4, 5),
        samples_first.reshape(N, C, KH, KW, OH, OW).transpose(2, 3, 0, 1, 4, 5),
        channels_first.reshape(N, C, KH, KW, OH, OW).transpose(2, 3, 0, 1, 4, 5),
    ]


def placed(
    taps: np.ndarray,
    x_shape: tuple,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    one_receiver: bool = False,
) -> list[tuple[tuple[str, ...], np.ndarray, str]]:
    """The contributions of all taps put together to dx, rightly first and then in every wrong way.

    Args: taps (KH, KW, N, C, OH, OW), what tap (kh, kw) of output (oh, ow) hands to its pixel; one_receiver, whether of
    each window only one pixel gets anything, and only that one is written.
    """
    found = []
    for stride_codes, steps in ((), stride), (("stride-ignored",), (1, 1)), (("stride-ignored",), taps.shape[:2]):
        if stride_codes and steps == stride:
            continue
        last_wins = ("windows", "receivers") if one_receiver else ("taps", "windows", "columns", "rows")
        for overlap_codes, rule in [((), "add"), *[(("col2im-overlap",), rule) for rule in last_wins]]:
            canvas = canvas_of(taps, x_shape, steps, padding, dilation, rule)
            for crop_codes, (dh, dw) in crops(padding):
                top, left = MARGIN + padding[0] + dh, MARGIN + padding[1] + dw
                dx = canvas[:, :, top : top + x_shape[2], left : left + x_shape[3]]
                words = f"yours is cut {dh:+d} rows and {dw:+d} columns from the right place" if crop_codes else ""
                if dx.shape == x_shape:
                    found.append((stride_codes + overlap_codes + crop_codes, dx, words))
    return found


def crops(padding: tuple[int, int]) -> list[tuple[tuple[str, ...], tuple[int, int]]]:
    """Where the padding is cut off: at the right place, one beside it, or as if there were none."""
    PH, PW = padding
    wrong = [(-PH, -PW), (PH, PW), (1, 1), (-1, -1), (1, 0), (0, 1), (-1, 0), (0, -1), (PW - PH, PH - PW)]
    wrong += [(-PH, 0), (0, -PW)]
    kept = dict.fromkeys(move for move in wrong if move != (0, 0) and max(map(abs, move)) < MARGIN)
    return [((), (0, 0))] + [(("crop-off-by-one",), move) for move in kept]


def canvas_of(
    taps: np.ndarray,
    x_shape: tuple,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    rule: str,
) -> np.ndarray:
    """The padded dx with a margin. rule: "add" up, or let the last "taps" or the last of the "windows" win.

    With "columns" or "rows" the taps of each kernel row are put together first, then the kernel rows: in one of these
    two steps the last wins, and the other adds up.
    """
    KH, KW, N, C, OH, OW = taps.shape
    (SH, SW), (PH, PW), (DH, DW) = stride, padding, dilation
    rows = max(x_shape[2] + 2 * PH, (OH - 1) * SH + KH * DH) + 2 * MARGIN
    columns = max(x_shape[3] + 2 * PW, (OW - 1) * SW + KW * DW) + 2 * MARGIN
    canvas = np.zeros((N, C, rows, columns))
    if rule in ("columns", "rows"):
        for kh in range(KH):
            layer = np.zeros((N, C, OH, columns))
            for kw in range(KW):
                w = MARGIN + kw * DW
                part = layer[:, :, :, w : w + (OW - 1) * SW + 1 : SW]
                part[...] = taps[kh, kw] + (0 if rule == "columns" else part)
            h = MARGIN + kh * DH
            part = canvas[:, :, h : h + (OH - 1) * SH + 1 : SH]
            part[...] = layer + (0 if rule == "rows" else part)
        return canvas
    order = [(kh, kw) for kh in range(KH) for kw in range(KW)]
    if rule in ("windows", "receivers"):  # going over the outputs in order, a pixel is written last by its smallest tap
        order.reverse()
    for kh, kw in order:
        h, w = MARGIN + kh * DH, MARGIN + kw * DW
        part = canvas[:, :, h : h + (OH - 1) * SH + 1 : SH, w : w + (OW - 1) * SW + 1 : SW]
        if rule == "add":
            part += taps[kh, kw]
        elif rule == "receivers":  # only the pixel that a window chose is written
            part[...] = np.where(taps[kh, kw] != 0, taps[kh, kw], part)
        else:
            part[...] = taps[kh, kw]
    return canvas


def weight_candidates(problem: Problem, x: np.ndarray, w: np.ndarray, u: np.ndarray) -> list[Candidate]:
    """dw from windows of x that are taken with a wrong stride, or at a wrong place."""
    O, C, KH, KW = w.shape
    stride, (PH, PW), (DH, DW) = geometry(problem)
    OH, OW = u.shape[2:]
    found = []
    room = MARGIN + max(PH, PW)
    behind = room + max(KH * (DH + OH), KW * (DW + OW))
    padded = np.pad(x, ((0, 0), (0, 0), (room, behind), (room, behind)))
    for stride_codes, (SH, SW) in ((), stride), (("stride-ignored",), (1, 1)), (("stride-ignored",), (KH, KW)):
        if stride_codes and (SH, SW) == stride:
            continue
        for crop_codes, (dh, dw) in crops((PH, PW)):
            if not stride_codes + crop_codes:
                continue
            grad = np.empty(w.shape)
            for kh in range(KH):
                for kw in range(KW):
                    h, v = room - PH + dh + kh * DH, room - PW + dw + kw * DW
                    window = padded[:, :, h : h + (OH - 1) * SH + 1 : SH, v : v + (OW - 1) * SW + 1 : SW]
                    grad[:, :, kh, kw] = np.einsum("nohw,nchw->oc", u, window)
            words = f"the windows of x are taken {dh:+d} rows and {dw:+d} columns from theirs" if crop_codes else ""
            found.append(Candidate(stride_codes + crop_codes, grad, words))
    return found
