"""Cuts windows out of images and resizes them; differentiable with respect to the images.

A crop or a resize is separable: it has one weight matrix for the rows and one for the columns of each image. Two
batched products need no gather, whose gradient would be a scatter (slow on CPU, unordered on GPU).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

_DRAWS = 10  # attempts to draw a window that fits


class Box(NamedTuple):
    """A window in pixels, i32[B] for each image or i32[] for all; `top` and `left` are its first row and column."""

    top: Array
    left: Array
    height: Array
    width: Array


class Shift(NamedTuple):
    """First row and column, i32[B] each, of windows of one size; outside an image pixels are zero, which is black."""

    top: Array
    left: Array


def random_shifts(key: Array, batch: int, padding: int) -> Shift:
    """Draws shifts of `batch` images by up to `padding` pixels a side."""
    top, left = jax.random.randint(key, (2, batch), -padding, padding + 1)
    return Shift(top, left)


def shifted(images: Array, shift: Shift) -> Array:
    """Cuts the windows out of f32[B, H, W, C] with bit-identical pixels; outside an image they are zero."""
    _, height, width, _ = images.shape
    return _resample(images, _shift_matrix(shift.top, height), _shift_matrix(shift.left, width))


def random_places(key: Array, shape: tuple[int, ...], side: int) -> Shift:
    """Draws the first rows and columns of squares of `side` pixels within images [B, H, W, C]."""
    batch, height, width, _ = shape
    top, left = jax.random.randint(key, (2, batch), 0, jnp.array([[height - side], [width - side]]) + 1)
    return Shift(top, left)


def squares(images: Array, place: Shift, side: int) -> Array:
    """Cuts the squares out of [B, H, W, C] at these places, [B, side, side, C], bit-identical, for any type."""

    def cut(image: Array, top: Array, left: Array) -> Array:
        return lax.dynamic_slice(image, (top, left, 0), (side, side, image.shape[-1]))

    return jax.vmap(cut)(images, place.top, place.left)


def random_boxes(
    key: Array, shape: tuple[int, ...], scale: tuple[float, float], ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> Box:
    """Draws windows of images [B, H, W, C] as torchvision does: the first of ten that fits, else the whole image."""
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
    """Resizes windows of f32[B, H, W, C] to H x W bilinearly by pixel centres, using only pixels in the window."""
    _, height, width, _ = images.shape
    return _resample(images, _resize_matrix(box.top, box.height, height), _resize_matrix(box.left, box.width, width))


def shifted_labels(labels: Array, shift: Shift) -> Array:
    """Cuts the windows out of i32[B, H, W], with -1 outside a map."""
    _, height, width = labels.shape
    rows, columns = (start[:, None] + jnp.arange(size) for start, size in ((shift.top, height), (shift.left, width)))
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    return jnp.where(inside, _picked(labels, jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)), -1)


def resized_labels(labels: Array, box: Box) -> Array:
    """Resizes the windows of i32[B, H, W] to H x W by the pixel that contains each new pixel's centre."""
    _, height, width = labels.shape

    def nearest(start: Array, length: Array, size: int) -> Array:
        return start[:, None] + (2 * jnp.arange(size) + 1) * length[:, None] // (2 * size)

    return _picked(labels, nearest(box.top, box.height, height), nearest(box.left, box.width, width))


def _picked(labels: Array, rows: Array, columns: Array) -> Array:
    """Picks pixels of [B, H, W] at these rows and columns, i32[B, H] and i32[B, W]."""
    return jax.vmap(lambda image, row, column: image[row][:, column])(labels, rows, columns)


def _resize_matrix(start: Array, length: Array, size: int) -> Array:
    """Returns f32[B, size, size] that interpolates linearly between rows start to start + length - 1."""
    centres = (jnp.arange(size) + 0.5) * (length[:, None] / size) - 0.5
    source = start[:, None] + jnp.clip(centres, 0, length[:, None] - 1)
    return jnp.maximum(0, 1 - jnp.abs(source[:, :, None] - jnp.arange(size)))


def _shift_matrix(start: Array, size: int) -> Array:
    """Returns f32[B, size, size] that picks row i + start; rows outside the image give zero."""
    target = jnp.arange(size)[:, None] + start[:, None, None]
    return (jnp.arange(size) == target).astype(jnp.float32)


def _resample(images: Array, rows: Array, columns: Array) -> Array:
    # HIGHEST, because TF32 or bf16 products would round the selected pixels.
    return jnp.einsum("bip,bpqc,bjq->bijc", rows, images, columns, precision=lax.Precision.HIGHEST)
