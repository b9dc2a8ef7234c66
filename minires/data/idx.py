"""IDX files, the format of MNIST: two zero bytes, the type (8: uint8), the number of axes, their sizes, the bytes.

Source: http://yann.lecun.com/exdb/mnist (sizes are big-endian int32).
"""

from __future__ import annotations

import math
import os
import struct

import numpy as np

from minires.data.binary import DataError, check_end, check_labels, opened, read_bytes


def read_idx(path: str | os.PathLike, axes: int) -> np.ndarray:
    """An IDX file of bytes, packed with gzip or not.

    Args: axes, how many there must be: 3 for images (N, H, W), 1 for labels (N,).
    Shapes: -> the sizes in the file, uint8.
    Errors: DataError for a file of another kind or of other sizes than it says; OSError where it cannot be opened.
    """
    with opened(path) as (file, most):
        zero, kind, dimensions = struct.unpack(">HBB", read_bytes(file, 4))
        if zero != 0 or kind != 8 or dimensions != axes:
            magic = f"{zero:04x}{kind:02x}{dimensions:02x}"
            raise DataError(f"expected an IDX file of bytes with {axes} axes (it begins 000008{axes:02x}), got {magic}")
        sizes = struct.unpack(f">{axes}I", read_bytes(file, 4 * axes))
        count = math.prod(sizes)
        if count == 0:
            raise DataError(f"it says that it is empty: {sizes}")
        if count > most:
            raise DataError(f"it says that it holds {sizes} bytes, and it cannot hold more than {most:,}")
        content = read_bytes(file, count)
        check_end(file)
    return np.frombuffer(content, np.uint8).reshape(sizes)


def read_idx_images(path: str | os.PathLike) -> np.ndarray:
    """Images as they are stored. Shapes: -> (N, 1, H, W) uint8. Errors: as read_idx."""
    return read_idx(path, 3)[:, None]


def read_idx_labels(path: str | os.PathLike, classes: int = 10) -> np.ndarray:
    """Labels. Shapes: -> (N,) int64. Errors: as read_idx; DataError for a label that is no class."""
    labels = read_idx(path, 1)
    try:
        check_labels(labels, classes)
    except DataError as error:
        raise DataError(f"{os.fspath(path)}: {error}") from error
    return labels.astype(np.int64)
