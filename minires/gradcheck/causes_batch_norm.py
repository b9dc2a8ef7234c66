"""Wrong gradients of batch norm: its three terms and its two factors, each right or wrong.

dx = gamma inv_std (dy - mean(dy) - x_hat mean(dy x_hat)): a factor may be missing, a mean may be a sum, a term may be
missing or have the wrong sign, x - mean may stand for x_hat. Every combination of these is tried.
"""

from __future__ import annotations

import numpy as np

from minires.gradcheck.candidates import Candidate
from minires.gradcheck.problem import Problem


def candidates(problem: Problem, which: int, u: np.ndarray) -> list[Candidate]:
    """Wrong gradients of x, of gamma, of beta."""
    x = problem.inputs[0]
    eps = problem.options.get("eps", 1e-5)
    axes = (0, *range(2, x.ndim))
    along = (1, -1) + (1,) * (x.ndim - 2)
    gamma = problem.inputs[1].reshape(along) if len(problem.inputs) > 1 else np.ones(along)
    centred = x - x.mean(axes, keepdims=True)
    inv_std = 1 / np.sqrt(x.var(axes, keepdims=True) + eps)
    if which == 0:
        return input_candidates(x, u, gamma, centred, inv_std, eps, axes)
    return parameter_candidates(problem, which, x, u, centred, inv_std, axes)


def parameter_candidates(problem, which, x, u, centred, inv_std, axes) -> list[Candidate]:
    """dgamma and dbeta: multiplied by something else than x_hat, or exchanged."""
    x_hat = centred * inv_std
    dgamma, dbeta = (u * x_hat).sum(axes), u.sum(axes)
    if which == 2:
        found = [Candidate(("bn-dgamma-dbeta-swapped",), dgamma, "yours is dgamma")]
        return found + batch_alone(u, x.ndim)
    return [
        Candidate(("bn-dgamma-dbeta-swapped",), dbeta, "yours is dbeta"),
        Candidate(("bn-dgamma-uses-x",), (u * x).sum(axes)),
        Candidate(("bn-dgamma-uses-y",), (u * problem.y).sum(axes)),
        Candidate(("bn-centred-for-xhat",), (u * centred).sum(axes), "yours is sum(dy (x - mean))"),
        Candidate(("bn-inv-std-squared",), (u * x_hat * inv_std).sum(axes)),
        Candidate(("bn-missing-gamma",), (u * x_hat).sum(axes) * problem.inputs[1], "gamma is a factor of yours"),
    ]


def batch_alone(u: np.ndarray, ndim: int) -> list[Candidate]:
    """dbeta summed over the batch alone, in the first pixel."""
    if ndim != 4:
        return []
    return [Candidate(("bn-batch-axis-only",), u.sum(0)[:, 0, 0], "yours sums over the batch, in pixel (0, 0)")]


def input_candidates(x, u, gamma, centred, inv_std, eps, axes) -> list[Candidate]:
    """Every combination of wrong terms with wrong factors."""
    M = x.size // x.shape[1]
    x_hat = centred * inv_std
    terms = term_variants(u, x, x_hat, centred, inv_std, axes, M)
    found = []
    for gamma_codes, factor in ((), gamma), (("bn-missing-gamma",), 1.0):
        for std_codes, power in std_variants(centred, inv_std, eps, axes, M):
            for term_codes, term, words in terms:
                codes = tuple(dict.fromkeys(gamma_codes + std_codes + term_codes))
                if codes:
                    found.append(Candidate(codes, factor * power * term, words))
    return found


def std_variants(centred, inv_std, eps, axes, M) -> list[tuple[tuple[str, ...], np.ndarray]]:
    """What stands for inv_std in front."""
    unbiased = 1 / np.sqrt((centred**2).sum(axes, keepdims=True) / (M - 1) + eps)
    return [
        ((), inv_std),
        (("bn-missing-inv-std",), np.ones_like(inv_std)),
        (("bn-inv-std-squared",), inv_std**2),
        (("bn-bessel",), unbiased),
        (("bn-inv-std-squared",), inv_std**3),
    ]


def term_variants(u, x, x_hat, centred, inv_std, axes, M) -> list[tuple[tuple[str, ...], np.ndarray, dict[str, str]]]:
    """What stands for dy - mean(dy) - x_hat mean(dy x_hat), with the evidence for each code."""
    mean = u.mean(axes, keepdims=True)
    along = (u * x_hat).mean(axes, keepdims=True)
    bessel = M / (M - 1)
    means = [
        ((), mean, ""),
        (("bn-mean-constant",), 0 * mean, "the term mean(dy) is missing"),
        (("bn-sum-for-mean",), M * mean, "sum(dy) stands for mean(dy)"),
        (("bn-var-sign",), -mean, "+ mean(dy) stands for - mean(dy)"),
        (("bn-bessel",), bessel * mean, "mean(dy) is divided by M - 1"),
        (("bn-batch-axis-only",), u.mean(0, keepdims=True), "mean(dy) is over the batch axis alone"),
        (("bn-batch-axis-only",), M / len(x) * mean, "sum(dy) is divided by N, not by N*H*W"),
    ]
    products = [
        ((), x_hat * along, ""),
        (("bn-var-constant",), 0 * x_hat, "the term x_hat mean(dy x_hat) is missing"),
        (("bn-sum-for-mean",), M * x_hat * along, "sum(dy x_hat) stands for mean(dy x_hat)"),
        (("bn-var-sign",), -x_hat * along, "the term x_hat mean(dy x_hat) has the wrong sign"),
        (("bn-bessel",), bessel * x_hat * along, "mean(dy x_hat) is divided by M - 1"),
        (("bn-batch-axis-only",), x_hat * (u * x_hat).mean(0, keepdims=True), "mean(dy x_hat) is over the batch alone"),
        (("bn-batch-axis-only",), M / len(x) * x_hat * along, "sum(dy x_hat) is divided by N, not by N*H*W"),
        (("bn-centred-for-xhat",), centred * along, "(x - mean) mean(dy x_hat)"),
        (("bn-centred-for-xhat",), x_hat * along / inv_std, "x_hat mean(dy (x - mean))"),
        (("bn-centred-for-xhat",), centred * along / inv_std, "(x - mean) mean(dy (x - mean))"),
        (("bn-inv-std-squared",), x_hat * along * inv_std, "the variance's term has inv_std once too often"),
        (("bn-inv-std-squared",), x_hat * along * inv_std**2, "the variance's term has inv_std twice too often"),
        (("factor-2",), 2 * x_hat * along, "the variance's term is twice what it should be"),
        (("factor-2",), x_hat * along / 2, "the variance's term is half of what it should be"),
        (("bn-var-sign", "factor-2"), -2 * x_hat * along, "the variance's term lacks the -1/2 of a root's slope"),
        (("bn-dgamma-uses-x",), x_hat * (u * x).mean(axes, keepdims=True), "x_hat mean(dy x)"),
        (("bn-centred-for-xhat",), x * along, "x mean(dy x_hat): x stands for x_hat"),
    ]
    found = []
    for mean_codes, first, first_words in means:
        for product_codes, second, second_words in products:
            if mean_codes == product_codes or mean_codes + product_codes == ("bn-mean-constant", "bn-var-constant"):
                codes = mean_codes if mean_codes == product_codes else ("bn-stats-constant",)
                both = "; ".join(part for part in (first_words, second_words) if part)
                words = dict.fromkeys(codes, both)
            else:
                codes = mean_codes + product_codes
                words = {**dict.fromkeys(mean_codes, first_words), **dict.fromkeys(product_codes, second_words)}
            found.append((codes, u - first - second, words))
    words = {"bn-running-stats": "yours is gamma dy: mean 0 and variance 1 stand for the batch's"}
    found.append((("bn-running-stats",), u / inv_std, words))
    return found


def other_statistics(
    problem: Problem, pair: list[tuple[np.ndarray, np.ndarray]], right: np.ndarray
) -> tuple[str, str] | None:
    """Whether dx is, in each channel, a constant times dy or times the right gradient: another variance stands there.

    Args: pair, for two upstreams u and the student's gradient; right, the right one for the first.
    Returns: the code and the evidence, or None.
    """
    (u, g), (u2, g2) = pair
    axes = (0, *range(2, u.ndim))
    for base, words in ((u, "dy"), (right, "the right gradient")):
        if g.shape != base.shape:
            continue
        factor = (g * base).sum(axes, keepdims=True) / (base * base).sum(axes, keepdims=True)
        if np.abs(factor * base - g).max() < 1e-6 * np.abs(g).max():
            if words != "dy" or np.abs(factor * u2 - g2).max() < 1e-6 * np.abs(g2).max():
                if words == "dy" or running(problem, factor):
                    return "bn-running-stats", f"yours is {words}, times another constant in each channel"
                return named_factor(problem, factor)
    return None


def running(problem: Problem, factor: np.ndarray) -> bool:
    """Whether factor is sqrt(var + eps) / sqrt(running + eps), with the running variance after one batch."""
    x, eps = problem.inputs[0], problem.options.get("eps", 1e-5)
    axes = (0, *range(2, x.ndim))
    var = x.var(axes, keepdims=True)
    used = (var + eps) / factor**2 - eps
    M = x.size // x.shape[1]
    for batch in (var, var * M / (M - 1)):
        for start in (1.0, 0.0):
            share = ((used - start) / (batch - start)).ravel()
            if (factor > 0).all() and np.ptp(share) < 1e-4 and 0 < share[0] < 1:
                return True
    return False


def named_factor(problem: Problem, factor: np.ndarray) -> tuple[str, str]:
    """A factor a channel: gamma or the deviation once too often, or unknown."""
    x, eps = problem.inputs[0], problem.options.get("eps", 1e-5)
    axes = (0, *range(2, x.ndim))
    var = x.var(axes, keepdims=True)
    gamma = problem.inputs[1].reshape(factor.shape) if len(problem.inputs) > 1 else np.ones_like(factor)
    known = [
        (gamma, "bn-missing-gamma", "gamma is a factor of yours once too often"),
        (var + eps, "bn-inv-std-squared", "sqrt(var + eps) is a factor of yours and not a divisor"),
        (np.sqrt(var + eps) / np.sqrt(var), "scale-other", "eps is missing under the root"),
    ]
    for value, code, words in known:
        ratio = (factor / value).ravel()
        if np.ptp(ratio) < 1e-6 * np.abs(ratio).max():
            return code, words
    return "scale-other", "each channel has another factor: look at gamma and sqrt(var + eps)"
