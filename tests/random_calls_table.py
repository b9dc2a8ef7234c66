"""How a random call of each public function and layer is drawn: a function of a Draw that returns the line.

Names: F. for ``functional``, m. for creation, nn. for layers; T., for a Tensor's own, in ``random_calls_tensor.py``.
"""

from random_calls import FLOATS, INTS

CALLS = {}

#: Operations whose results or gradients are sums, whose summands may cancel. All others are compared entry by entry.
SUMS = set()


def call(*names, sums=False):
    """Enter a draw under one name or several; with several it takes the name."""

    def enter(function):
        for name in names:
            CALLS[name] = function if len(names) == 1 else bind(function, name)
            if sums:
                SUMS.add(name)
        return function

    return enter


def bind(function, name):
    return lambda g: function(g, name.split(".")[1])


def number(g, low, high, wrong=(0, -1, 1.5)):
    """An int or a pair of ints for an option, now and then one that is refused."""
    if g.chance(0.03):
        return g.pick(*wrong)
    if g.chance(0.02):
        return (1, 2, 1)
    return g.size(low, high) if g.chance(0.5) else (g.size(low, high), g.size(low, high))


def images(g, name, dtype=None, C=None):
    """Feature maps (N, C, H, W), now and then without the batch, empty or with an axis too many."""
    shape = [g.size(1, 3), C or g.size(1, 4), g.size(1, 7), g.size(1, 7)]
    if g.chance(0.03):
        shape = g.pick(shape[1:], [*shape, 2], shape[2:])
    if g.chance(0.04):
        shape[g.size(0, len(shape) - 1)] = 0
    dtype = dtype or (g.pick(*INTS, "bool") if g.chance(0.04) else g.float_dtype(0.05))
    return g.array(name, tuple(shape), dtype, sums=True)


def broadcast(g, *dtypes, grad=0.7, apart=0.05):
    """Inputs a, b, ... whose shapes broadcast (mostly)."""
    full, shapes = g.shape(0, 4), []
    for _ in dtypes:
        shape = tuple(1 if g.chance(0.2) else n for n in full)
        shape = shape[g.size(0, len(shape)) :] if g.chance(0.3) else shape
        shape = tuple(n + 1 for n in shape) if g.chance(apart) else shape
        shapes.append(shape)
    for name, dtype, shape in zip("abc", dtypes, shapes, strict=False):
        # A gradient that overflows while it is summed over the repeats depends on the order of the sum.
        repeated = g.kind == "huge" and len(set(shapes)) > 1
        g.array(name, shape, dtype, grad=0.0 if repeated else grad)


# ---- functional -----------------------------------------------------------------------------------------------------


@call("F.conv2d", sums=True)
def conv2d(g):
    G = g.size(1, 3)
    C, O, dtype = G * g.size(1, 3), G * g.size(1, 3), g.float_dtype(0.03)
    images(g, "a", dtype, C)
    w_shape = [O, C // G, g.size(1, 3), g.size(1, 3)]
    if g.chance(0.06):
        w_shape[g.size(0, 3)] += g.pick(1, 4, -w_shape[0])
    w_shape = [max(n, 0) for n in w_shape]
    g.array("b", tuple(w_shape), dtype if g.chance(0.97) else "float32", sums=True)
    bias = g.array("c", (O + g.chance(0.04),), dtype) if g.chance(0.5) else "None"
    padding = g.pick("same", "valid") if g.chance(0.03) else number(g, 0, 3, (-1, 0.5))
    options = g.options(stride=number(g, 1, 3), padding=padding, dilation=number(g, 1, 2))
    groups = g.pick(0, -1, G + 1, 1.0) if g.chance(0.05) else G
    return f"F.conv2d(a, b, {bias}{options}, groups={groups})"


@call("F.batch_norm", sums=True)
def batch_norm(g):
    C, dtype = g.size(1, 4), g.float_dtype(0.04)
    g.kind = "tame" if g.kind == "huge" else g.kind
    if g.chance(0.3):
        g.array("a", (g.pick(1, 2, 5, 6), C), dtype)
    else:
        images(g, "a", dtype, C)
    given = []
    for name in "bcde":  # running mean and variance, weight, bias
        if g.chance(0.15):
            given.append("None")
        else:
            wrong = g.chance(0.03)
            g.array(name, (C + wrong,), dtype if g.chance(0.98) else "float64", grad=0.0 if name in "bc" else 0.7)
            given.append(f"abs({name})" if name == "c" and g.chance(0.8) else name)
    more = g.options(momentum=g.pick(0.1, 0.0, 1.0, None), eps=g.pick(1e-5, 0.1, 0.0))
    return f"F.batch_norm(a, {', '.join(given)}, training={g.chance(0.6)}{more})"


@call("F.relu", "T.relu", "T.exp", "T.log", "T.sqrt", "T.abs")
@call("F.sigmoid", "F.tanh", "T.sigmoid", "T.tanh", sums=True)  # their slopes are 1 less something
def function_of_one(g, name):
    g.array("a", g.shape(), g.dtype())
    place = "F." + name if name in ("relu", "sigmoid", "tanh") and g.chance(0.5) else None
    if place == "F.relu" and g.chance(0.3):
        return "F.relu(a * 1, inplace=True)" if g.chance(0.5) else "F.relu(a, inplace=False)"
    return f"{place}(a)" if place else f"a.{name}()"


@call("F.max_pool2d", sums=True)
def max_pool2d(g):
    images(g, "a")
    K, stride = number(g, 1, 4), g.pick(None, number(g, 1, 4))
    half = min(K) // 2 if isinstance(K, tuple) else int(K) // 2
    padding = number(g, 0, max(half, 0), (-1, half + 1, 0.5))
    dilation, ceil_mode = number(g, 1, 2), g.chance(0.5)
    if misses_the_input(g.inputs["a"].values.shape[-2:], K, stride, padding, dilation, ceil_mode):
        # PyTorch's backward writes outside its memory here, and may end the interpreter: no gradient is asked for.
        g.inputs["a"] = g.inputs["a"]._replace(requires_grad=False)
    return f"F.max_pool2d(a, {K}, {stride}, {padding}, {dilation}, {ceil_mode})"


def misses_the_input(sizes, *options):
    """Whether a window of a pooling may lie wholly in the padding."""
    K, stride, padding, dilation, ceil_mode = options
    stride = K if stride is None else stride
    values = [o if isinstance(o, tuple) else (o, o) for o in (K, stride, padding, dilation)]
    if any(len(v) != 2 or any(not isinstance(i, int) or i < 0 for i in v) for v in values) or len(sizes) != 2:
        return True
    for size, k, s, p, d in zip(sizes, *values, strict=True):
        for start in range(-p, size + p + 1, max(s, 1)):
            if not any(0 <= start + tap * d < size for tap in range(k)) and (start < size or ceil_mode):
                return True
    return False


@call("F.avg_pool2d", sums=True)
def avg_pool2d(g):
    images(g, "a")
    K, stride = number(g, 1, 4), g.pick(None, number(g, 1, 4))
    half = min(K) // 2 if isinstance(K, tuple) else int(K) // 2
    padding = number(g, 0, max(half, 0), (-1, half + 1, 0.5))
    more = g.options(ceil_mode=g.chance(0.5), count_include_pad=g.chance(0.5))
    return f"F.avg_pool2d(a, {K}, {stride}, {padding}{more})"


@call("F.adaptive_avg_pool2d", sums=True)
def adaptive_avg_pool2d(g):
    images(g, "a")
    sizes = (None, 1, 1, 2, 3, 8)
    size = (
        g.pick(0, -1, 1.5, (1,), (1, 2, 3))
        if g.chance(0.08)
        else g.pick(g.pick(*sizes[1:]), (g.pick(*sizes), g.pick(*sizes)))
    )
    return f"F.adaptive_avg_pool2d(a, {size})"


@call("F.residual_add")
def residual_add(g):
    shape, dtype = g.shape(), g.pick(*FLOATS)
    g.array("a", shape, dtype)
    g.array("b", shape if g.chance(0.9) else g.shape(), dtype if g.chance(0.9) else g.dtype())
    return "F.residual_add(a, b)"


@call("F.shortcut_a")
def shortcut_a(g):
    images(g, "a")
    return f"F.shortcut_a(a, {g.size(2, 8)}{g.options(stride=number(g, 1, 3))})"


@call("F.linear", sums=True)
def linear(g):
    leading, inside, out = g.shape(0, 2), g.pick(0, 1, 2, 3, 5), g.pick(0, 1, 2, 4)
    dtype = g.pick("int64", "bool") if g.chance(0.03) else g.float_dtype()
    g.array("a", (*leading, inside + g.chance(0.04)), dtype, sums=True)
    g.array(
        "b",
        (out, inside) if g.chance(0.92) else g.pick(g.shape(), (inside,)),
        dtype if g.chance(0.97) else "float32",
        sums=True,
    )
    bias = ", " + g.array("c", (out + g.chance(0.04),), dtype) if g.chance(0.5) else ""
    return f"F.linear(a, b{bias})"


@call("F.dropout")
def dropout(g):
    g.array("a", g.shape(), g.dtype() if g.chance(0.2) else g.pick(*FLOATS))
    p = g.pick(0, 0.0, 0.5, 0.25, 1, 1.0) if g.chance(0.9) else g.pick(-0.1, 1.5, float("nan"))
    return f"dropout(a, {p}, training={g.chance(0.8)})"


@call("F.softmax", "F.log_softmax", sums=True)
def softmax(g, name):
    a = g.array("a", g.shape(empty=0.1), g.pick(*FLOATS) if g.chance(0.7) else g.dtype())
    ndim = g.inputs["a"].values.ndim
    return f"F.{name}({a}, dim={g.axis(ndim) if ndim else g.pick(0, -1, 1)})"


@call("F.cross_entropy", sums=True)
def cross_entropy(g):
    N, C = g.pick(0, 1, 1, 2, 3, 5, 7, 4), g.pick(0, 1, 2, 3, 5, 4)
    g.array("a", (N, C) if g.chance(0.95) else g.shape(), g.float_dtype(0.04), sums=True)
    ignore = g.pick(-100, -1, 0, 2, 99)
    low, high = (0, max(C - 1, 0)) if g.chance(0.9) else (-2, C + 1)
    labels = [ignore if g.chance(0.15) else g.size(low, high) for _ in range(N if g.chance(0.95) else N + 1)]
    dtype = g.pick("uint8", "int32", "float32") if g.chance(0.1) and min(labels, default=0) >= 0 else "int64"
    reduction = g.pick("mean", "sum", "none", "none", "mean", "avg") if g.chance(0.6) else "mean"
    smoothing = g.pick(0.1, 1.0, 0.5, 0) if g.chance(0.9) else g.pick(-0.1, 1.5, float("nan"))
    more = g.options(ignore_index=ignore, label_smoothing=smoothing)
    return f"F.cross_entropy(a, m.from_numpy(np.array({labels}, '{dtype}')), reduction={reduction!r}{more})"


@call("F.pad")
def pad(g):
    ndim = len(g.array("a", g.shape(0, 4), g.dtype()) and g.inputs["a"].values.shape)
    count = 2 * g.size(0, ndim) + (g.pick(1, 2, 3) if g.chance(0.06) else 0)
    widths = tuple(-1 if g.chance(0.02) else g.size(0, 2) for _ in range(count))
    return f"F.pad(a, {widths}{g.options(value=g.pick(0.0, 1.5, -1, 300, float('inf'), float('nan')))})"


@call("F.cat", "F.stack")
def join(g, name):
    first, dtype = list(g.shape(0, 3)), g.dtype()
    dim = g.axis(len(first) + (name == "stack"))
    for one in "abc"[: g.size(1, 3)]:
        shape = list(first)
        if name == "cat" and -len(first) <= dim < len(first):
            shape[dim] = g.size(0, 3)
        if g.chance(0.05):
            shape = list(g.shape(0, 3))
        g.array(one, tuple(shape), dtype if g.chance(0.8) else g.dtype())
    given = ", ".join(g.inputs) if g.chance(0.97) else ""
    bracket = "[{}]" if g.chance(0.7) or len(g.inputs) == 1 else "({})"
    return f"F.{name}({bracket.format(given)}, dim={dim})"


@call("F.matmul", "T.__matmul__", "T.__rmatmul__", sums=True)
def matmul(g, name):
    n, k, m = g.pick(0, 1, 2, 3), g.pick(0, 1, 2, 3, 5), g.pick(1, 2, 4)
    batch = g.shape(0, 2)
    some = tuple(1 if g.chance(0.5) else b for b in batch)
    shapes = [
        ((*batch, n, k), (*some, k, m)),
        ((*some, n, k), (*batch, k, m)),
        ((k,), (*batch, k, m)),
        ((*batch, n, k), (k,)),
        ((k,), (k,)),
        ((n, k), (*batch, k, m)),
        (g.shape(0, 2), g.shape(0, 2)),
    ]
    dtype = g.dtype()
    for one, shape in zip("ab", g.pick(*shapes), strict=True):
        g.array(one, shape, dtype if g.chance(0.97) else g.dtype(), sums=True)
    return {"matmul": "F.matmul(a, b)", "__matmul__": "a @ b", "__rmatmul__": "b.__rmatmul__(a)"}[name]


@call("F.maximum", "F.minimum")
def extreme_of_two(g, name):
    dtype = g.dtype()
    broadcast(g, dtype, dtype if g.chance(0.7) else g.dtype())
    return f"F.{name}(a, b)"


@call("F.where")
def where(g):
    dtype = g.dtype()
    broadcast(g, "bool" if g.chance(0.95) else g.dtype(), dtype, dtype if g.chance(0.7) else g.dtype())
    if g.chance(0.3):
        del g.inputs["c"]
        return f"F.where(a, b, {g.pick(2, 0.5)})"
    return "F.where(a, b, c)"


@call("F.flatten", "T.flatten")
def flatten(g, name):
    ndim = len(g.array("a", g.shape(), g.dtype()) and g.inputs["a"].values.shape)
    bounds = f"{g.axis(ndim)}, {g.axis(ndim)}" if g.chance(0.6) else g.pick("", str(g.axis(ndim)))
    return f"F.flatten(a{', ' * bool(bounds)}{bounds})" if g.chance(0.5) else f"a.flatten({bounds})"


# ---- Creation -------------------------------------------------------------------------------------------------------


@call("m.zeros", "m.ones", "m.rand", "m.randn")
def created(g, name):
    shape = g.shape() if g.chance(0.95) else g.pick((-1,), (2, -3), (1.5,))
    sizes = shape if g.chance(0.5) or not shape else str(list(shape))[1:-1]
    dtypes = ("bool", *INTS, *FLOATS) if name in ("zeros", "ones") else FLOATS if g.chance(0.9) else INTS
    dtype = f", dtype=dtype({g.pick(*dtypes)!r})" if g.chance(0.5) else ""
    drawn = " * 0" if name in ("rand", "randn") else ""
    grad = g.options(0.3, requires_grad=g.chance(0.7))
    return f"m.{name}({sizes}{dtype}{grad}){drawn}"


@call("m.full")
def full(g):
    shape = g.shape() if g.chance(0.95) else g.pick((-1,), (1.5,))
    value = g.pick(2, 0.5, True, -1, "nan", "inf", 300)
    dtype = f", dtype=dtype({g.pick('bool', 'int32', 'int64', *FLOATS)!r})" if g.chance(0.4) else ""
    return f"m.full({shape}, {value}{dtype})"


@call("m.arange")
def arange(g):
    bounds = [g.pick(0, 1, 3, 5, -2, 0.5, 2.5) for _ in range(g.size(1, 3))]
    if g.chance(0.7):
        bounds = sorted(bounds[:2]) + bounds[2:]
    if g.chance(0.05):
        bounds = g.pick(["nan"], ["inf"], ["'x'"], [0, 1, 2, 3])
    dtype = f", dtype=dtype({g.pick('int32', 'int64', *FLOATS)!r})" if g.chance(0.3) else ""
    return f"m.arange({', '.join(map(str, bounds))}{dtype})"


@call("m.tensor", "m.from_numpy")
def made(g, name):
    g.array("x", g.shape(0, 3), g.dtype())
    one = g.inputs.pop("x").values
    if name == "from_numpy":
        array = f"np.array({one.tolist()}, '{one.dtype}').reshape({one.shape})"
        return f"m.from_numpy({array if g.chance(0.9) else g.pick('[1.0, 2.0]', '3', repr('x'))})"
    data = one.tolist() if g.chance(0.9) else g.pick("[[1, 2], [3]]", "'x'", "None", "[None]", "[]", "[[], []]", "1j")
    wanted = g.dtype() if one.dtype.kind != "f" or g.kind == "tame" else g.pick(*FLOATS)
    wanted = "int64" if wanted == "uint8" else wanted
    dtype = f", dtype=dtype({wanted!r})" if g.chance(0.4) and g.kind != "huge" else ""
    return f"m.tensor({data}{dtype}{g.options(0.2, requires_grad=True)})"


# ---- Layers ---------------------------------------------------------------------------------------------------------


@call("nn.Conv2d", sums=True)
def conv_layer(g):
    G = g.size(1, 2)
    C, O = G * g.size(1, 2), G * g.size(1, 2)
    images(g, "a", "float32" if g.chance(0.97) else "float64", C + g.chance(0.04))
    options = g.options(stride=number(g, 1, 3), padding=number(g, 0, 2, (-1,)), dilation=number(g, 1, 2))
    groups = g.pick(0, 3) if g.chance(0.05) else G
    return f"layer(nn.Conv2d({C}, {O}, {number(g, 1, 3)}{options}, groups={groups}, bias={g.chance(0.5)}), a)"


@call("nn.BatchNorm2d", sums=True)
def batch_norm_layer(g):
    C = g.size(1, 4)
    g.kind = "tame" if g.kind == "huge" else g.kind
    images(g, "a", "float32", C + g.chance(0.04))
    more = g.options(momentum=g.pick(0.3, None, 0.0), affine=g.chance(0.5), track_running_stats=g.chance(0.5))
    return f"layer(nn.BatchNorm2d({0 if g.chance(0.02) else C}{more}), a, train={g.chance(0.7)})"


@call("nn.Linear", sums=True)
def linear_layer(g):
    inside, out = g.size(1, 5), g.size(0 if g.chance(0.1) else 1, 4)
    g.array("a", (*g.shape(0, 2), inside + g.chance(0.05)), "float32" if g.chance(0.95) else g.dtype(), sums=True)
    return f"layer(nn.Linear({inside}, {out}, bias={g.chance(0.5)}), a)"


@call("nn.MaxPool2d", "nn.AvgPool2d", "nn.AdaptiveAvgPool2d", "nn.Flatten", sums=True)
def shape_layer(g, name):
    images(g, "a", g.pick("float32", "float64"))
    if name == "AdaptiveAvgPool2d":
        return f"layer(nn.{name}({g.pick(1, 2, 3, (1, 2), (None, 3), 0)}), a)"
    if name == "Flatten":
        return f"layer(nn.Flatten({g.pick('', '0', '2', '1, 2', '0, -2')}), a)"
    ceil = f", ceil_mode={g.chance(0.5)}" if g.chance(0.3) else ""
    return f"layer(nn.{name}({g.size(2, 4)}, {number(g, 1, 3)}, {g.pick(0, 0, 1)}{ceil}), a)"


@call("nn.ReLU", "nn.Identity")
@call("nn.Sigmoid", "nn.Tanh", sums=True)
def function_layer(g, name):
    g.array("a", g.shape(), g.pick(*FLOATS) if g.chance(0.9) else g.dtype())
    return f"layer(nn.{name}(), a)"


@call("nn.Dropout")
def dropout_layer(g):
    g.array("a", g.shape(), g.pick(*FLOATS))
    p = g.pick(0.3, 0.5, 0, 1, 0.0, 1.5, -1)
    return f"layer(nn.Dropout({p}), a, train={p not in (0.3, 0.5) and g.chance(0.5)})"


@call("nn.CrossEntropyLoss", sums=True)
def loss_layer(g):
    C = g.size(1, 5)
    g.array("a", (g.size(1, 5), C), g.pick("float32", "float64"), sums=True)
    labels = [g.size(0, C - 1) for _ in range(len(g.inputs["a"].values))]
    more = g.options(ignore_index=g.pick(-100, 0), label_smoothing=g.pick(0.0, 0.3))
    return f"layer(nn.CrossEntropyLoss(reduction={g.pick('mean', 'sum', 'none')!r}{more}), a, m.tensor({labels}))"
