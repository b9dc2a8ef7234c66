"""Weights on disk: .safetensors, .npz, and PyTorch's .pth, .pt and .th.

``save(path, model.state_dict())`` and ``model.load_state_dict(load(path))``. The file name's ending says which format.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

import numpy as np

from minires.data.binary import CheckpointError, check_end, check_regular, fill, zip_entries
from minires.engine.creation import from_numpy
from minires.engine.tensor import Tensor
from minires.kernels.backend import to_numpy

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".th")

#: Bytes that the arrays of a .npz file may take where no limit is given: so many times the file's, and so many more.
UNPACKED, MORE = 32, 1 << 28

#: Bytes of the header of a .safetensors file: 80,000 arrays and more, ten times what ResNet-1202 has. The library takes
#: ten times as much, which costs it gigabytes.
HEADER = 10_000_000


def write_whole(path: str | os.PathLike, content: bytes, previous: str | os.PathLike | None = None) -> None:
    """Write a file beside its place and move it there when it is complete: what was there is never half gone.

    The new file has the rights of the one before. A link is followed, unless what is there is to be kept.
    Args: previous, where the file that was there goes; None lets it go.
    Errors: OSError where the folder cannot be written, or the disk is full; what was there is still there then.
    """
    if previous is None and os.path.islink(path):
        path = os.path.realpath(path)
    beside = f"{os.fspath(path)}.{os.urandom(8).hex()}.part"  # a name of its own: other threads write too
    try:
        with open(beside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError, PermissionError):  # a new file; a file system without rights
            os.chmod(beside, stat.S_IMODE(os.stat(path).st_mode))
        if previous is not None and os.path.exists(path):
            os.replace(path, previous)
        os.replace(beside, path)
    except BaseException:
        if os.path.exists(beside):
            os.remove(beside)
        raise
    sync_folder(os.path.dirname(os.fspath(path)) or ".")


def sync_folder(folder: str) -> None:
    """Bring a folder's names to the disk, so that a new file is found after a power cut; where the system can."""
    if os.name != "posix":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError:
        pass  # some file systems refuse it for folders, and keep the file anyway
    finally:
        os.close(number)


def suffix_of(path: str | os.PathLike) -> str:
    """The ending of a file name. Errors: ValueError for one that is not a format of weights."""
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"expected a file name that ends in {', '.join(SUFFIXES)}, got {os.fspath(path)!r}")
    return suffix


def save(path: str | os.PathLike, state: Mapping[str, Any]) -> None:
    """Write a state_dict (names to Tensors or arrays); an older file stays until the new one is whole.

    The ending chooses the format: .safetensors, .npz, or .pth, .pt, .th for ``torch.load``.
    Errors: ValueError for another ending; TypeError for values that are not numbers; OSError where the folder cannot
        be written.
    """
    if isinstance(path, Mapping) or not isinstance(state, Mapping):
        raise TypeError(f"save: expected save(path, state_dict), got {type(path).__name__}, {type(state).__name__}")
    suffix = suffix_of(path)
    arrays = {}
    for name, value in state.items():
        array = value.array if isinstance(value, Tensor) else value
        array = to_numpy(array) if hasattr(array, "__cuda_array_interface__") else np.asarray(array)
        if not isinstance(name, str) or array.dtype.kind not in "biuf":
            raise TypeError(f"save: expected names and numbers, got {name!r}: {type(value).__name__} {array.dtype}")
        arrays[name] = native(np.ascontiguousarray(array).reshape(array.shape))
    if suffix == ".safetensors":
        content = to_safetensors(arrays)
    elif suffix == ".npz":
        content = to_npz(arrays)
    else:
        from minires.data import torch_format

        content = torch_format.write(arrays)
    write_whole(path, content)


def load(path: str | os.PathLike, limit: int | None = None) -> Any:
    """Read a file of weights: names to Tensors, for load_state_dict.

    A PyTorch file may hold more (``{"state_dict": {...}, "epoch": 3}``): it comes back as it was saved.
    Args: limit, how many bytes the arrays may take in memory, where they can take more than the file has: a .npz file
        that is compressed (None: 32 times the file and 256 MiB), and a PyTorch file with several views of the same
        numbers (None: 8 times the file and 1 MiB).
    Errors: FileNotFoundError where there is none; ValueError for another ending; CheckpointError (a ValueError) for a
        file that is damaged, of another kind, larger than the limit, or a pickle that asks for more than tensors need.
    """
    suffix = suffix_of(path)
    if limit is not None and (type(limit) is not int or limit < 0):
        raise ValueError(f"load: limit must be a number of bytes or None, got {limit!r}")
    check_regular(path, "weights", CheckpointError)
    with open(path, "rb") as file:
        content = file.read()
    try:
        if suffix == ".safetensors":
            return as_tensors(read_safetensors(content))
        if suffix == ".npz":
            return as_tensors(read_npz(content, limit))
        from minires.data import torch_format

        return torch_format.read(content, limit)
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error


def native(array: np.ndarray) -> np.ndarray:
    """The array in the machine's own byte order: itself, where it is in that order already."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def to_safetensors(arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> bytes:
    """Arrays as a .safetensors file. Errors: TypeError for a name or a dtype that the format has not."""
    from safetensors import SafetensorError
    from safetensors.numpy import save

    if "__metadata__" in arrays:
        raise TypeError("save: .safetensors keeps the name __metadata__ for itself")
    try:
        content = save(arrays, metadata)
    except (SafetensorError, KeyError) as error:
        raise TypeError(f"save: .safetensors cannot hold these arrays: {error}") from error
    header = int.from_bytes(content[:8], "little")
    if header > HEADER:
        raise TypeError(f"save: names and shapes of {header:,} bytes are more than the {HEADER:,} that load reads")
    return content


def to_npz(arrays: dict[str, np.ndarray]) -> bytes:
    """Arrays as a .npz file; numpy.savez would take some names for its own arguments."""
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, array, allow_pickle=False)
            archive.writestr(f"{name}.npy", entry.getvalue())
    return buffer.getvalue()


def read_safetensors(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors file. Errors: CheckpointError for a damaged one."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    header = int.from_bytes(content[:8], "little")
    if HEADER < header <= len(content) - 8:
        raise CheckpointError(
            f"its header has {header:,} bytes, more than {HEADER:,}: expected the names and shapes of a network's "
            "arrays; write those that you need into a file of their own"
        )
    try:
        return from_bytes(content)
    except KeyError as error:
        raise CheckpointError(f"its numbers are of kind {error}, which NumPy has not") from error
    except (SafetensorError, ValueError, TypeError) as error:
        raise CheckpointError(f"damaged, or not a safetensors file: {error}") from error


def read_npz(content: bytes, limit: int | None = None) -> dict[str, np.ndarray]:
    """The arrays of a .npz file.

    Args: limit, as load.
    Errors: CheckpointError for a damaged one, one with Python objects in it, or one that is larger than the limit.
    """
    import io
    import zipfile

    room = UNPACKED * len(content) + MORE if limit is None else limit
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = zip_entries(archive)
            total = sum(entry.file_size for entry in entries)
            if total > room:
                raise CheckpointError(
                    f"its arrays take {total:,} bytes when they are unpacked, more than {room:,}: "
                    f"if you trust the file, minires.load(path, limit={total}) reads it"
                )
            arrays = {}
            for entry in entries:
                with archive.open(entry) as file:
                    arrays[entry.filename.removesuffix(".npy")] = read_npy(file, entry.file_size)
            return arrays
    except CheckpointError:
        raise
    except Exception as error:  # a damaged zip or header may raise anything
        raise CheckpointError(f"damaged, or not an npz file of arrays: {type(error).__name__}: {error}") from error


def read_npy(file: IO[bytes], size: int) -> np.ndarray:
    """The array of a .npy file of so many bytes. (numpy.load would first take the memory that the header asks for.)

    Errors: CheckpointError where the header and the size of the file do not match, and for Python objects; ValueError
        for a damaged header; DataError where the file is shorter.
    """
    import math

    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise CheckpointError(f"an array of npy version {version} is none of numbers")
    if dtype.hasobject or dtype.kind not in "biuf":
        raise CheckpointError(f"the file holds an array of {dtype}, expected numbers")
    rest = size - file.tell()
    if math.prod(shape) * dtype.itemsize != rest:
        raise CheckpointError(f"damaged: an array of shape {shape} and {dtype} does not fill its {rest} bytes")
    raw = np.empty(rest, np.uint8)
    fill(file, raw)
    check_end(file)
    return native(raw.view(dtype).reshape(shape, order="F" if fortran_order else "C"))


def as_tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Arrays as Tensors. Errors: CheckpointError for arrays of other things than numbers."""
    for array in arrays.values():
        if array.dtype.kind not in "biuf":
            raise CheckpointError(f"the file holds an array of {array.dtype}, expected numbers")
    return {name: from_numpy(array) for name, array in arrays.items()}


def state_dict_of(loaded: Any) -> dict[str, Tensor]:
    """The state_dict inside what a file held: itself, or its entry "state_dict" or "model".

    Errors: CheckpointError where there is none.
    """
    for candidate in (loaded, *(loaded.get(key) for key in ("state_dict", "model") if isinstance(loaded, dict))):
        if not isinstance(candidate, dict) or not candidate:
            continue
        if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in candidate.items()):
            return candidate
    keys = f"the entries {', '.join(map(str, list(loaded)[:5]))}" if isinstance(loaded, dict) else type(loaded).__name__
    raise CheckpointError(f'expected a state_dict (names to tensors), alone or as "state_dict" or "model", got {keys}')
