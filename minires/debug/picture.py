"""A graph as a picture, by matplotlib."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from minires.debug.fold import Graph, Vertex
from minires.debug.layout import Layout, lay_out, page_breaks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# In inches.
ROW = 0.66
BOX_HEIGHT = 0.42
GAP = 0.35  # between columns
MARGIN = 0.25
BEND = 0.14  # radius of a rounded corner
ROWS_ON_A_PAGE = 22
ASPECT = 1.5  # width by height of a deep network, cut into strips
LARGEST = 20_000  # pixels: beyond it a picture becomes coarser

SHORTCUT = "#c44e00"  # dark enough to be seen without its colour
EDGE = "#333333"
FACES = {
    "conv2d": "#d6e6f4",
    "linear": "#d6e6f4",
    "batch_norm": "#fbf3d0",
    "relu": "#e4efdc",
    "max_pool2d": "#eadcec",
    "avg_pool2d": "#eadcec",
    "global_avg_pool": "#eadcec",
}

Point = tuple[float, float]


def picture(graph: Graph, format: str, title: str = "") -> bytes:
    """The content of an .svg or .png file. The same graph gives the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    widths = [box_width(vertex) for vertex in graph.vertices]
    count = len(graph.vertices)
    layout = lay_out(count, graph.edges, count)
    page_width = column_centers(widths, layout)[1]
    height = int(max(layout.rows)) + 1
    limit = max(ROWS_ON_A_PAGE, round(math.sqrt(height * page_width / ROW / ASPECT)))
    layout = layout._replace(pages=page_breaks(graph.edges, layout.rows, height, limit))
    centers, page_width = column_centers(widths, layout)
    places = [place(layout, centers, page_width, i) for i in range(count)]
    pages = len(layout.pages)
    bottom = max(y for _, y in places) + BOX_HEIGHT / 2 + MARGIN
    top = -BOX_HEIGHT / 2 - MARGIN - (0.3 if title else 0) - (0.1 if pages > 1 else 0)
    left, right = -MARGIN, pages * page_width + MARGIN - GAP
    right = max(right, left + 0.09 * len(title) + MARGIN)
    dpi = min(150, LARGEST / max(right - left, bottom - top))
    # Text stays text in an SVG (it can be searched), and ids do not change from run to run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "minires", "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(right - left, bottom - top), dpi=dpi)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
        axes.axis("off")
        if title:
            axes.text(
                (left + right) / 2,
                top + 0.25,
                title,
                ha="center",
                va="center",
                fontsize=11,
                weight="bold",
                parse_math=False,
            )
        for k, (a, b) in enumerate(graph.edges):
            draw_edge(axes, route(layout, k, a, b, places, widths, centers, page_width), layout.shortcuts[k])
        for vertex, (x, y), width in zip(graph.vertices, places, widths, strict=True):
            draw_box(axes, vertex, x, y, width)
        content = io.BytesIO()
        figure.savefig(content, format=format, metadata={"Date": None} if format == "svg" else {"Software": None})
    return content.getvalue()


def text_width(text: str, size: float, weight: str) -> float:
    """The width of a line in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, False)[0] / 72


def box_width(vertex: Vertex) -> float:
    """How wide a box must be for its two lines."""
    return max(text_width(vertex.title, 9, "bold"), text_width(vertex.second_line, 7, "normal")) + 0.24


def column_centers(widths: list[float], layout: Layout) -> tuple[dict[int, float], float]:
    """The x of each column within a strip, and the width of a strip."""
    needed: dict[int, float] = {column: 0.0 for column in [*layout.columns, *layout.lanes]}
    for width, column in zip(widths, layout.columns, strict=True):
        needed[column] = max(needed[column], width)
    centers, x = {}, 0.0
    for column in sorted(needed):
        centers[column] = x + needed[column] / 2
        x += needed[column] + GAP
    return centers, x + (0.25 if len(layout.pages) > 1 else 0)


def page_of(layout: Layout, row: float) -> int:
    """The strip that a row stands in."""
    return sum(1 for first in layout.pages if first <= row) - 1


def place(layout: Layout, centers: dict[int, float], page_width: float, i: int) -> Point:
    """The middle of a box."""
    page = page_of(layout, layout.rows[i])
    return page * page_width + centers[layout.columns[i]], (layout.rows[i] - layout.pages[page]) * ROW


def route(
    layout: Layout,
    k: int,
    a: int,
    b: int,
    places: list[Point],
    widths: list[float],
    centers: dict[int, float],
    page_width: float,
) -> list[Point]:
    """The corners of edge k, from box a to box b."""
    (ax, ay), (bx, by) = places[a], places[b]
    page_a, page_b = page_of(layout, layout.rows[a]), page_of(layout, layout.rows[b])
    if page_a != page_b:  # to the top of the next strip
        gutter = page_b * page_width - GAP / 2 - 0.12
        low, high = ay + ROW / 2, by - ROW / 2 - 0.05
        return [
            (ax, ay + BOX_HEIGHT / 2),
            (ax, low),
            (gutter, low),
            (gutter, high),
            (bx, high),
            (bx, by - BOX_HEIGHT / 2),
        ]
    if layout.lanes[k]:
        lane = page_a * page_width + centers[layout.lanes[k]]
        return [(ax + widths[a] / 2, ay), (lane, ay), (lane, by), (bx + widths[b] / 2, by)]
    if layout.columns[a] == layout.columns[b]:
        return [(ax, ay + BOX_HEIGHT / 2), (bx, by - BOX_HEIGHT / 2)]
    if layout.columns[a] == 0:
        return [(ax + widths[a] / 2, ay), (bx, ay), (bx, by - BOX_HEIGHT / 2)]
    if layout.columns[b] == 0 and layout.columns[a] > 0:
        return [(ax, ay + BOX_HEIGHT / 2), (ax, by), (bx + widths[b] / 2, by)]
    gap = by - ROW / 2 + 0.02  # from above, through the space between two rows
    into = bx - widths[b] / 4 if layout.columns[b] == 0 else bx
    return [(ax, ay + BOX_HEIGHT / 2), (ax, gap), (into, gap), (into, by - BOX_HEIGHT / 2)]


def draw_edge(axes: Axes, corners: list[Point], shortcut: bool) -> None:
    """A line with rounded corners and an arrow's head."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    points, codes = [corners[0]], [Path.MOVETO]
    for before, corner, behind in zip(corners, corners[1:], corners[2:], strict=False):
        points += [towards(corner, before), corner, towards(corner, behind)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    points.append(corners[-1])
    codes.append(Path.LINETO)
    color, width = (SHORTCUT, 1.8) if shortcut else (EDGE, 1.1)
    axes.add_patch(
        FancyArrowPatch(
            path=Path(points, codes),
            arrowstyle="-|>",
            mutation_scale=9,
            color=color,
            linewidth=width,
            shrinkA=0,
            shrinkB=0,
            joinstyle="round",
            zorder=1,
        )
    )


def towards(corner: Point, other: Point) -> Point:
    """The point where a rounded corner begins, on the way to another point."""
    length = math.hypot(other[0] - corner[0], other[1] - corner[1])
    share = min(BEND, length / 2) / length if length else 0.0
    return corner[0] + share * (other[0] - corner[0]), corner[1] + share * (other[1] - corner[1])


def draw_box(axes: Axes, vertex: Vertex, x: float, y: float, width: float) -> None:
    """A box with its two lines: dark where two paths are added, a double frame for a folded module."""
    from matplotlib.patches import FancyBboxPatch

    adds = vertex.title in ("residual_add", "add") and vertex.kind == "operation"
    face = "#333333" if adds else "white" if vertex.kind == "leaf" else FACES.get(vertex.title, "#f2f2f2")
    style = f"round,pad=0,rounding_size={BOX_HEIGHT / 2 if vertex.kind == 'leaf' else 0.07}"
    frames = [0.0, 0.04] if vertex.kind == "module" else [0.0]
    for inset in frames:
        corner = (x - width / 2 + inset, y - BOX_HEIGHT / 2 + inset)
        axes.add_patch(
            FancyBboxPatch(
                corner,
                width - 2 * inset,
                BOX_HEIGHT - 2 * inset,
                boxstyle=style,
                facecolor=face,
                edgecolor=EDGE,
                linewidth=0.8,
                zorder=2,
            )
        )
    color = "white" if adds else "black"
    lines = ((vertex.title, -0.085, 9, "bold"), (vertex.second_line, 0.095, 7, "normal"))
    for text, offset, size, weight in lines:
        axes.text(
            x,
            y + offset,
            text,
            ha="center",
            va="center",
            fontsize=size,
            weight=weight,
            color=color,
            zorder=3,
            parse_math=False,
        )
