"""A record as one HTML page. Python writes the network as nested <details>; page.html holds the style and the script.

Everything that comes from the user, names and paths and lines of code, is escaped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from minires.debug.folding import Group, fold, leaf_name, shortcut
from minires.debug.rows import Histogram, Input, Row, finite
from minires.debug.table import memory, milliseconds, number, place, size

TEMPLATE = Path(__file__).with_name("page.html")
WIDTH, HEIGHT = 320, 72  # of a histogram
SMALL = 40  # operations: a record of so many is shown with every module open


def render(rows: Sequence[Row], title: str) -> str:
    """The whole page."""
    total = sum([time_of(row) for row in rows]) or 1.0
    tree = fold(rows)
    body = given_tensors(rows) + "".join([element(part, None, 0, total, len(rows) <= SMALL) for part in tree])
    text = TEMPLATE.read_text(encoding="utf-8")
    text = text.replace("<!--TITLE-->", escape(title)).replace("<!--TOTAL-->", escape(in_all(rows)))
    text = text.replace("<!--GRAPH-->", body or "<p>No operation was recorded.</p>")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # a file's name may hold any bytes


def in_all(rows: Sequence[Row]) -> str:
    """The sums, in a line."""
    forward = sum([row.forward_ms for row in rows])
    backward = sum([row.backward_ms or 0.0 for row in rows])
    kept = memory(sum([row.kept_bytes for row in rows]))
    return (
        f"{len(rows)} operations: forward {milliseconds(forward)}, backward {milliseconds(backward)}, "
        f"{kept} kept for backward"
    )


def drawn(x: Input) -> str | None:
    """The id of the element that an argument comes from; parameters, labels and plain numbers are not drawn."""
    if x.row is not None:
        return f"op{x.row}"
    return f"given{x.given}" if x.given is not None and len(x.shape) > 1 else None


def given_tensors(rows: Sequence[Row]) -> str:
    """A line for each tensor that came from outside."""
    found = {drawn(x): x for row in rows for x in row.inputs if x.row is None}
    lines = [f'<div class="given" id="{i}"><b>input</b> {size(x.shape)}</div>\n' for i, x in found.items() if i]
    return "".join(lines)


def time_of(row: Row) -> float:
    """Milliseconds of an operation, forward and backward."""
    return row.forward_ms + (row.backward_ms or 0.0)


def element(part: Group | Row, parent: Group | None, depth: int, total: float, opened: bool) -> str:
    """A group or an operation, as a <details>."""
    if isinstance(part, Row):
        return operation(part, parent, total)
    inside = "".join([element(child, part, depth + 1, total, opened) for child in part.parts])
    is_open = opened or depth == 0 or any(isinstance(child, Group) for child in part.parts) and depth == 1
    return (
        f'<details class="group"{" open" if is_open else ""}>{group_summary(part, total)}'
        f'<div class="inside">{inside}</div></details>\n'
    )


def group_summary(group: Group, total: float) -> str:
    """The line of a group: what its last operation gave, and what all of them cost."""
    rows = group.rows()
    last = rows[-1]
    way = shortcut(group)
    badge = "" if way is None else f' <span class="badge">shortcut: {escape(way)}</span>'
    count = f"{len(rows)} operation{'s' if len(rows) > 1 else ''}"
    name = f"<b>{escape(group.name)}</b> <i>{escape(group.kind)}</i>{badge} <small>{count}</small>"
    time = sum([time_of(row) for row in rows])
    return summary(name, last, time, sum([row.kept_bytes for row in rows]), total, all(map(finite, rows)))


def summary(name: str, row: Row, time: float, kept: int, total: float, good: bool) -> str:
    """The line that is seen of a closed <details>."""
    bad = "" if good else ' class="bad"'
    cells = [size(row.shape), number(row.mean), number(row.std), f"{row.zeros:.1%}", number(row.grad_norm)]
    texts = "".join([f"<span>{escape(cell)}</span>" for cell in cells])
    share = f'<span class="time" style="--share:{100 * time / total:.1f}%">{milliseconds(time)}</span>'
    return f"<summary{bad}><span>{name}</span>{texts}{share}<span>{memory(kept)}</span></summary>"


def operation(row: Row, parent: Group | None, total: float) -> str:
    """One operation: its line, and behind it all its numbers, its histograms and the lines of code."""
    name = leaf_name(row, parent)
    kind = "" if name == row.operation else f" <i>{escape(row.operation)}</i>"
    where = "" if row.module or parent is not None else f" <small>{escape(place(row))}</small>"
    sources = " ".join([i for i in map(drawn, row.inputs) if i is not None])
    words = f"{row.module} {row.operation} {' '.join([level.kind for level in row.modules])} {size(row.shape)}"
    head = summary(f"<b>{escape(name)}</b>{kind}{where}", row, time_of(row), row.kept_bytes, total, finite(row))
    join = " join" if len(sources.split()) > 1 else ""
    return (
        f'<details class="op{join}" id="op{row.number}" data-from="{sources}" data-text="{escape(words.lower())}">'
        f'{head}<div class="card">{numbers(row)}<div>{histograms(row)}</div>{code(row)}</div></details>\n'
    )


def numbers(row: Row) -> str:
    """Every number of a row, as a table of two columns."""
    facts = [("operation", f"{row.operation}, number {row.number}"), ("module", row.module or place(row))]
    facts += [(f"input {i}", described(x)) for i, x in enumerate(row.inputs)]
    facts += [
        ("result", f"{size(row.shape)} {row.dtype}"),
        ("mean", f"{row.mean:.6g}"),
        ("std", f"{row.std:.6g}"),
        ("zeros", f"{row.zeros:.4%}"),
        ("gradient norm", "-" if row.grad_norm is None else f"{row.grad_norm:.6g}"),
        ("forward", milliseconds(row.forward_ms)),
        ("backward", milliseconds(row.backward_ms)),
        ("result takes", memory(row.result_bytes)),
        ("backward needs", memory(row.cache_bytes)),
        ("newly kept", memory(row.kept_bytes)),
        ("gradients take", memory(row.grad_bytes)),
    ]
    if row.histogram.outside:
        facts.append(("not finite", f"{row.histogram.outside} values of the result"))
    if row.grad_histogram is not None and row.grad_histogram.outside:
        facts.append(("not finite", f"{row.grad_histogram.outside} values of the gradient"))
    cells = "".join([f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts])
    return f"<table>{cells}</table>"


def described(x: Input) -> str:
    """An argument in words."""
    if x.row is not None:
        return f"{size(x.shape)} from operation {x.row}"
    return f"{size(x.shape)} {'parameter' if x.parameter else f'given, number {x.given}'}"


def histograms(row: Row) -> str:
    """The distribution of the result, and of the gradient that came back."""
    pictures = histogram("values of the result", row.histogram)
    if row.grad_histogram is not None:
        pictures += histogram("values of the gradient", row.grad_histogram)
    return pictures


def histogram(name: str, values: Histogram) -> str:
    """A histogram as SVG. Heights are square roots of counts, so that a ReLU's many zeros leave the rest visible."""
    most = max(values.counts) or 1
    step = WIDTH / len(values.counts)
    bars = []
    for i, count in enumerate(values.counts):
        if count:
            height = max(1.0, (HEIGHT - 4) * (count / most) ** 0.5)
            bars.append(f"M{i * step:.1f} {HEIGHT}v-{height:.1f}h{step - 1:.1f}v{height:.1f}z")
    zero = ""
    if values.low < 0 < values.high:
        at = WIDTH * -values.low / (values.high - values.low)
        zero = f'<path class="zero" d="M{at:.1f} 0V{HEIGHT}"/>'
    label = f"{name}, from {values.low:.3g} to {values.high:.3g}"
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f'<path class="bars" d="{"".join(bars)}"/>{zero}<path class="axis" d="M0 {HEIGHT}H{WIDTH}"/></svg>'
        f"<figcaption><span>{values.low:.3g}</span><span>{escape(name)}</span><span>{values.high:.3g}</span>"
        "</figcaption></figure>"
    )


def code(row: Row) -> str:
    """The lines of code that led to the operation, the user's first, with file and module."""
    items = []
    for line in row.lines:
        users = ' class="users"' if (line.file, line.number) == row.where else ""
        inside = f" in {escape(line.module)}" if line.module else ""
        name = escape(os.path.basename(line.file))
        place_of = f'<small title="{escape(line.file)}">{name}:{line.number}{inside}</small>'
        items.append(f"<li{users}>{place_of}<code>{escape(line.text)}</code></li>")
    return f"<ol>{''.join(items)}</ol>"
