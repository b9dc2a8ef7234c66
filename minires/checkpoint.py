"""Parameters on disk: names and arrays in a .safetensors file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from minires.backend import to_numpy
from minires.creation import from_numpy
from minires.tensor import Tensor


def write_whole(path: str | os.PathLike, content: bytes) -> None:
    """Write a file beside its place and move it there when it is complete: what was there is never half gone.

    Errors: OSError where the folder cannot be written.
    """
    beside = f"{os.fspath(path)}.{os.getpid()}.part"
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        if os.path.exists(beside):
            os.remove(beside)
        raise


def check_suffix(path: str | os.PathLike) -> None:
    """Errors: ValueError for a file that is not named .safetensors."""
    if not os.fspath(path).endswith(".safetensors"):
        raise ValueError(f"expected a file name that ends in .safetensors, got {os.fspath(path)!r}")


def save(path: str | os.PathLike, state: Mapping[str, Any]) -> None:
    """Write a state_dict (names to Tensors or arrays) to a .safetensors file; an older file stays until this is whole.

    Errors: ValueError for another file name; OSError where the folder cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    check_suffix(path)
    arrays = {}
    for name, value in state.items():
        array = to_numpy(value.array) if isinstance(value, Tensor) else np.asarray(value)
        arrays[name] = np.ascontiguousarray(array).reshape(array.shape)
    write_whole(path, to_bytes(arrays))


def load(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read a .safetensors file: names to Tensors, for load_state_dict.

    Errors: FileNotFoundError where there is none; ValueError for another file name or a file that is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    check_suffix(path)
    with open(path, "rb") as file:
        content = file.read()
    try:
        arrays = from_bytes(content)
    except SafetensorError as error:
        raise ValueError(f"{os.fspath(path)} is damaged or not a safetensors file: {error}") from error
    return {name: from_numpy(array) for name, array in arrays.items()}
