"""Image augmentation on the device, differentiable with respect to the images.

How a batch is shown is drawn (`draw_view`) apart from showing it (`apply_view`), so that a view can be stored and met
again.
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
    """What each image of a batch shows of another one.

    Attributes:
      partner: i32[B], a permutation: whose pixels are pasted over image i.
      box: i32[], where, the same place in all images; of no height or width where nothing is pasted.
    """

    partner: Array
    box: Box


class View(NamedTuple):
    """How a batch is shown, None for what its options never do.

    Attributes:
      shift: of each image, i32[B].
      window: of each image, i32[B], brought to the images' size.
      flip: bool[B], whether it is then mirrored.
      mix: what then covers it.
    """

    shift: Shift | None = None
    window: Box | None = None
    flip: Array | None = None
    mix: Mix | None = None


@dataclass(frozen=True)
class ViewOptions(Options, section="kd"):
    """Static choices of training views (METHOD 1.4 and 4), and CutMix."""

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
    """(images - mean) / std by channel; images: f32[..., C] in [0, 1]."""
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def denormalize(images: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """The inverse of `normalize`; images: f32[..., C] as a network takes them."""
    return images * jnp.asarray(std, images.dtype) + jnp.asarray(mean, images.dtype)


def draw_view(key: Array, shape: tuple[int, ...], options: ViewOptions) -> View:
    """Draws how images [B, H, W, C] are shown; a view is a function of the key, the shape and the options."""
    crop_key, flip_key = jax.random.split(key)
    shift, window, flip, mix = None, None, None, None
    if options.least_crop:
        window = random_boxes(crop_key, shape, (options.least_crop, 1.0))
    elif options.crop_padding:
        shift = random_shifts(crop_key, shape[0], options.crop_padding)
    if options.flip:
        flip = _coins(flip_key, shape[0])
    if options.cutmix:
        # Folding in 0 or 1 gives the two keys above again, 1 dropout's and 3 that of random squares (`distill`).
        mix = random_mix(jax.random.fold_in(key, 4), shape, options.cutmix, options.cutmix_alpha)
    return View(shift, window, flip, mix)


def apply_view(images: Array, view: View) -> Array:
    """Shows images f32[B, H, W, C] in [0, 1], zero being black, as a view of them says; integers may be narrow."""
    view = _with_integers(view, jnp.int32)
    if view.shift is not None:
        images = shifted(images, view.shift)
    if view.window is not None:
        images = resized_crop(images, view.window)
    if view.flip is not None:
        images = _mirror(images, view.flip)
    return images if view.mix is None else cutmix(images, view.mix)


def apply_view_to_labels(labels: Array, view: View) -> Array:
    """Shows maps of labels as `apply_view` shows their images: the nearest pixel's, -1 where nothing is known.

    Args:
      labels: int[B, H, W].
      view: of images of that size.

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
    """Cuts a random square out of each image, and the same out of its map of labels.

    Args:
      key: one key for the batch.
      images: f32[B, H, W, C], no smaller than the square.
      labels: int[B, H, W]; what is no map, or None, comes back as it is.
      side: of the square in pixels; 0 for whole images.
    """
    if not side:
        return images, labels
    place = random_places(key, images.shape, side)
    if labels is not None and labels.ndim == 3:
        labels = squares(labels[..., None], place, side)[..., 0]
    return squares(images, place, side), labels


def compact(view: View) -> View:
    """The same view in the fewest bytes: pixels as int16, partners as uint16.

    For images of up to 32,767 pixels a side and batches of up to 65,536.
    """
    small = _with_integers(view, jnp.int16)
    if view.mix is None:
        return small
    return small._replace(mix=small.mix._replace(partner=view.mix.partner.astype(jnp.uint16)))


def random_crop(key: Array, images: Array, padding: int) -> Array:
    """Shifts each image by up to `padding` pixels a side, zeros coming in (METHOD 1.1: crop of the padded image).

    Args:
      key: one key for the batch.
      images: f32[B, H, W, C] in [0, 1]; zero is black.
      padding: largest shift in pixels; 0 gives the images back.
    """
    return shifted(images, random_shifts(key, images.shape[0], padding)) if padding else images


def random_flip(key: Array, images: Array) -> Array:
    """Mirrors each image left to right with probability one half; images: f32[B, H, W, C]."""
    return _mirror(images, _coins(key, images.shape[0]))


def random_crop_flip(key: Array, images: Array, padding: int, flip: bool = True, least_crop: float = 0.0) -> Array:
    """A drawn view of f32[B, H, W, C] without mixing; `ViewOptions` explains the choices."""
    return apply_view(images, draw_view(key, images.shape, ViewOptions(padding, flip, least_crop)))


def random_mix(key: Array, shape: tuple[int, ...], probability: float, alpha: float = 1.0) -> Mix:
    """Draws partners and the one box of a batch [B, H, W, C], as CutMix's own code does (Yun et al., ICCV 2019).

    Args:
      key: one key for the batch.
      shape: of the images.
      probability: that anything is mixed.
      alpha: of Beta(alpha, alpha), the share of the area that is not pasted over, before the box is cut at the border.
    """
    batch, *sides, _ = shape
    coin_key, share_key, place_key, partner_key = jax.random.split(key, 4)
    # The same at 1, without the loops in which a Beta variable is drawn.
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
    # Each image is a partner once, so the gradient's scatter adds nothing twice and its order does not matter.
    return jnp.where(inside, images.at[mix.partner].get(unique_indices=True), images)


def own_share(mix: Mix, shape: tuple[int, ...]) -> Array:
    """The share, f32[], of their own pixels that mixed images [B, H, W, C] show: the weight of their labels."""
    return 1 - mix.box.height.astype(jnp.float32) * mix.box.width / (shape[1] * shape[2])


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


def _with_integers(view: Any, dtype: Any) -> Any:
    """The view with all numbers of this type; coins stay what they are."""
    return jax.tree.map(lambda x: x if x.dtype == jnp.bool_ else x.astype(dtype), view)


def _coins(key: Array, count: int) -> Array:
    return jax.random.bernoulli(key, 0.5, (count,))


def _mirror(images: Array, flip: Array) -> Array:
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
