"""Where the images of D' are while the student learns: in the device's memory, or on disk.

Both are filled from what a run begins with and from its shards, and give what a dispatch of student steps takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.pool import initial_images, on_device, sampling
from fastdfkd_jax.pool.initial_images import Located
from fastdfkd_jax.pool.reading import Ahead, Reader
from fastdfkd_jax.pool.sampling import Replay
from fastdfkd_jax.pool.shards import Rows, Shard, Shards, locate_one

_HASHED = 256  # images that a digest is fed with at a time


class DeviceStore:
    """D' on the device; its shards are a copy, from which it is filled again on resume.

    Args:
      first: images to begin with.
      made: how many a whole run makes.
      image_shape: (H, W, C) of each.
      replayed: whether they are drawn otherwise than uniformly.

    Attributes:
      pool: what synthesis appends to and the student draws from.
    """

    def __init__(self, first: Rows | None, made: int, image_shape: tuple[int, int, int], replayed: bool):
        self._first = first
        capacity = made + (0 if first is None else len(first.labels))
        shapes: dict[str, Any] = {"image_shape": image_shape}
        if first is not None:  # of data with maps images need not have the network's size
            label = jax.ShapeDtypeStruct(first.labels.shape[1:], first.labels.dtype)
            shapes = {"image_shape": first.images.shape[1:], "label": label}
        self.pool = parallel.everywhere(on_device.empty(capacity, replayed=replayed, **shapes))

    @property
    def replay(self) -> Replay | None:
        """What is known of each image, where that matters."""
        return self.pool.replay

    def learned(self, known: Replay | None) -> None:
        """Takes what is known of each image now."""
        self.pool = self.pool._replace(replay=known)

    def fill(self, shards: Shards, count: int, resumed: bool) -> None:
        """Puts back what the run began with and the first `count` shards, in place and a shard at a time.

        They may fill the memory. What is known of the images was restored where the run is resumed, or is set here.
        """
        append = parallel.jit(on_device.append, donate=(0,))
        if (first := self._first) is not None:
            self.pool = append(self.pool, first.images, first.labels)
            if self.pool.replay is not None and not resumed:
                self.learned(sampling.added(self.pool.replay, jnp.int32(0), jnp.asarray(first.labels)))
        for rows in shards.read(count):
            self.pool = append(self.pool, rows.images, rows.labels)

    def added(self, path: Path) -> None:
        """The program that made the images has appended them already."""

    def source(self, step: int, ahead: int | None) -> on_device.Pool:
        """What the student's steps from `step` on learn from."""
        return self.pool

    def of_rows(self, rows: np.ndarray) -> on_device.Pool:
        """Where a program finds the images of rows i32[steps, B]."""
        return self.pool

    def __len__(self) -> int:
        return int(self.pool.size)

    def digest(self) -> str:
        """SHA-256 of all images in their order."""
        return _digest(len(self), lambda start, stop: np.asarray(self.pool.images[start:stop]))

    def close(self) -> None:
        """Nothing is pending."""


class DiskStore:
    """D' on disk; memory holds only what the student is about to learn from.

    Args:
      first: images to begin with.
      directory: where pictures among these become shards.
      draw: `draw(step, size) -> i32[steps, B]`, the rows of the student's steps from `step` on where D' has `size`.
      place: `place(shape, read) -> array` on the devices; `read(slices) -> part` gives what each of them holds
        (`parallel.placer`).
      writer_first: has work done that writes what other processes then find (`hosts.writer_first`).

    Attributes:
      pool: None, as synthesis has nothing on the device to append to.
      replay: None, as rows are drawn uniformly.
    """

    replay = None

    def __init__(
        self,
        first: Located | None,
        directory: Path,
        draw: Callable[[int, int], np.ndarray],
        place: parallel.Place,
        writer_first: Callable[[Callable[[], list[Shard]]], list[Shard]] = lambda work: work(),
    ):
        self._first, self._directory = first, directory
        self.pool: on_device.Pool | None = None
        self._reader = Reader()
        self._place, self._writer_first = place, writer_first
        self._draw = draw
        self._rows: dict[tuple[int, int], np.ndarray] = {}
        self._ahead = Ahead(self._load)

    def _load(self, wanted: tuple[int, int]) -> on_device.Batches:
        return self.of_rows(self._rows[wanted])

    def learned(self, known: Replay | None) -> None:
        """Nothing is known of single images."""

    def fill(self, shards: Shards, count: int, resumed: bool) -> None:
        """Finds what the run began with and the first `count` shards, all checksums verified; pictures become shards.

        Raises:
          UserError: a shard or a picture is missing or damaged, or the disk is full.
        """
        if (first := self._first) is not None:
            self._reader.extend(first.shards)
            if first.pictures:
                into = Shards(self._directory)
                work = partial(initial_images.import_pictures, first.pictures, into, first.channels)
                self._reader.extend(self._writer_first(work))
        self._reader.extend(shards.locate(count))

    def added(self, path: Path) -> None:
        """Takes the images of a shard that was written just now."""
        self._reader.extend([locate_one(path, verify=False)])

    def source(self, step: int, ahead: int | None) -> on_device.Batches:
        """What the student's steps from `step` on learn from; for those from `ahead` on it is read meanwhile."""
        wanted, next_wanted = (step, len(self)), None if ahead is None else (ahead, len(self))
        # Here and not in the thread: on an accelerator they would wait behind the steps that reading is to overlap.
        keys = [key for key in (wanted, next_wanted) if key is not None]
        self._rows = {key: self._rows[key] if key in self._rows else self._draw(*key) for key in keys}
        return self._ahead.take(wanted, next_wanted)

    def of_rows(self, rows: np.ndarray) -> on_device.Batches:
        """Reads the images of rows i32[steps, B]."""
        shape = (*rows.shape, *self._reader.image_shape)
        images = self._place(shape, lambda part: self._reader.images(rows[part[:2]]))
        return on_device.Batches(images, self._place(rows.shape, lambda part: self._reader.labels(rows[part])))

    def __len__(self) -> int:
        return len(self._reader)

    def digest(self) -> str:
        """SHA-256 of all images in their order."""
        return _digest(len(self), lambda start, stop: self._reader.images(np.arange(start, stop)))

    def close(self) -> None:
        """Drops what is still being read."""
        self._ahead.close()
        self._reader.close()


def _digest(size: int, images: Callable[[int, int], np.ndarray]) -> str:
    """SHA-256 of so many images, of which `images(start, stop)` gives a few."""
    sha = hashlib.sha256()
    for start in range(0, size, _HASHED):
        sha.update(images(start, min(start + _HASHED, size)).tobytes())
    return sha.hexdigest()
