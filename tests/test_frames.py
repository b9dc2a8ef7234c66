"""How deep the library is: frames from the user's line to the arithmetic, counted."""

import os
import sys

import minires.functional as F
import numpy as np

import minires
from minires import Tensor
from minires.debug.stopping import SKIPPED

PACKAGE = os.path.dirname(minires.__file__)


def run_watched(function, watch):
    """Run function with watch as the profiler, and put back the one that was there."""
    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        function()
    finally:
        sys.setprofile(before)


def deepest(function):
    """The longest chain of MiniRes frames while function runs, armour left out, as a list of names."""
    chain, longest = [], []

    def watch(frame, event, argument):
        nonlocal longest
        if not frame.f_code.co_filename.startswith(PACKAGE) or frame.f_globals["__name__"] in SKIPPED:
            return
        if event == "call":
            chain.append(frame.f_code.co_name)
            if len(chain) > len(longest):
                longest = chain.copy()
        elif event == "return":
            chain.pop()

    run_watched(function, watch)
    return longest


def called_from(name, function):
    """The MiniRes frames above the first call of ``name`` while function runs."""
    chain = []

    def watch(frame, event, argument):
        if event == "call" and frame.f_code.co_name == name and not chain:
            while frame.f_back is not None and frame.f_back.f_code.co_filename.startswith(PACKAGE):
                frame = frame.f_back
                chain.insert(0, frame.f_code.co_name)

    run_watched(function, watch)
    return chain


def images(*shape):
    return Tensor(np.random.default_rng(0).standard_normal(shape), requires_grad=True)


def test_add_is_three_frames():
    a, b = images(3, 4), images(4)
    assert called_from("add_forward", lambda: a + b) == ["__add__", "apply"]


def test_relu_is_three_frames():
    x = images(3, 4)
    assert called_from("relu_forward", lambda: F.relu(x)) == ["relu", "apply"]


def test_conv2d_is_four_frames_with_im2col():
    for batch, form in ((2, "im2col_by_pixels"), (50, "im2col_by_rows")):
        x, w, b = images(batch, 3, 6, 5), images(4, 3, 3, 3), images(4)
        chains = {}
        for name in ("im2col_by_pixels", "im2col_by_rows"):
            chains[name] = called_from(name, lambda x=x, w=w, b=b: F.conv2d(x, w, b, stride=2, padding=1))
        assert chains.pop(form) == ["conv2d", "apply", "conv2d_forward"] and not any(chains.values())
        assert len(deepest(lambda x=x, w=w, b=b: F.conv2d(x, w, b, stride=2, padding=1))) == 4


def test_batch_norm_is_three_frames_and_its_helpers():
    x, mean, var = images(2, 3, 4, 4), Tensor(np.zeros(3)), Tensor(np.ones(3))
    chain = deepest(lambda: F.batch_norm(x, mean, var, training=True))
    assert len(chain) <= 5 and chain[:3] == ["batch_norm", "apply", "batch_norm_forward"]


def test_backward_reaches_the_kernel_in_two_frames():
    x, w = images(2, 3, 6, 5), images(4, 3, 3, 3)
    y = F.conv2d(x, w).sum()
    seen = []

    def watch(frame, event, argument):
        if event == "call" and frame.f_code.co_name == "conv2d_backward":
            seen.append(frame.f_back.f_code.co_name)

    run_watched(y.backward, watch)
    assert seen == ["backward"]
