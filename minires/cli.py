"""The command line: ``minires train`` and what it is told."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields

import minires

HELP = """\
Residual networks from scratch, with every gradient written by hand.

commands and examples:
  train     train a network and leave its weights, metrics and curves in a folder
              minires train
              minires train --model resnet20 --epochs 20 --lr 0.05 --seed 1 --out runs/mine
"""

TRAIN_HELP = """\
Train a residual network and leave config.json, metrics.csv, curves.png and last.safetensors in a folder.
Without options: a small ResNet on the 1,437 handwritten digits that come with MiniRes, judged on 360 others.
Ctrl-C ends the training early and saves what is there.
"""

TRAIN_EXAMPLES = """\
examples:
  minires train
  minires train --model resnet20 --epochs 20 --lr 0.05 --seed 1 --out runs/mine
  minires train --device cuda
"""


def make_parser() -> argparse.ArgumentParser:
    """The commands and their options; the defaults are those of TrainOptions."""
    from minires.training import TrainOptions

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="minires", description=HELP, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"minires {minires.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="for the options of one command")
    train = commands.add_parser(
        "train", help="minires train --help", description=TRAIN_HELP, epilog=TRAIN_EXAMPLES, formatter_class=raw
    )
    explained = {
        "model": f"the network: {', '.join(minires.models.list_models())}",
        "data": f"the data set: {', '.join(minires.data.DATASETS)}",
        "epochs": "how often to go through the training images",
        "batch_size": "images a step",
        "lr": "the highest learning rate of the one-cycle schedule",
        "momentum": "of SGD",
        "weight_decay": "of SGD",
        "seed": "of the initial weights and the shuffling: the same seed gives the same result",
        "device": "cpu or cuda",
    }
    for field in fields(TrainOptions):
        train.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            help=f"{explained[field.name]} (default: {field.default})",
        )
    train.add_argument("--out", metavar="FOLDER", help="where to leave the run (default: runs/MODEL-DATA, numbered)")
    return parser


def train(arguments: argparse.Namespace) -> int:
    """Run ``minires train``; returns the exit status."""
    from minires.training import TrainOptions, run

    options = TrainOptions(**{field.name: getattr(arguments, field.name) for field in fields(TrainOptions)})
    result = run(options, arguments.out)
    if result.interrupted:
        print(f"interrupted after {len(result.history)} of {options.epochs} epochs; what is there was saved")
    score = result.score
    print(f"test accuracy: {score.accuracy:.2%} ({score.correct}/{score.count})")
    print(f"saved in {result.folder}: config.json, metrics.csv, curves.png, last.safetensors")
    return 130 if result.interrupted else 0


def main(argv: list[str] | None = None) -> int:
    """What the ``minires`` command runs; returns the exit status: 2 for an argument that cannot work."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 2
    try:
        return train(arguments)
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        print(f"minires {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted before anything was trained", file=sys.stderr)
        return 130
