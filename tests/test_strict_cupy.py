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
from strict_cupy_expressions import ANSWERED, COSTS, LEFT_OUT, REFUSED, REFUSED_TOO

from minires import Tensor
from minires.kernels import backend
from minires.nn import functional as F

HERE = Path(__file__).parent
BEHAVIOUR = json.loads((HERE / "cupy_behaviour.json").read_text())
EXPRESSIONS = {**REFUSED, **ANSWERED}


@pytest.fixture
def xp():
    with installed() as cupy:
        counts.reset()
        yield cupy


# ---- (a) It answers as CuPy did ----------------------------------------------------------------------------------


def add_to_slice(a, where, b):
    a[where] += b


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
        **{"v234": xp.arange(24, dtype="f4").reshape(2, 3, 4), "half4": xp.zeros(4, "f2")},
        "add_to_slice": add_to_slice,
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


def test_every_answer_of_cupy_is_checked_or_left_out_for_a_reason():
    """Of 360 answers 306 are checked, and 54 left out: see LEFT_OUT."""
    left_out = [label.strip() for labels in LEFT_OUT.values() for label in re.split(r" /\s", labels)]
    assert sorted([*EXPRESSIONS, *left_out]) == sorted(BEHAVIOUR)
    assert (len(EXPRESSIONS), len(left_out)) == (306, 54)


@pytest.mark.parametrize("expression", REFUSED_TOO)
def test_it_refuses_as_cupy_does(xp, expression):
    with pytest.raises(Exception) as caught:  # noqa: B017
        eval(expression, names(xp))
    assert type(caught.value).__name__ == REFUSED_TOO[expression]


@pytest.mark.parametrize("expression", COSTS)
def test_it_counts_as_cupy_does(xp, expression):
    known = names(xp)
    counts.reset()
    eval(expression, known)
    assert (counts.launches, counts.uploads, counts.waits) == COSTS[expression]
    assert counts.downloads == 0


# ---- (b) It has no name that CuPy lacks, and neither has MiniRes --------------------------------------------------

OTHER_NAMES = {"ndarray", "cuda.is_available", *strict_cupy.SHARED.split()}
#: Keywords that CuPy takes as **kwargs.
MORE_KEYWORDS = {"fuse": ["kernel_name"], "pad": ["mode", "constant_values"]}
SOURCES = sorted((HERE.parent / "minires").rglob("*.py"))


def foreign_names(source: str, methods: bool) -> list[str]:
    """What code asks of CuPy that CuPy lacks: names and keywords after ``xp.``; keywords of methods where asked for."""
    wrong = []
    tree = ast.parse(source)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        keywords = [keyword.arg for keyword in calls[id(node)].keywords] if id(node) in calls else []
        root, path = dotted(node)
        if root in ("xp", "cupy") and id(node) not in inner:
            known = known_keywords(path)
            if known is None:
                wrong.append(f"{path} (line {node.lineno})")
        elif methods and isinstance(API["methods"].get(node.attr), list) and root != "np":
            known = API["methods"][node.attr]
        else:
            continue
        if isinstance(known, (list, set)):
            wrong.extend(
                [f"{path or node.attr}({word}=) (line {node.lineno})" for word in keywords if word not in known]
            )
    return wrong


def dotted(node: ast.AST) -> tuple[str | None, str]:
    """``xp.add.at`` as ("xp", "add.at"); (None, "") for what does not begin with a name."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "array_module":
        return "xp", ".".join(parts)
    return (node.id, ".".join(parts)) if isinstance(node, ast.Name) else (None, "")


def known_keywords(path: str) -> object:
    """The keywords of a name in CuPy, True for any, None where there is no such name."""
    if path in API["ufuncs"]:
        return ["out", "dtype", "casting"]
    if path in API["functions"]:
        known = API["functions"][path]
        return known if known is True else [*known, *MORE_KEYWORDS.get(path, [])]
    parent, _, last = path.rpartition(".")
    if parent in API["ufuncs"]:
        return True if API["ufuncs"][parent].get("at" if last == "at" else "reduce") or last == "outer" else None
    return True if path in OTHER_NAMES else None


@pytest.mark.parametrize("file", SOURCES, ids=[str(file.relative_to(HERE.parent)) for file in SOURCES])
def test_minires_asks_cupy_for_nothing_that_it_lacks(file):
    on_arrays = file.parent.name == "kernels"
    assert foreign_names(file.read_text(), on_arrays) == []


def test_the_check_of_names_sees_what_is_wrong():
    wrong = """
xp.errstate(all="ignore")
xp.clip(x, min=0)
xp.exp(x, where=x > 0)
xp.maximum.reduce(x)
array_module(x).trapezium(x)
x.sum(where=mask)
xp.nothing.at(x)
"""
    found = {word.split(" ")[0] for word in foreign_names(wrong, methods=True)}
    names_there = {"errstate", "clip(min=)", "exp(where=)", "maximum.reduce", "trapezium", "sum(where=)", "nothing.at"}
    assert found == names_there


def test_the_stand_in_has_only_names_of_cupy(xp):
    ours = {name for name in vars(xp) if not name.startswith("__")}
    known = {*API["functions"], *API["ufuncs"], *OTHER_NAMES, "ufunc", "cuda", "lib", "linalg", "random"}
    assert ours <= known, ours - known
    methods = {name for name in vars(xp.ndarray) if not name.startswith("_")} - {"waited"}
    assert methods <= set(API["methods"]), methods - set(API["methods"])


# ---- Each rule of strictness --------------------------------------------------------------------------------------


def test_host_and_device_do_not_mix(xp):
    device, host = xp.ones(3), np.ones(3)
    for act in (operator.add, operator.matmul, operator.lt, operator.iadd, operator.pow):
        for a, b in ((device, host), (host, device)):
            with pytest.raises(TypeError):
                act(a, b)
    with pytest.raises(ValueError, match="non-scalar numpy.ndarray"):
        device[:] = host
    with pytest.raises(TypeError, match="use `.get\\(\\)`"):
        np.asarray(device)


def test_a_tensor_on_each_side_meets_its_own_operator(xp):
    total = xp.ones(2, "f4") + Tensor([1.0, 2.0], device="cuda")
    assert isinstance(total, Tensor) and total.device == "cuda"


def test_reductions_give_device_arrays_never_scalars(xp):
    for value in (xp.ones(3).sum(), xp.max(xp.ones(3)), xp.ones(3)[0], xp.ones(3) @ xp.ones(3), xp.sqrt(2.0)):
        assert type(value) is xp.ndarray and value.shape == ()
    assert counts.waits == counts.downloads == 0


def test_fresh_memory_is_poisoned(xp):
    assert np.isnan(xp.empty(3).get()).all() and np.isnan(xp.empty_like(xp.ones(3, "f2")).get()).all()
    assert (xp.empty(2, "u1").get() == 0xAB).all() and (xp.empty(2, "i4").get() == np.int32(-0x54545455)).all()
    assert np.isnan(xp.ndarray((2,), "f4").get()).all()


def test_an_upload_is_a_copy_and_a_view_is_none(xp):
    host = np.zeros(3)
    device = xp.asarray(host)
    host[0] = 5
    assert device.tolist() == [0, 0, 0]
    device.reshape(3, 1)[:] = 1
    xp.lib.stride_tricks.as_strided(device, (2,), (16,))[:] = 2
    assert device.tolist() == [2, 1, 2]


def test_new_arrays_are_in_c_order_whatever_their_operands(xp):
    """NumPy keeps the order of the operands: x.transpose(1, 2, 3, 0) of a result is dense there, and not in CuPy."""
    a = xp.ones((2, 3, 4)).transpose(2, 0, 1)
    for new in (
        a + a,
        xp.exp(a),
        xp.where(a > 0, a, 0),
        a.sum(axis=0, keepdims=True),
        xp.concatenate([a, a]),
        a.copy(),
    ):
        assert new.flags.c_contiguous
    assert a.astype("f4").strides == (4, 48, 16) and xp.zeros_like(a).strides == a.strides  # these two keep it


def test_nothing_is_read_only(xp):
    wide = xp.broadcast_to(xp.zeros(1), (3,))
    wide[0] = 4
    assert wide.tolist() == [4, 4, 4]


def test_numbers_are_drawn_on_the_host(xp):
    with pytest.raises(NotImplementedError, match="drawn on the host"):
        xp.random.standard_normal(3)
    with pytest.raises(AttributeError):
        xp.random.get_state()


def test_what_cannot_be_fused_is_refused(xp):
    x = xp.ones((2, 3))
    for kind, inner in (
        (TypeError, lambda a: float(a) * a),
        (TypeError, lambda a: abs(a)),
        (TypeError, lambda a: a @ a),
        (AttributeError, lambda a: a.reshape(-1)),
        (AttributeError, lambda a: a.T),
        (AttributeError, lambda a: a.mean()),
        (AttributeError, lambda a: a / a.size),
        (NotImplementedError, lambda a: a * a.shape[0]),
        (NotImplementedError, lambda a: xp.sum(a, axis=0, keepdims=True)),
    ):
        with pytest.raises(kind):
            xp.fuse(kernel_name="k")(inner)(x)
    with pytest.raises(TypeError, match="Unsupported input type"):
        xp.fuse(kernel_name="k")(lambda a, b: a + b)(x, np.ones(3))
    with pytest.raises(RuntimeError, match="kernel_name"):
        xp.fuse()(lambda a: a + a)(x)
    assert xp.fuse(lambda a: a + 1)(np.ones(2)).tolist() == [2, 2]  # host arrays only: the function itself
    assert x.shape == (2, 3)  # and nothing stays forbidden after an error


def test_it_is_there_within_the_block_only(monkeypatch):
    for name in strict_cupy.MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with installed() as cupy:
        assert sys.modules["cupy"] is cupy and backend.cuda_problem() is None
        assert backend.array_module(cupy.ones(2)) is cupy and not isinstance(cupy.ones(2), np.ndarray)
    assert not set(strict_cupy.MODULES) & set(sys.modules)
    monkeypatch.setitem(sys.modules, "cupy", np)  # as where another one is imported already
    with pytest.raises(ZeroDivisionError), installed():
        raise ZeroDivisionError
    assert sys.modules["cupy"] is np


def test_a_training_step_runs_and_is_counted(xp):
    w = Tensor(np.ones((2, 3), "f4"), device="cuda", requires_grad=True)
    counts.reset()
    x = Tensor(np.ones((4, 3), "f4"), device="cuda")
    F.linear(x, w).sum().backward()
    assert w.grad.device == "cuda" and w.grad.numpy().tolist() == [[4, 4, 4], [4, 4, 4]]
    assert (counts.uploads, counts.downloads, counts.waits) == (1, 1, 0) and counts.launches > 0


# ---- (c) It bites: wrong kernels ------------------------------------------------------------------------------------


def relu_with_numpy(x):
    return np.where(np.asarray(x) > 0, x, 0)


def relu_with_a_host_mask(x):
    return x * np.ones(x.shape)


def relu_with_new_keywords(x):
    return backend.array_module(x).clip(x, min=0)


def scale_by_the_largest(x):
    return x / float(abs(x).max())


def zero_where_negative(x):
    y = x.copy()
    y[x < 0] = 0
    return y


def mean_as_a_number(x):
    return round(x.sum() / x.size, 3)


def rows_by_the_sum(x):
    return x.reshape(x.sum().astype(int), -1)


def sum_into_fresh_memory(x):
    y = backend.array_module(x).empty(x.shape, x.dtype)
    y += x
    return y


@pytest.mark.parametrize(
    "kernel", [relu_with_numpy, relu_with_a_host_mask, relu_with_new_keywords, mean_as_a_number, rows_by_the_sum]
)
def test_a_kernel_that_works_in_numpy_alone_is_refused(xp, kernel):
    host = np.ones((2, 2), "f4")
    kernel(host)
    with pytest.raises((TypeError, AttributeError)):
        kernel(xp.asarray(host))


@pytest.mark.parametrize("kernel", [scale_by_the_largest, zero_where_negative])
def test_a_kernel_that_waits_is_counted(xp, kernel):
    x = xp.asarray(np.array([1.0, -2.0], "f4"))
    counts.reset()
    kernel(x)
    assert counts.waits == 1


def test_a_kernel_that_relies_on_zeroed_memory_gives_nan(xp):
    assert np.isnan(sum_into_fresh_memory(xp.ones(2)).get()).all()
