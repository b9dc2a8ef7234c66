"""compare(): where a model parts from a reference, layer by layer, in values, gradients and statistics."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from minires.debug import causes
from minires.debug.runs import Run, Seen, is_torch, run_model, set_state, state_of
from minires.engine.tensor import Tensor
from minires.kernels.backend import to_numpy
from minires.nn import Module


class Difference(NamedTuple):
    """How far two arrays are apart: the largest difference, and the norm of the difference over the reference's."""

    largest: float
    relative: float


class LayerRow(NamedTuple):
    """One call of one layer, held against the reference's. None where there was nothing to compare."""

    name: str
    kind: str
    input: Difference | None
    output: Difference | None
    grad: Difference | None  # of the output
    parameter_grad: Difference | None  # the worst of its own parameters
    statistics: Difference | None  # the worst of its own buffers, after the run


def difference(a: np.ndarray | None, b: np.ndarray | None) -> Difference | None:
    """How far a is from b; infinitely where the shapes differ, or one is missing or not finite where the other is."""
    if a is None and b is None:
        return None
    if a is None or b is None or a.shape != b.shape:
        return Difference(np.inf, np.inf)
    a, b = a.astype(np.float64), b.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, a - b)
    if not np.isfinite(apart).all():
        return Difference(np.inf, np.inf)
    norm, size = float(np.sqrt((apart**2).sum())), float(np.sqrt((b[np.isfinite(b)] ** 2).sum()))
    return Difference(float(abs(apart).max(initial=0.0)), norm / size if size else float(norm > 0))


def worst_of(seen: Seen, mine: dict[str, Any], theirs: dict[str, Any]) -> Difference | None:
    """The relatively largest difference of what a layer itself owns, of two tables of arrays by name."""
    found: Difference | None = None
    for name in vars(seen.layer):
        name = f"{seen.name}.{name}" if seen.name else name
        if name in mine and name in theirs:
            one = difference(mine[name], theirs[name])
            if one is not None and (found is None or one.relative > found.relative):
                found = one
    return found


class Comparison:
    """What compare() found. ``print`` shows it as a table.

    Attributes: rows, one a call of a layer in the order of execution; parameters, sentences about names, shapes and
    values before the run; first_forward, first_backward and first_statistics, the names of the layers where the two
    part (None: nowhere); verdict, that in sentences.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.parameters: list[str] = []
        self.rows: list[LayerRow] = []
        self.first_forward: str | None = None
        self.first_backward: str | None = None
        self.first_statistics: str | None = None
        self.verdict: list[str] = []

    @property
    def agree(self) -> bool:
        """Whether nothing differs."""
        return not (self.parameters or self.verdict)

    def parts(self, found: Difference | None) -> bool:
        """Whether a difference is more than rounding."""
        return found is not None and found.relative > self.tolerance

    def __str__(self) -> str:
        table = [["layer", "kind", "output", "gradient", "parameters' gradient", "statistics"]]
        for row in self.rows:
            cells = [self.cell(one) for one in (row.output, row.grad, row.parameter_grad, row.statistics)]
            table.append([row.name or "(the model)", row.kind, *cells])
        widths = [max(len(line[i]) for line in table) for i in range(6)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
        ]
        said = self.verdict or ["they agree: forward, backward and statistics"]
        return "\n".join([*self.parameters, "largest difference (* more than rounding):", *lines, *said])

    def cell(self, found: Difference | None) -> str:
        """A difference as it stands in the table."""
        return "" if found is None else f"{found.largest:.1e}{' *' if self.parts(found) else ''}"


def compare(
    model: Module,
    reference: Any,
    x: Any,
    load: bool = False,
    double: bool = True,
    tolerance: float | None = None,
    seed: int = 0,
) -> Comparison:
    """Run two models on the same input and the same random upstream gradient, and print where they part.

    Copies run, in the mode of ``model``, module by module: both are left as they were.
    Args: reference, a MiniRes model or a torch.nn.Module with the same names; x, the input, a Tensor or an array; load,
        run the model with the reference's parameters and buffers; double, run both in float64, since in float32 a ReLU
        at 0 may let a gradient pass on one side alone; tolerance, the norm of a difference relative to the reference's
        that counts as rounding (1e-7, in float32 1e-4); seed, of the upstream gradient.
    Errors: TypeError for a model or reference that is none.
    """
    if not isinstance(model, Module):
        raise TypeError(f"compare: model must be a minires.nn.Module, got {type(model).__name__}")
    if not isinstance(reference, Module) and not is_torch(reference):
        kind = type(reference).__name__
        raise TypeError(f"compare: reference must be a minires.nn.Module or a torch.nn.Module, got {kind}")
    values = np.array(to_numpy(x.array)) if isinstance(x, Tensor) else np.asarray(x)
    model, reference = copy.deepcopy(model), copy.deepcopy(reference)
    if double:
        model.double(), reference.double()
    mine, theirs = state_of(model), state_of(reference)
    if tolerance is None:
        tolerance = 1e-4 if any(array.dtype == np.float32 for array in [*mine.values(), *theirs.values()]) else 1e-7
    result = Comparison(tolerance)
    result.parameters = differing_parameters(mine, theirs, load)
    if load:
        set_state(model, theirs)
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in reference.named_modules():
        module.training = modes.get(name, model.training)
    runs = run_model(model, values, seed), run_model(reference, values, seed)
    fill(result, *runs)
    print(result)
    return result


def differing_parameters(mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray], load: bool) -> list[str]:
    """What differs before anything runs, in sentences."""
    missing = [name for name in theirs if name not in mine]
    unexpected = [name for name in mine if name not in theirs]
    both = [name for name in mine if name in theirs]
    found = []
    if missing:
        found.append(f"missing here: {', '.join(missing)}")
    if unexpected:
        found.append(f"not in the reference: {', '.join(unexpected)}")
    for name in both:
        if mine[name].shape != theirs[name].shape:
            found.append(f"{name} has shape {mine[name].shape} here and {theirs[name].shape} in the reference")
    values = [name for name in both if mine[name].shape == theirs[name].shape]
    values = [name for name in values if (mine[name] != theirs[name]).any()]
    if values and not load:
        some = ", ".join(values[:4]) + (f" and {len(values) - 4} more" if len(values) > 4 else "")
        found.append(f"other values before the run: {some} (load=True runs with the reference's)")
    return found


def fill(result: Comparison, mine: Run, theirs: Run) -> None:
    """The rows of both runs, and the verdict."""
    counts, counts_there = Counter(s.name for s in mine.calls), Counter(s.name for s in theirs.calls)
    there: dict[tuple[str, int], int] = {}
    times: Counter[str] = Counter()
    for i in range(len(theirs.calls)):
        name = theirs.calls[i].name
        there[name, times[name]] = i
        times[name] += 1
    times.clear()
    pairs: list[tuple[Seen, Seen]] = []
    for i in range(len(mine.calls)):
        seen = mine.calls[i]
        place = there.get((seen.name, times[seen.name]))
        times[seen.name] += 1
        if place is None or counts[seen.name] != counts_there[seen.name]:
            continue  # the same layer, called more often there: which call is which is not known
        other = theirs.calls[place]
        complete = mine.error is None and theirs.error is None
        grads = difference(mine.output_grads[i], theirs.output_grads[place]) if complete else None
        result.rows.append(
            LayerRow(
                seen.name,
                type(seen.layer).__name__,
                difference(seen.input, other.input),
                difference(seen.output, other.output),
                grads,
                worst_of(seen, mine.grads, theirs.grads) if complete else None,
                worst_of(seen, mine.buffers, theirs.buffers),
            )
        )
        pairs.append((seen, other))
    for who, run in (("the model", mine), ("the reference", theirs)):
        if run.error is not None:
            result.verdict.append(f"{who} raised {type(run.error).__name__}: {run.error}")
    for name in counts:
        if name in counts_there and counts[name] != counts_there[name]:
            result.verdict.append(
                f"{name} is called {counts[name]} times here and {counts_there[name]} in the reference"
            )
    judge_forward(result, pairs)
    judge_backward(result, pairs)
    judge_statistics(result, pairs)


def judge_forward(result: Comparison, pairs: list[tuple[Seen, Seen]]) -> None:
    """The first layer whose output differs, and what usually causes that."""
    for row, (mine, theirs) in zip(result.rows, pairs, strict=True):
        if not result.parts(row.output):
            continue
        result.first_forward = row.name
        shapes = "" if same_shape(mine, theirs) else f" (shape {shape(mine.output)} here, {shape(theirs.output)} there)"
        said = f"forward: they part at {row.name or 'the model'} ({row.kind}){shapes}: "
        options = causes.options_that_differ(mine.layer, theirs.layer)
        if options:
            said += "; ".join(options)
        elif list(mine.layer.children()):
            said += causes.WITHIN
        elif result.parts(row.input):
            said += causes.BETWEEN
        else:
            said += f"usually {causes.USUAL.get(row.kind, 'an option, or other parameters')}"
        result.verdict.append(said)
        return


def judge_backward(result: Comparison, pairs: list[tuple[Seen, Seen]]) -> None:
    """The first layer on the way back whose gradients differ."""
    for i in reversed(range(len(result.rows))):
        row = result.rows[i]
        if not result.parts(row.grad) and not result.parts(row.parameter_grad):
            continue
        result.first_backward = row.name
        said = f"backward: they part at {row.name or 'the model'} ({row.kind}): "
        if result.first_forward is not None:
            said += causes.FOLLOWS
        elif not result.parts(row.grad):
            said += "the gradient of its output agrees and those of its parameters do not: its own backward"
        else:
            said += "the gradient of its output differs: the backward of what comes after it"
        result.verdict.append(said)
        return


def judge_statistics(result: Comparison, pairs: list[tuple[Seen, Seen]]) -> None:
    """The first layer whose running statistics differ after the run."""
    for row, (mine, theirs) in zip(result.rows, pairs, strict=True):
        if result.parts(row.statistics):
            result.first_statistics = row.name
            options = causes.options_that_differ(mine.layer, theirs.layer)
            said = causes.STATISTICS if result.first_forward is None else causes.FOLLOWS
            said = "; ".join(options) if options else said
            result.verdict.append(f"statistics: they part at {row.name or 'the model'} ({row.kind}): {said}")
            return


def shape(array: np.ndarray | None) -> str:
    """A shape in words."""
    return "none" if array is None else str(array.shape)


def same_shape(mine: Seen, theirs: Seen) -> bool:
    """Whether two calls gave outputs of one shape."""
    return shape(mine.output) == shape(theirs.output)
