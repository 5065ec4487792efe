"""Image augmentation on the device, differentiable with respect to the images.

A view is drawn (`draw_view`) separately from its application (`apply_view`), so that it can be stored and reused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastdfkd_jax.augmentation.crops import (
    Box,
    Shift,
    random_boxes,
    random_places,
    random_shifts,
    resized_crop,
    resized_labels,
    shifted,
    shifted_labels,
    squares,
)
from fastdfkd_jax.options import Options, option

Array = jax.Array


class Mix(NamedTuple):
    """The part of each image that is replaced by another one of the batch.

    Attributes:
      partner: i32[B], a permutation: index of the image that is pasted over image i.
      box: i32[], the pasted region, the same in all images; its height or width is 0 if nothing is pasted.
    """

    partner: Array
    box: Box


class View(NamedTuple):
    """The augmentation of a batch; None for operations that the options exclude.

    Attributes:
      shift: shift of each image, i32[B].
      window: window of each image, i32[B], resized to the images' size.
      flip: bool[B], whether the image is then mirrored.
      mix: the images that are then pasted over it.
    """

    shift: Shift | None = None
    window: Box | None = None
    flip: Array | None = None
    mix: Mix | None = None


@dataclass(frozen=True)
class ViewOptions(Options, section="kd"):
    """Options of training views (METHOD 1.4 and 4) and of CutMix."""

    crop_padding: int = option(4, "largest random shift in pixels, padded with zeros; 0 for none", at_least=0)
    flip: bool = option(True, "mirror images at random")
    least_crop: float = option(
        0.0,
        "smallest share of the area in randomly resized crops, which replace shifts; 0 keeps shifts",
        within="[0, 1]",
    )
    cutmix: float = option(0.0, "probability that a batch is mixed by CutMix (docs/methods.md)", within="[0, 1]")
    cutmix_alpha: float = option(
        1.0, "alpha of Beta(alpha, alpha), which CutMix draws the share kept of each image from", above=0
    )


def normalize(images: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """Returns (images - mean) / std by channel; images: f32[..., C] in [0, 1]."""
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def normalize_bytes(images: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """Returns `normalize` of images uint8[..., C], as f32[..., C]."""
    return normalize(images.astype(jnp.float32) / 255, mean, std)


def denormalize(images: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """Inverts `normalize`; images: f32[..., C] as a network takes them."""
    return images * jnp.asarray(std, images.dtype) + jnp.asarray(mean, images.dtype)


def draw_view(key: Array, shape: tuple[int, ...], options: ViewOptions) -> View:
    """Draws the view of images [B, H, W, C], which depends only on the key, the shape and the options."""
    crop_key, flip_key = jax.random.split(key)
    shift, window, flip, mix = None, None, None, None
    if options.least_crop:
        window = random_boxes(crop_key, shape, (options.least_crop, 1.0))
    elif options.crop_padding:
        shift = random_shifts(crop_key, shape[0], options.crop_padding)
    if options.flip:
        flip = _coins(flip_key, shape[0])
    if options.cutmix:
        # Folding in 0 or 1 gives the two keys above again; 1 is also dropout's, 3 that of random squares (`distill`).
        mix = random_mix(jax.random.fold_in(key, 4), shape, options.cutmix, options.cutmix_alpha)
    return View(shift, window, flip, mix)


def apply_view(images: Array, view: View) -> Array:
    """Applies a view to images f32[B, H, W, C] in [0, 1], where zero is black; the view's integers may be narrow."""
    view = _with_integers(view, jnp.int32)
    if view.shift is not None:
        images = shifted(images, view.shift)
    if view.window is not None:
        images = resized_crop(images, view.window)
    if view.flip is not None:
        images = _mirror(images, view.flip)
    return images if view.mix is None else cutmix(images, view.mix)


def apply_view_to_labels(labels: Array, view: View) -> Array:
    """Applies a view to label maps as `apply_view` does to images: nearest pixels, -1 if unknown.

    Args:
      labels: int[B, H, W].
      view: a view of images of that size.

    Returns:
      i32[B, H, W].
    """
    labels = labels.astype(jnp.int32)
    view = _with_integers(view, jnp.int32)
    if view.shift is not None:
        labels = shifted_labels(labels, view.shift)
    if view.window is not None:
        labels = resized_labels(labels, view.window)
    if view.flip is not None:
        labels = jnp.where(view.flip[:, None, None], labels[:, :, ::-1], labels)
    return labels if view.mix is None else cutmix(labels[..., None], view.mix)[..., 0]


def random_squares(key: Array, images: Array, labels: Any, side: int) -> tuple[Array, Any]:
    """Cuts a random square out of each image, and the same square out of its label map.

    Args:
      key: one key for the batch.
      images: f32[B, H, W, C], no smaller than the square.
      labels: int[B, H, W]; other labels, or None, are returned unchanged.
      side: side of the square in pixels; 0 for whole images.
    """
    if not side:
        return images, labels
    place = random_places(key, images.shape, side)
    if labels is not None and labels.ndim == 3:
        labels = squares(labels[..., None], place, side)[..., 0]
    return squares(images, place, side), labels


def compact(view: View) -> View:
    """Returns the same view in the fewest bytes: pixels as int16, partners as uint16.

    It suits images of up to 32,767 pixels a side and batches of up to 65,536.
    """
    small = _with_integers(view, jnp.int16)
    if view.mix is None:
        return small
    return small._replace(mix=small.mix._replace(partner=view.mix.partner.astype(jnp.uint16)))


def random_crop(key: Array, images: Array, padding: int) -> Array:
    """Shifts each image by up to `padding` pixels a side and fills with zeros (METHOD 1.1: crop of the padded image).

    Args:
      key: one key for the batch.
      images: f32[B, H, W, C] in [0, 1]; zero is black.
      padding: largest shift in pixels; 0 returns the images unchanged.
    """
    return shifted(images, random_shifts(key, images.shape[0], padding)) if padding else images


def random_flip(key: Array, images: Array) -> Array:
    """Mirrors each image left to right with probability one half; images: f32[B, H, W, C]."""
    return _mirror(images, _coins(key, images.shape[0]))


def random_crop_flip(key: Array, images: Array, padding: int, flip: bool = True, least_crop: float = 0.0) -> Array:
    """Draws and applies a view of f32[B, H, W, C] without mixing; `ViewOptions` explains the choices."""
    return apply_view(images, draw_view(key, images.shape, ViewOptions(padding, flip, least_crop)))


def random_mix(key: Array, shape: tuple[int, ...], probability: float, alpha: float = 1.0) -> Mix:
    """Draws partners and the common box of a batch [B, H, W, C], as in CutMix's code (Yun et al., ICCV 2019).

    Args:
      key: one key for the batch.
      shape: shape of the images.
      probability: probability that the batch is mixed.
      alpha: parameter of Beta(alpha, alpha), which draws the share of the area that is kept, before the box is clipped.
    """
    batch, *sides, _ = shape
    coin_key, share_key, place_key, partner_key = jax.random.split(key, 4)
    # At alpha 1 Beta is uniform, which is drawn without Beta's loops.
    share = jax.random.uniform(share_key) if alpha == 1 else jax.random.beta(share_key, alpha, alpha)
    half = (jnp.sqrt(1 - share) * jnp.array(sides)).astype(jnp.int32) // 2
    centre = jax.random.randint(place_key, (2,), 0, jnp.array(sides))
    start, end = jnp.maximum(centre - half, 0), jnp.minimum(centre + half, jnp.array(sides))
    extent = jnp.where(jax.random.bernoulli(coin_key, probability), end - start, 0)
    return Mix(jax.random.permutation(partner_key, batch), Box(start[0], start[1], extent[0], extent[1]))


def cutmix(images: Array, mix: Mix) -> Array:
    """Pastes the partners' pixels into the box of f32[B, H, W, C]."""
    box = mix.box
    rows, columns = (jnp.arange(side) for side in images.shape[1:3])
    inside_rows = (rows >= box.top) & (rows < box.top + box.height)
    inside_columns = (columns >= box.left) & (columns < box.left + box.width)
    inside = inside_rows[:, None, None] & inside_columns[:, None]
    # Each image is a partner once, so the gradient's scatter never adds twice and its order does not matter.
    return jnp.where(inside, images.at[mix.partner].get(unique_indices=True), images)


def own_share(mix: Mix, shape: tuple[int, ...]) -> Array:
    """Returns the share, f32[], of own pixels in mixed images [B, H, W, C], which weights their labels."""
    return 1 - mix.box.height.astype(jnp.float32) * mix.box.width / (shape[1] * shape[2])


def random_roll(key: Array, images: Array, most: int) -> Array:
    """Rolls the whole batch by up to `most` pixels along both axes, with wrap-around.

    All images of f32[B, H, W, C] move equally (METHOD 1.6, 'jitter'); 0 returns them unchanged.
    """
    if not most:
        return images
    down, right = jax.random.randint(key, (2,), -most, most + 1)
    return jnp.roll(jnp.roll(images, down, axis=1), right, axis=2)


def random_batch_flip(key: Array, images: Array) -> Array:
    """Mirrors all of f32[B, H, W, C] left to right, or none, with probability one half (METHOD 1.6)."""
    return jnp.where(jax.random.bernoulli(key), images[:, :, ::-1], images)


def half_size(images: Array) -> Array:
    """Averages 2x2 pixels: f32[B, H, W, C] to f32[B, H / 2, W / 2, C]; drops an odd last row or column."""
    batch, height, width, channels = images.shape
    images = images[:, : height // 2 * 2, : width // 2 * 2]
    return images.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def random_resized_crop(
    key: Array, images: Array, scale: tuple[float, float] = (0.25, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> Array:
    """Cuts a random window out of each image and resizes it to the images' size (METHOD 1.5, the local view).

    Args:
      key: one key for the batch.
      images: f32[B, H, W, C].
      scale: smallest and largest share of the image's area.
      ratio: smallest and largest width over height; its logarithm is uniform.
    """
    return resized_crop(images, random_boxes(key, images.shape, scale, ratio))


def _with_integers(view: Any, dtype: Any) -> Any:
    """Casts the view's numbers to this type and keeps booleans."""
    return jax.tree.map(lambda x: x if x.dtype == jnp.bool_ else x.astype(dtype), view)


def _coins(key: Array, count: int) -> Array:
    return jax.random.bernoulli(key, 0.5, (count,))


def _mirror(images: Array, flip: Array) -> Array:
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
