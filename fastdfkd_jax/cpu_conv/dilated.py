"""Dilated convolutions in forms that XLA compiles well on CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fastdfkd_jax.cpu_conv.square import square_conv

Array = jax.Array


def dilated_conv(x: Array, kernel: Array, dilation: int) -> Array:
    """Applies a convolution of stride 1 with taps `dilation` pixels apart, padded to keep the size.

    Args:
      x: f32[B, H, W, I].
      kernel: f32[n, n, I, O] with odd n.
      dilation: pixels from tap to tap.

    Returns:
      f32[B, H, W, O].
    """
    if 2 * dilation >= min(x.shape[1:3]):
        return _sum_of_overlaps(x, kernel, dilation)
    return _interleaved(x, kernel, dilation)


def _interleaved(x: Array, kernel: Array, dilation: int) -> Array:
    """Convolves each residue class of pixels modulo the dilation as a separate small image, as they never interact."""
    batch, height, width, channels = x.shape
    rows, columns = -(-height // dilation), -(-width // dilation)
    behind = ((0, rows * dilation - height), (0, columns * dilation - width))
    small = jnp.pad(x, ((0, 0), *behind, (0, 0))).reshape(batch, rows, dilation, columns, dilation, channels)
    small = small.transpose(0, 2, 4, 1, 3, 5).reshape(-1, rows, columns, channels)
    y: Array = square_conv(small, kernel, 1, kernel.shape[0] // 2)
    y = y.reshape(batch, dilation, dilation, rows, columns, -1).transpose(0, 3, 1, 4, 2, 5)
    return y.reshape(batch, rows * dilation, columns * dilation, -1)[:, :height, :width]


def _sum_of_overlaps(x: Array, kernel: Array, dilation: int) -> Array:
    """Sums one matrix product per tap over the pixels that it meets; distant taps mostly meet padding."""
    centre = kernel.shape[0] // 2
    total = x @ kernel[centre, centre]
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            down, right = dilation * (i - centre), dilation * (j - centre)
            if (i, j) == (centre, centre) or abs(down) >= x.shape[1] or abs(right) >= x.shape[2]:
                continue
            rows, above = _overlap(down, x.shape[1])
            columns, beside = _overlap(right, x.shape[2])
            total = total + jnp.pad(x[:, rows, columns] @ kernel[i, j], ((0, 0), above, beside, (0, 0)))
    return total


def _overlap(shift: int, length: int) -> tuple[slice, tuple[int, int]]:
    """Returns the pixels of a line that outputs meet at a shift, and how many outputs before and after meet none."""
    return slice(max(shift, 0), length + min(shift, 0)), (max(-shift, 0), max(shift, 0))
