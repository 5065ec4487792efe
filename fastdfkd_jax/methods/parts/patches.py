"""The loss of patch similarity, for teachers with attention, which have no BatchNorm statistics (Li et al. 2022).

A network with attention sees noise as patches that are all alike, and real images as patches of which some are alike
and others are not. The loss asks for the second: for similarities that are spread out.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fastdfkd_jax.errors import require
from fastdfkd_jax.models import Network

Array = jax.Array

PATCHES = "patch_similarity"
_WIDTH = 0.05  # standard deviation of the Gaussian around each similarity
_SPACING, _BEYOND = 0.05, 0.15  # of the points where the density is taken, which go this far beyond [-1, 1]
_TINY = 1e-12


def patch_similarity(tokens: Sequence[Array]) -> Array:
    """Returns minus the entropy in nats of the similarities of patches, summed over attention layers.

    A layer's similarities are the cosines between what attention has gathered for any two tokens of an image. Their
    density is a mean of Gaussians; the entropy is that of the density, averaged over the images.

    Args:
      tokens: f32[images, tokens, channels] for each layer (`Outputs.tokens`).
    """
    return -sum((_entropy_of_density(_cosines(x)).mean() for x in tokens if _has_pairs(x)), start=jnp.zeros(()))


def _has_pairs(tokens: Array | jax.ShapeDtypeStruct) -> bool:
    """Returns False for a layer in which a single token attends, such as that of a class."""
    return tokens.shape[1] > 1


def _cosines(tokens: Array) -> Array:
    """Returns the cosines of all pairs of tokens, f32[images, pairs]."""
    square = jnp.square(tokens).sum(-1, keepdims=True)
    unit = tokens * jax.lax.rsqrt(square + _TINY)
    first, second = jnp.triu_indices(tokens.shape[1], 1)
    return jnp.einsum("bnc,bmc->bnm", unit, unit)[:, first, second]


def _entropy_of_density(values: Array) -> Array:
    """Returns the differential entropy of the density of each row in nats: [images, pairs] to f32[images]."""
    points = jnp.arange(-1 - _BEYOND, 1 + _BEYOND + _SPACING / 2, _SPACING)

    @jax.checkpoint  # or the backward pass would keep an array as large as the similarities for each point
    def density(point: Array) -> Array:
        return jnp.exp(-0.5 * jnp.square((values - point) / _WIDTH)).mean(-1)

    found = jax.lax.map(density, points) / (_WIDTH * jnp.sqrt(2 * jnp.pi))
    return -(found * jnp.log(found + _TINY)).sum(0) * _SPACING


def require_attention(teacher: Network, key: str) -> None:
    """Raises UserError if a teacher has no attention, whose patches the option `key` compares."""
    variables = jax.eval_shape(teacher.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, *teacher.spec.input_shape), jnp.float32)
    tokens = jax.eval_shape(lambda v, x: teacher.apply(v, x, tokens=True).tokens, variables, images)
    expected = f"another term for the teacher {teacher.spec.arch}: no attention of a recorded graph was found in it"
    require(any(map(_has_pairs, tokens)), key, expected, PATCHES)
