"""Image augmentation on the device, differentiable with respect to the images.

A crop, a flip or a resize is separable: one weight matrix for the rows and one for the columns of each image. As two
batched products it needs no gather, whose gradient would be a scatter (slow on CPU, unordered on GPU).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

_DRAWS = 10  # of a window that need not fit


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


def random_crop_flip(key: Array, images: Array, padding: int, flip: bool = True, least_crop: float = 0.0) -> Array:
    """A crop, then `random_flip` where asked for: the training views of CIFAR and ImageNet (METHOD 1.4 and 4).

    Args:
      key: one key for the batch.
      images: f32[B, H, W, C] in [0, 1].
      padding: largest shift of `random_crop`, in pixels.
      flip: whether images are mirrored at random.
      least_crop: where it is not 0, the least share of the area that a `random_resized_crop` keeps, in place of shifts.
    """
    crop_key, flip_key = jax.random.split(key)
    if least_crop:
        images = random_resized_crop(crop_key, images, (least_crop, 1.0))
    else:
        images = random_crop(crop_key, images, padding)
    return random_flip(flip_key, images) if flip else images


def random_roll(key: Array, images: Array, most: int) -> Array:
    """Rolls the whole batch by up to `most` pixels along both axes, what leaves on one side coming in on the other.

    All of f32[B, H, W, C] moves alike (METHOD 1.6, 'jitter'); 0 gives the images back.
    """
    if not most:
        return images
    down, right = jax.random.randint(key, (2,), -most, most + 1)
    return jnp.roll(jnp.roll(images, down, axis=1), right, axis=2)


def random_batch_flip(key: Array, images: Array) -> Array:
    """Mirrors all of f32[B, H, W, C] left to right, or none of it, with probability one half (METHOD 1.6)."""
    return jnp.where(jax.random.bernoulli(key), images[:, :, ::-1], images)


def half_size(images: Array) -> Array:
    """Means of 2x2 pixels: f32[B, H, W, C] to f32[B, H / 2, W / 2, C]; an odd last row or column is dropped."""
    batch, height, width, channels = images.shape
    images = images[:, : height // 2 * 2, : width // 2 * 2]
    return images.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


class Box(NamedTuple):
    """A window of each image in pixels, i32[B] each; `top` and `left` are its first row and column."""

    top: Array
    left: Array
    height: Array
    width: Array


def random_resized_crop(
    key: Array, images: Array, scale: tuple[float, float] = (0.25, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> Array:
    """A random window of each image, brought back to the images' size (METHOD 1.5, the local view).

    Args:
      key: one key for the batch.
      images: f32[B, H, W, C].
      scale: least and largest share of the image's area.
      ratio: least and largest width over height, its logarithm uniform.
    """
    return resized_crop(images, random_boxes(key, images.shape, scale, ratio))


def random_boxes(key: Array, shape: tuple[int, ...], scale: tuple[float, float], ratio: tuple[float, float]) -> Box:
    """Windows of images [B, H, W, C] as torchvision draws them: the first of ten that fits, else all of the image."""
    batch, height, width, _ = shape
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    area = height * width * jax.random.uniform(area_key, (_DRAWS, batch), minval=scale[0], maxval=scale[1])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = jnp.exp(jax.random.uniform(ratio_key, (_DRAWS, batch), minval=low, maxval=high))
    widths = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    heights = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (widths <= width) & (heights <= height) & (widths > 0) & (heights > 0)
    first, images = fits.argmax(0), jnp.arange(batch)
    some = fits.any(0)
    widths = jnp.where(some, widths[first, images], width)
    heights = jnp.where(some, heights[first, images], height)
    top, left = jax.random.randint(place_key, (2, batch), 0, jnp.stack([height - heights, width - widths]) + 1)
    return Box(top, left, heights, widths)


def resized_crop(images: Array, box: Box) -> Array:
    """The windows of f32[B, H, W, C] brought to H x W: bilinear, of pixel centres, nothing from outside a window."""
    _, height, width, _ = images.shape
    return _resample(images, _resize_matrix(box.top, box.height, height), _resize_matrix(box.left, box.width, width))


def _resize_matrix(start: Array, length: Array, size: int) -> Array:
    """f32[B, size, size] that interpolates linearly between rows start to start + length - 1."""
    centres = (jnp.arange(size) + 0.5) * (length[:, None] / size) - 0.5
    source = start[:, None] + jnp.clip(centres, 0, length[:, None] - 1)
    return jnp.maximum(0, 1 - jnp.abs(source[:, :, None] - jnp.arange(size)))


def _shift_matrix(shift: Array, size: int) -> Array:
    """f32[B, size, size] that picks row i + shift; rows outside the image give zero."""
    target = jnp.arange(size)[:, None] + shift
    return (jnp.arange(size)[None, None, :] == target).astype(jnp.float32)


def _resample(images: Array, rows: Array, columns: Array) -> Array:
    # HIGHEST: a selection must not round the pixels where products are done in TF32 or bf16.
    return jnp.einsum("bip,bpqc,bjq->bijc", rows, images, columns, precision=lax.Precision.HIGHEST)
