"""The depthwise convolution of the mobile networks."""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastdfkd_jax.cpu_conv import conv2d
from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.models.layers import flat_normal, he_normal_fan_out


class DepthwiseConv(nn.Module):
    """A square convolution of each channel separately.

    Attributes:
      size: side of the kernel, odd.
      stride: of both axes.
      same: whether to use TensorFlow's padding 'same', which with a stride has more zeros after than before.
      padding: zeros on each side if not `same`; by default size // 2.
      dilation: pixels from tap to tap.
    """

    size: int = 3
    stride: int = 1
    same: bool = False
    padding: int | None = None
    dilation: int = 1
    kernel_init: Callable[..., jax.Array] = he_normal_fan_out
    forms: Forms = Forms()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves f32[B, H, W, C] to f32[B, H', W', C]."""
        channels, dtype = x.shape[-1], self.forms.dtype
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, 1, channels)).astype(dtype)
        zeros = self.size // 2 if self.padding is None else self.padding
        edges = same_edges(x.shape, self.size, self.stride) if self.same else ((zeros, zeros), (zeros, zeros))
        return conv2d(x.astype(dtype), kernel, self.stride, edges, self.dilation, channels, form=self.forms.conv)


def same_edges(shape: tuple[int, ...], size: int, stride: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the zeros before and after the rows and columns of [B, H, W, C] in TensorFlow's padding 'same'."""
    needed = [max((-(-length // stride) - 1) * stride + size - length, 0) for length in shape[1:3]]
    rows, columns = ((zeros // 2, zeros - zeros // 2) for zeros in needed)
    return rows, columns


def he_normal_of_one_filter(key, shape, dtype=jnp.float32) -> jax.Array:
    """Draws N(0, 2 / (h w)), the EfficientNets' initialisation of a depthwise kernel.

    The second argument of N is the variance.
    """
    return math.sqrt(2 / math.prod(shape[:2])) * flat_normal(key, shape, dtype)
