"""minires bench --mpi: the model of data-parallel training, what is measured for it, and the report."""

import json

import numpy as np
import pytest
from test_parallel import needs_mpi

from minires import cli
from minires.bench import mpi, scaling
from minires.bench.networks import Network
from minires.bench.scaling import GOYAL, Link, Work, efficiency, ring_seconds, step_seconds

LINK = Link("a link", 1e-3, 1e6)


def ring(workers, size):
    """A ring on whole numbers of bytes, message by message: the rounds that all workers make, the longest of each."""
    lengths = [len(piece) for piece in np.array_split(np.zeros(size), workers)]
    return [max(lengths)] * (2 * (workers - 1))


@pytest.mark.parametrize("workers, size", [(1, 6000), (2, 6000), (3, 6000), (7, 7007), (16, 160)])
def test_a_ring_takes_as_long_as_its_messages(workers, size):
    expected = sum(LINK.seconds(length) for length in ring(workers, size))
    assert ring_seconds(size, workers, LINK) == pytest.approx(expected)


def test_the_gradient_is_sent_less_than_twice():
    free = Link("no latency", 0.0, 1e6)
    for workers in scaling.WORKERS[1:]:
        assert 1 <= ring_seconds(1e6, workers, free) < 2
    assert ring_seconds(1e6, 1024, free) == pytest.approx(2 * 1023 / 1024)
    assert ring_seconds(0, 1024, LINK) == pytest.approx(2 * 1023 * 1e-3), "what is left is latency"


def test_efficiency_is_the_share_of_computation():
    work = Work("some work", 3.0, 2_000_000)
    assert efficiency(work, 1, LINK) == 1
    assert step_seconds(work, 2, LINK) == pytest.approx(3 + 2 * (1e-3 + 1))
    assert efficiency(work, 2, LINK) == pytest.approx(3 / 5.002)


def test_the_published_run():
    """An hour, 90 epochs, batches of 8,192; and the model comes near, though nothing overlaps in it."""
    assert GOYAL.work.compute * GOYAL.machines * 256 == pytest.approx(0.9 * 3600 * 8192 / (90 * 1_281_167 / 8192))
    assert GOYAL.work.gradient == 4 * 25_557_032
    assert abs(efficiency(GOYAL.work, GOYAL.machines, GOYAL.link) - GOYAL.efficiency) < 0.05


def test_the_table_has_every_number_of_workers():
    lines = scaling.table(Work("some work", 0.5, 1_000_000), scaling.NETWORKS).splitlines()
    assert lines[0] == "some work: a step of one worker 0.5 s, gradient 1.0 MB"
    assert [line.split()[0] for line in lines[2:]] == [str(2**k) for k in range(11)]
    assert lines[2].split() == ["1"] + ["0.5", "s", "100.0%"] * 3
    seconds = 0.5 + 2 * (50e-6 + 1e6 / 2 / (1e9 / 8))
    assert lines[3].split()[1:4] == [f"{seconds:.3g}", "s", f"{0.5 / seconds:.1%}"]


def test_a_link_from_messages_to_and_fro():
    link = mpi.link_from([(size, LINK.seconds(size)) for size in mpi.SIZES])
    assert link.latency == pytest.approx(1e-3, rel=0.01) and link.bandwidth == pytest.approx(1e6, rel=0.01)


def test_workers_up_to_the_number_of_processors(monkeypatch):
    for count, expected in [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (12, [1, 2, 4, 8, 12])]:
        monkeypatch.setattr(mpi, "processors", lambda count=count: count)
        assert mpi.workers_here() == expected


@pytest.fixture
def jobs(monkeypatch):
    """Jobs that measured what is known: a second a step for one worker, and a fifth of two seconds in communication."""
    answers = {
        "ping-pong": [[size, LINK.seconds(size)] for size in mpi.SIZES],
        "large": {"step": [4.0, 6.0, 5.0], "communication": [0.0, 0.0, 0.0]},
    }
    steps = {1: {"step": [1.0], "communication": [0.0]}, 2: {"step": [2.0], "communication": [0.4]}}
    asked = []

    def job(workers, what):
        asked.append((workers, what))
        return steps[workers] if what == "steps" else answers[what]

    monkeypatch.setattr(mpi, "job", job)
    monkeypatch.setattr(mpi, "find_mpiexec", lambda: "mpiexec")
    monkeypatch.setattr(mpi, "processors", lambda: 2)
    return asked


def test_the_report(jobs, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "--mpi"]) == 0
    text = capsys.readouterr().out
    assert ["2", "2000", "50%", "20.0%"] in [line.split()[:4] for line in text.splitlines()]
    assert "by the model 87%" in text
    assert scaling.ASSUMPTIONS in text and "curves in scaling.png" in text
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    counts = [workers for workers, what in jobs if what == "steps"]
    assert counts == [1, 2] * mpi.ROUNDS, "in turn"


def test_json(jobs, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "--mpi", "--json", "--picture", "here.png"]) == 0
    found = json.loads(capsys.readouterr().out)
    one, two = found["scaling"]
    assert (one["efficiency"], two["efficiency"], two["communication_share"]) == (1.0, 0.5, 0.2)
    assert found["works"][0]["gradient"] == 4 * 269_722 and found["works"][1]["gradient"] == 4 * 25_557_032
    assert found["works"][1]["compute"] == 5.0
    assert two["model"] == pytest.approx(1 + 2 * (1e-3 + 2 * 269_722 / 1e6), rel=0.01)
    assert (tmp_path / "here.png").exists()


@pytest.mark.parametrize(
    "more, words",
    [
        (["--threads", "2"], "leave out --threads"),
        (["--only", "conv"], "leave out --threads and --only"),
        (["--picture", "scaling.txt"], "--picture"),
        (["--picture", "nowhere/scaling.png"], "no such folder"),
    ],
)
def test_refused_in_one_line(jobs, capsys, more, words):
    assert cli.main(["bench", "--mpi", *more]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1 and not jobs


def test_without_mpi_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "mpi4py", None)
    assert cli.main(["bench", "--mpi"]) == 2
    assert 'pip install "minires[mpi]"' in capsys.readouterr().err


@needs_mpi
def test_two_workers_are_measured(monkeypatch):
    """A job for real, of a small network."""
    found = mpi.job(2, "ping-pong")
    assert [size for size, _ in found] == mpi.SIZES and all(seconds > 0 for _, seconds in found)
    assert mpi.link_from(found).bandwidth > 1e6


@needs_mpi
def test_a_job_that_fails_says_why():
    with pytest.raises(RuntimeError, match="mpiexec -n 2 .nothing. failed"):
        mpi.job(2, "nothing")


def test_steps_alone_need_no_communication():
    pytest.importorskip("mpi4py")
    small = Network("a small step", "resnet8", 4, (3, 16, 16), training=True)
    found = mpi.time_steps(small, 0.0, 2)
    assert len(found["step"]) == len(found["communication"]) == 2
    assert all(step > 0 for step in found["step"]) and found["communication"] == [0.0, 0.0]


def test_the_picture_has_a_line_for_every_network(monkeypatch):
    drawn = []
    monkeypatch.setattr(mpi, "finished", lambda figure, path: drawn.append(figure))
    works = [Work("ResNet-20", 0.2, 1_078_888), Work("ResNet-50", 3.0, 102_228_128)]
    mpi.draw(mpi.ScalingReport([mpi.Scaled(1, 0.2, 0.0), mpi.Scaled(2, 0.3, 0.05)], LINK, works), "x.png")
    here, small, large = drawn[0].axes
    assert len(small.lines) == len(scaling.NETWORKS) and len(large.lines) == len(scaling.NETWORKS) + 2
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in (here, small, large))
