"""The published generators of images from a latent vector: a linear layer, convolutions of doubled inputs, a head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    DoubledConv,
    at_least_float32,
    input_moments,
    torch_uniform,
)

Array = jax.Array


@dataclass(frozen=True)
class Architecture:
    """The differences between the published generators.

    Attributes:
      widths: channels of the hidden layers, as multiples of the last layer's.
      linear_bias: whether the linear layer has a bias.
      first_norm: whether a BatchNorm follows the linear layer.
      first_activation: whether an activation follows that BatchNorm.
      slope: slope of the leaky ReLUs; 0 for plain ones.
      epsilon: epsilon of the BatchNorms between convolutions.
      head: 'sigmoid' gives images in [0, 1]. The others end in a BatchNorm and give a network's input range: 'tanh'
        has a tanh and no scale or bias, 'tanh_scaled' a tanh and a scale, 'affine' no tanh but scale and bias.
    """

    widths: tuple[int, ...]
    linear_bias: bool = True
    first_norm: bool = True
    first_activation: bool = False
    slope: float = 0.2
    epsilon: float = 1e-5
    head: str = "tanh"


# The published width is 64 for all (METHOD 1.1, 1.7 and 6). The comments give the published latent lengths.
ARCHITECTURES = {
    "linear": Architecture((2, 2, 1), head="sigmoid"),  # CMI's small one, FastDFKD; 256
    "large": Architecture((4, 2, 1), head="sigmoid"),  # CMI's LargeGenerator; 256, for DAFL 512
    "dafl": Architecture((2, 2, 1), epsilon=0.8),  # 1000
    "zskt": Architecture((2, 2, 1), head="affine"),  # 100
    "dfad": Architecture((2, 2, 1)),  # 256
    "dfq": Architecture((8, 4, 2, 1), first_norm=False, slope=0.0),  # 512
    # Luo et al. do not report stages and widths; DAFL's are used.
    "generative_dfd": Architecture(
        (2, 2, 1), linear_bias=False, first_activation=True, epsilon=0.8, head="tanh_scaled"
    ),
}


class VectorGenerator(nn.Module):
    """A generator from a latent vector; module names count the layers of PyTorch's sequence.

    Some published generators have a bias in convolutions before a BatchNorm. With the batch's statistics it has neither
    effect nor gradient, so it is left out here.

    Attributes:
      architecture: the generator's `Architecture`.
      image_size: side of the images, a multiple of 2 to the `doublings`.
      channels: channels of the images.
      width: channels of the last hidden layer.
    """

    architecture: Architecture
    image_size: int
    channels: int
    width: int
    forms: Forms = Forms()

    @property
    def doublings(self) -> int:
        """The number of times that the side is doubled."""
        return len(self.architecture.widths) - 1

    @property
    def first_layer(self) -> tuple[str, ...]:
        """Names of the linear layer and of the BatchNorm after it."""
        return ("l1.0", "conv_blocks.0") if self.architecture.first_norm else ("l1.0",)

    @nn.compact
    def __call__(self, latents: Array) -> Array:
        """Maps f32[B, D] to images f32[B, image_size, image_size, channels], in [0, 1] or a network's input range."""
        arch, places = self.architecture, _places()

        def norm(x: Array, epsilon: float) -> Array:
            return BatchNorm(True, tracked=False, epsilon=epsilon, dtype=self.forms.dtype, name=next(places))(x)

        def activated(x: Array) -> Array:
            next(places)
            return nn.leaky_relu(x, arch.slope) if arch.slope else nn.relu(x)

        x = self._linear(latents)
        if arch.first_norm:
            x = norm(x, 1e-5)
        if arch.first_activation:
            x = activated(x)
        for multiple in arch.widths[1:]:
            next(places)  # the doubling has a place too
            x = DoubledConv(multiple * self.width, forms=self.forms, name=next(places))(x)
            x = activated(norm(x, arch.epsilon))
        x = at_least_float32(Conv(self.channels, use_bias=True, forms=self.forms, name=next(places))(x))
        return self._head(x, places)

    def _linear(self, latents: Array) -> Array:
        base, wide = self.image_size // 2**self.doublings, self.architecture.widths[0] * self.width
        if self.architecture.linear_bias:
            x = Dense(wide * base * base, name="l1.0")(latents)
        else:
            x = nn.Dense(wide * base * base, use_bias=False, kernel_init=torch_uniform, name="l1.0")(latents)
        # Channel-first as in PyTorch, so that the kernel needs no special conversion rule.
        return x.reshape(-1, wide, base, base).transpose(0, 2, 3, 1).astype(self.forms.dtype)

    def _head(self, x: Array, places: Iterator[str]) -> Array:
        head = self.architecture.head
        if head == "sigmoid":
            return nn.sigmoid(x)
        if head == "affine":
            return BatchNorm(True, tracked=False, dtype=x.dtype, name=next(places))(x)
        next(places)
        x = jnp.tanh(x)
        mean, var = input_moments(x)
        x = (x - mean) * lax.rsqrt(var + 1e-5)
        return Scale(name=next(places))(x) if head == "tanh_scaled" else x


class Scale(nn.Module):
    """The scale of a BatchNorm that has no bias."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Scales f32[..., C] by channel."""
        return x * self.param("scale", nn.initializers.ones, x.shape[-1:])


def _places() -> Iterator[str]:
    index = 0
    while True:
        yield f"conv_blocks.{index}"
        index += 1
