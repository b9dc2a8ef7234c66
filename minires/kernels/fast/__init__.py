"""The kernels that run by default: the same pairs as the textbook's beside this folder, faster, and proven equal.

``FAST`` says what runs in place of what. ``with minires.textbook():`` puts it aside.
"""

from minires.kernels import batch_norm as textbook_batch_norm
from minires.kernels import convolution as textbook_convolution
from minires.kernels import pooling as textbook_pooling
from minires.kernels import residual as textbook_residual
from minires.kernels.fast.batch_norm import (
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_inference_backward,
    batch_norm_inference_forward,
    sync_batch_norm_backward,
    sync_batch_norm_forward,
)
from minires.kernels.fast.convolution import conv2d_backward, conv2d_forward
from minires.kernels.fast.pooling import max_pool2d_backward, max_pool2d_forward
from minires.kernels.fast.shortcut import shortcut_a_backward, shortcut_a_forward

__all__ = [
    "FAST",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_inference_backward",
    "batch_norm_inference_forward",
    "conv2d_backward",
    "conv2d_forward",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "shortcut_a_backward",
    "shortcut_a_forward",
    "sync_batch_norm_backward",
    "sync_batch_norm_forward",
]

#: The textbook's pair: the pair that runs in its place.
FAST = {
    (textbook_convolution.conv2d_forward, textbook_convolution.conv2d_backward): (conv2d_forward, conv2d_backward),
    (textbook_batch_norm.batch_norm_forward, textbook_batch_norm.batch_norm_backward): (
        batch_norm_forward,
        batch_norm_backward,
    ),
    (textbook_batch_norm.batch_norm_inference_forward, textbook_batch_norm.batch_norm_inference_backward): (
        batch_norm_inference_forward,
        batch_norm_inference_backward,
    ),
    (textbook_pooling.max_pool2d_forward, textbook_pooling.max_pool2d_backward): (
        max_pool2d_forward,
        max_pool2d_backward,
    ),
    (textbook_residual.shortcut_a_forward, textbook_residual.shortcut_a_backward): (
        shortcut_a_forward,
        shortcut_a_backward,
    ),
}
