"""What draw() draws: operations and the inputs they began with, folded by module to a chosen depth."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from minires.engine.tensor import Node, Tensor
from minires.nn import Module, Sequential
from minires.nn.module import Parameter


class Vertex(NamedTuple):
    """A box of the drawing: an operation, a leaf tensor, or a module folded into one."""

    title: str  # the operation, or the path of the folded module
    detail: str  # the module's path, or what the folded module is
    shape: tuple[int, ...]  # of the result
    kind: str  # "operation", "leaf" or "module"
    members: tuple[Node | Tensor, ...]  # what it stands for

    @property
    def second_line(self) -> str:
        """Module and shape, in one line."""
        shape = str(self.shape) if self.shape else "scalar"
        return f"{self.detail}  {shape}" if self.detail else shape


class Graph(NamedTuple):
    """Vertices, each after those it was computed from, and edges (from, to) between their numbers."""

    vertices: list[Vertex]
    edges: list[tuple[int, int]]


def folded(outputs: Sequence[Node], inputs: Sequence[Tensor], depth: int | None) -> Graph:
    """The graph behind these Nodes, with every module at this depth as one vertex; None folds nothing.

    Args: outputs, the last Nodes; inputs, the leaves to be called "input"; depth, 0 for whole models.
    """
    members = members_behind(outputs)
    number = {id(member): i for i, member in enumerate(members)}
    edges = []
    for child, member in enumerate(members):
        for parent in member.parents if isinstance(member, Node) else ():
            if parent is not None and id(parent) in number:
                edges.append((number[id(parent)], child))
    keys: list[tuple[int, ...]] = [()] * len(members)
    if depth is not None:
        for i, member in enumerate(members):
            modules = member.modules if isinstance(member, Node) else ()
            if len(modules) > depth:
                keys[i] = tuple([id(module) for module in modules[: depth + 1]])
    groups, between = grouped(keys, edges)
    names: dict[int, dict[int, str]] = {}
    called_input = {id(x) for x in inputs}
    vertices = [vertex([members[i] for i in group], depth, names, called_input) for group in groups]
    return Graph(vertices, between)


def members_behind(outputs: Sequence[Node]) -> list[Node | Tensor]:
    """Every Node behind these, and the leaf Tensors they began with, each after its parents.

    The parameters of modules are left out: each belongs to one operation, and they would hide the path of the data.
    A walk with a stack of its own: a deep network never meets Python's recursion limit.
    """
    found: list[Node | Tensor] = []
    seen: set[int] = set()
    stack: list[tuple[Node | Tensor, bool]] = [(output, False) for output in reversed(outputs)]
    while stack:
        member, parents_done = stack.pop()
        if parents_done:
            found.append(member)
            continue
        if id(member) in seen:
            continue
        seen.add(id(member))
        stack.append((member, True))
        if isinstance(member, Node):
            for parent in reversed(member.parents):
                hidden = isinstance(parent, Parameter) and member.modules
                if parent is not None and not hidden and id(parent) not in seen:
                    stack.append((parent, False))
    return found


def grouped(keys: list[tuple[int, ...]], edges: list[tuple[int, int]]) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Members of one key that hang together become a group; a member without a key stays alone.

    Two calls of one module (a ReLU used twice) do not hang together and stay two groups. Where a path leaves a group
    and comes back into it, the groups on that circle stay open.
    Returns: the groups, each after its parents, and the edges between them; two groups have one edge at most.
    """
    closed = list(keys)
    while True:
        leader = list(range(len(keys)))
        for parent, child in edges:
            if closed[child] and closed[parent] == closed[child]:
                a, b = find(leader, parent), find(leader, child)
                leader[max(a, b)] = min(a, b)
        group_of = [find(leader, i) for i in range(len(keys))]
        groups: dict[int, list[int]] = {}
        for i, group in enumerate(group_of):
            groups.setdefault(group, []).append(i)
        between = without_repeats([(group_of[a], group_of[b]) for a, b in edges], groups)
        order = topological(list(groups), between)
        if len(order) == len(groups):
            place = {group: i for i, group in enumerate(order)}
            return [groups[group] for group in order], sorted([(place[a], place[b]) for a, b in between])
        stuck = set(groups) - set(order)
        back = topological(list(stuck), [(b, a) for a, b in between if a in stuck and b in stuck])
        for group in stuck - set(back):  # on a circle, or between two
            for i in groups[group]:
                closed[i] = ()


def without_repeats(edges: list[tuple[int, int]], groups: dict[int, list[int]]) -> list[tuple[int, int]]:
    """The edges between groups: one that touches a folded group comes once, and x * x keeps its two."""
    kept, seen = [], set()
    for a, b in edges:
        single = len(groups[a]) == len(groups[b]) == 1
        if a != b and (single or (a, b) not in seen):
            kept.append((a, b))
        seen.add((a, b))
    return kept


def find(leader: list[int], i: int) -> int:
    """The first member of i's group, with the way to it made shorter."""
    while leader[i] != i:
        leader[i] = leader[leader[i]]
        i = leader[i]
    return i


def topological(numbers: list[int], edges: list[tuple[int, int]]) -> list[int]:
    """The numbers, each after those with an edge to it, the smallest first; those behind a circle are missing."""
    waits = {number: 0 for number in numbers}
    children: dict[int, list[int]] = {number: [] for number in numbers}
    for a, b in edges:
        waits[b] += 1
        children[a].append(b)
    ready = sorted([number for number in numbers if waits[number] == 0])
    order = []
    while ready:
        number = heapq.heappop(ready)
        order.append(number)
        for child in children[number]:
            waits[child] -= 1
            if waits[child] == 0:
                heapq.heappush(ready, child)
    return order


def vertex(
    members: list[Node | Tensor], depth: int | None, names: dict[int, dict[int, str]], called_input: set[int]
) -> Vertex:
    """The box of a group of members."""
    last = members[-1]
    if not isinstance(last, Node):
        kind = "input" if id(last) in called_input else "parameter" if isinstance(last, Parameter) else "tensor"
        return Vertex(kind, "", last.shape, "leaf", (last,))
    if len(members) == 1:
        # Evaluation has a kernel of its own; in a picture it is the same layer.
        operation = last.operation.removesuffix("_inference")
        return Vertex(operation, path_of(last.modules, names), last.shape, "operation", (last,))
    modules = last.modules[: depth + 1]
    module = modules[-1]
    path = path_of(modules, names)
    return Vertex(path or what_it_is(module), what_it_is(module) if path else "", last.shape, "module", tuple(members))


def what_it_is(module: Module) -> str:
    """A module's class, or "3 x BasicBlock" for a Sequential of equal parts."""
    kinds = [type(child).__name__ for child in module.children()]
    if isinstance(module, Sequential) and len(kinds) > 1 and len(set(kinds)) == 1:
        return f"{len(kinds)} x {kinds[0]}"
    return type(module).__name__


def path_of(modules: Sequence[Module], names: dict[int, dict[int, str]]) -> str:
    """module_path with a memory: each module's parts are listed once and not at every operation."""
    parts = []
    for outer, inner in zip(modules, modules[1:], strict=False):
        if id(outer) not in names:
            names[id(outer)] = {id(module): name for name, module in outer.named_modules()}
        parts.append(names[id(outer)].get(id(inner), type(inner).__name__))
    return ".".join(parts)
