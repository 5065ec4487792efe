"""A batch in chunks of a few images, for work whose intermediate arrays should stay in a core's cache.

Each device's share of the batch is a group of its own, so that a loop over chunks runs over no axis that is laid over
devices.
"""

from __future__ import annotations

import math

import jax

Array = jax.Array


def images_a_chunk(batch: int, bytes_of_an_image: int, budget: int) -> int:
    """Images of one device in a chunk: as many as the budget (in bytes) holds, at least one, a divisor of its share."""
    images = batch // _groups(batch)
    chunk = max(1, min(images, budget // bytes_of_an_image))
    while images % chunk:
        chunk -= 1
    return chunk


def split(x: Array, chunk: int) -> Array:
    """[B, ...] to [chunks, groups, images, ...]."""
    return x.reshape(_groups(x.shape[0]), -1, chunk, *x.shape[1:]).swapaxes(0, 1)


def join(chunks: Array) -> Array:
    """The inverse of `split`."""
    return chunks.swapaxes(0, 1).reshape(-1, *chunks.shape[3:])


def _groups(batch: int) -> int:
    return math.gcd(batch, jax.device_count())
