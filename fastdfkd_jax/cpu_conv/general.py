"""Convolutions of any stride, padding, dilation and groups, with gradients in forms that XLA compiles well on CPU.

XLA's own gradients of these are many times slower inside a `while` body on CPU (docs/performance.md), and its grouped
convolutions are always slow on CPU. Every array is NHWC, every kernel HWIO. `custom_vjp` does not support forward mode.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from fastdfkd_jax.cpu_conv import chunks
from fastdfkd_jax.cpu_conv.square import square_conv

Array = jax.Array
Pair = tuple[int, int]
Edges = tuple[Pair, Pair]

_WIDE, _MOST = 32, 8  # channels of a merged group for the faster library, and most merged groups


def general_conv(
    x: Array, kernel: Array, stride: Pair, edges: Edges, dilation: Pair = (1, 1), groups: int = 1
) -> Array:
    """Applies a 2-D convolution.

    Args:
      x: f32[B, H, W, I].
      kernel: f32[h, w, I / groups, O].
      stride, dilation: those of rows and of columns.
      edges: zeros before and after the rows and the columns.
      groups: number of groups of the input and output channels.

    Returns:
      f32[B, H', W', O].
    """
    if groups == 1:
        square = stride[0] == stride[1] and kernel.shape[0] == kernel.shape[1]
        if square and dilation == (1, 1) and len({*edges[0], *edges[1]}) == 1:
            y: Array = square_conv(x, kernel, stride[0], edges[0][0])
        else:
            y = uneven_conv(x, kernel, stride, edges, dilation)
        return y
    if groups == x.shape[-1] == kernel.shape[-1]:
        y = depthwise_conv(jnp.pad(x, ((0, 0), *edges, (0, 0))), kernel[:, :, 0], stride, dilation)
        return y
    blocks = merged_groups(kernel, groups)
    parts = jnp.split(x, len(blocks), axis=-1)
    return jnp.concatenate(
        [general_conv(part, block, stride, edges, dilation) for part, block in zip(parts, blocks, strict=True)], -1
    )


def merged_groups(kernel: Array, groups: int) -> list[Array]:
    """Merges a grouped kernel [h, w, i, groups o] into a few wider ones, with zeros between the merged groups.

    Most of their products are with zeros, but they take a fraction of the time of narrow groups on CPU.
    """
    height, width, inputs, outputs = kernel.shape
    united = next(
        m
        for m in range(1, groups + 1)
        if groups % m == 0 and (m == groups or (inputs * m >= _WIDE and groups // m <= _MOST))
    )
    own = kernel.reshape(height, width, inputs, groups // united, united, -1)
    wide = jnp.einsum("hwinmo,mt->nhwtimo", own, jnp.eye(united, dtype=kernel.dtype))
    return list(wide.reshape(groups // united, height, width, united * inputs, united * (outputs // groups)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def uneven_conv(x: Array, kernel: Array, stride: Pair, edges: Edges, dilation: Pair) -> Array:
    """Applies `general_conv` with one group, with gradients as a sum of matrix products, one per tap."""
    return lax.conv_general_dilated(
        x, kernel, stride, edges, rhs_dilation=dilation, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _sum_of_products(x: Array, kernel: Array, stride: Pair, edges: Edges, dilation: Pair) -> Array:
    padded = jnp.pad(x, ((0, 0), *edges, (0, 0)))
    return sum(
        (part @ kernel[i, j] for i, j, part in _taps(padded, kernel.shape[:2], stride, dilation)),
        jnp.zeros((), x.dtype),
    )


def _uneven_forward(x, kernel, stride, edges, dilation):
    return uneven_conv(x, kernel, stride, edges, dilation), (x, kernel)


def _uneven_backward(stride, edges, dilation, residuals, dy):
    _, gradients = jax.vjp(lambda x, kernel: _sum_of_products(x, kernel, stride, edges, dilation), *residuals)
    return gradients(dy)


uneven_conv.defvjp(_uneven_forward, _uneven_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: Array, kernel: Array, stride: Pair, dilation: Pair) -> Array:
    """Filters every channel separately, without padding, by shifted multiply-adds that XLA fuses into one loop.

    Args:
      x: f32[B, H, W, C].
      kernel: f32[h, w, C].
      stride, dilation: those of rows and of columns.

      Returns:
        f32[B, H', W', C].
    """
    taps = _taps(x, kernel.shape[:2], stride, dilation)
    return sum((part * kernel[i, j] for i, j, part in taps), jnp.zeros((), x.dtype))


def _depthwise_forward(x, kernel, stride, dilation):
    return depthwise_conv(x, kernel, stride, dilation), (x, kernel)


def _depthwise_backward(stride, dilation, residuals, dy):
    x, kernel = residuals
    # The extent of the kernel; rows beyond it were in no window.
    reach = [d * (size - 1) for d, size in zip(dilation, kernel.shape[:2], strict=True)]
    edges = [
        (far, x.shape[axis] - 1 - step * (dy.shape[axis] - 1), step - 1)
        for axis, far, step in zip((1, 2), reach, stride, strict=True)
    ]
    spread = lax.pad(dy, jnp.zeros((), dy.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    dx = depthwise_conv(spread, jnp.flip(kernel, (0, 1)), (1, 1), dilation)
    return dx, _depthwise_kernel_gradient(x, dy, kernel.shape[:2], stride, dilation)


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)


def _depthwise_kernel_gradient(x: Array, dy: Array, size: tuple[int, ...], stride: Pair, dilation: Pair) -> Array:
    """Sums image by image, rows before columns, because XLA sums the first of three axes several times faster."""
    windows = [window for _, _, window in _windows(x.shape[1:3], size, stride, dilation)]

    def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        image, d_image = (
            a.astype(jnp.promote_types(a.dtype, jnp.float32)).swapaxes(0, 1) for a in pair
        )  # rows, groups, columns, channels
        d_image = d_image.reshape(len(d_image), *total.shape[1:])
        products = [(image[rows, :, columns].reshape(d_image.shape) * d_image).sum(0) for rows, columns in windows]
        return total + jnp.stack(products), None

    images, d_images = chunks.image_by_image(x), chunks.image_by_image(dy)
    _, groups, _, columns, channels = d_images.shape
    start = jnp.zeros((len(windows), groups * columns, channels), jnp.promote_types(dy.dtype, jnp.float32))
    total, _ = lax.scan(add, start, (images, d_images))
    return total.sum(1).reshape(*size, -1).astype(x.dtype)


def _taps(x: Array, size: tuple[int, ...], stride: Pair, dilation: Pair) -> Iterator[tuple[int, int, Array]]:
    """Yields the part of x that every tap of a kernel of this size meets, [B, H', W', C]."""
    for i, j, (rows, columns) in _windows(x.shape[1:3], size, stride, dilation):
        yield i, j, x[:, rows, columns]


def _windows(
    lengths: tuple[int, ...], size: tuple[int, ...], stride: Pair, dilation: Pair
) -> Iterator[tuple[int, int, tuple[slice, slice]]]:
    """Yields the rows and columns that every tap of a kernel of this size meets in an image of these lengths."""
    last = [
        (length - far * (taps - 1) - 1) // step * step
        for length, taps, step, far in zip(lengths, size, stride, dilation, strict=True)
    ]
    for i in range(size[0]):
        for j in range(size[1]):
            top, left = i * dilation[0], j * dilation[1]
            yield i, j, (slice(top, top + last[0] + 1, stride[0]), slice(left, left + last[1] + 1, stride[1]))
