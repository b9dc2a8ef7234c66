"""The exercises: blanks that are cut from the shipped kernels, and a check that names what is wrong."""

import ast
import inspect
import re

import numpy as np
import pytest
from exercise_mistakes import MISTAKES, planted

from minires import Tensor, kernels, textbook, using
from minires.engine.modes import Watcher, mode
from minires.exercises import stages, training
from minires.exercises.basic_block import basic_block_backward, basic_block_forward
from minires.exercises.blank import blank_file, blank_function, not_written, solution, solved_file, steps_of
from minires.exercises.compare import difference
from minires.exercises.hints import HINTS, hints_for
from minires.exercises.mutants import accepts, candidates
from minires.exercises.process import run_stages
from minires.exercises.table import EXERCISES, stage_names
from minires.exercises.training import sgd_step
from minires.models import resnet20
from minires.models.blocks import BasicBlock, BlockOptions
from minires.nn import Parameter
from minires.nn import functional as F
from minires.optim import SGD

NAMES = list(EXERCISES)


def checked(name, text, folder):
    """The stages of a check, made in this process."""
    path = folder / f"{name}.py"
    path.write_text(text)
    saved = []
    run_stages(EXERCISES[name], path, lambda result: saved.append(list(result["stages"])))
    return saved[-1]


def failure(found):
    assert found[-1]["status"] == "failed", found
    assert all(stage["status"] in ("passed", "skipped") for stage in found[:-1]), found
    return found[-1]


def test_the_exercises_are_those_of_the_course():
    assert len(EXERCISES) == 16
    for name, exercise in EXERCISES.items():
        assert exercise.name == name and len(exercise.hints) == 3 and exercise.title
        assert set(stage_names(exercise)[1:]) <= set(stages.STAGES)


@pytest.mark.parametrize("name", NAMES)
def test_a_blank_keeps_what_a_student_needs_and_nothing_else(name):
    text = blank_file(EXERCISES[name])
    tree = ast.parse(text)
    assert f'EXERCISE = "{name}"' in text and max(map(len, text.splitlines())) <= 120
    written = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for shipped in EXERCISES[name].functions:
        blank = written[shipped.__name__]
        original = ast.parse(inspect.getsource(shipped)).body[0]
        assert ast.unparse(blank.args) == ast.unparse(original.args)
        assert ast.get_docstring(blank) == ast.get_docstring(original) is not None
        steps = steps_of(shipped)
        raised = [node.exc.args[0].value for node in ast.walk(blank) if is_step(node)]
        assert steps and raised == [not_written(shipped, steps, i).replace('"', "'") for i in range(1, len(steps) + 1)]


def is_step(node):
    return isinstance(node, ast.Raise) and getattr(node.exc.func, "id", "") == "NotImplementedError"


def test_a_blank_in_full():
    """What a student sees: checks, sizes, comments, shapes and the return stay; the mathematics is gone."""
    text = blank_function(kernels.batch_norm_backward)
    assert "    centred, x_hat, inv_std, gamma, has_beta, _, _ = cache\n" in text
    assert "    axes, per_channel = channel_axes(dy)  # (0, 2, 3) and (1, C, 1, 1)\n    M = dy.size" in text
    count = len(steps_of(kernels.batch_norm_backward))
    assert 8 <= count <= 10
    step = "    # y = gamma x_hat + beta\n    raise NotImplementedError({})  # (C,)\n"
    assert step.format(f'"batch_norm_backward, step 1 of {count}: dbeta, from y = gamma x_hat + beta"') in text
    assert f'"batch_norm_backward, step 2 of {count}: dgamma, from y = gamma x_hat + beta")  # (C,)\n' in text
    assert f'"batch_norm_backward, step 7 of {count}: dcentred again, from var = sum(centred^2) / M"\n' in text
    assert text.endswith("    return dx, None if gamma is None else dgamma, dbeta if has_beta else None\n")
    assert "dx =" not in text and ".sum(" not in text


def test_a_blank_gives_what_is_no_mathematics():
    """Checks, names of sizes, the cache's fields and memory on demand; and it says which functions help, and how."""
    text = blank_file(EXERCISES["max_pool"])
    assert 'size = pool_size(x, "max_pool2d", kernel_size' in text and "OH, OW = cache.size\n" in text
    assert "# window(o, size, kernel, stride, padding, dilation)\n#     The pixels of window number o" in text
    assert '("max_pool2d_forward, step 1 of 1: y")  # (N, C, OH, OW)\n' in text
    assert "    if inplace:\n        branch += x\n" in blank_function(kernels.residual_add_forward)
    assert "    cols, w, size, has_bias = cache\n" in blank_function(kernels.conv2d_backward)
    assert "    move_running(running_mean, running_var, batch_mean" in blank_function(kernels.batch_norm_forward)
    steps = [step.title for step in steps_of(kernels.cross_entropy_forward)]
    assert steps[:2] == ["counted", "in_range"] and steps[-1] == "y" and len(steps) == 8
    assert [step.title for step in steps_of(kernels.unbroadcast)][:3] == [
        "what it returns where dy.shape == shape",
        "added",
        "axes",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_blank_fails_with_its_own_error_and_the_shipped_kernel_passes(name, tmp_path):
    exercise = EXERCISES[name]
    found = checked(name, solved_file(exercise), tmp_path)
    assert all(stage["status"] in ("passed", "skipped") for stage in found), found
    assert [stage["name"] for stage in found] == stage_names(exercise)
    failed = failure(checked(name, blank_file(exercise), tmp_path))
    assert failed["code"] == "not-written"
    for shipped in exercise.functions:  # each function alone is blank, the others are right
        text = solved_file(exercise).replace(inspect.getsource(shipped), blank_function(shipped))
        failed = failure(checked(name, text, tmp_path))
        assert failed["message"] == f"not written yet: {not_written(shipped, steps_of(shipped), 1)}"


PLANTED = [(name, i) for name in NAMES for i in range(len(MISTAKES[name]))]


@pytest.mark.slow
@pytest.mark.parametrize("name, i", PLANTED, ids=[f"{name}-{i + 1}" for name, i in PLANTED])
def test_a_planted_mistake_is_named(name, i, tmp_path):
    edits, stage, words = MISTAKES[name][i]
    failed = failure(checked(name, planted(solved_file(EXERCISES[name]), edits), tmp_path))
    assert failed["name"] == stage, failed["message"]
    assert any(word in failed["message"] for word in words.split("|")), failed["message"]
    assert failed["code"] in HINTS


def test_there_are_five_mistakes_an_exercise():
    assert list(MISTAKES) == NAMES and all(len(five) >= 5 for five in MISTAKES.values())


CODES = """
upstream-ignored not-linear sign factor-2 scale-by-N scale-by-HW scale-by-NHW scale-by-C scale-other zero transposed
reshaped-not-transposed flipped shifted missing-sum last-sample-only first-pixel-only wrong-shape col2im-overlap
crop-off-by-one kernel-flipped kernel-transposed stride-ignored bn-stats-constant bn-mean-constant bn-var-constant
bn-bessel bn-sum-for-mean bn-var-sign bn-running-stats bn-batch-axis-only bn-missing-gamma bn-missing-inv-std
bn-inv-std-squared bn-centred-for-xhat bn-dgamma-uses-x bn-dgamma-uses-y bn-dgamma-dbeta-swapped relu-mask-from-upstream
relu-mask-inverted relu-no-mask relu-times-x relu-threshold pool-ties pool-argmin pool-average pool-all pool-index-order
pool-other-sample res-missing-skip res-missing-branch res-skip-twice res-skip-bypasses-relu res-mask-from-branch
res-relu-skipped res-inner-mask-missing res-averaged ce-no-onehot ce-wrong-axis forward-wrong unexplained
""".split()


def test_every_diagnosis_has_three_hints():
    assert set(CODES) <= set(HINTS)
    for code, hints in HINTS.items():
        assert len(hints) == 3 and len(set(hints)) == 3 and all(30 <= len(hint) <= 220 for hint in hints), code
    relu = EXERCISES["relu"]
    assert hints_for(relu, "sign") == HINTS["sign"] and hints_for(relu, "not-written") == relu.hints


def test_the_solution_is_the_shipped_source():
    for exercise in EXERCISES.values():
        assert all(inspect.getsource(shipped) in solution(exercise) for shipped in exercise.functions)
        assert all(inspect.getsource(shipped) in solved_file(exercise) for shipped in exercise.functions)


def test_the_training_goes_through_every_function_of_every_exercise():
    """A function that the training does not reach would pass there whatever it does."""
    called = set()
    shipped = training.losses()
    for name, exercise in EXERCISES.items():
        if exercise.trials is None:
            continue
        called.clear()
        student = {"called": called}
        head = re.compile(r"^(def (\w+)\(.*?\) -> [^\n]*:\n)", re.MULTILINE | re.DOTALL)
        exec(head.sub(r'\1    called.add("\2")\n', solved_file(exercise)), student)
        own = {function.__name__: student[function.__name__] for function in exercise.functions}
        stages.check_training(stages.Submission(exercise, own, [], shipped))
        assert called == set(own), name
    assert shipped[-1] < shipped[0]


def test_the_network_of_the_training_is_made_of_the_operations_that_it_names():
    seen = set()

    class Watching(Watcher):
        def before_forward(self, operation, inputs, options):
            seen.add(operation)

    mode.watchers = (*mode.watchers, Watching())
    try:
        training.losses()
    finally:
        mode.watchers = mode.watchers[:-1]
    assert seen - set(training.OPERATIONS) == {"basic_block", "reshape"}
    assert set(training.OPERATIONS) <= seen


def test_what_a_network_cannot_call_is_said_in_a_sentence(tmp_path):
    """The trials give no running statistics, a network does."""
    text = solved_file(EXERCISES["batch_norm_forward"])
    text = text.replace("    running_mean: Array | None = None,\n    running_var: Array | None = None,\n", "")
    text = re.sub(r"    move_running\(.*\)\n", "", text)
    text = re.sub(r"check_batch_norm\(.*\)", "check_batch_norm(x, gamma, beta, None, None, training=True)", text)
    failed = failure(checked("batch_norm_forward", text, tmp_path))
    assert failed["name"] == "training" and failed["code"] == "wrong-arguments" and failed["code"] in HINTS
    assert failed["message"].startswith("the forward of batch_norm ")
    assert "(x, gamma, beta, running_mean, running_var)" in failed["message"]
    assert "batch_norm_forward(x, gamma, beta) does not take them so" in failed["message"]


def test_a_partial_is_a_function_too(tmp_path):
    text = solved_file(EXERCISES["relu"]) + "\n\nimport functools\nrelu_backward = functools.partial(relu_backward)\n"
    found = checked("relu", text + 'relu_backward.__name__ = "relu_backward"\n', tmp_path)
    assert found[-1] == {"name": "training", "status": "passed", "code": "", "message": ""}, found


def naive_convolution_forward(x, w, b=None, *, stride=1, padding=0):
    """One place of the kernel after the other: y += w[:, :, kh, kw] x, shifted."""
    (N, C, H, W), (O, _, KH, KW) = x.shape, w.shape
    (SH, SW), (PH, PW) = [value if isinstance(value, tuple) else (value, value) for value in (stride, padding)]
    padded = np.zeros((N, C, H + 2 * PH, W + 2 * PW), x.dtype)
    padded[:, :, PH : PH + H, PW : PW + W] = x
    OH, OW = (H + 2 * PH - KH) // SH + 1, (W + 2 * PW - KW) // SW + 1
    y = np.zeros((N, O, OH, OW), x.dtype)
    for kh in range(KH):
        for kw in range(KW):
            y += np.einsum("oc,nchw->nohw", w[:, :, kh, kw], padded[:, :, kh:, kw:][:, :, ::SH, ::SW][:, :, :OH, :OW])
    return y if b is None else y + b[:, None, None], (padded, x.shape, w, (SH, SW), (PH, PW), b is not None)


def naive_convolution_backward(dy, cache):
    padded, (N, C, H, W), w, (SH, SW), (PH, PW), has_bias = cache
    OH, OW = dy.shape[2:]
    dpadded, dw = np.zeros_like(padded), np.zeros_like(w)
    for kh in range(w.shape[2]):
        for kw in range(w.shape[3]):
            meets = np.s_[:, :, kh : kh + SH * (OH - 1) + 1 : SH, kw : kw + SW * (OW - 1) + 1 : SW]
            dw[:, :, kh, kw] = np.einsum("nohw,nchw->oc", dy, padded[meets])
            dpadded[meets] += np.einsum("nohw,oc->nchw", dy, w[:, :, kh, kw])
    return dpadded[:, :, PH : PH + H, PW : PW + W], dw, dy.sum(axis=(0, 2, 3)) if has_bias else None


def test_a_convolution_of_ones_own_trains_resnet20():
    """A step with it leaves the same weights as a step with the shipped ones, fast and textbook's."""
    rng = np.random.default_rng(0)
    images, labels = Tensor(rng.standard_normal((4, 3, 32, 32)), dtype="float64"), Tensor(np.array([3, 1, 4, 1]))
    called = []

    def forward(x, w, b=None, *, stride=1, padding=0):
        called.append(w.shape)
        return naive_convolution_forward(x, w, b, stride=stride, padding=padding)

    def trained():
        model = resnet20(generator=np.random.default_rng(1)).to("float64")
        optimizer = SGD(list(model.parameters()), lr=0.1, momentum=0.9)
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        gradients = [p.grad.array.copy() for p in model.parameters()]
        optimizer.step()
        return [loss.array, *gradients, *[p.array for p in model.parameters()]]

    shipped = trained()
    with textbook():
        by_the_book = trained()
    with using(conv2d=(forward, naive_convolution_backward)):
        own = trained()
    assert len(called) == 19
    for expected, printed, mine in zip(shipped, by_the_book, own, strict=True):
        scale = max(1.0, np.abs(expected).max())
        assert np.abs(mine - expected).max() <= 1e-10 * scale and np.abs(printed - expected).max() <= 1e-10 * scale


def test_a_mistake_that_only_a_network_shows(tmp_path):
    """The trials use strides up to 2 and no image of 8 pixels: the training stands behind them."""
    text = solved_file(EXERCISES["relu"]).replace("dy * (cache.y > 0)", "dy * (cache.y > 0) * (1 + (dy.ndim > 3))")
    failed = failure(checked("relu", text, tmp_path))
    assert failed["name"] == "training" and "step 2 of 20: the loss is" in failed["message"]
    assert failed["code"] == "training-differs"


def test_basic_block_by_hand_equals_the_engine():
    rng = np.random.default_rng(0)
    block = BasicBlock(3, 5, 2, BlockOptions(shortcut="A", generator=rng)).to("float64")
    x = Tensor(rng.standard_normal((2, 3, 6, 5)), requires_grad=True, dtype="float64")
    y = block(x)
    dy = rng.standard_normal(y.shape)
    y.backward(Tensor(dy, dtype="float64"))
    parts = [block.conv1.weight, block.bn1.weight, block.bn1.bias, block.conv2.weight, block.bn2.weight, block.bn2.bias]
    own, cache = basic_block_forward(x.array, *[part.array for part in parts], stride=2)
    np.testing.assert_allclose(own, y.array, rtol=1e-12)
    gradients = basic_block_backward(dy, cache)
    for tensor, gradient in zip([x, *parts], gradients, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad.array, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("nesterov", (False, True))
def test_the_sgd_step_equals_the_optimiser(nesterov):
    rng = np.random.default_rng(0)
    p = rng.standard_normal((3, 4))
    parameter = Parameter(Tensor(p, dtype="float64").array.copy())
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": nesterov}
    optimizer = SGD([parameter], **options)
    p, v = parameter.array.copy(), np.zeros((3, 4), parameter.dtype)
    for _ in range(4):
        grad = rng.standard_normal((3, 4)).astype(parameter.dtype)
        parameter.grad = Tensor(grad)
        optimizer.step()
        p, v = sgd_step(p, grad, v, **options)
        np.testing.assert_allclose(parameter.array, p, rtol=1e-5)


def test_the_mutants_are_eight_and_wrong_and_the_others_are_right():
    verdicts = {one.name: accepts(one.forward, one.backward, one.inputs) for one in candidates()}
    assert verdicts == {one.name: one.fault is None for one in candidates()}
    assert list(verdicts.values()).count(False) == 8


def test_differences_are_said_with_place_and_numbers():
    right = np.arange(6.0).reshape(2, 3)
    assert difference("y", right, right + 1e-12) is None
    assert difference("y", right, right.T)[1] == "y must have shape (2, 3), got (3, 2): are its axes in another order?"
    assert "is a sum missing?" in difference("y", right[0], right)[1]
    wrong = right.copy()
    wrong[1, 2] = np.nan
    assert difference("y", right, wrong)[1] == "y: expected 5 at (1, 2), got nan (1 of 6 entries differ)"
    assert difference("y", np.array(1.0), np.array(1.0 + 1e-7))[1] == "y: expected 1, got 1.0000001"
    assert difference("y", np.array([-0.0]), np.array([1.0]))[1] == "y: expected 0 at (0,), got 1"
    assert difference("db", None, None) is None
    assert difference("db", None, right)[1] == "db must be None, got an array of shape (2, 3)"
    assert difference("y", right, 3.0)[1] == "y must be an array of shape (2, 3), got a float"


def test_several_gradients_without_a_diagnosis_share_a_line(tmp_path):
    text = solved_file(EXERCISES["basic_block_backward"])
    text = text.replace("dnormal = relu_backward(dinner, cache.relu1)", "dnormal = np.roll(dinner, 1, axis=2)")
    message = failure(checked("basic_block_backward", text, tmp_path))["message"]
    assert message.count("no known mistake reproduces") == 1, message
    assert message.startswith("The first of your names that differs from the solution's is `dnormal`"), message
    assert re.search(r"^\w+, \w+.*: The gradient is wrong in a way", message, re.M), message
