"""The benchmark: that it times what it says, refuses to compare different things, and reports what it found.

Nothing here depends on how long anything takes.
"""

import gc
import importlib.util
import json
import sys
from functools import partial

import numpy as np
import pytest

from minires import cli, models
from minires.bench import kernels, memory, networks, run, timing
from minires.bench.kernels import Convolution, Layer
from minires.bench.networks import Network
from minires.bench.report import Remembered
from minires.bench.run import MemoryRow, Row
from minires.models.summary import summarize

TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not TORCH, reason="PyTorch is not installed")

SMALL_TRAINING = Network("a small training step", "resnet8", 4, (3, 16, 16), training=True)
SMALL = [
    Row("a small conv", run.FORWARD, partial(kernels.convolution_forward, Convolution(2, 3, 8, 4)), 0, 1e-4),
    Row("a small conv's dw", run.BACKWARD, partial(kernels.convolution_backward, Convolution(2, 3, 8, 4)), 0, 1e-4),
    Row("a small ReLU", "layer", partial(kernels.relu_forward, Layer(2, 3, 8)), 0, 1e-4),
    Row(SMALL_TRAINING.name, "network", partial(networks.network_sides, SMALL_TRAINING), 0, 1e-3),
]


@pytest.fixture
def small(monkeypatch):
    """The benchmark with small rows, and memory that is not measured in processes of its own."""
    monkeypatch.setattr(run, "timed_rows", lambda: SMALL)
    monkeypatch.setattr(run, "memory_rows", lambda: [MemoryRow("memory of a small step", SMALL_TRAINING)])
    monkeypatch.setattr(
        run, "measure", lambda side, network, threads: {"minires": 3_000_000, "pytorch": 2_000_000}[side]
    )
    return monkeypatch


@pytest.fixture(params=["with PyTorch", "without PyTorch"])
def with_torch(request, monkeypatch):
    """Whether PyTorch can be imported: as it is here, and as where it is not installed."""
    if request.param == "without PyTorch":
        monkeypatch.setitem(sys.modules, "torch", None)
    elif not TORCH:
        pytest.skip("PyTorch is not installed")
    return request.param == "with PyTorch"


# ---- The method -------------------------------------------------------------------------------------------------


def test_sides_run_in_turn():
    calls = []
    found = timing.interleave({name: partial(calls.append, name) for name in "abc"}, budget=0)
    assert calls == list("abc") * (1 + timing.LEAST_REPEATS), "one round to warm up, then the rounds that count"
    assert {name: len(seconds) for name, seconds in found.items()} == dict.fromkeys("abc", timing.LEAST_REPEATS)


def test_the_collector_is_put_back():
    assert gc.isenabled()
    seen = []
    timing.interleave({"a": lambda: seen.append(gc.isenabled())}, budget=0)
    assert not any(seen) and gc.isenabled()


def test_repeats_are_odd_and_fit_the_budget():
    for budget, seconds, repeats in ((10, 1, 9), (11, 1, 11), (0, 1, 5), (6.5, 1, 5), (1e9, 1e-9, 101), (1, 0, 101)):
        assert timing.repeats_within(budget, seconds) == repeats


def test_figures_and_ratios():
    assert timing.figure([5.0, 1.0, 3.0, 2.0, 4.0]) == (3, 2, 4)
    assert timing.figure([7.0]) == (7, 7, 7)
    drifting = [1.0, 2.0, 3.0, 4.0, 5.0]  # a machine that slows down: the ratio within each round stays what it is
    assert timing.ratio([2 * t for t in drifting], drifting) == (2, 2, 2)


# ---- The rows ---------------------------------------------------------------------------------------------------


def test_the_table_is_complete():
    timed = run.timed_rows()
    names = [row.name for row in timed] + [row.name for row in run.memory_rows()]
    assert len(set(names)) == len(names)
    groups = [row.group for row in timed]
    assert groups.count(run.FORWARD) == groups.count(run.BACKWARD) == 8 and groups.count("network") == 7
    for text in ("batch norm", "ReLU", "max pool"):
        for direction in ("forward", "backward"):
            assert any(name.startswith(text) and name.endswith(direction) for name in names)


def test_kernels_get_arrays_as_networks_have_them():
    x = kernels.feature_map(2, 3, 8, seed=0)
    y, _ = kernels.fast.conv2d_forward(np.ones((2, 1, 8, 8), np.float32), np.ones((3, 1, 1, 1), np.float32))
    assert x.shape == y.shape and x.strides == y.strides and x.dtype == np.float32
    assert abs(x.mean()) < 0.3 and abs(x.std() - 1) < 0.3


CASES = {
    "conv": (Convolution(2, 3, 9, 4), kernels.convolution_forward, kernels.convolution_backward),
    "conv s2": (Convolution(2, 3, 8, 4, 5, 2, 1), kernels.convolution_forward, kernels.convolution_backward),
    "stem": (Convolution(2, 3, 16, 4, 7, 2, 3, False), kernels.convolution_forward, kernels.convolution_backward),
    "batch norm": (Layer(2, 3, 8), kernels.batch_norm_forward, kernels.batch_norm_backward),
    "ReLU": (Layer(2, 3, 8), kernels.relu_forward, kernels.relu_backward),
    "max pool": (Layer(2, 3, 9), kernels.max_pool_forward, kernels.max_pool_backward),
}


@needs_torch
@pytest.mark.parametrize("name", CASES)
def test_both_sides_of_a_kernel_agree(name):
    case, *directions = CASES[name]
    for prepare in directions:
        found = prepare(case, timing.load_pytorch())
        timing.check_same(name, found, 1e-5)
        results = found.minires()
        assert all(np.linalg.norm(result) > 0 for result in results)
        if name == "stem" and prepare is kernels.convolution_backward:
            assert [result.shape for result in results] == [(4, 3, 7, 7)], "dw, and no dx"


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize(
    "model, size, training",
    [("resnet8", 16, True), ("resnet8", 16, False), ("resnet18", 32, False), ("resnet50", 32, False)],
)
def test_both_sides_of_a_network_agree(model, size, training):
    network = Network("a network", model, 3, (3, size, size), training)
    timing.check_same(network.name, networks.network_sides(network, timing.load_pytorch()), 1e-3)


@needs_torch
def test_both_optimisers_do_the_same(monkeypatch):
    """Several steps with a high rate and much decay: without momentum or decay on one side the losses part."""
    monkeypatch.setattr(networks, "LR", 0.05)
    monkeypatch.setattr(networks, "WEIGHT_DECAY", 0.1)

    def losses(step):
        return [float(timing.to_array(step()[1])) for _ in range(5)]

    ours, theirs = networks.minires_step(SMALL_TRAINING), networks.pytorch_step(SMALL_TRAINING, timing.load_pytorch())
    expected = losses(theirs)
    assert losses(ours) == pytest.approx(expected, rel=1e-3)
    for name in ("MOMENTUM", "WEIGHT_DECAY"):
        with monkeypatch.context() as changed:
            changed.setattr(networks, name, 0.0)
            other = networks.minires_step(SMALL_TRAINING)
        assert losses(other) != pytest.approx(expected, rel=1e-3), name


@needs_torch
def test_a_network_that_is_not_written_in_torch_is_refused():
    for name in ("preact_resnet20", "resnext50_32x4d", "mnist_resnet20"):
        with pytest.raises(ValueError, match=name):
            timing.load_pytorch().build_like(name, {})


def test_a_change_is_made_to_our_network_only():
    """What a row may do to MiniRes's network before it is timed, such as fusing its layers."""
    changed = []
    network = SMALL_TRAINING._replace(training=False, change=lambda model: changed.append(model) or model)
    networks.network_sides(network, None).minires()
    assert len(changed) == 1


class Wrong:
    """A PyTorch's side with a result that is off by a little, or missing."""

    def __init__(self, *results):
        self.results = results

    def __call__(self):
        return list(self.results)


@pytest.mark.parametrize(
    "theirs, message",
    [
        ([np.full(3, 1.001)], "differs by 1.0e-03"),
        ([np.full(3, np.nan)], "differs by nan"),
        ([np.ones(4)], "differs by inf"),
        ([], "1 results and PyTorch 0"),
    ],
)
def test_different_things_are_not_compared(theirs, message):
    with pytest.raises(RuntimeError, match="the row: MiniRes") as refused:
        timing.check_same("the row", timing.Sides(Wrong(np.ones(3)), Wrong(*theirs)), 1e-4)
    assert message in str(refused.value)


@needs_torch
def test_a_wrong_kernel_ends_the_run(small, capsys):
    right = kernels.kernels.relu_forward
    small.setattr(kernels.kernels, "relu_forward", lambda x: (1.01 * right(x)[0], None))
    assert cli.main(["bench", "--only", "a small relu"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("minires bench: a small ReLU: MiniRes and PyTorch computed different things")


# ---- The floor --------------------------------------------------------------------------------------------------


def test_the_floor_counts_what_the_summary_counts():
    model = models.create_model("resnet20")
    counted = summarize(model, (3, 32, 32))
    stem = counted.rows[0].macs
    for training, expected in ((False, 5 * counted.macs), (True, 5 * (3 * counted.macs - stem))):
        products = networks.network_products(model, (3, 32, 32), 5, training)
        assert sum(product.multiply_adds for product in products) == expected


def test_the_floor_of_a_convolution():
    stem = kernels.CONVOLUTIONS[-1]
    assert kernels.convolution_sizes(stem) == (64, 3 * 7 * 7, 8 * 112 * 112)
    assert (
        len(timing.backward_products(4, 27, 50)) == 2 and len(timing.backward_products(4, 27, 50, needs_dx=False)) == 1
    )
    for outputs in (4, 90):
        dw, dx = timing.backward_products(outputs, 27, 50)
        assert dw.rows >= dw.columns and dw.multiply_adds == dx.multiply_adds == outputs * 27 * 50


def test_the_floor_runs_every_product(monkeypatch):
    products = [timing.Product(2, 3, 4), timing.Product(5, 3, 4, transposed=True), timing.Product(2, 3, 4)]
    work = timing.floor_work(products)
    ran, matmul = [], np.matmul

    def counted(a, b, out):
        ran.append((*a.shape, b.shape[1]))
        assert np.isfinite(matmul(a, b, out=out)).all()

    monkeypatch.setattr(np, "matmul", counted)
    work()
    assert ran == [product[:3] for product in products]


# ---- Memory and threads -----------------------------------------------------------------------------------------


def test_memory_of_a_known_size():
    found = memory.peak_above_idle(lambda: np.ones(100_000_000, np.uint8))
    if found is None:
        pytest.skip("this system does not tell")
    assert 90e6 < found < 130e6


def test_memory_where_linux_does_not_tell(monkeypatch):
    monkeypatch.setattr(memory, "status_bytes", lambda field: int("no such field"))
    held = iter([100, 350])
    monkeypatch.setattr(memory, "highest_bytes", lambda: next(held))
    assert memory.peak_above_idle(lambda: None) == 250
    monkeypatch.setattr(memory, "highest_bytes", lambda: None)
    assert memory.peak_above_idle(lambda: None) is None


def test_memory_in_a_process_of_its_own():
    found = memory.measure("minires", networks.NETWORKS[0], threads=1)
    assert found is None or 20e6 < found < 2e9
    with pytest.raises(RuntimeError, match="memory of a small training step: the process of minires failed"):
        memory.measure("minires", SMALL_TRAINING, threads=1)  # not in the table


def test_threads_are_set_and_put_back():
    pytorch, blas = timing.load_pytorch(), timing.numpys_blas()
    before = (blas and blas["num_threads"], pytorch and pytorch.torch.get_num_threads())
    for count in range(1, min(timing.processors(), 2) + 1):
        with timing.limited_to(count, pytorch):
            system = timing.describe_system(count, pytorch)
            assert system["blas_threads"] in (count, None) and system["torch_threads"] in (count, None)
            assert (system["blas_threads"] is None) == (blas is None)
            assert (system["torch_threads"] is None) == (not TORCH)
    blas = timing.numpys_blas()
    assert (blas and blas["num_threads"], pytorch and pytorch.torch.get_num_threads()) == before


# ---- The command ------------------------------------------------------------------------------------------------


def test_json(small, with_torch, capsys):
    assert cli.main(["bench", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == "", "a progress bar belongs on a terminal"
    found = json.loads(out)
    assert (found["system"]["torch"] is not None) == with_torch and found["system"]["threads"] == 1
    assert [row["name"] for row in found["times_ms"]] == [row.name for row in SMALL]
    for row in found["times_ms"]:
        assert row["repeats"] >= timing.LEAST_REPEATS and row["repeats"] % 2 == 1
        measured = {"minires"} | ({"pytorch", "ratio"} if with_torch else set())
        measured |= set() if row["group"] == "layer" else {"floor", "ratio_to_floor"}
        for side in ("minires", "pytorch", "floor", "ratio", "ratio_to_floor"):
            if side in measured:
                assert set(row[side]) == {"median", "low", "high"} and 0 < row[side]["low"] <= row[side]["high"]
            else:
                assert row[side] is None
    means = found["geometric_means"]
    assert means["convolution forward"]["rows"] == means["convolution backward"]["rows"] == 1
    first = found["times_ms"][0]["ratio"]
    assert means["convolution forward"]["ratio"] == (pytest.approx(first["median"]) if with_torch else None)
    expected = {"minires": 3.0, "pytorch": 2.0 if with_torch else None, "ratio": 1.5 if with_torch else None}
    assert found["memory_mb"] == [{"name": "memory of a small step", **expected}]


def test_table(small, with_torch, capsys):
    assert cli.main(["bench"]) == 0
    out = capsys.readouterr().out
    for name in [*(row.name for row in SMALL), "memory of a small step", "geometric mean", "floor", "measured in"]:
        assert name in out
    assert ("PyTorch is not installed" in out) == (not with_torch) and ("PyTorch ms" in out) == with_torch
    assert f"NumPy {np.__version__}" in out and "1 thread," in out and "processors" in out


def test_memory_that_was_not_measured(small, capsys):
    small.setattr(run, "remember_row", lambda row, pytorch, threads: Remembered(row.name, None, None))
    assert cli.main(["bench", "--only", "memory"]) == 0
    assert "not measured on this system" in capsys.readouterr().out


def test_only_as_the_help_shows_it(monkeypatch, capsys):
    """Rows of the real table, with few repeats."""
    monkeypatch.setattr(timing, "MOST_REPEATS", timing.LEAST_REPEATS)
    assert cli.main(["bench", "--only", "relu 16x32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["times_ms"]] == [
        "ReLU 16x32x32, batch 64, forward",
        "ReLU 16x32x32, batch 64, backward",
    ]
    assert found["memory_mb"] == [] and found["geometric_means"] == {}


REFUSED = {
    "no threads": ("--threads 0", "--threads must be between 1 and"),
    "more threads than processors": ("--threads 100000", "--threads must be between 1 and"),
    "rows that are not there": ("--only transformer", "--only: no row's name contains 'transformer'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name, capsys):
    arguments, message = REFUSED[name]
    assert cli.main(["bench", *arguments.split()]) == 2
    err = capsys.readouterr().err
    assert err.startswith("minires bench: ") and message in err and err.count("\n") == 1


def test_interrupting_is_polite(small, capsys):
    def interrupted(sides, budget):
        raise KeyboardInterrupt

    small.setattr(run, "interleave", interrupted)
    assert cli.main(["bench"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
