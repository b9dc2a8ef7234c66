"""How a network does by class, and where it is sure and wrong."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from minires.data import ArrayDataset, DataLoader
from minires.debug.plots.inputs import finished, on_models_side, positive, show_image
from minires.engine.modes import no_grad
from minires.nn import Module
from minires.nn import functional as F
from minires.nn.state import in_mode

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Mistake(NamedTuple):
    """An image that a network got wrong."""

    index: int  # in the data set
    truth: int
    prediction: int
    probability: float  # that the network gave to its prediction


def class_accuracy(matrix: np.ndarray) -> np.ndarray:
    """The share of each class that was classified right; NaN for a class without images.

    Shapes: matrix[truth, prediction] (classes, classes), counts, as ``minires.train.prediction.confusion`` gives them
        -> (classes,).
    Errors: ValueError for a matrix that is not square.
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"class_accuracy: expected a square matrix of counts, got shape {matrix.shape}")
    totals = matrix.sum(axis=1)
    return np.where(totals > 0, np.diag(matrix) / np.maximum(totals, 1), np.nan)


def plot_class_accuracy(
    matrix: np.ndarray,
    path: str | os.PathLike | None = None,
    labels: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """A bar a class: the share that was right, its counts, and a dashed line at the accuracy over all images.

    Args: matrix, as ``class_accuracy``; path, where to write; labels, the classes' names (numbers where None).
    Errors: as ``class_accuracy``; ValueError for another number of labels than classes.
    """
    from matplotlib.figure import Figure

    shares = class_accuracy(matrix)
    matrix = np.asarray(matrix)
    count = len(shares)
    names = [str(i) for i in range(count)] if labels is None else list(labels)
    if len(names) != count:
        raise ValueError(f"plot_class_accuracy: expected {count} labels, got {len(names)}")
    figure = Figure(figsize=(7, min(1.2 + 0.3 * count, 40)), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.barh(range(count), 100 * np.nan_to_num(shares), color="#8db4d6", edgecolor="black", linewidth=0.6)
    for i in range(count):
        total = matrix[i].sum()
        text = f"{shares[i]:.1%} ({matrix[i, i]}/{total})" if total else "no images"
        axes.text(1, i, text, va="center", fontsize=8)
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    axes.axvline(100 * accuracy, color="black", linestyle="--", linewidth=1, label=f"all classes: {accuracy:.2%}")
    axes.set_yticks(range(count), names)
    axes.set_ylim(count - 0.4, -0.6)  # the first class on top
    axes.set_xlim(0, 100)
    axes.set_xlabel("classified right (%)")
    axes.set_ylabel("class")
    figure.legend(loc="outside lower right")
    axes.set_title(title)
    return finished(figure, path)


def confident_mistakes(
    model: Module, dataset: ArrayDataset, count: int = 16, batch_size: int = 100
) -> tuple[list[Mistake], int]:
    """The mistakes of which a model is most sure, the surest first, with a progress bar.

    The model judges in evaluation mode, and is left as it was.
    Returns: up to ``count`` of them, and how many there are in all.
    Errors: ValueError for a count below 1.
    """
    from tqdm.auto import tqdm

    positive("confident_mistakes", count=count)
    found: list[Mistake] = []
    done = 0
    with in_mode(model, False), no_grad():
        for images, labels in tqdm(DataLoader(dataset, batch_size), desc="looking for mistakes", unit="batch"):
            probabilities = F.softmax(model(on_models_side(model, images)), dim=1).cpu().numpy()
            predictions, truths = probabilities.argmax(axis=1), labels.numpy()
            for i in np.flatnonzero(predictions != truths):
                sure = float(probabilities[i, predictions[i]])
                found.append(Mistake(done + int(i), int(truths[i]), int(predictions[i]), sure))
            done += len(truths)
    found.sort(key=surest_first)
    return found[:count], len(found)


def surest_first(mistake: Mistake) -> tuple[float, int]:
    """The order of mistakes; of two that are equally sure, the first of the data set."""
    return -mistake.probability, mistake.index


def plot_confident_mistakes(
    model: Module,
    dataset: ArrayDataset,
    path: str | os.PathLike | None = None,
    count: int = 16,
    labels: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """The images of which a model is most sure and wrong, each with what it is, what was read, and how surely.

    Args: model; dataset; path, where to write; count, how many; labels, the classes' names (numbers where None).
    Errors: ValueError for a count below 1.
    """
    from matplotlib.figure import Figure

    mistakes, total = confident_mistakes(model, dataset, count)
    columns = min(max(len(mistakes), 1), 6)
    rows = max(-(-len(mistakes) // columns), 1)
    figure = Figure(figsize=(max(columns * 1.5, 4), rows * 1.85 + 0.6), dpi=100, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for k, axes in enumerate(grid.flat):
        if k >= len(mistakes):
            axes.axis("off")
            continue
        mistake = mistakes[k]
        show_image(axes, np.asarray(dataset.images[mistake.index]))
        truth, read = (str(i) if labels is None else labels[i] for i in (mistake.truth, mistake.prediction))
        axes.set_title(f"is {truth}, read {read}\n{mistake.probability:.1%} sure", fontsize=9)
        axes.set_xlabel(f"image {mistake.index}", fontsize=7)
    shown = f"the {len(mistakes)} surest of {total} mistakes" if mistakes else "no mistake"
    figure.suptitle(title or f"{shown} on {len(dataset)} images", fontsize=11)
    return finished(figure, path)
