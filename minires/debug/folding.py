"""Rows folded by the modules that made them: a network, its stem, its stages, their blocks, their layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from minires.debug.rows import Level, Row


@dataclass(slots=True)
class Group:
    """Operations that follow one another in one module."""

    name: str
    kind: str  # the module's class, or what a stem or head is made of
    path: str
    parts: list[Group | Row] = field(default_factory=list)

    def rows(self) -> list[Row]:
        """All operations inside, in their order."""
        found = []
        for part in self.parts:
            found += [part] if isinstance(part, Row) else part.rows()
        return found


def fold(rows: Sequence[Row]) -> list[Group | Row]:
    """The rows as a tree. A module that ran a single operation is not a group: the operation stands for it."""
    top = Group("", "", "")
    open_groups: list[tuple[Level | None, Group]] = [(None, top)]
    for row in rows:
        depth = 0
        while depth < min(len(row.modules), len(open_groups) - 1) and open_groups[depth + 1][0] == row.modules[depth]:
            depth += 1
        del open_groups[depth + 1 :]
        for level in row.modules[depth:]:
            group = Group(level.path.rpartition(".")[2] or level.kind, level.kind, level.path)
            open_groups[-1][1].parts.append(group)
            open_groups.append((level, group))
        open_groups[-1][1].parts.append(row)
    for part in top.parts:
        if isinstance(part, Group):
            simplify(part)
            part.parts = stem_and_head(part)
    return top.parts


def simplify(group: Group) -> None:
    """Replace, everywhere inside, a group of a single operation by the operation."""
    for i, part in enumerate(group.parts):
        if isinstance(part, Group):
            simplify(part)
            if len(part.parts) == 1 and isinstance(part.parts[0], Row):
                group.parts[i] = part.parts[0]


def stem_and_head(network: Group) -> list[Group | Row]:
    """The parts of a network, with the single operations before the first stage as one, and those after the last."""
    parts = network.parts
    inner = [i for i, part in enumerate(parts) if isinstance(part, Group)]
    if not inner:
        return parts
    before, after = parts[: inner[0]], parts[inner[-1] + 1 :]
    middle: list[Group | Row] = list(parts[inner[0] : inner[-1] + 1])
    return [*together("stem", before), *middle, *together("head", after)]


def together(name: str, parts: list) -> list[Group | Row]:
    """Several operations as one group."""
    return [Group(name, ", ".join([leaf_name(part) for part in parts]), "", parts)] if len(parts) > 1 else parts


def leaf_name(row: Row, group: Group | None = None) -> str:
    """What a single operation is called: the last name of its module, or the operation where the module has more."""
    if not row.modules or not row.module or (group is not None and group.path == row.module):
        return row.operation
    return row.module.rpartition(".")[2]


def shortcut(group: Group) -> str | None:
    """What the input of a residual block goes through to its addition: "identity", or the name of a part.

    A residual block is a group with an addition of its own, of two computed tensors of the result's shape; of the two
    ways to it the one with fewer operations is the shortcut. Returns: None where there is none.
    """
    own = {row.number: row for row in group.rows()}
    for part in group.parts:
        if not isinstance(part, Row) or part.operation not in ("add", "residual_add") or len(part.inputs) != 2:
            continue
        if len(part.shape) < 2 or any(x.parameter or x.shape != part.shape for x in part.inputs):
            continue
        ways = [way_to(x.row, own) for x in part.inputs]
        if len(ways[0]) == len(ways[1]):
            continue
        short, long = sorted(ways, key=len)
        own_way = short - long  # with pre-activation, both begin with batch norm and ReLU
        return part_with(min(own_way), group) if own_way else "identity"
    return None


def way_to(last: int | None, own: dict[int, Row]) -> set[int]:
    """The numbers of the operations among ``own`` that lead to the operation ``last``, with itself."""
    found: set[int] = set()
    waiting = [last]
    while waiting:
        number = waiting.pop()
        if number in own and number not in found:
            found.add(number)
            waiting += [x.row for x in own[number].inputs]
    return found


def part_with(number: int, group: Group) -> str:
    """The name of the part of a group that holds an operation."""
    for part in group.parts:
        if isinstance(part, Row) and part.number == number:
            return leaf_name(part, group)
        if isinstance(part, Group) and number in [row.number for row in part.rows()]:
            return part.name
    return "identity"
