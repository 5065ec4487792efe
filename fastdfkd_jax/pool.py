"""D', the set of synthesised images, on the device: uint8 rows, filled from the front."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fastdfkd_jax import replay
from fastdfkd_jax.replay import Replay

Array = jax.Array

_CLASS = jax.ShapeDtypeStruct((), jnp.int32)


class Pool(NamedTuple):
    """Images on the device.

    Attributes:
      images: uint8[capacity, H, W, C]; rows from `size` on are not yet filled.
      labels: i32[capacity], the classes that were asked for or that data have; -1 where not known. Of data with a class
        for every pixel uint8[capacity, H, W].
      size: i32[], rows that are filled.
      replay: what is known of each image where sampling is not uniform, else None.
    """

    images: Array
    labels: Array
    size: Array
    replay: Replay | None = None


class Batches(NamedTuple):
    """Images of a pool that were read for a few student steps.

    Attributes:
      images: uint8[steps, B, H, W, C].
      labels: i32[steps, B]; -1 where not known.
    """

    images: Array
    labels: Array


def empty(
    capacity: int, image_shape: tuple[int, int, int], replayed: bool = False, label: jax.ShapeDtypeStruct = _CLASS
) -> Pool:
    """An empty pool with room for `capacity` images.

    Args:
      capacity: how many.
      image_shape: (H, W, C) of each.
      replayed: whether they will not be drawn uniformly.
      label: shape and type of the label of each.
    """
    images = jnp.zeros((capacity, *image_shape), jnp.uint8)
    # Of unsigned maps this is 255, void.
    labels = jnp.full((capacity, *label.shape), -1, jnp.int32).astype(label.dtype)
    return Pool(images, labels, jnp.zeros((), jnp.int32), replay.init(capacity) if replayed else None)


def to_uint8(images: Array) -> Array:
    """f32 in [0, 1] to uint8, rounded (the released code truncates, which darkens by half a level, METHOD T15)."""
    return jnp.round(jnp.clip(images, 0, 1) * 255).astype(jnp.uint8)


def to_float(images: Array) -> Array:
    """uint8 to f32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def append(pool: Pool, rows: Array, labels: Array, kept: Array | bool = True) -> Pool:
    """Adds uint8[N, H, W, C] and their labels (Algorithm 1 line 11) if they are kept; the capacity must hold them."""
    images = jax.lax.dynamic_update_slice(pool.images, rows, (pool.size, 0, 0, 0))
    labels = jax.lax.dynamic_update_slice(pool.labels, labels, (pool.size, *[0] * (labels.ndim - 1)))
    return pool._replace(images=images, labels=labels, size=pool.size + jnp.where(kept, rows.shape[0], 0))


def draw(key: Array, size: Array, batch: int) -> Array:
    """Rows i32[batch] of a pool of so many images, uniformly with replacement (Algorithm 1 line 18)."""
    return jax.random.randint(key, (batch,), 0, size)


def sample(key: Array, pool: Pool, batch: int) -> tuple[Array, Array]:
    """Draws uniformly with replacement (Algorithm 1 line 18).

    Returns:
      Images f32[batch, H, W, C] in [0, 1] and their labels.
    """
    rows = draw(key, pool.size, batch)
    return to_float(pool.images[rows]), pool.labels[rows]
