"""One table of all operations: their kernel pair, what PyTorch calls them, and inputs of any odd shape.

The golden files, the live comparison, the gradient checks and the docstring check all walk over this table.
``sample(size, rng)`` makes the inputs of one case: ``size(low, high)`` draws an int (from hypothesis or from a
generator), ``rng`` draws the values. It returns a list of float64 arrays (integers where labels or masks are meant)
and a dict of the kernel's options.
"""

from typing import NamedTuple

import numpy as np

from minires import kernels as K
from minires.kernels.fast import FAST

#: What the names of rows with a textbook's pair end with.
TEXTBOOK = " (textbook)"


class Operation(NamedTuple):
    name: str
    forward: object
    backward: object
    torch: object  # torch(torch_module, *tensors, **kernel_options) -> tensor
    sample: object


def pair(size, low, high):
    return (size(low, high), size(low, high))


def shape(size, least=1, axes=(1, 4)):
    return tuple(size(least, 5) for _ in range(size(*axes)))


def apart(rng, shape):
    """Values at least 0.05 apart from each other and from zero, in random order: no ties, no kinks."""
    n = int(np.prod(shape))
    values = 0.1 * (np.arange(n) - n / 2 + 0.25) + rng.uniform(-0.02, 0.02, n)
    return rng.permutation(values).reshape(shape)


def positive(rng, shape):
    return rng.uniform(0.5, 2.0, shape)


def broadcastable(size, rng, draw):
    """Two arrays that broadcast, each with some axes of size 1 or missing."""
    full = shape(size, 1, (0, 4))
    shapes = []
    for _ in range(2):
        one = tuple(1 if size(0, 3) == 0 else n for n in full)
        shapes.append(one[size(0, len(one)) :] if size(0, 1) else one)
    return [draw(rng, s) for s in shapes]


def normal(rng, shape):
    return rng.standard_normal(shape)


# ---- samples --------------------------------------------------------------------------------------------------------


def conv_sample(size, rng, groups=True):
    G = size(1, 3) if groups else 1
    N, C, O = size(1, 3), G * size(1, 3), G * size(1, 3)
    (KH, KW), (DH, DW) = pair(size, 1, 4), pair(size, 1, 3)
    (SH, SW), (PH, PW) = pair(size, 1, 3), pair(size, 0, 3)
    H = max(1, DH * (KH - 1) + 1 - 2 * PH) + size(0, 5)
    W = max(1, DW * (KW - 1) + 1 - 2 * PW) + size(0, 5)
    arrays = [normal(rng, (N, C, H, W)), normal(rng, (O, C // G, KH, KW))]
    if size(0, 1):
        arrays.append(normal(rng, (O,)))
    options = {"stride": (SH, SW), "padding": (PH, PW), "dilation": (DH, DW)}
    if groups:
        options["groups"] = G
    return arrays, options


def wide_conv_sample(size, rng):
    """Channels enough for the form that expands kernel columns only."""
    arrays, options = conv_sample(size, rng, groups=False)
    x, w = arrays[:2]
    arrays[0] = normal(rng, (x.shape[0], 33, *x.shape[2:]))
    arrays[1] = normal(rng, (w.shape[0], 33, *w.shape[2:]))
    return arrays, options


def batch_norm_sample(size, rng):
    C = size(1, 4)
    # Two values a channel become +1 and -1 whatever they are, and the gradient is all cancellation: at least four.
    x_shape = (size(4, 6), C) if size(0, 2) == 0 else (size(2, 3), C, size(2, 4), size(1, 4))
    arrays = [3 * normal(rng, x_shape) + 2, normal(rng, (C,)), normal(rng, (C,))]
    return arrays[: (1, 3)[min(size(0, 3), 1)]], {"eps": 1e-5}


def batch_norm_inference_sample(size, rng):
    arrays, options = batch_norm_sample(size, rng)
    C = arrays[0].shape[1]
    return arrays, {**options, "mean": normal(rng, (C,)), "var": positive(rng, (C,))}


def pool_sample(size, rng, dilation):
    KH, KW = pair(size, 1, 4)
    DH, DW = pair(size, 1, 2) if dilation else (1, 1)
    PH, PW = size(0, (DH * (KH - 1) + 1) // 2), size(0, (DW * (KW - 1) + 1) // 2)
    PH, PW = min(PH, KH // 2), min(PW, KW // 2)
    H = max(1, DH * (KH - 1) + 1 - 2 * PH) + size(0, 6)
    W = max(1, DW * (KW - 1) + 1 - 2 * PW) + size(0, 6)
    options = {
        "kernel_size": (KH, KW),
        "stride": None if size(0, 3) == 0 else pair(size, 1, 4),
        "padding": (PH, PW),
        "ceil_mode": bool(size(0, 1)),
    }
    if dilation:
        options["dilation"] = (DH, DW)
    else:
        options["count_include_pad"] = bool(size(0, 1))
    return [apart(rng, (size(1, 2), size(1, 3), H, W))], options


def adaptive_sample(size, rng):
    x = normal(rng, (size(1, 3), size(1, 3), size(1, 7), size(1, 7)))
    return [x], {"output_size": pair(size, 1, 8)}


def shortcut_sample(size, rng):
    C = size(1, 3)
    x = normal(rng, (size(1, 3), C, size(1, 6), size(1, 6)))
    return [x], {"out_channels": C + size(0, 5), "stride": pair(size, 1, 3)}


def torch_shortcut(torch, x, out_channels, stride):
    before = (out_channels - x.shape[1]) // 2
    after = out_channels - x.shape[1] - before
    return torch.nn.functional.pad(x[:, :, :: stride[0], :: stride[1]], (0, 0, 0, 0, before, after))


def linear_sample(size, rng):
    leading = shape(size, 1, (0, 2))
    inside, out = size(1, 5), size(1, 5)
    arrays = [normal(rng, (*leading, inside)), normal(rng, (out, inside)), normal(rng, (out,))]
    return arrays[: 2 + size(0, 1)], {}


def matmul_sample(size, rng):
    n, k, m = size(1, 4), size(1, 4), size(1, 4)
    batch = shape(size, 1, (0, 2))
    some = tuple(1 if size(0, 1) else b for b in batch)
    choices = [
        ((*batch, n, k), (*some, k, m)),
        ((*some, n, k), (*batch, k, m)),
        ((k,), (*batch, k, m)),
        ((*batch, n, k), (k,)),
        ((k,), (k,)),
        ((n, k), (*batch, k, m)),
    ]
    a, b = choices[size(0, len(choices) - 1)]
    return [normal(rng, a), normal(rng, b)], {}


def axis_sample(size, rng, several, draw=normal):
    x = draw(rng, shape(size, 1, (1, 4)))
    kind = size(0, 2)
    if several and kind == 0:
        axis = None
    elif several and kind == 1:
        axis = tuple(sorted(set([size(0, x.ndim - 1), size(0, x.ndim - 1)])))
    else:
        axis = size(-x.ndim, x.ndim - 1)
    return [x], ({"axis": axis, "keepdims": bool(size(0, 1))} if several else {"axis": axis})


def var_sample(size, rng):
    arrays, options = axis_sample(size, rng, several=True)
    x = normal(rng, tuple(n + 2 for n in arrays[0].shape))  # a variance needs more than one value
    return [x], {**options, "correction": size(0, 1)}


def select_sample(size, rng):
    x = apart(rng, shape(size, 1, (1, 3)))
    axis = size(0, x.ndim - 1)
    return [x], {"index": x.argmax(axis=axis, keepdims=True), "axis": axis}


def cross_entropy_sample(size, rng):
    N, C = size(1, 6), size(1, 5)
    labels = rng.integers(0, C, N)
    ignore_index = -100
    if size(0, 1):
        ignore_index = size(0, C - 1) if size(0, 1) else -1
        labels[rng.integers(0, N)] = ignore_index
        labels[0] = (ignore_index + 1) % C if C > 1 else 0
        if (labels == ignore_index).all():
            ignore_index = -100
    options = {
        "label_smoothing": (0.0, 0.1, 1.0)[size(0, 2)],
        "ignore_index": ignore_index,
        "reduction": ("mean", "sum", "none")[size(0, 2)],
    }
    return [3 * normal(rng, (N, C)), labels], options


def clip_sample(size, rng):
    bounds = [{"low": -0.1, "high": 0.6}, {"low": -0.2}, {"high": 0.3}][size(0, 2)]
    return [apart(rng, shape(size))], bounds


def where_sample(size, rng):
    a, b = broadcastable(size, rng, normal)
    full = np.broadcast_shapes(a.shape, b.shape)
    return [rng.random(full) < 0.5, a, b], {}


def reshape_sample(size, rng):
    a, b, c = size(1, 4), size(1, 4), size(1, 4)
    return [normal(rng, (a, b, c))], {"shape": [(a * b, c), (-1,), (c, -1), (a, 1, b * c), (b, c, a)][size(0, 4)]}


def permute_sample(size, rng):
    x = normal(rng, shape(size, 1, (1, 4)))
    return [x], {"axes": tuple(int(i) for i in rng.permutation(x.ndim))}


def expand_sample(size, rng):
    full = shape(size, 1, (1, 4))
    small = tuple(1 if size(0, 1) else n for n in full)
    return [normal(rng, small[size(0, len(small)) :])], {"shape": full}


def slice_sample(size, rng):
    x = normal(rng, (size(3, 5), size(3, 5), size(3, 5)))
    choices = [
        (slice(1, None, 2), size(-3, 2)),
        (Ellipsis, slice(0, 2)),
        (None, size(0, 2), slice(None), None),
        (np.array([0, 2, 2, 1]),),
        (np.array([0, 1, 0]), np.array([2, 2, 2])),
        (slice(None), np.array([[0, 1], [1, 1]])),
        (x > 0,),
        (x[:, 0, 0] > 0, slice(1, 3)),
    ]
    return [x], {"index": choices[size(0, len(choices) - 1)]}


def torch_slice(torch, x, index):
    return x[tuple(torch.from_numpy(i) if isinstance(i, np.ndarray) else i for i in index)]


def join_sample(size, rng):
    first = shape(size, 1, (1, 3))
    axis = size(-len(first), len(first) - 1)
    arrays = []
    for _ in range(size(1, 3)):
        other = list(first)
        other[axis] = size(1, 4)
        arrays.append(normal(rng, tuple(other)))
    return arrays, {"axis": axis}


def stack_sample(size, rng):
    one = shape(size, 1, (0, 3))
    return [normal(rng, one) for _ in range(size(1, 3))], {"axis": size(-len(one) - 1, len(one))}


def pad_sample(size, rng):
    x = normal(rng, shape(size, 1, (1, 4)))
    return [x], {"widths": tuple(pair(size, 0, 2) for _ in range(x.ndim)), "value": 1.5}


def torch_pad(torch, x, widths, value):
    flat = [n for before, after in reversed(widths) for n in (before, after)]
    return torch.nn.functional.pad(x, flat, value=value)


def like(draw):
    return lambda size, rng: ([draw(rng, shape(size, 1, (0, 4)))], {})


def two(draw):
    return lambda size, rng: (broadcastable(size, rng, draw), {})


def torch_reduce(name):
    def reduce(torch, x, axis, keepdims, **more):
        axes = tuple(range(x.ndim)) if axis is None else axis
        return getattr(torch, name)(x, axes, keepdim=keepdims, **more)

    return reduce


def torch_batch_norm(torch, x, gamma=None, beta=None, *, eps, mean=None, var=None):
    tensors = [None if a is None else torch.as_tensor(a, dtype=x.dtype) for a in (mean, var)]
    return torch.nn.functional.batch_norm(x, *tensors, gamma, beta, training=mean is None, eps=eps)


def torch_cross_entropy(torch, logits, labels, **options):
    return torch.nn.functional.cross_entropy(logits, labels, **options)


def torch_conv(torch, *tensors, **options):
    return torch.nn.functional.conv2d(*tensors, **options)


def torch_pool(name):
    return lambda torch, x, **options: getattr(torch.nn.functional, name)(x, **options)


def torch_name(name):
    return lambda torch, *tensors: getattr(torch, name)(*tensors)


def op(name, torch, sample):
    """A row with the pair that runs: the fast one where there is one."""
    pair = getattr(K, f"{name}_forward"), getattr(K, f"{name}_backward")
    return Operation(name, *FAST.get(pair, pair), torch, sample)


def textbook(row):
    """The same row with the textbook's pair: the same inputs, and the same golden numbers."""
    return row._replace(
        name=f"{row.name}{TEXTBOOK}",
        forward=getattr(K, row.forward.__name__),
        backward=getattr(K, row.backward.__name__),
    )


RUNNING = [
    op("conv2d", torch_conv, conv_sample),
    op("conv2d", torch_conv, wide_conv_sample)._replace(name="conv2d_wide"),
    textbook(op("conv2d", torch_conv, lambda size, rng: conv_sample(size, rng, groups=False)))._replace(
        name="conv2d_im2col"
    ),
    op("batch_norm", torch_batch_norm, batch_norm_sample),
    op("batch_norm_inference", torch_batch_norm, batch_norm_inference_sample),
    op("relu", torch_name("relu"), like(apart)),
    op("sigmoid", torch_name("sigmoid"), like(normal)),
    op("tanh", torch_name("tanh"), like(normal)),
    op("max_pool2d", torch_pool("max_pool2d"), lambda size, rng: pool_sample(size, rng, True)),
    op("avg_pool2d", torch_pool("avg_pool2d"), lambda size, rng: pool_sample(size, rng, False)),
    op(
        "global_avg_pool",
        lambda torch, x: torch.nn.functional.adaptive_avg_pool2d(x, 1),
        lambda size, rng: (adaptive_sample(size, rng)[0], {}),
    ),
    op("adaptive_avg_pool2d", torch_pool("adaptive_avg_pool2d"), adaptive_sample),
    op(
        "residual_add",
        lambda torch, x, branch: branch + x,
        lambda size, rng: ([normal(rng, s) for s in [shape(size)] * 2], {}),
    ),
    op("shortcut_a", torch_shortcut, shortcut_sample),
    op("linear", lambda torch, *tensors: torch.nn.functional.linear(*tensors), linear_sample),
    op("matmul", torch_name("matmul"), matmul_sample),
    op(
        "softmax",
        lambda torch, x, axis: torch.softmax(x, axis),
        lambda size, rng: axis_sample(size, rng, several=False),
    ),
    op(
        "log_softmax",
        lambda torch, x, axis: torch.log_softmax(x, axis),
        lambda size, rng: axis_sample(size, rng, several=False),
    ),
    op("cross_entropy", torch_cross_entropy, cross_entropy_sample),
    op("add", torch_name("add"), two(normal)),
    op("subtract", torch_name("sub"), two(normal)),
    op("multiply", torch_name("mul"), two(normal)),
    op("divide", torch_name("div"), two(positive)),
    op("power", torch_name("pow"), two(positive)),
    op(
        "power_scalar",
        lambda torch, x, exponent: x**exponent,
        lambda size, rng: ([positive(rng, shape(size))], {"exponent": (2, 3, 0.5, -1, 0, 1)[size(0, 5)]}),
    ),
    op("maximum", torch_name("maximum"), two(normal)),
    op("minimum", torch_name("minimum"), two(normal)),
    op("where", torch_name("where"), where_sample),
    op("negative", torch_name("neg"), like(normal)),
    op("exp", torch_name("exp"), like(normal)),
    op("log", torch_name("log"), like(positive)),
    op("sqrt", torch_name("sqrt"), like(positive)),
    op("absolute", torch_name("abs"), like(apart)),
    op("clip", lambda torch, x, low=None, high=None: torch.clamp(x, low, high), clip_sample),
    op("convert", lambda torch, x, dtype: x.to(torch.float64), lambda s, r: (like(normal)(s, r)[0], {"dtype": "f8"})),
    op("sum", torch_reduce("sum"), lambda size, rng: axis_sample(size, rng, several=True)),
    op("mean", torch_reduce("mean"), lambda size, rng: axis_sample(size, rng, several=True)),
    op("var", torch_reduce("var"), var_sample),
    op("amax", torch_reduce("amax"), lambda size, rng: axis_sample(size, rng, True, apart)),
    op("amin", torch_reduce("amin"), lambda size, rng: axis_sample(size, rng, True, apart)),
    op(
        "select",
        lambda torch, x, index, axis: torch.gather(x, axis, torch.from_numpy(index)).squeeze(axis),
        select_sample,
    ),
    op("reshape", lambda torch, x, shape: torch.reshape(x, shape), reshape_sample),
    op("permute", lambda torch, x, axes: torch.permute(x, axes), permute_sample),
    op("expand", lambda torch, x, shape: x.expand(shape), expand_sample),
    op("slice", torch_slice, slice_sample),
    op("concatenate", lambda torch, *tensors, axis: torch.cat(tensors, axis), join_sample),
    op("stack", lambda torch, *tensors, axis: torch.stack(tensors, axis), stack_sample),
    op("pad", torch_pad, pad_sample),
]

OPERATIONS = RUNNING + [textbook(row) for row in RUNNING if row.forward in [forward for forward, _ in FAST.values()]]

#: Kernels that no row above covers, and the test that does.
ELSEWHERE = {"dropout": "test_kernels.py", "sync_batch_norm": "test_sync_batch_norm.py"}

NAMES = [operation.name for operation in OPERATIONS]


def sizes_from(rng):
    """``size(low, high)`` drawn from a generator."""
    return lambda low, high: int(rng.integers(low, high + 1))


def run_kernel(operation, arrays, options, dy):
    """The output and the gradients of a kernel pair, None where there is none."""
    y, cache = operation.forward(*arrays, **options)
    if callable(dy):
        dy = dy(np.shape(y))
    grads = operation.backward(dy, cache)
    grads = grads if isinstance(grads, tuple) else (grads,)
    return y, grads[: len(arrays)]


def run_torch(operation, arrays, options, dy):
    """The same by PyTorch."""
    import torch

    tensors = []
    for array in arrays:
        tensor = torch.from_numpy(np.array(array))
        tensors.append(tensor.requires_grad_() if tensor.is_floating_point() else tensor)
    y = operation.torch(torch, *tensors, **options)
    y.backward(torch.from_numpy(np.array(dy)))
    grads = [None if t.grad is None else t.grad.numpy() for t in tensors]
    return y.detach().numpy(), grads


def as_float32(arrays):
    return [a.astype(np.float32) if a.dtype.kind == "f" else a for a in arrays]


def float32_options(options):
    return {
        name: value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype == np.float64 else value
        for name, value in options.items()
    }
