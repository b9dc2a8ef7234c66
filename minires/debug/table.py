"""A record as text: a table to print, and CSV."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from minires.debug.rows import Row

COLUMNS = (
    ("operation", "<"),
    ("module", "<"),
    ("shape", "<"),
    ("mean", ">"),
    ("std", ">"),
    ("zeros", ">"),
    ("grad norm", ">"),
    ("forward", ">"),
    ("backward", ">"),
    ("result", ">"),
    ("kept", ">"),
)

CSV_COLUMNS = (
    "number",
    "operation",
    "module",
    "file",
    "line",
    "input_shapes",
    "shape",
    "dtype",
    "mean",
    "std",
    "zeros",
    "grad_norm",
    "forward_ms",
    "backward_ms",
    "result_bytes",
    "cache_bytes",
    "kept_bytes",
    "grad_bytes",
)


def size(shape: tuple[int, ...]) -> str:
    """A shape as 64x16x32x32; a single value as "scalar"."""
    return "x".join(map(str, shape)) or "scalar"


def number(value: float | None, digits: int = 3) -> str:
    """A value in few digits; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}g}"


def milliseconds(value: float | None) -> str:
    """A time, as 1.25 ms; a dash where there is none."""
    return "-" if value is None else f"{value:.2f} ms"


def memory(count: float | None) -> str:
    """Bytes as 4 B, 1.5 KiB, 2.0 MiB; a dash where there is none."""
    if count is None:
        return "-"
    if count < 1024:
        return f"{count} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024 or unit == "GiB":
            break
    return f"{count:.1f} {unit}"


def place(row: Row) -> str:
    """The module that made a row; for an operation outside every module, its line in the user's file."""
    if row.module:
        return row.module
    if row.modules:
        return row.modules[0].kind
    return f"{os.path.basename(row.where[0])}:{row.where[1]}"


def as_text(rows: Sequence[Row], elapsed_ms: float) -> str:
    """A line for each operation, with a head and a sum."""
    lines = [[name for name, _ in COLUMNS]]
    for row in rows:
        line = [row.operation, place(row), size(row.shape), number(row.mean), number(row.std), f"{row.zeros:.1%}"]
        line += [number(row.grad_norm), milliseconds(row.forward_ms), milliseconds(row.backward_ms)]
        lines.append([*line, memory(row.result_bytes), memory(row.kept_bytes)])
    forward, backward = sum([row.forward_ms for row in rows]), sum([row.backward_ms or 0 for row in rows])
    total = [f"{len(rows)} operations", *[""] * 6, milliseconds(forward), milliseconds(backward)]
    lines.append([*total, memory(sum([r.result_bytes for r in rows])), memory(sum([r.kept_bytes for r in rows]))])
    widths = [max([len(line[i]) for line in lines]) for i in range(len(COLUMNS))]
    text = ["  ".join([f"{cell:{s}{w}}" for cell, (_, s), w in zip(x, COLUMNS, widths, strict=True)]) for x in lines]
    rule = "-" * len(text[0])
    last = f"between the operations: {milliseconds(max(elapsed_ms - forward - backward, 0.0))}"
    return "\n".join([line.rstrip() for line in [text[0], rule, *text[1:-1], rule, text[-1], last]])


def as_csv(rows: Sequence[Row]) -> str:
    """CSV with a head; what is not there is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        given = [row.number, row.operation, row.module, *row.where, " ".join([size(x.shape) for x in row.inputs])]
        result = [size(row.shape), row.dtype, row.mean, row.std, row.zeros]
        cost = [row.grad_norm, row.forward_ms, row.backward_ms]
        bytes_of = [row.result_bytes, row.cache_bytes, row.kept_bytes, row.grad_bytes]
        writer.writerow([*given, *result, *cost, *bytes_of])
    return text.getvalue()


def save_csv(rows: Sequence[Row], path: str | Path) -> None:
    """Write as_csv to a file. Errors: OSError where the file cannot be written."""
    Path(path).write_text(as_csv(rows), encoding="utf-8", errors="backslashreplace")
