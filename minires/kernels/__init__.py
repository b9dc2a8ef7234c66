"""The mathematics: pure functions on NumPy or CuPy arrays, each forward beside its backward.

``forward(*arrays, **options) -> y, cache`` and ``backward(dy, cache) -> a gradient, or a tuple of them``: one for each
array that came in and of its shape, None where there is none. No kernel writes to its arguments, and none knows the
engine. Each module ends with the list of what it offers.
"""
# ruff: noqa: F403

from minires.kernels import activation, arithmetic, elementwise, linear, loss, reduction, residual, shape
from minires.kernels.activation import *
from minires.kernels.arithmetic import *
from minires.kernels.average_pooling import (
    adaptive_avg_pool2d_backward,
    adaptive_avg_pool2d_forward,
    avg_pool2d_backward,
    avg_pool2d_forward,
)
from minires.kernels.batch_norm import (
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_inference_backward,
    batch_norm_inference_forward,
)
from minires.kernels.convolution import col2im, conv2d_backward, conv2d_forward, conv2d_loops, im2col
from minires.kernels.elementwise import *
from minires.kernels.fast.batch_norm import sync_batch_norm_backward, sync_batch_norm_forward
from minires.kernels.linear import *
from minires.kernels.loss import *
from minires.kernels.pooling import (
    global_avg_pool_backward,
    global_avg_pool_forward,
    max_pool2d_backward,
    max_pool2d_forward,
)
from minires.kernels.reduction import *
from minires.kernels.residual import *
from minires.kernels.shape import *

conv2d_im2col_forward, conv2d_im2col_backward = conv2d_forward, conv2d_backward  # noqa: F405  # an older name

__all__ = ["conv2d_im2col_backward", "conv2d_im2col_forward", "sync_batch_norm_backward", "sync_batch_norm_forward"]
__all__ += activation.__all__
__all__ += arithmetic.__all__
__all__ += ["adaptive_avg_pool2d_backward", "adaptive_avg_pool2d_forward", "avg_pool2d_backward", "avg_pool2d_forward"]
__all__ += ["batch_norm_backward", "batch_norm_forward"]
__all__ += ["batch_norm_inference_backward", "batch_norm_inference_forward"]
__all__ += ["col2im", "conv2d_backward", "conv2d_forward", "conv2d_loops", "im2col"]
__all__ += elementwise.__all__
__all__ += linear.__all__
__all__ += loss.__all__
__all__ += ["global_avg_pool_backward", "global_avg_pool_forward", "max_pool2d_backward", "max_pool2d_forward"]
__all__ += reduction.__all__
__all__ += residual.__all__
__all__ += shape.__all__
