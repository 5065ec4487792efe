"""Non-uniform sampling from D', by class and difficulty.

It follows the priority sampling of SSD-KD (Liu et al., CVPR 2024), in the form of prioritised experience replay (Schaul
et al., ICLR 2016). An image is drawn with probability p ~ (images of its class)^-a * difficulty^b. Its difficulty is
the divergence of student from teacher when it was last drawn. A loss weight (N p)^-c, at most 1 in a batch, undoes part
of the bias: all of it if c is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fastdfkd_jax.options import Options, option

Array = jax.Array

# Smallest difficulty in nats, so that no image's probability becomes 0.
_LEAST = 1e-3


@dataclass(frozen=True)
class ReplayOptions(Options, section="replay"):
    """Options of sampling from D': three exponents; with all at zero, sampling is uniform."""

    class_exponent: float = option(
        0.0, "exponent a of class balance; 1 draws every class that the teacher sees in D' equally often", at_least=0
    )
    difficulty_exponent: float = option(
        0.0, "exponent b of the student's divergence from the teacher; larger draws hard images more often", at_least=0
    )
    importance_exponent: float = option(
        0.0, "exponent c of the loss weight that undoes the bias; 1 gives the expected gradient of uniform sampling",
        at_least=0,
    )  # fmt: skip

    @property
    def uniform(self) -> bool:
        """True if every image is equally likely."""
        return not (self.class_exponent or self.difficulty_exponent)


class Replay(NamedTuple):
    """The known properties of each image of the pool.

    Attributes:
      classes: i32[capacity], the teacher's predictions, or labels of the initial images; -1 where not known.
      difficulty: f32[capacity], nats.
    """

    classes: Array
    difficulty: Array


def init(capacity: int) -> Replay:
    """Returns the properties of a pool of which nothing is known yet."""
    return Replay(jnp.full(capacity, -1, jnp.int32), jnp.ones(capacity))


def added(replay: Replay, start: Array, classes: Array) -> Replay:
    """Records i32[N] classes of the rows from `start`; new images get the median difficulty of the rows before them.

    With the largest difficulty, a few outliers would crowd out all earlier images. The first images get 1.
    """
    earlier = jnp.where(jnp.arange(len(replay.difficulty)) < start, replay.difficulty, jnp.nan)
    median = jnp.where(start > 0, jnp.nanmedian(earlier), 1.0)
    difficulty = jnp.full(classes.shape, median)
    return Replay(
        jax.lax.dynamic_update_slice(replay.classes, classes, (start,)),
        jax.lax.dynamic_update_slice(replay.difficulty, difficulty, (start,)),
    )


def probabilities(options: ReplayOptions, replay: Replay, size: Array, num_classes: int) -> Array:
    """Returns the images' probabilities f32[capacity]: 0 from `size`, sum 1."""
    filled = jnp.arange(len(replay.classes)) < size
    known = jnp.where(replay.classes < 0, num_classes, replay.classes)  # unknown images form a separate class
    counts = jnp.zeros(num_classes + 1).at[known].add(filled)
    weight = jnp.maximum(counts[known], 1) ** -options.class_exponent
    weight *= jnp.maximum(replay.difficulty, _LEAST) ** options.difficulty_exponent
    weight = jnp.where(filled, weight, 0)
    return weight / weight.sum()


def draw(key: Array, options: ReplayOptions, chances: Array, size: Array, batch: int) -> tuple[Array, Array]:
    """Draws rows i32[batch] with replacement; returns them and their loss weights f32[batch]."""
    ends = jnp.cumsum(chances)
    rows = jnp.searchsorted(ends, jax.random.uniform(key, (batch,)) * ends[-1], side="right")
    rows = jnp.minimum(rows, size - 1)
    weights = (size * chances[rows]) ** -options.importance_exponent
    return rows, weights / weights.max()


def met(replay: Replay, rows: Array, difficulty: Array) -> Replay:
    """Records the difficulty f32[B] of the images of these rows."""
    return replay._replace(difficulty=replay.difficulty.at[rows].set(difficulty))
