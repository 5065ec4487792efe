"""What is optimised to make a batch: a generator with its latents, or the pixels themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastdfkd_jax import augment
from fastdfkd_jax.models import NetworkSpec
from fastdfkd_jax.models.generators import Generator

Array = jax.Array
Tree = Any

REPRESENTATIONS = ("generator", "pixels")


class Representation(NamedTuple):
    """G(z; theta) for any kind of image parametrisation.

    Attributes:
      init: `init(key) -> theta`, as the network is first drawn.
      draw: `draw(key, batch) -> z`, f32[batch, ...].
      render: `render(theta, z) -> images`, f32[batch, H, W, C] in [0, 1].
      project: `project(z) -> z`, applied after each inner step.
      reset: `reset(key, theta) -> theta`, all of it drawn anew.
      reset_first_layer: `reset_first_layer(key, theta) -> theta`, the first layer drawn anew (METHOD T7).
    """

    init: Callable[[Array], Tree]
    draw: Callable[[Array, int], Array]
    render: Callable[[Tree, Array], Array]
    project: Callable[[Array], Array]
    reset: Callable[[Array, Tree], Tree]
    reset_first_layer: Callable[[Array, Tree], Tree]


def from_generator(generator: Generator) -> Representation:
    """Latents z ~ N(0, I) through a generator network."""
    return Representation(
        init=generator.init,
        draw=lambda key, batch: jax.random.normal(key, (batch, *generator.latent_shape)),
        render=generator.apply,
        project=lambda latents: latents,
        reset=generator.reset,
        reset_first_layer=generator.reset_first_layer,
    )


def from_pixels(spec: NetworkSpec) -> Representation:
    """Pixels in the network's normalised space, z ~ N(0, I), clipped to valid images (METHOD 1.6)."""

    def clip(pixels: Array) -> Array:
        low = augment.normalize(jnp.zeros(spec.channels), spec.mean, spec.std)
        high = augment.normalize(jnp.ones(spec.channels), spec.mean, spec.std)
        return jnp.clip(pixels, low, high)

    def render(_: Tree, pixels: Array) -> Array:
        # The first draw lies outside; afterwards `project` has clipped, and a second clip here would stop
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
    """The same, with latents and images passed through `split` (`parallel.batch_splitter`)."""
    return representation._replace(
        draw=lambda key, batch: split(representation.draw(key, batch)),
        render=lambda theta, latents: split(representation.render(theta, latents)),
    )
