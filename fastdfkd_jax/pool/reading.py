"""Reads images of a D' on disk, and the student's other data, while the device is busy."""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np

from fastdfkd_jax.errors import UserError
from fastdfkd_jax.pool.shards import Shard

_READERS = 16  # concurrent reads
_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class Ahead(Generic[_Key, _Value]):
    """Loads one value while its caller works with the previous one.

    Args:
      load: `load(key) -> value`; it runs in a separate thread when loading ahead.
    """

    def __init__(self, load: Callable[[_Key], _Value]):
        self._load = load
        self._thread = ThreadPoolExecutor(1, "load ahead")
        self._pending: tuple[_Key, Future[_Value]] | None = None

    def take(self, wanted: _Key, ahead: _Key | None = None) -> _Value:
        """Returns the value of a key; loads that of `ahead` meanwhile, in case it is taken next."""
        pending, self._pending = self._pending, None
        value = pending[1].result() if pending is not None and pending[0] == wanted else self._load(wanted)
        if ahead is not None:
            self._pending = ahead, self._thread.submit(self._load, ahead)
        return value

    def close(self) -> None:
        """Waits for a pending load, and drops it."""
        self._thread.shutdown(cancel_futures=True)


class Reader:
    """Reads images by row, across all shards; none is held in memory."""

    def __init__(self) -> None:
        self._shards: list[Shard] = []
        self._ends: list[int] = []
        self._labels = np.zeros(0, np.int32)
        self._readers = ThreadPoolExecutor(_READERS, "pool reader")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def extend(self, shards: Sequence[Shard]) -> None:
        """Appends the images of shards."""
        for shard in shards:
            self._shards.append(shard)
            self._ends.append(len(self) + len(shard.labels))
        self._labels = np.concatenate([self._labels, *(shard.labels for shard in shards)])

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C); there must be an image."""
        return self._shards[0].image_shape

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """Returns labels i32[...] of rows i32[...]."""
        return self._labels[rows]

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Reads images uint8[..., H, W, C] of rows i32[...]; UserError if a shard was damaged since it was found."""
        images = np.empty((rows.size, *self.image_shape), np.uint8)
        order = np.argsort(rows, axis=None)  # so that neighbouring images are read together
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
        """Waits for pending reads."""
        self._readers.shutdown()
