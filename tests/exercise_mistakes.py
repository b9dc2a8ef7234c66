"""Five planted mistakes an exercise: edits of the solved file, the stage that finds each, and what a student reads.

A mistake is (edits, stage, words): every edit (old, new) replaces the first place where old stands, and one of the
words, separated by |, must be in the message. Codes in brackets are the diagnosis.
"""

DB = "unbroadcast(dy_matrix, (out_features,))"
THROUGH_VARIANCE = ("dx = x_hat * (dgamma / -M)[:, None]", "dx = 0 * x_hat")
THROUGH_MEAN = ("dx -= (dbeta / M)[:, None]", "pass")

#: Max pooling's source changes with its speed, so its mistakes are wrapped around whatever it is.
FORWARD = "\n\nright_forward = max_pool2d_forward\n\n\ndef max_pool2d_forward(x, **options):\n    "
BACKWARD = "\n\nright_backward = max_pool2d_backward\n\n\ndef max_pool2d_backward(dy, cache):\n    "
END = ("\0", "")  # stands for: add this at the end of the file

MISTAKES = {
    "add_broadcast": [
        ([("    y = a + b", "    y = a - b")], "forward", "y: expected"),
        ([("total = dy.sum(", "total = dy.mean(")], "forward", "total: expected"),
        ([("unbroadcast(dy, cache.b_shape)", "-unbroadcast(dy, cache.b_shape)")], "gradient", "[sign]"),
        ([("unbroadcast(dy, cache.a_shape)", "dy")], "gradient", "missing-sum|is a sum missing?"),
        ([("total.astype(dy.dtype)", "total")], "invariants", "must be float32"),
    ],
    "relu": [
        ([("(cache.y > 0)", "(dy > 0)")], "gradient", "[relu-mask-from-upstream]"),
        ([("(cache.y > 0)", "(cache.y <= 0)")], "gradient", "[relu-mask-inverted]"),
        ([("dy * (cache.y > 0)", "1.0 * dy")], "gradient", "[relu-no-mask]"),
        ([("(cache.y > 0)", "cache.y")], "gradient", "[relu-times-x]"),
        ([("xp.maximum(x, 0,", "xp.maximum(x, 0.1,")], "forward", "y: expected"),
    ],
    "linear": [
        ([("dx = dy @ cache.w", "dx = 2 * dy @ cache.w")], "gradient", "[factor-2]"),
        ([("dw = dy_matrix.T @", "dw = np.ones_like(dy_matrix).T @")], "gradient", "[upstream-ignored]"),
        ([(DB, "dy_matrix[-1]")], "gradient", "[last-sample-only]"),
        ([(DB, "dy_matrix.mean(axis=0)")], "gradient", "[scale-by-N]"),
        ([("y = y + b", "y = y")], "forward", "y: expected"),
    ],
    "softmax_cross_entropy": [
        (
            [("dlogits[xp.arange(N), cache.labels] -= 1 - cache.label_smoothing", "pass")],
            "gradient",
            "[ce-no-onehot]",
        ),
        ([("dlogits *= (dy * cache.weight)[:, None]", "dlogits *= dy")], "gradient", "[scale-by-N]"),
        ([("losses = -log_p[", "losses = log_p[")], "forward", "y: expected"),
        ([("shifted = x - x.max(axis=axis, keepdims=True)", "shifted = x")], "forward", "y: expected"),
        ([("xp.where(counted & in_range, labels, 0)", "labels")], "forward", "IndexError"),
    ],
    "im2col": [
        ([("+= windows[:, :, kh, kw]", "= windows[:, :, kh, kw]")], "gradient", "[col2im-overlap]"),
        ([("PH : PH + H", "0 : H")], "gradient", "[crop-off-by-one]|[shifted]"),
        ([("h, w = kh * DH, kw * DW", "h, w = kh, kw")], "forward", "cols: expected"),
        ([(".transpose(0, 4, 5, 1, 2, 3)", ".transpose(0, 4, 5, 1, 3, 2)")], "forward", "cols: expected"),
        ([("W + 2 * PW), cols.dtype)", "W + 2 * PW))")], "invariants", "must be float32"),
    ],
    "conv2d_forward": [
        (
            [("w_matrix = w.reshape(size.O, -1)", "w_matrix = w[:, :, ::-1, ::-1].reshape(size.O, -1)")],
            "forward",
            "`w_matrix`",
        ),
        ([("y = y + b", "y = y")], "forward", "y: expected"),
        (
            [(".reshape(size.N, size.OH, size.OW, size.O).transpose(0, 3, 1, 2)", ".reshape(2, 4, size.OH, size.OW)")],
            "forward",
            "y: expected",
        ),
        ([("Conv2dIm2colCache(cols, w,", "Conv2dIm2colCache(cols, 2 * w,")], "intermediates", "cache.w: expected"),
        ([("options, b is not None)", "options, False)")], "intermediates", "cache.has_bias must be True"),
    ],
    "conv2d_backward": [
        ([("dy_matrix.sum(axis=0)", "dy_matrix.mean(axis=0)")], "gradient", "scale-"),
        ([("(dy_matrix.T @ cache.cols)", "(-dy_matrix.T @ cache.cols)")], "gradient", "[sign]"),
        ([("dcols = dy_matrix @", "dcols = np.ones_like(dy_matrix) @")], "gradient", "[upstream-ignored]"),
        ([("dy.transpose(0, 2, 3, 1).reshape(-1, O)", "dy.reshape(-1, O)")], "gradient", "`dy_matrix`"),
        ([("cache.w.reshape(O, -1)", "cache.w[:, :, ::-1, ::-1].reshape(O, -1)")], "gradient", "[kernel-flipped]"),
    ],
    "max_pool": [
        ([(END, BACKWARD + "return 2 * right_backward(dy, cache)\n")], "gradient", "[factor-2]"),
        ([(END, BACKWARD + "return right_backward(np.ones_like(dy), cache)\n")], "gradient", "[upstream-ignored]"),
        ([(END, BACKWARD + "return 0 * right_backward(dy, cache)\n")], "gradient", "[zero]"),
        (
            [(END, FORWARD + "y, cache = right_forward(-x, **options)\n    return -y, cache\n")],
            "forward",
            "y: expected",
        ),
        (
            [(END, FORWARD + "y, cache = right_forward(x, **options)\n    return y.transpose(0, 1, 3, 2), cache\n")],
            "forward",
            "in another order?",
        ),
    ],
    "global_avg_pool": [
        ([("(dy / (H * W))", "(dy)")], "gradient", "[scale-by-HW]"),
        ([("(dy / (H * W))", "(-dy / (H * W))")], "gradient", "[sign]"),
        (
            [("dx[...] = (dy / (H * W))", "dx[...] = 0\n    dx[:, :1, :1] = (dy / (H * W))")],
            "gradient",
            "dx is wrong",
        ),
        ([("axis=(2, 3)", "axis=(1, 2)")], "forward", "y must have shape"),
        ([("y = x.mean(", "y = x.sum(")], "forward", "y: expected"),
    ],
    "batch_norm_forward": [
        ([("[:, 0, 0] / M", "[:, 0, 0] / (M - 1)")], "forward", "`var`"),
        ([("1 / xp.sqrt(var + eps)", "1 / (xp.sqrt(var) + eps)")], "forward", "`inv_std`"),
        ([("rows.mean(axis=1)", "rows.sum(axis=1) / x.shape[0]")], "forward", "`mean`"),
        ([("beta is not None, mean, var)", "beta is not None, var, mean)")], "intermediates", "cache.mean: expected"),
        ([("rows.mean(axis=1)", "rows.sum(axis=1) / np.float64(M)")], "invariants", "must be float32"),
    ],
    "batch_norm_backward": [
        ([THROUGH_VARIANCE, THROUGH_MEAN], "gradient", "[bn-stats-constant]"),
        ([THROUGH_MEAN], "gradient", "[bn-mean-constant]"),
        ([THROUGH_VARIANCE], "gradient", "[bn-var-constant]"),
        ([("else cache.gamma * cache.inv_std", "else cache.inv_std")], "gradient", "[bn-missing-gamma]"),
        (
            [
                ("None if cache.gamma is None else dgamma,", "dbeta if cache.has_beta else None,"),
                (
                    "        dbeta if cache.has_beta else None,\n    )",
                    "        dgamma if cache.has_beta else None,\n    )",
                ),
            ],
            "gradient",
            "[bn-dgamma-dbeta-swapped]",
        ),
    ],
    "batch_norm_inference": [
        ([("else cache.gamma * cache.inv_std", "else cache.gamma")], "gradient", "`scale`"),
        ([("dx = dy_rows * scale", "dx = -dy_rows * scale")], "gradient", "[sign]"),
        ([("dbeta = dy_rows.sum(axis=1)", "dbeta = dy_rows.mean(axis=1)")], "gradient", "scale-"),
        ([("1 / xp.sqrt(var + eps)", "1 / xp.sqrt(var)")], "forward", "`inv_std`"),
        ([("else beta - mean * scale", "else beta - rows.mean(axis=1) * scale")], "forward", "y: expected"),
    ],
    "residual_add": [
        ([("return branch + x, None", "return branch - x, None")], "forward", "y: expected"),
        ([("return dy, dy", "return dy / 2, dy / 2")], "gradient", "dx is wrong"),
        ([("return dy, dy", "return dy, 0 * dy")], "gradient", "[zero]|[res-missing-branch]"),
        ([("before = (out_channels - C) // 2", "before = 0")], "forward", "y: expected"),
        ([("dx = xp.zeros(", "dx = xp.ones(")], "gradient", "dx is wrong|not-linear"),
    ],
    "basic_block_backward": [
        ([("dx = dx_branch + dx_shortcut", "dx = dx_branch")], "gradient", "[res-missing-skip]|`dx`"),
        ([("dx = dx_branch + dx_shortcut", "dx = dx_shortcut")], "gradient", "[res-missing-branch]|`dx`"),
        (
            [("shortcut_a_backward(didentity,", "shortcut_a_backward(dy,")],
            "gradient",
            "[res-skip-bypasses-relu]|`dx_shortcut`",
        ),
        (
            [("dnormal = relu_backward(dinner, cache.relu1)", "dnormal = dinner")],
            "gradient",
            "[res-inner-mask-missing]|`dnormal`",
        ),
        ([("dtotal = relu_backward(dy, cache.relu2)", "dtotal = dy")], "gradient", "[res-relu-skipped]|`dtotal`"),
    ],
    "sgd": [
        ([("p = p - lr * direction", "p = p + lr * direction")], "forward", "p: expected"),
        ([("v = momentum * v + g", "v = momentum * v - g")], "forward", "`direction`"),
        ([("g = grad + weight_decay * p", "g = grad - weight_decay * p")], "forward", "`g`"),
        ([("g + momentum * v if nesterov", "g if nesterov")], "forward", "`direction`"),
        ([("p = p - lr * direction", "p -= lr * direction")], "forward", "p was changed"),
    ],
    "kill_the_mutants": [
        (
            [("np.random.default_rng(0).standard_normal(y.shape)", "np.ones(y.shape)")],
            "mutants",
            "mutant 2 survived: a batch norm whose dx is 0",
        ),
        ([("zip(inputs, gradients, strict=True)", "list(zip(inputs, gradients))[:1]")], "mutants", "mutant 5 survived"),
        ([("1e-6 * max(1", "1e6 * max(1")], "mutants", "0 of 8 were rejected"),
        ([("1e-6 * max(1", "1e-16 * max(1")], "right kernels", "rejects the shipped"),
        ([("    return True", "    return None")], "right kernels", "must return True or False"),
    ],
}


def planted(text, edits):
    """The solved file with a mistake in it; every edit must find its place."""
    for old, new in edits:
        if old is END:
            text += new
            continue
        assert old in text, f"the kernel no longer says: {old}"
        text = text.replace(old, new, 1)
    return text
