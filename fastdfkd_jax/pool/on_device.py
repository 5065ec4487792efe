"""D', the set of synthesised images, on the device: uint8 rows, filled from the front."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fastdfkd_jax.pool import sampling
from fastdfkd_jax.pool.sampling import Replay

Array = jax.Array

# How the student draws from D': each image independently of the others, or in shuffled passes over all of them.
DRAWS = ("replacement", "passes")
_ROUNDS = 6  # of the permutation: four pass for random, and small ranges need a few more
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
    return Pool(images, labels, jnp.zeros((), jnp.int32), sampling.init(capacity) if replayed else None)


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


def draw_in_passes(key: Array, turn: Array, size: Array, batch: int) -> Array:
    """Rows i32[batch] of shuffled passes over a pool of `size` images, each of them once a pass (METHOD 1.1).

    Batch `turn`, counted from 0, continues where the one before it ended; where a pass ends within a batch, the next
    pass, in another order, fills it.

    Args:
      key: of the passes; the same for all their batches.
      turn: i32[], which batch.
      size: i32[], images; at least 1.
      batch: rows of a batch.
    """
    position = turn * batch + jnp.arange(batch)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, position // size)
    return jax.vmap(_shuffled, (0, 0, None))(keys, position % size, size)


def _shuffled(key: Array, index: Array, size: Array) -> Array:
    """The number i32[] at an index of a pseudo-random permutation of range(size), without computing the others.

    A Feistel network permutes the smallest range of 4^n numbers that holds `size`; numbers from `size` on are sent on
    until one below it is met (cycle walking; Black and Rogaway, CT-RSA 2002).
    """
    rounds = jax.random.bits(key, (_ROUNDS,))
    bits = (33 - jax.lax.clz(jnp.asarray(size - 1, jnp.int32))).astype(jnp.uint32) // 2  # of each half
    bits = jnp.maximum(bits, 1)
    mask = (jnp.uint32(1) << bits) - 1

    def permute(number: Array) -> Array:
        def one(halves: tuple[Array, Array], salt: Array):
            left, right = halves
            return (right, left ^ (_mixed(right ^ salt) & mask)), None

        (left, right), _ = jax.lax.scan(one, (number >> bits, number & mask), rounds)
        return (left << bits) | right

    def is_outside(number: Array) -> Array:
        return number >= size.astype(jnp.uint32)

    return jax.lax.while_loop(is_outside, permute, permute(index.astype(jnp.uint32))).astype(jnp.int32)


def _mixed(number: Array) -> Array:
    """A hash of u32[] whose every bit depends on all bits (the finalizer of MurmurHash3)."""
    number = (number ^ (number >> 16)) * jnp.uint32(0x85EBCA6B)
    number = (number ^ (number >> 13)) * jnp.uint32(0xC2B2AE35)
    return number ^ (number >> 16)
