"""Five planted mistakes an exercise: edits of the solved file, the stage that finds each, and what a student reads.

A mistake is (edits, stage, words): every edit (old, new) replaces the first place where old stands, and one of the
words, separated by |, must be in the message. Codes in brackets are the diagnosis.
"""

DB = "unbroadcast(dy_matrix, (out_features,))"
THROUGH_VARIANCE = ("dcentred = dcentred + dvar * 2 * centred / M", "pass")
THROUGH_MEAN = ("+ dmean / M", "+ 0 * dmean")

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
        ([("+= windows[:, :, :, :, :, kw]", "= windows[:, :, :, :, :, kw]")], "gradient", "[col2im-overlap]"),
        ([("+= rows[:, :, :, kh]", "= rows[:, :, :, kh]")], "gradient", "[col2im-overlap]"),
        (
            [("return x_padded[:, :, PH : PH + H", "return x_padded[:, :, 0 : H")],
            "gradient",
            "[crop-off-by-one]|[shifted]",
        ),
        ([("[:, None] + DH * xp.arange(KH)", "[:, None] + xp.arange(KH)")], "forward", "`h`"),
        ([(".transpose(0, 2, 4, 1, 3, 5)", ".transpose(0, 2, 4, 1, 5, 3)")], "forward", "cols: expected"),
        (
            [
                (
                    "rows = xp.zeros((N, C, OH, KH, W + 2 * PW), cols.dtype)",
                    "rows = xp.zeros((N, C, OH, KH, W + 2 * PW))",
                ),
                (
                    "x_padded = xp.zeros((N, C, H + 2 * PH, W + 2 * PW), cols.dtype)",
                    "x_padded = xp.zeros((N, C, H + 2 * PH, W + 2 * PW))",
                ),
            ],
            "invariants",
            "must be float32",
        ),
    ],
    "conv2d_forward": [
        (
            [("w_matrix = w.reshape(G,", "w_matrix = w[:, :, ::-1, ::-1].reshape(G,")],
            "forward",
            "`w_matrix`",
        ),
        ([("y = y + b.reshape(G, 1, O // G)", "y = y")], "forward", "y: expected"),
        (
            [(".transpose(1, 0, 2).reshape(N, OH, OW, O)", ".reshape(N, O, OH, OW).transpose(0, 2, 3, 1)")],
            "forward",
            "y: expected",
        ),
        ([("Conv2dCache(cols, w,", "Conv2dCache(cols, 2 * w,")], "intermediates", "cache.w: expected"),
        ([("size, b is not None)", "size, False)")], "intermediates", "cache.has_bias must be True"),
        (
            [("reshape(N * OH * OW, G, -1).transpose(1, 0, 2)", "reshape(G, N * OH * OW, -1)")],
            "forward",
            "`cols`|y: expected",
        ),
    ],
    "conv2d_backward": [
        ([("dy.sum(axis=1)", "dy.mean(axis=1)")], "gradient", "scale-"),
        ([("(dy.transpose(0, 2, 1) @ cols)", "(-dy.transpose(0, 2, 1) @ cols)")], "gradient", "[sign]"),
        ([("dcols = dy @", "dcols = np.ones_like(dy) @")], "gradient", "[upstream-ignored]"),
        ([("dy.transpose(0, 2, 3, 1)", "dy.transpose(0, 3, 2, 1)")], "gradient", "`dy`|`dw`"),
        ([("dy @ w.reshape(G,", "dy @ w[:, :, ::-1, ::-1].reshape(G,")], "gradient", "[kernel-flipped]"),
    ],
    "max_pool": [
        ([("+= dy[:, :, oh, ow]", "+= 2 * dy[:, :, oh, ow]")], "gradient", "[factor-2]"),
        ([("+= dy[:, :, oh, ow]", "+= 1")], "gradient", "[upstream-ignored]"),
        ([("+= dy[:, :, oh, ow]", "= dy[:, :, oh, ow]")], "gradient", "dx is wrong|dx: expected"),
        ([(".argmax(axis=2)", ".argmin(axis=2)")], "gradient", "[pool-argmin]"),
        ([("first // pixels.shape[3]", "first // pixels.shape[2]")], "gradient", "dx is wrong|dx: expected|IndexError"),
        ([(".max(axis=(2, 3))", ".min(axis=(2, 3))")], "forward", "y: expected"),
        ([("return y, MaxPool", "return y.transpose(0, 1, 3, 2), MaxPool")], "forward", "in another order?"),
    ],
    "global_avg_pool": [
        ([("= dy / (H * W)", "= dy")], "gradient", "[scale-by-HW]"),
        ([("= dy / (H * W)", "= -dy / (H * W)")], "gradient", "[sign]"),
        (
            [("dx[...] = dy / (H * W)", "dx[...] = 0\n    dx[:, :, :1, :1] = dy / (H * W)")],
            "gradient",
            "dx is wrong",
        ),
        ([("axis=(2, 3)", "axis=(1, 2)")], "forward", "y must have shape"),
        ([("y = x.mean(", "y = x.sum(")], "forward", "y: expected"),
    ],
    "batch_norm_forward": [
        (
            [("(centred * centred).mean(", "x.size / (x.size - x.shape[1]) * (centred * centred).mean(")],
            "forward",
            "`var`",
        ),
        ([("1 / xp.sqrt(var + eps)", "1 / (xp.sqrt(var) + eps)")], "forward", "`inv_std`"),
        ([("x.mean(axis=axes, keepdims=True)", "x.mean(axis=0, keepdims=True)")], "forward", "`centred`|`mean`"),
        (
            [("beta is not None, batch_mean, batch_var)", "beta is not None, batch_var, batch_mean)")],
            "intermediates",
            "cache.mean: expected",
        ),
        (
            [("mean = x.mean(axis=axes, keepdims=True)", "mean = x.mean(axis=axes, keepdims=True, dtype='float64')")],
            "invariants",
            "must be float32",
        ),
    ],
    "batch_norm_backward": [
        ([THROUGH_VARIANCE, THROUGH_MEAN], "gradient", "[bn-stats-constant]"),
        ([THROUGH_MEAN], "gradient", "[bn-mean-constant]"),
        ([THROUGH_VARIANCE], "gradient", "[bn-var-constant]"),
        ([("else dy * gamma.reshape(per_channel)", "else dy")], "gradient", "[bn-missing-gamma]"),
        (
            [("else dgamma, dbeta if has_beta", "else dbeta, dgamma if has_beta")],
            "gradient",
            "[bn-dgamma-dbeta-swapped]",
        ),
        ([("dinv_std * -0.5 *", "dinv_std * 0.5 *")], "gradient", "[bn-var-sign]"),
        ([("dinv_std * -0.5 *", "dinv_std *")], "gradient", "[bn-var-sign]"),
        ([("dvar * 2 * centred / M", "dvar * 2 * centred")], "gradient", "[bn-sum-for-mean]"),
        ([("dvar * 2 * centred / M", "dvar * centred / M")], "gradient", "[factor-2]"),
        ([("+ dmean / M", "+ dmean")], "gradient", "[bn-sum-for-mean]"),
        ([("dmean = -dcentred", "dmean = dcentred")], "gradient", "[bn-var-sign]"),
        ([("inv_std**3", "inv_std**2")], "gradient", "`dvar`"),
        ([("(dx_hat * centred).sum(", "(dx_hat * x_hat).sum(")], "gradient", "`dinv_std`"),
    ],
    "batch_norm_inference": [
        ([("else dy * gamma.reshape(per_channel)", "else dy")], "gradient", "`dx_hat`"),
        ([("dx = dx_hat * inv_std", "dx = -dx_hat * inv_std")], "gradient", "[sign]"),
        ([("dbeta = dy.sum(axis=axes)", "dbeta = dy.mean(axis=axes)")], "gradient", "scale-"),
        ([("1 / xp.sqrt(var + eps)", "1 / xp.sqrt(var)")], "forward", "`inv_std`"),
        ([("x - mean.reshape(per_channel)", "x - x.mean(axis=axes, keepdims=True)")], "forward", "`x_hat`"),
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
        ([("v = momentum * v + g", "v = momentum * v - g")], "forward", "`v`"),
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
        assert old in text, f"the kernel no longer says: {old}"
        text = text.replace(old, new, 1)
    return text
