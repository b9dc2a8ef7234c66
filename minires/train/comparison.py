"""Several runs side by side: a table, and their curves in one picture."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from minires.data.binary import CheckpointError
from minires.engine.convert import printable
from minires.train.progress import duration
from minires.train.runs import CONFIG, METRICS
from minires.train.training import Epoch

#: Entries of config.json that say what a run was, not what came of it.
SKIPPED = ("versions", "result", "checkpoint_every", "workers", "threads")

LONGEST = 10**10  # seconds, three centuries: more is a damaged file
MOST_EPOCHS = 10**9


class Run(NamedTuple):
    """A run's folder as it was left, finished or not."""

    name: str
    config: dict[str, Any]
    history: list[Epoch]


def read_run(folder: str | os.PathLike) -> Run:
    """A run from its folder.

    Errors: FileNotFoundError for a folder without a run; CheckpointError for files that are damaged.
    """
    path = Path(folder)
    for name in (CONFIG, METRICS):
        if not (path / name).exists():
            raise FileNotFoundError(2, f"no run is there (it has no {name})", str(path))
    config = read_file(path / CONFIG, read_config)
    history = read_file(path / METRICS, read_metrics)
    return Run(str(folder).rstrip("/\\"), config, history)


def read_file(path: Path, read: Callable[[Path], Any]) -> Any:
    """What is in a file of a run. Errors: CheckpointError that names the file, where it is damaged."""
    try:
        return read(path)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, csv.Error) as error:
        raise CheckpointError(
            f"{path.parent}: not the files of a run: {path.name} is damaged: {type(error).__name__}: {error}"
        ) from error


def read_config(path: Path) -> dict[str, Any]:
    """The entries of config.json. Errors: those of read_file."""
    config = json.loads(path.read_text())
    config["model"], config["data"], config["seed"]
    result = config.get("result")
    seconds = result.get("seconds") if isinstance(result, dict) else None
    if isinstance(seconds, (int, float)) and not 0 <= seconds <= LONGEST:
        raise ValueError(f"expected seconds from 0 to {LONGEST:,}, got {seconds!s:.20}")
    return config


def read_metrics(path: Path) -> list[Epoch]:
    """The epochs of metrics.csv. Errors: those of read_file."""
    history = []
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            values = {name: float(row[name]) for name in Epoch._fields}
            epoch = values.pop("epoch")
            if not (1 <= epoch <= MOST_EPOCHS and epoch == int(epoch)):
                raise ValueError(f"expected whole epochs from 1 to {MOST_EPOCHS:,}, got {epoch:g}")
            history.append(Epoch(int(epoch), **values))
    return history


def differing(runs: list[Run]) -> list[str]:
    """The options in which the runs differ, in the order of config.json."""
    names = [name for run in runs for name in run.config if name not in SKIPPED]
    unique = list(dict.fromkeys(names))
    return [name for name in unique if len({json.dumps(run.config.get(name)) for run in runs}) > 1]


def table(runs: list[Run]) -> str:
    """The runs as a table for people: where they differ, and what came of each."""
    options = differing(runs)
    named = [printable(name.replace("_", "-")) for name in options]
    rows = [["run", *named, "done", "train loss", "test loss", "test", "time"]]
    for run in runs:
        row = [printable(run.name), *[said(run.config.get(name)) for name in options]]
        result = run.config.get("result")
        seconds = result.get("seconds") if isinstance(result, dict) else None
        time = duration(seconds) if isinstance(seconds, (int, float)) else "not finished"
        if not run.history:
            rows.append([*row, "0", "", "", "", time])
            continue
        last = run.history[-1]
        numbers = [f"{last.train_loss:.4f}", f"{last.test_loss:.4f}", f"{last.test_accuracy:.2%}"]
        rows.append([*row, str(last.epoch), *numbers, time])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def said(value: Any) -> str:
    """An option as text."""
    return printable(",".join(map(str, value)) if isinstance(value, list) else "-" if value is None else value)


def plot(runs: list[Run], path: str | Path) -> None:
    """The loss and the error of all runs in one picture. Errors: OSError where the file cannot be written."""
    from minires.debug.plots import plot_runs

    plot_runs([(run.name, run.history) for run in runs], path)
