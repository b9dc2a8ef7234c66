"""The command line: what a person types, and which function answers it."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from contextlib import nullcontext, redirect_stderr, suppress
from dataclasses import fields

import minires
from minires.engine.convert import printable, printable_lines
from minires.exercises import command as exercise_command
from minires.train import launch

HELP = """\
Residual networks from scratch, with every gradient written by hand.

commands and examples:
  train     train a network and leave its weights, metrics and curves in a folder
              minires train
              minires train --model resnet20 --epochs 20 --lr 0.05 --seed 1 --out runs/mine
  compare   several runs in one table and one picture
              minires compare runs/resnet20-digits runs/mine
  summary   what a network is made of: layers, shapes, parameters, multiply-adds
              minires summary resnet50
              minires summary resnet20 --input 1x8x8 --num-classes 10 --json
  predict   the most probable classes of image files
              minires predict cat.jpg dog.png --model resnet50 --weights resnet50-0676ba61.pth
  eval      accuracy on a data set, and a picture of the confusion matrix
              minires eval --model resnet20 --weights runs/resnet20-digits/last.safetensors --data digits
  bench     how fast: MiniRes beside PyTorch, where that is installed, on the same work
              minires bench
  exercise  write the kernels yourself, and be told what is wrong
              minires exercise list
              minires exercise start batch_norm_backward
"""

TRAIN = """\
Train a residual network and leave config.json, metrics.csv, curves.png and last.safetensors in a folder.
Without options: a small ResNet on the 1,437 handwritten digits that come with MiniRes, judged on 360 others.
Ctrl-C ends the training early and saves what is there; --resume goes on, to the same bits as without a stop.
"""

TRAIN_EXAMPLES = """\
examples:
  minires train
  minires train --model resnet20 --epochs 20 --lr 0.05 --seed 1 --out runs/mine
  minires train --device cuda
  minires train --recipe cifar-paper --model resnet56
  minires train --data ./photos --model resnet18 --epochs 30
  minires train --resume runs/mine
  mpiexec -n 4 minires train --sync-batch-norm
"""

COMPARE = """\
Print a table of several runs, the options in which they differ among its columns, and draw their curves in one picture.
"""

COMPARE_EXAMPLES = """\
examples:
  minires compare runs/resnet20-digits runs/mine
  minires compare runs/* --picture lr.png
"""

SUMMARY = "List a network's layers with output shape, parameters and multiply-adds, counted by running one image."

SUMMARY_EXAMPLES = """\
examples:
  minires summary resnet50
  minires summary resnet34 --shortcut A
  minires summary resnet18 --stem cifar --input 3x32x32 --num-classes 10 --json
"""

PREDICT = """\
Print the most probable classes of image files. Images are resized, cropped and normalised as torchvision does:
shorter side 256, centre 224 (networks for 32 pixels: 32 and 32), ImageNet's mean and standard deviation.
"""

PREDICT_EXAMPLES = """\
examples:
  minires predict cat.jpg --model resnet50 --weights resnet50-0676ba61.pth --labels imagenet_classes.txt
  minires predict *.png --model resnet20 --weights resnet20-12fca82f.th --rename linear=fc --top 3
"""

EVAL = """\
Print a model's accuracy on the test part of a data set, or on the images and labels of a .npz file, and draw the
confusion matrix.
"""

EVAL_EXAMPLES = """\
examples:
  minires eval --model resnet20 --weights runs/resnet20-digits/last.safetensors --data digits
  minires eval --model resnet20 --weights resnet20-12fca82f.th --rename linear=fc --data cifar10_test_1000.npz
"""

BENCH = """\
Time MiniRes and, where it is installed, PyTorch on the same work: convolutions and other layers, forward and backward,
training steps, inference; and measure their peak memory. It takes some minutes. All sides run in turn, round by round,
after a check that their numbers agree. Every figure is a median with its quartiles.
"""

BENCH_EXAMPLES = """\
examples:
  minires bench
  minires bench --threads 2 --json > bench.json
  minires bench --only conv
  minires bench --only ResNet-20
  minires bench --mpi
"""


def image_shape(text: str) -> tuple[int, int, int]:
    """``3x224x224`` as (3, 224, 224). Errors: argparse.ArgumentTypeError for anything else."""
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and 0 < int(part) <= 10_000 for part in parts):
        raise argparse.ArgumentTypeError(f"expected CHANNELSxHEIGHTxWIDTH such as 3x224x224, got {text!r}")
    return int(parts[0]), int(parts[1]), int(parts[2])


def renaming(text: str) -> tuple[str, str]:
    """``linear=fc`` as ("linear", "fc"). Errors: argparse.ArgumentTypeError for anything else."""
    old, equals, new = text.partition("=")
    if not old or not equals or not new:
        raise argparse.ArgumentTypeError(f"expected OLD=NEW such as linear=fc, got {text!r}")
    return old, new


def make_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="minires", description=HELP, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"minires {minires.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="the options of one command")

    def command(name: str, description: str, examples: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=f"minires {name} --help", description=description, epilog=examples, formatter_class=raw
        )

    add_train_options(command("train", TRAIN, TRAIN_EXAMPLES))
    compare = command("compare", COMPARE, COMPARE_EXAMPLES)
    compare.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs")
    compare.add_argument("--picture", default="compare.png", help="where to draw (default: compare.png)")
    summary = command("summary", SUMMARY, SUMMARY_EXAMPLES)
    summary.add_argument("model", help="the network's name")
    summary.add_argument("--input", type=image_shape, help="CHANNELSxHEIGHTxWIDTH (default: what it was made for)")
    summary.add_argument("--num-classes", type=int, help="classes of the last layer")
    summary.add_argument("--shortcut", choices="ABC", help="the shortcut option")
    summary.add_argument("--stem", choices=("imagenet", "cifar"), help="7x7 with max pool, or 3x3")
    summary.add_argument("--stride-in", choices=("3x3", "1x1"), help="which convolution of a Bottleneck has the stride")
    summary.add_argument("--json", action="store_true", help="print JSON")
    predict = command("predict", PREDICT, PREDICT_EXAMPLES)
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    add_weights_options(predict)
    predict.add_argument("--labels", metavar="FILE", help="the classes' names, one a line")
    predict.add_argument("--top", type=int, default=5, help="how many classes to print (default: 5)")
    evaluate = command("eval", EVAL, EVAL_EXAMPLES)
    add_weights_options(evaluate)
    evaluate.add_argument("--data", default="digits", help="a data set's name or a .npz file (default: digits)")
    evaluate.add_argument(
        "--picture", metavar="FILE", default="confusion.png", help="where to draw (default: confusion.png)"
    )
    bench = command("bench", BENCH, BENCH_EXAMPLES)
    bench.add_argument("--threads", type=int, default=1, help="of either side (default: 1)")
    bench.add_argument("--only", metavar="TEXT", default="", help="only the rows whose names contain this text")
    bench.add_argument("--json", action="store_true", help="print JSON")
    bench.add_argument(
        "--mpi", action="store_true", help="time data-parallel training on this machine's processors instead"
    )
    bench.add_argument(
        "--picture", metavar="FILE", default="scaling.png", help="with --mpi: where to draw (default: scaling.png)"
    )
    exercise_command.add_options(command("exercise", exercise_command.DESCRIPTION, exercise_command.EXAMPLES))
    return parser


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``train``: those of TrainOptions. One that is not given is the recipe's."""
    from minires.train import recipes

    explained = {
        "recipe": f"settings by name: {', '.join(recipes.RECIPES)} (default: by the data set)",
        "model": f"the network: {', '.join(minires.models.list_models())}",
        "data": f"the data set: {', '.join(minires.data.DATASETS)}, or a folder",
        "epochs": "how often to go through the training images",
        "steps": "the length of the run in batches, in place of --epochs",
        "batch_size": "images a step, over all workers",
        "optimizer": ", ".join(recipes.OPTIMIZERS),
        "lr": "the learning rate: the highest of its schedule",
        "momentum": "of SGD",
        "nesterov": "Nesterov's variant of SGD",
        "weight_decay": "of the optimizer",
        "schedule": ", ".join(recipes.SCHEDULES),
        "milestones": "where multi-step multiplies the rate by --gamma, such as 30,60: epochs, or steps with --steps",
        "gamma": "see --milestones",
        "warmup": "start from a tenth of the rate, and grow for so many epochs, or steps with --steps",
        "augment": f"random changes to the training images: {', '.join(recipes.AUGMENTATIONS)}",
        "label_smoothing": "the share of each label that is spread over all classes",
        "clip_norm": "the longest that all gradients together may be; 0 for any length",
        "ema": "judge and keep a moving average of the weights with this decay, such as 0.999; 0 for none",
        "sync_batch_norm": "over several workers (mpiexec), take batch norm's statistics from the whole batch",
        "seed": "of the initial weights and the shuffling: the same seed gives the same result",
        "device": "cpu or cuda",
        "threads": "of the matrix products; 0 means one for small images (other work then slows it little)",
        "workers": "threads that prepare batches ahead; 0 for none",
        "checkpoint_every": "how often within an epoch: a number of steps, or a time such as 90s, 5m, 2h",
    }
    usual = recipes.TrainOptions()
    for field in fields(recipes.TrainOptions):
        option = f"--{field.name.replace('_', '-')}"
        if isinstance(field.default, bool):
            parser.add_argument(option, action="store_true", default=None, help=explained[field.name])
            continue
        value = recipes.shown(getattr(usual, field.name))
        default = "" if field.name == "recipe" else f" (recipe digits: {value})"
        kind = milestones if field.name == "milestones" else type(field.default)
        parser.add_argument(option, type=kind, default=None, help=explained[field.name] + default)
    parser.add_argument("--out", metavar="FOLDER", help="where to leave the run (default: runs/MODEL-DATA, numbered)")
    parser.add_argument("--resume", metavar="RUN", help="go on with the run in this folder, with its own options")


def milestones(text: str) -> tuple[int, ...]:
    """``30,60`` as (30, 60). Errors: argparse.ArgumentTypeError for anything else."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected numbers such as 30,60, got {text!r}")
    return tuple([int(part) for part in parts])


def add_weights_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which network with which weights."""
    parser.add_argument("--model", required=True, help="the network's name")
    parser.add_argument("--weights", required=True, metavar="FILE", help=".safetensors, .npz, .pth, .pt or .th")
    parser.add_argument(
        "--rename",
        type=renaming,
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="read the names in the file that begin with OLD as NEW (may be given more than once)",
    )


def in_words(error: Exception) -> str:
    """An error's message, of a few lines; for a file that cannot be used its name and why."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return printable(f"{error.filename}: {error.strerror}")
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}"
    lines = [line if len(line) <= 300 else f"{line[:300]} ..." for line in printable_lines(error).splitlines()]
    return "\n".join(lines if len(lines) <= 6 else [*lines[:5], f"  ... and {len(lines) - 5} more lines"])


def check_picture(path: str) -> None:
    """Refuse a picture that could not be drawn, before the work that leads to it.

    Errors: ValueError for another ending than an image's; FileNotFoundError for a folder that is not there.
    """
    if not path.lower().endswith((".png", ".svg", ".pdf", ".jpg")) or os.path.basename(path).startswith("."):
        raise ValueError(f"--picture: expected a file name that ends in .png, .svg, .pdf or .jpg, got {path!r}")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise FileNotFoundError(2, "there is no such folder", folder)


def train(arguments: argparse.Namespace) -> int:
    """Run ``minires train``; returns the exit status."""
    from minires.train import recipes, runs

    launch.communicator()  # the workers meet, so that what goes wrong in one of them ends all
    named = [field.name for field in fields(recipes.TrainOptions)]
    given = {name: getattr(arguments, name) for name in named if getattr(arguments, name) is not None}
    if arguments.resume is not None:
        every = given.pop("checkpoint_every", None)
        refused = [f"--{name.replace('_', '-')}" for name in given] + (["--out"] if arguments.out is not None else [])
        if refused:
            raise ValueError(f"--resume goes on with the run's own options: leave out {', '.join(refused)}")
        result = runs.resume(arguments.resume, every)
    else:
        result = runs.run(recipes.options_for(given), arguments.out)
    if result.interrupted:
        print(f"interrupted after {len(result.history)} epochs")
    if result.score is not None:
        score = result.score
        print(f"test accuracy: {score.accuracy:.2%} ({score.correct}/{score.count})")
    print(f"saved in {result.folder}: config.json, metrics.csv, curves.png, last.safetensors")
    return 130 if result.interrupted else 0


def compare(arguments: argparse.Namespace) -> int:
    """Run ``minires compare``; returns the exit status."""
    from minires.train import comparison

    check_picture(arguments.picture)
    found = [comparison.read_run(folder) for folder in arguments.runs]
    print(comparison.table(found), flush=True)
    comparison.plot(found, arguments.picture)
    print(f"curves in {arguments.picture}")
    return 0


def summary(arguments: argparse.Namespace) -> int:
    """Run ``minires summary``; returns the exit status."""
    from minires.models.summary import summarize

    given = {name: getattr(arguments, name) for name in ("num_classes", "shortcut", "stem", "stride_in")}
    options = {name: value for name, value in given.items() if value is not None}
    shape = arguments.input or minires.models.INPUTS[minires.models.model_entry(arguments.model).family]
    model = minires.models.create_model(arguments.model, in_channels=shape[0], **options)
    counted = summarize(model, shape)
    if arguments.json:
        print(json.dumps({"model": arguments.model, "input": shape, **counted.to_dict()}, indent=2))
    else:
        print(counted)
    return 0


def predict(arguments: argparse.Namespace) -> int:
    """Run ``minires predict``; returns the exit status: 2 where an image could not be read, after all the others."""
    from minires.train import prediction

    if arguments.top < 1:
        raise ValueError(f"--top must be at least 1, got {arguments.top}")
    model = prediction.load_model(arguments.model, arguments.weights, dict(arguments.rename))
    labels = prediction.read_labels(arguments.labels, model.fc.out_features)
    status = 0
    for path in arguments.images:
        try:
            found = prediction.predict(model, arguments.model, path, labels, arguments.top)
        except (ValueError, OSError) as error:
            print(f"minires predict: {in_words(error)}", file=sys.stderr)
            status = 2
            continue
        print(printable(path))
        for label, probability in found:
            print(f"  {probability:7.2%}  {printable(label)}")
    return status


def evaluate(arguments: argparse.Namespace) -> int:
    """Run ``minires eval``; returns the exit status."""
    from minires.debug.plots import plot_confusion
    from minires.train import prediction

    check_picture(arguments.picture)
    dataset = prediction.evaluation_data(arguments.data)
    model = prediction.load_model(arguments.model, arguments.weights, dict(arguments.rename))
    found = prediction.confusion(model, dataset)
    accuracy = found.correct / found.count
    title = f"{arguments.model} on {os.path.basename(arguments.data)}: {accuracy:.2%}"
    print(f"accuracy: {accuracy:.2%} ({found.correct}/{found.count})", flush=True)
    plot_confusion(found.matrix, arguments.picture, title)
    print(f"confusion matrix in {arguments.picture}")
    return 0


def bench(arguments: argparse.Namespace) -> int:
    """Run ``minires bench``; returns the exit status."""
    if arguments.mpi:
        return bench_mpi(arguments)
    from minires.bench.run import run

    report = run(arguments.threads, arguments.only)
    print(json.dumps(report.to_dict(), indent=2) if arguments.json else report)
    return 0


def bench_mpi(arguments: argparse.Namespace) -> int:
    """Run ``minires bench --mpi``; returns the exit status."""
    from minires.bench import mpi

    if arguments.threads != 1 or arguments.only:
        raise ValueError("--mpi gives every worker one thread and has rows of its own: leave out --threads and --only")
    check_picture(arguments.picture)
    report = mpi.run()
    print(json.dumps(report.to_dict(), indent=2) if arguments.json else report, flush=True)
    mpi.draw(report, arguments.picture)
    print(f"curves in {arguments.picture}", file=sys.stderr if arguments.json else sys.stdout)
    return 0


COMMANDS = {
    "train": train,
    "compare": compare,
    "summary": summary,
    "predict": predict,
    "eval": evaluate,
    "bench": bench,
    "exercise": exercise_command.run,
}


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """The arguments. Of several workers the first alone says what is wrong, or the one that alone was given it.

    Errors: SystemExit, as argparse.
    """
    if launch.launched()[1] == 1:
        return parser.parse_args(argv)
    said = io.StringIO()
    try:
        with launch.quiet(), redirect_stderr(said):
            return parser.parse_args(argv)
    except SystemExit as error:
        if error.code:
            with suppress(RuntimeError, ValueError):  # without MPI, each ends by itself
                launch.communicator()
            launch.end_with(said.getvalue().rstrip(), error, 2)
        raise


def main(argv: list[str] | None = None) -> int:
    """What the ``minires`` command runs; returns the exit status: 2 for an argument that cannot work."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal of ASCII is no reason to stop
    parser = make_parser()
    argv = sys.argv[1:] if argv is None else argv
    shared = argv[:1] == ["train"]  # the one command that several workers share: any other runs in each on its own
    arguments = parse(parser, argv) if shared else parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 2
    try:
        with launch.quiet() if shared else nullcontext():
            return COMMANDS[arguments.command](arguments)
    except (ValueError, OSError, RuntimeError, FloatingPointError, MemoryError) as error:
        return failed(f"minires {arguments.command}: {in_words(error)}", error, 2, shared)
    except KeyboardInterrupt as error:
        return failed("interrupted", error, 130, shared)


def failed(words: str, error: BaseException, status: int, shared: bool) -> int:
    """Say what went wrong; of workers that share a command, once. Returns: the exit status."""
    if shared:
        return launch.end_with(words, error, status)
    print(words, file=sys.stderr)
    return status
