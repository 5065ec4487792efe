"""The parameters that are optimised to make a batch: a generator with its latents, or the pixels themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.methods.base import Setting
from fastdfkd_jax.models import NetworkSpec
from fastdfkd_jax.models.generators.by_kind import Generator, GeneratorOptions, build_generator

Array = jax.Array
Tree = Any

REPRESENTATIONS = ("generator", "pixels")


class Representation(NamedTuple):
    """An image parametrisation G(z; theta) of any kind.

    Attributes:
      init: `init(key) -> theta`, the network's first initialisation.
      draw: `draw(key, batch) -> z`, f32[batch, ...].
      render: `render(theta, z) -> images`, f32[batch, H, W, C] in [0, 1].
      project: `project(z) -> z`, applied after each inner step.
      reset: `reset(key, theta) -> theta`, with all parameters redrawn.
      reset_first_layer: `reset_first_layer(key, theta) -> theta`, with the first layer redrawn (METHOD T7).
    """

    init: Callable[[Array], Tree]
    draw: Callable[[Array, int], Array]
    render: Callable[[Tree, Array], Array]
    project: Callable[[Array], Array]
    reset: Callable[[Array, Tree], Tree]
    reset_first_layer: Callable[[Array, Tree], Tree]


def of_kind(kind: str, options: GeneratorOptions, setting: Setting) -> Representation:
    """Builds the representation of a run's images, distributed over its devices.

    Args:
      kind: one of `REPRESENTATIONS`.
      options: generator options, for the kind with a generator.
      setting: the run's setting.

    Raises:
      UserError: the generator does not support the teacher's image size.
    """
    spec = setting.teacher.spec
    if kind == "pixels":
        return laid_out(from_pixels(spec), setting.split)
    sizes = (spec.image_size, spec.channels, options.latent_dim, options.width)
    generator = build_generator(*sizes, kind=options.kind, forms=setting.forms)
    return laid_out(from_generator(generator), setting.split)


def from_generator(generator: Generator) -> Representation:
    """Represents images by latents z ~ N(0, I) of a generator network."""
    return Representation(
        init=generator.init,
        draw=lambda key, batch: jax.random.normal(key, (batch, *generator.latent_shape)),
        render=generator.apply,
        project=lambda latents: latents,
        reset=generator.reset,
        reset_first_layer=generator.reset_first_layer,
    )


def from_pixels(spec: NetworkSpec) -> Representation:
    """Represents images by normalised pixels, z ~ N(0, I), clipped to valid images (METHOD 1.6)."""

    def clip(pixels: Array) -> Array:
        low = augment.normalize(jnp.zeros(spec.channels), spec.mean, spec.std)
        high = augment.normalize(jnp.ones(spec.channels), spec.mean, spec.std)
        return jnp.clip(pixels, low, high)

    def render(_: Tree, pixels: Array) -> Array:
        # Only the first draw exceeds the valid range; later `project` has clipped. A second clip here would stop
        # the gradient of every pixel at the border.
        return augment.denormalize(pixels, spec.mean, spec.std)

    return Representation(
        init=lambda key: {},
        draw=lambda key, batch: clip(jax.random.normal(key, (batch, *spec.input_shape))),
        render=render,
        project=clip,
        reset=lambda key, theta: theta,
        reset_first_layer=lambda key, theta: theta,
    )


def laid_out(representation: Representation, split: Callable[[Array], Array]) -> Representation:
    """Returns the same parametrization, with latents and images passed through `split` (`parallel.batch_splitter`)."""
    return representation._replace(
        draw=lambda key, batch: split(representation.draw(key, batch)),
        render=lambda theta, latents: split(representation.render(theta, latents)),
    )
