"""How far a debugger is from the arithmetic, counted; and what a Node knows about where it was made.

A press is one stop of ``debug.step()``, each call and each line that is not armour: see minires/bench/presses.py.
"""

import pdb
import re
import subprocess
import sys
from pathlib import Path

import minires.functional as F
import numpy as np
import pytest

import minires
from minires import Tensor, debug, nn
from minires.bench import presses as far
from minires.debug.stopping import Stepper

README = (Path(minires.__file__).parent / "debug" / "README.md").read_text()
HIDDEN = {"<lambda>", "<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>"}
WALKS = far.walks()


def rows(text):
    """The rows of a table of presses: what is called, with step(), entering all code."""
    return re.findall(r"^\| (.+) \| (\d+) \| (\d+) \|$", text, re.M)


@pytest.mark.parametrize("walk", WALKS, ids=[walk.name for walk in WALKS])
def test_the_arithmetic_is_near(walk):
    """Within the budget, nothing hidden on the way, and as the README says (a line more or less between Pythons)."""
    presses = far.steps_of(walk, True)
    assert presses <= walk.budget
    promised = {name: int(number) for name, number, _ in rows(README)}
    assert abs(promised[walk.name] - presses) <= 2, "python -m minires.bench.presses prints the table anew"
    with minires.textbook() if walk.textbook else minires.enable_grad():
        names = {stop.function for stop in far.stops(walk.call)}
    assert not names & HIDDEN


def test_a_training_step_is_arithmetic():
    """In textbook mode at least 40 % of the presses of a ResNet-20 step are in kernels."""
    number, share = far.share_of_kernels()
    assert share >= 0.4
    assert f"{number:,} presses, {share:.0%} of them in kernels" in README


def test_the_table_is_of_these_rows():
    assert [name for name, _, _ in rows(README)] == [walk.name for walk in WALKS]
    assert all(int(all_code) > int(step) for _, step, all_code in rows(README))


def test_a_walk_that_leads_nowhere_is_refused():
    with pytest.raises(ValueError, match="'y = 3' is no line of add_forward"):
        far.presses(WALKS[0].call, "add_forward", "y = 3")


def test_step_opens_the_debugger_at_the_next_line_and_skips_armour(tmp_path):
    """Eight times "s" from ``y = a + b`` leads into add_forward, without a stop in armour."""
    (tmp_path / "step.py").write_text(
        "from minires import Tensor, debug\na, b = Tensor([1.0, 2.0]), Tensor([3.0, 4.0])\ndebug.step()\ny = a + b\n"
    )
    command = [sys.executable, "step.py"]
    commands = "s\n" * 8 + "w\np a, b\nc\n"
    told = subprocess.run(command, cwd=tmp_path, input=commands, capture_output=True, text=True, timeout=60).stdout
    lines = [line for line in told.splitlines() if line.startswith("-> ")]
    assert lines[0] == "-> y = a + b" and "-> y = a + b" in lines[1:], told  # the user's, and then the kernel's
    assert "armour" not in told and "convert.py" not in told
    assert "array([1., 2.], dtype=float32)" in told


def test_the_debugger_is_pdb():
    assert issubclass(Stepper, pdb.Pdb) and debug.step.__module__ == Stepper.__module__


def random(*shape):
    return Tensor(np.random.default_rng(0).standard_normal(shape), requires_grad=True)


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
