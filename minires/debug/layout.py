"""Where the boxes of a drawing go: the longest path straight down, everything else in columns beside it.

Rows grow downwards, column 0 is the main path. A shortcut, an edge that jumps over boxes of the main path or a branch
with boxes of its own, gets the nearest column on the right in which nothing else lies beside the part of the main path
that it spans. What begins beside the main path, a second input, stands on the left in the same way.
"""

from __future__ import annotations

from typing import NamedTuple


class Layout(NamedTuple):
    """Places by the number of the vertex or the edge."""

    rows: list[float]
    columns: list[int]  # of each vertex; 0 is the main path, below 0 is to its left
    lanes: list[int]  # of each edge that jumps over boxes of the main path the column it runs in, else 0
    shortcuts: list[bool]  # of each edge whether it is part of a way past the main path
    pages: list[int]  # the first row of each strip, when the drawing is cut to stand side by side


def lay_out(count: int, edges: list[tuple[int, int]], rows_on_a_page: int) -> Layout:
    """Place the vertices 0 to count - 1, numbered so that every edge goes from a smaller to a larger number."""
    parents: list[list[int]] = [[] for _ in range(count)]
    children: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges:
        parents[b].append(a)
        children[a].append(b)
    earliest = [0] * count
    for i in range(count):
        for a in parents[i]:
            earliest[i] = max(earliest[i], earliest[a] + 1)
    main = longest_path(parents, earliest)
    on_main = [False] * count
    for i in main:
        on_main[i] = True

    latest = [float(len(main) - 1)] * count
    for i in reversed(range(count)):
        for b in children[i]:
            latest[i] = min(latest[i], latest[b] - 1)
    rows = [float(earliest[i]) if on_main[i] else latest[i] for i in range(count)]
    branches = branches_beside(count, edges, on_main)
    shortcut_branch, from_outside = [False] * count, [False] * count
    for branch in branches:
        begun = any(on_main[a] for i in branch for a in parents[i])
        ends = any(on_main[b] for i in branch for b in children[i])
        for i in branch:
            from_outside[i] = not begun
        if begun and ends:
            slack = min(latest[i] - earliest[i] for i in branch)
            for i in branch:
                rows[i] -= slack / 2  # in the middle between where it leaves and where it joins
                shortcut_branch[i] = True
        elif begun:
            for i in branch:
                rows[i] = float(earliest[i])

    columns, lanes = columns_beside(edges, rows, on_main, branches, from_outside)
    shortcuts = [lanes[k] > 0 or shortcut_branch[a] or shortcut_branch[b] for k, (a, b) in enumerate(edges)]
    return Layout(rows, columns, lanes, shortcuts, page_breaks(edges, rows, len(main), rows_on_a_page))


def longest_path(parents: list[list[int]], earliest: list[int]) -> list[int]:
    """The vertices of a longest path, from its beginning."""
    i = max(range(len(earliest)), key=earliest.__getitem__)
    path = [i]
    while parents[i]:
        i = next(a for a in parents[i] if earliest[a] == earliest[i] - 1)
        path.append(i)
    path.reverse()
    return path


def branches_beside(count: int, edges: list[tuple[int, int]], on_main: list[bool]) -> list[list[int]]:
    """The vertices off the main path, those that hang together in one list."""
    beside: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges:
        if not on_main[a] and not on_main[b]:
            beside[a].append(b)
            beside[b].append(a)
    seen = list(on_main)
    branches = []
    for i in range(count):
        if seen[i]:
            continue
        seen[i] = True
        branch, stack = [], [i]
        while stack:
            j = stack.pop()
            branch.append(j)
            for k in beside[j]:
                if not seen[k]:
                    seen[k] = True
                    stack.append(k)
        branches.append(sorted(branch))
    return branches


def columns_beside(
    edges: list[tuple[int, int]],
    rows: list[float],
    on_main: list[bool],
    branches: list[list[int]],
    from_outside: list[bool],
) -> tuple[list[int], list[int]]:
    """The column of every vertex and of every edge that jumps: the shortest spans come nearest to the main path."""
    columns, lanes = [0] * len(rows), [0] * len(edges)
    spans: list[tuple[float, float, int, list[int], int]] = []  # from, to, width, vertices, edge
    seen = set()
    for k, (a, b) in enumerate(edges):
        if on_main[a] and on_main[b] and (rows[b] - rows[a] > 1 or (a, b) in seen):
            spans.append((rows[a], rows[b], 1, [], k))
        seen.add((a, b))
    number = {i: n for n, branch in enumerate(branches) for i in branch}
    reach = [[min(rows[i] for i in branch), max(rows[i] for i in branch)] for branch in branches]
    for a, b in edges:
        for i, other in ((a, b), (b, a)):
            if i in number:
                low, high = reach[number[i]]
                reach[number[i]] = [min(low, rows[other]), max(high, rows[other])]
    for branch, (low, high) in zip(branches, reach, strict=True):
        inner: list[list[float]] = []  # rows taken in each column of the branch
        for i in branch:
            column = next(
                (c for c in range(len(inner)) if all(abs(rows[i] - row) >= 1 for row in inner[c])), len(inner)
            )
            if column == len(inner):
                inner.append([])
            inner[column].append(rows[i])
            columns[i] = column
        spans.append((low, high, len(inner), branch, -1))

    left: list[list[tuple[float, float]]] = []  # the spans in each column
    right: list[list[tuple[float, float]]] = []
    spans.sort(key=span_order)
    for low, high, width, branch, k in spans:
        on_the_left = bool(branch) and from_outside[branch[0]]
        taken, side = (left, -1) if on_the_left else (right, 1)
        column = 0
        while not all(free(taken, c, low, high) for c in range(column, column + width)):
            column += 1
        while len(taken) < column + width:
            taken.append([])
        for c in range(column, column + width):
            taken[c].append((low, high))
        for i in branch:
            columns[i] = side * (columns[i] + column + 1)
        if k >= 0:
            lanes[k] = column + 1
    return columns, lanes


def span_order(span: tuple[float, float, int, list[int], int]) -> tuple[float, float, int]:
    """Short before long, then from top to bottom."""
    return span[1] - span[0], span[0], span[4]


def free(taken: list[list[tuple[float, float]]], column: int, low: float, high: float) -> bool:
    """Whether nothing lies in this column between two rows."""
    if column >= len(taken):
        return True
    for other_low, other_high in reversed(taken[column]):
        if low < other_high and other_low < high:
            return False
    return True


def page_breaks(edges: list[tuple[int, int]], rows: list[float], count: int, rows_on_a_page: int) -> list[int]:
    """The first row of each strip. A cut is where one edge alone crosses: never through a residual block."""
    if count <= rows_on_a_page:
        return [0]
    crossing = [0] * (count + 1)  # by the row above the cut
    for a, b in edges:
        for row in range(int(rows[a]), int(-(-rows[b] // 1))):
            crossing[row] += 1
    wanted = -(-count // -(-count // rows_on_a_page))  # strips of equal height
    breaks = [0]
    last_cut = 0
    for row in range(count - 1):
        if crossing[row] == 1:
            last_cut = row + 1
        if row + 2 - breaks[-1] > wanted + 1 and last_cut > breaks[-1]:
            breaks.append(last_cut)
    return breaks
