"""debug.record(): every operation inside the ``with`` is kept, with its numbers.

    with debug.record() as record:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
    print(record)

Statistics and histograms are computed at the moment an operation runs, so no array lives longer than it would have.
That takes time, which is left out of the times that are reported.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from minires.debug import charts, page, table
from minires.debug.rows import Input, Level, Line, Row, line_of_code, norm, statistics
from minires.engine import cuda
from minires.engine.armour import users_line
from minires.engine.modes import Watcher, mode, module_path
from minires.engine.tensor import Node, Tensor
from minires.kernels.backend import Array, device_of
from minires.nn import Module, Parameter

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Spent(threading.local):
    """The seconds that all records of this thread have spent on their own work."""

    seconds = 0.0


spent = Spent()


def now() -> float:
    """Seconds on a clock that stands still while a record does its own work."""
    return time.perf_counter() - spent.seconds


def record() -> Record:
    """Keep every operation of this thread that runs inside the ``with``, forward and backward.

    Returns: a Record: ``print(record)``, ``record.rows``, ``record.to_csv("ops.csv")``, ``record.plot("ops.png")``,
        ``record.save_html("trace.html")``.
    Source: torch.profiler.profile, in its use.
    """
    return Record()


class Record(Watcher):
    """What ``debug.record()`` keeps: a Row for each operation, in the order in which they ran.

    Gradients are there where backward() ran inside the ``with`` too; after several, those of the last.
    Errors: RuntimeError where it is entered a second time.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.count_given = 0
        self.elapsed_ms = 0.0  # of the whole with, without the record's own work
        self.entered = False
        self.forget()

    def forget(self) -> None:
        """Let go of all that is known about living objects; the rows stay."""
        self.started = 0.0
        self.results: dict[int, tuple[weakref.ref, int]] = {}  # by id: a result, and its row
        self.given: dict[int, tuple[weakref.ref, int]] = {}  # by id: a tensor from outside, and its number
        self.nodes: dict[int, Row] = {}  # by id: a later Node with the same id replaces the one that is gone
        self.kept: dict[int, weakref.ref] = {}  # by id: arrays that some cache has kept
        self.roots: dict[int, tuple[Module, int]] = {}  # by id: the outermost modules, and their numbers
        self.names: dict[tuple[int, int], tuple[Module, Module, str]] = {}  # by ids: a part's name in what calls it

    def __enter__(self) -> Record:
        if self.entered:
            raise RuntimeError("debug.record: a record is used once: write a new debug.record()")
        self.entered = True
        mode.watchers += (self,)
        self.began = now()
        return self

    def __exit__(self, *error: object) -> None:
        self.elapsed_ms = 1000 * (now() - self.began)
        mode.watchers = tuple([watcher for watcher in mode.watchers if watcher is not self])
        self.forget()

    # ---- What happens at an operation ------------------------------------------------------------------------------

    def before_forward(self, operation: str, inputs: tuple, options: dict[str, Any]) -> None:
        """Start the clock."""
        self.started = now()

    def after_forward(self, result: Tensor, cache: Any, backward: Callable, inputs: tuple) -> None:
        """Stop the clock, and make the operation's row."""
        wait_for(result.array)
        stopped = now()
        entered = time.perf_counter()
        cache_bytes, kept_bytes = self.memory(cache, inputs) if result.node is not None else (0, 0)
        mean, std, zeros, histogram = statistics(result.array)
        where, levels = users_line(), self.levels()
        row = Row(
            number=len(self.rows),
            operation=backward.__name__.removesuffix("_backward"),
            module=levels[-1].path if levels else "",
            modules=levels,
            where=where,
            lines=code_lines(sys._getframe(1), where, levels),
            inputs=tuple([self.input(x) for x in inputs if x is not None]),
            shape=result.shape,
            dtype=str(result.dtype),
            mean=mean,
            std=std,
            zeros=zeros,
            histogram=histogram,
            forward_ms=1000 * (stopped - self.started),
            result_bytes=result.array.nbytes,
            cache_bytes=cache_bytes,
            kept_bytes=kept_bytes,
        )
        self.rows.append(row)
        self.results[id(result)] = (weakref.ref(result), row.number)
        if result.node is not None:
            self.nodes[id(result.node)] = row
        spent.seconds += time.perf_counter() - entered

    def before_backward(self, node: Node) -> None:
        """Note the gradient that came back to the operation's result, and start the clock."""
        entered = time.perf_counter()
        row = self.row_of(node)
        if row is not None:
            row.grad_norm, row.grad_histogram = norm(node.grad)
        spent.seconds += time.perf_counter() - entered
        self.started = now()

    def after_backward(self, node: Node, grads: Any) -> None:
        """Stop the clock."""
        grads = grads if isinstance(grads, tuple) else (grads,)
        wait_for(node.grad)
        stopped = now()
        row = self.row_of(node)
        if row is not None:
            row.backward_ms = 1000 * (stopped - self.started)
            own = {id(owner(grad)): grad.nbytes for grad in grads if grad is not None}  # two may be one array
            row.grad_bytes = sum(own.values())

    def row_of(self, node: Node) -> Row | None:
        """The row of a Node that was made inside the with."""
        row = self.nodes.get(id(node))
        same = row is not None and (row.where, row.shape, row.operation) == (node.where, node.shape, node.operation)
        return row if same else None

    def input(self, x: Tensor) -> Input:
        """Where an argument came from."""
        reference, number = self.results.get(id(x), (None, None))
        if reference is not None and reference() is x:
            return Input(x.shape, number, False)
        if isinstance(x, Parameter):
            return Input(x.shape, None, True)
        reference, number = self.given.get(id(x), (None, None))
        if reference is None or reference() is not x:
            number = self.count_given
            self.given[id(x)] = (weakref.ref(x), number)
            self.count_given += 1
        return Input(x.shape, None, False, number)

    def levels(self) -> tuple[Level, ...]:
        """The modules that are being called."""
        if not mode.modules:
            return ()
        root = mode.modules[0]
        number = self.roots.setdefault(id(root), (root, len(self.roots)))[1]
        levels = [Level(number, "", type(root).__name__)]
        for outer, inner in zip(mode.modules, mode.modules[1:], strict=False):
            key = (id(outer), id(inner))
            if key not in self.names:
                self.names[key] = (outer, inner, module_path((outer, inner)))  # the search is long in a deep network
            path = ".".join([name for name in (levels[-1].path, self.names[key][2]) if name])
            levels.append(Level(number, path, type(inner).__name__))
        return tuple(levels)

    def memory(self, cache: Any, inputs: tuple) -> tuple[int, int]:
        """Bytes of the memory that a cache holds; and of what of it is no parameter's and held by no earlier cache.

        An array that is a view holds the whole of the memory that it looks at.
        """
        own = {id(owner(x.array)) for x in inputs if isinstance(x, Parameter)}
        held = {id(array): array for array in map(owner, arrays_in(cache))}
        new = 0
        for key, array in held.items():
            known = self.kept.get(key)
            if key not in own and (known is None or known() is not array):
                new += array.nbytes
                self.kept[key] = weakref.ref(array)
        return sum([array.nbytes for array in held.values()]), new

    # ---- What is made of it ----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __repr__(self) -> str:
        return f"<record of {len(self.rows)} operations>"

    def __str__(self) -> str:
        return table.as_text(self.rows, self.elapsed_ms)

    def to_csv(self, path: str | Path) -> None:
        """One line an operation, in full precision. Errors: OSError where the file cannot be written."""
        table.save_csv(self.rows, path)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Spread of the activations and norm of the gradient by depth, time and memory by layer.

        Args: path, of a .png, .svg or .pdf to write; None writes nothing.
        Returns: the figure. Errors: OSError where the file cannot be written, ValueError for another kind of file.
        """
        figure = charts.draw(self.rows)
        if path is not None:
            figure.savefig(path)
        return figure

    def save_html(self, path: str | Path, title: str = "What a network did") -> None:
        """The network as one page: block by block, each operation opening to its numbers, histograms and lines.

        The page is complete in itself: it asks no network for anything. Errors: OSError where it cannot be written.
        """
        text = page.render(self.rows, title)
        Path(path).write_text(text, encoding="utf-8")


def wait_for(array: Array) -> None:
    """Return when a GPU has finished its work; a CPU has when it returns."""
    if device_of(array) == "cuda":
        cuda.synchronize()


def owner(array: Array) -> Array:
    """The array whose memory this one looks at; itself where it has its own."""
    while type(getattr(array, "base", None)) is type(array):
        array = array.base
    return array


def arrays_in(cache: Any) -> list[Array]:
    """The arrays of a cache, a named tuple."""
    if hasattr(cache, "nbytes") and hasattr(cache, "shape"):
        return [cache]
    if isinstance(cache, (tuple, list)):
        return [array for item in cache for array in arrays_in(item)]
    return []


def code_lines(frame: FrameType | None, where: tuple[str, int], levels: tuple[Level, ...]) -> tuple[Line, ...]:
    """The user's line, and the line of each module's forward on the way to the operation, the outermost first."""
    calling = {id(module): level.path for module, level in zip(mode.modules, levels, strict=True)}
    lines = []
    while frame is not None and calling:
        module = id(frame.f_locals.get("self")) if frame.f_code.co_name == "forward" else None
        if module in calling:
            lines.append(line_of_code(frame.f_code.co_filename, frame.f_lineno, calling.pop(module)))
        frame = frame.f_back
    lines.reverse()
    if where not in [(line.file, line.number) for line in lines]:
        lines.insert(0, line_of_code(*where))
    return tuple(lines)
