"""The three convolutions of networks, each in a form that is fast on CPUs and in XLA's own.

Every array is NHWC, every kernel HWIO. The form 'cpu' has gradients that XLA compiles well on CPU, in reverse mode
only. The form 'xla' is for accelerators, and for `jvp` and second derivatives.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from fastdfkd_jax.cpu_conv.dilated import dilated_conv
from fastdfkd_jax.cpu_conv.general import Edges, Pair, general_conv
from fastdfkd_jax.cpu_conv.square import convolve, double, doubled_conv, transposed_conv

Array = jax.Array

CONV_FORMS = ("cpu", "xla")
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv2d(
    x: Array,
    kernel: Array,
    stride: int | Pair = 1,
    padding: int | Edges = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    *,
    form: str = "cpu",
) -> Array:
    """Applies a 2-D convolution.

    Args:
      x: f32[B, H, W, I].
      kernel: f32[h, w, I / groups, O].
      stride: stride of both axes, or of rows and of columns.
      padding: zeros on every side, or those before and after the rows and the columns.
      dilation: pixels from tap to tap, on both axes or for rows and for columns.
      groups: number of groups of the input and output channels.
      form: one of `CONV_FORMS`.

    Returns:
      f32[B, H', W', O].
    """
    side = kernel.shape[0]
    odd_square = side == kernel.shape[1] and side % 2 == 1
    # Recorded graphs give padding by side and so use the general form, which rounds differently from this one.
    keeps_size = odd_square and stride == 1 and isinstance(padding, int) and padding == side // 2 * dilation
    if form == "cpu" and groups == 1 and isinstance(dilation, int) and dilation > 1 and keeps_size:
        return dilated_conv(x, kernel, dilation)
    edges = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
    stride, dilation = _pair(stride), _pair(dilation)
    if form == "cpu":
        return general_conv(x, kernel, stride, edges, dilation, groups)
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        edges,
        rhs_dilation=dilation,
        dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
    )


def upsampled_conv2d(x: Array, kernel: Array, *, form: str = "cpu") -> Array:
    """Applies a 3x3 convolution with padding 1 to the input doubled by nearest neighbour.

    Args:
      x: f32[B, H, W, I].
      kernel: f32[3, 3, I, O].
      form: one of `CONV_FORMS`; 'cpu' never doubles the input.

    Returns:
      f32[B, 2H, 2W, O].
    """
    if form == "cpu":
        y: Array = doubled_conv(x, kernel)
        return y
    return convolve(double(x), kernel, 1, (1, 1))


def transposed_conv2d(x: Array, kernel: Array, *, form: str = "cpu") -> Array:
    """Applies the transposed 4x4 convolution of stride 2 and padding 1.

    Args:
      x: f32[B, H, W, I].
      kernel: f32[4, 4, I, O], in PyTorch's sense: an input pixel adds its multiple of the kernel to the output.
      form: one of `CONV_FORMS`.

    Returns:
      f32[B, 2H, 2W, O].
    """
    if form == "cpu":
        y: Array = transposed_conv(x, kernel)
        return y
    flipped, edges = jnp.flip(kernel, (0, 1)), ((2, 2), (2, 2))
    return lax.conv_general_dilated(x, flipped, (1, 1), edges, lhs_dilation=(2, 2), dimension_numbers=_DIMENSIONS)


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value
