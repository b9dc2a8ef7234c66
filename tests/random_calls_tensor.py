"""How a random call of each operator and method of a Tensor is drawn, as in ``random_calls_table.py``."""

import numpy as np
from random_calls import FLOATS, INTS
from random_calls_table import CALLS, SUMS, broadcast, call

__all__ = ["CALLS", "SUMS"]  # with the functions and layers: all there is

# ---- Operators ------------------------------------------------------------------------------------------------------

SIGNS = {
    "__add__": "+",
    "__sub__": "-",
    "__mul__": "*",
    "__truediv__": "/",
    "__pow__": "**",
    "__lt__": "<",
    "__le__": "<=",
    "__gt__": ">",
    "__ge__": ">=",
    "__eq__": "==",
    "__ne__": "!=",
    "__and__": "&",
    "__or__": "|",
}
REFLECTED = {"__radd__": "+", "__rsub__": "-", "__rmul__": "*", "__rtruediv__": "/", "__rpow__": "**"}


def constant(g):
    return g.pick("2", "-1", "0", "1", "0.5", "2.0", "-1.5", "3", "True", "inf", "nan", "0.0", "100")


@call(*["T." + name for name in SIGNS])
def operator_(g, name):
    dtype = g.pick("bool", *INTS) if name in ("__and__", "__or__") and g.chance(0.9) else g.dtype()
    broadcast(g, dtype, dtype if g.chance(0.6) else g.dtype())
    if g.chance(0.35):
        del g.inputs["b"]
        return f"a {SIGNS[name]} {g.pick('0.5', constant(g)) if name == '__pow__' else constant(g)}"
    return f"a {SIGNS[name]} b"


@call(*["T." + name for name in REFLECTED])
def reflected(g, name):
    g.array("a", g.shape(), g.dtype())
    return f"{constant(g)} {REFLECTED[name]} a"


@call("T.__neg__", "T.__abs__", "T.__invert__")
def unary(g, name):
    g.array("a", g.shape(), g.pick("bool", *INTS) if name == "__invert__" and g.chance(0.9) else g.dtype())
    return {"__neg__": "-a", "__abs__": "abs(a)", "__invert__": "~a"}[name]


@call("T.__iadd__", "T.__isub__", "T.__imul__", "T.__itruediv__")
def in_place(g, name):
    dtype, shape = g.dtype(), g.shape()
    grad = 0.7 if g.chance(0.5) else 0.0
    g.array("a", shape, dtype, grad=grad)
    other = tuple(1 if g.chance(0.2) else n for n in shape) if g.chance(0.93) else g.shape()
    g.array("b", other, dtype if g.chance(0.7) else g.dtype(), grad=grad)
    left = "a" if g.chance(0.6) else "a * 1"
    if g.chance(0.35):
        del g.inputs["b"]
        return f"{name.strip('_')}({left}, {constant(g)})"
    return f"{name.strip('_')}({left}, b)"


@call("T.__getitem__")
def getitem(g):
    shape = g.shape(0, 4)
    g.array("a", shape, g.pick(*FLOATS) if g.chance(0.8) else g.dtype())
    parts = []
    for n in shape[: g.size(0, len(shape))]:
        i = g.size(-n, n - 1) if n and g.chance(0.95) else g.pick(n, -n - 1, 7)
        bounds = [g.pick("", g.size(-6, 6)) for _ in range(2)]
        step = g.pick("", "", ":1", ":2", ":3") if g.chance(0.97) else g.pick(":-1", ":0")
        entries = [g.size(-n, n - 1) if n else 0 for _ in range(g.pick(1, 2, 3))]
        entries = [*entries, n + 2] if g.chance(0.03) else entries
        array = f"m.tensor({entries})"
        mask = f"m.tensor({[g.chance(0.5) for _ in range(n + g.chance(0.05))]}) > 0.5"
        parts.append(g.pick(i, i, f"{bounds[0]}:{bounds[1]}{step}", ":", "None", entries, array, f"({mask})", "..."))
    if g.chance(0.03):
        parts.append(g.pick("1.0", "0", "'x'", "True", "m.tensor([0.5])"))
    if g.chance(0.1):
        return "a[a > 0]"
    return f"a[{', '.join(str(p) for p in parts)}]" if parts else g.pick("a[...]", "a[None]", "a[()]")


# ---- Methods --------------------------------------------------------------------------------------------------------


@call("T.item", "T.__bool__", "T.__float__", "T.__int__", "T.__index__", "T.__format__")
def as_number(g, name):
    g.kind = "tame" if name in ("__int__", "__index__") else g.kind
    g.array("a", g.pick((), (1,), (1, 1), (0,), (2,)) if g.chance(0.4) else (), g.dtype(), grad=0.2)
    lines = {"item": "a.item()", "__bool__": "bool(a)", "__float__": "float(a)", "__int__": "int(a)"}
    return {**lines, "__index__": "a.__index__()", "__format__": "f'{a:.2f}'"}[name]


@call("T.tolist", "T.dim", "T.numel", "T.__len__", "T.shape", "T.ndim", "T.dtype", "T.is_leaf", "T.requires_grad")
def asked(g, name):
    g.array("a", g.shape(), g.dtype())
    lines = {"__len__": "len(a)", "shape": "tuple(a.shape)", "is_leaf": "(a.is_leaf, (a * 2).is_leaf)"}
    plain = ("ndim", "dtype", "requires_grad")
    return lines.get(name, f"a.{name}" if name in plain else f"a.{name}()")


@call("T.__repr__", "T.device", "T.grad_fn", "T.__array__", "T.numpy", "T.__iter__", "T.__hash__")
def as_python(g, name):
    g.array("a", g.shape(), g.dtype())
    lines = {
        "__repr__": "len(repr(a)) > 0",
        "device": "str(a.device)",
        "grad_fn": "(a.grad_fn, (a * 2).grad_fn is None)",
    }
    lines |= {
        "__array__": "np.asarray(a)",
        "numpy": "a.numpy()",
        "__iter__": "list(a)",
        "__hash__": "hash(a) == hash(a)",
    }
    return lines[name]


@call("T.size")
def size(g):
    ndim = len(g.array("a", g.shape(), g.dtype()) and g.inputs["a"].values.shape)
    return f"a.size({g.axis(ndim)})" if g.chance(0.7) else "tuple(a.size())"


@call("T.float", "T.double", "T.long", "T.cpu", "T.detach", "T.clone", "T.data")
def another(g, name):
    g.kind = "tame" if name == "long" else g.kind
    g.array("a", g.shape(), g.dtype())
    return "a.data" if name == "data" else f"a.{name}()"


@call("T.to")
def to(g):
    target = g.dtype()
    g.kind = (
        "tame" if target in ("bool", *INTS) else g.kind
    )  # of NaN and of what is too large C leaves the integer open
    g.array("a", g.shape(), g.dtype())
    if target == "uint8":
        g.inputs["a"] = g.inputs["a"]._replace(values=np.asarray(abs(g.inputs["a"].values)))
    if g.chance(0.1):
        return g.pick("a.to('cpu')", "a.to('tpu')", "a.to(dtype('complex64'))")
    return g.pick(f"a.to(dtype('{target}'))", f"a.to(dtype=dtype('{target}'))", f"a.to('cpu', dtype('{target}'))")


@call("T.requires_grad_", "T.retain_grad", "T.backward")
def of_the_graph(g, name):
    g.array("a", g.shape(), g.dtype())
    one = "() if a.numel() == 1 else"
    lines = {
        "requires_grad_": g.pick("a.requires_grad_()", "a.requires_grad_(False)", "(a * 2).requires_grad_()"),
        "retain_grad": g.pick("a.retain_grad()", "(a * 2).retain_grad()"),
        "backward": g.pick("a.backward()", "(a * 2).sum().backward()", "a.sum().backward()", "(a * a).backward()"),
    }
    assert one
    return lines[name]


@call("T.clamp")
def clamp(g):
    g.array("a", g.shape(), g.dtype())
    bounds = ["min=" + g.pick("0", "-1", "0.5", "-300", "-inf", "nan"), "max=" + g.pick("1", "0", "0.25", "inf")]
    return f"a.clamp({g.pick(*bounds, ', '.join(bounds), ', '.join(bounds), '' if g.chance(0.1) else bounds[0])})"


@call("T.sum", "T.mean", "T.var", sums=True)
def reduction(g, name):
    a = g.array("a", g.shape(), g.dtype() if g.chance(0.3) else g.pick(*FLOATS), sums=True)
    more = g.options(0.5, correction=g.pick(0, 1, 2)) if name == "var" else ""
    return f"{a}.{name}(dim={g.axes(g.inputs['a'].values.ndim)}{more}{g.options(keepdim=g.chance(0.5))})"


@call("T.amax", "T.amin")
def extremes(g, name):
    g.array("a", g.shape(), g.dtype() if g.chance(0.5) else g.pick(*FLOATS))
    dim = g.axes(g.inputs["a"].values.ndim)
    return f"a.{name}(dim={() if dim is None else dim}{g.options(keepdim=g.chance(0.5))})"


@call("T.max", "T.min", "T.argmax", "T.argmin")
def extreme(g, name):
    ndim = len(g.array("a", g.shape(), g.dtype() if g.chance(0.5) else g.pick(*FLOATS)) and g.inputs["a"].values.shape)
    if g.chance(0.3):
        return f"a.{name}()"
    return f"a.{name}(dim={g.axis(ndim)}{g.options(keepdim=g.chance(0.5))})"


@call("T.reshape", "T.view")
def reshape(g, name):
    a, b, c = g.size(1, 4), g.size(1, 4), g.pick(0, 1, 2, 3, 5)
    g.array("a", (a, b, c), g.dtype())
    shapes = [(a * b, c), (-1,), (a, 1, b * c), (c, a, b), (c, -1), (a * b * c,), (a, -1, c)]
    shape = g.pick(*shapes) if g.chance(0.9) else g.pick((a + 1, b), (-1, -1), (7, -1), (-2, a), (), (1.5,))
    return f"a.{name}({shape if g.chance(0.5) or len(shape) == 0 else ', '.join(map(str, shape))})"


@call("T.squeeze", "T.unsqueeze")
def squeeze(g, name):
    shape = tuple(1 if g.chance(0.4) else n for n in g.shape())
    g.array("a", shape, g.dtype())
    if name == "squeeze" and g.chance(0.5):
        return f"a.squeeze({g.pick('', tuple({g.axis(len(shape), 0.03), g.axis(len(shape), 0.03)}))})"
    return f"a.{name}({g.axis(len(shape) + (name == 'unsqueeze'))})"


@call("T.permute", "T.transpose", "T.T")
def permute(g, name):
    shape = g.shape()
    g.array("a", shape if name != "T" or g.chance(0.2) else shape[:2], g.dtype())
    ndim = g.inputs["a"].values.ndim
    axes = [int(i) - ndim * g.chance(0.2) for i in g.rng.permutation(ndim)]
    if g.chance(0.05):
        axes = [*axes, g.pick(0, 5)]
    lines = {"permute": f"a.permute({tuple(axes) if g.chance(0.5) or not axes else str(axes)[1:-1]})", "T": "a.T"}
    return {**lines, "transpose": f"a.transpose({g.axis(ndim)}, {g.axis(ndim)})"}[name]


@call("T.expand")
def expand(g):
    full = g.shape(0, 4)
    small = tuple(1 if g.chance(0.4) else n for n in full)
    small = small[g.size(0, len(small)) :] if g.chance(0.4) else small
    g.array("a", small, g.dtype())
    sizes = [-1 if g.chance(0.1) else n for n in full]
    if g.chance(0.06):
        sizes = g.pick([*sizes, 2], sizes[1:], [n + 1 for n in sizes], [-2, *sizes])
    return f"a.expand({tuple(sizes) if g.chance(0.5) or not sizes else str(sizes)[1:-1]})"
