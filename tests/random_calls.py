"""Random calls of the public operations, run by MiniRes and by PyTorch, and what counts as agreement.

A call is a line of Python, such as ``F.conv2d(a, b, stride=(2, 1))``, and the values of its inputs a, b, ... The same
line runs on both sides: the names in it (m, F, nn, the inputs) stand for MiniRes's or for PyTorch's. The lines are
drawn in ``random_calls_table.py`` and ``random_calls_tensor.py``. To run one alone, in tests/:
``python -c "import random_calls as r; r.show('F.conv2d', 17)"``.
"""

import functools
import operator
import warnings
import zlib
from typing import Any, NamedTuple

import numpy as np

import minires
from minires import Tensor, nn
from minires.nn import functional

SEED = 20240229
#: Of each dtype; in float16 MiniRes rounds every step of a formula, and PyTorch computes in float32 and rounds once.
TOLERANCE = {"float16": 1e-2, "float32": 2e-5, "float64": 1e-11}
REFUSALS = (TypeError, ValueError, IndexError, RuntimeError)
INTS = ("uint8", "int8", "int16", "int32", "int64")
FLOATS = ("float16", "float32", "float64")


class Input(NamedTuple):
    values: np.ndarray
    layout: str  # "plain", "transposed" or "gaps": how it lies in memory
    requires_grad: bool
    kind: str  # of values: "tame", "ties", "zeros", "special", "tiny" or "huge"


class Call(NamedTuple):
    name: str
    number: int
    line: str
    inputs: dict[str, Input]

    def __str__(self) -> str:
        values = [f"{n} = {i.values.dtype} {i.values.shape} {i.kind} {i.layout}" for n, i in self.inputs.items()]
        values = [v + ", requires_grad" * i.requires_grad for v, i in zip(values, self.inputs.values(), strict=True)]
        again = f'python -c "import random_calls as r; r.show({self.name!r}, {self.number}, seed={SEED})"'
        return "\n    ".join([self.line, *values, f"again: {again}"])


class Draw:
    """Random sizes, options and arrays of one call."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.inputs = {}
        self.kind = self.pick("tame", "tame", "tame", "ties", "zeros", "special", "tiny", "huge")

    def pick(self, *choices):
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, p):
        return bool(self.rng.random() < p)

    def size(self, low, high):
        return int(self.rng.integers(low, high + 1))

    def shape(self, least=0, most=4, empty=0.04):
        return tuple(0 if self.chance(empty) else self.size(1, 5) for _ in range(self.size(least, most)))

    def axis(self, ndim, beyond=0.07):
        """An axis from either end, now and then one that is not there."""
        if self.chance(beyond) or ndim == 0:
            return self.pick(-ndim - 1, ndim, ndim + 3)
        return self.size(-ndim, ndim - 1)

    def axes(self, ndim):
        """What a reduction takes for dim: nothing, an axis, several, none."""
        several = tuple({self.axis(ndim, 0.03) for _ in range(self.size(1, 3))})
        return self.pick(None, self.axis(ndim), self.axis(ndim), several, several, list(several), (), (0, 0))

    def options(self, chance=0.5, **named):
        """``, name=value`` for some of the options."""
        return "".join(f", {name}={value!r}" for name, value in named.items() if self.chance(chance))

    def dtype(self):
        return self.pick("bool", *INTS, *FLOATS, *FLOATS, *FLOATS)

    def float_dtype(self, half=0.1):
        return "float16" if self.chance(half) else self.pick("float32", "float64")

    def array(self, name, shape, dtype="float64", sums=False, grad=0.7, kind=None):
        """Draw the input ``name``; with sums its huge values stay so small that sums of products are finite."""
        values, kind = self.values(shape, np.dtype(dtype), kind or self.kind, sums), kind or self.kind
        layout = self.pick("plain", "plain", "transposed", "gaps")
        self.inputs[name] = Input(values, layout, values.dtype.kind == "f" and self.chance(grad), kind)
        return name

    def values(self, shape, dtype, kind, sums):
        rng = self.rng
        if dtype.kind == "b":
            return np.asarray(rng.random(shape) < 0.5)
        if dtype.kind in "iu":
            values = rng.integers(0 if dtype.kind == "u" else -4, 5, shape)
            if kind == "huge":
                info = np.iinfo(dtype)
                values = np.where(
                    rng.random(shape) < 0.5, rng.choice([info.max, info.min, info.max - 1], shape), values
                )
            return np.asarray(values).astype(dtype)
        values = np.asarray(rng.standard_normal(shape))
        some = rng.random(shape) < 0.4
        info = np.finfo(dtype)
        if kind == "ties":
            values = np.round(values)
        elif kind == "zeros":
            values = np.where(some, rng.choice([0.0, -0.0], shape), values)
        elif kind == "special":
            values = np.where(rng.random(shape) < 0.15, rng.choice([np.nan, np.inf, -np.inf], shape), values)
        elif kind == "tiny":
            values = np.where(some, values * float(info.smallest_subnormal) * 8, values)
        elif kind == "huge" and sums:
            values = values * (10 if dtype == "float16" else float(info.max) ** 0.3)
        elif kind == "huge":
            values = np.where(some, rng.choice([info.max, info.min], shape).astype(float), values)
        return np.asarray(values).astype(dtype)


def laid_out(values, layout):
    """A new array of these values that lies in memory in another way."""
    if layout == "transposed":
        return values.T.copy().T
    if layout == "gaps" and values.ndim > 0:
        wide = np.zeros((*values.shape[:-1], 2 * values.shape[-1]), values.dtype)
        wide[..., ::2] = values
        return wide[..., ::2]
    return values.copy()


def draw(name, number, seed=SEED):
    """The call of an operation with this number."""
    from random_calls_tensor import CALLS

    g = Draw((seed, zlib.crc32(name.encode()), number))
    line = CALLS[name](g)
    return Call(name, number, line, g.inputs)


# ---- The two sides --------------------------------------------------------------------------------------------------

COMMON = {
    "np": np,
    "nan": np.nan,
    "inf": np.inf,
    "iadd": operator.iadd,
    "isub": operator.isub,
    "imul": operator.imul,
    "itruediv": operator.itruediv,
}


class Mine:
    """MiniRes."""

    tensor = Tensor

    def __init__(self):
        self.parameters = []
        self.names = {**COMMON, "m": minires, "F": functional, "nn": nn, "dtype": np.dtype, "layer": self.layer}
        self.names["dropout"] = self.dropout
        self.names["no_grad"] = minires.no_grad

    def dropout(self, x, *args, **options):
        return functional.dropout(x, *args, generator=np.random.default_rng(1), **options)

    def make(self, one):
        x = minires.from_numpy(laid_out(one.values, one.layout))
        return x.requires_grad_() if one.requires_grad else x

    def layer(self, module, *inputs, train=True):
        for p in module.parameters():
            p.data = np.linspace(-1, 1, p.array.size, dtype=np.float32).reshape(p.shape)
        self.parameters = list(module.parameters()) + list(module.buffers())
        return module.train(train)(*inputs)

    def array(self, x):
        return x.array

    def backward(self, y, dy):
        y.backward(dy)


class Theirs:
    """PyTorch, with the names that MiniRes has elsewhere or alone."""

    def __init__(self):
        import torch

        self.torch = torch
        self.tensor = torch.Tensor
        self.parameters = []
        self.names = {**COMMON, "m": torch, "F": self, "nn": self, "layer": self.layer, "dropout": self.dropout}
        self.names["dtype"] = lambda name: getattr(torch, name)
        self.names["no_grad"] = torch.no_grad

    def __getattr__(self, name):
        """F.conv2d, F.cat, nn.Linear: wherever PyTorch has it."""
        for place in (self.torch.nn, self.torch.nn.functional, self.torch):
            if hasattr(place, name):
                return getattr(place, name)
        raise AttributeError(name)

    def make(self, one):
        x = self.torch.from_numpy(laid_out(one.values, one.layout))
        return x.requires_grad_() if one.requires_grad else x

    def layer(self, module, *inputs, train=True):
        for p in module.parameters():
            p.data = self.torch.from_numpy(np.linspace(-1, 1, p.numel(), dtype=np.float32).reshape(p.shape))
        self.parameters = list(module.parameters()) + list(module.buffers())
        return module.train(train)(*inputs)

    def residual_add(self, x, branch, inplace=False):
        if x.shape != branch.shape:
            raise ValueError("a shortcut is never broadcast")
        return branch + x

    def shortcut_a(self, x, out_channels, stride=1):
        rows, columns = stride if isinstance(stride, tuple) else (stride, stride)
        new = out_channels - x.shape[1]
        if new < 0 or x.ndim != 4:
            raise ValueError("a shortcut to fewer channels, or of what is no image")
        return self.torch.nn.functional.pad(x[:, :, ::rows, ::columns], (0, 0, 0, 0, new // 2, new - new // 2))

    def dropout(self, x, p=0.5, training=True):
        """With the entries that MiniRes drops."""
        y = self.torch.nn.functional.dropout(x, p, training)  # refuses what is to be refused
        if not training or p == 0:
            return y
        kept = np.random.default_rng(1).random(tuple(x.shape), dtype=np.float32) >= p
        return x * (self.torch.from_numpy(np.asarray(kept)).to(x.dtype) * (0.0 if p == 1 else 1 / (1 - p)))

    def array(self, x):
        return x.detach().numpy()

    def backward(self, y, dy):
        y.backward(self.torch.from_numpy(dy))


class Outcome(NamedTuple):
    error: Exception | None
    results: list  # arrays, or whatever else came
    requires_grad: list
    gradients: list  # of inputs and parameters, None where there is none
    after: list  # inputs, parameters and buffers after the call


def run(side, call):
    """What a side makes of a call."""
    side.parameters = []
    inputs = call.inputs
    if isinstance(side, Theirs) and call.name in ("F.batch_norm", "nn.BatchNorm2d"):
        # PyTorch 2.13 reads statistics and weights with gaps, and a transposed batch of one, from the wrong memory.
        inputs = {name: one._replace(layout="plain") for name, one in inputs.items()}
    tensors = {name: side.make(one) for name, one in inputs.items()}
    try:
        y = eval(call.line, {**side.names, **tensors})
        results = list(y) if isinstance(y, (tuple, list)) else [y]
        differentiable = [x for x in results if isinstance(x, side.tensor) and x.requires_grad]
        arrays = [side.array(x).copy() if isinstance(x, side.tensor) else x for x in results]
        after = [side.array(x).copy() for x in [*tensors.values(), *side.parameters]]
        if differentiable:
            x = differentiable[0]
            rng = np.random.default_rng(call.number)
            side.backward(x, np.asarray(rng.standard_normal(tuple(x.shape))).astype(side.array(x).dtype))
        gradients = [None if x.grad is None else side.array(x.grad) for x in [*tensors.values(), *side.parameters]]
        flags = [bool(x.requires_grad) if isinstance(x, side.tensor) else None for x in results]
        return Outcome(None, arrays, flags, gradients, after)
    except Exception as error:  # which ones are allowed is for the caller to say
        after = [side.array(x).copy() for x in tensors.values()]
        return Outcome(error, [], [], [], after)


# ---- Agreement ------------------------------------------------------------------------------------------------------


def difference(mine, theirs, sums, coarsest):
    """What is different about two results, or None.

    Floats are compared entry by entry; the results of sums on the scale of the largest entry, at least 1, because the
    summands may cancel.
    """
    if not isinstance(theirs, np.ndarray) or not isinstance(mine, np.ndarray):
        if isinstance(mine, np.dtype):
            return None if str(mine) in str(theirs) else f"{mine} and {theirs}"
        same = mine == theirs or mine != mine and theirs != theirs or np.allclose(mine, theirs, 1e-6, equal_nan=True)
        return None if type(mine) is type(theirs) and same else f"{mine!r} and {theirs!r}"
    if mine.shape != theirs.shape:
        return f"shape {mine.shape}, PyTorch {theirs.shape}"
    if mine.dtype != theirs.dtype:
        return f"dtype {mine.dtype}, PyTorch {theirs.dtype}"
    if mine.dtype.kind != "f":
        wrong = mine != theirs
    else:
        tolerance, info = max(TOLERANCE[str(mine.dtype)], coarsest), np.finfo(mine.dtype)
        a, b = mine.astype(np.float64), theirs.astype(np.float64)
        finite = np.isfinite(b)
        scale = np.abs(b[finite]).max(initial=1) if sums else np.abs(b)
        allowed = np.maximum(tolerance * scale, 4 * float(info.smallest_subnormal))
        close = np.abs(a - b) <= allowed
        wrong = ~np.where(finite, close, (a == b) | (np.isnan(a) & np.isnan(b)))
    if not wrong.any():
        return None
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    return f"{mine[place]!r}, PyTorch {theirs[place]!r} at {place}, one of {int(wrong.sum())} of {wrong.size}"


def differences(call, mine, theirs, sums):
    """Everything that is different about two outcomes that both computed."""
    found = []
    if len(mine.results) != len(theirs.results):
        return [f"{len(mine.results)} results, PyTorch {len(theirs.results)}"]
    names = [*call.inputs, *[f"parameter {i}" for i in range(len(theirs.after))]]
    floats = [i.values.dtype for i in call.inputs.values() if i.values.dtype.kind == "f"]
    coarsest = max([TOLERANCE[str(dtype)] for dtype in floats], default=0.0)
    for i, pair in enumerate(zip(mine.results, theirs.results, strict=True)):
        found.append((f"result {i}", difference(*pair, sums, coarsest)))
    if mine.requires_grad != theirs.requires_grad:
        found.append(("requires_grad", f"{mine.requires_grad}, PyTorch {theirs.requires_grad}"))
    for name, a, b in zip(names, mine.after, theirs.after, strict=False):
        found.append((f"{name} after the call", difference(a, b, sums, coarsest)))
    for name, a, b in zip(names, mine.gradients, theirs.gradients, strict=False):
        if a is None and b is None:
            continue
        a, b = (np.zeros_like(b) if a is None else a), (np.zeros_like(a) if b is None else b)
        found.append((f"gradient of {name}", difference(a, b, sums, coarsest)))
    return [f"{where}: {what}" for where, what in found if what is not None]


def show(name, number, seed=SEED):
    """Run one call on both sides, and print what came."""
    call = draw(name, number, seed)
    print(call)
    for variable, one in call.inputs.items():
        print(f"{variable} = {one.values!r}")
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for side in (Mine(), Theirs()):
            print(f"\n{type(side).__name__}:", *run(side, call), sep="\n    ")


def quiet(function: Any) -> Any:
    """The function without warnings of overflow: here they are wanted."""

    @functools.wraps(function)
    def silent(*args):
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args)

    return silent
