"""A zoo of wrong kernels, written the way students go wrong, each with the name its mistake must be given.

One module holds one kind of kernel: its right pieces in plain NumPy, then the mistakes, a few lines each. A function
marked ``@kind.wrong("dw", "scale-by-N")`` computes only the gradients named there; all others come from the right
backward of the module. One marked ``@kind.wrong_forward()`` is a whole forward pass. The first line of the docstring
says what the student did. Two codes mean two causes at once.
"""

import inspect
from importlib import import_module
from typing import NamedTuple

import numpy as np

MODULES = ("conv2d", "batch_norm", "relu", "pooling", "linear", "residual", "loss", "general")


class Mistake(NamedTuple):
    name: str  # "conv2d: averaged_over_the_batch"
    kind: str | None
    forward: object
    backward: object
    codes: frozenset  # one code, or two for two causes
    description: str
    gradient: tuple  # the names of the wrong gradients; ("y",) where the forward is wrong
    inputs: tuple | None = None
    options: dict | None = None
    also: frozenset = frozenset()  # codes accepted in place of the only one


class Kind:
    """A right kernel pair, and the mistakes planted in it, in the order in which they are written."""

    def __init__(self, kind, forward, backward, inputs=None):
        self.kind = kind
        self.forward = forward
        self.backward = backward
        self.inputs = inputs
        self.mistakes = []

    def wrong(self, gradients, *codes, also=(), inputs=None, options=None):
        """Plant the decorated function(dy, cache), which returns the gradients named (a tuple where several)."""
        gradients = tuple(gradients.split())

        def plant(function):
            def backward(dy, cache):
                right = self.backward(np.array(dy), cache)  # the mistake may write to dy
                result = list(right) if isinstance(right, tuple) else [right]
                wrong = function(dy, cache)
                for name, value in zip(gradients, wrong if len(gradients) > 1 else (wrong,), strict=True):
                    result[gradient_names(self.forward).index(name)] = value
                return tuple(result) if isinstance(right, tuple) else result[0]

            self.add(function, self.forward, backward, codes, gradients, inputs, options, also)
            return function

        return plant

    def wrong_forward(self, backward=None, inputs=None, options=None):
        """Plant the decorated forward. Its backward is the right kernel's, or one that fits the wrong forward."""

        def plant(function):
            self.add(function, function, backward or self.backward, ("forward-wrong",), ("y",), inputs, options, ())
            return function

        return plant

    def add(self, function, forward, backward, codes, gradients, inputs, options, also):
        owner = self.kind or self.forward.__name__.removesuffix("_forward")
        mistake = Mistake(
            name=f"{owner}: {function.__name__}",
            kind=self.kind,
            forward=forward,
            backward=backward,
            codes=frozenset(codes),
            description=inspect.getdoc(function).splitlines()[0],
            gradient=gradients,
            inputs=self.inputs if inputs is None else inputs,
            options=options,
            also=frozenset(also),
        )
        self.mistakes.append(mistake)


def gradient_names(forward):
    """``dx, dw, db`` for forward(x, w, b, *, ...)."""
    parameters = inspect.signature(forward).parameters.values()
    return ["d" + p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]


def all_kinds():
    """Every right kernel pair with its mistakes."""
    kinds = []
    for module in MODULES:
        for value in vars(import_module(f"{__name__}.{module}")).values():
            if isinstance(value, Kind):
                kinds.append(value)
    return kinds


def all_mistakes():
    """(singles, doubles): the mistakes with one cause, and those with two."""
    mistakes = [mistake for kind in all_kinds() for mistake in kind.mistakes]
    return [m for m in mistakes if len(m.codes) == 1], [m for m in mistakes if len(m.codes) == 2]


def pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)
