"""D' on disk, in the shards of a run; the student's next images are read while the device is busy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fastdfkd_jax.distributed import hosts, parallel
from fastdfkd_jax.pool import initial_images, on_device
from fastdfkd_jax.pool.feed import Examples, Functions, ImageFeed, digest_of
from fastdfkd_jax.pool.initial_images import Located
from fastdfkd_jax.pool.reading import Ahead, Reader
from fastdfkd_jax.pool.shards import Shards, locate_one

Array = jax.Array
Tree = Any


class Batches(NamedTuple):
    """Images of a pool that were read for a few student steps.

    Attributes:
      images: uint8[steps, B, H, W, C].
      labels: i32[steps, B]; -1 where not known.
    """

    images: Array
    labels: Array


def functions(steps: int) -> Functions:
    """Returns the functions for dispatches of `steps` student steps, whose images were read from disk before."""

    def keep(state: Tree, batch: Any, teacher_vars: Tree) -> tuple[Tree, Any]:
        return state, batch._replace(images=on_device.to_uint8(batch.images))

    def draw(source: Batches, known: None, key: Array, step: Array) -> Examples:
        turn = step % steps
        return Examples(on_device.to_float(source.images[turn]), source.labels[turn])

    return Functions(keep, draw)


class DiskFeed(ImageFeed):
    """A feed from D' on disk; memory holds only the images of the student's next steps.

    Args:
      files: its shards; None to measure without any.
      first: initial images.
      directory: folder where pictures among these become shards.
      image_shape: (H, W, C) of each image.
      grows: whether the run makes images.
      draw: `draw(step, size) -> i32[steps, B]`, the rows of the student's steps from `step` when D' has `size` images.
      place: `place(shape, read) -> array` on the devices; `read(slices) -> part` returns the part of each device
        (`parallel.placer`).
    """

    def __init__(
        self,
        files: Shards | None,
        first: Located | None,
        directory: Path,
        image_shape: tuple[int, int, int],
        grows: bool,
        draw: Callable[[int, int], np.ndarray],
        place: parallel.Place,
    ):
        super().__init__(files)
        self._first, self._directory, self._image_shape = first, directory, image_shape
        self.grows = grows
        self._reader = Reader()
        self._place, self._draw = place, draw
        self._rows: dict[tuple[int, int], np.ndarray] = {}
        self._ahead = Ahead(self._load)

    def _load(self, wanted: tuple[int, int]) -> Batches:
        return self.of_rows(self._rows[wanted])

    def _fill(self, files: Shards, shards: int, saved: Mapping[str, Tree] | None) -> None:
        """Verifies all checksums and turns pictures into shards."""
        if (first := self._first) is not None:
            self._reader.extend(first.shards)
            if first.pictures:
                into = Shards(self._directory)
                work = partial(initial_images.import_pictures, first.pictures, into, first.channels)
                self._reader.extend(hosts.writer_first(work))
        self._reader.extend(files.locate(shards))

    def _added(self, path: Path) -> None:
        self._reader.extend([locate_one(path, verify=False)])

    def take(self, step: int, ahead: int | None) -> Batches:
        """Returns the batches, read now unless they were read ahead."""
        wanted, next_wanted = (step, len(self)), None if ahead is None else (ahead, len(self))
        # Not drawn in the thread: on an accelerator, drawing would wait for the steps that reading should overlap.
        keys = [key for key in (wanted, next_wanted) if key is not None]
        self._rows = {key: self._rows[key] if key in self._rows else self._draw(*key) for key in keys}
        return self._ahead.take(wanted, next_wanted)

    def of_rows(self, rows: np.ndarray) -> Batches:
        """Reads the images of rows i32[steps, B]."""
        images = self._place((*rows.shape, *self._image_shape), lambda part: self._reader.images(rows[part[:2]]))
        return Batches(images, self._place(rows.shape, lambda part: self._reader.labels(rows[part])))

    def example(self) -> Batches:
        """Returns white images, because none may have been made yet."""
        rows = self._draw(0, 1)
        images = np.full((*rows.shape, *self._image_shape), 255, np.uint8)
        return Batches(
            self._place(images.shape, lambda part: images[part]),
            self._place(rows.shape, lambda part: np.zeros_like(rows)[part]),
        )

    def __len__(self) -> int:
        return len(self._reader)

    def digest(self) -> str:
        """Returns the SHA-256 of all images in their order."""
        return digest_of(len(self), lambda start, stop: self._reader.images(np.arange(start, stop)))

    def close(self) -> None:
        """Drops pending reads."""
        self._ahead.close()
        self._reader.close()
