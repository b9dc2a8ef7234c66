"""Max, average and global average pooling gone wrong."""

from typing import NamedTuple

import numpy as np

from mistakes import Kind, pair


class Cache(NamedTuple):
    x_shape: tuple
    padded_shape: tuple
    windows: np.ndarray  # (N, C, OH, OW, KH*KW)
    kernel: tuple
    stride: tuple
    padding: tuple


# ---- the right pieces -----------------------------------------------------------------------------------------------


def cut_windows(x, kernel_size, stride, padding, fill):
    """All windows of the padded input, each as one row, in the cache."""
    (KH, KW), (PH, PW) = pair(kernel_size), pair(padding)
    SH, SW = (KH, KW) if stride is None else pair(stride)
    x_padded = np.pad(x, ((0, 0), (0, 0), (PH, PH), (PW, PW)), constant_values=fill)
    OH, OW = (x_padded.shape[2] - KH) // SH + 1, (x_padded.shape[3] - KW) // SW + 1
    windows = np.empty((*x.shape[:2], OH, OW, KH * KW))
    for oh, ow in np.ndindex(OH, OW):
        window = x_padded[:, :, oh * SH : oh * SH + KH, ow * SW : ow * SW + KW]
        windows[:, :, oh, ow] = window.reshape(*x.shape[:2], -1)
    return Cache(x.shape, x_padded.shape, windows, (KH, KW), (SH, SW), (PH, PW))


def put_back(shares, cache):
    """Every pixel of the padded input collects its share (N, C, OH, OW, KH*KW) of all the windows that it is in."""
    (KH, KW), (SH, SW) = cache.kernel, cache.stride
    dx_padded = np.zeros(cache.padded_shape)
    for oh, ow in np.ndindex(shares.shape[2:4]):
        share = shares[:, :, oh, ow].reshape(*shares.shape[:2], KH, KW)
        dx_padded[:, :, oh * SH : oh * SH + KH, ow * SW : ow * SW + KW] += share
    return dx_padded


def put_back_overwriting(shares, cache):
    """The same with = for +=."""
    (KH, KW), (SH, SW) = cache.kernel, cache.stride
    dx_padded = np.zeros(cache.padded_shape)
    for oh, ow in np.ndindex(shares.shape[2:4]):
        share = shares[:, :, oh, ow].reshape(*shares.shape[:2], KH, KW)
        dx_padded[:, :, oh * SH : oh * SH + KH, ow * SW : ow * SW + KW] = share
    return dx_padded


def crop(dx_padded, cache):
    (PH, PW), (H, W) = cache.padding, cache.x_shape[2:]
    return dx_padded[:, :, PH : PH + H, PW : PW + W]


def cut_off_behind(dx_padded, cache):
    """Cuts all of the padding off at the bottom and the right: wrong."""
    H, W = cache.x_shape[2:]
    return dx_padded[:, :, :H, :W]


def to_the_chosen(dy, index, cache):
    """All of dy for the entry of the window that index chooses, nothing for the others."""
    taps = np.arange(cache.windows.shape[-1])
    return dy[..., None] * (taps == index[..., None])


def equal_shares(dy, cache, divisor):
    return np.repeat(dy[..., None], cache.windows.shape[-1], axis=-1) / divisor


OVERLAPPING = {"kernel_size": (2, 3), "stride": 1}
PADDED = {"kernel_size": (3, 2), "stride": 2, "padding": 1}
PLAIN = {"kernel_size": (3, 2), "stride": (3, 2)}
APART = {"kernel_size": 2, "stride": 3}  # side by side, the windows would leave gaps


# ---- max pooling ----------------------------------------------------------------------------------------------------


def max_pool2d_forward(x, *, kernel_size, stride=None, padding=0):
    cache = cut_windows(x, kernel_size, stride, padding, -np.inf)
    return cache.windows.max(axis=-1), cache


def max_pool2d_backward(dy, cache):
    return crop(put_back(to_the_chosen(dy, cache.windows.argmax(axis=-1), cache), cache), cache)


max_pool2d = Kind("max_pool2d", max_pool2d_forward, max_pool2d_backward)

TIED = (np.random.default_rng(0).integers(0, 3, (2, 3, 7, 5)).astype(float),)
NEGATIVE = (-1 - np.random.default_rng(0).random((2, 3, 7, 5)),)


@max_pool2d.wrong("dx", "pool-ties", inputs=TIED, options=PLAIN)
def mask_of_the_maximum(dy, cache):
    """Compares the window with its maximum: where several are equal, each gets all of dy."""
    mask = cache.windows == cache.windows.max(axis=-1, keepdims=True)
    return crop(put_back(dy[..., None] * mask, cache), cache)


@max_pool2d.wrong("dx", "pool-argmin", options=PLAIN)
def argmin_for_argmax(dy, cache):
    """Types argmin for argmax."""
    return crop(put_back(to_the_chosen(dy, cache.windows.argmin(axis=-1), cache), cache), cache)


@max_pool2d.wrong("dx", "pool-argmin", options=PLAIN)
def argmax_of_the_negative(dy, cache):
    """Negates the windows to sort them downwards, and then takes the largest all the same."""
    order = np.argsort(-cache.windows, axis=-1)
    return crop(put_back(to_the_chosen(dy, order[..., -1], cache), cache), cache)


@max_pool2d.wrong("dx", "pool-average", options=PLAIN)
def backward_of_the_average(dy, cache):
    """Copies the backward of average pooling."""
    return crop(put_back(equal_shares(dy, cache, cache.windows.shape[-1]), cache), cache)


@max_pool2d.wrong("dx", "pool-all")
def dy_for_all(dy, cache):
    """Gives all of dy to every pixel of the window."""
    return crop(put_back(equal_shares(dy, cache, 1), cache), cache)


@max_pool2d.wrong("dx", "pool-index-order")
def index_read_by_columns(dy, cache):
    """Splits the flat index of the maximum by KH, where it must be split by KW."""
    KH, KW = cache.kernel
    kw, kh = np.divmod(cache.windows.argmax(axis=-1), KH)
    return crop(put_back(to_the_chosen(dy, kh * KW + kw, cache), cache), cache)


@max_pool2d.wrong("dx", "pool-other-sample")
def index_of_the_first_sample(dy, cache):
    """Takes the first sample's maxima for the whole batch."""
    index = cache.windows.argmax(axis=-1)
    return crop(put_back(to_the_chosen(dy, np.broadcast_to(index[0], dy.shape), cache), cache), cache)


@max_pool2d.wrong("dx", "pool-other-sample")
def index_left_over(dy, cache):
    """Takes the index that the loop over samples left over: the last sample's."""
    for n in range(len(dy)):
        index = cache.windows[n].argmax(axis=-1)
    return crop(put_back(to_the_chosen(dy, np.broadcast_to(index, dy.shape), cache), cache), cache)


@max_pool2d.wrong("dx", "col2im-overlap", options=OVERLAPPING)
def max_windows_overwrite(dy, cache):
    """Types = for += where windows overlap."""
    return crop(put_back_overwriting(to_the_chosen(dy, cache.windows.argmax(axis=-1), cache), cache), cache)


@max_pool2d.wrong("dx", "crop-off-by-one", options=PADDED)
def max_cut_off_behind(dy, cache):
    """Cuts all of the padding off at the bottom and the right."""
    return cut_off_behind(put_back(to_the_chosen(dy, cache.windows.argmax(axis=-1), cache), cache), cache)


@max_pool2d.wrong("dx", "stride-ignored", options=APART)
def max_windows_side_by_side(dy, cache):
    """Looks for window (oh, ow) at (oh KH, ow KW), although the stride is larger."""
    shares = to_the_chosen(dy, cache.windows.argmax(axis=-1), cache)
    return crop(put_back(shares, cache._replace(stride=cache.kernel)), cache)


@max_pool2d.wrong("dx", "upstream-ignored")
def mask_of_maxima_only(dy, cache):
    """Marks the maxima with 1 and forgets dy."""
    shares = to_the_chosen(np.ones_like(dy), cache.windows.argmax(axis=-1), cache)
    return crop(put_back(shares, cache), cache)


@max_pool2d.wrong("dx", "shifted", options=PLAIN)
def rows_counted_from_one(dy, cache):
    """Writes row h + 1 for row h, and loses the last."""
    dx = np.zeros(cache.x_shape)
    dx[:, :, 1:] = max_pool2d_backward(dy, cache)[:, :, :-1]
    return dx


@max_pool2d.wrong("dx", "scale-by-C")
def averaged_over_channels(dy, cache):
    """Divides by the number of channels."""
    return max_pool2d_backward(dy, cache) / dy.shape[1]


@max_pool2d.wrong("dx", "last-sample-only")
def dx_made_in_the_loop(dy, cache):
    """Makes dx anew in each turn of the loop over the batch."""
    for n in range(len(dy)):
        dx = np.zeros(cache.x_shape)
        dx[n] = max_pool2d_backward(dy, cache)[n]
    return dx


@max_pool2d.wrong("dx", "zero")
def dx_never_filled(dy, cache):
    """Collects the gradient in a flattened copy of dx, not in a view."""
    dx = np.zeros(cache.x_shape)
    flat = dx.flatten()
    flat += max_pool2d_backward(dy, cache).ravel()
    return dx


@max_pool2d.wrong_forward(options=PLAIN)
def smallest_of_the_window(x, *, kernel_size, stride=None, padding=0):
    """Takes the minimum; the backward fits it."""
    y, cache = max_pool2d_forward(-x, kernel_size=kernel_size, stride=stride, padding=padding)
    return -y, cache


@max_pool2d.wrong_forward(inputs=NEGATIVE, options=PADDED)
def padded_with_zeros(x, *, kernel_size, stride=None, padding=0):
    """Pads with zeros, which win where all pixels are negative."""
    cache = cut_windows(x, kernel_size, stride, padding, 0)
    return cache.windows.max(axis=-1), cache


@max_pool2d.wrong("dx", "pool-argmin", "sign", options=PLAIN)
def argmin_subtracted(dy, cache):
    """Takes the smallest of the negative windows, and keeps the minus."""
    return -argmin_for_argmax(dy, cache)


@max_pool2d.wrong("dx", "pool-index-order", "scale-by-N")
def index_by_columns_averaged(dy, cache):
    """Reads the index by columns, and divides by the batch size."""
    return index_read_by_columns(dy, cache) / len(dy)


@max_pool2d.wrong("dx", "pool-other-sample", "col2im-overlap", options=OVERLAPPING)
def first_sample_overwrites(dy, cache):
    """Takes the first sample's maxima for all, and types = for +=."""
    index = cache.windows.argmax(axis=-1)
    return crop(put_back_overwriting(to_the_chosen(dy, np.broadcast_to(index[0], dy.shape), cache), cache), cache)


@max_pool2d.wrong("dx", "pool-all", "crop-off-by-one", options=PADDED)
def all_and_cut_off_behind(dy, cache):
    """Gives dy to the whole window, and cuts the padding off at the bottom and the right."""
    return cut_off_behind(put_back(equal_shares(dy, cache, 1), cache), cache)


# ---- average pooling ------------------------------------------------------------------------------------------------


def avg_pool2d_forward(x, *, kernel_size, stride=None, padding=0):
    cache = cut_windows(x, kernel_size, stride, padding, 0)
    return cache.windows.mean(axis=-1), cache


def avg_pool2d_backward(dy, cache):
    return crop(put_back(equal_shares(dy, cache, cache.windows.shape[-1]), cache), cache)


avg_pool2d = Kind("avg_pool2d", avg_pool2d_forward, avg_pool2d_backward)


@avg_pool2d.wrong("dx", "scale-other", also={"pool-all"})
def not_divided(dy, cache):
    """Forgets to divide by the size of the window."""
    return crop(put_back(equal_shares(dy, cache, 1), cache), cache)


@avg_pool2d.wrong("dx", "scale-other")
def divided_by_the_width(dy, cache):
    """Divides by KW only, as if the window were one row."""
    return crop(put_back(equal_shares(dy, cache, cache.kernel[1]), cache), cache)


@avg_pool2d.wrong("dx", "col2im-overlap", options=OVERLAPPING)
def averages_overwrite(dy, cache):
    """Types = for += where windows overlap."""
    return crop(put_back_overwriting(equal_shares(dy, cache, cache.windows.shape[-1]), cache), cache)


@avg_pool2d.wrong("dx", "crop-off-by-one", options=PADDED)
def averages_cut_off_behind(dy, cache):
    """Cuts all of the padding off at the bottom and the right."""
    return cut_off_behind(put_back(equal_shares(dy, cache, cache.windows.shape[-1]), cache), cache)


@avg_pool2d.wrong("dx", "stride-ignored", options=APART)
def averages_side_by_side(dy, cache):
    """Puts window (oh, ow) at (oh KH, ow KW), although the stride is larger."""
    shares = equal_shares(dy, cache, cache.windows.shape[-1])
    return crop(put_back(shares, cache._replace(stride=cache.kernel)), cache)


@avg_pool2d.wrong("dx", "first-pixel-only")
def loop_over_the_window_missing(dy, cache):
    """Gives a share only to the first pixel of each window."""
    shares = equal_shares(dy, cache, cache.windows.shape[-1])
    shares[..., 1:] = 0
    return crop(put_back(shares, cache), cache)


@avg_pool2d.wrong("dx", "wrong-shape", options=PADDED)
def average_padding_left_on(dy, cache):
    """Returns the gradient of the padded input."""
    return put_back(equal_shares(dy, cache, cache.windows.shape[-1]), cache)


@avg_pool2d.wrong_forward()
def sum_of_the_window(x, *, kernel_size, stride=None, padding=0):
    """Sums the window and does not divide."""
    cache = cut_windows(x, kernel_size, stride, padding, 0)
    return cache.windows.sum(axis=-1), cache


@avg_pool2d.wrong("dx", "col2im-overlap", "sign", options=OVERLAPPING)
def averages_overwrite_negative(dy, cache):
    """Types =- where += belongs."""
    return -averages_overwrite(dy, cache)


@avg_pool2d.wrong("dx", "crop-off-by-one", "scale-by-N", options=PADDED)
def averages_cut_off_behind_and_averaged(dy, cache):
    """Cuts the padding off at the bottom and the right, and divides by the batch size."""
    return averages_cut_off_behind(dy, cache) / len(dy)


# ---- global average pooling -----------------------------------------------------------------------------------------


class GlobalCache(NamedTuple):
    shape: tuple


def global_avg_pool_forward(x):
    return x.mean(axis=(2, 3), keepdims=True), GlobalCache(x.shape)


def global_avg_pool_backward(dy, cache):
    N, C, H, W = cache.shape
    return np.broadcast_to(dy / (H * W), cache.shape).copy()


global_avg_pool = Kind("global_avg_pool", global_avg_pool_forward, global_avg_pool_backward)


@global_avg_pool.wrong("dx", "scale-by-HW")
def global_not_divided(dy, cache):
    """Hands dy to every pixel and forgets to divide."""
    return np.ones(cache.shape) * dy


@global_avg_pool.wrong("dx", "scale-by-N")
def divided_by_everything(dy, cache):
    """Divides by N*H*W, not by H*W."""
    N, C, H, W = cache.shape
    return np.ones(cache.shape) * dy / (N * H * W)


@global_avg_pool.wrong("dx", "scale-by-C")
def divided_by_the_channels_too(dy, cache):
    """Divides by x[0].size, which counts the channels too."""
    return np.ones(cache.shape) * dy / np.prod(cache.shape[1:])


@global_avg_pool.wrong("dx", "scale-other")
def divided_by_the_height(dy, cache):
    """Divides by H only."""
    return np.ones(cache.shape) * dy / cache.shape[2]


@global_avg_pool.wrong("dx", "first-pixel-only")
def one_pixel_filled(dy, cache):
    """Writes dx[:, :, 0, 0], where dx[:, :, :, :] belongs."""
    dx = np.zeros(cache.shape)
    dx[:, :, 0, 0] = dy[:, :, 0, 0] / (cache.shape[2] * cache.shape[3])
    return dx


@global_avg_pool.wrong("dx", "wrong-shape")
def not_spread(dy, cache):
    """Leaves dx as (N, C, 1, 1) and trusts broadcasting."""
    return dy / (cache.shape[2] * cache.shape[3])


@global_avg_pool.wrong("dx", "reshaped-not-transposed")
def tile_for_repeat(dy, cache):
    """Repeats the whole of dy H*W times, where each value must be repeated."""
    pixels = cache.shape[2] * cache.shape[3]
    return np.tile(dy.ravel() / pixels, pixels).reshape(cache.shape)


@global_avg_pool.wrong("dx", "upstream-ignored")
def share_only(dy, cache):
    """Returns 1/(H*W) everywhere."""
    return np.full(cache.shape, 1 / (cache.shape[2] * cache.shape[3]))


@global_avg_pool.wrong_forward()
def global_maximum(x):
    """Takes the maximum of each feature map."""
    return x.max(axis=(2, 3), keepdims=True), GlobalCache(x.shape)


@global_avg_pool.wrong("dx", "first-pixel-only", "scale-by-HW")
def one_pixel_gets_all(dy, cache):
    """Writes dx[:, :, 0, 0] only, and does not divide."""
    dx = np.zeros(cache.shape)
    dx[:, :, 0, 0] = dy[:, :, 0, 0]
    return dx


@global_avg_pool.wrong("dx", "reshaped-not-transposed", "scale-by-HW")
def tiled_and_not_divided(dy, cache):
    """Tiles dy where it must be repeated, and does not divide."""
    return np.tile(dy.ravel(), cache.shape[2] * cache.shape[3]).reshape(cache.shape)
