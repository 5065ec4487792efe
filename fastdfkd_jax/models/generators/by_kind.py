"""Generators of images from latent vectors, as pure functions of their parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.models.generators.dcgan import DcganGenerator
from fastdfkd_jax.models.generators.vector import ARCHITECTURES, VectorGenerator
from fastdfkd_jax.models.layers import (
    BatchNorm,
    Conv,
    DoubledConv,
    at_least_float32,
    flat_normal,
)
from fastdfkd_jax.options import Options, option

Array = jax.Array
Params = Mapping[str, Any]

_RESET_DEVIATION = 0.02


class Generator(NamedTuple):
    """A generator as pure functions; it always normalises with the statistics of the batch.

    Attributes:
      init: `init(key) -> params`, PyTorch's default initialisation; for 'dcgan' that of `reset`.
      apply: `apply(params, latents) -> images`, f32[B, *latent_shape] to f32[B, H, W, C]; the range is [0, 1] unless
        `network_input`.
      latent_shape: shape of one latent.
      reset: `reset(key, params) -> params`, with everything redrawn (METHOD 1.5).
      reset_first_layer: `reset_first_layer(key, params) -> params`, with the first layer and the first
        BatchNorm redrawn (METHOD T7).
      network_input: True if a last BatchNorm or tanh gives images in a network's input range rather than in [0, 1].
    """

    init: Callable[[Array], Params]
    apply: Callable[[Params, Array], Array]
    latent_shape: tuple[int, ...]
    reset: Callable[[Array, Params], Params]
    reset_first_layer: Callable[[Array, Params], Params]
    network_input: bool = False


class SpatialGenerator(nn.Module):
    """The generator for ImageNet (METHOD 1.4).

    It has a convolution of a latent map, four convolutions of doubled inputs, and one to the image.

    Attributes:
      image_size: side of the images, a multiple of 16; the latents' side is a sixteenth of it.
      channels: channels of the images.
      width: channels of the last three hidden layers; the first two have twice as many.
    """

    image_size: int
    channels: int
    width: int
    forms: Forms = Forms()

    doublings = 4
    first_layer = ("conv_blocks.0", "conv_blocks.1")

    @nn.compact
    def __call__(self, latents: Array) -> Array:
        """Maps f32[B, h, h, D] to images f32[B, 16h, 16h, channels] in [0, 1]."""

        def activated(x: Array, name: str) -> Array:
            norm = BatchNorm(train=True, tracked=False, dtype=self.forms.dtype, name=name)
            return nn.leaky_relu(norm(x), 0.2)

        x = Conv(2 * self.width, forms=self.forms, name="conv_blocks.0")(latents)
        x = activated(x, "conv_blocks.1")
        for i, features in enumerate((2 * self.width, self.width, self.width, self.width), start=1):
            x = DoubledConv(features, forms=self.forms, name=f"conv_blocks.{4 * i}")(x)
            x = activated(x, f"conv_blocks.{4 * i + 1}")
        x = Conv(self.channels, use_bias=True, forms=self.forms, name="conv_blocks.19")(x)
        return nn.sigmoid(at_least_float32(x))


# The generators whose images are in [0, 1], then all.
GENERATORS = ("linear", "spatial", "large")
ALL_GENERATORS = (*GENERATORS, *(kind for kind in ARCHITECTURES if kind not in GENERATORS), "dcgan")


@dataclass(frozen=True)
class GeneratorOptions(Options, section="generator"):
    """Options of the generator, for methods that optimise one within a call."""

    kind: str = option(
        "linear",
        "kind of generator: 'linear' or CMI's 'large', from a latent vector (METHOD 1.1), or 'spatial', from a "
        "latent map (METHOD 1.4)",
        choices=GENERATORS,
    )
    latent_dim: int = option(256, "dimension of the latent vector z, or channels of the latent map", at_least=1)
    width: int = option(64, "channels of the generator's last hidden layer", at_least=1)


def build_generator(
    image_size: int = 32,
    channels: int = 3,
    latent_dim: int = 256,
    width: int = 64,
    *,
    kind: str = "linear",
    forms: Forms = Forms(),
) -> Generator:
    """Builds a generator; the defaults give the published one for CIFAR, with 2,328,899 parameters.

    Args:
      image_size: side of the images in pixels, a multiple of 4; for 'dfq' of 8, for 'spatial' of 16, for 'dcgan' see
        its class.
      channels: channels of the images.
      latent_dim: length of a latent vector, or channels of a latent map.
      width: channels of the last hidden layer.
      kind: one of `ALL_GENERATORS`. The published generators are 'spatial' with 224 pixels for ImageNet and 'dcgan'
        with 128 pixels for segmentation with DFAD.
      forms: precision and convolutions.

    Raises:
      UserError: the image size is not a positive multiple, or `kind` is unknown.
    """
    if kind not in ALL_GENERATORS:
        raise UserError(f"generator: expected one of {', '.join(ALL_GENERATORS)}, found {kind!r}")
    sizes = (image_size, channels, width, forms)
    classes = {"spatial": SpatialGenerator, "dcgan": DcganGenerator}
    module = classes[kind](*sizes) if kind in classes else VectorGenerator(ARCHITECTURES[kind], *sizes)
    factor = 2**module.doublings
    if image_size < factor or image_size % factor:
        raise UserError(
            f"generator: image_size must be a positive multiple of {factor}, found {image_size}; choose another"
        )
    side = image_size // factor
    latent_shape = (side, side, latent_dim) if kind == "spatial" else (latent_dim,)

    def init(key: Array) -> Params:
        params = module.init(key, jnp.zeros((1, *latent_shape)))["params"]
        return reset(key, params) if kind == "dcgan" else params

    def apply(params: Params, latents: Array) -> Array:
        images: Any = module.apply({"params": params}, latents)
        return images

    first = partial(_reset_layers, module.first_layer)
    return Generator(init, apply, latent_shape, reset, first, network_input=kind not in GENERATORS)


def reset(key: Array, params: Params) -> Params:
    """Redraws every parameter: kernels N(0, 0.02), scales N(1, 0.02), biases 0 (METHOD 1.5)."""
    return _redraw(key, params, scale_mean=1.0)


def _reset_layers(names: Iterable[str], key: Array, params: Params) -> Params:
    """Redraws the first layer and the first BatchNorm, given by name, and keeps the others (METHOD T7).

    Kernel and scale are N(0, 0.02), biases 0. Unlike `reset`, the released code centres the scale at 0 here too.
    """
    first = {name: params[name] for name in names}
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
