"""Operations on images: convolutions, pooling, resizing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from fastdfkd_jax.convert.graph.axis_order import CHANNELS_LAST, Laid, arranged, reshaped
from fastdfkd_jax.convert.graph.table import operation, require_steps
from fastdfkd_jax.cpu_conv import conv2d
from fastdfkd_jax.models.layers import CONVOLUTION

Array = jax.Array

# Full decomposition turns the others into the last one.
_PLANE = ("aten.conv2d.default", "aten.conv2d.padding", "aten.convolution.default")
CONVOLUTIONS = (*_PLANE, "aten.conv1d.default", "aten.conv1d.padding")
_LIES = (2, 3, 1, 0)  # stored order of a kernel's axes [O, I, h, w]


@operation("aten.conv1d.default", "aten.conv1d.padding")
def _conv1d(input: Laid, weight: Laid, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], **rest):
    """Evaluates a 1-D convolution as a 2-D one with a single row."""
    edges = padding if isinstance(padding, str) else (0, padding[0])
    two = {"stride": (1, stride[0]), "padding": edges, "dilation": (1, dilation[0])}
    image, kernel = (reshaped(value, (*value.shape[:2], 1, value.shape[2])) for value in (input, weight))
    y = _conv2d(input=image, weight=kernel, **two, **rest)
    return reshaped(y, (*y.shape[:2], y.shape[3]))


@operation(*_PLANE)
def _conv2d(
    input: Laid,
    weight: Laid,
    bias: Laid | None,
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
    form: str,
    **_: Any,  # arguments of transposed convolutions, which are refused
) -> Laid:
    if len(input.order) == 3:
        return _conv1d(input, weight, stride, padding, dilation, bias=bias, groups=groups, form=form)
    x, kernel = arranged(input, CHANNELS_LAST), arranged(weight, _LIES)
    stride, dilation = _pair(stride), _pair(dilation)
    edges = _edges(padding, [d * (size - 1) for d, size in zip(dilation, kernel.shape[:2], strict=True)])
    y = conv2d(x, kernel, stride, edges, dilation, groups, form=form)
    y = checkpoint_name(y, CONVOLUTION)
    return Laid(y if bias is None else y + bias.array, CHANNELS_LAST)


def _edges(padding: Sequence[int] | str, reach: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the zeros before and after each axis; `reach` is a kernel's total extent beyond a pixel on both sides."""
    if isinstance(padding, str):
        rows, columns = ((far // 2, far - far // 2) if padding == "same" else (0, 0) for far in reach)
    else:
        rows, columns = ((p, p) for p in _pair(padding))
    return rows, columns


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1])


@operation("aten.adaptive_avg_pool2d.default", "aten._adaptive_avg_pool2d.default")
def _adaptive_average(self: Laid, output_size: Sequence[int]) -> Laid:
    """Averages each output's window; windows may overlap if the sizes do not divide."""
    x = arranged(self, CHANNELS_LAST)
    for axis, outputs in zip((1, 2), _pair(output_size), strict=True):
        size = x.shape[axis]
        require_steps(outputs)
        if size % outputs == 0:
            x = x.reshape(*x.shape[:axis], outputs, size // outputs, *x.shape[axis + 1 :]).mean(axis + 1)
            continue
        parts = []
        for i in range(outputs):
            start, stop = i * size // outputs, -(-(i + 1) * size // outputs)
            parts.append(lax.slice_in_dim(x, start, stop, axis=axis).mean(axis, keepdims=True))
        x = jnp.concatenate(parts, axis)
    return Laid(x, CHANNELS_LAST)


@operation("aten.avg_pool2d.default")
def _average_pool(
    self: Laid,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Laid:
    x = arranged(self, CHANNELS_LAST)
    total, spans = _windows(x, kernel_size, stride, padding, (1, 1), ceil_mode, jnp.add, 0.0)
    if divisor_override:
        return Laid(total / divisor_override, CHANNELS_LAST)
    counts = []
    for size, pad, span in zip(x.shape[1:3], _pair(padding), spans, strict=True):
        # Padding counts if requested; rows added by rounding the number of windows up never count.
        low, high = (-pad, size + pad) if count_include_pad else (0, size)
        counts.append(jnp.array([max(min(stop, high) - max(start, low), 1) for start, stop in span], x.dtype))
    return Laid(total / (counts[0][:, None] * counts[1])[:, :, None], CHANNELS_LAST)


@operation("aten.max_pool2d.default")
def _max_pool(
    self: Laid,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Laid:
    x = arranged(self, CHANNELS_LAST)
    return Laid(
        _windows(x, kernel_size, stride, padding, _pair(dilation), ceil_mode, jnp.maximum, -jnp.inf)[0], CHANNELS_LAST
    )


@operation("aten.max_pool2d_with_indices.default")
def _max_pool_with_indices(**arguments: Any) -> tuple[Laid, None]:
    """Returns no indices, because only the operation's own gradient uses them."""
    return _max_pool(**arguments), None


def _windows(x, kernel_size, stride, padding, dilation, ceil_mode, reduce, nothing):
    """Reduces windows of NHWC slice by slice, axis by axis; returns also [start, stop) of every window on both axes.

    It works pairwise, because the gradient of XLA's windowed maximum is 17 times slower on CPU.
    """
    spans = []
    stride = stride or kernel_size
    for axis, size, step, pad, apart in zip(
        (1, 2), _pair(kernel_size), _pair(stride), _pair(padding), _pair(dilation), strict=True
    ):
        length, reach = x.shape[axis], apart * (size - 1) + 1
        room = length + 2 * pad - reach
        windows = (-(-room // step) if ceil_mode else room // step) + 1
        if ceil_mode and (windows - 1) * step >= length + pad:
            windows -= 1  # a window must not begin in the padding at the end
        behind = max(0, (windows - 1) * step + reach - length - pad)
        require_steps(max(size, windows))
        edges = [(0, 0)] * x.ndim
        edges[axis] = (pad, behind)
        padded = jnp.pad(x, edges, constant_values=nothing)
        taps = [
            lax.slice_in_dim(padded, apart * tap, apart * tap + step * (windows - 1) + 1, stride=step, axis=axis)
            for tap in range(size)
        ]
        x = taps[0]
        for tap in taps[1:]:
            x = reduce(x, tap)
        spans.append([(i * step - pad, i * step - pad + reach) for i in range(windows)])
    return x, spans


@operation("aten.upsample_nearest2d.vec")
def _nearest(input: Laid, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None) -> Laid:
    x = arranged(input, CHANNELS_LAST)
    for axis, size, scale in _resized(x, output_size, scale_factors):
        old = x.shape[axis]
        at = jnp.minimum(jnp.floor(jnp.arange(size) * scale).astype(int), old - 1)
        x = x.repeat(size // old, axis) if scale * size == old and size % old == 0 else x.take(at, axis)
    return Laid(x, CHANNELS_LAST)


@operation("aten.upsample_bilinear2d.vec")
def _bilinear(
    input: Laid, output_size: Sequence[int] | None, align_corners: bool, scale_factors: Sequence[float] | None
) -> Laid:
    """Resizes by a product with a matrix of at most two weights per row on either axis."""
    x = arranged(input, CHANNELS_LAST)
    for axis, size, scale in _resized(x, output_size, scale_factors):
        old = x.shape[axis]
        steps = jnp.arange(size)
        if align_corners:
            at = steps * ((old - 1) / max(size - 1, 1))
        else:
            at = jnp.maximum((steps + 0.5) * scale - 0.5, 0)
        low = jnp.minimum(jnp.floor(at).astype(int), old - 1)
        high, part = jnp.minimum(low + 1, old - 1), at - low
        weights = (1 - part)[:, None] * jax.nn.one_hot(low, old) + part[:, None] * jax.nn.one_hot(high, old)
        x = jnp.moveaxis(jnp.tensordot(weights.astype(x.dtype), x, (1, axis)), 0, axis)
    return Laid(x, CHANNELS_LAST)


def _resized(
    x: Array, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None
) -> Iterator[tuple[int, int, float]]:
    """Returns axis, new size and old pixels per new pixel, which follows the scale factor if one is given."""
    for i, axis in enumerate((1, 2)):
        old = x.shape[axis]
        if output_size:
            yield axis, output_size[i], old / output_size[i]
        elif scale_factors:
            yield axis, math.floor(old * scale_factors[i]), 1 / scale_factors[i]
