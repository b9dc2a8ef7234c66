"""Several workers compute what one computes; and when one of them fails, all end, and say why.

The workers' programs are in workers.py. They run under mpiexec, and are skipped where mpi4py or mpiexec is missing.
"""

import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import minires.functional as F
import numpy as np
import pytest
import workers

import minires
from minires import nn
from minires.data import DataLoader
from minires.train import launch, parallel
from minires.train.training import evaluate

HERE = Path(__file__).parent
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # mpich's wheel puts it there
MPIEXEC = shutil.which("mpiexec", path=PATH)
MISSING = None if MPIEXEC and importlib.util.find_spec("mpi4py") else 'no mpi4py or no mpiexec: pip install ".[mpi]"'
LIMIT = 120  # seconds
pytestmark = pytest.mark.slow

needs_mpi = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def environment(**more):
    """One thread each, and no launcher's traces of an outer run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PMI_", "OMPI_COMM", "MPI_"))}
    may = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
    }
    waiting = {"MPIR_CVAR_POLLS_BEFORE_YIELD": "1"}  # more workers than cores: MPICH lets the others work sooner
    return {**kept, **may, **waiting, "OPENBLAS_NUM_THREADS": "1", **more}


def mpiexec(n, *command, folder, **more):
    """n processes of a Python command; more goes into their environment."""
    return subprocess.run(
        [MPIEXEC, "-n", str(n), sys.executable, *map(str, command)],
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


def failed(n, *command, folder, **more):
    """What n processes that fail say on stderr, and their exit status."""
    begin = time.monotonic()
    result = mpiexec(n, *command, folder=folder, **more)
    assert result.returncode != 0, result.stdout
    assert time.monotonic() - begin < LIMIT / 2, "it took too long to end"
    return result.stderr, result.returncode


#: What so many workers are asked for.
PROGRAMS = {
    1: ["sync"],
    2: ["sync", "no_bound_and_adam", "device", "per_worker", "judged", "buckets", "other_ways"],
    3: [
        *("sync", "counted", "own_loop", "per_worker", "buckets", "other_ways", "start"),
        *("other_models", "other_data", "other_seed", "few_images", "uneven", "bad_image"),
    ],
}


@functools.cache
def job(n):
    """What all programs of n workers gave: one job runs them all."""
    with tempfile.TemporaryDirectory() as folder:
        result = mpiexec(n, HERE / "workers.py", "several", folder, *PROGRAMS[n], folder=folder)
        assert result.returncode == 0, result.stderr
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(n)]


def program(n, name):
    """What a program of workers.py gave on each of n workers."""
    return [worker[name] for worker in job(n)]


def furthest(a, b):
    """The largest difference between the numbers of two results of one structure."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return max([furthest(a[name], b[name]) for name in a], default=0.0)
    if a is None or b is None:
        assert a is b
        return 0.0
    return float(np.abs(np.array(a, float) - np.array(b, float)).max(initial=0.0))


@functools.cache
def one_worker(name):
    """What the program gives in this process, without MPI."""
    return json.loads(json.dumps(getattr(workers, name)()))


# ---- Several compute what one computes ------------------------------------------------------------------------------


@needs_mpi
@pytest.mark.parametrize("n", [1, 2, 3])
def test_synchronised_workers_do_what_one_does(n):
    """Fifty steps: shuffled, augmented, clipped, averaged, with an uneven last batch."""
    alone, several = one_worker("sync"), program(n, "sync")
    assert alone["lines"][-1][2] < alone["lines"][0][2] - 0.1, "it learned nothing"
    assert any(name.startswith("average.") for name in alone["arrays"])
    for worker in several:
        assert furthest(alone["arrays"], worker["arrays"]) < 1e-9
        assert furthest(alone["lines"], worker["lines"]) < 1e-9
        assert worker["arrays"] == several[0]["arrays"], "the weights are the same, bit for bit"
    assert [worker["printed"] for worker in several] == [13] + [0] * (n - 1)


@needs_mpi
def test_other_options_do_what_one_does():
    alone, several = one_worker("no_bound_and_adam"), program(2, "no_bound_and_adam")
    assert furthest(alone["arrays"], several[1]["arrays"]) < 1e-9


@needs_mpi
def test_right_answers_are_counted_whole():
    alone, several = one_worker("counted"), program(3, "counted")
    assert furthest(alone, several[0]) < 1e-9


@needs_mpi
def test_arrays_on_a_device_travel_through_the_host():
    alone, several = one_worker("device"), program(2, "device")
    assert all(furthest(alone, worker) < 1e-9 for worker in several)


@needs_mpi
def test_a_loop_of_ones_own():
    alone, several = one_worker("own_loop"), program(3, "own_loop")
    assert all(furthest(alone, worker) < 1e-9 for worker in several)


@needs_mpi
@pytest.mark.parametrize("n", [2, 3])
def test_batch_norm_by_worker(n):
    """Gradients are those of the mean of the parts' losses; the statistics are each worker's own."""
    grads, means = {}, []
    for rank in range(n):
        model = workers.Net()
        loader = DataLoader(workers.images(workers.BATCH, 3), workers.BATCH, num_replicas=n, rank=rank)
        x, labels = next(iter(loader))
        (F.cross_entropy(model(x), labels) / n).backward()
        means.append(model.bn1.running_mean.numpy().tolist())
        for name, p in model.named_parameters():
            grads[name] = grads.get(name, 0) + p.grad.numpy()
    for rank, worker in enumerate(program(n, "per_worker")):
        assert furthest({name: grad.tolist() for name, grad in grads.items()}, worker["grads"]) < 1e-14
        assert furthest(means[rank], worker["mean"]) < 1e-14
    assert furthest(means[0], means[1]) > 1e-3


@needs_mpi
def test_all_judge_the_model_that_is_kept():
    """Each has its part of the test images, and all the running statistics of rank 0."""
    for reported, kept in program(2, "judged"):
        assert reported == pytest.approx(kept, rel=1e-12)


@needs_mpi
@pytest.mark.parametrize("n", [2, 3])
def test_buckets(n):
    """Parameters used twice, never, and by one worker only; two dtypes; gradients that were there before."""
    expected = {}
    for rank in range(n):
        model, loss = workers.odd(rank, n)
        loss.backward(np.float64(1 / n))
        for name, p in model.named_parameters():
            if p.grad is not None:
                expected[name] = expected.get(name, 0) + 2 * p.grad.numpy().astype(float)
    assert set(expected) == {"twice", "sometimes", "single", "large"}
    several = program(n, "buckets")
    for worker in several:
        assert worker["grads"]["never"] is worker["grads"]["frozen"] is None
        for name, grad in expected.items():
            assert furthest(grad.tolist(), worker["grads"][name]) < (1e-5 if name == "single" else 1e-13)
        assert worker["seconds"] > 0
        for sent, count in worker["sent"]:
            assert 0 < sent <= count and count >= 3, "some leave while backward goes on"


@needs_mpi
@pytest.mark.parametrize("n", [2, 3])
def test_workers_that_go_other_ways(n):
    """Gradients and the sums of synchronised batch norm come in another order on the worker with a layer more."""
    several = program(n, "other_ways")
    assert several[0]["bn2.sometimes"] != [0.0]
    assert all(worker == several[0] for worker in several)


@needs_mpi
def test_the_start():
    several = program(3, "start")
    for worker in several:
        assert worker["weights"] == workers.Net(0).fc.weight.detach().numpy().tolist()
        assert worker["first"] == [0, "said"] and "no such page" in worker["said"]
        assert worker["total"] == [3, 6, 9]
        assert worker["alone"] == [0, 1, 1]
        assert furthest(evaluate(workers.Net(0), workers.images(7, 2)), worker["score"]) < 1e-12, "6 are cut, 1 is not"


# ---- Kept and taken up again -----------------------------------------------------------------------------------------


def weights(folder):
    from minires.data.checkpoint import load

    return {name: tensor.numpy().tolist() for name, tensor in load(folder / "last.safetensors").items()}


@needs_mpi
def test_a_run_goes_on_with_another_number_of_workers(tmp_path):
    """One undisturbed worker; and three, cut off after step 5, then two, cut off after 10, then one."""
    alone, several = tmp_path / "alone", tmp_path / "several"
    for n, folder, stop, resume in ((1, alone, -1, 0), (3, several, 5, 0), (2, several, 10, 1), (1, several, -1, 1)):
        result = mpiexec(n, HERE / "workers.py", "whole_run", ".", folder, stop, resume, "true", folder=tmp_path)
        if stop >= 0:
            assert (folder / "checkpoint.safetensors").exists(), result.stderr
        if n == 3:
            before = (several / "config.json").stat().st_mtime_ns
            said, _ = failed(5, HERE / "workers.py", "whole_run", ".", several, -1, 1, "true", folder=tmp_path)
            assert "multiple of their number, 5" in said
            assert (several / "config.json").stat().st_mtime_ns == before, "a run that is refused stays as it is"
    assert furthest(weights(alone), weights(several)) < 1e-9
    lines = [np.loadtxt(folder / "metrics.csv", delimiter=",", skiprows=1) for folder in (alone, several)]
    assert lines[0].shape == (4, 6) and np.abs(lines[0] - lines[1]).max() < 1e-9


@needs_mpi
def test_a_run_goes_on_to_the_same_bits(tmp_path):
    """Batch norm by worker: rank 0's statistics are kept, and two workers go on as if nothing had happened."""
    for folder, stop, resume in (("a", -1, 0), ("b", 10, 0), ("b", -1, 1)):
        mpiexec(2, HERE / "workers.py", "whole_run", ".", folder, stop, resume, "false", folder=tmp_path)
    for name in ("last.safetensors", "metrics.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert not list(tmp_path.glob("*/checkpoint*")), "finished"


@needs_mpi
def test_minires_train(tmp_path):
    """The command: rank 0 alone prints and writes, and the numbers are those of one worker."""
    line = ["-m", "minires", "train", "--model", "resnet8", "--steps", "4", "--epochs", "1", "--sync-batch-norm"]
    outputs = [mpiexec(n, *line, "--out", f"run{n}", folder=tmp_path) for n in (1, 2)]
    for n, result in zip((1, 2), outputs, strict=True):
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("recipe digits:") == 1 and result.stdout.count("test accuracy") == 1
        assert result.stderr.count("100%") >= 1
        assert {path.name for path in (tmp_path / f"run{n}").iterdir()} == {
            "config.json",
            "curves.png",
            "last.safetensors",
            "metrics.csv",
        }
    one, two = (np.loadtxt(tmp_path / f"run{n}" / "metrics.csv", delimiter=",", skiprows=1) for n in (1, 2))
    np.testing.assert_allclose(one, two, rtol=1e-4)
    assert not (tmp_path / "runs").exists()


# ---- Failures --------------------------------------------------------------------------------------------------------


@needs_mpi
def test_a_worker_that_throws(tmp_path):
    said, status = failed(3, HERE / "workers.py", "raises", ".", folder=tmp_path)
    assert status == 1 and "rank 1 of 3:\nTraceback" in said and "KeyError: 'a mistake in the data'" in said
    assert said.count("Traceback") == 1 and "in raises" in said


@needs_mpi
def test_all_workers_throw(tmp_path):
    said, status = failed(3, HERE / "workers.py", "all_raise", ".", folder=tmp_path)
    assert status == 1 and said.count("Traceback") == 1 and "rank 0 of 3:" in said


@needs_mpi
def test_a_worker_that_is_killed(tmp_path):
    _, status = failed(3, HERE / "workers.py", "killed", ".", folder=tmp_path)
    assert status != 0


@needs_mpi
@pytest.mark.parametrize("how", ["code", "normally", "early"])
def test_a_worker_that_leaves(how, tmp_path):
    """With sys.exit(3); at its end, as if it had fewer steps; before it started MPI, while the others wait there."""
    said, status = failed(2, HERE / "workers.py", "leaves", ".", how, folder=tmp_path)
    words = "Timeout" if how == "early" else "rank 0 of 2 waits for rank 1, whose program is at its end"
    assert words in said and status == 1, said


@needs_mpi
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("other_seed", "--seed is 0 on ranks 0, 1 and 1 on rank 2"),
        ("uneven", "--batch-size counts the images of all workers and must be a multiple of their number, 3"),
        ("bad_image", "the images themselves are not finite"),
        ("other_models", r"fc.weight is float64 \(3, 4\) on ranks 0, 2 and float64 \(5, 4\) on rank 1; fc.bias is"),
        ("other_data", r"the checksum of the data is \w+ on rank 0 and \w+ on rank 1 and \w+ on rank 2"),
        ("few_images", "3 workers need 6 training images at least, and there are 3"),
    ],
)
def test_workers_that_do_not_fit(name, words):
    said = program(3, name)
    assert re.search(words, said[0]) and said == [said[0]] * 3


@needs_mpi
def test_workers_of_other_versions(tmp_path):
    said, _ = failed(3, HERE / "workers.py", "other_version", ".", folder=tmp_path)
    assert re.search(r"NumPy is [\d.]+ on ranks 0, 2 and 1.0 on rank 1", said), said
    assert said.count("Traceback") == said.count("rank 0 of 3:") == 1


@needs_mpi
def test_what_a_user_does_wrong_is_said_once(tmp_path):
    said, status = failed(2, "-m", "minires", "train", "--model", "resnt20", folder=tmp_path)
    assert status == 2 and "Traceback" not in said and said.count("unknown model 'resnt20'") == 1, said
    mistakes = {
        "--no-such": "unrecognized arguments: --no-such",
        "--batch-size 33": "--batch-size counts the images of all workers and must be a multiple of their number, 2",
        "--data nowhere/here": "nowhere/here",
        "--resume nothing": "no run is there to go on with",
        "--lr 1e9 --model resnet8": "training has diverged",
    }
    result = mpiexec(2, HERE / "workers.py", "wrong", ".", *mistakes, folder=tmp_path)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    for words in mistakes.values():
        assert result.stderr.count(words) == 1, result.stderr


@needs_mpi
def test_other_commands_run_in_each_process_on_their_own(tmp_path):
    result = mpiexec(2, "-m", "minires", "bench", "--mpi", folder=tmp_path)
    assert result.returncode == 2 and result.stderr.count("leave mpiexec out") == 2, result.stderr
    result = mpiexec(2, "-m", "minires", "predict", "no.png", "--model", "resnet8", "--weights", "no", folder=tmp_path)
    assert result.stderr.count("minires predict") == 2, result.stderr


@needs_mpi
def test_other_options_on_another_worker(tmp_path):
    for option, words in (
        ("--lr=0.2", "--lr is 0.05 on rank 0 and 0.2 on rank 1"),
        ("--no-such", "rank 1 of 2:\nTrace"),
    ):
        command = [sys.executable, "-m", "minires", "train"]
        line = [MPIEXEC, "-n", "1", *command, ":", "-n", "1", *command, option]
        result = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=LIMIT)
        assert result.returncode == 2 and words in result.stderr, result.stderr
        assert not (tmp_path / "runs").exists()


@needs_mpi
def test_ctrl_c_stops_all_between_two_steps(tmp_path):
    line = [MPIEXEC, "-n", "2", sys.executable, str(HERE / "workers.py"), "slow", "."]
    started = subprocess.Popen(
        line, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        begin = time.monotonic()
        while not (tmp_path / "step-1").exists() or (tmp_path / "step-1").read_text() in ("", "1", "2"):
            assert started.poll() is None and time.monotonic() - begin < LIMIT
            time.sleep(0.05)
        started.send_signal(signal.SIGINT)
        printed, said = started.communicate(timeout=LIMIT)
    finally:
        started.kill()
    assert started.returncode == 130, said
    assert "interrupted after 0 epochs" in printed and said.count("stopping after this step") == 1
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()


@pytest.fixture
def without_mpi4py(tmp_path):
    """An environment in which mpi4py cannot be imported."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "mpi4py.py").write_text("raise ImportError('No module named mpi4py')\n")
    return {"PYTHONPATH": os.pathsep.join([str(hidden), str(Path(minires.__file__).parent.parent)])}


@pytest.mark.parametrize(
    "started",
    [
        {"PMI_SIZE": "4", "PMI_RANK": "0"},
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"},
        {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"},
    ],
)
def test_a_launcher_without_mpi4py(started, without_mpi4py, tmp_path):
    """One sentence from the first of the four, and nothing from the others."""
    line = [sys.executable, "-m", "minires", "train", "--steps", "1"]
    for rank in ("0", "3"):
        variables = {**started, [name for name in started if not name.endswith(("SIZE", "TASKS"))][0]: rank}
        result = subprocess.run(
            line,
            cwd=tmp_path,
            env=environment(**without_mpi4py, **variables),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 2 and result.stdout == ""
        said = "a launcher started 4 processes, and mpi4py cannot be used (No module named mpi4py)"
        assert (said in result.stderr and len(result.stderr.splitlines()) == 1) if rank == "0" else not result.stderr


@needs_mpi
def test_an_mpi_that_is_not_the_launchers(tmp_path):
    """Without a launcher's socket MPI sees one process, however many there are."""
    line = [sys.executable, "-m", "minires", "train", "--steps", "1"]
    alien = environment(OMPI_COMM_WORLD_SIZE="4", OMPI_COMM_WORLD_RANK="0")
    result = subprocess.run(line, cwd=tmp_path, env=alien, capture_output=True, text=True, timeout=LIMIT)
    assert result.returncode == 2 and "they belong to two kinds of MPI" in result.stderr, result.stderr


def test_one_worker_never_imports_mpi4py(without_mpi4py, tmp_path):
    code = (
        "import sys; from minires import parallel, cli; status = cli.main(sys.argv[1:])\n"
        "assert parallel.size() == 1 and parallel.rank() == 0 and 'mpi4py' not in sys.modules; sys.exit(status)"
    )
    line = [sys.executable, "-c", code, "train", "--model", "resnet8", "--steps", "1", "--epochs", "1"]
    variables = environment(**without_mpi4py, PMI_SIZE="1", PMI_RANK="0")
    result = subprocess.run(line, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=LIMIT)
    assert result.returncode == 0, result.stderr


# ---- The parts, in this process --------------------------------------------------------------------------------------


def test_what_differs_is_named():
    with pytest.raises(ValueError, match="^the workers are not alike: a is 1 on ranks 0, 2 and 2 on rank 1$"):
        launch.compare([{"a": 1, "b": 2}, {"a": 2, "b": 2}, {"a": 1, "b": 2}])
    with pytest.raises(ValueError, match="b is 2 on rank 0 and not there on rank 1; .* [(]and 2 more[)]$"):
        launch.compare([{"b": 2, "c": 1, "d": 1, "e": 1, "f": 1}, {}])
    launch.compare([{"a": 1}, {"a": 1}])


def test_alone_everything_is_what_it_is():
    x = np.arange(3.0)
    assert (parallel.rank(), parallel.size()) == (0, 1)
    same = parallel.total(x)
    assert same is not x and (same == x).all()
    assert parallel.first(max, 3, 4) == 4
    model, other = workers.Net(), workers.Net()
    data = workers.images(6, 0)
    for one, backward in ((model, lambda loss: loss.backward()), (other, None)):
        loss = F.cross_entropy(one(minires.from_numpy(data.images)), minires.from_numpy(data.labels))
        backward(loss) if backward else parallel.backward(loss, one.parameters())
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert p.grad.numpy().tobytes() == q.grad.numpy().tobytes()


def test_convert_sync_batchnorm():
    model = minires.create_model("resnet8")
    before, parameters = model.state_dict(), list(model.parameters())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert converted is model
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(layers) == 7 and all(type(layer) is nn.SyncBatchNorm for layer in layers)
    assert list(model.state_dict()) == list(before)
    assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))
    assert all(np.shares_memory(a.array, before[name].array) for name, a in model.state_dict().items())
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm2d(3))) is nn.SyncBatchNorm
    assert nn.SyncBatchNorm(3).total is None, "a single worker runs plain batch norm"
