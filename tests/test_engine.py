"""The engine: order, sums, broadcasting, depth, freeing, recording."""

import gc
import sys
import weakref

import minires.functional as F
import numpy as np
import pytest
from closeness import assert_close

import minires
from minires import Tensor, enable_grad, is_grad_enabled, no_grad, set_grad_enabled


def leaf(*shape, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


def upstream(tensor, seed=9):
    return np.random.default_rng(seed).standard_normal(tensor.shape)


def test_a_tensor_used_twice_gets_the_sum():
    a = leaf(3, 4)
    y = a * a + a
    dy = upstream(y)
    y.backward(dy)
    assert_close(a.grad.numpy(), dy * (2 * a.detach().numpy() + 1), 1e-14)


def test_a_diamond_is_walked_once_a_node():
    """x feeds two branches that meet again, twice over: each node waits until all its gradients have arrived."""
    x = leaf(5)
    y = x.exp()
    for _ in range(2):
        y = y * 2 + y.sqrt()
    dy = upstream(y)
    y.backward(dy)
    step = 1e-6

    def value(array):
        z = np.exp(array)
        for _ in range(2):
            z = z * 2 + np.sqrt(z)
        return (z * dy).sum()

    base = x.detach().numpy()
    expected = [(value(base + step * e) - value(base - step * e)) / (2 * step) for e in np.eye(5)]
    assert_close(x.grad.numpy(), np.array(expected), 1e-7)


def test_broadcast_gradients_have_the_parameters_shape():
    x, row, column, scalar = leaf(4, 3), leaf(3), leaf(4, 1), leaf()
    y = (x + row) * column - scalar
    dy = upstream(y)
    y.backward(dy)
    for tensor in (x, row, column, scalar):
        assert tensor.grad.shape == tensor.shape
    total = x.detach().numpy() + row.detach().numpy()
    assert_close(column.grad.numpy(), (dy * total).sum(axis=1, keepdims=True), 1e-13)
    assert_close(scalar.grad.numpy(), -dy.sum(), 1e-13)


def test_gradients_add_up_over_backwards_and_own_their_memory():
    a, b = leaf(3), leaf(3, seed=1)
    dy = upstream(a)
    (a + b).backward(dy)
    a.grad.array[0] = 100.0
    assert b.grad.numpy()[0] == dy[0], "a and b must not share one gradient array"
    assert dy[0] != 100.0
    a.grad = None
    (a * 2).backward(dy)
    (a * 3).backward(dy)
    assert_close(a.grad.numpy(), 5 * dy, 1e-14)


def test_a_chain_of_20000_additions():
    x = leaf()
    y = x
    for _ in range(20_000):
        y = y + x
    y.backward()
    assert x.grad.item() == 20_001
    del y
    gc.collect()


def test_a_long_chain_that_is_never_walked_can_be_dropped():
    x = leaf()
    y = x
    for _ in range(50_000):
        y = y + 1.0
    del y
    gc.collect()


def test_a_network_of_1202_layers_under_a_low_recursion_limit():
    network = minires.models.cifar_resnet(1202, width=2)
    x = Tensor(np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32))
    depth, frame = 0, sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + 60)
    try:
        F.cross_entropy(network(x), Tensor([1, 2])).backward()
        network.state_dict()
        network.eval()
    finally:
        sys.setrecursionlimit(limit)
    assert np.isfinite(network.conv1.weight.grad.numpy()).all()
    assert np.abs(network.conv1.weight.grad.numpy()).max() > 0


def test_a_second_backward_says_so_and_adds_nothing():
    x = leaf(3)
    y = (x * x).sum()
    y.backward()
    before = x.grad.numpy().copy()
    with pytest.raises(RuntimeError, match="freed by an earlier backward.*retain_graph=True"):
        y.backward()
    np.testing.assert_array_equal(x.grad.numpy(), before)


def test_a_shared_part_that_was_freed_stops_before_anything_is_added():
    x, w = leaf(3), leaf(3, seed=1)
    shared = x * x
    shared.sum().backward()
    with pytest.raises(RuntimeError, match="multiply made at .*test_engine.py"):
        (shared * w).sum().backward()
    assert w.grad is None


def test_retain_graph_allows_a_second_backward():
    x = leaf(3)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    first = x.grad.numpy().copy()
    y.backward()
    assert_close(x.grad.numpy(), 2 * first, 1e-14)


def test_frozen_leaves_get_nothing():
    x, w = leaf(3), Tensor(np.ones(3))
    (x * w).sum().backward()
    assert w.grad is None and x.grad is not None
    assert not (w * 2).requires_grad


def test_detach_cuts_and_shares():
    x = leaf(3)
    cut = (x * 2).detach()
    assert not cut.requires_grad and cut.is_leaf
    y = x + cut
    y.backward(np.ones(3))
    np.testing.assert_array_equal(x.grad.numpy(), 1)
    shared = x.detach()
    shared.array[0] = 7
    assert x.array[0] == 7


def test_no_grad_nests_and_comes_back_after_an_exception():
    x = leaf(2)
    assert is_grad_enabled()
    with no_grad():
        with no_grad():
            assert not (x * 2).requires_grad
        assert not is_grad_enabled()
        with enable_grad():
            assert (x * 2).requires_grad
        assert not is_grad_enabled()
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    with set_grad_enabled(False):
        assert not is_grad_enabled()
    assert is_grad_enabled()

    @no_grad()
    def inside():
        return x * 2

    assert not inside().requires_grad and (x * 2).requires_grad


def test_no_grad_keeps_no_cache():
    x = leaf(2)
    with no_grad():
        assert (x * 2).node is None


def test_backward_frees_each_cache_as_it_goes():
    """While a node's backward runs, the cache of every node that came before it on the way back is gone."""
    freed = []

    def watching_backward(dy, cache):
        freed.append([node.freed for node in later])
        return minires.kernels.exp_backward(dy, cache)

    x = leaf(4)
    y = minires.apply(minires.kernels.exp_forward, watching_backward, x)
    z = y * y
    total = z.sum()
    later = [z.node, total.node]
    total.backward()
    assert freed == [[True, True]]
    assert y.node.freed and y.node.grad is None


def test_the_arrays_in_between_go_when_no_cache_needs_them():
    """x + 1 keeps only shapes, so nothing holds the result once the program has let go of it."""

    class Watched(np.ndarray):
        pass

    x = leaf(4)
    middle = x + 1.0
    middle.array = middle.array.view(Watched)
    watch = weakref.ref(middle.array)
    y = middle + 1.0
    del middle
    assert watch() is None
    y.backward(np.ones(4))
    np.testing.assert_array_equal(x.grad.numpy(), 1)


def test_the_same_program_gives_the_same_bits():
    def run():
        minires.manual_seed(3)
        network = minires.models.create_model("resnet8", in_channels=1)
        optimizer = minires.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        rng = np.random.default_rng(0)
        for _ in range(3):
            images = Tensor(rng.standard_normal((8, 1, 8, 8)).astype(np.float32))
            optimizer.zero_grad()
            F.cross_entropy(network(images), Tensor(rng.integers(0, 10, 8))).backward()
            optimizer.step()
        return [p.detach().numpy().tobytes() for p in network.parameters()]

    assert run() == run()


def test_retain_grad_of_a_result_in_between():
    x = leaf(3)
    y = x * 2
    y.retain_grad()
    dy = upstream(y)
    (y * 5).backward(dy)
    assert_close(y.grad.numpy(), 5 * dy, 1e-14)
    assert_close(x.grad.numpy(), 10 * dy, 1e-14)


def test_where_names_the_users_line():
    x = leaf(1, 1, 4, 4)
    w = leaf(1, 1, 3, 3)
    y = F.conv2d(x, w)
    line = sys._getframe().f_lineno - 1
    assert y.node.where == (__file__, line)
    assert y.node.operation == "conv2d"


def test_an_exception_in_a_backward_says_which_operation_and_which_line():
    def broken_backward(dy, cache):
        raise ArithmeticError("the kernel is broken")

    x = leaf(3)
    y = minires.apply(minires.kernels.relu_forward, broken_backward, x)
    with pytest.raises(ArithmeticError) as caught:
        y.backward(np.ones(3))
    text = "".join(getattr(caught.value, "__notes__", [])) + str(caught.value)
    assert "broken" in text and "test_engine.py" in text
    z = (x * 2).sum()
    z.backward()  # the failed walk left nothing behind
    np.testing.assert_array_equal(x.grad.numpy(), 2)


def test_a_kernel_that_returns_too_few_gradients_is_found():
    a, b = leaf(3), leaf(3)
    y = minires.apply(minires.kernels.add_forward, lambda dy, cache: dy, a, b)
    with pytest.raises(RuntimeError, match="1 gradients for 2 inputs"):
        y.backward(np.ones(3))


def test_dtypes():
    assert Tensor([1.0, 2.0]).dtype == minires.float32
    assert Tensor(np.ones(2)).dtype == minires.float64
    assert Tensor([1, 2]).dtype == minires.int64
    assert Tensor([True]).dtype == bool
    x32, x64, whole = Tensor([1.5]), Tensor(np.array([1.5])), Tensor([2])
    assert (x32 * 2.0).dtype == minires.float32
    assert (x64 * 2).dtype == minires.float64
    assert (x32 + x64).dtype == minires.float64
    assert (x32 * whole).dtype == minires.float32
    assert (whole / 2).dtype == minires.float32
    assert (whole * 1.5).dtype == minires.float32
    assert (x32 * np.float64(2)).dtype == minires.float32
    assert (whole + True).dtype == minires.int64
    assert (x32 * Tensor(np.float64(2.0), dtype="float64")).dtype == minires.float32


def test_mixed_dtypes_give_each_leaf_a_gradient_of_its_own_dtype():
    a = Tensor([1.0, 2.0], requires_grad=True)
    b = Tensor(np.array([3.0, 4.0]), requires_grad=True)
    (a * b).sum().backward()
    assert a.grad.dtype == minires.float32 and b.grad.dtype == minires.float64
    np.testing.assert_array_equal(a.grad.numpy(), [3, 4])


def test_a_tensor_copies_and_from_numpy_shares():
    array = np.zeros(3)
    copy, shared = Tensor(array), minires.from_numpy(array)
    array[0] = 5
    assert copy.tolist() == [0, 0, 0] and shared.tolist() == [5, 0, 0]


def test_numpy_on_the_left():
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    for y in (np.array([3.0, 4.0]) * x, np.float64(2) - x, 1 / x, 2**x, np.eye(2) @ x):
        assert isinstance(y, Tensor) and y.requires_grad
    np.testing.assert_array_equal((np.array([3.0, 4.0]) * x).detach().numpy(), [3, 8])


def test_in_place_under_no_grad_changes_the_parameter():
    w = Tensor([1.0, 2.0], requires_grad=True)
    same = w
    (w * w).sum().backward()
    with no_grad():
        w -= 0.5 * w.grad
    assert w is same and w.requires_grad and w.tolist() == [0, 0]
    w.data -= w.grad
    assert w.tolist() == [-2, -4]
    with pytest.raises(RuntimeError, match="in place"):
        w += 1.0


def test_repr_is_one_line_and_never_long():
    assert repr(Tensor([1.0, 2.0], requires_grad=True)) == "Tensor([1., 2.], requires_grad=True)"
    for tensor in (
        leaf(3),
        leaf(2, 3),
        leaf(100, 100),
        leaf(7) * 2,
        Tensor([True]),
        Tensor(3),
        Tensor(np.zeros((0, 3))),
    ):
        assert "\n" not in repr(tensor) and len(repr(tensor)) < 120
    assert "shape=(100, 100)" in repr(leaf(100, 100))
    assert "multiply" in repr(leaf(7) * 2)


def test_item_bool_len_iter_index():
    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    assert x[1, 0].item() == 3 and float(x[0, 1]) == 2 and int(x[1, 1]) == 4
    assert len(x) == 2 and [row.tolist() for row in x] == [[1, 2], [3, 4]]
    assert bool(Tensor(1.0)) and not bool(Tensor([0]))
    assert [10, 20, 30][Tensor(1)] == 20
    with pytest.raises(ValueError, match="one value"):
        x.item()
    with pytest.raises(TypeError, match="index"):
        [1][Tensor(0.0)]


def test_comparisons_and_hash():
    x = Tensor([1.0, 2.0])
    assert (x == Tensor([1.0, 3.0])).tolist() == [True, False]
    assert (x < 1.5).tolist() == [True, False] and (x != 1).tolist() == [False, True]
    assert (x == None) is False  # noqa: E711
    assert x in {x: 1}


def test_max_along_an_axis_returns_values_and_indices():
    x = Tensor(np.array([[1.0, 5.0, 2.0], [7.0, 3.0, 7.0]]), requires_grad=True)
    values, indices = x.max(dim=1)
    assert values.tolist() == [5, 7] and indices.tolist() == [1, 0]
    values.backward(np.array([2.0, 3.0]))
    np.testing.assert_array_equal(x.grad.numpy(), [[0, 2, 0], [3, 0, 0]])
    assert x.min(dim=0, keepdim=True).values.shape == (1, 3)


def test_methods_equal_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(0)
    x = rng.uniform(0.5, 2, (2, 3, 4))
    calls = [
        lambda t: t.exp(),
        lambda t: t.log(),
        lambda t: t.sqrt(),
        lambda t: t.abs(),
        lambda t: abs(-t),
        lambda t: t.clamp(0.7, 1.5),
        lambda t: t.relu() + t.sigmoid() + t.tanh(),
        lambda t: t.sum((0, 2)),
        lambda t: t.mean(1, keepdim=True),
        lambda t: t.var((1, 2), correction=0),
        lambda t: t.var(),
        lambda t: t.amax((0, 1)) + t.amin((0, 1)),
        lambda t: t.max() * t.min(),
        lambda t: t.max(2).values - t.min(2)[0],
        lambda t: t.reshape(4, -1),
        lambda t: t.view(-1),
        lambda t: t.flatten(1),
        lambda t: t.flatten(),
        lambda t: t.flatten(0, 1),
        lambda t: t[:, :1].squeeze(1),
        lambda t: t[:1].squeeze(),
        lambda t: t.unsqueeze(-1).unsqueeze(0),
        lambda t: t.permute(2, 0, 1),
        lambda t: t.transpose(0, -1),
        lambda t: t[0].T,
        lambda t: t[:, :1].expand(-1, 5, 4),
        lambda t: t[[0, 0, 1]],
        lambda t: t[..., None, 1:3],
        lambda t: t[t > 1],
        lambda t: t**2 / (t + 1) - 3 * t,
        lambda t: 2**t - 1 / t,
        lambda t: t @ t.transpose(1, 2),
        lambda t: t.clone() * 2,
    ]
    for i, call in enumerate(calls):
        mine, theirs = Tensor(x, requires_grad=True), torch.from_numpy(x.copy()).requires_grad_()
        y, expected = call(mine), call(theirs)
        assert_close(y.detach().numpy(), expected.detach().numpy(), 1e-12, f"call {i}")
        dy = rng.standard_normal(y.shape)
        y.backward(dy)
        expected.backward(torch.from_numpy(np.asarray(dy)))
        assert_close(mine.grad.numpy(), theirs.grad.numpy(), 1e-12, f"gradient of call {i}")


def test_a_backward_without_a_return_is_told():
    def forgetful_backward(dy, cache):
        dy * 2

    def forward(x):
        return x * 2, None

    for x in (Tensor([1.0], requires_grad=True), Tensor([1.0], requires_grad=True).exp()):
        y = minires.apply(forward, forgetful_backward, x)
        with pytest.raises(RuntimeError, match=r"forgetful_backward gave None as gradient 0.*is a return missing\?"):
            y.sum().backward()


def test_a_forward_without_a_return_is_told():
    class Forgetful(minires.nn.Module):
        def forward(self, input):
            F.relu(input)

    for layer in (minires.nn.Linear(2, 2), minires.nn.ReLU(), minires.nn.MaxPool2d(2), minires.nn.Conv2d(2, 2, 1)):
        model = minires.nn.Sequential(Forgetful(), layer)
        with pytest.raises(TypeError, match=r"expected a Tensor, got None: does the forward\(\) before it return"):
            model(Tensor([[1.0, 2.0]]))
