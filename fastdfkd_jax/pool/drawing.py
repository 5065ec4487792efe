"""Draws the images of D' for a student step uniformly: independently, or in shuffled passes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


# How the student draws from D': each image independently of the others, or in shuffled passes over all of them.
DRAWS = ("replacement", "passes")


_ROUNDS = 6  # of the Feistel network: four look random, and small ranges need a few more


def draw(key: Array, size: Array, batch: int) -> Array:
    """Draws rows i32[batch] of a pool of this size, uniformly with replacement (Algorithm 1 line 18)."""
    return jax.random.randint(key, (batch,), 0, size)


def draw_in_passes(key: Array, turn: Array, size: Array, batch: int) -> Array:
    """Draws rows i32[batch] in shuffled passes over a pool of `size` images, each once per pass (METHOD 1.1).

    Batch `turn`, counted from 0, continues where the previous one ended. If a pass ends within a batch, the next pass,
    in another order, fills it.

    Args:
      key: random key of the passes; the same for all their batches.
      turn: i32[], number of the batch.
      size: i32[], number of images; at least 1.
      batch: rows per batch.
    """
    position = turn * batch + jnp.arange(batch)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, position // size)
    return jax.vmap(_shuffled, (0, 0, None))(keys, position % size, size)


def _shuffled(key: Array, index: Array, size: Array) -> Array:
    """Returns the number i32[] at an index of a pseudo-random permutation of range(size), without computing the others.

    A Feistel network permutes the smallest range of 4^n numbers that holds `size`. A number of `size` or more is
    permuted again until the result is below it (cycle walking; Black and Rogaway, CT-RSA 2002).
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
    """Hashes u32[] so that every bit depends on all bits (the finalizer of MurmurHash3)."""
    number = (number ^ (number >> 16)) * jnp.uint32(0x85EBCA6B)
    number = (number ^ (number >> 13)) * jnp.uint32(0xC2B2AE35)
    return number ^ (number >> 16)


def keys_of_step(key: Array, step: Array) -> tuple[Array, Array]:
    """Returns the two keys of a student step: one draws its images, the other their views."""
    sample_key, view_key = jax.random.split(jax.random.fold_in(key, step))
    return sample_key, view_key


def row_drawer(batch: int, steps_per_call: int, in_passes: bool) -> Callable[[Array, Array, Array], Array]:
    """Returns `draw(key, step, size) -> i32[batch]`, which draws a student step's images from `size` images.

    Args:
      batch: images per step.
      steps_per_call: steps after which passes start again, because D' has grown.
      in_passes: whether images are drawn in passes instead of independently.
    """

    def draw_one(key: Array, step: Array, size: Array) -> Array:
        return draw(keys_of_step(key, step)[0], size, batch)

    def draw_pass(key: Array, step: Array, size: Array) -> Array:
        turn = step % steps_per_call
        return draw_in_passes(keys_of_step(key, step - turn)[0], turn, size, batch)

    return draw_pass if in_passes else draw_one
