"""Batches that live once: each dispatch of student steps learns from images that were made for it alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fastdfkd_jax.pool.feed import Examples, Feed, Functions

Array = jax.Array


def functions(steps: int) -> Functions:
    """For dispatches of so many student steps, which take the batches of a round in turn."""

    def draw(source: Any, known: None, key: Array, step: Array) -> Examples:
        turn = step % steps % len(source.images)
        return Examples(source.images[turn], source.labels[turn])

    return Functions(lambda state, batch, teacher_vars: (state, batch), draw)


class RoundFeed(Feed):
    """The batch of the round.

    Args:
      to_pixels: brings images of a batch to uint8.
    """

    per_dispatch = True

    def __init__(self, to_pixels: Callable[[Array], Array]):
        self._to_pixels = to_pixels
        self._batch: Any = None

    def add(self, batch: Any) -> bool:
        """Takes the batch of the next dispatch."""
        self._batch = batch
        return True

    def take(self, step: int, ahead: int | None) -> Any:
        """The batch."""
        return self._batch

    def pictures(self, batch: Any) -> np.ndarray:
        """The first batch of the round."""
        return np.asarray(self._to_pixels(batch.images[0]))
