"""The zoo of wrong kernels is what it says: right pieces that are right, and mistakes that are really wrong.

Nothing here uses the gradient checker: central differences with a random upstream decide.
"""

from collections import Counter
from functools import cache

import numpy as np
import pytest
from closeness import error, numeric_gradient
from mistakes import all_kinds, all_mistakes, gradient_names

import minires.kernels as K

SINGLES, DOUBLES = all_mistakes()
MISTAKES = SINGLES + DOUBLES
KINDS = all_kinds()

#: Inputs by kind, twice: shapes (an int is a number of classes, for labels) and options.
CASES = {
    "conv2d": [
        (((2, 3, 5, 7), (4, 3, 3, 2), (4,)), {}),
        (((3, 2, 8, 7), (5, 2, 3, 4), (5,)), {"stride": 2, "padding": 1}),
    ],
    "batch_norm": [(((3, 2, 5, 4), (2,), (2,)), {}), (((2, 3, 4, 5), (3,), (3,)), {"eps": 1e-3})],
    "relu": [(((2, 3, 5),), {}), (((4, 6),), {})],
    "max_pool2d": [(((2, 3, 7, 5),), {"kernel_size": 2}), (((3, 2, 7, 8),), {"kernel_size": (3, 2), "stride": 2})],
    "avg_pool2d": [(((2, 3, 7, 5),), {"kernel_size": 2}), (((3, 2, 7, 8),), {"kernel_size": (3, 2), "stride": 2})],
    "global_avg_pool": [(((2, 3, 5, 4),), {}), (((3, 2, 4, 7),), {})],
    "linear": [(((3, 4), (5, 4), (5,)), {}), (((4, 6), (2, 6), (2,)), {})],
    "residual": [(((3, 4), (4, 5), (5, 4)), {}), (((4, 6), (6, 5), (5, 6)), {})],
    "cross_entropy": [(((4, 6), 6), {}), (((5, 3), 3), {})],
    "softmax": [(((3, 5),), {}), (((4, 3),), {"axis": 1})],
}


@cache
def sample(kind, case):
    """(inputs, options): values at least 0.02 apart from each other and from zero, so that no kink is near."""
    rng = np.random.default_rng(case)
    shapes, options = CASES[kind][case]
    inputs = []
    for shape in shapes:
        if isinstance(shape, int):
            inputs.append(rng.permutation(np.arange(len(inputs[0])) % shape))
        else:
            n = int(np.prod(shape))
            values = (np.arange(n) - n / 2 + 0.25) * 0.04 + rng.uniform(-0.01, 0.01, n)
            inputs.append(rng.permutation(values * max(1, 50 / n)).reshape(shape))
    return inputs, options


def cases(mistake):
    """The inputs to try a mistake on: its own, or both of its kind's; with its options where it has some."""
    if mistake.inputs is not None:
        return [(list(mistake.inputs), mistake.options or {})]
    return [(sample(mistake.kind, i)[0], mistake.options or sample(mistake.kind, i)[1]) for i in range(2)]


def gradients(forward, backward, inputs, options, dy_seed=101):
    """(dy, {name: gradient}), without the gradients that are None."""
    y, kept = forward(*inputs, **options)
    dy = np.random.default_rng(dy_seed).standard_normal(np.shape(y))
    result = backward(dy, kept)
    result = result if isinstance(result, tuple) else (result,)
    return dy, {n: g for n, g in zip(gradient_names(forward), result, strict=True) if g is not None}


numeric_results = {}


def numeric(forward, name, inputs, options, dy):
    """The central difference of one gradient, computed once for each forward and each set of inputs."""
    key = forward, name, tuple(id(a) for a in inputs), repr(options)
    if key not in numeric_results:

        def function(*moved):
            return forward(*moved, **options)[0]

        index = gradient_names(forward).index(name)
        numeric_results[key] = numeric_gradient(function, inputs, index, dy), inputs  # the inputs keep their id
    return numeric_results[key][0]


@pytest.mark.parametrize("mistake", [m for m in MISTAKES if "pool-ties" not in m.codes], ids=lambda m: m.name)
def test_wrong_where_it_says_and_right_elsewhere(mistake):
    for inputs, options in cases(mistake):
        if mistake.gradient == ("y",):
            right = next(k for k in KINDS if k.kind == mistake.kind).forward(*inputs, **options)[0]
            y = mistake.forward(*inputs, **options)[0]
            assert np.shape(y) != np.shape(right) or error(y, right) > 1e-3
            if "the backward fits it" not in mistake.description:
                continue
        dy, found = gradients(mistake.forward, mistake.backward, inputs, options)
        for name, gradient in found.items():
            expected = numeric(mistake.forward, name, inputs, options, dy)
            if name in mistake.gradient:
                assert gradient.shape != expected.shape or error(gradient, expected) > 1e-3, f"{name} is right"
            else:
                assert error(gradient, expected) < 1e-6, f"{name} is wrong"


def test_a_tie_makes_gradient_from_nothing():
    """Where all of x grows by one, so does each maximum: dx must sum up to dy's sum, at a tie too."""
    for mistake in MISTAKES:
        if "pool-ties" in mistake.codes:
            right = next(k for k in KINDS if k.kind == mistake.kind)
            dy, found = gradients(right.forward, right.backward, mistake.inputs, mistake.options)
            assert abs(found["dx"].sum() - dy.sum()) < 1e-12
            dy, found = gradients(mistake.forward, mistake.backward, mistake.inputs, mistake.options)
            assert abs(found["dx"].sum() - dy.sum()) > 1e-3


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.forward.__name__)
def test_the_right_pieces_are_right(kind):
    every = [(list(kind.inputs), {})] if kind.inputs else [sample(kind.kind, 0), sample(kind.kind, 1)]
    every += [case for m in kind.mistakes if "pool-ties" not in m.codes for case in cases(m)]
    for inputs, given in every:
        if kind.kind not in (None, "residual"):
            expected = getattr(K, f"{kind.kind}_forward")(*inputs, **given)[0]
            assert error(kind.forward(*inputs, **given)[0], expected) < 1e-12
        dy, found = gradients(kind.forward, kind.backward, inputs, given)
        for name, gradient in found.items():
            assert error(gradient, numeric(kind.forward, name, inputs, given, dy)) < 1e-6


def test_the_zoo_is_large_and_its_names_are_unique():
    assert len(SINGLES) >= 100 and len(DOUBLES) >= 36
    assert max(Counter(m.name for m in MISTAKES).values()) == 1
    assert {m.kind for m in MISTAKES} == {*CASES, None}
    assert sum(bool(m.also) for m in MISTAKES) <= 8
