"""Kernel gradients of convolutions as matrix products, for CPUs.

XLA's own take four to seven times as long on CPUs, and longer in a loop. Every array is NHWC, every kernel HWIO, every
stride and padding the same on both axes.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from fastdfkd_jax.cpu_conv import chunks, winograd

Array = jax.Array
_CHUNK_BYTES = 2_000_000  # of shifted copies; the best value on a core with 1 MB of L2


def kernel_gradient(x: Array, dy: Array, kernel_shape: tuple[int, ...], stride: int, padding: int) -> Array:
    """Returns the adjoint of a convolution in its kernel, by minimal filtering or as sums of products.

    The products use a few images at a time, so that the shifted copies stay in the cache. For the whole batch, three
    copies of both arrays would go through memory twice.

    Args:
      x: f32[B, H, W, I].
      dy: f32[B, H', W', O].
      kernel_shape: (h, w, I, O).
      stride: the stride of both axes.
      padding: zeros added on each side of both axes.

    Returns:
      f32[h, w, I, O].
    """
    if stride == padding == 1 and winograd.fits(x.shape, kernel_shape, x.dtype):
        return winograd.kernel_gradient(x, dy)
    height, width, inputs, outputs = kernel_shape
    thin = stride == 1 and height * width * outputs < width * inputs  # compares the copies per pixel of both ways
    copied = height * width * outputs if thin else width * inputs + height * outputs
    bytes_of_copies = math.prod(dy.shape[1:3]) * copied * x.dtype.itemsize
    chunk = chunks.images_a_chunk(x.shape[0], _CHUNK_BYTES // bytes_of_copies)

    def of_chunk(x: Array, dy: Array, groups: int) -> Array:
        x, dy = (a.reshape(groups, chunk, *a.shape[1:]) for a in (x, dy))
        if thin:
            return _products_with_shifted_gradient(x, dy, kernel_shape, padding)
        return _tap_products(x, dy, kernel_shape, stride, padding)

    total = chunks.summed(of_chunk, x, dy, chunk)
    if thin:
        return jnp.moveaxis(total.reshape(inputs, height, width, outputs), 0, 2).astype(x.dtype)
    taps = total.reshape(width, inputs, height, outputs)
    by_phase = [row for phase in range(stride) for row in range(phase, height, stride)]
    return jnp.stack([taps[:, :, by_phase.index(row)] for row in range(height)]).astype(x.dtype)


def _products_with_shifted_gradient(x: Array, dy: Array, kernel_shape, padding: int) -> Array:
    """Multiplies the input by all shifts of the output gradient, for few outputs and stride 1.

    d kernel[i, j] = sum over (b, r, c) of x[b, r, c] dy[b, r + padding - i, c + padding - j].

    Args:
      x: f32[G, B, H, W, I].
      dy: f32[G, B, H', W', O].

    Returns:
      f32[G, I, h w O].
    """
    height, width, inputs, _ = kernel_shape
    groups, _, rows, cols, _ = x.shape
    edges = [
        (size - 1 - padding, side + padding - dy_side, 0)
        for size, side, dy_side in zip((height, width), (rows, cols), dy.shape[2:4], strict=True)
    ]
    dy = lax.pad(dy, jnp.zeros((), dy.dtype), [(0, 0, 0), (0, 0, 0), *edges, (0, 0, 0)])
    shifted_dy = jnp.concatenate(
        [dy[:, :, i : i + rows, j : j + cols] for i in reversed(range(height)) for j in reversed(range(width))], axis=-1
    )
    return lax.dot_general(
        x.reshape(groups, -1, inputs),
        shifted_dy.reshape(groups, -1, shifted_dy.shape[-1]),
        (((1,), (1,)), ((0,), (0,))),
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )


def _tap_products(x: Array, dy: Array, kernel_shape, stride: int, padding: int) -> Array:
    """Multiplies column shifts of the input by row shifts of the output gradient, one product per row phase.

    d kernel[i, j] = sum over (b, r, c) of x[b, stride r + i, stride c + j] dy[b, r, c]. With i = stride q + p
    the shift by q is applied to dy, so that a 3x3 kernel costs one product of [3 I] by [3 O] channels instead
    of nine thin ones or a nine-fold patch matrix (measured 2 to 7 times faster on CPU).

    Args:
      x: f32[G, B, H, W, I].
      dy: f32[G, B, H', W', O].

    Returns:
      f32[G, w I, h O], the rows of the kernel phase by phase.
    """
    height, width, inputs, outputs = kernel_shape
    groups, rows, cols = x.shape[0], *dy.shape[2:4]
    most = (height - 1) // stride
    span = rows + most  # rows of one phase that any shift can touch
    behind = max(0, stride * span - x.shape[2] - padding)
    x = lax.pad(
        x,
        jnp.zeros((), x.dtype),
        [(0, 0, 0), (0, 0, 0), (padding, behind, 0), (padding, padding, 0), (0, 0, 0)],
    )
    # Padded once, because a concatenation of arrays padded for every shift takes XLA four times as long.
    dy = jnp.pad(dy, ((0, 0), (0, 0), (most, most), (0, 0), (0, 0)))
    products = []
    for phase in range(min(stride, height)):
        x_phase = x[:, :, phase : stride * span : stride]
        shifted_x = jnp.concatenate(
            [x_phase[:, :, :, j : j + stride * (cols - 1) + 1 : stride] for j in range(width)], axis=-1
        )
        shifts = range(math.ceil((height - phase) / stride))
        shifted_dy = jnp.concatenate([dy[:, :, most - q : most - q + span] for q in shifts], axis=-1)
        products.append(
            lax.dot_general(
                shifted_x.reshape(groups, -1, width * inputs),
                shifted_dy.reshape(groups, -1, len(shifts) * outputs),
                (((1,), (1,)), ((0,), (0,))),
                preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
            )
        )
    return jnp.concatenate(products, axis=-1)
