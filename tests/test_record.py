"""debug.record(): every number against one that is computed by hand, and what it leaves behind: nothing."""

import csv
import gc
import io
import subprocess
import sys
import threading
import weakref

import minires.functional as F
import numpy as np
import pytest
from closeness import assert_close

import minires
from minires import Tensor, debug, kernels, nn, no_grad
from minires.debug import charts, table
from minires.debug.rows import BINS
from minires.engine.modes import mode


class Small(nn.Module):
    """A convolution and ReLU with a shortcut, and a linear layer."""

    def __init__(self):
        self.branch = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(2 * 5 * 4, 3)

    def forward(self, x):
        y = F.residual_add(x, self.branch(x))
        return self.fc(y.flatten(1))


def small(dtype="float64", seed=0):
    """The network with weights of its own seed, an input and a gradient of its output."""
    rng = np.random.default_rng(seed)
    model = Small().to(dtype=np.dtype(dtype))
    with no_grad():
        for parameter in model.parameters():
            parameter.array[...] = rng.standard_normal(parameter.shape)
    x = Tensor(rng.standard_normal((6, 2, 5, 4)), dtype=dtype)
    return model, x, rng.standard_normal((6, 3)).astype(dtype)


def recorded(model, x, dy):
    with debug.record() as record:
        model(x).backward(dy)
    return record


def by_hand(model, x, dy):
    """Results and their gradients, with plain NumPy and the seven loops."""
    conv, fc = model.branch[0], model.fc
    x, w, b = x.numpy(), fc.weight.detach().numpy(), fc.bias.detach().numpy()
    h = kernels.conv2d_loops(x, conv.weight.array, conv.bias.array, padding=1)
    a = np.where(h > 0, h, 0)
    s = x + a
    flat = s.reshape(6, -1)
    results = [h, a, s, flat, flat @ w.T + b]
    ds = (dy @ w).reshape(s.shape)
    return results, [ds * (h > 0), ds, ds, dy @ w, dy]


def test_statistics_and_gradients_are_those_computed_by_hand():
    model, x, dy = small()
    record = recorded(model, x, dy)
    results, gradients = by_hand(model, x, dy)
    assert len(record) == len(results) == 5
    for row, y, g in zip(record, results, gradients, strict=True):
        assert_close(np.array([row.mean, row.std]), np.array([y.mean(), np.sqrt(((y - y.mean()) ** 2).mean())]), 1e-12)
        assert row.zeros == (y == 0).sum() / y.size
        assert_close(np.array(row.grad_norm), np.sqrt((g**2).sum()), 1e-12)
        assert row.shape == y.shape and row.dtype == "float64" and row.result_bytes == y.nbytes
        counts, edges = np.histogram(y, bins=BINS)
        assert_close(np.array([row.histogram.low, row.histogram.high]), edges[[0, -1]], 1e-12)
        assert sum(row.histogram.counts) == y.size and row.histogram.outside == 0
        assert np.abs(np.array(row.histogram.counts) - counts).sum() <= 2  # a value at an edge may round over it
        assert sum(row.grad_histogram.counts) == g.size
    assert 0.2 < record[1].zeros < 0.8, "the ReLU has something to show"


def test_order_names_and_where_each_input_came_from():
    model, x, dy = small()
    record = recorded(model, x, dy)
    assert [row.number for row in record] == list(range(5))
    assert [(row.operation, row.module) for row in record] == [
        ("conv2d", "branch.0"),
        ("relu", "branch.1"),
        ("residual_add", ""),
        ("reshape", ""),
        ("linear", "fc"),
    ]
    assert [[(i.shape, i.row, i.parameter) for i in row.inputs] for row in record] == [
        [((6, 2, 5, 4), None, False), ((2, 2, 3, 3), None, True), ((2,), None, True)],
        [((6, 2, 5, 4), 0, False)],
        [((6, 2, 5, 4), None, False), ((6, 2, 5, 4), 1, False)],
        [((6, 2, 5, 4), 2, False)],
        [((6, 40), 3, False), ((3, 40), None, True), ((3,), None, True)],
    ]
    assert [level.kind for level in record[0].modules] == ["Small", "Sequential", "Conv2d"]
    assert [level.path for level in record[0].modules] == ["", "branch", "branch.0"]


def test_the_same_given_tensor_has_the_same_number():
    a, b = Tensor(np.ones((2, 3))), Tensor(np.ones((2, 3)))
    with debug.record() as record:
        c = a + b
        b * a
        c - b
    assert [[(x.row, x.given) for x in row.inputs] for row in record] == [
        [(None, 0), (None, 1)],
        [(None, 1), (None, 0)],
        [(0, None), (None, 1)],
    ]


def test_the_lines_of_code():
    model, x, dy = small()
    first, _, addition, *_ = recorded(model, x, dy)
    assert first.where[0] == __file__
    texts = [line.text for line in first.lines]
    assert texts[0] == "y = F.residual_add(x, self.branch(x))" and "F.conv2d(input, self.weight" in texts[-1]
    assert [line.module for line in first.lines] == ["", "branch", "branch.0"]
    assert [line.text for line in addition.lines] == texts[:1]
    with debug.record() as record:
        x + 1.0
    assert [line.text for line in record[0].lines] == ["x + 1.0"] and record[0].lines[0].file == __file__
    library = minires.create_model("resnet8")
    with debug.record() as record:
        library(Tensor(np.zeros((2, 3, 8, 8)), dtype="float32"))
    texts = [line.text for line in record[3].lines]
    assert texts[0] == 'library(Tensor(np.zeros((2, 3, 8, 8)), dtype="float32"))' and "out = self.conv1(x)" in texts


def test_bytes():
    """The convolution keeps its input; ReLU its result; the linear layer its input, which looks at the sum's memory."""
    model, x, dy = small()
    record = recorded(model, x, dy)
    image, w, b = 6 * 2 * 5 * 4 * 8, 2 * 2 * 3 * 3 * 8, 2 * 8
    fc_w, fc_b = 3 * 40 * 8, 3 * 8
    assert [row.cache_bytes for row in record] == [image + w, image, 0, 0, image + fc_w]
    assert [row.kept_bytes for row in record] == [image, image, 0, 0, image]
    # No gradient goes to x; both inputs of an addition get one array.
    assert [row.grad_bytes for row in record] == [w + b, image, image, image, image + fc_w + fc_b]
    assert [row.result_bytes for row in record] == [image, image, image, image, 6 * 3 * 8]


def test_what_two_operations_need_is_kept_once():
    x = Tensor(np.arange(1.0, 7.0), requires_grad=True)
    with debug.record() as record:
        y = x * x
        z = y * y
        z.log()
    assert [row.cache_bytes for row in record] == [48, 48, 48] and [row.kept_bytes for row in record] == [48, 48, 48]
    with debug.record() as record:
        y = x.exp()
        y.log()
    assert [row.kept_bytes for row in record] == [48, 0], "exp keeps its result, which log needs too"


def test_times_are_positive_and_lie_within_the_whole():
    model, x, dy = small()
    record = recorded(model, x, dy)
    times = [t for row in record for t in (row.forward_ms, row.backward_ms)]
    assert min(times) > 0 and sum(times) <= record.elapsed_ms


def test_time_that_a_record_spends_itself_is_left_out(monkeypatch):
    """A clock that counts its readings, and statistics that take a thousand seconds."""
    clock = [0.0]

    def perf_counter():
        clock[0] += 1.0
        return clock[0]

    def slow(array):
        clock[0] += 1000.0
        return original(array)

    original = debug.record.__globals__["statistics"]
    monkeypatch.setitem(debug.record.__globals__, "statistics", slow)
    monkeypatch.setattr("time.perf_counter", perf_counter)
    x = Tensor(np.ones(3), requires_grad=True)
    with debug.record() as outer, debug.record() as inner:
        (x * 2).sum().backward()
    for record in (outer, inner):
        assert len(record) == 2 and record.elapsed_ms < 500_000
        assert all(0 < t < 500_000 for row in record for t in (row.forward_ms, row.backward_ms))


# ---- Where it is used ----------------------------------------------------------------------------------------------


def test_without_gradients():
    model, x, dy = small()
    expected = recorded(model, x, dy)
    with no_grad(), debug.record() as record:
        model(x)
    assert [(r.operation, r.module, r.mean, r.inputs) for r in record] == [
        (r.operation, r.module, r.mean, r.inputs) for r in expected
    ]
    assert all(r.cache_bytes == r.kept_bytes == 0 and r.grad_norm is r.backward_ms is None for r in record)


def test_in_place_under_no_grad():
    x = Tensor(np.array([-1.0, 2.0, 3.0]))
    with no_grad(), debug.record() as record:
        y = x * 1.0
        F.relu(y, inplace=True)
    assert record[0].mean == pytest.approx(4 / 3) and record[1].mean == pytest.approx(5 / 3)
    assert record[1].inputs[0].row == 0


def test_functions_of_tensors_without_a_module():
    x = Tensor(np.array([1.0, 4.0]), requires_grad=True)
    with debug.record() as record:
        x.sqrt().sum().backward()
    assert [(r.operation, r.module, r.modules) for r in record] == [("sqrt", "", ()), ("sum", "", ())]
    assert record[0].grad_norm == pytest.approx(np.sqrt(2))
    assert "test_record.py:" in str(record)


def test_batch_norm_in_training_and_evaluation():
    layer = nn.BatchNorm2d(3)
    x = Tensor(np.random.default_rng(0).standard_normal((4, 3, 5, 2)), dtype="float32", requires_grad=True)
    with debug.record() as record:
        layer(x).sum().backward()
    with debug.record() as evaluation:
        layer.eval()(x).sum().backward()
    assert [r.operation for r in record] == ["batch_norm", "sum"]
    assert [r.operation for r in evaluation] == ["batch_norm_inference", "sum"]
    assert record[0].std == pytest.approx(1, abs=1e-4) and record[0].grad_norm == pytest.approx(np.sqrt(120))
    assert evaluation[0].grad_norm is not None and evaluation[0].forward_ms > 0


def test_nested_records_see_the_same():
    model, x, dy = small()
    with debug.record() as outer:
        first = model(x)
        with debug.record() as inner:
            second = model(x)
            second.backward(dy)
        first.backward(dy)
    assert len(outer) == 10 and len(inner) == 5
    assert (
        [r.grad_norm for r in inner] == [r.grad_norm for r in outer.rows[5:]] == [r.grad_norm for r in outer.rows[:5]]
    )


def test_a_graph_from_before_the_record_is_passed_over():
    model, x, dy = small()
    early = model(x)
    with debug.record() as record:
        early.backward(dy)
    assert len(record) == 0


def test_the_last_of_several_backwards_counts():
    model, x, dy = small()
    with debug.record() as record:
        y = model(x)
        y.backward(dy, retain_graph=True)
        y.backward(-3 * dy)
    expected = recorded(model, x, dy)
    for row, once in zip(record, expected, strict=True):
        assert row.grad_norm == pytest.approx(3 * once.grad_norm)


def test_operations_whose_memory_was_used_again_are_told_apart():
    """Nodes and tensors that are gone leave their ids to later ones."""
    x = Tensor(np.ones(3), requires_grad=True)
    with debug.record() as record:
        for _ in range(50):
            y = x * 2.0
            del y
        y = x * 2.0
        y.backward(np.array([3.0, 0.0, 4.0]))
    assert [r.grad_norm for r in record] == [None] * 50 + [5.0]
    assert all(i.row is None for r in record for i in r.inputs)


def test_two_networks_are_told_apart():
    x = small()[1]
    with no_grad(), debug.record() as record:
        small()[0].branch(x)
        small()[0].branch(x)
    assert [r.modules[0].root for r in record] == [0, 0, 1, 1]


def test_another_thread_is_not_recorded():
    x = Tensor(np.ones(3))
    with debug.record() as record:
        thread = threading.Thread(target=x.exp)
        thread.start()
        thread.join()
        x.log()
    assert [r.operation for r in record] == ["log"]


# ---- What it leaves ------------------------------------------------------------------------------------------------


def test_no_array_lives_longer():
    x = Tensor(np.ones((3, 4)), requires_grad=True)
    with debug.record() as record:
        y = x.exp()
        z = (y * y).sum()
        watched = [weakref.ref(t.array) for t in (y, z)]
        del y, z
        assert [reference() for reference in watched] == [None, None], "inside the with"
    assert len(record) == 3


def test_nothing_is_held_after_the_with():
    model, x, dy = small()
    record = recorded(model, x, dy)
    watched = [weakref.ref(model), weakref.ref(x), weakref.ref(model.fc.weight)]
    del model, x, dy
    gc.collect()
    assert [reference() for reference in watched] == [None] * 3
    assert len(str(record).splitlines()) == 5 + 5


def test_what_ran_before_an_exception_is_kept():
    model, _, _ = small()
    record = debug.record()
    with pytest.raises(ValueError), record:
        model(Tensor(np.ones((6, 2, 5, 5))))
    assert [r.operation for r in record] == ["conv2d", "relu", "residual_add", "reshape"]
    assert mode.watchers == ()


def test_it_leaves_the_other_watchers_alone():
    first, second = debug.record(), debug.record()
    first.__enter__()
    second.__enter__()
    first.__exit__()
    assert mode.watchers == (second,)
    second.__exit__()
    assert mode.watchers == ()


def test_a_record_is_used_once():
    record = debug.record()
    with record:
        pass
    with pytest.raises(RuntimeError, match="used once"), record:
        pass
    assert mode.watchers == ()


def test_numbers_and_bits_are_those_without_it():
    model, x, dy = small("float32")
    plain = model(x)
    plain.backward(dy)
    expected = [plain.detach().numpy(), *[p.grad.numpy() for p in model.parameters()]]
    model.zero_grad()
    with debug.record():
        y = model(x)
        y.backward(dy)
    for a, b in zip(expected, [y.detach().numpy(), *[p.grad.numpy() for p in model.parameters()]], strict=True):
        assert a.tobytes() == b.tobytes()


# ---- Hard values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, outside", [([1.0, np.nan, 0.0], 1), ([np.inf, -np.inf], 2), ([1e308, -1e308], 2), ([2.0, 2.0], 0), ([], 0)]
)
def test_values_that_are_not_finite_equal_or_missing(values, outside, tmp_path):
    x = Tensor(np.array(values), requires_grad=True)
    with np.errstate(all="ignore"), debug.record() as record:
        (x * 1.0).backward(np.array(values))
    row = record[0]
    assert row.histogram.outside == row.grad_histogram.outside == outside
    assert sum(row.histogram.counts) == len(values) - outside and len(row.histogram.counts) == BINS
    assert np.isnan(row.mean) == (outside > 0 and 1e308 not in values or not values)
    str(record)
    record.to_csv(tmp_path / "ops.csv")
    record.plot(tmp_path / "ops.png")
    record.save_html(tmp_path / "trace.html")


def test_whole_numbers():
    with debug.record() as record:
        Tensor([1, 0, 2, 0]).reshape(2, 2)
    assert (record[0].mean, record[0].zeros, record[0].dtype) == (0.75, 0.5, "int64")


# ---- Table, CSV, charts --------------------------------------------------------------------------------------------


def test_the_table():
    model, x, dy = small()
    record = recorded(model, x, dy)
    lines = str(record).splitlines()
    assert lines[0].split() == "operation module shape mean std zeros grad norm forward backward result kept".split()
    assert lines[2].split()[:3] == ["conv2d", "branch.0", "6x2x5x4"] and lines[4].split()[:2] == [
        "residual_add",
        "Small",
    ]
    assert f"{record[1].zeros:.1%}" in lines[3] and f"{record[4].grad_norm:.3g}" in lines[6]
    assert lines[-2].startswith("5 operations") and lines[-1].startswith("between the operations: ")
    assert not any(line.endswith(" ") for line in lines)
    assert repr(record) == "<record of 5 operations>"


@pytest.mark.parametrize(
    "count, text",
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**21, "2.0 MiB"), (2**50, "1048576.0 GiB")],
)
def test_memory_in_words(count, text):
    assert table.memory(count) == text


def test_the_csv_file_has_the_numbers_in_full(tmp_path):
    model, x, dy = small("float32")
    record = recorded(model, x, dy)
    record.to_csv(tmp_path / "ops.csv")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "ops.csv").read_text())))
    assert len(lines) == 5 and lines[0]["input_shapes"] == "6x2x5x4 2x2x3x3 2"
    for line, row in zip(lines, record, strict=True):
        assert (line["operation"], line["module"], line["file"]) == (row.operation, row.module, __file__)
        for name in ("mean", "std", "zeros", "grad_norm", "forward_ms", "backward_ms"):
            assert float(line[name]) == getattr(row, name), name
        for name in ("result_bytes", "cache_bytes", "kept_bytes", "grad_bytes"):
            assert int(line[name]) == getattr(row, name), name
    with no_grad(), debug.record() as record:
        model(x)
    record.to_csv(str(tmp_path / "ops.csv"))
    assert {line["grad_norm"] for line in csv.DictReader(io.StringIO((tmp_path / "ops.csv").read_text()))} == {""}


def test_the_charts_show_the_numbers(tmp_path):
    model, x, dy = small()
    record = recorded(model, x, dy)
    figure = record.plot(tmp_path / "ops.png")
    assert (tmp_path / "ops.png").read_bytes().startswith(b"\x89PNG")
    spread, gradient, time, memory = figure.axes
    np.testing.assert_array_equal(spread.lines[0].get_ydata(), [r.std for r in record])
    np.testing.assert_array_equal(gradient.lines[0].get_ydata(), [r.grad_norm for r in record])
    forward, both = (patch.get_data() for patch in time.patches)
    np.testing.assert_array_equal(forward.values, [r.forward_ms for r in record])
    np.testing.assert_array_equal(both.baseline, forward.values)
    np.testing.assert_array_equal(both.values, [r.forward_ms + r.backward_ms for r in record])
    result, kept = (patch.get_data().values * 2**20 for patch in memory.patches)
    np.testing.assert_allclose(result, [r.result_bytes for r in record])
    np.testing.assert_allclose(kept, [r.kept_bytes for r in record])
    record.plot(tmp_path / "ops.svg")
    assert "<svg" in (tmp_path / "ops.svg").read_text()


def test_the_charts_of_nothing_and_of_a_forward_alone(tmp_path):
    with debug.record() as record:
        pass
    record.plot(tmp_path / "nothing.png")
    assert str(record).splitlines()[2].startswith("-")
    with no_grad(), debug.record() as record:
        small()[0](small()[1])
    record.plot(tmp_path / "forward.png")
    assert record.plot() is not None


def test_the_parts_of_a_network_are_named_above_the_charts():
    model = minires.create_model("resnet20", in_channels=1)
    with no_grad(), debug.record() as record:
        model(Tensor(np.zeros((1, 1, 8, 8)), dtype="float32"))
    names = [name for _, name in charts.stages(record.rows)]
    assert names == ["conv1", "bn1", "relu", "layer1", "layer2", "layer3", "avgpool", "", "fc"]
    top = record.plot().axes[0].child_axes[0]
    assert [text.get_text() for text in top.get_xticklabels()] == ["layer1", "layer2", "layer3"]


def test_matplotlib_is_not_loaded_before_it_draws():
    code = "import sys; from minires import debug; assert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("write", ["to_csv", "plot", "save_html"])
def test_a_folder_that_is_not_there(write, tmp_path):
    with debug.record() as record:
        Tensor([1.0]).exp()
    with pytest.raises(OSError):
        getattr(record, write)(tmp_path / "missing" / "file.png")


def test_another_kind_of_picture_is_refused_and_the_old_file_stays(tmp_path):
    with debug.record() as record:
        Tensor([1.0]).exp()
    (tmp_path / "ops.txt").write_text("mine")
    with pytest.raises(ValueError, match="txt"):
        record.plot(tmp_path / "ops.txt")
    assert (tmp_path / "ops.txt").read_text() == "mine"
