"""How far a debugger is from the arithmetic: presses of "step into", counted.

A press is one stop of a debugger that steps into everything: each call and each line that ``sys.settrace`` reports, in
every file, NumPy's included, from where it stands on the user's line until it stands on the line in question. (pdb also
stops at each return, and VS Code at no call.) In a convolution's and a batch norm's own kernel the helpers that check
and measure shapes are stepped over with "next": they are named here, and nothing else is left out.
"""

import linecache
import re
import sys

import minires.functional as F
import numpy as np
import pytest

import minires
from minires import Tensor, nn

HIDDEN = {"<lambda>", "<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>"}

#: The first line of arithmetic of each kernel, as it is written there.
FIRST = {
    "add_forward": "y = a + b",
    "relu_forward": "y = xp.maximum(x, 0",
    "conv2d_forward": "x_rows = xp.ascontiguousarray(x.transpose(1, 2, 3, 0))",
    "batch_norm_forward": "mean = rows.mean(axis=1)",
    "relu_backward": "return dy * (cache.y > 0)",
    "conv2d_backward": "xp = array_module(dy)",  # its first line: where the convolution's backward begins
    "batch_norm_backward": "xp = array_module(dy)",
}

#: What a reader steps over in the kernel.
SHAPES = {"array_module", "conv2d_size", "conv2d_plan", "blocks_pay", "check_batch_norm", "to_rows"}


def stops(function):
    """Every stop while the one line of ``function`` runs: (event, name, line of source, names of the callers)."""
    found = []

    def watch(frame, event, argument):
        if frame.f_code is function.__code__:
            return watch
        if event in ("call", "line"):
            callers, caller = [], frame.f_back
            while caller is not None and caller.f_code is not function.__code__:
                callers.append(caller.f_code.co_name)
                caller = caller.f_back
            source = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
            found.append((event, frame.f_code.co_name, source, callers))
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        function()
    finally:
        sys.settrace(before)
    return found


def arrival(found, kernel):
    """Where among the stops the kernel's first line of arithmetic is."""
    for i, (event, name, source, _) in enumerate(found):
        if event == "line" and name == kernel and source.startswith(FIRST[kernel]):
            return i
    raise AssertionError(f"{FIRST[kernel]!r} is no line of {kernel} any more: say what is")


def presses(function, kernel, over=()):
    """Presses to the kernel's first line of arithmetic; those in ``over`` are stepped over in the kernel."""
    found = stops(function)
    found = found[: arrival(found, kernel) + 1]
    kept = []
    for event, name, source, callers in found:
        chain = [name, *callers]
        inside = chain[: chain.index(kernel)] if kernel in chain else []
        if not (inside and inside[-1] in over):
            kept.append((event, name, source))
    hidden = [stop for stop in found if stop[1] in HIDDEN]
    assert not hidden, f"on the way to {kernel}: {hidden}"
    return len(kept)


def random(*shape):
    return Tensor(np.random.default_rng(0).standard_normal(shape), requires_grad=True)


def test_add_and_relu_are_twelve_presses_away():
    a, b = random(3, 4), random(4)
    x = random(2, 3)
    assert presses(lambda: a + b, "add_forward") <= 12
    assert presses(lambda: F.relu(x), "relu_forward") <= 12


@pytest.mark.parametrize("batch", [2, 50], ids=["by pixels", "by rows"])
def test_conv2d_is_sixteen_presses_away(batch):
    x, w, b = random(batch, 3, 6, 5), random(4, 3, 3, 3), random(4)
    assert presses(lambda: F.conv2d(x, w), "conv2d_forward", SHAPES) <= 16
    assert presses(lambda: F.conv2d(x, w, b, stride=2, padding=1), "conv2d_forward", SHAPES) <= 16


def test_batch_norm_is_sixteen_presses_away():
    x, mean, var, gamma, beta = random(2, 3, 4, 4), Tensor(np.zeros(3)), Tensor(np.ones(3)), random(3), random(3)
    assert presses(lambda: F.batch_norm(x, mean, var, gamma, beta, training=True), "batch_norm_forward", SHAPES) <= 16
    assert presses(lambda: F.batch_norm(x, None, None, training=True), "batch_norm_forward", SHAPES) <= 16


def test_backward_reaches_the_convolution_in_45_presses():
    x, w = random(2, 3, 6, 5), random(4, 3, 3, 3)
    y = F.conv2d(x, w).sum()
    assert presses(lambda: y.backward(), "conv2d_backward") <= 45


def between(loss, first, second):
    """Presses from the last line of one backward to the first line of the next."""
    found = stops(lambda: loss.backward())
    end = arrival(found, second)
    start = max(i for i in range(end) if first in (found[i][1], *found[i][3]))
    hidden = [stop for stop in found[start:end] if stop[1] in HIDDEN]
    assert not hidden
    return end - start


def test_twelve_presses_from_one_backward_to_the_next():
    x, w = random(2, 3, 6, 5), random(4, 3, 3, 3)
    assert between(F.conv2d(x, w).sum(), "sum_backward", "conv2d_backward") <= 12
    assert between(F.relu(x).relu().sum(), "sum_backward", "relu_backward") <= 12
    assert between(F.relu(F.conv2d(x, w)).sum(), "relu_backward", "conv2d_backward") <= 12


def test_a_further_input_costs_seven_presses_more():
    x, w, gamma, beta = random(2, 3, 6, 5), random(3, 3, 3, 3), random(3), random(3)
    y = F.batch_norm(F.conv2d(F.relu(x), w), None, None, gamma, beta, training=True)
    assert between(y.sum(), "batch_norm_backward", "conv2d_backward") <= 12 + 2 * 7  # a batch norm has three


# ---- Where a Node was made, and by which module ----------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.shared = nn.ReLU()
        self.again = self.shared
        self.listed = [nn.Conv2d(4, 2, 1)]

    def forward(self, x):
        x = self.shared(self.stem(x))
        x = self.again(self.blocks(x))
        return self.listed[0](x)


def line_of(text):
    lines = open(__file__).read().splitlines()
    return next(i + 1 for i, line in enumerate(lines) if line.strip() == text)


def nodes_of(y):
    from minires.engine.modes import topological_order

    return list(reversed(topological_order(y.node)))


def test_every_node_knows_its_module_and_its_line():
    y = Net()(random(2, 3, 5, 4).float())
    made = [(node.operation, node.module, node.where) for node in nodes_of(y)]
    first, second = line_of("x = self.shared(self.stem(x))"), line_of("x = self.again(self.blocks(x))")
    last = line_of("return self.listed[0](x)")
    assert made[1:] == [
        ("conv2d", "stem", (__file__, first)),
        ("relu", "shared", (__file__, first)),
        ("conv2d", "blocks.0", (__file__, second)),
        ("relu", "blocks.1", (__file__, second)),
        ("conv2d", "blocks.2", (__file__, second)),
        ("relu", "shared", (__file__, second)),  # one module under two names: its first
        ("conv2d", "Conv2d", (__file__, last)),  # in a plain list it has no name: its class says what it is
    ]


def test_outside_every_module_there_is_the_line_alone():
    x = random(2, 3)
    y = F.relu(x)
    assert y.node.module == "" and y.node.where == (__file__, line_of("y = F.relu(x)"))
    assert " by " not in repr(y.node)


def told(error):
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


def test_an_exception_in_the_forward_names_shapes_module_and_line():
    net = Net()
    net.blocks[2].weight = nn.Parameter(np.zeros((4, 5, 1, 1), "float32"))
    for context in (minires.enable_grad(), minires.no_grad()):
        with context, pytest.raises(ValueError) as caught:
            net(Tensor(np.zeros((2, 3, 6, 7), "float32")))
        assert "conv2d: x has 4 channels" in told(caught.value)
        line = line_of("x = self.again(self.blocks(x))")
        assert re.search(
            rf"forward of conv2d of \(2, 4, 6, 7\), \(4, 5, 1, 1\), \(4,\), called by blocks\.2 at .*, line {line}",
            told(caught.value),
        )


def test_an_exception_in_the_backward_names_shape_module_and_line():
    y = Net()(random(2, 3, 5, 4).float())
    node = next(node for node in nodes_of(y) if node.module == "blocks.2")
    node.cache = node.cache._replace(w=node.cache.w[:3])
    with pytest.raises(Exception) as caught:
        y.sum().backward()
    line = line_of("x = self.again(self.blocks(x))")
    assert f"in the backward of <conv2d made by blocks.2 at {__file__}, line {line}>" in told(caught.value)
    assert "whose result has shape (2, 4, 5, 4)" in told(caught.value)
    assert node.grad is None and not node.freed


def test_what_is_no_tensor_is_refused_by_name():
    x, w = np.zeros((1, 3, 4, 4)), random(2, 3, 3, 3)
    with pytest.raises(TypeError, match="conv2d: expected a Tensor, got numpy.ndarray"):
        F.conv2d(x, w)
    with pytest.raises(TypeError, match="batch_norm: expected a Tensor, got numpy.ndarray"):
        F.batch_norm(x, None, None, training=True)
    with pytest.raises(TypeError, match="relu: expected a Tensor, got list"):
        F.relu([1.0])
