"""The strict stand-in for CuPy: it answers as CuPy 14.2 did, has no name that CuPy lacks, and bites."""

import ast
import copy
import json
import math
import operator
import pickle
import re
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import strict_cupy
from strict_cupy import API, counts, installed
from strict_cupy_expressions import ANSWERED, REFUSED

from minires import Tensor, backend
from minires import functional as F

HERE = Path(__file__).parent
BEHAVIOUR = json.loads((HERE / "cupy_behaviour.json").read_text())
EXPRESSIONS = {**REFUSED, **ANSWERED}


@pytest.fixture
def xp():
    with installed() as cupy:
        counts.reset()
        yield cupy


# ---- (a) It answers as CuPy did ----------------------------------------------------------------------------------


def names(xp) -> dict:
    """What the expressions speak of."""
    v = xp.arange(3, dtype="f4")
    m = xp.arange(6, dtype="f4").reshape(2, 3)
    v4, base = xp.arange(4, dtype="f4"), xp.arange(4, dtype="f4")
    return {
        **{"np": np, "xp": xp, "math": math, "copy": copy, "pickle": pickle, "weakref": weakref},
        **{"iadd": operator.iadd, "imul": operator.imul, "itruediv": operator.itruediv, "set": operator.setitem},
        **{"then": lambda a, _: a, "windows": xp.lib.stride_tricks.sliding_window_view},
        **{"v": v, "pair": xp.arange(2, dtype="f4"), "m": m, "v4": v4, "zero": v[0], "one": v[1]},
        **{"m4": xp.arange(6, dtype="f4").reshape(3, 2), "cube": xp.arange(12, dtype="f4").reshape(2, 2, 3)},
        **{"whole": xp.arange(3), "half": xp.arange(3, dtype="f2"), "i": xp.asarray([0, 2]), "hi": np.array([0, 2])},
        **{"h2": np.ones(2), "h3": np.ones(3), "h23": np.ones((2, 3), "f4")},
        **{"z3": xp.zeros(3, "f4"), "w3": xp.zeros(3, int), "ones3": xp.ones(3, "f4"), "z34": xp.zeros((3, 4), "f4")},
        **{"twice": xp.asarray([0, 0, 2]), "ij": (xp.asarray([0, 1, 2]), xp.asarray([0, 1, 3]))},
        **{"w4": xp.lib.stride_tricks.sliding_window_view(base, 2), "wide": xp.broadcast_to(v, (2, 3))},
        "wide4": xp.arange(12, dtype="f4").reshape(3, 4),
    }


def check(answer, expected: str, xp) -> None:
    """Compare an answer with CuPy's as it was written down: kind, dtype, shape and the first six values."""
    array = re.fullmatch(r"(cp|np)(\w+?)(\([\d, ]*\))=\[(.*)\]", expected)
    if array:
        kind, dtype, shape, values = array.groups()
        assert type(answer) is (xp.ndarray if kind == "cp" else np.ndarray)
        assert (str(answer.dtype), str(answer.shape)) == (dtype, shape)
        found = (answer.get() if kind == "cp" else answer).ravel()[:6]
        wanted = [float({"True": 1, "False": 0}.get(word, word)) for word in values.replace(" ", "").split(",") if word]
        tolerance = 1e-3 if dtype == "float16" else 1e-6
        np.testing.assert_allclose(found.astype(float), wanted, rtol=tolerance)
    elif expected.startswith("("):
        parts = re.findall(r"(cp\w+\(.*?\)=\[.*?\]|[\w.]+:[^,]+)(?:, |$)", expected[1:-1])
        assert len(parts) == len(answer)
        for one, part in zip(answer, parts, strict=True):
            check(one, part, xp)
    else:
        assert f"{type(answer).__module__}.{type(answer).__qualname__}:{answer}" == expected


@pytest.mark.parametrize("label", EXPRESSIONS)
def test_it_answers_as_cupy_did(xp, label):
    expected = BEHAVIOUR[label]
    try:
        answer = eval(EXPRESSIONS[label], names(xp))
    except Exception as error:
        assert expected.startswith("!"), f"CuPy answered {expected}, the stand-in raised {error!r}"
        assert type(error).__name__ == expected[1:].split(":")[0], f"CuPy raised {expected}, the stand-in {error!r}"
    else:
        assert not expected.startswith("!"), f"CuPy raised {expected}, the stand-in answered {answer!r}"
        check(answer, expected, xp)
