"""Pictures of runs: curves by epoch, and the confusion matrix at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def show_losses_by_powers(axes: Axes, losses: list[float]) -> None:
    """A logarithmic axis with plain numbers on it, whether it spans some decades or a part of one."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    axes.set_yscale("log")
    span = max(losses) / min(losses)
    locator = MaxNLocator(nbins=6) if span < 10 else LogLocator(subs=(1, 2, 5) if span < 1000 else (1,))
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def plot_curves(history: list[Any], path: str | Path, title: str = "") -> None:
    """Loss and error of training and test by epoch, as a PNG.

    Args: history, the epochs so far, each an Epoch of train/training.py (none gives empty axes); path, where to write.
    Errors: OSError where the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    loss_axes, error_axes = figure.subplots(1, 2)
    epochs = [line.epoch for line in history]
    curves = [
        (loss_axes, [line.train_loss for line in history], [line.test_loss for line in history]),
        (
            error_axes,
            [100 * (1 - line.train_accuracy) for line in history],
            [100 * (1 - line.test_accuracy) for line in history],
        ),
    ]
    for axes, train, test in curves:
        axes.plot(epochs, train, "--", color="tab:blue", marker="o", markersize=3, label="training (during the epoch)")
        axes.plot(epochs, test, "-", color="tab:orange", marker="s", markersize=3, label="test (after the epoch)")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    loss_axes.set_ylabel("cross entropy")
    losses = [loss for line in history for loss in (line.train_loss, line.test_loss)]
    if losses and all(0 < loss < np.inf for loss in losses):
        show_losses_by_powers(loss_axes, losses)
    error_axes.set_ylabel("error (%)")
    if history:
        error_axes.set_ylim(bottom=0)
        for axes in (loss_axes, error_axes):
            axes.set_xlim(0.5, len(history) + 0.5)
        last = history[-1]
        error_axes.set_title(f"after epoch {last.epoch}: test accuracy {last.test_accuracy:.2%}")
    loss_axes.set_title(title if history else f"{title}: no epoch was finished", parse_math=False)
    figure.savefig(path)


def plot_runs(runs: list[tuple[str, list[Any]]], path: str | Path) -> None:
    """Loss and error of several runs by epoch, a colour each: dashed in training, whole on the test images.

    Args: runs, names and epochs; path, where to write.
    Errors: OSError where the file cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 4.2 + 0.2 * len(runs)), dpi=100, layout="constrained")
    loss_axes, error_axes = figure.subplots(1, 2)
    colors = [f"C{i % 10}" for i in range(len(runs))]
    labels: list[str] = []
    for (name, history), color in zip(runs, colors, strict=True):
        epochs = [line.epoch for line in history]
        last = f"{history[-1].test_accuracy:.2%}" if history else "no epoch"
        loss_axes.plot(epochs, [line.train_loss for line in history], "--", color=color, alpha=0.6)
        loss_axes.plot(epochs, [line.test_loss for line in history], color=color, marker="s", markersize=3)
        error_axes.plot(epochs, [100 * (1 - line.train_accuracy) for line in history], "--", color=color, alpha=0.6)
        errors = [100 * (1 - line.test_accuracy) for line in history]
        error_axes.plot(epochs, errors, color=color, marker="s", markersize=3, label=str(len(labels)))
        labels.append(f"{name}: {last}")
    for axes in (loss_axes, error_axes):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    losses = [loss for _, history in runs for line in history for loss in (line.train_loss, line.test_loss)]
    if losses and all(0 < loss < np.inf for loss in losses):
        show_losses_by_powers(loss_axes, losses)
    if losses:
        error_axes.set_ylim(bottom=0)
    loss_axes.set_ylabel("cross entropy")
    error_axes.set_ylabel("error (%)")
    loss_axes.set_title("dashed: training (during the epoch); whole: test")
    legend = figure.legend(loc="outside lower center", ncols=1 if len(runs) <= 6 else 2)
    for text, label in zip(legend.get_texts(), labels, strict=True):  # a label that begins with _ would be left out
        text.set_parse_math(False)
        text.set_text(label)
    figure.savefig(path)


def plot_confusion(matrix: np.ndarray, path: str | Path, title: str = "", labels: list[str] | None = None) -> None:
    """A confusion matrix as a PNG: rows are the truth, columns the prediction, the diagonal is right.

    Args: matrix (classes, classes), counts; path, where to write; labels, the classes' names (numbers where None).
    Errors: OSError where the file cannot be written.
    """
    from matplotlib.figure import Figure

    count = len(matrix)
    side = min(max(4.0, 0.5 * count), 12.0)
    figure = Figure(figsize=(side + 1, side), dpi=100, layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the row", shrink=0.8)
    if count <= 20:
        for i in range(count):
            for j in range(count):
                if matrix[i, j]:
                    color = "white" if shares[i, j] > 0.5 else "black"
                    axes.text(j, i, f"{matrix[i, j]}", ha="center", va="center", color=color, fontsize=8)
        names = [str(i) for i in range(count)] if labels is None else labels
        axes.set_xticks(range(count), names, rotation=0 if labels is None else 90, parse_math=False)
        axes.set_yticks(range(count), names, parse_math=False)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    axes.set_title(title, parse_math=False)
    figure.savefig(path)
