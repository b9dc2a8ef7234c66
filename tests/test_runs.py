"""Runs that are stopped, killed and resumed; recipes; runs side by side."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import minires
from minires import cli
from minires.data import digits
from minires.data.binary import CheckpointError
from minires.train import comparison, recipes, run_checkpoint, runs
from minires.train.progress import Forecast, duration
from minires.train.recipes import TrainOptions
from minires.train.run_checkpoint import CURRENT, DAMAGED, PREVIOUS, Checkpoints, read_checkpoint
from minires.train.training import Stopped, Training, fit

RESULT = ("last.safetensors", "metrics.csv")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(**changes):
    """A run of nine steps in three epochs on 200 digits, with everything that has a state."""
    given = {
        "model": "resnet8",
        "data": "few",
        "epochs": 3,
        "batch_size": 70,
        "optimizer": "adamw",
        "lr": 3e-3,
        "augment": "crop-flip",
        "ema": 0.9,
        "clip_norm": 1.0,
        "label_smoothing": 0.1,
        "checkpoint_every": "1",
    }
    return TrainOptions(**{**given, **changes})


@pytest.fixture
def few(folder, monkeypatch):
    """A data set of 200 + 50 digits."""
    split = digits()
    train = type(split.train)(split.train.images[:200], split.train.labels[:200])
    test = type(split.test)(split.test.images[:50], split.test.labels[:50])
    monkeypatch.setitem(minires.data.DATASETS, "few", lambda: split._replace(train=train, test=test))
    monkeypatch.setattr(runs, "plot_curves", lambda *arguments, **options: None)  # half of such a short run's time
    return folder


def result_of(folder):
    return [(folder / name).read_bytes() for name in RESULT]


class Cut(Exception):
    """The power goes."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "sgd", "lr": 0.05, "nesterov": True, "ema": 0.0, "schedule": "cosine", "warmup": 1, "workers": 2},
        {"steps": 7, "schedule": "multi-step", "milestones": (3, 5), "gamma": 0.5, "warmup": 2},
    ],
    ids=["adamw with everything", "sgd, cosine, workers", "steps that end within an epoch"],
)
def test_cut_off_anywhere_a_run_goes_on_to_the_same_bits(few, monkeypatch, changes):
    """In every place between two steps, within and after every epoch: weights, metrics and picture's numbers."""
    runs.run(options(**changes), "whole")
    expected = result_of(few / "whole")
    total = changes.get("steps", 9)
    for count in range(1, total + 2):  # the checkpoints: one at the start, one for each step
        written = []
        write = Checkpoints.write

        def cut(self, training, write=write, written=written, count=count):
            write(self, training)
            written.append(training.step)
            if len(written) == count:
                raise Cut

        shutil.rmtree(few / "cut", ignore_errors=True)
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "write", cut)
            with pytest.raises(Cut):
                runs.run(options(**changes), "cut")
        minires.manual_seed(123)  # what happened in between must not matter
        again = runs.resume("cut")
        assert result_of(few / "cut") == expected, f"cut after step {written[-1]}"
        assert again.score.count == 50 and not (few / "cut" / CURRENT).exists()


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_killed_at_random_moments_a_run_goes_on_to_the_same_bits(folder):
    """SIGKILL, from outside, again and again."""
    command = [sys.executable, "-m", "minires", "train"]
    setup = "--model resnet8 --epochs 4 --batch-size 50 --augment crop --checkpoint-every 3".split()
    whole = subprocess.run([*command, *setup, "--out", "whole"], capture_output=True, text=True, timeout=300)
    assert whole.returncode == 0, whole.stderr
    rng = random.Random(0)
    killed = 0
    for _ in range(20):
        begun = (folder / "killed" / "config.json").exists()
        arguments = ["--resume", "killed"] if begun else [*setup, "--out", "killed"]
        process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        before = checkpoint_time(folder / "killed")
        deadline = time.time() + 120
        while killed < 5 and process.poll() is None and time.time() < deadline:
            if checkpoint_time(folder / "killed") != before:
                time.sleep(rng.uniform(0, 0.25))
                process.send_signal(signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.002)
        out, _ = process.communicate(timeout=300)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, out
    assert killed >= 3 and process.returncode == 0, out
    assert result_of(folder / "killed") == result_of(folder / "whole")
    assert not list((folder / "killed").glob("*.part"))


def checkpoint_time(folder):
    try:
        return (folder / CURRENT).stat().st_mtime_ns
    except OSError:
        return None


def test_ctrl_c_between_steps_keeps_the_step(few, monkeypatch):
    """The handler only notes the wish; the second press stops at once, and the checkpoint is a good one."""
    expected = runs.run(options(), "whole") and result_of(few / "whole")
    made = []
    train_batch = Training.train_batch

    def interrupted(self, *batch):
        train_batch(self, *batch)
        made.append(self.step)
        if len(made) == 4:
            signal.raise_signal(signal.SIGINT)
            assert self.step == 4, "the step is finished first"

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Training, "train_batch", interrupted)
            result = runs.run(options(checkpoint_every="1h"), "cut")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.interrupted and len(result.history) == 1 and made[-1] == 4
    assert read_checkpoint(few / "cut" / CURRENT).values["step"] == 4
    assert json.loads((few / "cut" / "config.json").read_text())["result"]["interrupted"] is True
    runs.resume("cut")
    assert result_of(few / "cut") == expected


def test_ctrl_c_while_evaluating(few, monkeypatch):
    expected = runs.run(options(), "whole") and result_of(few / "whole")
    evaluate = minires.training.evaluate

    def interrupted(*arguments, **keywords):
        signal.raise_signal(signal.SIGINT)
        return evaluate(*arguments, **keywords)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(minires.training, "evaluate", interrupted)
            assert runs.run(options(), "cut").history == []
    finally:
        signal.signal(signal.SIGINT, before)
    assert read_checkpoint(few / "cut" / CURRENT).values["step"] == 3
    runs.resume("cut")
    assert result_of(few / "cut") == expected


def cut_run(folder, after=5):
    """A run that was stopped after so many steps; returns its folder."""

    def stop(self, training):
        if training.step == after:
            raise Stopped
        return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "due", stop)
        assert runs.run(options(), "cut").interrupted
    return folder / "cut"


def damaged(content, how):
    if how == "cut short":
        return content[: len(content) // 2]
    if how == "empty":
        return b""
    place = {"a bit in an array": len(content) - 1000, "a bit in the JSON": 300, "a bit in the size": 0}[how]
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


@pytest.mark.parametrize(
    "how", ["cut short", "empty", "a bit in an array", "a bit in the JSON", "a bit in the size", "missing"]
)
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_is_used(few, capsys, how):
    runs.run(options(), "whole")
    cut = cut_run(few)
    newest = read_checkpoint(cut / CURRENT).values["step"]
    assert read_checkpoint(cut / PREVIOUS).values["step"] == newest - 1
    if how == "missing":  # the moment between two renames
        (cut / CURRENT).unlink()
    else:
        bad = damaged((cut / CURRENT).read_bytes(), how)
        (cut / CURRENT).write_bytes(bad)
        with pytest.raises(CheckpointError, match=f"{CURRENT}: damaged"):
            read_checkpoint(cut / CURRENT)
    assert cli.main(["train", "--resume", "cut"]) == 0
    out = capsys.readouterr().out
    assert f"going on with cut after step {newest - 1}" in out
    assert result_of(cut) == result_of(few / "whole")
    if how != "missing":
        assert "damaged" in out and f"going back to the one before it, cut/{PREVIOUS}" in out
        assert (cut / DAMAGED).read_bytes() == bad, "it is set aside, not lost"


def test_two_damaged_checkpoints_are_an_error_and_are_left(few, capsys):
    cut = cut_run(few)
    for name in (CURRENT, PREVIOUS):
        (cut / name).write_bytes(b"x" * 99)
    assert cli.main(["train", "--resume", "cut"]) == 2
    err = capsys.readouterr().err
    assert CURRENT in err and PREVIOUS in err and "no checkpoint of this run can be read" in err
    assert (cut / CURRENT).exists() and (cut / PREVIOUS).exists()


@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
def test_a_full_disk_leaves_the_last_checkpoint_and_says_which(few, monkeypatch, capsys, call):
    expected = runs.run(options(), "whole") and result_of(few / "whole")
    write = Checkpoints.write

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    def late(self, training):
        if training.step < 4:
            return write(self, training)
        with monkeypatch.context() as patch:
            if call == "write":
                patch.setattr(run_checkpoint, "write_whole", full)
            else:
                patch.setattr(os, call, full)
            return write(self, training)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", late)
        with pytest.raises(OSError) as refused:
            runs.run(options(), "cut")
    message = str(refused.value)
    assert "cannot write a checkpoint into cut: No space left on device" in message
    assert f"the last good checkpoint is cut/{CURRENT} (step 3)" in message
    assert "go on with: minires train --resume cut" in message
    assert read_checkpoint(few / "cut" / CURRENT).values["step"] == 3
    assert not list((few / "cut").glob("*.part"))
    runs.resume("cut")
    assert result_of(few / "cut") == expected


def test_a_folder_that_cannot_be_written_any_more(few, monkeypatch, capsys):
    cut = cut_run(few)

    def locked(*arguments, **keywords):
        raise OSError(30, "Read-only file system", "cut/config.json.123.part")

    before = (cut / CURRENT).read_bytes()
    monkeypatch.setattr(runs, "write_whole", locked)
    assert cli.main("train --resume cut".split()) == 2
    err = capsys.readouterr().err
    assert "cannot write into cut: Read-only file system" in err and f"is still there: cut/{CURRENT}" in err
    assert (cut / CURRENT).read_bytes() == before


def test_a_run_without_a_checkpoint_yet_starts_anew(few, capsys):
    runs.run(options(), "whole")
    runs.new_folder("cut", options())
    runs.resume("cut")
    assert "has no checkpoint yet" in capsys.readouterr().out and result_of(few / "cut") == result_of(few / "whole")


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, '{"model": "resnet8"}', '{"lr": "fast"}'])
def test_a_damaged_config_is_refused_and_not_missed_where_there_is_a_checkpoint(few, capsys, content):
    cut = cut_run(few)
    (cut / "config.json").write_text(content)
    checkpoints = {name: (cut / name).read_bytes() for name in (CURRENT, PREVIOUS)}
    for name in checkpoints:
        (cut / name).unlink()
    assert cli.main("train --resume cut".split()) == 2
    assert "minires train: " in capsys.readouterr().err
    for name, kept in checkpoints.items():
        (cut / name).write_bytes(kept)
    assert cli.main("train --resume cut".split()) == 0
    assert json.loads((cut / "config.json").read_text())["result"]["epochs"] == 3


def test_another_version_is_said(few, monkeypatch, capsys):
    cut_run(few)
    monkeypatch.setattr(runs, "versions", lambda: {"minires": "0.0.1"})
    runs.resume("cut")
    assert "and this is {'minires': '0.0.1'}: the last bits may differ" in capsys.readouterr().out


def test_a_finished_run_has_nothing_to_go_on_with(few, capsys):
    runs.run(options(), "whole")
    assert cli.main(["train", "--resume", "whole"]) == 2
    assert "whole is finished" in capsys.readouterr().err
    assert not list((few / "whole").glob("checkpoint*"))


def test_other_data_are_refused(few, monkeypatch, capsys):
    cut = cut_run(few)
    split = minires.data.DATASETS["few"]()
    less = type(split.train)(split.train.images[:150], split.train.labels[:150])
    monkeypatch.setitem(minires.data.DATASETS, "few", lambda: split._replace(train=less))
    before = (cut / CURRENT).read_bytes()
    assert cli.main(["train", "--resume", "cut"]) == 2
    assert "does not fit this run" in capsys.readouterr().err and (cut / CURRENT).read_bytes() == before


def test_layers_with_generators_of_their_own_go_on_too(few):
    """Dropout draws from MiniRes's generator or its own: both are in the checkpoint."""
    nn = minires.nn
    split = minires.data.DATASETS["few"]()

    def network():
        own = np.random.default_rng(3)
        body = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10, generator=np.random.default_rng(1)))
        body.add_module("last", nn.Dropout(0.2, generator=own))
        return body

    class Memory:
        """A keeper that begins with what another one kept."""

        def __init__(self, start=None):
            self.start = start
            self.kept = []

        def begin(self, training):
            if self.start is not None:
                training.load_state_dict(*json_round(self.start))

        def due(self, training):
            return True

        def write(self, training):
            arrays, values = training.state_dict()
            self.kept.append(({name: array.copy() for name, array in arrays.items()}, json.dumps(values)))

    def json_round(state):
        return state[0], json.loads(state[1])

    minires.manual_seed(7)
    whole = network()
    memory = Memory()
    fit(whole, split.train, split.test, options(augment="none"), keeper=memory)
    for state in memory.kept[:-1:3]:
        minires.manual_seed(99)
        other = network()
        fit(other, split.train, split.test, options(augment="none"), keeper=Memory(state))
        for name, value in whole.state_dict().items():
            assert np.array_equal(value.numpy(), other.state_dict()[name].numpy()), name


# ---- Recipes ----------------------------------------------------------------------------------------------------


def schedule_of(given, steps_per_epoch):
    chosen = recipes.options_for(given)
    recipes.check_options(chosen)
    model = minires.nn.Linear(1, 1)
    optimizer = recipes.make_optimizer(model, chosen)
    schedule = recipes.make_schedule(optimizer, chosen, steps_per_epoch)
    return chosen, optimizer, schedule


def test_the_papers_recipe_for_cifar():
    """He et al. 2015, 4.2: weight decay 1e-4, momentum 0.9, batches of 128, 0.1 divided by 10 at 32k and 48k of 64k."""
    chosen, optimizer, schedule = schedule_of({"recipe": "cifar-paper"}, 391)
    assert (chosen.model, chosen.data, chosen.batch_size, chosen.augment) == ("resnet20", "cifar10", 128, "crop-flip")
    group = optimizer.param_groups[0]
    assert type(optimizer).__name__ == "SGD" and (group["momentum"], group["weight_decay"]) == (0.9, 1e-4)
    assert recipes.total_steps(chosen, 391) == 64_000 and recipes.total_epochs(chosen, 391) == 164
    rates = [schedule.rate(0.1, step) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-12)
    _, _, warm = schedule_of({"recipe": "cifar-paper", "warmup": 400}, 391)
    assert warm.rate(0.1, 0) == pytest.approx(0.01) and warm.rate(0.1, 32_000) == pytest.approx(0.01)
    assert warm.rate(0.1, 400) == warm.rate(0.1, 31_999) == pytest.approx(0.1)


def test_the_recipe_for_imagenet():
    chosen, _, schedule = schedule_of({"recipe": "imagenet", "data": "photos"}, 5005)
    assert (chosen.epochs, chosen.batch_size, chosen.weight_decay, chosen.momentum) == (90, 256, 1e-4, 0.9)
    rates = [schedule.rate(0.1, epoch * 5005) for epoch in (0, 29, 30, 59, 60, 89)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-12)


def test_the_digits_recipe_is_the_default_and_options_override():
    assert recipes.options_for({}) == TrainOptions() == recipes.options_for({"recipe": "digits"})
    assert recipes.options_for({"data": "fashion-mnist"}).recipe == "mnist"
    assert recipes.options_for({"data": "cifar100"}).data == "cifar100"
    text = recipes.describe(recipes.options_for({"recipe": "cifar-paper", "lr": 0.2}))
    assert "lr               0.2   (the recipe's: 0.1)" in text and "milestones       32000,48000\n" in text
    for field in recipes.fields(TrainOptions):
        assert (f"  {field.name.replace('_', '-')} " in text) == (field.name not in ("recipe", "epochs"))


def test_milestones_keep_their_places_in_a_run_of_another_length():
    def chosen(**given):
        found = recipes.options_for(given)
        recipes.check_options(found)
        return found.schedule, found.steps, found.epochs, found.milestones

    assert chosen(recipe="cifar-paper", steps=6400)[::3] == ("multi-step", (3200, 4800))
    assert chosen(recipe="cifar-paper", epochs=20) == ("multi-step", 0, 20, (10, 15))
    assert chosen(recipe="cifar-paper", epochs=1) == ("constant", 0, 1, ())
    assert chosen(recipe="imagenet", data="x/y", epochs=9)[3] == (3, 6)
    assert chosen(recipe="imagenet", data="x/y", epochs=9, milestones=(7,))[3] == (7,)


@pytest.mark.parametrize("text, expected", [("7", (7, 0)), ("90s", (0, 90)), ("5m", (0, 300)), ("2h", (0, 7200))])
def test_intervals(text, expected):
    assert recipes.interval(text) == expected


def test_augmentation_fills_with_the_mean():
    split = digits()
    crop = recipes.augmentation("crop", split.train)
    images = np.ones((3, 1, 8, 8), np.float32)
    moved = crop(images, np.random.default_rng(0))
    assert moved.shape == images.shape and set(np.unique(moved)) == {0, 1}
    assert recipes.augmentation("none", split.train) is None


# ---- The forecast -----------------------------------------------------------------------------------------------


def test_the_forecast_counts_evaluations():
    """A run of 100 steps of 2 s and 4 evaluations of 30 s, watched from its first minute on: within a fifth."""
    forecast = Forecast(steps=100, evaluations=4, batch_size=10, test_size=450)
    assert forecast.seconds_left() is None
    clock, total = 0.0, 9 + 99 * 2 + 4 * 30  # the first step is slow
    for step in range(1, 101):
        forecast.step(9 if step == 1 else 2)
        clock += 9 if step == 1 else 2
        if step % 25 == 0:
            forecast.evaluation(30)
            clock += 30
        if clock >= 60:
            assert forecast.seconds_left() == pytest.approx(total - clock, rel=0.01)
        elif step > 1:
            assert forecast.seconds_left() == pytest.approx(total - clock, rel=0.2)
    assert forecast.seconds_left() == 0


def test_the_forecast_follows_a_machine_that_becomes_slower():
    forecast = Forecast(steps=1000, evaluations=0, batch_size=1, test_size=0)
    for _ in range(300):
        forecast.step(1.0)
    for _ in range(100):
        forecast.step(3.0)
    assert forecast.seconds_left() == pytest.approx(600 * 3, rel=0.1)


@pytest.mark.parametrize(
    "seconds, text",
    [(0.4, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (3 * 3600 + 599, "3 h 10 min"), (90_000, "1 days 1 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


# ---- Runs side by side ------------------------------------------------------------------------------------------


def test_compare_prints_and_draws(few, capsys):
    runs.run(options(), "one")
    runs.run(options(lr=1e-3, milestones=(1, 2), schedule="multi-step"), "two")
    cut_run(few)
    capsys.readouterr()
    assert cli.main("compare one two cut --picture all.png".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == "run lr schedule milestones done train loss test loss test time".split()
    assert lines[1].split()[:3] == ["one", "0.003", "one-cycle"] and "1,2" in lines[2]
    last = comparison.read_run("one").history[-1]
    assert f"{last.test_accuracy:.2%}" in lines[1] and len(lines) == 5
    assert (few / "all.png").read_bytes().startswith(b"\x89PNG")


def test_compare_refuses(few, capsys):
    assert cli.main("compare nowhere".split()) == 2
    assert "nowhere: no run is there" in capsys.readouterr().err
    runs.run(options(epochs=1), "one")
    assert cli.main("compare one --picture one.txt".split()) == 2
    capsys.readouterr()
    for name, content in (("metrics.csv", "a,b\n1,2\n"), ("metrics.csv", "epoch\nx\n"), ("config.json", "[" * 5000)):
        kept = (few / "one" / name).read_text()
        (few / "one" / name).write_text(content)
        assert cli.main("compare one".split()) == 2
        assert "one: not the files of a run" in capsys.readouterr().err
        (few / "one" / name).write_text(kept)


def cut_at(step, monkeypatch, out):
    """A run of options() whose power goes at a step."""
    write = Checkpoints.write

    def last_write(checkpoints, training):
        write(checkpoints, training)
        if training.step == step:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", last_write)
        with pytest.raises(Cut):
            runs.run(options(), out)


def test_a_run_goes_on_without_its_config_and_is_not_overwritten(few, monkeypatch, capsys):
    runs.run(options(), "whole")
    cut_at(4, monkeypatch, "cut")
    os.remove("cut/config.json")
    with pytest.raises(FileExistsError, match="holds a run already"):
        runs.run(options(), "cut")
    runs.resume("cut")
    assert result_of(few / "cut") == result_of(few / "whole")


def test_a_run_does_not_go_on_with_other_data(few, monkeypatch):
    cut_at(4, monkeypatch, "cut")
    split = minires.data.DATASETS["few"]()
    images = split.train.images.copy()
    images[[0, 1]] = images[[1, 0]]
    changed = split._replace(train=type(split.train)(images, split.train.labels))
    monkeypatch.setitem(minires.data.DATASETS, "few", lambda: changed)
    with pytest.raises(CheckpointError, match="the data are not those that it was begun with"):
        runs.resume("cut")


def test_options_that_were_changed_by_hand_are_named(few, monkeypatch, capsys):
    cut_at(4, monkeypatch, "cut")
    config = json.loads((few / "cut" / "config.json").read_text())
    (few / "cut" / "config.json").write_text(json.dumps({**config, "epochs": 9, "lr": 0.5}))
    runs.resume("cut")
    assert "has another epochs and lr than the checkpoint: the checkpoint's holds" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="no lock is known there")
def test_two_processes_do_not_train_one_run(few, monkeypatch):
    cut_at(4, monkeypatch, "cut")
    before = (few / "cut" / CURRENT).read_bytes()
    with runs.alone(few / "cut"), pytest.raises(ValueError, match="another process is training this run"):
        runs.resume("cut")
    assert (few / "cut" / CURRENT).read_bytes() == before
    assert runs.resume("cut").score is not None
