"""Using a trained network: classes for image files, and accuracy with a confusion matrix on a data set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from minires.data import ArrayDataset, DataLoader, load_data
from minires.data.binary import CheckpointError, DataError, check_regular
from minires.data.checkpoint import load, read_npz, state_dict_of
from minires.data.images import normalize, read_image
from minires.engine.convert import printable
from minires.engine.modes import no_grad
from minires.engine.tensor import Tensor
from minires.models import INPUTS, create_model, model_entry
from minires.nn import Module
from minires.nn import functional as F
from minires.nn.state import translate


class Prediction(NamedTuple):
    """A class and how probable the network holds it."""

    label: str
    probability: float


class Evaluation(NamedTuple):
    """How a model does on a data set: matrix[truth, prediction] counts the images."""

    matrix: np.ndarray

    @property
    def correct(self) -> int:
        """The number of images that are classified right."""
        return int(np.trace(self.matrix))

    @property
    def count(self) -> int:
        """The number of images."""
        return int(self.matrix.sum())


def load_model(
    name: str, weights: str | os.PathLike, rename: Mapping[str, str] | None = None, **options: Any
) -> Module:
    """A network with weights from a file, in evaluation mode; its channels and classes are those of the file.

    Errors: ValueError for an unknown model or a file that is no weights (CheckpointError); RuntimeError for weights
        that do not fit.
    """
    entry = model_entry(name)
    state = translate(state_dict_of(load(weights)), {}, rename or {})
    for layer in ("conv1.weight", "fc.weight"):
        if layer in state and state[layer].numel() == 0:
            raise CheckpointError(
                f"{os.fspath(weights)}: {layer} has shape {state[layer].shape}, which holds no number: "
                f"expected the weights of a {name}"
            )
    # A size is the file's where the other sizes are the network's: the network is then not much larger than the file.
    widths = entry.widths(options.get("width"))
    if "fc.weight" in state and state["fc.weight"].shape[1:] == (widths[-1] * entry.block.expansion,):
        options.setdefault("num_classes", state["fc.weight"].shape[0])
    if "conv1.weight" in state and state["conv1.weight"].ndim == 4 and state["conv1.weight"].shape[0] == widths[0]:
        options.setdefault("in_channels", state["conv1.weight"].shape[1])
        options.setdefault("stem", "imagenet" if state["conv1.weight"].shape[2] == 7 else "cifar")
    model = create_model(name, **options)
    model.load_state_dict(state)
    return model.eval()


def read_labels(path: str | os.PathLike | None, count: int) -> list[str]:
    """The names of the classes: a line each in a text file, or numbers where there is none.

    Errors: ValueError for a file with another number of lines than the network has classes, or one that is not text.
    """
    if path is None:
        return [f"class {i}" for i in range(count)]
    try:
        with open(path, encoding="utf-8-sig") as file:
            labels = file.read().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)} is not a text file of labels: {error}") from error
    if len(labels) != count:
        raise ValueError(f"{os.fspath(path)} has {len(labels)} lines and the network {count} classes")
    return labels


def sizes_for(name: str) -> tuple[int, int]:
    """To what size a model's images are resized, and to what size they are then cropped."""
    crop = INPUTS[model_entry(name).family][1]
    return (256, 224) if crop == 224 else (crop, crop)


def check_outputs(model: Module, outputs: np.ndarray) -> None:
    """Refuse outputs of which none is the largest.

    Errors: FloatingPointError for NaN, which names the weights that are not finite.
    """
    if not np.isnan(outputs).any():
        return
    broken = [name for name, value in model.state_dict().items() if not np.isfinite(value.cpu().numpy()).all()]
    why = (
        f"{printable(broken[0])} has NaN or infinite values" if broken else "the numbers grow beyond all bounds inside"
    )
    raise FloatingPointError(f"the network's outputs are NaN, which are no prediction: {why}; take other weights")


@no_grad()
def predict(model: Module, name: str, path: str | os.PathLike, labels: list[str], top: int = 5) -> list[Prediction]:
    """The most probable classes of an image file, most probable first.

    Errors: as minires.data.images.read_image; ValueError for a model that does not take colour images;
        FloatingPointError for one whose outputs are NaN.
    """
    if model.conv1.in_channels != 3:
        raise ValueError(f"{name} takes images of {model.conv1.in_channels} channels, expected 3 (red, green, blue)")
    resize, crop = sizes_for(name)
    pixels = read_image(path, resize, crop)
    probabilities = F.softmax(model(Tensor(pixels[None])), dim=1).numpy()[0]
    check_outputs(model, probabilities)
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [Prediction(labels[i], float(probabilities[i])) for i in order]


def evaluation_data(name: str) -> ArrayDataset:
    """The test part of a data set by name, or the images and labels of a .npz file (uint8 NCHW, integers).

    Colour images of a file are normalised with ImageNet's mean and standard deviation.
    Errors: ValueError for an unknown name, or a file that does not hold these two arrays.
    """
    if not name.lower().endswith(".npz"):
        try:
            return load_data(name).test
        except DataError:
            raise
        except ValueError as error:
            raise ValueError(f"{error} (or a .npz file)") from error
    check_regular(name, "images and labels")
    with open(name, "rb") as file:
        content = file.read()
    try:
        arrays = read_npz(content)
        images, labels = arrays["images"], arrays["labels"]
    except (CheckpointError, KeyError) as error:
        raise ValueError(f"{name}: expected a .npz file with the arrays images and labels: {error}") from error
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[1] != 3:
        raise ValueError(f"{name}: images must be uint8 (N, 3, H, W), got {images.dtype} {images.shape}")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(f"{name}: labels must be integers ({len(images)},), got {labels.dtype} {labels.shape}")
    return ArrayDataset(normalize(images), labels)


@no_grad()
def confusion(model: Module, dataset: ArrayDataset, batch_size: int = 100, device: str = "cpu") -> Evaluation:
    """Count every truth against every prediction, with a progress bar.

    Errors: ValueError for labels that the model has no class for; FloatingPointError for outputs that are NaN.
    """
    from tqdm.auto import tqdm

    matrix = None
    for images, labels in tqdm(DataLoader(dataset, batch_size), desc="evaluating", unit="batch"):
        logits = model(images.to(device)).cpu().numpy()
        check_outputs(model, logits)
        if matrix is None:
            matrix = np.zeros((logits.shape[1], logits.shape[1]), np.int64)
            wrong = dataset.labels[(dataset.labels < 0) | (dataset.labels >= len(matrix))]
            if len(wrong):
                raise ValueError(f"the data has label {wrong[0]}, and the model has {len(matrix)} classes")
        np.add.at(matrix, (labels.numpy(), logits.argmax(axis=1)), 1)
    return Evaluation(matrix)
