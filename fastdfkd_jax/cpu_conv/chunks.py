"""Processes a batch in chunks of a few images, so that intermediate arrays stay in a core's cache.

Each device's share of the batch is a separate group, so that a loop over chunks never runs over an axis that is divided
among devices: chunk i has the i-th images of every group. Chunks are read and written along the second axis, because a
transposition would be a pass through memory. Every loop takes its chunks from an array of the same shape, whatever
their length, so that XLA computes an input that two loops share, a layer's and its gradient's, only once.
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
    """Returns images of one device per chunk: at most `most`, at least one, a divisor of the device's share."""
    images = batch // _groups(batch)
    chunk = max(1, min(images, most))
    while images % chunk:
        chunk -= 1
    return chunk


def concatenated(f: Callable[[Array], Tree], x: Array, images: int) -> Tree:
    """Applies `f` to each chunk [groups * images, ...] of x [B, ...] and joins the results of the same length."""
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
    """Applies `f` to x [B, ...], at most `most` images of a device at a time; f must treat images separately."""
    return concatenated(f, x, images_a_chunk(x.shape[0], most))


def summed(f: Callable[[Array, Array, int], Array], x: Array, y: Array, images: int) -> Array:
    """Sums `f(chunk of x, chunk of y, groups)` over chunks; f keeps groups separate on its first axis."""
    x, y = _split(x), _split(y)
    groups, length = x.shape[:2]

    def of_chunk(i: Array) -> Array:
        return f(_take(x, i, images), _take(y, i, images), groups)

    shape = jax.eval_shape(of_chunk, jnp.zeros((), jnp.int32))
    total = jnp.zeros(shape.shape, shape.dtype)
    return lax.fori_loop(0, length // images, lambda i, total: total + of_chunk(i), total).sum(0)


def image_by_image(x: Array) -> Array:
    """Reshapes [B, ...] to [images of a group, groups, ...] for a scan; nothing moves within a device."""
    return _split(x).swapaxes(0, 1)


def _split(x: Array) -> Array:
    """Reshapes [B, ...] to [groups, images of a group, ...]."""
    return x.reshape(_groups(x.shape[0]), -1, *x.shape[1:])


def _take(parts: Array, i: Array, images: int) -> Array:
    """Returns chunk i as one batch, [groups * images, ...]."""
    chunk = lax.dynamic_slice_in_dim(parts, i * images, images, 1)
    return chunk.reshape(-1, *chunk.shape[2:])


def _groups(batch: int) -> int:
    return math.gcd(batch, jax.device_count())
