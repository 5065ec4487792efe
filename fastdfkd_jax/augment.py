"""Image augmentation on the device, differentiable with respect to the images.

A crop, a flip or a resize is separable: one weight matrix for the rows and one for the columns of each image. As two
batched products it needs no gather, whose gradient would be a scatter (slow on CPU, unordered on GPU).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def normalize(images: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """(images - mean) / std by channel; images: f32[..., C] in [0, 1]."""
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def denormalize(images: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """The inverse of `normalize`; images: f32[..., C] as a network takes them."""
    return images * jnp.asarray(std, images.dtype) + jnp.asarray(mean, images.dtype)


def random_crop(key: Array, images: Array, padding: int) -> Array:
    """Shifts each image by up to `padding` pixels a side, zeros coming in (METHOD 1.1: crop of the padded image).

    Args:
      key: one key for the batch.
      images: f32[B, H, W, C] in [0, 1]; zero is black.
      padding: largest shift in pixels; 0 gives the images back.
    """
    if not padding:
        return images
    batch, height, width, _ = images.shape
    shifts = jax.random.randint(key, (2, batch, 1, 1), -padding, padding + 1)
    return _resample(images, _shift_matrix(shifts[0], height), _shift_matrix(shifts[1], width))


def random_flip(key: Array, images: Array) -> Array:
    """Mirrors each image left to right with probability one half; images: f32[B, H, W, C]."""
    flip = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)


def random_crop_flip(key: Array, images: Array, padding: int, flip: bool = True) -> Array:
    """`random_crop`, then `random_flip` where asked for: the CIFAR training view (METHOD 4)."""
    crop_key, flip_key = jax.random.split(key)
    images = random_crop(crop_key, images, padding)
    return random_flip(flip_key, images) if flip else images


def _shift_matrix(shift: Array, size: int) -> Array:
    """f32[B, size, size] that picks row i + shift; rows outside the image give zero."""
    target = jnp.arange(size)[:, None] + shift
    return (jnp.arange(size)[None, None, :] == target).astype(jnp.float32)


def _resample(images: Array, rows: Array, columns: Array) -> Array:
    # HIGHEST: a selection must not round the pixels where products are done in TF32 or bf16.
    return jnp.einsum("bip,bpqc,bjq->bijc", rows, images, columns, precision=lax.Precision.HIGHEST)
