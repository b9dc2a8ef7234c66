"""Three hints for each diagnosed cause, from a question to nearly the answer; and which of them comes next.

What the last check found is kept in a small file beside the student's, so that ``minires exercise hint`` knows what to
hint at.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minires.exercises.process import Result
from minires.exercises.table import Exercise

Hints = tuple[str, str, str]

FACTOR = "Your gradient has the right pattern, and one constant factor is wrong."

HINTS: dict[str, Hints] = {
    # ---- the upstream gradient
    "upstream-ignored": (
        "What does backward receive, and where does your code use it?",
        "The chain rule is a product: the slope of this operation times what came from above.",
        "Multiply the slope by dy, entry by entry or as a matrix product, before anything is summed.",
    ),
    "not-linear": (
        "If dy were three times as large, how much larger would your gradient be?",
        "A backward is linear in dy: dy enters each term once, never squared, never compared, never divided by.",
        "Look for dy inside a comparison, an absolute value or a power: masks and statistics come from the cache.",
    ),
    # ---- a constant factor
    "sign": (
        FACTOR,
        "The factor is -1: which way does the output move when the input grows a little?",
        "Look for a minus sign that is missing or too many, or for a difference taken the wrong way round.",
    ),
    "factor-2": (
        FACTOR,
        "The factor is 2, or one half: where does a square come in, or a pair?",
        "The slope of x^2 is 2x. And a term that is added twice counts twice.",
    ),
    "scale-by-N": (
        FACTOR,
        "The factor is the batch size N. Is the result a mean over the samples, or a sum?",
        "Of a mean each sample's gradient is divided by N, of a sum it is not, and a parameter's gradient is a sum.",
    ),
    "scale-by-HW": (
        FACTOR,
        "The factor is H W, the pixels of a map. Does every pixel take part in a mean?",
        "An average over a map hands each pixel dy / (H W); a sum over a map hands each all of dy.",
    ),
    "scale-by-NHW": (
        FACTOR,
        "The factor is N H W, the values of a channel. Did you take a mean where a sum is meant, or the other way?",
        "A parameter of a channel gets the sum over its N H W values. The statistics inside dx are means over them.",
    ),
    "scale-by-C": (
        FACTOR,
        "The factor is C, the number of channels or classes. Are they counted where samples should be?",
        "A mean over all entries of (N, C) divides by N C; a mean over the samples divides by N alone.",
    ),
    "scale-other": (
        FACTOR,
        "The report names the factor: which size, or product of sizes, or constant of yours is it?",
        "Write the formula beside your code and compare them constant by constant.",
    ),
    "zero": (
        "Nothing comes out of this gradient. Is it ever written to?",
        "Look for a product with 0, an integer division, a mask that is nowhere true, an array that stays zeros.",
        "Follow dy line by line and print its largest entry: the line behind which it is 0 is the one.",
    ),
    # ---- the right numbers in the wrong places
    "transposed": (
        "The numbers are right, and two axes have changed places.",
        "Write down the shape after each line, by its letters, and compare it with the docstring.",
        "Of a matrix product y = x w.T: dw = dy.T x has the shape of w, and x.T dy is its transpose.",
    ),
    "reshaped-not-transposed": (
        "The shape is right, and the numbers stand in other places.",
        "A reshape keeps the order in memory; it never exchanges two axes.",
        "Exchange the axes with transpose first, so that the axes to be merged stand beside each other; then reshape.",
    ),
    "flipped": (
        "The numbers are right, in reverse order along an axis.",
        "Look for a slice with a step of -1, or an index that counts down.",
        "A convolution here is a correlation: going forward nothing is flipped, and dw is not flipped either.",
    ),
    "shifted": (
        "The numbers are right, and stand one or more places aside.",
        "Look at the offsets: padding, where a slice begins, where a window begins.",
        "Output oh meets the input rows oh SH + kh DH - PH: check that formula for oh = 0 and kh = 0 by hand.",
    ),
    # ---- a reduction
    "missing-sum": (
        "The gradient has the wrong shape, or lacks contributions: how often was this input used?",
        "What was used several times, for each sample, pixel or copy, gets the sum of all those gradients.",
        "Sum dy over every axis that the input lacks, or has with size 1: of a bias batch, height and width.",
    ),
    "last-sample-only": (
        "Only one sample of the batch seems to count.",
        "Look for = in a loop over the batch where += is meant, or for an index where a sum is meant.",
        "Begin with zeros and add each sample's contribution.",
    ),
    "first-pixel-only": (
        "Only one pixel of each map seems to count.",
        "Look for an index such as [0, 0] on height and width where a sum is meant.",
        "Sum over both height and width: axes 2 and 3 of (N, C, H, W).",
    ),
    "wrong-shape": (
        "Compare the shape of what you return with the docstring's.",
        "A gradient has exactly the shape of its array, whatever was broadcast on the way.",
        "Write the shape behind each line as a comment, as the kernels do: the first surprising one is the place.",
    ),
    # ---- convolution
    "col2im-overlap": (
        "Where windows overlap, a pixel lies in several of them. What does it get?",
        "im2col copies the pixel several times, so the gradients of all copies count.",
        "Add (+=) for every kw, and then for every kh: = keeps only the last copy.",
    ),
    "crop-off-by-one": (
        "The padding has to go again at the end. Where does the image lie in the padded one?",
        "It begins PH rows and PW columns inside, and is H and W large.",
        "Rows PH to PH + H, columns PW to PW + W: check both ends, and that H and W are the input's.",
    ),
    "kernel-flipped": (
        "Is this a convolution as in signal processing, or a correlation?",
        "Networks use the correlation: w[kh, kw] meets the pixel kh down and kw to the right of the window's corner.",
        "Nothing is flipped in the forward. The flip appears only in dx, when it is written as a convolution of dy.",
    ),
    "kernel-transposed": (
        "The kernel's rows and columns have changed places.",
        "Which of kh and kw goes with the height? Test your code on a kernel of 3x2.",
        "The order is (O, C, KH, KW) everywhere: in the loops, in the reshape of w and in the columns of cols.",
    ),
    "stride-ignored": (
        "What does the stride change in your code?",
        "Output oh looks at the input from row oh SH on: the stride multiplies the output's index.",
        "So h in im2col is SH times the numbers of the windows plus DH times those of the kernel's rows, and w alike.",
    ),
    # ---- batch norm
    "bn-stats-constant": (
        "Does the mean of the batch change when one x changes? Does its variance?",
        "x reaches y along three ways: directly, through the mean and through the variance. Yours has the first only.",
        "mean and var are computed from x: what comes back to var goes on to centred, what comes back to mean to x.",
    ),
    "bn-mean-constant": (
        "One of the three ways from x to y is missing in your dx.",
        "The missing one is that through the mean: every x of the channel moves it.",
        "centred = x - mean hands minus the sum of dcentred to the mean, and of that each x of the channel has 1 / M.",
    ),
    "bn-var-constant": (
        "One of the three ways from x to y is missing in your dx.",
        "The missing one is that through the variance: an x far from the mean stretches it most.",
        "var is the mean of centred^2: of dvar each centred gets 2 centred / M, beside what it gets directly.",
    ),
    "bn-bessel": (
        "By how much is the variance divided: by M, or by M - 1?",
        "The batch is normalised by the biased variance; only the running statistics take the unbiased one.",
        "Divide by M = N H W everywhere in y and in dx.",
    ),
    "bn-sum-for-mean": (
        "One term of dx is far too large.",
        "The mean and the variance are means over M values: one x has a share of 1 / M in them.",
        "What comes back through the mean, or through the variance, is divided by M before it enters dx.",
    ),
    "bn-var-sign": (
        "One term of dx has the wrong sign.",
        "It is the term through the variance. Does a larger variance make y larger or smaller?",
        "The slope of (var + eps)^(-1/2) is -1/2 inv_std^3, and that of x - mean in the mean is -1: two minus signs.",
    ),
    "bn-running-stats": (
        "Which mean and variance does training use?",
        "In training the batch's own statistics normalise it, whatever was stored before.",
        "Take the mean and variance of this x in this call. Stored ones belong to the evaluation.",
    ),
    "bn-batch-axis-only": (
        "Over which axes of (N, C, H, W) is a channel's mean taken?",
        "A channel has one mean for all its images and all its pixels.",
        "Take means over N, H and W together (axes 0, 2 and 3), never over N alone.",
    ),
    "bn-missing-gamma": (
        "One factor of dx is missing, and it differs from channel to channel.",
        "y = gamma x_hat + beta: what reaches x_hat of dy?",
        "dx_hat is dy times gamma, each channel by its own, and everything behind it starts from dx_hat.",
    ),
    "bn-missing-inv-std": (
        "One factor of dx is missing, and it differs from channel to channel.",
        "x_hat = (x - mean) inv_std: what is its slope in x?",
        "What reaches centred directly is dx_hat times inv_std, each channel by its own.",
    ),
    "bn-inv-std-squared": (
        "One factor of dx comes once too often.",
        "Count inv_std on each way from x_hat to x: once directly, and three times through the variance.",
        "x_hat has inv_std in it already, centred has not: dinv_std is made with centred.",
    ),
    "bn-centred-for-xhat": (
        "x - mean and x_hat differ by the factor inv_std: one of them stands where the other is meant.",
        "dgamma has x_hat in it. dinv_std and the slope of the variance have centred, and dvar has inv_std^3.",
        "Put together, the term through the variance is x_hat times the mean of dx_hat x_hat, times inv_std.",
    ),
    "bn-dgamma-uses-x": (
        "By which array is gamma multiplied in the forward?",
        "y = gamma x_hat + beta: the slope of y in gamma is x_hat, the normalised input.",
        "dgamma is the sum of dy times x_hat over the channel; x itself does not appear.",
    ),
    "bn-dgamma-uses-y": (
        "By which array is gamma multiplied in the forward?",
        "y has gamma and beta in it already; the slope of y in gamma is what stood there before them.",
        "dgamma is the sum of dy times x_hat over the channel.",
    ),
    "bn-dgamma-dbeta-swapped": (
        "Both numbers are right. In which order does the docstring want them?",
        "backward returns its gradients in the order of the forward's arguments.",
        "dx, then dgamma (with x_hat in it), then dbeta (the plain sum).",
    ),
    # ---- ReLU
    "relu-mask-from-upstream": (
        "Whose sign decides whether a ReLU lets the gradient pass?",
        "It is decided in the forward: where x was positive. The sign of dy means nothing.",
        "Make the mask from what the cache holds.",
    ),
    "relu-mask-inverted": (
        "Where is the slope of max(x, 0) one, and where is it zero?",
        "Your gradient passes exactly where it should stop.",
        "Turn the comparison round: let pass where the output is above 0.",
    ),
    "relu-no-mask": (
        "What happened to the negative values in the forward?",
        "Where the output is stuck at 0 a small change of x does nothing, so no gradient comes back.",
        "Multiply dy by a mask that is one where the output is above 0, and zero elsewhere.",
    ),
    "relu-times-x": (
        "What is the slope of max(x, 0) at x = 5?",
        "It is one, not five: the mask consists of zeros and ones.",
        "Multiply dy by a comparison, not by the output itself.",
    ),
    "relu-threshold": (
        "At which value of x does your ReLU begin to let the gradient pass?",
        "The kink of max(x, 0) is at 0, and at 0 itself the gradient is 0.",
        "Compare with 0 itself, and strictly: greater, not greater or equal.",
    ),
    # ---- max pooling
    "pool-ties": (
        "What if the largest value stands twice in a window?",
        "The gradient of a window goes to one pixel only: the first in row-major order.",
        "argmax takes the first of equals; a comparison with the maximum finds all of them.",
    ),
    "pool-argmin": (
        "Which pixel of the window decided the output?",
        "Your gradient goes to the smallest.",
        "Look for a comparison or an argmin that is the wrong way round.",
    ),
    "pool-average": (
        "How many pixels of a window move the output of max pooling?",
        "Your gradient is shared out as an average pool would.",
        "All of dy goes to the pixel that was the maximum, and nothing to the others.",
    ),
    "pool-all": (
        "How many pixels of a window move the output of max pooling?",
        "Yours gives dy to every pixel of the window.",
        "Multiply dy by a mask: one where the pixel is the window's maximum, zero elsewhere.",
    ),
    "pool-index-order": (
        "An index inside a window has to become a row and a column. Which is which?",
        "In row-major order the index is the row times the width of the window, plus the column.",
        "So divide by the width for the row, and the remainder is the column: the width of the part inside the image.",
    ),
    "pool-other-sample": (
        "The gradient arrives in another image or another channel.",
        "Look at the axes of N and C when windows are flattened and indexed.",
        "Each (n, c) has maxima of its own: the index of a maximum belongs to one window of one image and channel.",
    ),
    # ---- the residual block
    "res-missing-skip": (
        "How many ways lead from x to y?",
        "Behind the addition there are two; the one along the shortcut is missing.",
        "dx is the sum of what the branch gives back and what the shortcut gives back.",
    ),
    "res-missing-branch": (
        "How many ways lead from x to y?",
        "Behind the addition there are two; the one through the convolutions is missing.",
        "dx is the sum of what the branch gives back and what the shortcut gives back.",
    ),
    "res-skip-twice": (
        "How often does the shortcut's gradient enter your dx?",
        "The addition copies its gradient once for each way: once for the branch, once for the shortcut.",
        "Look for a line that adds it although a line before has added it already.",
    ),
    "res-skip-bypasses-relu": (
        "Which gradient starts along the shortcut?",
        "The last ReLU stands behind the addition: both ways begin with what comes back through it.",
        "Hand on the gradient after that ReLU, not dy itself.",
    ),
    "res-mask-from-branch": (
        "Whose sign does the last ReLU look at?",
        "It is applied to the sum, so its mask comes from the sum, not from the branch alone.",
        "Use the cache of the last ReLU for the last ReLU: it is named relu2.",
    ),
    "res-relu-skipped": (
        "What is the last thing that the block does in its forward?",
        "It is a ReLU, so it is the first thing to go back through.",
        "Before the addition, multiply dy by that ReLU's mask.",
    ),
    "res-inner-mask-missing": (
        "List what lies between the two convolutions.",
        "Batch norm and a ReLU: the gradient goes back through both.",
        "Between the backwards of conv2 and bn1 comes the backward of the inner ReLU.",
    ),
    "res-averaged": (
        "What is the slope of a + b in a?",
        "It is one, and so is that in b: the gradient is copied, not shared out.",
        "Look for a division by 2, or for a mean of the two ways where each should get all of it.",
    ),
    # ---- cross entropy
    "ce-no-onehot": (
        "Where do the labels enter your gradient?",
        "The gradient of a row is the softmax minus the distribution that is wanted.",
        "At the label's place, take 1 away from the softmax (or 1 - s, and s / C everywhere, with smoothing).",
    ),
    "ce-wrong-axis": (
        "Along which axis do the probabilities sum to one?",
        "A row of (N, C) is one sample: its C probabilities sum to one.",
        "Take the maximum, the sum and the logarithm along axis 1.",
    ),
    # ---- not the gradient
    "forward-wrong": (
        "It is the forward that is wrong: no gradient can be judged before it is right.",
        "Take the smallest case that fails, and compute one entry by the docstring's formula by hand.",
        "Print each of your names for that case, in the order of the steps: the first surprising one is the place.",
    ),
    "wrong-cache": (
        "The result is right, and what is kept for the backward is not.",
        "The comment above the function says what each field of the cache holds, with its shape.",
        "Fill the cache with the arrays of the steps, unchanged, and in the order of its fields.",
    ),
    "wrong-dtype": (
        "Which dtype do your results have when the inputs are float32?",
        "An array made without a dtype is float64, and float32 with float64 gives float64.",
        "Give zeros, empty and arange the input's dtype, or derive new arrays from the input.",
    ),
    "input-modified": (
        "Whose array does your code write into?",
        "x += 1 and x[...] = 1 write into the array of the caller, who still needs it.",
        "Make a new array (x = x + 1, or x.copy() first). A view, as after reshape or transpose, is the same memory.",
    ),
    "not-repeatable": (
        "What of the first call is still there in the second?",
        "Look for a global variable, a default argument that is changed, or random numbers.",
        "All that backward needs goes through the cache, and empty arrays have to be filled in every place.",
    ),
    "training-differs": (
        "All small cases are right. What is different in a network?",
        "There, arrays may lie in memory in another order, and stride, padding and options may be others.",
        "Look for a size that you took for granted, an option that is ignored, or a reshape that relies on the memory.",
    ),
    "time-limit": (
        "Which loop of yours may never end, or goes once through every number?",
        "Look for a while whose condition does not change, and for loops within loops within loops.",
        "Loop over the kernel's places, or a pooling's windows, and let NumPy do all samples and channels at once.",
    ),
    "wrong-arguments": (
        "Compare the first line of your function with that of a fresh blank: a network calls it with all of these.",
        "Arrays come by position, options by name. An array that may be left out has the default None.",
        "Keep the line that begins with def as minires exercise start wrote it.",
    ),
    "crashed": (
        "Read the last line of the error first, then the line of your file that it names.",
        "Print the shapes of the arrays on that line just before it.",
        "Run your function alone in a shell, on the small case that the message shows.",
    ),
    "file": (
        "The file has to be Python, and to hold the functions that the exercise names.",
        "Look at the line that the message names, and at the one above it: a bracket may be open.",
        "minires exercise start NAME --dir ELSEWHERE writes a fresh file to compare with.",
    ),
    # ---- the check that you write
    "rejects-right": (
        "Your check says no to a kernel that is right: is it too strict?",
        "A central difference is itself inexact, to about 1e-9 with a step of 1e-6 in float64.",
        "Allow an error of about 1e-6, relative to the larger of 1 and the value, and put every entry back.",
    ),
    "mutant-survives": (
        "Read the fault of the survivor: which number of its gradient is wrong? Does your check look at it?",
        "With an upstream gradient of ones many mistakes cancel: batch norm and softmax are then constants.",
        "Draw the upstream at random, with both signs, and compare every entry of every gradient.",
    ),
    "no-verdict": (
        "What does your function return at its end?",
        "It has to say True or False in every case.",
        "Return False at the first entry that differs, and True when all have been compared.",
    ),
    "unexplained": (
        "The report names the worst entry. What is special about its place: an edge, a corner, the last sample?",
        "Make the case smaller, one sample, one channel, a kernel of 1x1, until it is right: what went last?",
        "Write the gradient of one single entry with pencil and paper, and compare it with what your code does to it.",
    ),
}


def hints_for(exercise: Exercise, code: str) -> Hints:
    """The three hints for a diagnosed cause; the exercise's own where there is none, or nothing is written yet."""
    return exercise.hints if code in ("forward-wrong", "unexplained") else HINTS.get(code, exercise.hints)


# ---- which hint comes next

MEMORY = ".minires_exercise.json"
PASSED = "passed"  # the cause where nothing was wrong


def read_memory(folder: Path) -> dict[str, Any]:
    """What is remembered in a folder, by exercise and file; nothing where the file is missing or damaged."""
    try:
        known = json.loads((folder / MEMORY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def write_memory(folder: Path, known: dict[str, Any]) -> None:
    """Remember; a folder that cannot be written to is no reason to stop."""
    try:
        (folder / MEMORY).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    except OSError:
        pass


def place_of(path: Path, exercise: str) -> tuple[Path, str]:
    """The folder in which a file is remembered, and by what: one folder may hold several tries at an exercise."""
    return path.resolve().parent, f"{exercise} in {path.name}"


def remember(path: Path, result: Result) -> None:
    """Keep the cause that was diagnosed last; with another cause the hints begin again."""
    code = result.failure.code if result.failure else PASSED
    folder, key = place_of(path, result.exercise)
    known = read_memory(folder)
    before = known.get(key)
    if not isinstance(before, dict) or before.get("code") != code:
        known[key] = {"code": code, "hints": 0}
        write_memory(folder, known)


def next_hint(path: Path, exercise: str) -> tuple[str, int]:
    """The cause that was diagnosed last, and which hint comes next: 1, 2, 3, and 3 again."""
    folder, key = place_of(path, exercise)
    known = read_memory(folder)
    entry = known.get(key)
    if not isinstance(entry, dict):
        entry = {}
    code, given = str(entry.get("code", "")), entry.get("hints", 0)
    number = max(1, min(given + 1 if isinstance(given, int) else 1, 3))
    known[key] = {"code": code, "hints": number}
    write_memory(folder, known)
    return code, number
