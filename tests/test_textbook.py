"""textbook() and using(): which kernels run, for how long, and what is refused."""

import os
import subprocess
import sys
import threading

import minires.functional as F
import numpy as np
import pytest
from closeness import assert_close

import minires
from minires import Tensor, kernels, nn
from minires.kernels import fast


def images(*shape):
    return Tensor(np.random.default_rng(0).standard_normal(shape), requires_grad=True)


def backward_of_conv2d():
    """The backward that a convolution remembers here and now: it says whose kernel ran."""
    return F.conv2d(images(2, 3, 5, 4), images(4, 3, 3, 3), stride=(1, 1), padding=(0, 0)).node.backward


def my_conv2d_forward(x, w, b=None, *, stride=1, padding=0):
    """A convolution as a student writes it: a loop over the kernel's places, no dilation and no groups."""
    (SH, SW), (PH, PW) = stride, padding
    KH, KW = w.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (PH, PH), (PW, PW)))
    OH, OW = (padded.shape[2] - KH) // SH + 1, (padded.shape[3] - KW) // SW + 1
    y = np.zeros((len(x), len(w), OH, OW), x.dtype)
    for i in range(KH):
        for j in range(KW):
            seen = padded[:, :, i : i + SH * OH : SH, j : j + SW * OW : SW][:, :, :OH, :OW]
            y += np.einsum("nchw,oc->nohw", seen, w[:, :, i, j])
    return (y if b is None else y + b[:, None, None]), (padded, x.shape, w, b is not None, stride, padding)


def my_conv2d_backward(dy, cache):
    padded, shape, w, has_bias, (SH, SW), (PH, PW) = cache
    OH, OW = dy.shape[2:]
    dpadded, dw = np.zeros_like(padded), np.zeros_like(w)
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            place = np.s_[:, :, i : i + SH * (OH - 1) + 1 : SH, j : j + SW * (OW - 1) + 1 : SW]
            dw[:, :, i, j] = np.einsum("nohw,nchw->oc", dy, padded[place])
            dpadded[place] += np.einsum("nohw,oc->nchw", dy, w[:, :, i, j])
    return dpadded[:, :, PH : PH + shape[2], PW : PW + shape[3]], dw, dy.sum(axis=(0, 2, 3)) if has_bias else None


MINE = (my_conv2d_forward, my_conv2d_backward)


def test_the_fast_kernels_run_and_textbook_puts_them_aside():
    assert backward_of_conv2d() is fast.conv2d_backward
    with minires.textbook():
        assert backward_of_conv2d() is kernels.conv2d_backward
        with minires.textbook():
            pass
        assert backward_of_conv2d() is kernels.conv2d_backward
    assert backward_of_conv2d() is fast.conv2d_backward


def test_it_ends_with_an_exception_and_holds_in_its_thread_alone():
    with pytest.raises(KeyError), minires.textbook():
        seen = []
        thread = threading.Thread(target=lambda: seen.append(backward_of_conv2d()))
        thread.start()
        thread.join()
        assert seen == [fast.conv2d_backward]
        raise KeyError
    assert backward_of_conv2d() is fast.conv2d_backward


def test_both_are_decorators_with_brackets():
    assert minires.textbook()(backward_of_conv2d)() is kernels.conv2d_backward
    assert minires.using(conv2d=MINE)(backward_of_conv2d)() is my_conv2d_backward
    assert backward_of_conv2d() is fast.conv2d_backward
    with pytest.raises(TypeError, match=r"write @textbook\(\) with brackets"):

        @minires.textbook
        def function():
            pass


@pytest.mark.parametrize(
    "value, name", [("1", "minires.kernels.convolution"), ("0", "minires.kernels.fast.convolution")]
)
def test_the_environment_switches_a_whole_program(value, name):
    code = (
        "import minires, minires.functional as F; from minires import Tensor\n"
        "y = F.conv2d(Tensor([[[[1.0, 2.0]]]], requires_grad=True), Tensor([[[[3.0]]]]))\n"
        "print(y.node.backward.__module__)"
    )
    environment = {**os.environ, "MINIRES_TEXTBOOK": value}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == name, result.stderr


def results(network, x, dy):
    x = Tensor(x, requires_grad=True)
    y = network.train()(x)
    y.backward(dy)
    found = {"y": y.detach().numpy(), "dx": x.grad.numpy()}
    found.update({name: p.grad.numpy() for name, p in network.named_parameters()})
    network.zero_grad()
    return found


def test_a_students_convolution_trains_a_resnet():
    """Every gradient of a ResNet-20 (option B: 1x1 kernels with stride 2 too) is that of the shipped kernels."""
    rng = np.random.default_rng(1)
    network = minires.create_model("resnet20", width=4, shortcut="B").double()
    x, dy = rng.standard_normal((3, 3, 18, 13)), rng.standard_normal((3, 10))
    expected = results(network, x, dy)
    with minires.using(conv2d=MINE):
        found = results(network, x, dy)
    for name, value in expected.items():
        assert_close(found[name], value, 1e-11, name)


def test_using_replaces_what_is_named_and_nothing_else():
    seen = []

    def relu_forward(x):
        seen.append("relu")
        return np.maximum(x, 0), x > 0

    def relu_backward(dy, cache):
        return dy * cache

    with minires.using(relu=(relu_forward, relu_backward)):
        assert backward_of_conv2d() is fast.conv2d_backward
        with minires.no_grad():
            nn.ReLU(inplace=True)(images(2, 3))  # the hint inplace is no matter to it
        with minires.using(conv2d=MINE):
            assert F.relu(images(2, 3)).node.backward is relu_backward
            assert backward_of_conv2d() is my_conv2d_backward
    assert seen == ["relu", "relu"] and F.relu(images(2, 3)).node.backward is kernels.relu_backward


def test_inside_textbook_the_rest_is_the_textbooks():
    with minires.textbook(), minires.using(relu=(kernels.relu_forward, kernels.relu_backward)):
        assert backward_of_conv2d() is kernels.conv2d_backward


def test_batch_norm_moves_the_running_statistics_through_ones_own_kernel():
    """The running statistics are inputs of the kernel: whoever replaces it moves them."""

    def forward(x, gamma, beta, running_mean, running_var, *, eps, momentum):
        running_mean[...] = 7
        return kernels.batch_norm_forward(x, gamma, beta, eps=eps)

    layer = nn.BatchNorm2d(3).double()
    x = images(4, 3, 5, 2)
    with minires.using(batch_norm=(forward, kernels.batch_norm_backward)):
        y = layer(x)
    assert (layer.running_mean.numpy() == 7).all() and (layer.running_var.numpy() == 1).all()
    assert_close(y.detach().numpy(), kernels.batch_norm_forward(x.detach().numpy())[0], 1e-12)


def no_arrays_forward(*, stride):
    return stride


def one_backward(dy):
    return dy


@pytest.mark.parametrize(
    "pairs, error, message",
    [
        ({"conv2": MINE}, ValueError, "unknown operation 'conv2': did you mean 'conv2d'"),
        ({"conv2d": my_conv2d_forward}, TypeError, r"conv2d must be a pair of functions \(forward, backward\)"),
        ({"conv2d": (my_conv2d_forward, None)}, TypeError, "conv2d must be a pair of functions"),
        ({"conv2d": (no_arrays_forward, my_conv2d_backward)}, TypeError, r"gets the arrays \(x, w, b\), None for one"),
        ({"linear": (lambda x, w: (x, w), my_conv2d_backward)}, TypeError, r"gets the arrays \(x, w, b\)"),
        ({"conv2d": (my_conv2d_forward, one_backward)}, TypeError, r"called as backward\(dy, cache\)"),
    ],
)
def test_what_is_no_kernel_is_refused_at_once(pairs, error, message):
    with pytest.raises(error, match=message):
        minires.using(**pairs)


def test_an_option_that_it_lacks_is_refused_when_it_is_asked_for():
    with minires.using(conv2d=MINE):
        F.conv2d(images(2, 4, 5, 5), images(4, 4, 3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))
        with pytest.raises(TypeError, match="your my_conv2d_forward has no option groups, and groups=2 is asked for"):
            F.conv2d(images(2, 4, 5, 5), images(4, 2, 3, 3), stride=(1, 1), padding=(1, 1), groups=2)


def test_a_wrong_backward_is_told_as_any_other():
    def backward(dy, cache):
        return dy, None

    with minires.using(conv2d=(my_conv2d_forward, backward)):
        y = F.conv2d(images(2, 3, 5, 4), images(4, 3, 3, 3), stride=(1, 1), padding=(0, 0))
    with pytest.raises(RuntimeError, match="gave gradient 0 of shape"):
        y.sum().backward()


def test_a_pair_with_a_half_of_ones_own_runs_as_it_is():
    """apply(shipped forward, my backward): the fast pair must not step in and lose mine."""
    seen = []

    def backward(dy, cache):
        seen.append(type(cache).__module__)
        return kernels.conv2d_backward(dy, cache)

    x, w = images(2, 3, 5, 4), images(4, 3, 3, 3)
    minires.apply(kernels.conv2d_forward, backward, x, w).sum().backward()
    assert seen == ["minires.kernels.convolution"]


class Students:
    """Kernels as methods, and one that is called itself."""

    def forward(self, x, w, b=None, **options):
        return kernels.conv2d_forward(x, w, b, **options)

    def backward(self, dy, cache):
        return kernels.conv2d_backward(dy, cache)

    def __call__(self, dy, cache):
        return kernels.conv2d_backward(dy, cache)


def test_methods_lambdas_and_objects_are_functions_too():
    students = Students()
    for pair in (
        (students.forward, students.backward),
        (students.forward, students),
        (lambda x, w, b=None, **options: kernels.conv2d_forward(x, w, b, **options), lambda d, c: students(d, c)),
    ):
        x, w = images(2, 3, 5, 4), images(4, 3, 3, 3)
        with minires.using(conv2d=pair):
            y = F.conv2d(x, w)
        y.sum().backward()
        assert y.node.operation == "conv2d" and y.node.backward is pair[1], "the operation keeps its name"
        assert_close(w.grad.numpy(), kernels.conv2d_backward(np.ones(y.shape), y_cache(x, w))[1], 1e-12)


def y_cache(x, w):
    return kernels.conv2d_forward(x.detach().numpy(), w.detach().numpy())[1]


@pytest.mark.parametrize(
    "result, came",
    [
        (lambda y: y, "it returned ndarray"),  # with two images it would unpack into them
        (lambda y: None, "it returned NoneType"),
        (lambda y: (3.0, y), r"it returned \(float, ndarray\)"),
        (lambda y: (y, None, None), r"it returned \(ndarray, NoneType, NoneType\)"),
    ],
)
def test_a_forward_returns_y_and_cache(result, came):
    def forward(x, w, b, **options):
        return result(kernels.conv2d_forward(x, w, b, **options)[0])

    with minires.using(conv2d=(forward, kernels.conv2d_backward)):
        with pytest.raises(TypeError, match=f"forward must return y, cache, the first an array: {came}") as caught:
            F.conv2d(images(2, 3, 5, 4), images(4, 3, 3, 3))
    assert any(
        "in the forward of conv2d of" in note
        for note in getattr(caught.value, "__notes__", ["in the forward of conv2d of"])
    )


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda dx, dw, db: [dx, dw, db], "returned a list: gradients come as a tuple"),
        (lambda dx, dw, db: None, "gave 1 gradients for 3 inputs: is a return missing"),
        (
            lambda dx, dw, db: (Tensor(dx), dw, db),
            "gave a minires.engine.tensor.Tensor as gradient 0, expected an array",
        ),
        (lambda dx, dw, db: (dx, dw.astype(int), db), "gave gradient 1 of int64, expected floating-point numbers"),
    ],
)
def test_what_is_no_gradient_is_refused(wrong, message):
    def backward(dy, cache):
        return wrong(*kernels.conv2d_backward(dy, cache))

    with minires.using(conv2d=(kernels.conv2d_forward, backward)):
        y = F.conv2d(images(2, 3, 5, 4), images(4, 3, 3, 3))
    with pytest.raises(RuntimeError, match=message):
        y.sum().backward()


def test_what_cannot_be_decorated_is_refused():
    async def later():
        pass

    with pytest.raises(TypeError, match="a generator or a coroutine: write the with inside it"):
        minires.textbook()(later)
    with pytest.raises(TypeError, match=r"textbook\(\) decorates a function, got 3"):
        minires.textbook()(3)
    with pytest.raises(TypeError, match=r"name the operations, using\(conv2d=\(forward, backward\)\)"):
        minires.using({"conv2d": MINE})
