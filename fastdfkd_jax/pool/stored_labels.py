"""Soft labels of a run: made once D' is complete, then learned from again and again, in another order each time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastdfkd_jax.distillation.soft_labels import LabelledViews
from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.pool.label_files import LabelFiles
from fastdfkd_jax.pool.on_device import Batches, Pool
from fastdfkd_jax.pool.on_disk import DeviceStore, DiskStore
from fastdfkd_jax.pool.reading import Ahead


class Taught(NamedTuple):
    """What a few student steps learn from where the teacher has answered before.

    Attributes:
      images: the pool, or the images of `steps.rows` read from it.
      steps: rows, views and answers; all with leading axis steps.
    """

    images: Pool | Batches
    steps: LabelledViews


class LabelStore:
    """Shards of soft labels, each of as many steps as one dispatch of the student takes.

    Args:
      files: where they lie.
      made: how many there are.
      shards: how many make a round.
      order: `order(round, shards) -> i32[shards]`, the order in which the student meets them.
      store: D'.

    Attributes:
      count: shards of a round.
    """

    def __init__(
        self,
        files: LabelFiles,
        made: int,
        shards: int,
        order: Callable[[int, int], np.ndarray],
        store: DeviceStore | DiskStore,
    ):
        self.count = shards
        self._files, self._store = files, store
        self._order = functools.lru_cache(2)(order)  # asked twice a dispatch, of a round and perhaps the next
        self._made = min(made, shards)
        self._ahead = Ahead(self._load)

    @property
    def made(self) -> int:
        """Shards that there are."""
        return self._made

    @property
    def complete(self) -> bool:
        """Whether the student can begin."""
        return self._made == self.count

    def append(self, steps: LabelledViews, write: bool = True) -> None:
        """Adds the next shard; of several processes one writes."""
        if write:
            self._files.write(self._made, steps)
        self._made += 1

    def source(self, dispatch: int, ahead: int | None) -> Taught:
        """What a dispatch, counted from 0, learns from; for `ahead` it is read meanwhile.

        Raises:
          UserError: a shard, of soft labels or of the pool, is missing or damaged.
        """
        return self._ahead.take(self._index(dispatch), None if ahead is None else self._index(ahead))

    def _index(self, dispatch: int) -> int:
        turn, place = divmod(dispatch, self.count)
        return int(self._order(turn, self.count)[place])

    def _load(self, index: int) -> Taught:
        steps = self._files.read(index)
        return Taught(self._store.of_rows(np.asarray(steps.rows)), parallel.everywhere(steps))

    def close(self) -> None:
        """Drops what is still being read."""
        self._ahead.close()
