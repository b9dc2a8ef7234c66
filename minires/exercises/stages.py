"""The stages of a check, in order. Each takes a Submission and raises Failed, or Skipped where it has nothing to check.

forward        against the definition by loops
intermediates  what the cache keeps, by name
gradient       against central differences, with a diagnosis
invariants     shapes, dtypes, inputs left as they were, the same result twice
training       twenty steps of a residual network, the student's functions in place of the shipped ones
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

from minires import kernels
from minires.engine.modes import textbook, using
from minires.exercises import training
from minires.exercises.compare import Failed, both, describe, difference, first_difference, watch
from minires.exercises.mutants import candidates
from minires.exercises.table import Exercise
from minires.exercises.trials import Trial
from minires.gradcheck import check_kernel


class Skipped(Exception):
    """This stage has nothing to check in this exercise."""


class Reference(NamedTuple):
    """A trial, and what the shipped kernel gives in it."""

    trial: Trial
    y: Any
    cache: Any
    dy: Any
    gradients: tuple[Any, ...]
    defined: Any  # y by loops
    forward_names: dict[str, Any]  # what the shipped forward computes on its way
    backward_names: dict[str, Any]


class Submission(NamedTuple):
    """A student's functions by name, and what they are held against."""

    exercise: Exercise
    functions: dict[str, Callable]
    references: list[Reference]
    losses: list[float]


@functools.cache
def prepare(exercise: Exercise) -> tuple[list[Reference], list[float]]:
    """Everything that the shipped kernels give."""
    if exercise.trials is None:
        return [], []
    with textbook():
        losses = training.losses()
    return [make_reference(trial) for trial in exercise.trials()], losses


def make_reference(trial: Trial) -> Reference:
    """Run the shipped kernel."""
    inputs, options = fresh(trial)
    forward_names = watch(trial.forward, *inputs, **options)
    y, cache = split(trial, trial.forward(*inputs, **options))
    defined = y if trial.definition is None else trial.definition(*inputs, **options)
    dy, gradients, backward_names = None, (), {}
    if trial.backward is not None:
        dy = np.asarray(np.random.default_rng([1, 1]).standard_normal(np.shape(y)))
        gradients = as_tuple(trial.backward(dy.copy(), cache))
        backward_names = watch(trial.backward, dy.copy(), cache)
    return Reference(trial, y, cache, dy, gradients, defined, forward_names, backward_names)


def fresh(trial: Trial, dtype: str = "float64") -> tuple[list[Any], dict[str, Any]]:
    """Copies of a trial's inputs and options, floating-point arrays in the given dtype."""
    inputs = [converted(value, dtype) for value in trial.inputs]
    options = {name: converted(value, dtype) for name, value in trial.options.items()}
    return inputs, options


def converted(value: Any, dtype: str) -> Any:
    """A copy of an array, in the dtype if it holds floating-point numbers."""
    if not isinstance(value, np.ndarray):
        return value
    return value.astype(dtype) if value.dtype.kind == "f" else value.copy()


def split(trial: Trial, result: Any) -> tuple[Any, Any]:
    """y and cache of what a forward returned; a plain function's result has no cache.

    Errors: Failed where there are not two.
    """
    name = trial.forward.__name__
    if trial.plain:
        if len(trial.results) > 1 and (not isinstance(result, tuple) or len(result) != len(trial.results)):
            raise Failed("wrong-shape", f"{name} must return {', '.join(trial.results)}, got {describe(result)}")
        return result, None
    if not isinstance(result, tuple) or len(result) != 2:
        raise Failed("wrong-shape", f"{name} must return two things, y and the cache, got {describe(result)}")
    return result


def as_tuple(value: Any) -> tuple[Any, ...]:
    """One gradient or several, as a tuple."""
    return value if isinstance(value, tuple) else (value,)


def call_text(trial: Trial) -> str:
    """The call that a trial makes, with shapes for arrays."""
    given = [f"{name} {np.shape(x)}" for name, x in zip(trial.names, trial.inputs, strict=True)]
    for name, value in trial.options.items():
        given.append(f"{name} {value.shape}" if isinstance(value, np.ndarray) else f"{name}={value!r}")
    return f"{trial.forward.__name__}({', '.join(given)})"


def standing_in(submission: Submission, shipped: Callable) -> Callable:
    """What runs in a shipped function's place: the student's; or the shipped one, calling the student's.

    A convolution is not the student's where im2col is: then it is the shipped one's code, and its im2col the student's.
    """
    own = {one: submission.functions[one.__name__] for one in submission.exercise.functions}
    if shipped in own:
        return own[shipped]
    if not isinstance(shipped, FunctionType):
        return shipped
    known = shipped.__globals__
    called = {name: own[one] for name in shipped.__code__.co_names for one in own if known.get(name) is one}
    if not called:
        return shipped
    changed = FunctionType(shipped.__code__, {**known, **called}, shipped.__name__, shipped.__defaults__)
    changed.__kwdefaults__ = shipped.__kwdefaults__
    return changed


def pair_of(submission: Submission, trial: Trial) -> tuple[Callable, Callable | None]:
    """A trial's forward and backward, the student's where there is one."""
    backward = None if trial.backward is None else standing_in(submission, trial.backward)
    return standing_in(submission, trial.forward), backward


def own_forwards(submission: Submission) -> Iterator[tuple[Reference, Callable]]:
    """The trials whose forward the student writes, or at least feeds."""
    for reference in submission.references:
        forward = standing_in(submission, reference.trial.forward)
        if forward is not reference.trial.forward:
            yield reference, forward


def named_results(trial: Trial, value: Any) -> list[tuple[str, Any]]:
    """What a forward computed, each with its name."""
    return list(zip(trial.results, as_tuple(value), strict=True))


def check_forward(submission: Submission) -> None:
    """The forward against the definition by loops.

    Errors: Failed with the call, the entry that is most wrong, and the first intermediate name that is.
    """
    found = False
    for reference, forward in own_forwards(submission):
        found = True
        trial = reference.trial
        inputs, options = fresh(trial)
        untouched = copy.deepcopy(inputs)
        y, _ = split(trial, forward(*inputs, **options))
        check_untouched(forward, trial.names, untouched, inputs)
        for (name, expected), (_, got) in zip(
            named_results(trial, reference.defined), named_results(trial, y), strict=True
        ):
            wrong = difference(name, expected, got)
            if wrong is not None:
                inputs, options = fresh(trial)
                why = first_difference(
                    reference.forward_names, trial.forward, forward, watch(forward, *inputs, **options)
                )
                code = "forward-wrong" if wrong[0] == "wrong-value" else wrong[0]
                raise Failed(code, f"{wrong[1]}\nin {call_text(trial)}\n{why}".rstrip())
    if not found:
        raise Skipped("the shipped forward is used")


def check_intermediates(submission: Submission) -> None:
    """What the student's forward keeps in its cache, by name.

    Errors: Failed with the field that differs from the shipped kernel's.
    """
    found = False
    for reference, forward in own_forwards(submission):
        trial = reference.trial
        if trial.plain or reference.cache is None or trial.forward.__name__ not in submission.functions:
            continue
        found = True
        inputs, options = fresh(trial)
        _, cache = split(trial, forward(*inputs, **options))
        kind = type(reference.cache)
        if getattr(cache, "_fields", None) != kind._fields:
            fields = ", ".join(kind._fields)
            raise Failed("wrong-cache", f"the cache must be {kind.__name__}({fields}), got {describe(cache)}")
        for name in kind._fields:
            wrong = difference(f"cache.{name}", getattr(reference.cache, name), getattr(cache, name))
            if wrong is not None:
                raise Failed("wrong-cache", f"{wrong[1]}\nin {call_text(trial)}")
    if not found:
        raise Skipped("no cache is written")


def check_gradient(submission: Submission) -> None:
    """The first trial of each kernel against central differences, the others against the shipped kernel.

    Errors: Failed with what is right, what is wrong, and the diagnosis.
    """
    seen = set()
    for reference in submission.references:
        trial = reference.trial
        forward, backward = pair_of(submission, trial)
        if backward is None or (forward, backward) == (trial.forward, trial.backward):
            continue
        own = own_gradients(reference, forward, backward)
        if trial.forward not in seen:
            diagnose(reference, forward, backward)
        seen.add(trial.forward)
        for name, expected, got in zip(gradient_names(reference), reference.gradients, own, strict=True):
            wrong = difference(name, expected, got, 1e-7)
            if wrong is not None:
                if trial.kind:
                    diagnose(reference, forward, backward)
                code = "unexplained" if wrong[0] == "wrong-value" else wrong[0]
                raise Failed(code, "\n".join([wrong[1], *place(reference, forward, backward)]))
    if not seen:
        raise Skipped("there is no gradient")


def place(reference: Reference, forward: Callable, backward: Callable) -> list[str]:
    """The call in which a gradient is wrong, and the first of backward's names that is."""
    inputs, options = fresh(reference.trial)
    _, cache = split(reference.trial, forward(*inputs, **options))
    why = first_difference(
        reference.backward_names, reference.trial.backward, backward, watch(backward, reference.dy.copy(), cache)
    )
    return [f"in the backward of {call_text(reference.trial)}", *([why] if why else [])]


def own_gradients(reference: Reference, forward: Callable, backward: Callable) -> tuple[Any, ...]:
    """The student's gradients.

    Errors: Failed where there are too many of them, or too few.
    """
    inputs, options = fresh(reference.trial)
    _, cache = split(reference.trial, forward(*inputs, **options))
    dy = reference.dy.copy()
    gradients = as_tuple(backward(dy, cache))
    check_untouched(backward, ("dy",), [reference.dy], [dy])
    if len(gradients) != len(reference.gradients):
        names = ", ".join(gradient_names(reference))
        raise Failed("wrong-shape", f"{backward.__name__} must return {names}, got {len(gradients)} of them")
    return gradients


def gradient_names(reference: Reference) -> list[str]:
    """dx, dgamma and so on; further gradients, of inputs that were left out, by their place."""
    names = list(reference.trial.names)
    names += [name for name in inspect.signature(reference.trial.forward).parameters if name not in names]
    return [f"d{name}" for name in names[: len(reference.gradients)]]


def diagnose(reference: Reference, forward: Callable, backward: Callable) -> None:
    """Errors: Failed with the findings of check_kernel."""
    trial = reference.trial
    inputs, options = fresh(trial)
    report = check_kernel(forward, backward, tuple(inputs), kind=trial.kind, options=options, names=list(trial.names))
    if report.ok:
        return
    wrong, right = [], []
    for gradient in report.gradients:
        if gradient.ok:
            right.append(f"{gradient.name} is right")
        elif gradient.index is None or gradient.numeric is None or gradient.yours is None:
            wrong.append(f"{gradient.name} is wrong")
        else:
            at = f" at {gradient.index}" if gradient.index != () else ""
            numeric, yours = both(gradient.numeric, gradient.yours)
            values = f"expected {numeric} (numeric){at}, got {yours}"
            wrong.append(f"{gradient.name} is wrong: {values}")
    unexplained = [finding for finding in report.findings if finding.code == "unexplained"]
    for finding in report.findings:
        if finding.code != "unexplained":
            wrong.append(f"{finding.gradient}: {finding.sentence} [{finding.code}]")
            wrong += [f"  {finding.evidence}"] if finding.evidence else []
    if unexplained:
        names = ", ".join(finding.gradient for finding in unexplained)
        wrong.append(f"{names}: {unexplained[0].sentence} [unexplained]")
    code = next((finding.code for finding in report.findings if finding not in unexplained), "unexplained")
    found = place(reference, forward, backward)
    if code == "unexplained":  # the first of the names that is wrong says more than the gradients do
        found, wrong = found[:1], found[1:] + wrong
    raise Failed(code, "\n".join(wrong + right + found))


def check_invariants(submission: Submission) -> None:
    """Arrays that came in stay as they were, float32 stays float32, and a second run gives the same.

    Errors: Failed with the argument or the result.
    """
    for reference in submission.references:
        forward, backward = pair_of(submission, reference.trial)
        for dtype in ("float64", "float32"):
            check_run(reference, forward, backward, dtype)


def check_run(reference: Reference, forward: Callable, backward: Callable | None, dtype: str) -> None:
    """One forward and backward in one dtype.

    Errors: Failed with the argument or the result.
    """
    trial = reference.trial
    inputs, options = fresh(trial, dtype)
    untouched = copy.deepcopy(inputs)
    y, cache = split(trial, forward(*inputs, **options))
    kept = copy.deepcopy(y)
    check_untouched(forward, trial.names, untouched, inputs)
    for name, value in named_results(trial, y):
        check_dtype(forward, name, value, dtype)
    again, other_cache = split(trial, forward(*fresh(trial, dtype)[0], **options))
    for (name, value), (_, second) in zip(named_results(trial, kept), named_results(trial, again), strict=True):
        if not np.array_equal(value, second, equal_nan=True):
            raise Failed(
                "not-repeatable", f"{forward.__name__}: a second run with the same inputs gives another {name}"
            )
    if backward is None:
        return
    dy = reference.dy.astype(dtype)
    dy_before, cache_before = dy.copy(), copy.deepcopy(cache)
    gradients = as_tuple(backward(dy, cache))
    check_untouched(backward, ("dy",), [dy_before], [dy])
    check_untouched(forward, trial.names, untouched, inputs, f"{backward.__name__}: ")
    if isinstance(cache, tuple):
        names = tuple(f"cache.{name}" for name in getattr(cache, "_fields", range(len(cache))))
        check_untouched(backward, names, list(cache_before), list(cache))
    for name, value, expected in zip(gradient_names(reference), gradients, reference.gradients, strict=True):
        if expected is not None:
            check_dtype(backward, name, value, dtype)
    seconds = as_tuple(backward(dy, other_cache))
    for name, value, second in zip(gradient_names(reference), gradients, seconds, strict=True):
        if value is not None and not np.array_equal(value, second, equal_nan=True):
            raise Failed("not-repeatable", f"{backward.__name__}: a second run gives another {name}")


def check_untouched(
    function: Callable, names: tuple[str, ...], before: list[Any], after: list[Any], where: str = ""
) -> None:
    """Errors: Failed for an array that was written to."""
    for name, old, new in zip(names, before, after, strict=True):
        if isinstance(old, np.ndarray) and not np.array_equal(old, new, equal_nan=old.dtype.kind == "f"):
            raise Failed(
                "input-modified",
                f"{where or function.__name__ + ': '}{name} was changed: work on a copy, or on a new array",
            )


def check_dtype(function: Callable, name: str, value: Any, dtype: str) -> None:
    """Errors: Failed for a result in another dtype than the inputs'."""
    if getattr(value, "dtype", None) != np.dtype(dtype):
        came = getattr(value, "dtype", type(value).__name__)
        raise Failed("wrong-dtype", f"{function.__name__}: {name} must be {dtype} where the inputs are, got {came}")


def check_training(submission: Submission) -> None:
    """The losses of twenty steps of training with the student's functions, and the textbook's where there are none.

    Errors: Failed with the first step whose loss differs, or for a function that the network cannot call.
    """
    if not submission.losses:
        raise Skipped("nothing to train")
    pairs = own_pairs(submission)
    step = standing_in(submission, training.sgd_step)
    block = own_pair(submission, *training.BLOCK)
    if not pairs and step is training.sgd_step and block == training.BLOCK:
        raise Skipped("the network that is trained has no such layer")
    try:
        students = using(**pairs)
    except TypeError as error:
        raise Failed("wrong-arguments", str(error).removeprefix("using: ")) from None
    with textbook(), students:
        losses = training.losses(step, block)
    for number, (expected, got) in enumerate(zip(submission.losses, losses, strict=True), start=1):
        if not abs(got - expected) <= 1e-6 * abs(expected):
            raise Failed(
                "training-differs",
                f"step {number} of {training.STEPS}: the loss is {got:.8g}, and {expected:.8g} with the shipped "
                "kernels: your functions are used here in ways that the stages before did not try",
            )


def own_pairs(submission: Submission) -> dict[str, training.Pair]:
    """The student's kernels by operation; where only one half of a pair is written, the other one is the textbook's."""
    pairs = {}
    for operation in training.OPERATIONS:
        forward, backward = getattr(kernels, f"{operation}_forward"), getattr(kernels, f"{operation}_backward")
        pair = own_pair(submission, forward, backward)
        if pair != (forward, backward):
            pairs[operation] = pair
    return pairs


def own_pair(submission: Submission, forward: Callable, backward: Callable) -> training.Pair:
    """What runs in the place of a shipped pair."""
    return as_function(standing_in(submission, forward)), as_function(standing_in(submission, backward))


def as_function(own: Callable) -> Callable:
    """What can be called, as a function: a partial has no signature that ``using`` could look at."""
    if hasattr(own, "__code__"):
        return own

    def calling(*arguments: Any, **options: Any) -> Any:
        return own(*arguments, **options)

    return calling


def judge(submission: Submission, forward: Callable, backward: Callable, inputs: tuple[Any, ...]) -> bool:
    """What the student's check says of a kernel; an assertion that fails says no.

    Errors: Failed for an answer that is neither True nor False, or for inputs that are left changed.
    """
    given = tuple(x.copy() for x in inputs)
    try:
        verdict = submission.functions["accepts"](forward, backward, given)
    except AssertionError:
        return False
    if not isinstance(verdict, (bool, np.bool_)):
        raise Failed("no-verdict", f"accepts must return True or False, got {describe(verdict)}")
    names = tuple(f"inputs[{i}]" for i in range(len(inputs)))
    check_untouched(submission.functions["accepts"], names, list(inputs), list(given))
    return bool(verdict)


def check_right_ones(submission: Submission) -> None:
    """Every right kernel is accepted.

    Errors: Failed with the one that is not.
    """
    for one in candidates():
        if one.fault is None and not judge(submission, one.forward, one.backward, one.inputs):
            raise Failed("rejects-right", f"your check rejects the shipped {one.name}, which is right")


def check_mutants(submission: Submission) -> None:
    """Every broken kernel is rejected.

    Errors: Failed with the survivors.
    """
    mutants = [one for one in candidates() if one.fault is not None]
    alive = [one for one in mutants if judge(submission, one.forward, one.backward, one.inputs)]
    if alive:
        lines = [f"{one.name} survived: {one.fault}" for one in alive]
        lines.append(f"{len(mutants) - len(alive)} of {len(mutants)} were rejected")
        raise Failed("mutant-survives", "\n".join(lines))


STAGES: dict[str, Callable[[Submission], None]] = {
    "forward": check_forward,
    "intermediates": check_intermediates,
    "gradient": check_gradient,
    "invariants": check_invariants,
    "training": check_training,
    "right kernels": check_right_ones,
    "mutants": check_mutants,
}
