"""The gradient checker on right kernels, on kernels that break its rules, and on what is built with Tensors."""

import json
import time

import minires.functional as F
import numpy as np
import pytest

import minires
from minires import Tensor, kernels, nn
from minires.gradcheck import KINDS, check_function, check_kernel, gradcheck
from minires.gradcheck.kinds import apart
from minires.gradcheck.numeric import jacobian


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_right_kernels_never_fail(kind):
    slow = kind in ("conv2d", "batch_norm", "max_pool2d", "avg_pool2d")  # a tenth of a second each, and more
    for seed in range(25 if slow else 100):
        report = check_kernel(KINDS[kind].forward, KINDS[kind].backward, kind=kind, seed=seed)
        assert report.ok, f"seed {seed}: {report}"
        assert report.gradients and not report.findings and "FAIL" not in str(report)


@pytest.mark.parametrize("kind", KINDS)
def test_a_check_takes_less_than_half_a_second(kind):
    seconds = []
    for seed in range(3):
        begin = time.perf_counter()
        check_kernel(KINDS[kind].forward, KINDS[kind].backward, kind=kind, seed=seed)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 2  # half a second on a free machine; four times that on a busy one


def test_the_textbooks_convolution_passes():
    report = check_kernel(
        kernels.conv2d_im2col_forward, kernels.conv2d_im2col_backward, kind="conv2d", options={"padding": 1}
    )
    assert report.ok


@pytest.mark.parametrize("seed", range(20))
def test_ties_and_kinks_are_no_mistakes(seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(-1, 2, (2, 3, 4, 6)).astype(float)  # many zeros, many equal neighbours
    assert check_kernel(kernels.relu_forward, kernels.relu_backward, [x], kind="relu").ok
    for options in ({"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 3, "stride": 1}):
        report = check_kernel(
            kernels.max_pool2d_forward, kernels.max_pool2d_backward, [x], kind="max_pool2d", options=options
        )
        assert report.ok, report
    at_zero = np.array([0.0, -1.0, 2.0, 0.0])

    def one_at_zero(dy, cache):
        return dy * (at_zero >= 0)

    assert check_kernel(kernels.relu_forward, one_at_zero, [at_zero]).ok  # any slope between 0 and 1 is a subgradient


def test_sizes_are_all_different():
    for kind in KINDS.values():
        for case in kind.cases(np.random.default_rng(0)):
            x = case.inputs[0]
            if x.ndim == 4:
                N, C, H, W = x.shape
                assert len({N, C, H * W, N * H * W, N * C, 2}) == 6
    values = np.sort(apart(np.random.default_rng(0), 4, 5, 6).ravel())
    assert np.diff(values).min() > 0.005 and np.abs(values).min() > 0.03


def test_the_numeric_jacobian_is_exact():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(6), rng.standard_normal(6)

    def f(x, w):
        return np.exp(x * w) / (1 + x**2)

    found = jacobian(f, [x, w], 0).value
    y = f(x, w)
    exact = np.diag(y * w - y * 2 * x / (1 + x**2))
    assert np.abs(found - exact).max() < 1e-10


def test_odd_functions_near_kinks_and_steep_ones():
    def cube(x):
        return x**3, x

    zeros = [np.zeros((3, 4))]
    assert check_kernel(cube, lambda dy, x: 3 * x**2 * dy, zeros).ok
    assert not check_kernel(cube, lambda dy, x: dy, zeros).ok  # it agrees with the secants around 0
    assert check_kernel(lambda x: (np.tanh(x), x), lambda dy, x: dy * (1 - np.tanh(x) ** 2), zeros).ok
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, positive = rng.standard_normal((8, 16)), rng.uniform(0.001, 1, (4, 5))
        assert check_kernel(lambda x: (np.maximum(x, 0), x), lambda dy, x: dy * (x > 0), x).ok
        assert check_kernel(lambda x: (np.abs(x).sum(1), x), lambda dy, x: dy[:, None] * np.sign(x), x).ok
        assert check_kernel(lambda x: (np.log(x), x), lambda dy, x: dy / x, positive).ok
        assert check_kernel(lambda x: (np.sqrt(x), x), lambda dy, x: dy / (2 * np.sqrt(x)), positive).ok
    assert check_kernel(lambda x: (x**2, x), lambda dy, x: 2 * x * dy, np.array(1.3)).ok


# ---- Kernels that break the rules ----


def square_forward(x):
    return x**2, x


def square_backward(dy, cache):
    return 2 * cache * dy


X = [np.random.default_rng(3).standard_normal((3, 5))]


def checked(forward=square_forward, backward=square_backward, **options):
    return check_kernel(forward, backward, X, **options)


def test_a_right_kernel_of_ones_own_passes():
    assert checked().ok


def said(report):
    assert not report.ok
    return str(report)


def test_what_the_forward_does_wrong():
    def raises(x):
        raise ZeroDivisionError("so it goes")

    def alone(x):
        return x**2

    def in_place(x):
        x *= x
        return x.copy(), x

    state = np.random.default_rng(0)

    def random(x):
        return x * state.random(), x

    def infinite(x):
        with np.errstate(divide="ignore"):
            return x / np.zeros_like(x), x

    for forward, words in (
        (raises, "ZeroDivisionError: so it goes"),
        (alone, "must return (y, cache), got ndarray"),
        (in_place, "changes its input x in place"),
        (random, "two calls with the same inputs"),
        (infinite, "not finite"),
    ):
        report = checked(forward)
        assert report.codes == {"forward-wrong"} and words in said(report)


def test_what_the_backward_does_wrong():
    def raises(dy, cache):
        return dy @ cache

    def changes_dy(dy, cache):
        dy *= 2 * cache
        return dy

    def changes_x(dy, cache):
        cache *= 2
        return dy * cache

    count = [0]

    def forgetful(dy, cache):
        count[0] += 1
        return 2 * cache * dy * count[0]

    def nan(dy, cache):
        return dy * np.nan

    for backward, words in (
        (raises, "it raised ValueError"),
        (changes_dy, "changes dy in place"),
        (changes_x, "changes x in place"),
        (forgetful, "two calls with the same dy"),
        (nan, "not finite"),
        (lambda dy, cache: (dy, dy), "returned 2 gradients for 1 inputs (x)"),
        (lambda dy, cache: None, "returned None"),
        (lambda dy, cache: 2 * cache * np.abs(dy), "test the sign of dy"),
        (lambda dy, cache: 2 * cache * dy + 1, "not depend on dy"),
        (lambda dy, cache: 2 * cache, "two different dy give the same gradient"),
        (lambda dy, cache: (2 * cache * dy).T, "has the right shape"),
        (lambda dy, cache: (2 * cache * dy)[0], "wrong-shape"),
        (
            lambda dy, cache: (2 * cache * dy).astype(np.float32),
            "must be an array of float64, as its input is, got float32",
        ),
        (lambda dy, cache: 2 * cache * dy * 1j, "got complex128"),
        (lambda dy, cache: [[[1.0], [1.0, 2.0]]], "got list"),
        (lambda dy, cache: np.sin(7 * cache) * dy, "unexplained"),
    ):
        assert words in said(checked(backward=backward)), words


def test_not_implemented_goes_through():
    def later(dy, cache):
        raise NotImplementedError("step 1 of 3")

    with pytest.raises(NotImplementedError, match="step 1 of 3"):
        checked(backward=later)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"kind": "conv3d"}, "kind must be one of conv2d, batch_norm"),
        ({}, "give inputs, or the kind"),
        ({"inputs": [[1, 2, 3]]}, "no input has floats"),
        ({"inputs": np.zeros((0, 3))}, "an input is empty"),
        ({"inputs": [np.array([1.0, np.nan])]}, "not finite"),
        ({"inputs": X, "names": ["x", "y"]}, "2 names for 1 inputs"),
        ({"inputs": X, "kind": "conv2d"}, "do not fit conv2d"),
        ({"kind": "max_pool2d", "options": {"kernel_size": 50}}, "do not fit max_pool2d"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_kernel(square_forward, square_backward, **arguments)


def test_inputs_are_not_touched_and_float32_is_widened():
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    kept = x.copy()
    assert check_kernel(square_forward, square_backward, x).ok
    assert np.array_equal(x, kept)


def test_an_upstream_of_ones_would_have_let_it_pass():
    """Batch norm's dx = 0 is right for an upstream of ones, as the sum of the output does not depend on x."""

    def nothing(dy, cache):
        right = kernels.batch_norm_backward(dy, cache)
        return (0 * right[0], *right[1:])

    assert check_kernel(kernels.batch_norm_forward, nothing, kind="batch_norm").codes == {"zero"}


def test_dy_is_not_the_input_that_the_same_seed_draws():
    """With dy = x the right dx of a normalisation is 0, and its mistakes are lost in rounding."""
    x = np.random.default_rng(0).standard_normal((3, 4, 5, 7))
    seen = []

    def backward(dy, cache):
        seen.append(dy)
        return kernels.batch_norm_backward(dy, cache)[0]

    assert check_kernel(kernels.batch_norm_forward, backward, [x]).ok
    assert abs(np.corrcoef(seen[0].ravel(), x.ravel())[0, 1]) < 0.5
    seen.clear()

    def watched(z):
        with minires.textbook():  # whose cache backward reads
            y = F.batch_norm(z, None, None, training=True)
        y.node.backward = backward
        return y

    assert check_function(watched, Tensor(x, requires_grad=True)).ok
    assert abs(np.corrcoef(seen[0].ravel(), x.ravel())[0, 1]) < 0.5


def test_a_report_is_for_people_and_programs():
    def negative(dy, cache):
        return -2 * cache * dy

    report = checked(backward=negative)
    text = str(report)
    assert "dx       FAIL   worst at dx[" in text and "yours" in text and "numeric" in text
    assert "dx: sign: The sign is wrong." in text and "yours = -1 times" in text
    again = json.loads(json.dumps(report.to_dict()))
    assert again["ok"] is False and again["findings"][0]["code"] == "sign"
    assert again["gradients"][0]["index"] and again["findings"][0]["residual"] < 1e-6


def test_two_causes_are_both_named():
    def backward(dy, cache):
        dx, dw, db = kernels.conv2d_backward(dy, cache)
        flipped = kernels.conv2d_backward(dy, cache._replace(w=cache.w[:, :, ::-1, ::-1]))[0]
        return flipped / len(dy), dw, db

    report = check_kernel(kernels.conv2d_forward, backward, kind="conv2d")
    assert report.codes == {"kernel-flipped", "scale-by-N"}


def test_each_of_two_causes_has_its_own_evidence():
    def backward(dy, cache):
        dx, dgamma, dbeta = kernels.batch_norm_backward(dy, cache)
        centred = dy - dy.mean(axis=(0, 2, 3), keepdims=True)
        return centred * cache.inv_std[:, None, None], dgamma, (dy * (dy == dy[-1])).sum(axis=(0, 2, 3))

    report = check_kernel(kernels.batch_norm_forward, backward, kind="batch_norm")
    evidence = {finding.code: finding.evidence for finding in report.findings}
    assert evidence["bn-missing-gamma"] == ""
    assert evidence["bn-var-constant"] == "the term x_hat mean(dy x_hat) is missing"
    assert evidence["last-sample-only"] == "it is the gradient of sample 2 alone"


def test_other_sizes_tell_a_batch_of_two_from_a_factor_of_two():
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((2, 4, 5, 6)), rng.standard_normal((3, 4, 3, 3)), rng.standard_normal(3)]
    for divisor, code in (((lambda dy: len(dy)), "scale-by-N"), ((lambda dy: 2), "factor-2")):

        def backward(dy, cache, divisor=divisor):
            dx, dw, db = kernels.conv2d_backward(dy, cache)
            return dx, dw / divisor(dy), db

        assert check_kernel(kernels.conv2d_forward, backward, inputs, kind="conv2d").codes == {code}


# ---- With Tensors ----


def tensors(*shapes):
    rng = np.random.default_rng(0)
    return [Tensor(rng.standard_normal(shape), requires_grad=True) for shape in shapes]


def wrong_square(x):
    return minires.apply(square_forward, lambda dy, cache: cache * dy, x)


def test_functions_of_tensors():
    a, b = tensors((3, 4), (4, 5))
    assert check_function(lambda a, b: (a @ b).sigmoid(), a, b).ok
    report = check_function(wrong_square, a)
    assert not report.ok and report.gradients[0].name == "dx0" and report.codes == {"factor-2"}
    assert check_function(F.relu, Tensor(np.array([0.0, 1.0, -1.0]), requires_grad=True)).ok


@pytest.mark.slow
def test_a_whole_model_and_its_parameters():
    model = minires.create_model("resnet8", generator=np.random.default_rng(0)).double()
    before = {name: buffer.numpy().copy() for name, buffer in model.named_buffers()}
    (x,) = tensors((4, 3, 8, 8))
    report = check_function(model, x)
    assert report.ok, report
    assert len(report.gradients) == 1 + len(list(model.parameters()))
    for name, buffer in model.named_buffers():
        assert np.array_equal(buffer.numpy(), before[name]), name
    assert x.grad is None


class Broken(nn.Module):
    """A block whose second weight never learns."""

    def __init__(self):
        self.good, self.bad = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()

    def forward(self, x):
        return self.good(x).tanh() + self.bad(x).detach()


def test_a_wrong_model_is_found():
    (x,) = tensors((3, 4))
    report = check_function(Broken(), x)
    wrong = {gradient.name for gradient in report.gradients if not gradient.ok}
    assert wrong == {"dx0", "dbad.weight", "dbad.bias"}


def test_random_functions_are_refused():
    (x,) = tensors((30, 4))
    assert "dropout" in said(check_function(lambda x: F.dropout(x, 0.5, training=True), x))


def test_wrong_tensors():
    with pytest.raises(ValueError, match="requires grad"):
        check_function(F.relu, Tensor(np.zeros(3)))
    with pytest.raises(TypeError, match=r"call \.double\(\)"):
        check_function(F.relu, Tensor(np.zeros(3, np.float32), requires_grad=True))
    with pytest.raises(TypeError, match="must return one Tensor"):
        check_function(lambda x: 3, *tensors((2,)))


def test_gradcheck_as_pytorch_has_it():
    a, b = tensors((3, 4), (4, 5))
    assert gradcheck(lambda a, b: (a @ b).sigmoid(), (a, b)) is True
    assert gradcheck(lambda a: (a.exp(), a.sum()), a) is True
    assert gradcheck(wrong_square, a, raise_exception=False) is False
    with pytest.raises(RuntimeError, match=r"Jacobian of output 0 by input 0 .* analytic .* numeric"):
        gradcheck(wrong_square, a)
    assert gradcheck(wrong_square, a, rtol=0.6) is True  # a factor of two, with that tolerance
    with pytest.raises(ValueError, match="requires grad"):
        gradcheck(F.relu, Tensor(np.zeros(3)))


def test_gradcheck_agrees_with_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    values = np.random.default_rng(0).standard_normal((2, 3))
    for power in (2, 3):

        def f(x, power=power):
            return (x**power).sum()

        ours = gradcheck(f, Tensor(values, requires_grad=True))
        theirs = torch.autograd.gradcheck(f, torch.tensor(values, requires_grad=True))
        assert ours is theirs is True
