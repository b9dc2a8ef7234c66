"""Gradient checks that say what is wrong: check_kernel for bare kernels, check_function and gradcheck for tensors."""

from minires.gradcheck.check import check_kernel
from minires.gradcheck.engine import check_function, gradcheck
from minires.gradcheck.kinds import KINDS
from minires.gradcheck.report import Finding, Gradient, Report

__all__ = ["KINDS", "Finding", "Gradient", "Report", "check_function", "check_kernel", "gradcheck"]
