"""What is optimised to make a batch: a generator with its latents, or the pixels themselves."""

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
    """G(z; theta) for any kind of image parametrisation.

    Attributes:
      init: `init(key) -> theta`, as the network is first drawn.
      draw: `draw(key, batch) -> z`, f32[batch, ...], or a tree.
      render: `render(theta, z) -> images`, f32[batch, H, W, C] in [0, 1].
      project: `project(z) -> z`, applied after each inner step.
      reset: `reset(key, theta) -> theta`, all of it drawn anew.
      reset_first_layer: `reset_first_layer(key, theta) -> theta`, the first layer drawn anew (METHOD T7).
      labels: `labels(key, batch) -> i32[batch]`, the classes of the images where z decides them; else None.
    """

    init: Callable[[Array], Tree]
    draw: Callable[[Array, int], Array]
    render: Callable[[Tree, Array], Array]
    project: Callable[[Array], Array]
    reset: Callable[[Array, Tree], Tree]
    reset_first_layer: Callable[[Array, Tree], Tree]
    labels: Callable[[Array, int], Array] | None = None


def of_kind(kind: str, options: GeneratorOptions, label_dim: int, setting: Setting) -> Representation:
    """The representation of a run's images, laid over its devices.

    Args:
      kind: one of `REPRESENTATIONS`.
      options: of the generator, where the kind has one.
      label_dim: length of a label's embedding, where the kind has them.
      setting: of the run.

    Raises:
      UserError: the generator makes no images of the teacher's size or takes no vectors; or the kind asks for classes
        and the teacher gives maps.
    """
    spec = setting.teacher.spec
    if kind == "pixels":
        return laid_out(from_pixels(spec), setting.split)
    sizes = (spec.image_size, spec.channels, options.latent_dim, options.width)
    generator = build_generator(*sizes, kind=options.kind, forms=setting.forms)
    if kind == "generator":
        return laid_out(from_generator(generator), setting.split)
    expected = "another for a teacher of segmentation, of whose images no class is asked"
    require(not spec.gives_maps, "fastdfkd.representation", expected, kind)
    noisy = from_noisy_layers(generator, spec.num_classes, label_dim, setting.batch)
    return laid_out(noisy, setting.split)


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


def from_noisy_layers(generator: Generator, num_classes: int, label_dim: int, batch: int) -> Representation:
    """Latents by noisy layers of label embeddings, after NAYER (Tran et al., CVPR 2024), without its text encoder.

    A noisy layer is a linear map that is drawn anew where latents would be: z holds as many as needed for a batch, each
    of which makes one latent of every class. The embeddings are Gaussian and fixed, brought to mean 0 and variance 1
    over the classes as NAYER's BatchNorm does; no class name is used, so that the method still knows the teacher only.

    Args:
      generator: of latent vectors.
      num_classes: of the teacher.
      label_dim: length of an embedding.
      batch: latents that `render` is to make.

    Raises:
      UserError: the generator's latents are no vectors.
    """
    if len(generator.latent_shape) != 1:
        raise UserError("config.fastdfkd.representation='noisy_layer' makes vectors: expected another generator.kind")
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
    """The same, with latents and images passed through `split` (`parallel.batch_splitter`)."""
    return representation._replace(
        # A tree's parts are not all of the batch; what is rendered of them is.
        draw=lambda key, batch: jax.tree.map(
            lambda x: split(x) if len(x) == batch else x, representation.draw(key, batch)
        ),
        render=lambda theta, latents: split(representation.render(theta, latents)),
    )
