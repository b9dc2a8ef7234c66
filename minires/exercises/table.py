"""The exercises, as one table: which shipped functions a student writes, and what they are tried on.

A course brings its own in a Python file with a list called EXERCISES.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from minires import kernels
from minires.engine.convert import lookup
from minires.exercises import trials
from minires.exercises.basic_block import basic_block_backward
from minires.exercises.mutants import accepts
from minires.exercises.training import sgd_step
from minires.exercises.trials import Trial


class Exercise(NamedTuple):
    """One exercise. The functions are the solution: their source, without its steps, is what the student starts from.

    Args: trials, what the functions are tried on, each a Trial: the gradient of the first one of each kernel is
        checked numerically and diagnosed; None for the exercise whose answer is itself a check.
    """

    name: str
    title: str
    functions: tuple[Callable, ...]
    trials: Callable[[], list[Trial]] | None
    hints: tuple[str, str, str]


#: The stages of a check, in order, behind the reading of the file.
KERNEL_STAGES = ["forward", "intermediates", "gradient", "invariants", "training"]
MUTANT_STAGES = ["right kernels", "mutants"]


def stage_names(exercise: Exercise) -> list[str]:
    """The stages of an exercise, in order; the first one reads the file."""
    return ["file", *(MUTANT_STAGES if exercise.trials is None else KERNEL_STAGES)]


EXERCISES: dict[str, Exercise] = {}


def add(*fields: Any) -> None:
    """Put an exercise into the table."""
    exercise = Exercise(*fields)
    EXERCISES[exercise.name] = exercise


def find(name: str, course: dict[str, Exercise]) -> Exercise:
    """An exercise by name, of the table or of a course's own.

    Errors: ValueError for an unknown name, with the nearest one.
    """
    return lookup({**EXERCISES, **course}, name, "exercise")


def load_course(file: str) -> dict[str, Exercise]:
    """The exercises of a course's file, by name; none where no file is named.

    Errors: FileNotFoundError where there is no such file; ValueError where it has no list of exercises.
    """
    if not file:
        return {}
    path = Path(file).resolve()
    if not path.is_file():
        raise FileNotFoundError(2, "there is no such file", file)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # inspect finds the solution's source by way of its module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{file}: {type(error).__name__}: {error}") from None
    found = getattr(module, "EXERCISES", None)
    if not isinstance(found, list) or not all(isinstance(one, Exercise) for one in found):
        raise ValueError(f"{file}: expected a list called EXERCISES, of minires.exercises.table.Exercise")
    for one in found:
        if not isinstance(one.hints, (tuple, list)) or len(one.hints) != 3:
            raise ValueError(f"{file}: {one.name}: expected three hints, in a tuple")
    return {one.name: one for one in found}


add(
    "add_broadcast",
    "the addition, with broadcasting and its gradient",
    (kernels.unbroadcast, kernels.add_forward, kernels.add_backward),
    trials.add_broadcast,
    (
        "Write down a (3, 1) plus a (1, 4) by hand. How often does each entry of the first appear in the result?",
        "An entry that was used several times gets the sum of all the gradients of those uses.",
        "Sum over two kinds of axes: those that the smaller array lacked in front, and those where it had size 1. "
        "Keep the axes while summing, and give the result the array's shape at the end.",
    ),
)
add(
    "relu",
    "ReLU, forward and backward",
    (kernels.relu_forward, kernels.relu_backward),
    trials.relu,
    (
        "Draw max(x, 0), and the slope left and right of 0.",
        "The gradient passes where x was positive, and is stopped elsewhere: a mask of zeros and ones, times dy.",
        "The cache holds y, and y is positive exactly where x is. At 0 itself the gradient is 0.",
    ),
)
add(
    "linear",
    "the linear layer, forward and backward",
    (kernels.linear_forward, kernels.linear_backward),
    trials.linear,
    (
        "Write the shapes of y, x and w under each other: there is hardly more than one product that fits.",
        "dx must have the shape of x: which product of dy (.., out) and w (out, in) has it? Ask the same for dw.",
        "dw and db are sums over the whole batch, and x may have several leading axes: make one axis of these first.",
    ),
)
add(
    "softmax_cross_entropy",
    "softmax and cross entropy, with label smoothing and labels to ignore",
    (kernels.log_softmax_forward, kernels.cross_entropy_forward, kernels.cross_entropy_backward),
    trials.softmax_cross_entropy,
    (
        "Begin with one row of logits and one label: -log of the label's probability.",
        "log(softmax(x)) is x minus the logarithm of a sum. Take the largest logit away first: e^1000 overflows.",
        "The gradient of one row is the softmax minus the target distribution (one at the label, or smoothed), times "
        "that row's share of the result; the share is 0 for a label to ignore.",
    ),
)
add(
    "im2col",
    "im2col, and its transpose col2im",
    (kernels.im2col, kernels.col2im),
    trials.im2col,
    (
        "Draw a 4x4 image and a 3x3 kernel, and write the four windows as the four rows of a matrix.",
        "Row kh of window oh lies on the pixel row oh SH + kh DH: a table h of shape (OH, KH) picks all rows at once, "
        "x_padded[:, :, h], and a table w the columns of these.",
        "col2im undoes the two picks, the columns first, then the rows: a strided slice to add to for each kw, then "
        "for each kh. Where windows overlap, a pixel has several copies, and all count.",
    ),
)
add(
    "conv2d_forward",
    "the convolution as one matrix product",
    (kernels.conv2d_forward,),
    trials.conv2d,
    (
        "With every window as a row of a matrix, what must the kernel be so that one product gives all sums?",
        "im2col gives (N*OH*OW, C*KH*KW). The weights (O, C, KH, KW) become a matrix whose rows are in the order of "
        "those columns. Think of G = 1 first: groups only put an axis G in front, which @ takes along.",
        "The product has one row for each (n, oh, ow) and one column for each o: bring G and O/G together, reshape to "
        "(N, OH, OW, O), and then put the axes in order.",
    ),
)
add(
    "conv2d_backward",
    "the convolution's gradients",
    (kernels.conv2d_backward,),
    trials.conv2d,
    (
        "The forward is y = cols @ w.T + b and some reordering. Undo the reordering first: dy as a matrix (.., O), "
        "with an axis G in front as cols has it.",
        "dw and dcols are the gradients of a matrix product: each is a product of dy with the other factor.",
        "im2col made copies of pixels; the way back from dcols to dx is the sum over these copies, which col2im takes.",
    ),
)
add(
    "max_pool",
    "max pooling, forward and backward",
    (kernels.max_pool2d_forward, kernels.max_pool2d_backward),
    trials.max_pool,
    (
        "Forward: walk over the windows (oh, ow). `window` gives the rows and the columns of one that lie inside the "
        "image, so padding never wins: take their maximum for all images and channels at once.",
        "Backward: the same walk. dy of a window goes to one pixel, the one that was the maximum, and to no other.",
        "argmax over the pixels of a window, laid out in a row, takes the first where values tie; // and % by the "
        "window's width give its row and column. A pixel that wins in several windows adds up.",
    ),
)
add(
    "global_avg_pool",
    "global average pooling, forward and backward",
    (kernels.global_avg_pool_forward, kernels.global_avg_pool_backward),
    trials.global_avg_pool,
    (
        "One number a feature map: over which axes is the mean taken, and which stay?",
        "How much does the mean of H W pixels move when one of them moves by 1?",
        "Every pixel of a map gets the same gradient: dy of that map divided by H W, in all H W places.",
    ),
)
add(
    "batch_norm_forward",
    "batch norm in training: the forward",
    (kernels.batch_norm_forward,),
    trials.batch_norm,
    (
        "One mean and one variance a channel: over which axes of (N, C, H, W) are they taken?",
        "Over the images and all their pixels; keepdims=True leaves (1, C, 1, 1), which fits x. The variance is the "
        "mean of the squares of x - mean.",
        "x_hat = (x - mean) / sqrt(var + eps), with eps inside the root; then gamma and beta of each channel.",
    ),
)
add(
    "batch_norm_backward",
    "batch norm in training: the gradients",
    (kernels.batch_norm_backward,),
    trials.batch_norm,
    (
        "x reaches y along three ways: directly, through the mean, and through the variance. Each gives a term of dx.",
        "Read the forward from its last line to its first: each line hands a gradient to each name on its right. What "
        "is one number a channel gets a sum over the channel; what is used twice gets two terms.",
        "x_hat = centred inv_std: dx_hat inv_std goes to centred, the sum of dx_hat centred to inv_std, from there to "
        "var, and from var to centred again. At last the mean: minus the sum of dcentred, of which each x has 1 / M.",
    ),
)
add(
    "batch_norm_inference",
    "batch norm in evaluation, forward and backward",
    (kernels.batch_norm_inference_forward, kernels.batch_norm_inference_backward),
    trials.batch_norm_inference,
    (
        "The statistics are given and constant: each channel is multiplied by one number and shifted by another.",
        "So dx is dy times that same number: no other pixel takes part.",
        "gamma and beta learn as in training: dgamma is the sum of dy x_hat, dbeta the sum of dy, a channel each.",
    ),
)
add(
    "residual_add",
    "the residual addition, and the shortcut with option A",
    (
        kernels.residual_add_forward,
        kernels.residual_add_backward,
        kernels.shortcut_a_forward,
        kernels.shortcut_a_backward,
    ),
    trials.residual_add,
    (
        "y = F(x) + x. How much does y move when x moves by 1? When F(x) does?",
        "Option A keeps every stride-th pixel and surrounds the channels with channels of zeros.",
        "Backward is the same walk the other way: the pixels that were kept get their dy, all others get 0.",
    ),
)
add(
    "basic_block_backward",
    "a whole residual block backwards, by hand",
    (basic_block_backward,),
    trials.basic_block,
    (
        "Read basic_block_forward from its last line to its first: each line has one backward, with one cache.",
        "Behind the addition there are two ways back: down the branch and along the shortcut. Both begin with all of "
        "the gradient that came through the last ReLU.",
        "x was used twice, by conv1 and by the shortcut: dx is the sum of what comes back from both.",
    ),
)
add(
    "sgd",
    "SGD with momentum, weight decay and Nesterov's variant",
    (sgd_step,),
    trials.sgd,
    (
        "Three quantities: the gradient g with the weight decay in it, the velocity v, and the weights p.",
        "The velocity is momentum times its old value plus g; the weights move by -lr times the velocity.",
        "Nesterov moves by -lr (g + momentum v) with the new v. Make new arrays: p and v are not to be written to.",
    ),
)
add(
    "kill_the_mutants",
    "a gradient check that rejects eight broken kernels and no right one",
    (accepts,),
    None,
    (
        "Run your check on each Candidate of minires.exercises.mutants.candidates() and read the fault of a survivor.",
        "Compare every entry of every gradient with a central difference: not one entry, not a norm, not a sum.",
        "The upstream gradient decides what a check can see: with ones, batch norm and softmax are constants. Draw it "
        "at random, and leave a tolerance of about 1e-6.",
    ),
)
