"""How far a debugger is from the arithmetic: presses of "step into", counted with debug.step()'s own rules.

``python -m minires.bench.presses`` prints the table.
"""

from __future__ import annotations

import bdb
import gc
import linecache
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

from minires import models, nn
from minires.debug.stopping import SKIPPED
from minires.engine.creation import rand, randn
from minires.engine.modes import enable_grad, textbook
from minires.nn import functional as F


class Stop(NamedTuple):
    """Where a debugger that steps into everything stands."""

    event: str  # "call" or "line"
    module: str
    function: str
    line: str  # of the source


class Counter(bdb.Bdb):
    """Steps through a call, and notes every stop: what a press of "step into" leads to."""

    def __init__(self, skipping: bool):
        super().__init__(skip=SKIPPED if skipping else None)
        self.stops: list[Stop] = []

    def note(self, event: str, frame: FrameType) -> None:
        """Keep a stop, unless it is of the call that is measured or of the debugger."""
        module = frame.f_globals.get("__name__", "")
        if module not in (__name__, "bdb"):
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
            self.stops.append(Stop(event, module, frame.f_code.co_name, line))

    def user_call(self, frame: FrameType, argument_list: Any) -> None:
        """A function is entered."""
        self.note("call", frame)

    def user_line(self, frame: FrameType) -> None:
        """A line is about to run."""
        self.note("line", frame)


def stops(function: Callable[[], Any], skipping: bool = True) -> list[Stop]:
    """Every stop on the way through ``function()``, with step() (skipping) or with a debugger that enters all code."""
    function()  # once before: what is imported or worked out at the first call only is not counted
    counter = Counter(skipping)
    before = sys.gettrace()
    gc.collect()
    gc.disable()  # what it finalises in between is no part of the walk
    try:
        counter.runcall(function)
    finally:
        gc.enable()
        sys.settrace(before)
    return counter.stops


def presses(function: Callable[[], Any], kernel: str, line: str, skipping: bool = True) -> int:
    """How many presses of "step into" lead to the line of a kernel that begins so.

    Errors: ValueError where no stop is there.
    """
    for number, stop in enumerate(stops(function, skipping), 1):
        if stop.event == "line" and stop.function == kernel and stop.line.startswith(line):
            return number
    raise ValueError(f"{line!r} is no line of {kernel} that is passed: say what is")


class Walk(NamedTuple):
    """A row of the table: what is called, and the line of a kernel where the numbers are added or multiplied."""

    name: str
    call: Callable[[], Any]
    kernel: str
    line: str
    budget: int  # with step()
    textbook: bool = False


def walks() -> list[Walk]:
    """The rows, with tensors and layers of their own."""
    a, b, images = rand(3, 4), rand(4), randn(64, 16, 32, 32)
    convolution, norm = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
    weight = convolution.weight

    def add() -> Any:
        return a + b

    def relu() -> Any:
        return F.relu(images)

    def batch_norm() -> Any:
        return norm(images)

    def max_pool() -> Any:
        return F.max_pool2d(images, 3, 2, 1)

    def conv2d() -> Any:
        return convolution(images)

    def backward() -> Any:
        return F.conv2d(images[:2], weight).sum().backward()

    return [
        Walk("`a + b`", add, "add_forward", "y = a + b", 12),
        Walk("`F.relu(x)`", relu, "relu_forward", "y = xp.maximum(x, 0", 12),
        Walk("batch norm, from the layer's call", batch_norm, "batch_norm_forward", "mean = rows.mean(", 30),
        Walk("batch norm, textbook", batch_norm, "batch_norm_forward", "mean = x.mean(", 30, True),
        Walk("`F.max_pool2d(x, 3, 2, 1)`", max_pool, "max_pool2d_forward", "xp.maximum(best, pixel", 30),
        Walk("max pooling, textbook", max_pool, "max_pool2d_forward", "y[:, :, oh, ow] =", 30, True),
        Walk("conv2d, from the layer's call", conv2d, "conv2d_forward", "xp.matmul(w_matrix, cols", 160),
        Walk("conv2d, textbook", conv2d, "conv2d_forward", "y = cols @", 40, True),
        Walk("`loss.backward()` to conv2d's backward", backward, "conv2d_backward", "", 40),
    ]


def steps_of(walk: Walk, skipping: bool) -> int:
    """Presses of a row."""
    with textbook() if walk.textbook else enable_grad():
        if walk.kernel.endswith("_backward"):
            return from_backward(walk, skipping)
        return presses(walk.call, walk.kernel, walk.line, skipping)


def from_backward(walk: Walk, skipping: bool) -> int:
    """Presses from the call of backward() on."""
    found = stops(walk.call, skipping)
    start = next(i for i, stop in enumerate(found) if stop[:3] == ("call", "minires.engine.tensor", "backward"))
    end = next(i for i, stop in enumerate(found) if stop.event == "call" and stop.function == walk.kernel)
    return end + 1 - start


def share_of_kernels() -> tuple[int, float]:
    """Presses of a training step of ResNet-20 in textbook mode, and the share of them that is in kernels."""
    model, images = models.create_model("resnet20"), randn(2, 3, 32, 32)

    def training_step() -> None:
        F.cross_entropy(model(images), [3, 4]).backward()

    with textbook():
        found = stops(training_step)
    inside = [stop for stop in found if stop.module.startswith("minires.kernels.")]
    return len(found), len(inside) / len(found)


def table() -> str:
    """The table of presses, as the README of this room has it."""
    lines = ["| to the arithmetic of | with `debug.step()` | entering all code |", "|---|---|---|"]
    for walk in walks():
        lines.append(f"| {walk.name} | {steps_of(walk, True)} | {steps_of(walk, False)} |")
    number, share = share_of_kernels()
    lines += ["", f"A training step of ResNet-20 in textbook mode: {number:,} presses, {share:.0%} of them in kernels."]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
