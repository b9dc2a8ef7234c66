"""Ten thousand random calls of the public operations agree with PyTorch, or are refused in words that name the culprit.

Where MiniRes and PyTorch part on purpose, a line of one of the three lists says so and why. All else is a failure.
Without PyTorch the same calls run, and are held against what needs no PyTorch: shapes, dtypes, finite values.
"""

import importlib.util
import inspect
import re
from typing import NamedTuple

import numpy as np
import pytest
from random_calls import REFUSALS, SEED, Mine, Theirs, differences, draw, quiet, run
from random_calls_tensor import CALLS, SUMS

import minires
from minires import Tensor, nn
from minires.engine import creation
from minires.nn import functional

EACH = -(-10_000 // len(CALLS))  # calls of one operation


class Exempt(NamedTuple):
    names: str  # of the operations, a regular expression
    words: str  # of the refusal, or of the difference, a regular expression
    why: str
    holds: object = lambda call: True


def special(call):
    return any(one.kind == "special" for one in call.inputs.values())


def empty(call):
    return any(one.values.size == 0 for one in call.inputs.values())


#: What differences() says where one of two values is no finite number.
INFINITE = r"np\.float\d+\(-?(nan|inf)\)"

#: MiniRes refuses in these words what PyTorch computes.
NOT_OFFERED = [
    Exempt(r"F\..*|nn\..*", r"is empty|no empty axis", "an empty batch or image is a mistake more often than a wish"),
    Exempt(r"F\..*|nn\..*", r"output_size must be at least 1", "an empty result too"),
    Exempt(r"F\.linear|nn\..*|F\.batch_norm", r"must be positive", "and a layer without features"),
    Exempt(r"F\..*|nn\..*", r"\(N, C, H, W\)", "images come in batches"),
    Exempt(r"F\..*|nn\..*", r"must be float32 or float64", "float16 has too few digits for a network's sums"),
    Exempt(r"F\..*|T\..*", r"a tensor without axes has no dim|the shape is \(\)", "PyTorch lets 0 and -1 pass"),
    Exempt(r"F\.conv2d", r"padding must be an int or a pair of ints, got '", "padding by name"),
    Exempt(r"F\.linear", r"b must have shape", "a bias of one value, repeated for all features"),
    Exempt(r"F\.linear", r"must share in", "a weight of one axis"),
    Exempt(r"F\.dropout", r"input must be floating point", "PyTorch drops integers, and truncates what it scales"),
    Exempt(r"F\.cross_entropy", r"label_smoothing must lie", "PyTorch looks at it only where it takes a mean"),
    Exempt(r"F\.pad", r"widths must not be negative", "cropping has a name in Python: a slice"),
    Exempt(r"F\.pad", r"the value .* does not fit", "PyTorch looks at the value only where something is padded"),
    Exempt(r"T\.__r?pow__", r"integers to a negative power", "PyTorch says 0 for 2 ** -1 of tensors"),
    Exempt(r"T\..*|F\.where", r"the value .* does not fit into u?int", "PyTorch wraps around: uint8 + -1 adds 255"),
    Exempt(r"F\.where", r"condition must be boolean, got uint8", "PyTorch's masks were uint8 once"),
    Exempt(r"F\.residual_add", r"must have one dtype", "two dtypes in a residual connection are a mistake"),
    Exempt(
        r"F\.batch_norm",
        r"must both be given|must have shape",
        "which PyTorch does not see where nothing is to be computed",
        empty,
    ),
    Exempt(r"nn\.BatchNorm2d", r"expected \(N", "which PyTorch looks at only where something of that size is used"),
    Exempt(r"F\.cat", r"cannot join", "PyTorch skips what has the shape (0,)", empty),
    Exempt(r"T\.__getitem__", r"a single ellipsis", "a second ... stands for nothing in PyTorch"),
    Exempt(r"T\.to|m\.tensor", r"a dtype of real numbers|complex", "complex numbers"),
    Exempt(r"T\.var", r"needs more than . values", "PyTorch warns, and gives NaN"),
    Exempt(r"m\.randn?", r"dtype must be floating point", "PyTorch computes this only for no values at all"),
]

#: MiniRes computes what PyTorch refuses in these words.
ALSO_COMPUTED = [
    Exempt(r".*", r"not implemented for '|does not support bool input", "PyTorch has no code for this dtype"),
    Exempt(
        r"F\.matmul|T\.__r?matmul__", r"same dtype|expected scalar type|Autograd not", "dtypes promote, as for + and *"
    ),
    Exempt(r"F\.batch_norm", r"eps must be positive", "0 is a number too, where no channel is constant"),
    Exempt(r"F\.cross_entropy", r"Long or Byte", "labels of any integer dtype"),
    Exempt(r"T\.__r?i?(sub|pow)__", r"with a bool tensor is not supported", "True - a is 1 - a"),
    Exempt(r"T\.__rpow__", r"INTERNAL ASSERT", "True ** a is 1"),
    Exempt(r"T\.__getitem__", r"step must be greater than zero", "x[::-1], as in NumPy"),
    Exempt(r"T\.__format__", r"unsupported format string", "of a single value, whatever its shape"),
    Exempt(r"m\.arange", r"step must be nonzero", "a step of 0.5 with an integer dtype, see below"),
    Exempt(r"T\.view", r"view size is not compatible", "view is reshape, and copies where it has to"),
    Exempt(r"T\.squeeze", r"appears multiple times", "once is enough"),
]

#: Both compute, and this is different.
DIFFERENT = [
    Exempt(
        r".*\.relu|.*\.ReLU|F\.maximum|F\.minimum|T\.abs|T\.__abs__",
        r"gradient of",
        "at a NaN: y > 0 and a > b do not hold there, and the sign is NaN; PyTorch passes dy on, or 0 for abs",
        special,
    ),
    Exempt(
        r"F\.max_pool2d|nn\.MaxPool2d",
        r"gradient of",
        "of several NaNs in a window the first is the maximum, and +inf ties with NaN; in PyTorch the last is",
        special,
    ),
    Exempt(r"T\.max|T\.min", r"gradient of", "of a NaN that is the maximum of all: NaN, and 0 in PyTorch", special),
    Exempt(
        r"m\.arange",
        r"result",
        "PyTorch cuts fractions off the bounds first where an integer dtype is asked for",
        lambda call: "int" in call.line,
    ),
    Exempt(
        r"F\.batch_norm",
        INFINITE,
        "infinite statistics, weights or 1 / sqrt(0): scale x + shift meets inf - inf in other places",
        lambda call: special(call) or "eps=0.0" in call.line,
    ),
    Exempt(
        r"F\.(log_)?softmax",
        r"dtype float32, PyTorch (bool|u?int)",
        "PyTorch refuses integers, and gives them back where there are none",
        empty,
    ),
    Exempt(
        r"T\.__getitem__",
        r"result 0|gradient of a",
        "beside an array an int is an array too, as in NumPy: where ... or : lies between, their axis comes first",
        lambda call: re.search(r"[[ ]-?\d+[,\]]", call.line) and re.search(r"\[.*\[|m\.tensor", call.line),
    ),
    Exempt(
        r"T\.__pow__",
        rf"gradient of a: .*{INFINITE}",
        "PyTorch takes b - 1 in float16, and x ** -0.5 as 1 / sqrt(x): at infinities and at -0.0",
    ),
    Exempt(
        r"F\.matmul|T\.__r?matmul__",
        r"dtype float",
        "PyTorch checks dtypes only where there is something to add",
        lambda call: len({one.values.dtype for one in call.inputs.values()}) == 2,
    ),
    Exempt(
        r"T\.__pow__|T\.__rpow__",
        r"gradient of a",
        "PyTorch's exponent b - 1 wraps around in integers",
        lambda call: any(one.values.dtype.kind in "iu" and one.kind == "huge" for one in call.inputs.values()),
    ),
    Exempt(r"T\.__rtruediv__", INFINITE, "PyTorch multiplies by 1 / a, which overflows where c / a does not"),
    Exempt(
        r"T\.__i(add|sub|mul|truediv)__",
        r"a after the call",
        "inside the graph a += b is a = a + b: a new tensor",
        lambda call: any(one.requires_grad for one in call.inputs.values()),
    ),
    Exempt(
        r"T\.var",
        r"gradient of a",
        "PyTorch 2.13 divides by another count where dim=() means all",
        lambda call: "dim=()" in call.line,
    ),
]

KERNELS = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "divide",
    "pow": "power",
    "matmul": "matmul",
}

#: How a refusal calls an operation: by its kernel's name, or by that of the method that it leans on.
CALLED = {
    **{f"T.__{p}{o}__": f"{o}|{k}|in place" for p in ("", "r", "i") for o, k in KERNELS.items()},
    **{f"T.__{o}__": "item" for o in ("bool", "int", "float", "index", "format")},
    "T.__array__": "numpy",
    "T.__iter__": "len",
    "T.__neg__": "negative",
    "T.clamp": "clip",
    "m.tensor": "Tensor|requires_grad",
    "m.zeros": "requires_grad",
    "m.ones": "requires_grad",
    "T.requires_grad_": "requires_grad",
    "nn.BatchNorm2d": "batch_norm",
    "nn.MaxPool2d": "max_pool2d",
    "nn.AvgPool2d": "avg_pool2d",
    "nn.CrossEntropyLoss": "cross_entropy",
    "T.view": "reshape",
    "F.cat": "concatenate",
    "T.amax": "max",
    "T.amin": "min",
    "T.max": "argmax",
    "T.min": "argmin",
    "F.adaptive_avg_pool2d": "global_avg_pool",
    "nn.AdaptiveAvgPool2d": "global_avg_pool|adaptive_avg_pool2d",
}


def exempt(rules, call, words, used):
    for rule in rules:
        if re.fullmatch(rule.names, call.name) and re.search(rule.words, words) and rule.holds(call):
            used.add(rule)
            return True
    return False


def names_the_culprit(call, error):
    """Whether a refusal is of a documented kind and begins with the operation's name."""
    own = call.name.split(".")[1].strip("_")
    names = f"{own}|{own.lower()}|{CALLED.get(call.name, own)}"
    ours = isinstance(error, REFUSALS) and type(error).__module__ == "builtins"
    return ours and re.match(rf"({names}): .", str(error)) is not None


def verdict(call, mine, theirs, used):
    """What is wrong about a call's two outcomes, or an empty list."""
    if mine.error is not None and not names_the_culprit(call, mine.error):
        return [f"MiniRes refused with {type(mine.error).__name__}: {mine.error}"]
    if mine.error is not None and theirs.error is None and not exempt(NOT_OFFERED, call, str(mine.error), used):
        return [f"MiniRes refused what PyTorch computes: {mine.error}"]
    if mine.error is None and theirs.error is not None:
        if exempt(ALSO_COMPUTED, call, str(theirs.error), used):
            return []
        return [f"MiniRes computed what PyTorch refuses: {theirs.error}"]
    if mine.error is not None:
        return [f"a refused call changed {n}" for n in changed(call, mine)]
    found = differences(call, mine, theirs, call.name in SUMS)
    return [what for what in found if not exempt(DIFFERENT, call, what, used)]


def changed(call, outcome):
    """The inputs that are no longer what they were."""
    pairs = zip(call.inputs.items(), outcome.after, strict=False)
    return [name for (name, one), after in pairs if not np.array_equal(one.values, after, equal_nan=True)]


# ---- Without PyTorch ------------------------------------------------------------------------------------------------

#: The result has the shape of the first input, or that to which all inputs broadcast.
SAME = r".*\.(relu|sigmoid|tanh|exp|log|sqrt|abs|clamp|float|double|long|clone|detach|to|softmax|log_softmax|dropout)"
SAME += r"|nn\.(ReLU|Sigmoid|Tanh|Identity|Dropout|BatchNorm2d)|F\.(batch_norm|residual_add)"
SAME += r"|T\.__(neg|abs|invert|i(add|sub|mul|truediv))__"
BROADCAST = r"F\.(maximum|minimum|where)|T\.__r?(add|sub|mul|truediv|pow|lt|le|gt|ge|eq|ne|and|or)__"

#: Results that are infinite or NaN for tame inputs too: a logarithm of 0, a mean of nothing, a window of padding.
NOT_FINITE = (
    r".*\.(log|sqrt|mean|var|max_pool2d|MaxPool2d|batch_norm|cross_entropy|CrossEntropyLoss)|T\.__[ri]?(truediv|pow)__"
)


class Reduced:
    """A stand-in for a tensor, whose reductions are NumPy's and give shapes."""

    def __init__(self, shape):
        self.shape = shape

    def sum(self, dim=None, correction=1, keepdim=False):
        axis = None if dim is None or dim == () else tuple(np.atleast_1d(dim))
        return np.zeros(self.shape, bool).any(axis=axis, keepdims=keepdim).shape

    mean = var = amax = amin = sum


def expected_shape(call):
    """The shape of a result where a rule gives it, None elsewhere."""
    shapes = [one.values.shape for one in call.inputs.values()]
    if re.fullmatch(SAME, call.name):
        return shapes[0]
    if re.fullmatch(BROADCAST, call.name):
        return np.broadcast_shapes(*shapes)
    if re.fullmatch(r"T\.(sum|mean|var|amax|amin)", call.name):
        return eval(call.line, {"a": Reduced(shapes[0])})
    return None


def verdict_alone(call, mine):
    """What can be said against a call without PyTorch."""
    if mine.error is not None:
        wrong = [] if names_the_culprit(call, mine.error) else ["the refusal does not name the operation"]
        return wrong + [f"a refused call changed {name}" for name in changed(call, mine)]
    found = []
    shape = expected_shape(call)
    if shape is not None and np.shape(mine.results[0]) != shape:
        found.append(f"shape {mine.results[0].shape}, expected {shape}")
    for name, one, grad in zip(call.inputs, call.inputs.values(), mine.gradients, strict=False):
        if grad is not None and (grad.shape != one.values.shape or grad.dtype != one.values.dtype):
            found.append(f"gradient of {name}: {grad.dtype} {grad.shape}")
    tame = call.inputs and all(one.kind in ("tame", "ties", "zeros") for one in call.inputs.values())
    if tame and not re.search("inf|nan", call.line) and not re.fullmatch(NOT_FINITE, call.name):
        floats = [x for x in [*mine.results, *mine.gradients] if isinstance(x, np.ndarray) and x.dtype.kind == "f"]
        found += ["an infinite or NaN result of tame values" for x in floats if not np.isfinite(x).all()]
    if not re.search(r"T\.__i(add|sub|mul|truediv)|nn\.BatchNorm|F\.batch_norm", call.name):
        found += [f"{name} has changed" for name in changed(call, mine)]
    return found


# ---- The tests ------------------------------------------------------------------------------------------------------

PYTORCH = importlib.util.find_spec("torch") is not None
USED = set()


@quiet
def look_at(name):
    """What is wrong about the calls of one operation, and how many of them MiniRes computed."""
    mine, theirs = Mine(), Theirs() if PYTORCH else None
    wrong, computed = [], 0
    for number in range(EACH):
        call = draw(name, number)
        outcome = run(mine, call)
        found = verdict_alone(call, outcome)
        if theirs is not None:
            found += verdict(call, outcome, run(theirs, call), USED)
        computed += outcome.error is None
        if found:
            wrong.append((call, found))
    return wrong, computed


@pytest.mark.parametrize("name", CALLS)
def test_agrees_or_is_refused(name):
    wrong, computed = look_at(name)
    if wrong:
        call, found = wrong[0]
        pytest.fail(f"{len(wrong)} of {EACH} calls of {name} (seed {SEED}, in tests/), the first:\n{call}\n{found}")
    assert computed >= 1, f"none of {EACH} calls of {name} was computed"


#: What is no operation on values, with the test that covers it.
NOT_CALLED = {
    **dict.fromkeys(["cuda"], "test_device_tensor.py"),
    **dict.fromkeys(["apply", "wrap", "floating", "line", "select", "change", "in_graph"], "the methods that use it"),
    **dict.fromkeys(["refuse_copy", "__deepcopy__", "__reduce__"], "test_hard_values.py"),
    **dict.fromkeys(["array", "grad", "node", "__weakref__"], "test_engine.py"),
    **dict.fromkeys(
        ["__init__", "__slots__", "__module__", "__doc__", "__annotations__", "_requires_grad", "__array_priority__"],
        "Python",
    ),
}


def test_every_public_operation_is_called():
    assert EACH >= 20 and EACH * len(CALLS) >= 10_000
    own = [
        f"F.{n}" for n, f in vars(functional).items() if inspect.isfunction(f) and f.__module__ == functional.__name__
    ]
    own += [f"m.{n}" for n, f in vars(creation).items() if inspect.isfunction(f) and hasattr(minires, n)]
    layers = (nn.layers.__name__, nn.more_layers.__name__)
    own += [f"nn.{n}" for n in nn.__all__ if getattr(getattr(nn, n), "__module__", "") in layers]
    for kind in Tensor.__mro__[:-1]:
        own += [f"T.{n}" for n in vars(kind) if n not in NOT_CALLED]
    missing = sorted(set(own) - set(CALLS))
    missing = [name for name in missing if name != "nn.SyncBatchNorm"]  # of a single worker it is nn.BatchNorm2d
    assert not missing, f"no random call of {missing}"
    unknown = sorted(set(CALLS) - set(own))
    assert not unknown, f"no such operation: {unknown}"
