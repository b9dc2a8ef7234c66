"""Everything that a run depends on, and the settings of the papers by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from minires.data import DATASETS, ArrayDataset
from minires.data.dataset import fingerprint
from minires.data.transforms import Compose, RandomCrop, RandomHorizontalFlip
from minires.engine.convert import lookup
from minires.nn import Module
from minires.optim import (
    SGD,
    Adam,
    AdamW,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    Optimizer,
    SequentialLR,
)
from minires.train import parallel


@dataclass
class TrainOptions:
    """Everything that a run depends on: the same options give the same result on the same machine."""

    recipe: str = "digits"
    model: str = "resnet20"
    data: str = "digits"
    epochs: int = 12
    steps: int = 0  # where given, the length of the run in place of epochs
    batch_size: int = 32
    optimizer: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: str = "one-cycle"
    milestones: tuple[int, ...] = ()  # in epochs, or in steps where steps is given; so is warmup
    gamma: float = 0.1
    warmup: int = 0
    augment: str = "none"
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    ema: float = 0.0
    sync_batch_norm: bool = False  # over all workers, where there are several
    seed: int = 0
    device: str = "cpu"
    threads: int = 0  # of the matrix products; 0 means one for small images, and the BLAS's own choice otherwise
    workers: int = 0
    checkpoint_every: str = "5m"


#: What each recipe sets. The first is the defaults of TrainOptions: the digits that come with MiniRes.
RECIPES: dict[str, dict[str, Any]] = {
    "digits": {},
    "mnist": {
        "model": "resnet8",
        "data": "mnist",
        "epochs": 12,
        "batch_size": 64,
        "lr": 0.1,
        "weight_decay": 5e-4,
        "augment": "crop",
    },
    # He et al. 2015, section 4.2. (Their ResNet-110 starts with 400 steps of a tenth of the rate: --warmup 400.)
    "cifar-paper": {
        "model": "resnet20",
        "data": "cifar10",
        "steps": 64_000,
        "batch_size": 128,
        "lr": 0.1,
        "weight_decay": 1e-4,
        "schedule": "multi-step",
        "milestones": (32_000, 48_000),
        "augment": "crop-flip",
    },
    # He et al. 2015, section 3.4, with the 90 epochs of torchvision and Goyal et al. 2017.
    "imagenet": {
        "model": "resnet50",
        "data": "",
        "epochs": 90,
        "batch_size": 256,
        "lr": 0.1,
        "weight_decay": 1e-4,
        "schedule": "multi-step",
        "milestones": (30, 60),
        "augment": "crop-flip",
    },
}

#: The recipe of a data set where none is named; of a folder, the last one.
RECIPE_OF = {
    "digits": "digits",
    "mnist": "mnist",
    "fashion-mnist": "mnist",
    "cifar10": "cifar-paper",
    "cifar100": "cifar-paper",
}

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("one-cycle", "multi-step", "cosine", "constant")
AUGMENTATIONS = ("none", "crop", "crop-flip")

#: Options that need not be the same on all workers.
OWN = ("data", "threads", "workers", "checkpoint_every")


def options_for(given: Mapping[str, Any]) -> TrainOptions:
    """The options of a recipe with some of them overridden.

    Where the length is overridden and the milestones are not, they keep their places: the middle stays the middle.
    Args: given, names of TrainOptions to values; "recipe" names the recipe, and where it is missing the data set does.
    Errors: ValueError for an unknown recipe or data set, or a recipe that needs a data set to be named.
    """
    name = given.get("recipe")
    if name is None:
        data = given.get("data", "digits")
        name = RECIPE_OF.get(data, "digits" if data in DATASETS else "imagenet")
    recipe = replace(TrainOptions(recipe=name), **lookup(RECIPES, name, "recipe"))
    options = replace(recipe, **{key: value for key, value in given.items() if key != "recipe"})
    if "epochs" in given and "steps" not in given:
        options.steps = 0  # the recipe's steps give way to the user's epochs
    if "milestones" not in given and options.milestones:
        options.milestones = scaled(options.milestones, recipe.steps or recipe.epochs, options.steps or options.epochs)
        if not options.milestones:
            options.schedule = "constant"
    if not options.data:
        raise ValueError(f"recipe {name} needs a data set: --data FOLDER, with a folder for each class")
    return options


def scaled(milestones: tuple[int, ...], before: int, now: int) -> tuple[int, ...]:
    """The same places in a run of another length; those that fall on its ends, or on another, are left out."""
    places = {round(milestone * now / before) for milestone in milestones}
    return tuple(sorted(place for place in places if 0 < place < now))


def describe(options: TrainOptions) -> str:
    """The options in full, a line each, with a mark where the recipe said otherwise."""
    usual = options_for({"recipe": options.recipe, "data": options.data})
    lines = [f"recipe {options.recipe}:"]
    for field in fields(TrainOptions):
        if field.name == "recipe" or field.name == ("epochs" if options.steps else "steps"):
            continue
        value, was = getattr(options, field.name), getattr(usual, field.name)
        note = "" if value == was or field.name == "data" else f"   (the recipe's: {shown(was)})"
        lines.append(f"  {field.name.replace('_', '-'):16} {shown(value)}{note}")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """An option as a user would type it."""
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def check_options(options: TrainOptions) -> None:
    """Refuse options that cannot train.

    Errors: ValueError that names the option, what was expected and what came.
    """

    def refuse(name: str, expected: str) -> None:
        value = shown(getattr(options, name))
        raise ValueError(f"--{name.replace('_', '-')} must be {expected}, got {value}")

    for name in ("epochs", "batch_size"):
        if getattr(options, name) < 1:
            refuse(name, "at least 1")
    for name in ("lr", "momentum", "weight_decay", "gamma", "clip_norm"):
        value = getattr(options, name)
        if not (math.isfinite(value) and value >= 0):
            refuse(name, "a finite number of at least 0")
    for name in ("seed", "threads", "steps", "warmup", "workers"):
        if getattr(options, name) < 0:
            refuse(name, "at least 0")
    for name in ("label_smoothing", "ema"):
        if not 0 <= getattr(options, name) < 1:
            refuse(name, "at least 0 and below 1")
    for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("augment", AUGMENTATIONS)):
        if getattr(options, name) not in known:
            refuse(name, f"one of {', '.join(known)}")
    length, unit = (options.steps, "steps") if options.steps else (options.epochs, "epochs")
    inside = [options.warmup, *options.milestones, length]
    if options.schedule == "multi-step" and (inside != sorted(set(inside)) or not options.milestones):
        refuse("milestones", f"growing, after the warm-up and before the end ({length} {unit})")
    if options.warmup and (options.schedule == "one-cycle" or options.warmup >= length):
        refuse("warmup", f"below the run's {length} {unit}, and one-cycle has a warm-up of its own")
    interval(options.checkpoint_every)


def check_workers(options: TrainOptions, model: Module, train: ArrayDataset, test: ArrayDataset) -> None:
    """Refuse what cannot be trained by so many workers, and workers that would train different things.

    Errors: ValueError, on all workers alike.
    """
    size = parallel.size()
    if size == 1:
        return
    facts = {f"--{name.replace('_', '-')}": v for name, v in asdict(options).items() if name not in OWN}
    facts.update({name: f"{tensor.dtype} {tensor.shape}" for name, tensor in model.state_dict().items()})
    facts["the checksum of the data"] = fingerprint(train, test)[:12]
    parallel.check_same(facts)
    if options.batch_size % size or options.batch_size < 2 * size:
        raise ValueError(
            f"--batch-size counts the images of all workers and must be a multiple of their number, {size}, with two "
            f"images for each at least; got {options.batch_size}"
        )
    if len(train) < 2 * size:
        raise ValueError(f"{size} workers need {2 * size} training images at least, and there are {len(train)}")
    if (train.labels == -100).any():
        raise ValueError("labels of -100 (images that do not count) cannot be trained on by several workers")


def interval(text: str) -> tuple[int, float]:
    """``500`` as (500 steps, 0 seconds); ``90s``, ``5m`` and ``2h`` as (0 steps, so many seconds).

    Errors: ValueError for anything else.
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "")
    if not number.isdecimal() or not 0 < int(number) < 10**9:
        raise ValueError(f"--checkpoint-every must be a number of steps, or a time such as 90s, 5m or 2h, got {text!r}")
    return (0, int(number) * units[unit]) if unit else (int(number), 0.0)


def total_steps(options: TrainOptions, steps_per_epoch: int) -> int:
    """How many steps the run makes."""
    return options.steps or options.epochs * steps_per_epoch


def total_epochs(options: TrainOptions, steps_per_epoch: int) -> int:
    """How many epochs the run counts; the last may be cut short by ``steps``."""
    return math.ceil(options.steps / steps_per_epoch) if options.steps else options.epochs


def make_optimizer(model: Module, options: TrainOptions) -> Optimizer:
    """The optimiser of the options over all parameters."""
    if options.optimizer == "sgd":
        return SGD(
            model.parameters(),
            options.lr,
            options.momentum,
            weight_decay=options.weight_decay,
            nesterov=options.nesterov,
        )
    kinds = {"adam": Adam, "adamw": AdamW}
    return kinds[options.optimizer](model.parameters(), options.lr, weight_decay=options.weight_decay)


def make_schedule(optimizer: Optimizer, options: TrainOptions, steps_per_epoch: int) -> LRScheduler:
    """The schedule of the options: it counts steps, whatever the options count."""
    unit = 1 if options.steps else steps_per_epoch
    total = total_steps(options, steps_per_epoch)
    warmup = options.warmup * unit
    if options.schedule == "one-cycle":
        return OneCycleLR(optimizer, max_lr=options.lr, total_steps=total)
    if options.schedule == "cosine":
        main: LRScheduler = CosineAnnealingLR(optimizer, T_max=total - warmup)
    else:
        milestones = [m * unit - warmup for m in options.milestones] if options.schedule == "multi-step" else []
        main = MultiStepLR(optimizer, milestones, options.gamma)
    if warmup == 0:
        return main
    return SequentialLR(optimizer, [LinearLR(optimizer, 0.1, total_iters=warmup), main], [warmup])


def augmentation(name: str, dataset: Any) -> Callable[[np.ndarray, np.random.Generator], np.ndarray] | None:
    """What changes the training images at random; None for nothing.

    "crop" moves an image by up to an eighth of its side (4 of 32 pixels), what comes in being the mean colour;
    "crop-flip" mirrors half of the images too. Source: Lee et al. 2015; He et al. 2015.
    """
    if name == "none":
        return None
    height, width = dataset.images.shape[-2:]
    normalize = getattr(dataset, "normalize", None)
    bytes_ = dataset.images.dtype == np.uint8
    fill = [round(255 * mean) for mean in normalize.mean] if bytes_ and normalize is not None else 0
    crop = RandomCrop((height, width), padding=max(1, height // 8), fill=fill)
    return crop if name == "crop" else Compose([crop, RandomHorizontalFlip()])
