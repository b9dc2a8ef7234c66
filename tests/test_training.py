"""The main job: what a run computes, what it leaves behind, and how it refuses."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import minires
from minires import cli
from minires.data import ArrayDataset, digits
from minires.train import training
from minires.train.divergence import first_bad_layer
from minires.train.recipes import TrainOptions
from minires.train.run_checkpoint import read_checkpoint
from minires.train.runs import run
from minires.train.training import Training, evaluate, fit

FILES = {"config.json", "metrics.csv", "curves.png", "last.safetensors"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments):
    return [sys.executable, "-m", "minires", *arguments]


@pytest.mark.slow
def test_the_main_job(folder):
    """`minires train` as a user types it: accuracy, time, files, and what it prints."""
    start = time.perf_counter()
    result = subprocess.run(command("train"), capture_output=True, text=True, timeout=300)
    seconds = time.perf_counter() - start
    assert result.returncode == 0, result.stderr
    print(f"minires train: {result.stdout.splitlines()[-2]} in {seconds:.1f} s")
    left = folder / "runs" / "resnet20-digits"
    assert {path.name for path in left.iterdir()} == FILES
    rows = list(csv.DictReader((left / "metrics.csv").open()))
    assert list(rows[0]) == "epoch lr train_loss train_accuracy test_loss test_accuracy".split()
    assert [int(row["epoch"]) for row in rows] == list(range(1, 13))
    accuracy = float(rows[-1]["test_accuracy"])
    assert accuracy >= 0.985
    correct = round(accuracy * 360)
    assert f"test accuracy: {correct / 360:.2%} ({correct}/360)" in result.stdout.splitlines()
    assert "accuracy=" in result.stderr and "loss=" in result.stderr, "a progress bar"
    config = json.loads((left / "config.json").read_text())
    assert config["model"] == "resnet20" and config["seed"] == 0 and config["versions"]["numpy"] == np.__version__
    assert config["recipe"] == "digits" and len(config["result"]["epoch_seconds"]) == 12
    assert "  lr               0.05\n" in result.stdout, "the recipe is printed"
    assert (left / "curves.png").read_bytes().startswith(b"\x89PNG")
    model = minires.models.create_model("resnet20", in_channels=1)
    model.load_state_dict(minires.load(left / "last.safetensors"))
    assert evaluate(model, digits().test).correct == correct, "what was saved is what was reported"


def quick(**options):
    return TrainOptions(**{"model": "resnet8", "epochs": 1, **options})


def test_the_same_seed_gives_the_same_bits_and_another_does_not(folder):
    states = []
    for seed in (3, 3, 4):
        result = run(quick(seed=seed))
        states.append((result.folder / "last.safetensors").read_bytes())
    assert states[0] == states[1] != states[2]
    assert sorted(path.name for path in (folder / "runs").iterdir()) == [
        "resnet8-digits",
        "resnet8-digits-2",
        "resnet8-digits-3",
    ]


def test_learning_on_random_labels_stays_at_chance(folder, monkeypatch):
    """The test images choose nothing: with labels that mean nothing, the test accuracy is that of guessing."""
    split = digits()
    rng = np.random.default_rng(0)
    noise = ArrayDataset(split.train.images, rng.permutation(split.train.labels))
    monkeypatch.setitem(minires.data.DATASETS, "noise", lambda: split._replace(train=noise))
    result = run(quick(data="noise"), out="noise")
    assert 0.02 < result.score.accuracy < 0.25


def test_evaluate_counts_and_puts_the_mode_back():
    test = digits().test
    model = minires.models.create_model("resnet8", in_channels=1)
    one, other = evaluate(model, test, batch_size=7), evaluate(model, test, batch_size=360)
    assert one.correct == other.correct and one.loss == pytest.approx(other.loss, rel=1e-5) and one.count == 360
    assert model.training


@pytest.mark.skipif(os.name != "posix", reason="SIGINT is sent as POSIX has it")
def test_interrupting_saves_what_is_there(folder):
    process = subprocess.Popen(
        command("train", "--epochs", "500", "--out", "mine"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    metrics = folder / "mine" / "metrics.csv"
    deadline = time.time() + 60
    while time.time() < deadline and not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    while "interrupted: saving" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)  # people press it twice
    out, err = process.communicate(timeout=60)
    watchdog.cancel()
    assert process.returncode == 130, err
    assert "interrupted after" in out and "saved in mine" in out and "Traceback" not in err
    assert json.loads((folder / "mine" / "config.json").read_text())["result"]["interrupted"] is True
    assert "minires train --resume mine" in out
    checkpoints = {path.name for path in (folder / "mine").glob("checkpoint*")}
    assert {path.name for path in (folder / "mine").iterdir()} - checkpoints == FILES
    assert "checkpoint.safetensors" in checkpoints
    model = minires.models.create_model("resnet20", in_channels=1)
    model.load_state_dict(minires.load(folder / "mine" / "last.safetensors"))


def test_options_reach_the_run(folder):
    status = cli.main(
        "train --model resnet8 --epochs 2 --batch-size 100 --lr 0.03 --momentum 0.5 --weight-decay 0 --seed 7 "
        "--out mine --device cpu --data digits".split()
    )
    assert status == 0
    config = json.loads((folder / "mine" / "config.json").read_text())
    expected = {"model": "resnet8", "epochs": 2, "batch_size": 100, "lr": 0.03, "momentum": 0.5, "weight_decay": 0.0}
    assert {name: config[name] for name in expected} == expected and config["seed"] == 7


def test_a_last_batch_of_one_image_is_left_out(folder):
    """1,437 = 4 * 359 + 1, and a ResNet-18 on 8x8 pixels ends with one pixel."""
    split = digits()
    few = ArrayDataset(split.train.images[:9], split.train.labels[:9])
    model = minires.models.create_model("resnet18", in_channels=1, num_classes=10, stem="cifar")
    training.fit(model, few, few, TrainOptions(epochs=1, batch_size=4))


REFUSED = {
    "an unknown model": ("--model resnet1204", "unknown model 'resnet1204': did you mean 'resnet1202'?"),
    "an unknown data set": ("--data digit", "unknown data set 'digit': did you mean 'digits'?"),
    "an unknown recipe": ("--recipe cifar", "unknown recipe 'cifar': did you mean 'cifar-paper'?"),
    "a recipe without a data set": ("--recipe imagenet", "needs a data set: --data FOLDER"),
    "milestones behind the end": ("--schedule multi-step --milestones 5,12", "--milestones must be growing"),
    "milestones that fall": ("--schedule multi-step --milestones 5,3", "before the end (12 epochs), got 5,3"),
    "no milestones": ("--schedule multi-step", "--milestones must be growing"),
    "a warm-up of one-cycle": ("--warmup 2", "one-cycle has a warm-up of its own"),
    "a warm-up without end": ("--warmup 12 --schedule cosine", "--warmup must be below the run's 12 epochs"),
    "an unknown optimizer": ("--optimizer adem", "--optimizer must be one of sgd, adam, adamw"),
    "an unknown schedule": ("--schedule cyclic", "--schedule must be one of one-cycle, multi-step"),
    "an unknown augmentation": ("--augment flip", "--augment must be one of none, crop, crop-flip"),
    "smoothing of everything": ("--label-smoothing 1", "--label-smoothing must be at least 0 and below 1"),
    "an average that never moves": ("--ema 1", "--ema must be at least 0 and below 1"),
    "a time without end": ("--checkpoint-every 5d", "--checkpoint-every must be a number of steps, or a time"),
    "a checkpoint every zero steps": ("--checkpoint-every 0", "--checkpoint-every must be"),
    "nothing to go on with": ("--resume nowhere", "nowhere: no run is there to go on with"),
    "options of a run that goes on": ("--resume nowhere --lr 3 --out x", "leave out --lr, --out"),
    "no epochs": ("--epochs 0", "--epochs must be at least 1, got 0"),
    "an empty batch": ("--batch-size 0", "--batch-size must be at least 1, got 0"),
    "a negative rate": ("--lr -1", "--lr must be a finite number of at least 0, got -1.0"),
    "a rate that is no number": ("--lr nan", "--lr must be a finite number"),
    "a negative seed": ("--seed -1", "--seed must be at least 0"),
    "an unknown device": ("--device tpu", 'device: expected "cpu" or "cuda", got \'tpu\''),
    "a negative number of threads": ("--threads -1", "--threads must be at least 0"),
    "a folder inside a file": ("--out file/run", "--out: cannot write a run into file/run"),
    "a file for a folder": ("--out file", "--out: cannot write a run into file"),
    "an empty folder name": ("--out=", "--out must not be empty"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(folder, name, capsys):
    (folder / "file").write_text("not a folder")
    arguments, message = REFUSED[name]
    assert cli.main(["train", *arguments.split()]) == 2
    err = capsys.readouterr().err
    assert err.startswith("minires train: ") and message in err and err.count("\n") == 1
    assert {path.name for path in folder.iterdir()} <= {"file"}, "nothing was left behind"


def test_a_folder_that_holds_a_run_is_kept(folder, capsys):
    run(quick(), out="mine")
    before = (folder / "mine" / "last.safetensors").read_bytes()
    assert cli.main("train --out mine".split()) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (folder / "mine" / "last.safetensors").read_bytes() == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(folder, capsys):
    (folder / "locked").mkdir(mode=0o500)
    assert cli.main("train --out locked/run".split()) == 2
    assert "locked" in capsys.readouterr().err


def test_divergence_is_said_and_stops(folder, capsys):
    """The step, the rate, the layer, what helps, and the checkpoint from before, which is a good one."""
    assert cli.main("train --model resnet8 --lr 1e30 --epochs 3 --out mine --checkpoint-every 1".split()) == 2
    err = capsys.readouterr().err
    message = err[err.index("minires train: ") :]
    assert re.search(
        r"the loss became (nan|inf) at step \d+ \(epoch 1\), with learning rate [\d.]+e\+28: .* diverged", message
    )
    assert re.search(r"the first layer whose output is not finite is [\w.]+ \(", message)
    assert (
        "what usually helps, in a new run: a smaller rate (--lr 0.1), or --clip-norm 1\n" in message
        and "the last good checkpoint is mine/checkpoint.safetensors (step " in message
    )
    arrays = read_checkpoint(folder / "mine" / "checkpoint.safetensors").arrays
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_the_layer_where_it_began_is_named():
    """A weight in the middle is too large for float32: the layers before it are not blamed, and nothing is changed."""
    model = minires.models.create_model("resnet8", in_channels=1)
    model.layer2[0].conv2.weight.detach().array[...] = 1e38
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    images = minires.Tensor(digits().train.images[:5])
    with np.errstate(all="ignore"):
        assert first_bad_layer(model, images).endswith("is layer2.0.conv2 (Conv2d)")
    for name, value in model.state_dict().items():
        assert np.array_equal(value.numpy(), before[name]), name
    model.layer2[0].bn1.running_var.array[3] = np.nan  # unused in training
    model.layer2[0].conv2.weight.detach().array[...] = np.inf
    with np.errstate(all="ignore"):
        assert "conv2 (Conv2d); its weight held such numbers already" in first_bad_layer(model, images)
    assert "images themselves" in first_bad_layer(model, images * np.inf)


def test_a_checkpoint_is_never_written_of_weights_that_are_not_finite(tmp_path):
    split = digits()
    model = minires.models.create_model("resnet8", in_channels=1)
    progress = Training(model, split.train, split.test, quick())
    for place in (model.conv1.weight, model.bn1.running_mean):
        kept = place.array.copy()
        place.array[...] = np.nan
        with pytest.raises(FloatingPointError, match="is not finite any more at step 0"):
            progress.check_weights()
        place.array[...] = kept
    progress.check_weights()


@pytest.mark.slow
def test_a_test_loss_that_is_not_finite_names_the_layer_too(folder, capsys):
    """Each batch is normalised by itself in training; the running statistics overflow."""
    assert cli.main("train --lr 10 --epochs 2 --out mine".split()) == 2
    err = capsys.readouterr().err
    assert "the test loss became nan at step" in err and "the first layer whose output is not finite is" in err


def test_weights_that_end_up_infinite_are_a_divergence_too(folder, capsys):
    assert cli.main("train --model resnet8 --momentum 2 --epochs 1 --out mine".split()) == 2
    assert "diverged" in capsys.readouterr().err and not (folder / "mine" / "last.safetensors").exists()


def test_help_explains_the_command_with_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "minires train --model resnet20" in text
    assert cli.main([]) == 2
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    for option in "model data epochs batch-size lr momentum weight-decay seed out device".split():
        assert f"--{option} " in text
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0 and capsys.readouterr().out == f"minires {minires.__version__}\n"


def test_saving_never_loses_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    minires.save(path, {"a": np.ones(3)})
    assert minires.load(path)["a"].tolist() == [1, 1, 1]

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        minires.save(path, {"a": np.zeros(3)})
    assert minires.load(path)["a"].tolist() == [1, 1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    minires.save(path, {"a": np.ones((3, 2), np.float32), "b": minires.Tensor(5)})
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:5], b"", b"not a file of weights at all", whole + b"x"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged, or not a safetensors file"):
            minires.load(path)
    with pytest.raises(ValueError, match="file name that ends in"):
        minires.load(tmp_path / "weights.txt")
    with pytest.raises(TypeError, match=r"save\(path, state_dict\)"):
        minires.save({"a": np.ones(1)}, "weights.safetensors")
    with pytest.raises(FileNotFoundError):
        minires.load(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("wrong", [{"optimizer": "rmsprop"}, {"schedule": "onecycle"}, {"augment": "flip"}])
def test_fit_refuses_what_it_does_not_know(wrong):
    data = digits().test
    with pytest.raises(ValueError, match=f"--{next(iter(wrong))} must be one of"):
        fit(minires.create_model("resnet8", in_channels=1), data, data, TrainOptions(epochs=1, **wrong))


def test_the_weights_that_fit_judged_are_in_the_model():
    small = ArrayDataset(digits().train.images[:320], digits().train.labels[:320])
    model = minires.create_model("resnet8", in_channels=1, generator=np.random.default_rng(0))
    score = fit(model, small, digits().test, TrainOptions(epochs=2, ema=0.98))
    assert evaluate(model, digits().test) == score


def test_images_that_are_not_finite_are_not_blamed_on_the_rate():
    images = digits().train.images[:64].copy()
    images[5, 0, 3, 3] = np.nan
    data = ArrayDataset(images, digits().train.labels[:64])
    with pytest.raises(FloatingPointError, match="a look at the data") as caught:
        fit(minires.create_model("resnet8", in_channels=1), data, data, TrainOptions(epochs=1))
    assert "--lr" not in str(caught.value)
