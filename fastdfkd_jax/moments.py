"""Running moments of the images synthesised so far (paper Eq. 14)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Tree = Any


class Accumulators(NamedTuple):
    """The accumulated moments of BatchNorm inputs.

    Attributes:
      moments: tree like the teacher's `batch_stats`: means and biased variances, f32[C].
      count: i32[], updates so far; the moments are undefined while it is 0.
    """

    moments: Tree
    count: Array


def init(batch_stats: Tree) -> Accumulators:
    """Returns empty accumulators for a teacher with these statistics.

    >>> fd.moments.init({"bn1": {"mean": jnp.ones(1), "var": jnp.ones(1)}}).count
    Array(0, dtype=int32)
    """
    return Accumulators(jax.tree.map(jnp.zeros_like, batch_stats), jnp.zeros((), jnp.int32))


def update(accumulators: Accumulators, moments: Tree, weight: float) -> Accumulators:
    """Returns weight * accumulated + (1 - weight) * new (Eq. 14); the first call takes the new moments (METHOD T3).

    Args:
      accumulators: the current accumulators.
      moments: tree of f32[C], the moments of one synthesis call.
      weight: the accumulators' share, 1 - m in the paper's notation.

    >>> statistics = {"bn1": {"mean": jnp.zeros(1), "var": jnp.ones(1)}}
    >>> seen = fd.moments.init(statistics)
    >>> for mean in (1.0, 2.0):
    ...     seen = fd.moments.update(seen, {"bn1": {"mean": jnp.array([mean]), "var": jnp.ones(1)}}, weight=0.9)
    >>> seen.moments["bn1"]["mean"]
    Array([1.1], dtype=float32)
    """
    keep = jnp.where(accumulators.count == 0, 0.0, weight)
    mixed = jax.tree.map(lambda old, new: keep * old + (1 - keep) * new, accumulators.moments, moments)
    return Accumulators(mixed, accumulators.count + 1)
