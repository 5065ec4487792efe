"""The parameters that are optimised to make a batch: a generator with its latents, or the pixels themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.errors import UserError, require
from fastdfkd_jax.methods.base import Setting
from fastdfkd_jax.models import NetworkSpec
from fastdfkd_jax.models.generators.by_kind import Generator, GeneratorOptions, build_generator

Array = jax.Array
Tree = Any

REPRESENTATIONS = ("generator", "pixels", "noisy_layer")


class Representation(NamedTuple):
    """An image parametrisation G(z; theta) of any kind.

    Attributes:
      init: `init(key) -> theta`, the network's first initialisation.
      draw: `draw(key, batch) -> z`, f32[batch, ...], or a tree.
      render: `render(theta, z) -> images`, f32[batch, H, W, C] in [0, 1].
      project: `project(z) -> z`, applied after each inner step.
      reset: `reset(key, theta) -> theta`, with all parameters redrawn.
      reset_first_layer: `reset_first_layer(key, theta) -> theta`, with the first layer redrawn (METHOD T7).
      labels: `labels(key, batch) -> i32[batch]`, the images' classes if z determines them; else None.
    """

    init: Callable[[Array], Tree]
    draw: Callable[[Array, int], Array]
    render: Callable[[Tree, Array], Array]
    project: Callable[[Array], Array]
    reset: Callable[[Array, Tree], Tree]
    reset_first_layer: Callable[[Array, Tree], Tree]
    labels: Callable[[Array, int], Array] | None = None


def of_kind(kind: str, options: GeneratorOptions, label_dim: int, setting: Setting) -> Representation:
    """Builds the representation of a run's images, distributed over its devices.

    Args:
      kind: one of `REPRESENTATIONS`.
      options: generator options, for kinds with a generator.
      label_dim: length of a label's embedding, for kinds with embeddings.
      setting: the run's setting.

    Raises:
      UserError: the generator does not support the teacher's image size or takes no vectors; or the kind has target
        classes and the teacher outputs maps.
    """
    spec = setting.teacher.spec
    if kind == "pixels":
        return laid_out(from_pixels(spec), setting.split)
    sizes = (spec.image_size, spec.channels, options.latent_dim, options.width)
    generator = build_generator(*sizes, kind=options.kind, forms=setting.forms)
    if kind == "generator":
        return laid_out(from_generator(generator), setting.split)
    expected = "another for a segmentation teacher, as its images have no requested class"
    require(not spec.gives_maps, "fastdfkd.representation", expected, kind)
    noisy = from_noisy_layers(generator, spec.num_classes, label_dim, setting.batch)
    return laid_out(noisy, setting.split)


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


def from_noisy_layers(generator: Generator, num_classes: int, label_dim: int, batch: int) -> Representation:
    """Makes latents from label embeddings by noisy layers, as in NAYER (Tran et al., CVPR 2024).

    A noisy layer is a linear map that is redrawn whenever latents would be. z holds as many as a batch needs; each
    makes one latent of every class. NAYER's text encoder is left out. The embeddings are Gaussian and fixed,
    standardised over the classes as by NAYER's BatchNorm. No class name is used, so the method uses only the teacher.

    Args:
      generator: a generator of latent vectors.
      num_classes: the teacher's classes.
      label_dim: length of an embedding.
      batch: number of latents that `render` makes.

    Raises:
      UserError: the generator's latents are not vectors.
    """
    if len(generator.latent_shape) != 1:
        raise UserError(
            "config.fastdfkd.representation='noisy_layer' needs latent vectors: give another generator.kind"
        )
    (latent_dim,) = generator.latent_shape
    layers = -(-batch // num_classes)
    bound = label_dim**-0.5  # PyTorch's default for a linear layer

    def draw(key: Array, batch: int) -> dict[str, Array]:
        kernel_key, bias_key = jax.random.split(key)
        return {
            "kernel": jax.random.uniform(kernel_key, (layers, label_dim, latent_dim), minval=-bound, maxval=bound),
            "bias": jax.random.uniform(bias_key, (layers, latent_dim), minval=-bound, maxval=bound),
        }

    def render(theta: Tree, noisy: dict[str, Array]) -> Array:
        embeddings = jax.random.normal(jax.random.key(0), (num_classes, label_dim))
        embeddings = (embeddings - embeddings.mean(0)) / embeddings.std(0)
        latents = jnp.einsum("ce,led->lcd", embeddings, noisy["kernel"]) + noisy["bias"][:, None]
        return generator.apply(theta, latents.reshape(-1, latent_dim)[:batch])

    return from_generator(generator)._replace(
        draw=draw, render=render, labels=lambda key, batch: jnp.arange(batch) % num_classes
    )


def laid_out(representation: Representation, split: Callable[[Array], Array]) -> Representation:
    """Returns the same parametrization, with latents and images passed through `split` (`parallel.batch_splitter`)."""
    return representation._replace(
        # A tree's parts are not all of the batch; what is rendered of them is.
        draw=lambda key, batch: jax.tree.map(
            lambda x: split(x) if len(x) == batch else x, representation.draw(key, batch)
        ),
        render=lambda theta, latents: split(representation.render(theta, latents)),
    )
