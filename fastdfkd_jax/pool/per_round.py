"""Batches that are used once: each dispatch of student steps gets newly made images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fastdfkd_jax.pool.feed import Examples, Feed, Functions

Array = jax.Array


def functions(steps: int) -> Functions:
    """Returns the functions for dispatches of `steps` student steps, which use the batches of a round in turn."""

    def draw(source: Any, known: None, key: Array, step: Array) -> Examples:
        turn = step % steps % len(source.images)
        return Examples(source.images[turn], source.labels[turn])

    return Functions(lambda state, batch, teacher_vars: (state, batch), draw)


class RoundFeed(Feed):
    """A feed of the batch made for the current round.

    Args:
      to_pixels: converts the images of a batch to uint8.
    """

    per_dispatch = True

    def __init__(self, to_pixels: Callable[[Array], Array]):
        self._to_pixels = to_pixels
        self._batch: Any = None

    def add(self, batch: Any) -> bool:
        """Stores the batch of the next dispatch."""
        self._batch = batch
        return True

    def take(self, step: int, ahead: int | None) -> Any:
        """Returns the stored batch."""
        return self._batch

    def pictures(self, batch: Any) -> np.ndarray:
        """Returns the first batch of the round."""
        return np.asarray(self._to_pixels(batch.images[0]))
