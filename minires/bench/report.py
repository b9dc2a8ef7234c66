"""What a benchmark found: as a table for people, as plain values for programs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from minires.bench.timing import Figure, figure, ratio


class Timed(NamedTuple):
    """A row of times: the seconds of each side's calls, round by round. A side that is missing is empty."""

    name: str
    group: str
    minires: list[float]
    pytorch: list[float]
    floor: list[float]


class Remembered(NamedTuple):
    """A row of peak memory above the idle process, in bytes; None where it was not measured."""

    name: str
    minires: int | None
    pytorch: int | None


class Report(NamedTuple):
    """Everything that a run found, and what it ran on."""

    system: dict[str, Any]
    timed: list[Timed]
    remembered: list[Remembered]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For programs: times in milliseconds, memory in MB (10^6 bytes), ratios as MiniRes / PyTorch."""
        return {
            "system": self.system,
            "times_ms": [timed_dict(row) for row in self.timed],
            "geometric_means": geometric_means(self.timed),
            "memory_mb": [memory_dict(row) for row in self.remembered],
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        parts = [headline(self.system)]
        if self.timed:
            parts.append(times_table(self.timed, self.system["torch"] is not None))
        if self.remembered:
            parts.append(memory_table(self.remembered, self.system["torch"] is not None))
        parts.append(f"measured in {self.seconds:.0f} s")
        return "\n\n".join(parts)


def scaled(found: Figure, factor: float) -> dict[str, float]:
    """A figure in another unit, by its names."""
    return {name: value * factor for name, value in found._asdict().items()}


def timed_dict(row: Timed) -> dict[str, Any]:
    """A row of times as plain values; None for what was not measured."""
    return {
        "name": row.name,
        "group": row.group,
        "repeats": len(row.minires),
        "minires": scaled(figure(row.minires), 1e3),
        "pytorch": scaled(figure(row.pytorch), 1e3) if row.pytorch else None,
        "floor": scaled(figure(row.floor), 1e3) if row.floor else None,
        "ratio": ratio(row.minires, row.pytorch)._asdict() if row.pytorch else None,
        "ratio_to_floor": ratio(row.minires, row.floor)._asdict() if row.floor else None,
    }


def memory_dict(row: Remembered) -> dict[str, Any]:
    """A row of memory as plain values; None for what was not measured."""
    return {
        "name": row.name,
        "minires": None if row.minires is None else row.minires / 1e6,
        "pytorch": None if row.pytorch is None else row.pytorch / 1e6,
        "ratio": row.minires / row.pytorch if row.minires is not None and row.pytorch else None,
    }


def geometric_means(rows: list[Timed]) -> dict[str, Any]:
    """The geometric means of the convolutions' ratios, forward and backward, with how many rows they are of."""
    means = {}
    for group in ("convolution forward", "convolution backward"):
        members = [row for row in rows if row.group == group]
        if members:
            to_pytorch = [ratio(row.minires, row.pytorch).median for row in members if row.pytorch]
            to_floor = [ratio(row.minires, row.floor).median for row in members]
            means[group] = {
                "rows": len(members),
                "ratio": geometric_mean(to_pytorch) if to_pytorch else None,
                "ratio_to_floor": geometric_mean(to_floor),
            }
    return means


def geometric_mean(values: list[float]) -> float:
    """The n-th root of the product."""
    return math.exp(sum(math.log(value) for value in values) / len(values))


def headline(system: dict[str, Any]) -> str:
    """What ran, on what; and a note where a side is missing or has another number of threads than was asked for."""
    threads = f"{system['threads']} thread" + ("s" if system["threads"] > 1 else "")
    architecture = f" ({system['blas_architecture']})" if system["blas_architecture"] else ""
    lines = [
        f"MiniRes {system['minires']}, NumPy {system['numpy']} with {system['blas']}{architecture}, "
        f"{'PyTorch ' + system['torch'] if system['torch'] else 'no PyTorch'}, "
        f"{threads}, {system['processors']} processors, float32"
    ]
    if system["torch"] is None:
        lines.append("PyTorch is not installed: MiniRes alone. For both: pip install torch")
    if system["blas_threads"] is None:
        lines.append("the threads of this NumPy's matrix products cannot be set from here: they may be more")
    elif system["blas_threads"] != system["threads"]:
        lines.append(f"this NumPy's matrix products run with {system['blas_threads']} threads")
    return "\n".join(lines)


def with_spread(found: Figure) -> str:
    """A figure as ``12.3 ±2%``: three digits, and half the distance between the quartiles."""
    digits = max(0, 2 - math.floor(math.log10(max(found.median, 0.1))))
    return f"{found.median:.{digits}f} ±{(found.high - found.low) / 2 / found.median:3.0%}"


def milliseconds(seconds: list[float]) -> str:
    """A side's time; a dash where nothing was measured."""
    return with_spread(figure([1e3 * s for s in seconds])) if seconds else "-"


def times_table(rows: list[Timed], with_pytorch: bool) -> str:
    """The rows of times, and below them the geometric means."""
    lines = [["times", "MiniRes ms", "PyTorch ms", "ratio", "floor ms", "repeats"]]
    for row in rows:
        times = [milliseconds(seconds) for seconds in (row.minires, row.pytorch, row.floor)]
        compared = with_spread(ratio(row.minires, row.pytorch)) if row.pytorch else "-"
        lines.append([row.name, times[0], times[1], compared, times[2], str(len(row.minires))])
    text = [columns(lines, hidden=() if with_pytorch else (2, 3)), ""]
    for group, mean in geometric_means(rows).items():
        beside = f"{mean['ratio']:.2f} x PyTorch, " if mean["ratio"] is not None else ""
        text.append(f"{group}, geometric mean of {mean['rows']}: {beside}{mean['ratio_to_floor']:.2f} x floor")
    text.append("times: median of the repeats, ± half the distance between their quartiles")
    if with_pytorch:
        text.append("ratio: MiniRes / PyTorch, of the medians, ± the same of the ratios within each round")
    text.append("floor: the same matrix products alone in NumPy, with their operands ready")
    return "\n".join(text)


def memory_table(rows: list[Remembered], with_pytorch: bool) -> str:
    """The rows of memory."""
    lines = [["peak above idle, MB", "MiniRes", "PyTorch", "ratio"]]
    for row in rows:
        found = memory_dict(row)
        sides = ["-" if found[side] is None else f"{found[side]:.0f}" for side in ("minires", "pytorch")]
        lines.append([row.name, *sides, "-" if found["ratio"] is None else f"{found['ratio']:.2f}"])
    text = columns(lines, hidden=() if with_pytorch else (2, 3))
    if any(row.minires is None for row in rows):
        text += "\nmemory: not measured on this system"
    return text


def columns(lines: list[list[str]], hidden: tuple[int, ...]) -> str:
    """Lines of cells as a table, names to the left and values to the right, with a rule under the first line."""
    shown = [i for i in range(len(lines[0])) if i not in hidden]
    widths = {i: max(len(line[i]) for line in lines) for i in shown}
    text = []
    for line in lines:
        cells = [line[i].ljust(widths[i]) if i == 0 else line[i].rjust(widths[i]) for i in shown]
        text.append("  ".join(cells))
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])
