"""Convolutions gone wrong."""

from typing import NamedTuple

import numpy as np

from mistakes import Kind, pair


class Cache(NamedTuple):
    x_shape: tuple
    x_padded: np.ndarray  # (N, C, H + 2 PH, W + 2 PW)
    w: np.ndarray  # (O, C, KH, KW)
    windows: np.ndarray | None  # (N, OH, OW, C, KH, KW), what each output pixel sees
    stride: tuple
    padding: tuple
    dilation: tuple


# ---- the right pieces -----------------------------------------------------------------------------------------------


def taps(cache, OH, OW):
    """Each tap (kh, kw) of the kernel, with the rows and columns of the padded input that the outputs meet there."""
    (SH, SW), (DH, DW) = cache.stride, cache.dilation
    for kh, kw in np.ndindex(cache.w.shape[2:]):
        h, w = kh * DH, kw * DW
        yield kh, kw, slice(h, h + (OH - 1) * SH + 1, SH), slice(w, w + (OW - 1) * SW + 1, SW)


def unfold(cache, OH, OW):
    N, C = cache.x_shape[:2]
    windows = np.empty((N, OH, OW, C, *cache.w.shape[2:]))
    for kh, kw, rows, columns in taps(cache, OH, OW):
        windows[..., kh, kw] = cache.x_padded[:, :, rows, columns].transpose(0, 2, 3, 1)
    return windows


def fold(dwindows, cache):
    """The way back from unfold: (N, OH, OW, C, KH, KW) -> (N, C, H + 2 PH, W + 2 PW)."""
    dx_padded = np.zeros_like(cache.x_padded)
    for kh, kw, rows, columns in taps(cache, *dwindows.shape[1:3]):
        dx_padded[:, :, rows, columns] += dwindows[..., kh, kw].transpose(0, 3, 1, 2)
    return dx_padded


def crop(dx_padded, cache):
    (PH, PW), (H, W) = cache.padding, cache.x_shape[2:]
    return dx_padded[:, :, PH : PH + H, PW : PW + W]


def output_size(cache):
    KH, KW = cache.w.shape[2:]
    H, W = cache.x_padded.shape[2:]
    (SH, SW), (DH, DW) = cache.stride, cache.dilation
    return (H - DH * (KH - 1) - 1) // SH + 1, (W - DW * (KW - 1) - 1) // SW + 1


def conv2d_forward(x, w, b, *, stride=1, padding=0, dilation=1):
    PH, PW = pair(padding)
    x_padded = np.pad(x, ((0, 0), (0, 0), (PH, PH), (PW, PW)))
    cache = Cache(x.shape, x_padded, w, None, pair(stride), (PH, PW), pair(dilation))
    windows = unfold(cache, *output_size(cache))
    y = np.einsum("npqckl,ockl->nopq", windows, w) + b[:, None, None]
    return y, cache._replace(windows=windows)


def input_gradient(dy, cache):
    return crop(fold(window_gradient(dy, cache.w), cache), cache)


def window_gradient(dy, w):
    return np.einsum("nopq,ockl->npqckl", dy, w)


def weight_gradient(dy, cache):
    return np.einsum("nopq,npqckl->ockl", dy, cache.windows)


def conv2d_backward(dy, cache):
    return input_gradient(dy, cache), weight_gradient(dy, cache), dy.sum(axis=(0, 2, 3))


conv2d = Kind("conv2d", conv2d_forward, conv2d_backward)


def drawn(*shapes):
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal(shape) for shape in shapes)


SQUARE_KERNEL = drawn((2, 3, 6, 7), (5, 3, 4, 4), (5,))  # KH = KW, or transposing would not even run
AS_MANY_OUT_AS_IN = drawn((2, 3, 6, 7), (3, 3, 4, 2), (3,))
TALL_KERNEL = drawn((2, 3, 6, 7), (5, 3, 4, 2), (5,))  # of two rows, flipped and shifted are the same
PADDED = {"padding": 1}
STRIDED = {"stride": 2}
OVERLAPPING = {"stride": 1}


# ---- dx -------------------------------------------------------------------------------------------------------------


@conv2d.wrong("dx", "sign")
def windows_subtracted(dy, cache):
    """Types -= for += where the windows are put back."""
    dx_padded = np.zeros_like(cache.x_padded)
    dwindows = window_gradient(dy, cache.w)
    for kh, kw, rows, columns in taps(cache, *dy.shape[2:]):
        dx_padded[:, :, rows, columns] -= dwindows[..., kh, kw].transpose(0, 3, 1, 2)
    return crop(dx_padded, cache)


@conv2d.wrong("dx", "zero")
def filled_a_copy(dy, cache):
    """Adds the windows up in a padded copy of dx and returns dx itself."""
    dx = np.zeros(cache.x_shape)
    PH, PW = cache.padding
    dx_padded = np.pad(dx, ((0, 0), (0, 0), (PH, PH), (PW, PW)))
    dx_padded += fold(window_gradient(dy, cache.w), cache)
    return dx


@conv2d.wrong("dx", "col2im-overlap", options=OVERLAPPING)
def taps_overwrite(dy, cache):
    """Types = for += in the loop over the kernel's taps."""
    dx_padded = np.zeros_like(cache.x_padded)
    dwindows = window_gradient(dy, cache.w)
    for kh, kw, rows, columns in taps(cache, *dy.shape[2:]):
        dx_padded[:, :, rows, columns] = dwindows[..., kh, kw].transpose(0, 3, 1, 2)
    return crop(dx_padded, cache)


@conv2d.wrong("dx", "col2im-overlap", options=OVERLAPPING)
def columns_overwrite(dy, cache):
    """Adds up the kernel's rows, and types = for += in the loop over its columns."""
    dx_padded = np.zeros_like(cache.x_padded)
    dwindows = window_gradient(dy, cache.w)
    for kh in range(cache.w.shape[2]):
        strip = np.zeros_like(cache.x_padded)
        for other, kw, rows, columns in taps(cache, *dy.shape[2:]):
            if other == kh:
                strip[:, :, rows, columns] = dwindows[..., kh, kw].transpose(0, 3, 1, 2)
        dx_padded += strip
    return crop(dx_padded, cache)


@conv2d.wrong("dx", "col2im-overlap", options=OVERLAPPING)
def rows_overwrite(dy, cache):
    """Adds up the kernel's columns, and types = for += in the loop over its rows."""
    dx_padded = np.zeros_like(cache.x_padded)
    dwindows = window_gradient(dy, cache.w)
    for kh in range(cache.w.shape[2]):
        strip = np.zeros_like(cache.x_padded)
        for other, kw, rows, columns in taps(cache, *dy.shape[2:]):
            if other == kh:
                strip[:, :, rows, columns] += dwindows[..., kh, kw].transpose(0, 3, 1, 2)
                last = rows
        dx_padded[:, :, last] = strip[:, :, last]
    return crop(dx_padded, cache)


@conv2d.wrong("dx", "col2im-overlap", options=OVERLAPPING)
def windows_overwrite(dy, cache):
    """Types = for += in the loop over the output pixels."""
    dx_padded = np.zeros_like(cache.x_padded)
    KH, KW = cache.w.shape[2:]
    (SH, SW), (DH, DW) = cache.stride, cache.dilation
    for oh, ow in np.ndindex(dy.shape[2:]):
        rows = slice(oh * SH, oh * SH + (KH - 1) * DH + 1, DH)
        columns = slice(ow * SW, ow * SW + (KW - 1) * DW + 1, DW)
        dx_padded[:, :, rows, columns] = np.einsum("no,ockl->nckl", dy[:, :, oh, ow], cache.w)
    return crop(dx_padded, cache)


@conv2d.wrong("dx", "crop-off-by-one", options=PADDED)
def padding_cut_off_behind(dy, cache):
    """Cuts all of the padding off at the bottom and the right."""
    H, W = cache.x_shape[2:]
    return fold(window_gradient(dy, cache.w), cache)[:, :, :H, :W]


@conv2d.wrong("dx", "crop-off-by-one", options=PADDED)
def padding_cut_off_in_front(dy, cache):
    """Cuts all of the padding off at the top and the left."""
    H, W = cache.x_shape[2:]
    return fold(window_gradient(dy, cache.w), cache)[:, :, -H:, -W:]


@conv2d.wrong("dx", "crop-off-by-one", options={"padding": 2})
def cut_starts_one_early(dy, cache):
    """Starts to cut at P - 1, having counted from one."""
    (PH, PW), (H, W) = cache.padding, cache.x_shape[2:]
    return fold(window_gradient(dy, cache.w), cache)[:, :, PH - 1 : PH - 1 + H, PW - 1 : PW - 1 + W]


@conv2d.wrong("dx", "wrong-shape", options=PADDED)
def padding_left_on(dy, cache):
    """Returns the gradient of the padded input."""
    return fold(window_gradient(dy, cache.w), cache)


@conv2d.wrong("dx", "kernel-flipped")
def kernel_not_turned(dy, cache):
    """Correlates the padded dy with the kernel as it is, where the full convolution wants it turned by 180 degrees."""
    return crop(fold(window_gradient(dy, cache.w[:, :, ::-1, ::-1]), cache), cache)


@conv2d.wrong("dx", "kernel-transposed", inputs=SQUARE_KERNEL)
def kernel_rows_and_columns_swapped(dy, cache):
    """Indexes w[o, c, kw, kh]."""
    return crop(fold(window_gradient(dy, cache.w.swapaxes(2, 3)), cache), cache)


@conv2d.wrong("dx", "kernel-transposed", inputs=AS_MANY_OUT_AS_IN)
def kernel_in_and_out_swapped(dy, cache):
    """Swaps the kernel's output and input channels once too often."""
    return crop(fold(window_gradient(dy, cache.w.swapaxes(0, 1)), cache), cache)


@conv2d.wrong("dx", "stride-ignored", options=STRIDED)
def windows_put_side_by_side(dy, cache):
    """Puts window (oh, ow) back at pixel (oh, ow), not at (oh SH, ow SW)."""
    return crop(fold(window_gradient(dy, cache.w), cache._replace(stride=(1, 1))), cache)


@conv2d.wrong("dx", "unexplained", options={"dilation": 2})
def dilation_forgotten(dy, cache):
    """Puts the taps back next to each other, whatever the dilation."""
    return crop(fold(window_gradient(dy, cache.w), cache._replace(dilation=(1, 1))), cache)


@conv2d.wrong("dx", "reshaped-not-transposed")
def columns_reshaped_on_the_way_back(dy, cache):
    """Reshapes dcols (C, KH, KW, N, OH, OW) to windows (N, OH, OW, C, KH, KW), where it must transpose."""
    dcols = np.einsum("nopq,ockl->cklnpq", dy, cache.w)
    return crop(fold(dcols.reshape(cache.windows.shape), cache), cache)


@conv2d.wrong("dx", "shifted")
def one_pixel_to_the_right(dy, cache):
    """Counts columns from one, so that all of dx lands one pixel to the right."""
    dx = np.zeros(cache.x_shape)
    dx[:, :, :, 1:] = input_gradient(dy, cache)[:, :, :, :-1]
    return dx


@conv2d.wrong("dx", "scale-other")
def divided_by_the_kernel_area(dy, cache):
    """Divides by KH*KW, as average pooling would."""
    KH, KW = cache.w.shape[2:]
    return input_gradient(dy, cache) / (KH * KW)


@conv2d.wrong("dx", "not-linear")
def gradient_normalised(dy, cache):
    """Divides dx by its own norm, against exploding gradients."""
    dx = input_gradient(dy, cache)
    return dx / (np.linalg.norm(dx) + 1e-8)


@conv2d.wrong("dx", "last-sample-only")
def loop_variable_left_over(dy, cache):
    """Fills dx[n] after the loop over n has ended."""
    dx = np.zeros(cache.x_shape)
    for n in range(len(dy)):
        dx_n = input_gradient(dy, cache)[n]
    dx[n] = dx_n
    return dx


# ---- dw -------------------------------------------------------------------------------------------------------------


@conv2d.wrong("dw", "scale-by-N")
def averaged_over_the_batch(dy, cache):
    """Averages dw over the batch, though the loss did that already."""
    return weight_gradient(dy, cache) / len(dy)


@conv2d.wrong("dw", "scale-by-HW")
def averaged_over_the_pixels(dy, cache):
    """Divides dw by the number of output pixels, since the kernel is shared by them."""
    return weight_gradient(dy, cache) / (dy.shape[2] * dy.shape[3])


@conv2d.wrong("dw", "factor-2")
def first_tap_outside_the_loop(dy, cache):
    """Computes dw before the loop over the kernel, and adds all of it again in the loop."""
    dw = weight_gradient(dy, cache)
    for kh, kw in np.ndindex(dw.shape[2:]):
        dw[:, :, kh, kw] += np.einsum("nopq,npqc->oc", dy, cache.windows[..., kh, kw])
    return dw


@conv2d.wrong("dw", "zero")
def sum_not_assigned(dy, cache):
    """Writes dw + term on a line of its own and never assigns it."""
    dw = np.zeros_like(cache.w)
    for n in range(len(dy)):
        dw + np.einsum("opq,pqckl->ockl", dy[n], cache.windows[n])
    return dw


@conv2d.wrong("dw", "last-sample-only")
def batch_overwrites(dy, cache):
    """Types dw = for dw += in the loop over the batch."""
    for n in range(len(dy)):
        dw = np.einsum("opq,pqckl->ockl", dy[n], cache.windows[n])
    return dw


@conv2d.wrong("dw", "first-pixel-only")
def returns_inside_the_loop(dy, cache):
    """Indents the return too far, so that the loop over output pixels ends with the first."""
    dw = np.zeros_like(cache.w)
    for oh, ow in np.ndindex(dy.shape[2:]):
        dw += np.einsum("no,nckl->ockl", dy[:, :, oh, ow], cache.windows[:, oh, ow])
        return dw


@conv2d.wrong("dw", "kernel-flipped", also={"flipped"})
def kernel_turned(dy, cache):
    """Turns dw by 180 degrees, having read that a convolution flips its kernel."""
    return weight_gradient(dy, cache)[:, :, ::-1, ::-1]


@conv2d.wrong("dw", "flipped", inputs=TALL_KERNEL)
def first_row_last(dy, cache):
    """Walks the kernel's rows from the last to the first and appends."""
    rows = []
    for kh in reversed(range(cache.w.shape[2])):
        rows.append(np.einsum("nopq,npqcl->ocl", dy, cache.windows[..., kh, :]))
    return np.stack(rows, axis=2)


@conv2d.wrong("dw", "kernel-transposed", inputs=SQUARE_KERNEL, also={"transposed"})
def written_column_first(dy, cache):
    """Writes tap (kh, kw) to dw[:, :, kw, kh]."""
    dw = np.empty_like(cache.w)
    for kh, kw in np.ndindex(dw.shape[2:]):
        dw[:, :, kw, kh] = np.einsum("nopq,npqc->oc", dy, cache.windows[..., kh, kw])
    return dw


@conv2d.wrong("dw", "shifted", inputs=TALL_KERNEL)
def written_one_row_up(dy, cache):
    """Writes row kh to row kh - 1, so that the first wraps round to the last."""
    dw = np.empty_like(cache.w)
    for kh in range(dw.shape[2]):
        dw[:, :, kh - 1] = np.einsum("nopq,npqcl->ocl", dy, cache.windows[..., kh, :])
    return dw


@conv2d.wrong("dw", "stride-ignored", options=STRIDED)
def windows_read_side_by_side(dy, cache):
    """Reads the window of output (oh, ow) at pixel (oh, ow) of the input."""
    windows = unfold(cache._replace(stride=(1, 1)), *dy.shape[2:])
    return weight_gradient(dy, cache._replace(windows=windows))


@conv2d.wrong("dw", "transposed")
def in_channels_first(dy, cache):
    """Multiplies the other way round and returns dw as (C, O, KH, KW)."""
    return np.einsum("npqckl,nopq->cokl", cache.windows, dy)


@conv2d.wrong("dw", "reshaped-not-transposed")
def product_reshaped(dy, cache):
    """Reshapes cols.T @ dy, a (C*KH*KW, O) matrix, to (O, C, KH, KW) without transposing it."""
    cols = cache.windows.reshape(-1, cache.w[0].size)
    dy_matrix = dy.transpose(0, 2, 3, 1).reshape(-1, len(cache.w))
    return (cols.T @ dy_matrix).reshape(cache.w.shape)


@conv2d.wrong("dw", "reshaped-not-transposed")
def upstream_reshaped(dy, cache):
    """Reshapes dy from (N, O, OH, OW) to (O, N*OH*OW) without moving the channels to the front."""
    cols = cache.windows.reshape(-1, cache.w[0].size)
    return (dy.reshape(len(cache.w), -1) @ cols).reshape(cache.w.shape)


@conv2d.wrong("dw", "wrong-shape")
def left_as_a_matrix(dy, cache):
    """Returns dw as the (O, C*KH*KW) matrix of the product."""
    return weight_gradient(dy, cache).reshape(len(cache.w), -1)


@conv2d.wrong("dw", "upstream-ignored")
def windows_only(dy, cache):
    """Sums the windows that a weight has met, without dy."""
    return np.broadcast_to(cache.windows.sum(axis=(0, 1, 2)), cache.w.shape)


@conv2d.wrong("dw", "not-linear")
def upstream_twice(dy, cache):
    """Multiplies by dy once in the loop over windows and once more in the product."""
    weighted = cache.windows * dy.sum(axis=1)[..., None, None, None]
    return weight_gradient(dy, cache._replace(windows=weighted))


# ---- db -------------------------------------------------------------------------------------------------------------


@conv2d.wrong("db", "scale-by-N")
def bias_averaged_over_the_batch(dy, cache):
    """Takes the mean over the batch and the sum over the pixels."""
    return dy.mean(axis=0).sum(axis=(1, 2))


@conv2d.wrong("db", "scale-by-HW")
def bias_averaged_over_the_pixels(dy, cache):
    """Takes the mean over the pixels and the sum over the batch."""
    return dy.mean(axis=(2, 3)).sum(axis=0)


@conv2d.wrong("db", "scale-by-NHW")
def bias_averaged(dy, cache):
    """Takes the mean of dy for its sum."""
    return dy.mean(axis=(0, 2, 3))


@conv2d.wrong("db", "missing-sum")
def bias_of_a_linear_layer(dy, cache):
    """Sums over the batch only, as in a linear layer."""
    return dy.sum(axis=0)


@conv2d.wrong("db", "last-sample-only")
def bias_batch_overwrites(dy, cache):
    """Types db = for db += in the loop over the batch."""
    for n in range(len(dy)):
        db = dy[n].sum(axis=(1, 2))
    return db


@conv2d.wrong("db", "first-pixel-only")
def bias_of_the_first_pixel(dy, cache):
    """Reads dy[:, :, 0, 0] where the sum over the pixels belongs."""
    return dy[:, :, 0, 0].sum(axis=0)


@conv2d.wrong("db", "wrong-shape")
def bias_keeps_its_axes(dy, cache):
    """Leaves keepdims=True on, so that db is (1, O, 1, 1)."""
    return dy.sum(axis=(0, 2, 3), keepdims=True)


@conv2d.wrong("db", "upstream-ignored")
def bias_counts(dy, cache):
    """Returns how often the bias was added, as if dy were all ones."""
    return np.full(dy.shape[1], dy.size / dy.shape[1])


# ---- the forward ----------------------------------------------------------------------------------------------------


@conv2d.wrong_forward()
def bias_forgotten(x, w, b, *, stride=1, padding=0, dilation=1):
    """Never adds the bias."""
    return conv2d_forward(x, w, 0 * b, stride=stride, padding=padding, dilation=dilation)


def backward_of_the_flipped(dy, cache):
    dx, dw, db = conv2d_backward(dy, cache)
    return dx, dw[:, :, ::-1, ::-1], db


@conv2d.wrong_forward(backward=backward_of_the_flipped)
def true_convolution(x, w, b, *, stride=1, padding=0, dilation=1):
    """Flips the kernel, as convolutions do outside of deep learning; the backward fits it."""
    return conv2d_forward(x, w[:, :, ::-1, ::-1], b, stride=stride, padding=padding, dilation=dilation)


@conv2d.wrong_forward(options=STRIDED)
def stride_forgotten_in_reading(x, w, b, *, stride=1, padding=0, dilation=1):
    """Makes the output as small as the stride says, but reads the windows side by side; the backward fits it."""
    y, cache = conv2d_forward(x, w, b, stride=stride, padding=padding, dilation=dilation)
    cache = cache._replace(stride=(1, 1))
    cache = cache._replace(windows=unfold(cache, *y.shape[2:]))
    return np.einsum("npqckl,ockl->nopq", cache.windows, w) + b[:, None, None], cache


# ---- two at once ----------------------------------------------------------------------------------------------------


@conv2d.wrong("dx", "kernel-flipped", "sign")
def not_turned_and_subtracted(dy, cache):
    """Does not turn the kernel, and subtracts."""
    return -crop(fold(window_gradient(dy, cache.w[:, :, ::-1, ::-1]), cache), cache)


@conv2d.wrong("dx", "col2im-overlap", "scale-by-N", options=OVERLAPPING)
def taps_overwrite_an_average(dy, cache):
    """Types = for +=, and averages over the batch."""
    return taps_overwrite(dy, cache) / len(dy)


@conv2d.wrong("dx", "crop-off-by-one", "kernel-flipped", options=PADDED)
def not_turned_and_cut_off_behind(dy, cache):
    """Does not turn the kernel, and cuts the padding off at the bottom and the right."""
    H, W = cache.x_shape[2:]
    return fold(window_gradient(dy, cache.w[:, :, ::-1, ::-1]), cache)[:, :, :H, :W]


@conv2d.wrong("dx", "crop-off-by-one", "col2im-overlap", options={"stride": 1, "padding": 1})
def overwritten_and_cut_off_behind(dy, cache):
    """Types = for +=, and cuts the padding off at the bottom and the right."""
    H, W = cache.x_shape[2:]
    dx_padded = np.zeros_like(cache.x_padded)
    dwindows = window_gradient(dy, cache.w)
    for kh, kw, rows, columns in taps(cache, *dy.shape[2:]):
        dx_padded[:, :, rows, columns] = dwindows[..., kh, kw].transpose(0, 3, 1, 2)
    return dx_padded[:, :, :H, :W]


@conv2d.wrong("dx", "stride-ignored", "factor-2", options=STRIDED)
def side_by_side_and_twice(dy, cache):
    """Puts windows back side by side, and multiplies by the 2 of a squared error."""
    return 2 * windows_put_side_by_side(dy, cache)


@conv2d.wrong("dx", "stride-ignored", "kernel-flipped", options=STRIDED)
def side_by_side_and_not_turned(dy, cache):
    """Puts windows back side by side, each with the kernel flipped."""
    return crop(fold(window_gradient(dy, cache.w[:, :, ::-1, ::-1]), cache._replace(stride=(1, 1))), cache)


@conv2d.wrong("dw", "scale-by-N", "flipped", inputs=TALL_KERNEL)
def first_row_last_averaged(dy, cache):
    """Stacks the kernel's rows from the last to the first, and averages over the batch."""
    return first_row_last(dy, cache) / len(dy)


@conv2d.wrong("dw", "stride-ignored", "scale-by-N", options=STRIDED)
def side_by_side_averaged(dy, cache):
    """Reads the windows side by side, and averages over the batch."""
    return windows_read_side_by_side(dy, cache) / len(dy)


@conv2d.wrong("dw", "last-sample-only", "sign")
def last_sample_subtracted(dy, cache):
    """Types dw = - for dw += in the loop over the batch."""
    for n in range(len(dy)):
        dw = -np.einsum("opq,pqckl->ockl", dy[n], cache.windows[n])
    return dw


@conv2d.wrong("dw", "reshaped-not-transposed", "scale-by-HW")
def reshaped_and_averaged(dy, cache):
    """Reshapes the product without transposing it, and divides by the output pixels."""
    return product_reshaped(dy, cache) / (dy.shape[2] * dy.shape[3])


@conv2d.wrong("db", "last-sample-only", "scale-by-HW")
def bias_of_the_last_mean(dy, cache):
    """Types db = for db += in the loop over the batch, and takes the mean over the pixels."""
    for n in range(len(dy)):
        db = dy[n].mean(axis=(1, 2))
    return db


@conv2d.wrong("dx db", "kernel-flipped", "scale-by-NHW")
def not_turned_and_bias_averaged(dy, cache):
    """Does not turn the kernel for dx, and takes the mean of dy for db."""
    return kernel_not_turned(dy, cache), dy.mean(axis=(0, 2, 3))


@conv2d.wrong("dx dw", "col2im-overlap", "last-sample-only", options=OVERLAPPING)
def overwrites_both(dy, cache):
    """Types = for += twice: for dx in the loop over the taps, for dw in the loop over the batch."""
    return taps_overwrite(dy, cache), batch_overwrites(dy, cache)
