"""The generator of transposed convolutions (Radford et al. 2015) that DFAD uses for segmentation (METHOD section 6)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastdfkd_jax.cpu_conv import transposed_conv2d
from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.models.layers import BatchNorm, Conv, Dense, at_least_float32, torch_uniform

Array = jax.Array


class TransposedConv(nn.Module):
    """A transposed 4x4 convolution of stride 2 and padding 1, without bias."""

    features: int
    forms: Forms = Forms()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps f32[B, H, W, I] to f32[B, 2H, 2W, features]."""
        kernel = self.param("kernel", torch_uniform, (4, 4, x.shape[-1], self.features))
        return transposed_conv2d(x.astype(self.forms.dtype), kernel.astype(self.forms.dtype), form=self.forms.conv)


class DcganGenerator(nn.Module):
    """A linear layer to a map of 8 pixels, transposed convolutions, a convolution and tanh.

    It was published for 128 pixels, which take four doublings; 256 pixels take five. The images have the input range of
    a network trained with mean and deviation 0.5.

    Attributes:
      image_size: side of the images, n 2^k pixels with n from 8 to 15.
      channels: channels of the images.
      width: channels of all stages from the third on; the first map has eight times as many.
    """

    image_size: int
    channels: int
    width: int
    forms: Forms = Forms()

    first_layer = ("l1.0", "conv_blocks.0")

    @property
    def doublings(self) -> int:
        """The number of times that the side is doubled."""
        return max((self.image_size // 8).bit_length() - 1, 1)

    @nn.compact
    def __call__(self, latents: Array) -> Array:
        """Maps f32[B, D] to f32[B, image_size, image_size, channels] in (-1, 1), a network's input range."""

        def norm(x: Array, place: int) -> Array:
            return BatchNorm(True, tracked=False, dtype=self.forms.dtype, name=f"conv_blocks.{place}")(x)

        base, wide = self.image_size >> self.doublings, 8 * self.width
        x = Dense(wide * base * base, name="l1.0")(latents)
        # Channel-first as in PyTorch and in the other generators.
        x = norm(x.reshape(-1, wide, base, base).transpose(0, 2, 3, 1).astype(self.forms.dtype), 0)
        place = 1
        for stage in range(self.doublings):
            features = self.width * max(4 >> stage, 1)
            x = TransposedConv(features, forms=self.forms, name=f"conv_blocks.{place}")(x)
            x = nn.leaky_relu(norm(x, place + 1), 0.2)
            place += 3
        x = Conv(self.channels, use_bias=True, forms=self.forms, name=f"conv_blocks.{place}")(x)
        return jnp.tanh(at_least_float32(x))
