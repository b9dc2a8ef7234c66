"""check_kernel: is this backward right, and if not, what did its author do?

The order is the point. First the check itself is put in doubt (the same result twice, inputs untouched, no NaN),
then the forward, which no gradient check can see, then whether backward is linear in dy, and then each gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from minires.gradcheck.candidates import moves, search
from minires.gradcheck.causes import candidates
from minires.gradcheck.causes_batch_norm import other_statistics
from minires.gradcheck.kinds import KINDS, Case
from minires.gradcheck.numeric import Jacobian, jacobian
from minires.gradcheck.problem import Problem, sizes_of
from minires.gradcheck.report import Finding, Gradient, Report, broken, finding

#: A gradient passes when its largest difference is at most this share of its largest entry.
TOLERANCE = 1e-6


class Wrong(Exception):
    """Stops a check with what was found."""

    def __init__(self, *findings: Finding):
        self.findings = list(findings)


def check_kernel(
    forward: Callable,
    backward: Callable,
    inputs: Any = None,
    *,
    kind: str | None = None,
    options: dict[str, Any] | None = None,
    seed: int = 0,
    names: Any = None,
) -> Report:
    """Check a backward against numeric derivatives, and name the mistake where it is wrong.

    Args: forward(*inputs, **options) -> (y, cache); backward(dy, cache) -> a gradient or a tuple of gradients, None for
    an input that has none. inputs, float64 arrays, small ones: each entry costs four forwards; left out where ``kind``
    (a name in KINDS) is given, the checker then tries sizes, options and ties of its own. names, of the inputs.
    Returns: a Report; ``print`` it, or ask for .ok, .findings, .codes.
    Errors: ValueError or TypeError for arguments that cannot be checked. What the kernel does wrong is a finding;
        NotImplementedError from it goes through, as it means that it is not written yet.
    Source: the idea is to apply the suspected mistake to the right gradient, and to see whether it gives yours.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"check_kernel: kind must be one of {', '.join(KINDS)}, or None, got {kind!r}")
    if inputs is None and kind is None:
        raise ValueError("check_kernel: give inputs, or the kind of operation so that the checker can choose some")
    if options is not None and not isinstance(options, dict):
        raise TypeError(f"check_kernel: options must be a dict, such as {{'stride': 2}}, got {options!r}")
    rng = np.random.default_rng(seed)
    if inputs is None:
        cases = KINDS[kind].cases(rng)
        if options is not None:
            cases = [case._replace(options=with_kernel_size(options, case.options)) for case in cases]
            possible_cases = [case for case in cases if possible(kind, case)]
            if not possible_cases:
                check_fit(kind, cases[0])
            cases = possible_cases
    else:
        cases = [Case(float64_inputs(inputs), dict(options or {}))]
        if kind is not None:
            check_fit(kind, cases[0])
    names = given_names(names, cases[0]) if names is not None else input_names(forward, kind, len(cases[0].inputs))
    # dy of another stream: inputs drawn by default_rng(0) would equal it, and batch norm's dx is 0 where dy is x.
    rng = rng.spawn(1)[0]
    report = Report()
    for case in cases:
        try:
            report = Check(forward, backward, case, kind, names, rng).run()
        except Wrong as wrong:
            return Report([], wrong.findings)
        if not report.ok:
            break
    if kind is not None and inputs is not None and is_ambiguous(report, cases[0]):
        return settled(report, check_kernel(forward, backward, kind=kind, options=options, seed=seed, names=names))
    return report


def is_ambiguous(report: Report, case: Case) -> bool:
    """Whether a factor was named that could be another size of these inputs: 2 with a batch of 2, say."""
    named = any(found.code == "factor-2" or found.code.startswith("scale-by") for found in report.findings)
    sizes = [size for x in case.inputs for size in x.shape]
    pixels = [int(np.prod(x.shape[2:])) for x in case.inputs if x.ndim == 4]
    return named and (2 in sizes + pixels or len(set(case.inputs[0].shape)) < case.inputs[0].ndim)


def settled(report: Report, other: Report) -> Report:
    """A report with the causes that inputs of other sizes show, where the kernel runs on them and shows any."""
    gradients = {found.gradient for found in report.findings}
    for found in other.findings:
        if found.gradient not in gradients or found.code in ("unexplained", "forward-wrong", "wrong-shape"):
            return report
    return Report(report.gradients, other.findings) if other.findings else report


def with_kernel_size(options: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The caller's options alone, save that a pooling needs a kernel size."""
    return {**{name: own[name] for name in ("kernel_size",) if name in own}, **options}


def possible(kind: str, case: Case) -> bool:
    """Whether the options fit the inputs: the kind's own kernel says so."""
    try:
        check_fit(kind, case)
    except ValueError:
        return False
    return True


def float64_inputs(inputs: Any) -> list[np.ndarray]:
    """Arrays as float64; integers (labels) stay.

    Errors: TypeError for what is no array of real numbers; ValueError where one is empty or not finite, or none has
        floats.
    """
    found = []
    for x in inputs if isinstance(inputs, (list, tuple)) else [inputs]:
        try:
            array = np.asarray(x)
        except (ValueError, TypeError) as error:  # ragged lists, arrays on a GPU
            raise TypeError(f"check_kernel: inputs must be arrays of real numbers ({error})") from error
        if array.dtype.kind not in "fiub":
            raise TypeError(f"check_kernel: inputs must be arrays of real numbers, got {array.dtype}")
        if array.size == 0:
            raise ValueError(f"check_kernel: an input is empty, shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError("check_kernel: an input has values that are not finite")
        found.append(array.astype(np.float64) if array.dtype.kind == "f" else array.copy())
    if not any(x.dtype.kind == "f" for x in found):
        raise ValueError("check_kernel: no input has floats to differentiate by: write np.array([1.0, 2.0])")
    return found


def check_fit(kind: str, case: Case) -> None:
    """Errors: ValueError for inputs and options that the kind's own kernel refuses."""
    try:
        KINDS[kind].forward(*case.inputs, **case.options)
    except (TypeError, ValueError, IndexError) as error:
        shapes = ", ".join(str(x.shape) for x in case.inputs)
        raise ValueError(
            f"check_kernel: inputs of shapes {shapes} with options {case.options} do not fit {kind}: {error}"
        ) from error


def given_names(names: Any, case: Case) -> tuple[str, ...]:
    """The caller's names of the inputs. Errors: ValueError unless there is one text for each."""
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"check_kernel: names must be a list of text, one an input, got {names!r}")
    if len(names) != len(case.inputs):
        raise ValueError(f"check_kernel: {len(names)} names for {len(case.inputs)} inputs")
    return tuple(names)


def input_names(forward: Callable, kind: str | None, count: int) -> tuple[str, ...]:
    """The kind's names of the inputs, or those of forward's parameters."""
    if kind is not None:
        return KINDS[kind].names[:count]
    try:
        parameters = list(inspect.signature(forward).parameters)
    except (TypeError, ValueError):
        parameters = []
    return tuple(parameters[i] if i < len(parameters) else f"x{i}" for i in range(count))


class Check:
    """One kernel on one case."""

    def __init__(self, forward, backward, case: Case, kind: str | None, names: tuple[str, ...], rng):
        self.forward, self.backward = forward, backward
        self.case, self.kind, self.names, self.rng = case, kind, names, rng
        self.jacobians: dict[int, Jacobian] = {}

    def run(self) -> Report:
        """All steps in order. Errors: Wrong where it makes no sense to go on."""
        y = self.checked_forward()
        upstreams = [np.asarray(self.rng.standard_normal(y.shape)) + 0.0 for _ in range(2)]
        self.y = y
        self.problem = Problem(self.kind, self.case.inputs, self.case.options, self.names, y, self.jacobian)
        gradients = [self.gradients(u) for u in upstreams]
        self.check_upstream(upstreams[0], gradients[0])
        report = Report()
        for which, x in enumerate(self.case.inputs):
            if x.dtype.kind != "f":
                continue
            pair = [(u, grads[which]) for u, grads in zip(upstreams, gradients, strict=True)]
            self.check_gradient(which, pair, report)
        return report

    # ---- the forward ----

    def call(self, *inputs: np.ndarray) -> tuple[np.ndarray, Any]:
        """forward on copies. Errors: Wrong for what it raises or returns."""
        try:
            result = self.forward(*inputs, **self.case.options)
        except NotImplementedError:
            raise
        except Exception as error:
            raise Wrong(finding("forward", "forward-wrong", f"it raised {type(error).__name__}: {error}")) from error
        if not isinstance(result, tuple) or len(result) != 2:
            came = f"{type(result).__name__}" + (f" of {len(result)}" if isinstance(result, tuple) else "")
            raise Wrong(finding("forward", "forward-wrong", f"it must return (y, cache), got {came}"))
        try:
            y = np.asarray(result[0])
        except ValueError:
            y = np.asarray(None)
        if y.dtype.kind not in "fiub":
            came = y.dtype if y.dtype != object else type(result[0]).__name__
            raise Wrong(finding("forward", "forward-wrong", f"y must be an array of real numbers, got {came}"))
        return y, result[1]

    def output(self, *inputs: np.ndarray) -> np.ndarray:
        """y alone: what is differentiated. The kind's own kernel, once the student's forward is known to equal it."""
        if self.kind is not None:
            return KINDS[self.kind].forward(*inputs, **self.case.options)[0]
        return self.call(*[x.copy() for x in inputs])[0]

    def checked_forward(self) -> np.ndarray:
        """y, after the forward was held against itself and its definition."""
        copies = [x.copy() for x in self.case.inputs]
        y, _ = self.call(*copies)
        y = y.copy()
        for name, x, copy in zip(self.names, self.case.inputs, copies, strict=False):
            if not np.array_equal(x, copy):
                raise Wrong(finding("forward", "forward-wrong", f"it changes its input {name} in place"))
        if self.kind is not None:
            self.check_definition(y)
        if not np.isfinite(y).all():
            raise Wrong(finding("forward", "forward-wrong", "the output has values that are not finite"))
        again, _ = self.call(*[x.copy() for x in self.case.inputs])
        if not np.array_equal(y, again):
            raise Wrong(finding("forward", "forward-wrong", "two calls with the same inputs give different results"))
        return np.asarray(y, np.float64)

    def check_definition(self, y: np.ndarray) -> None:
        """Errors: Wrong where y is not what the loops give."""
        expected = np.asarray(KINDS[self.kind].definition(*self.case.inputs, **self.case.options))
        if y.shape != expected.shape:
            words = f"y has shape {y.shape}, expected {expected.shape}"
            raise Wrong(finding("forward", "forward-wrong", words))
        difference = np.abs(y - expected)
        limit = 1e-7 * (1 + np.abs(expected).max())
        if not (difference <= limit).all():
            worst = np.unravel_index(np.nanargmax(np.where(np.isnan(difference), np.inf, difference)), y.shape)
            index = f"[{', '.join(map(str, worst))}]" if worst else ""
            given = f" with {self.case.options}" if self.case.options else ""
            words = f"y{index} is {float(y[worst]):.6g}, by the definition {float(expected[worst]):.6g}{given}"
            raise Wrong(finding("forward", "forward-wrong", words))

    # ---- the backward ----

    def gradients(self, u: np.ndarray) -> tuple:
        """backward(u) with a fresh cache, one gradient an input. Errors: Wrong for what it raises or their number."""
        inputs = [x.copy() for x in self.case.inputs]
        _, cache = self.call(*inputs)
        upstream = u.copy()
        try:
            result = self.backward(upstream, cache)
        except NotImplementedError:
            raise
        except Exception as error:
            words = f"it raised {type(error).__name__}: {error}"
            raise Wrong(broken("backward", words)) from error
        if not np.array_equal(upstream, u):
            raise Wrong(broken("backward", "it changes dy in place: the caller still needs it"))
        for name, x, copy in zip(self.names, inputs, self.case.inputs, strict=False):
            if not np.array_equal(x, copy):
                raise Wrong(broken("backward", f"it changes {name} in place"))
        result = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        wanted = len(self.case.inputs)
        numbers = sum(x.dtype.kind == "f" for x in self.case.inputs)
        if len(result) == numbers < wanted:  # labels have no gradient, and some leave it out
            it = iter(result)
            result = tuple(next(it) if x.dtype.kind == "f" else None for x in self.case.inputs)
        if len(result) != wanted:
            words = f"it returned {len(result)} gradients for {wanted} inputs ({', '.join(self.names)})"
            raise Wrong(finding("backward", "wrong-shape", words))
        return tuple(self.numbers(g, "d" + name) for g, name in zip(result, self.names, strict=True))

    def numbers(self, g: Any, name: str) -> np.ndarray | None:
        """A gradient as an array. Errors: Wrong for what is no array of float64."""
        if g is None:
            return None
        try:
            array = np.array(g)
        except ValueError:  # a list of lists of different lengths
            array = np.array(None)
        if array.dtype != np.float64:
            came = array.dtype if array.dtype != object else type(g).__name__
            raise Wrong(broken(name, f"it must be an array of float64, as its input is, got {came}"))
        return array

    def check_upstream(self, u: np.ndarray, at_u: tuple) -> None:
        """Errors: Wrong where backward gives another result the second time, or is not linear in dy."""
        again = self.gradients(u)
        v = np.asarray(self.rng.standard_normal(u.shape)) + 0.0
        at_v, at_minus, at_triple, at_sum = (self.gradients(w) for w in (v, -u, 3 * u, u + v))
        for which, g in enumerate(at_u):
            if g is None or at_v[which] is None:
                continue
            name = "d" + self.names[which]
            if not np.isfinite(g).all():
                raise Wrong(broken(name, "it has values that are not finite"))
            size = max(1e-12, float(np.abs(g).max(initial=0)), float(np.abs(at_v[which]).max(initial=0)))
            if not same(g, again[which], size):
                raise Wrong(broken(name, "two calls with the same dy give different gradients"))
            if size < 1e-11:
                continue
            if same(g, at_v[which], size):
                raise Wrong(*self.name_ignored(which, g, name))
            linear = (
                same(at_minus[which], -g, size)
                and same(at_triple[which], 3 * g, 3 * size)
                and same(at_sum[which], g + at_v[which], size)
            )
            if not linear:
                raise Wrong(*self.name_nonlinear(which, u, g, name, at_minus[which], at_triple[which]))

    def name_ignored(self, which: int, g: np.ndarray, name: str) -> list[Finding]:
        """dy is ignored, as if it were ones; and perhaps that is not all."""
        found = [finding(name, "upstream-ignored", "two different dy give the same gradient")]
        pair = (g, candidates(self.problem, which, np.ones(self.y.shape)))
        right = pair[1][0].gradient
        if same(g, right, float(np.abs(right).max(initial=0))):
            return found
        match = search([pair, pair], self.case.inputs[which].shape, self.kind, sizes_of(self.problem))
        if match is not None:
            found += [finding(name, code, words, match.residual) for code, words in match.causes]
        return found

    def name_nonlinear(self, which, u, g, name, at_minus, at_triple) -> list[Finding]:
        """A mask taken from dy is one way not to be linear; a part that does not see dy another."""
        words = "backward(3 dy) is not 3 backward(dy)"
        if same(at_triple, 3 * g, 3 * float(np.abs(g).max())):
            words = "backward(-dy) is not -backward(dy): does it test the sign of dy?"
        x = self.case.inputs[which]
        if g.shape == x.shape:
            for candidate in candidates(self.problem, which, u):
                if "relu-mask-from-upstream" in candidate.codes and same(g, candidate.gradient, np.abs(g).max()):
                    return [finding(name, "relu-mask-from-upstream", words, 0.0)]
        if not np.array_equal(self.gradients(np.zeros_like(u))[which], np.zeros_like(g)):
            words = "backward(0) is not 0: a part of it does not depend on dy"
        return [finding(name, "not-linear", words)]

    def jacobian(self, which: int) -> Jacobian:
        """The numeric Jacobian by one input, computed once."""
        if which not in self.jacobians:
            self.jacobians[which] = jacobian(self.output, self.case.inputs, which)
        return self.jacobians[which]

    def check_gradient(self, which: int, pair: list, report: Report) -> None:
        """Compare one gradient with its numeric value; where it differs, say why."""
        name, x = "d" + self.names[which], self.case.inputs[which]
        (u, g), (u2, g2) = pair
        right = self.jacobian(which).vjp(u)
        size = float(np.abs(right).max(initial=0))
        if g is None:
            report.gradients.append(Gradient(name, size < 1e-13))
            if size >= 1e-13:
                report.findings.append(finding(name, "zero", "backward returned None for it"))
            return
        if g.shape == x.shape:
            low, high = self.jacobian(which).bounds(u)
            outside = np.maximum(np.maximum(low - g, g - high), 0)
            scale = max(size, float(np.abs(u).max(initial=0)) * 1e-6, 1e-12)
            error = float(outside.max(initial=0)) / scale
            if error <= TOLERANCE and self.ties_add_up(which, u, g, scale):
                report.gradients.append(Gradient(name, True, error=error))
                return
            worst = tuple(int(i) for i in np.unravel_index(int(outside.argmax()), x.shape))
            entry = Gradient(name, False, worst, float(g[worst]), float(right[worst]), error)
        else:
            entry = Gradient(name, False)
        report.gradients.append(entry)
        report.findings.extend(self.explain(which, name, pair, right, size))

    def ties_add_up(self, which: int, u: np.ndarray, g: np.ndarray, scale: float) -> bool:
        """Where values tie, their gradients may be shared in any way, and still add up: all of x raised by the same."""
        if self.kind != "max_pool2d":
            return True
        raised = [x + 0.0 for x in self.case.inputs]
        raised[which] = raised[which] + 1.0
        change = float((u * (self.output(*raised) - self.y)).sum())
        return abs(float(g.sum()) - change) <= TOLERANCE * scale * g.size

    def explain(self, which: int, name: str, pair: list, right: np.ndarray, size: float) -> list[Finding]:
        """The mistakes that reproduce this gradient, or where it is wrong."""
        (u, g), (u2, g2) = pair
        if not np.abs(g).max(initial=0) > 1e-12 * max(size, 1e-300):
            return [finding(name, "zero", f"the right gradient is as large as {size:.3g}", 0.0)]
        lists = [candidates(self.problem, which, w) for w in (u, u2)]
        match = search([(g, lists[0]), (g2, lists[1])], right.shape, self.kind, sizes_of(self.problem))
        if match is not None:
            return [finding(name, code, words, match.residual) for code, words in match.causes]
        if self.kind == "batch_norm" and which == 0:
            other = other_statistics(self.problem, pair, right)
            if other:
                return [finding(name, *other)]
        if g.shape != right.shape:
            return [self.name_shape(g, right, name)]
        return [finding(name, "unexplained", profile(g, right))]

    def name_shape(self, g: np.ndarray, right: np.ndarray, name: str) -> Finding:
        """A wrong shape whose numbers explain nothing."""
        repairs = [move for move in moves(g, right.shape, self.kind) if move.codes != ("wrong-shape",)]
        words = f"it has shape {g.shape}, its input {right.shape}"
        if repairs and repairs[0].codes == ("missing-sum",):
            words += f": {repairs[0].evidence}, its numbers are wrong as well"
        return finding(name, "wrong-shape", words)


def same(a: np.ndarray, b: np.ndarray, size: float) -> bool:
    """Whether two gradients are equal up to rounding."""
    return a.shape == b.shape and bool((np.abs(a - b) <= 1e-9 * size).all())


def profile(g: np.ndarray, right: np.ndarray) -> str:
    """Where the error sits: how many entries are wrong, and along which axis they gather."""
    wrong = np.abs(g - right) > TOLERANCE * max(float(np.abs(right).max(initial=0)), 1e-12)
    words = f"{int(wrong.sum())} of {wrong.size} entries are wrong"
    for axis in range(g.ndim):
        others = tuple(a for a in range(g.ndim) if a != axis)
        touched = np.flatnonzero(wrong.any(axis=others))
        if 0 < len(touched) < g.shape[axis]:
            words += f"; along axis {axis} only at {', '.join(map(str, touched[:6]))}"
    return words
