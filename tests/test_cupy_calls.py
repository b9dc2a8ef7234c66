"""Every call that MiniRes makes on an array library, held against what the installed CuPy takes. Needs no GPU.

A call is found by its text: ``xp.name(...)``, and in the kernels, where all is arrays, ``x.sum(...)`` too. Its name has
to be there, and its arguments have to fit the signature; Cython's functions have theirs in their docstring.
"""

import ast
import importlib.util
import inspect
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import minires

PACKAGE = Path(minires.__file__).parent
ROOTS = {"xp", "cupy"}
#: Calls whose result is the library: array_module(x).zeros(...).
MAKERS = {"array_module", "import_module"}
#: What CuPy's functions with **kwargs really take.
KEYWORDS = {
    "pad": {"constant_values", "stat_length", "end_values", "reflect_type"},
    "einsum": {"optimize", "dtype"},
    "meshgrid": {"indexing", "sparse", "copy"},
}
#: ufuncs have the method, and it raises NotImplementedError for all but these.
REDUCIBLE = {"reduce": {"add", "multiply"}, "accumulate": {"add", "multiply"}, "reduceat": {"add"}}
SCATTERED = {"at": {"add", "subtract", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor"}}


class Use(NamedTuple):
    """One mention of the library, or one call of it or of an array's method."""

    line: int
    path: str  # as "lib.stride_tricks.as_strided"
    method: bool = False
    call: ast.Call | None = None


def path_of(node):
    """The names behind the library's: "add.at" of ``xp.add.at``; None for what does not begin with it."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name) and node.id in ROOTS:
        return ".".join(reversed(names))
    if isinstance(node, ast.Call):
        maker = getattr(node.func, "id", getattr(node.func, "attr", None))
        return ".".join(reversed(names)) if maker in MAKERS else None
    return None


def uses(source, kernels):
    """Every use of the library in a file, innermost names last."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and path_of(node):
            found.append(Use(node.lineno, path_of(node)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            path = path_of(node.func)
            if path:
                found.append(Use(node.lineno, path, call=node))
            elif kernels and path is None and hasattr(np.ndarray, node.func.attr):
                found.append(Use(node.lineno, node.func.attr, True, node))
    return found


def signature_of(function):
    """The signature, also of what Cython compiled; a method's without self."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        first = inspect.getdoc(function).splitlines()[0]
    text = re.search(r"\((.*)\)", first.replace("\\*", "*"))[1]
    text = re.sub(r"\b(?:Py_ssize_t|int|bool|str|ndarray) (\w+)", r"\1", text)  # C types before a name
    text = re.sub(r"^self(, )?", "", text)
    scope = {}
    exec(f"def function({text}): pass", scope)
    return inspect.signature(scope["function"])


def problem(cupy, use):
    """What CuPy would say about a use; None where it takes it."""
    value = cupy.ndarray if use.method else cupy
    for name in use.path.split("."):
        if not hasattr(value, name):
            return f"{'an array' if use.method else 'cupy'} has no {use.path}"
        value = getattr(value, name)
    ufunc, _, method = use.path.rpartition(".")
    supported = {**REDUCIBLE, **SCATTERED}.get(method) if isinstance(getattr(cupy, ufunc, None), cupy.ufunc) else None
    if supported is not None and ufunc not in supported:
        return f"cupy.{use.path} is not implemented"
    if use.call is None or not callable(value):
        return None
    known = signature_of(value).parameters.values()
    keywords = {keyword.arg: None for keyword in use.call.keywords if keyword.arg is not None}
    whole = len(keywords) == len(use.call.keywords) and not any(isinstance(a, ast.Starred) for a in use.call.args)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known):
        named = {parameter.name for parameter in known if parameter.kind is not parameter.VAR_KEYWORD}
        wrong = set(keywords) - named - KEYWORDS.get(use.path, set())
        return f"cupy.{use.path} takes no {', '.join(sorted(wrong))}" if wrong else None
    bind = signature_of(value).bind if whole else signature_of(value).bind_partial
    try:
        bind(*[None for a in use.call.args if not isinstance(a, ast.Starred)], **keywords)
    except TypeError as error:
        return f"cupy.{use.path}: {error}"
    return None


@pytest.fixture(scope="module")
def cupy():
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy is not installed: pip install cupy-cuda12x")
    import cupy

    return cupy


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if re.search(r"\bxp\b|cupy|array_module", path.read_text())]


@pytest.mark.parametrize("file", FILES, ids=[path.relative_to(PACKAGE).as_posix() for path in FILES])
def test_cupy_has_what_is_called(cupy, file):
    found = uses(file.read_text(), kernels=file.parent.name == "kernels")
    problems = [(use.line, problem(cupy, use)) for use in found]
    assert not [f"line {line}: {words}" for line, words in problems if words is not None]


def test_the_kernels_make_calls():
    found = [use for file in FILES for use in uses(file.read_text(), kernels=file.parent.name == "kernels")]
    assert len({use.path for use in found if use.call and not use.method}) > 20
    assert len({use.path for use in found if use.method}) > 10


WRONG = {
    "xp.errstate(all='ignore')": "cupy has no errstate",
    "xp.maximum.reduce(x)": "not implemented",
    "xp.divide.at(x, 0, 1)": "not implemented",
    "xp.exp(x, where=x > 0)": "where",
    "xp.clip(x, min=0)": "'a_min'|min",
    "xp.take(x, i, mode='clip')": "mode",
    "xp.take_along_axis(x, i)": "axis",
    "xp.einsum('ij->j', x, out=y)": "takes no out",
    "xp.lib.stride_tricks.as_strided(x, (1,), (1,), writeable=False)": "writeable",
    "xp.zeros(3, 'f4', device='cpu')": "device",
    "xp.add(x)": "x2",
    "array_module(x).setbufsize(3)": "has no setbufsize",
    "x.var(correction=1)": "correction",
    "x.sum(where=x > 0)": "where",
    "x.mean(0, None, None, False, 1)": "too many",
    "x.astype()": "dtype",
    "x.getfield(x.dtype)": "has no getfield",
}
RIGHT = """
xp.zeros((2, 3), x.dtype)
xp.maximum(x, 0, out=y)
xp.add.at(x, i, 1)
xp.pad(x, ((1, 1),), constant_values=1.0)
xp.concatenate(parts, axis=0)
xp.where(*three)
x.sum(axis=(0, 1), keepdims=True, dtype="f8")
x.reshape(2, -1).transpose(1, 0)
x.astype(y.dtype, copy=False)
x.swapaxes(0, 1)
math.sqrt(3, 4, 5)
"""


@pytest.mark.parametrize("line", WRONG)
def test_what_cupy_lacks_is_found(cupy, line):
    words = [problem(cupy, use) for use in uses(line, kernels=True)]
    assert re.search(WRONG[line], " ".join(filter(None, words))), words


def test_what_cupy_has_is_not_reported(cupy):
    assert [problem(cupy, use) for use in uses(RIGHT, kernels=True)].count(None) == len(uses(RIGHT, kernels=True)) > 12
