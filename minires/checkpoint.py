"""Parameters on disk: names and arrays in a .safetensors file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minires.backend import to_numpy
from minires.creation import from_numpy
from minires.tensor import Tensor


def write_whole(path: str | os.PathLike, content: bytes) -> None:
    """Write a file beside its place and move it there when it is complete: what was there is never half gone.

    Errors: OSError where the folder cannot be written.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def check_suffix(path: str | os.PathLike) -> Path:
    """Errors: ValueError for a file that is not named .safetensors."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"expected a file name that ends in .safetensors, got {path.name!r}")
    return path


def save(path: str | os.PathLike, state: Mapping[str, Any]) -> None:
    """Write a state_dict (names to Tensors or arrays) to a .safetensors file; an older file stays until this is whole.

    Errors: ValueError for another file name; OSError where the folder cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    path = check_suffix(path)
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

    path = check_suffix(path)
    try:
        arrays = from_bytes(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}") from error
    return {name: from_numpy(array) for name, array in arrays.items()}
