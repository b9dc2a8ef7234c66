"""A module's values: what can be wrong with those that are loaded, and modes and statistics that are put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minires.engine.convert import printable
from minires.engine.tensor import Tensor
from minires.kernels.backend import Array

if TYPE_CHECKING:
    from minires.nn.module import Module


# ---- Loading -----------------------------------------------------------------------------------------------------


class LoadResult(NamedTuple):
    """What load_state_dict(strict=False) passed over."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def matched(
    module: str, own: Mapping[str, Tensor], state_dict: Mapping[str, Any], strict: bool, rename: Mapping[str, str]
) -> tuple[dict[str, Array], LoadResult]:
    """The arrays of a state_dict that have a place in a module, by the module's own names, all of them checked.

    A missing num_batches_tracked is no problem: networks saved before PyTorch 0.4.1 have none.
    Args: module, its class's name, for errors; own, its state_dict().
    Errors: TypeError for what is no mapping; RuntimeError that lists every missing, unexpected and wrongly shaped key.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"load_state_dict: expected names and arrays, got {type(state_dict).__name__}")
    given = translate(state_dict, own, rename)
    missing = [name for name in own if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in own]
    arrays = {}
    problems = []
    for name in own:
        if name in given:
            try:
                arrays[name] = array_for(own[name], given[name])
            except ValueError as error:
                problems.append(f"{printable(name)}: {error}")
    if strict and missing:
        problems.append(f"missing keys: {', '.join(map(printable, missing))}")
    if strict and unexpected:
        problems.append(f"unexpected keys: {', '.join(map(printable, unexpected))}")
    if problems:
        raise RuntimeError(f"load_state_dict: {module} was not changed:\n  " + "\n  ".join(problems))
    return arrays, LoadResult(missing, unexpected)


def array_for(own: Tensor, value: Any) -> Array:
    """A value as an array that fits into a parameter or buffer. Errors: ValueError where it does not."""
    try:
        array = value.array if isinstance(value, Tensor) else np.asarray(value)
    except Exception as error:  # an array of another library may refuse in its own way
        raise ValueError(f"cannot be read as an array: {error}") from error
    if own.dtype.kind != "f" and array.dtype.kind == "f":
        raise ValueError(f"expected integers, got {array.dtype}")
    if array.shape != own.shape:
        raise ValueError(f"expected shape {own.shape}, got {array.shape}")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"expected numbers, got {array.dtype}")
    return array


def translate(state: Mapping[str, Any], own: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, Any]:
    """A state_dict under a module's own names: without DataParallel's ``module.``, and with prefixes renamed.

    Errors: RuntimeError where two names become one.
    """
    prefix = "module."
    wrapped = (
        state and all(str(name).startswith(prefix) for name in state) and not any(n.startswith(prefix) for n in own)
    )
    translated: dict[str, Any] = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise RuntimeError(f"load_state_dict: names must be text, got {name!r}")
        if wrapped:
            name = name.removeprefix(prefix)
        for old, new in rename.items():
            if name == old or name.startswith(f"{old}."):
                name = new + name[len(old) :]
                break
        if name in translated:
            raise RuntimeError(f"load_state_dict: two entries are both called {printable(name)} after renaming")
        translated[name] = value
    return translated


# ---- Looking at a model and leaving it as it was -----------------------------------------------------------------


@contextmanager
def in_mode(model: Module, training: bool) -> Iterator[None]:
    """Training or evaluation mode inside the ``with``; afterwards every part has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def statistics_kept(model: Module) -> Iterator[None]:
    """Afterwards every buffer, such as a running mean, holds the values that it had."""
    statistics = [(buffer, buffer.array.copy()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, values in statistics:
            buffer.array[...] = values
