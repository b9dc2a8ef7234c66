"""How memory grows: with the batch and the depth, in straight lines; and what is kept, no longer than it is needed.

tracemalloc sees every array of NumPy's, and the same program asks for the same bytes each time.
"""

import gc
import tracemalloc

import minires.functional as F
import numpy as np
import pytest

import minires
from minires import Tensor, nn
from minires.models import create_model
from minires.optim import SGD


def images(N, size=16):
    rng = np.random.default_rng(0)
    return Tensor(rng.standard_normal((N, 3, size, size)).astype(np.float32)), rng.integers(0, 10, N)


def traced(function):
    """The bytes that function() asked for at its peak, and what is still held after it, above the start."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = function()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    del kept
    return peak - before, after - before


def step_peak(model, N):
    x, y = images(N)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    step()  # the momentum is there from now on
    return traced(step)[0]


def test_a_training_step_grows_linearly_with_the_batch():
    model = create_model("resnet20")
    small, middle, large = (step_peak(model, N) for N in (32, 64, 128))
    assert large - middle == pytest.approx(2 * (middle - small), rel=0.05)
    assert large < 4.1 * small  # and what does not grow (the gradients, blocks of columns) is little


def test_a_training_step_grows_linearly_with_the_depth():
    peaks = [step_peak(create_model(name), 32) for name in ("resnet32", "resnet44", "resnet56")]
    assert peaks[2] - peaks[1] == pytest.approx(peaks[1] - peaks[0], rel=0.01)


def test_a_training_step_holds_two_arrays_for_each_convolution():
    """Batch norm's x_hat and ReLU's y, which is the next convolution's x; and little beside them."""
    x, y = images(64)
    channels, layers = 16, 6
    parts = [nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    for _ in range(layers - 1):
        parts += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    array = 64 * channels * 16 * 16 * 4
    peak, _ = traced(lambda: F.cross_entropy(model(x), y).backward())
    assert 2 * layers * array < peak < (2 * layers + 5) * array


def test_evaluation_keeps_nothing_and_does_not_grow_with_the_depth():
    x, _ = images(32)
    peaks = []
    for name in ("resnet20", "resnet44"):
        model = create_model(name).eval()

        def evaluate(model=model):
            with minires.no_grad():
                return model(x)

        peak, kept = traced(evaluate)
        peaks.append(peak)
        assert kept < 100_000  # the logits, and Python's own small change; one feature map has 500 kB
    assert peaks[1] < 1.02 * peaks[0]


def bytes_of(cache):
    """The memory of a cache's arrays, counted once where several are views of one."""
    owners = {}
    for field in cache if isinstance(cache, tuple) else (cache,):
        if isinstance(field, np.ndarray):
            owner = field
            while owner.base is not None:
                owner = owner.base
            owners[id(owner)] = owner.nbytes
    return sum(owners.values())


def test_backward_frees_each_cache_as_soon_as_it_is_used():
    kept, seen = [], []

    def spy_forward(x):
        return x + 0, x

    def spy_backward(dy, cache):
        seen.append([node.freed for node in kept])
        return dy

    x, y = images(8)
    model = create_model("resnet20")
    out = x
    nodes = []
    for part in (model.conv1, model.bn1, model.relu, model.layer1, model.layer2, model.layer3):
        out = part(out)
        nodes.append(out.node)
        out = minires.apply(spy_forward, spy_backward, out)
    kept.extend(nodes)
    F.cross_entropy(model.fc(out.mean((2, 3))), y).backward()
    # Spy i stands behind part i: when it runs backwards, exactly the parts after it are done and freed.
    assert seen[::-1] == [[j > i for j in range(6)] for i in range(6)]


def test_backward_needs_little_more_than_forward():
    x, y = images(64)
    model = create_model("resnet20")
    loss = []
    forward, held = traced(lambda: loss.append(F.cross_entropy(model(x), y)))
    both, _ = traced(lambda: F.cross_entropy(model(x), y).backward())
    assert held > 0.8 * forward  # nearly all of it is caches
    assert both < 1.15 * forward


@pytest.mark.parametrize("name", ["conv2d", "batch_norm", "relu", "max_pool2d", "residual_add"])
def test_caches_hold_inputs_and_outputs_and_nothing_larger(name):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 6, 10, 12))
    from minires import kernels
    from minires.kernels import fast

    forwards = {
        "conv2d": lambda: fast.conv2d_forward(x, rng.standard_normal((8, 6, 3, 3)), padding=1),
        "batch_norm": lambda: fast.batch_norm_forward(x),
        "relu": lambda: kernels.relu_forward(x),
        "max_pool2d": lambda: fast.max_pool2d_forward(x, kernel_size=2),
        "residual_add": lambda: kernels.residual_add_forward(x, x),
    }
    y, cache = forwards[name]()
    assert bytes_of(cache) <= x.nbytes + y.nbytes
