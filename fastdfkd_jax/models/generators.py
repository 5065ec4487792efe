"""Generators of images from latent vectors, as pure functions of their parameters alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    DoubledConv,
    at_least_float32,
    check_conv_gradient,
    flat_normal,
)

Array = jax.Array
Params = Mapping[str, Any]

_RESET_DEVIATION = 0.02


class Generator(NamedTuple):
    """A generator as pure functions; it always normalises with the batch's own statistics.

    Attributes:
      init: `init(key) -> params`, PyTorch's default initialisation.
      apply: `apply(params, latents) -> images`, f32[B, *latent_shape] to f32[B, H, W, C] in [0, 1].
      latent_shape: shape of one latent.
      reset: `reset(key, params) -> params`, everything drawn anew (METHOD 1.5).
      reset_first_layer: `reset_first_layer(key, params) -> params`, the first linear layer and the first
        BatchNorm drawn anew (METHOD T7).
    """

    init: Callable[[Array], Params]
    apply: Callable[[Params, Array], Array]
    latent_shape: tuple[int, ...]
    reset: Callable[[Array, Params], Params]
    reset_first_layer: Callable[[Array, Params], Params]


class CifarGenerator(nn.Module):
    """Linear layer, then three convolutions with two doublings between (METHOD 1.1).

    Attributes:
      image_size: side of the images, a multiple of 4.
      channels: channels of the images.
      width: channels of the last hidden layer; the ones before have twice as many.
    """

    image_size: int
    channels: int
    width: int
    conv_gradient: str = "canonical"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, latents: Array) -> Array:
        """Maps f32[B, D] to images f32[B, image_size, image_size, channels] in [0, 1]."""
        wide, base = 2 * self.width, self.image_size // 4
        forms = {"gradient": self.conv_gradient, "dtype": self.dtype}

        def norm(name: str) -> BatchNorm:
            return BatchNorm(train=True, tracked=False, dtype=self.dtype, name=name)

        x = Dense(wide * base * base, name="l1.0")(latents)
        # Channel-first as in PyTorch, so that converting the kernel needs no rule of its own.
        x = x.reshape(-1, wide, base, base).transpose(0, 2, 3, 1).astype(self.dtype)
        x = norm("conv_blocks.0")(x)
        x = DoubledConv(wide, **forms, name="conv_blocks.2")(x)
        x = nn.leaky_relu(norm("conv_blocks.3")(x), 0.2)
        x = DoubledConv(self.width, **forms, name="conv_blocks.6")(x)
        x = nn.leaky_relu(norm("conv_blocks.7")(x), 0.2)
        x = Conv(self.channels, use_bias=True, **forms, name="conv_blocks.9")(x)
        return nn.sigmoid(at_least_float32(x))


def build_generator(
    image_size: int = 32,
    channels: int = 3,
    latent_dim: int = 256,
    width: int = 64,
    *,
    conv_gradient: str = "canonical",
    dtype: Any = jnp.float32,
) -> Generator:
    """Builds the CIFAR generator; the defaults are the published one with 2,328,899 parameters.

    Args:
      image_size: side of the images in pixels, a multiple of 4.
      channels: channels of the images.
      latent_dim: length of a latent vector.
      width: channels of the last hidden layer.
      conv_gradient: 'canonical' or 'native' (`layers.Conv`).
      dtype: of the convolutions and activations; parameters and images stay float32.

    Raises:
      UserError: the image size is not a positive multiple of 4, or `conv_gradient` is not known.
    """
    check_conv_gradient(conv_gradient)
    if image_size < 4 or image_size % 4:
        raise UserError(f"generator: image_size must be a positive multiple of 4, found {image_size}; choose another")
    module = CifarGenerator(image_size, channels, width, conv_gradient, dtype)

    def init(key: Array) -> Params:
        return module.init(key, jnp.zeros((1, latent_dim)))["params"]

    def apply(params: Params, latents: Array) -> Array:
        images: Any = module.apply({"params": params}, latents)
        return images

    return Generator(init, apply, (latent_dim,), reset, reset_first_layer)


def reset(key: Array, params: Params) -> Params:
    """Draws every parameter anew: kernels N(0, 0.02), scales N(1, 0.02), biases 0 (METHOD 1.5)."""
    return _redraw(key, params, scale_mean=1.0)


def reset_first_layer(key: Array, params: Params) -> Params:
    """Draws the first linear layer and the first BatchNorm anew; the others stay (METHOD T7).

    Kernel and scale are N(0, 0.02), biases 0: the released code centres the scale at 0 too, unlike `reset`.
    """
    first = {name: params[name] for name in ("l1.0", "conv_blocks.0")}
    return {**params, **_redraw(key, first, scale_mean=0.0)}


def _redraw(key: Array, params: Params, scale_mean: float) -> Params:
    means = {"kernel": 0.0, "scale": scale_mean}
    leaves, treedef = jax.tree_util.tree_flatten_with_path(dict(params))
    drawn = []
    for leaf_key, (path, leaf) in zip(jax.random.split(key, len(leaves)), leaves, strict=True):
        if (name := path[-1].key) == "bias":
            drawn.append(jnp.zeros_like(leaf))
        else:
            noise = flat_normal(leaf_key, leaf.shape, leaf.dtype)
            drawn.append(means[name] + _RESET_DEVIATION * noise)
    return jax.tree.unflatten(treedef, drawn)
