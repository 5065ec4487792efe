"""A batch in chunks of a few images, for work whose intermediate arrays should stay in a core's cache.

Each device's share of the batch is a group of its own, so that a loop over chunks runs over no axis that is laid over
devices: chunk i has the i-th images of every group. Chunks are cut from and put into the second axis, for a
transposition would be a pass through memory. Every loop takes its chunks from an array of the same shape, whatever
their length: XLA then computes an input that two loops share, a layer's and its gradient's, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Tree = Any


def images_a_chunk(batch: int, most: int) -> int:
    """Images of one device in a chunk: at most so many, at least one, a divisor of the device's share."""
    images = batch // _groups(batch)
    chunk = max(1, min(images, most))
    while images % chunk:
        chunk -= 1
    return chunk


def concatenated(f: Callable[[Array], Tree], x: Array, images: int) -> Tree:
    """`f` of each chunk [groups * images, ...] of x [B, ...], and its results of the same length together again."""
    parts = _split(x)
    groups, length = parts.shape[:2]

    def of_chunk(i: Array) -> Tree:
        y = f(_take(parts, i, images))
        return jax.tree.map(lambda y: y.reshape(groups, images, *y.shape[1:]), y)

    def put(i: Array, out: Tree) -> Tree:
        start = i * images
        return jax.tree.map(lambda out, y: lax.dynamic_update_slice_in_dim(out, y, start, 1), out, of_chunk(i))

    shapes = jax.eval_shape(of_chunk, jnp.zeros((), jnp.int32))
    out = jax.tree.map(lambda y: jnp.zeros((groups, length, *y.shape[2:]), y.dtype), shapes)
    out = lax.fori_loop(0, length // images, put, out)
    return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:]), out)


def map_in_chunks(f: Callable[[Array], Tree], x: Array, most: int) -> Tree:
    """`f` of x [B, ...], at most so many images of a device at a time; f maps each image by itself."""
    return concatenated(f, x, images_a_chunk(x.shape[0], most))


def summed(f: Callable[[Array, Array, int], Array], x: Array, y: Array, images: int) -> Array:
    """The sum of `f(chunk of x, chunk of y, groups)` over chunks; f keeps groups apart on its first axis."""
    x, y = _split(x), _split(y)
    groups, length = x.shape[:2]

    def of_chunk(i: Array) -> Array:
        return f(_take(x, i, images), _take(y, i, images), groups)

    shape = jax.eval_shape(of_chunk, jnp.zeros((), jnp.int32))
    total = jnp.zeros(shape.shape, shape.dtype)
    return lax.fori_loop(0, length // images, lambda i, total: total + of_chunk(i), total).sum(0)


def image_by_image(x: Array) -> Array:
    """[B, ...] to [images of a group, groups, ...], for a scan; on each device nothing moves."""
    return _split(x).swapaxes(0, 1)


def _split(x: Array) -> Array:
    """[B, ...] to [groups, images of a group, ...]."""
    return x.reshape(_groups(x.shape[0]), -1, *x.shape[1:])


def _take(parts: Array, i: Array, images: int) -> Array:
    """Chunk i as one batch, [groups * images, ...]."""
    chunk = lax.dynamic_slice_in_dim(parts, i * images, images, 1)
    return chunk.reshape(-1, *chunk.shape[2:])


def _groups(batch: int) -> int:
    return math.gcd(batch, jax.device_count())
