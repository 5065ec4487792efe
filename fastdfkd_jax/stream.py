"""Batches of a D' that lies on disk, read while the device is busy with those before."""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

from fastdfkd_jax.errors import UserError
from fastdfkd_jax.shards import Shard

Array = jax.Array
Place = Callable[[tuple[int, ...], Callable[[tuple[slice, ...]], np.ndarray]], Array]
_READERS = 16  # reads that the disk is given at a time


class Batches(NamedTuple):
    """What a few student steps learn from.

    Attributes:
      images: uint8[steps, B, H, W, C].
      labels: i32[steps, B].
    """

    images: Array
    labels: Array


class Stream:
    """Images by their rows, of all shards together; memory holds two dispatches of them, not the pool.

    Args:
      draw: `draw(step, size) -> i32[steps, B]`, the rows of the student's steps from `step` on where D' has `size`.
      place: `place(shape, read) -> array` on the devices; `read(slices) -> part` gives what each of them holds
        (`parallel.place`).
    """

    def __init__(
        self,
        draw: Callable[[int, int], np.ndarray],
        place: Place,
    ):
        self._draw, self._place = draw, place
        self._shards: list[Shard] = []
        self._ends: list[int] = []
        self._labels = np.zeros(0, np.int32)
        self._readers = ThreadPoolExecutor(_READERS, "pool reader")
        self._ahead = ThreadPoolExecutor(1, "pool prefetch")
        self._pending: tuple[tuple[int, int], Future[Batches]] | None = None

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def extend(self, shards: Sequence[Shard]) -> None:
        """Adds the images of shards behind those that are there."""
        for shard in shards:
            self._shards.append(shard)
            self._ends.append(len(self) + len(shard.labels))
        self._labels = np.concatenate([self._labels, *(shard.labels for shard in shards)])

    def take(self, step: int, ahead: int | None = None) -> Batches:
        """The batches of the student's steps from `step` on; those from `ahead` on are read meanwhile."""
        wanted = (step, len(self))
        if self._pending is not None and self._pending[0] == wanted:
            batches = self._pending[1].result()
        else:
            batches = self._load(*wanted)
        self._pending = None
        if ahead is not None:
            next_wanted = (ahead, len(self))
            self._pending = (next_wanted, self._ahead.submit(self._load, *next_wanted))
        return batches

    def _load(self, step: int, size: int) -> Batches:
        rows = self._draw(step, size)
        shape = (*rows.shape, *self._shards[0].image_shape)
        images = self._place(shape, lambda part: self.read(rows[part[:2]]))
        labels = self._place(rows.shape, lambda part: self._labels[rows[part]])
        return Batches(images, labels)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Images uint8[..., H, W, C] of rows i32[...]; UserError where a shard has been spoiled since it was found."""
        images = np.empty((rows.size, *self._shards[0].image_shape), np.uint8)
        order = np.argsort(rows, axis=None)  # so that what lies together is read together
        flat = rows.reshape(-1)

        def read_some(places: np.ndarray) -> None:
            for place in places:
                self._read_one(int(flat[place]), images[place])

        list(self._readers.map(read_some, np.array_split(order, min(_READERS, max(1, rows.size)))))
        return images.reshape(*rows.shape, *images.shape[1:])

    def _read_one(self, row: int, into: np.ndarray) -> None:
        index = bisect.bisect_right(self._ends, row)
        shard = self._shards[index]
        start = row - (self._ends[index] - len(shard.labels))
        try:
            file = os.open(shard.path, os.O_RDONLY)
            try:
                count = os.preadv(file, [into.reshape(-1).data], shard.offset + start * into.nbytes)
            finally:
                os.close(file)
        except OSError as error:
            raise UserError(f"pool shard {shard.path} cannot be read ({error.strerror}): restore it") from error
        if count != into.nbytes:
            raise UserError(f"pool shard {shard.path} has been cut off: restore it, or start in a new workdir")

    def close(self) -> None:
        """Waits for what is still being read, and drops it."""
        self._ahead.shutdown(cancel_futures=True)
        self._readers.shutdown()
