"""D', the pool of synthesised images, on the device: uint8 rows, filled from the front.

The run's shards are a copy of it, from which it is filled again when the run is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.pool import sampling
from fastdfkd_jax.pool.drawing import keys_of_step
from fastdfkd_jax.pool.feed import Examples, Functions, ImageFeed, digest_of
from fastdfkd_jax.pool.sampling import Replay
from fastdfkd_jax.pool.shards import Rows, Shards

Array = jax.Array
Tree = Any

_CLASS = jax.ShapeDtypeStruct((), jnp.int32)


class Pool(NamedTuple):
    """Images on the device.

    Attributes:
      images: uint8[capacity, H, W, C]; rows from `size` are not filled yet.
      labels: i32[capacity], the requested classes or those of the data; -1 where not known. For data with a class for
        every pixel, uint8[capacity, H, W].
      size: i32[], number of filled rows.
      replay: the known properties of each image if sampling is not uniform, else None.
    """

    images: Array
    labels: Array
    size: Array
    replay: Replay | None = None


def empty(
    capacity: int, image_shape: tuple[int, int, int], replayed: bool = False, label: jax.ShapeDtypeStruct = _CLASS
) -> Pool:
    """Returns an empty pool with room for `capacity` images.

    Args:
      capacity: number of images.
      image_shape: (H, W, C) of each image.
      replayed: whether images will be drawn non-uniformly.
      label: shape and type of each label.
    """
    images = jnp.zeros((capacity, *image_shape), jnp.uint8)
    # In unsigned maps, -1 becomes 255, void.
    labels = jnp.full((capacity, *label.shape), -1, jnp.int32).astype(label.dtype)
    return Pool(images, labels, jnp.zeros((), jnp.int32), sampling.init(capacity) if replayed else None)


def to_uint8(images: Array) -> Array:
    """Converts f32 in [0, 1] to uint8, rounded (the released code truncates: half a level darker, METHOD T15)."""
    return jnp.round(jnp.clip(images, 0, 1) * 255).astype(jnp.uint8)


def to_float(images: Array) -> Array:
    """Converts uint8 to f32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def append(pool: Pool, rows: Array, labels: Array, kept: Array | bool = True) -> Pool:
    """Adds uint8[N, H, W, C] with labels if kept (Algorithm 1 line 11); the capacity must suffice."""
    images = jax.lax.dynamic_update_slice(pool.images, rows, (pool.size, 0, 0, 0))
    labels = jax.lax.dynamic_update_slice(pool.labels, labels, (pool.size, *[0] * (labels.ndim - 1)))
    return pool._replace(images=images, labels=labels, size=pool.size + jnp.where(kept, rows.shape[0], 0))


def uniformly(rows_of: Callable[[Array, Array, Array], Array]) -> Functions:
    """Returns the functions that draw uniformly, by `rows_of(key, step, size) -> i32[B]` (`drawing.row_drawer`)."""

    def keep(state: Pool, batch: Any, teacher_vars: Tree) -> tuple[Pool, Any]:
        rows = to_uint8(batch.images)
        return append(state, rows, batch.labels, batch.kept), batch._replace(images=rows)

    def draw(source: Pool, known: None, key: Array, step: Array) -> Examples:
        rows = rows_of(key, step, source.size)
        return Examples(to_float(source.images[rows]), source.labels[rows])

    return Functions(keep, draw)


def by_replay(
    options: sampling.ReplayOptions, batch_size: int, num_classes: int, classes_of: Callable[[Tree, Array], Array]
) -> Functions:
    """Returns the functions that draw images by their class and difficulty.

    Args:
      options: exponents of the sampling.
      batch_size: images per student step.
      num_classes: number of the teacher's classes.
      classes_of: `classes_of(teacher_vars, images f32[N, H, W, C] in [0, 1]) -> i32[N]`, the teacher's predictions.
    """

    def keep(state: Pool, batch: Any, teacher_vars: Tree) -> tuple[Pool, Any]:
        rows = to_uint8(batch.images)
        assert state.replay is not None
        known = sampling.added(state.replay, state.size, classes_of(teacher_vars, to_float(rows)))
        state = append(state._replace(replay=known), rows, batch.labels, batch.kept)
        return state, batch._replace(images=rows)

    def draw(source: Pool, known: Replay, key: Array, step: Array) -> Examples:
        chances = sampling.probabilities(options, known, source.size, num_classes)
        sample_key, _ = keys_of_step(key, step)
        rows, weights = sampling.draw(sample_key, options, chances, source.size, batch_size)
        return Examples(to_float(source.images[rows]), source.labels[rows], weights, rows)

    def observe(known: Replay, examples: Examples, info: dict[str, Array]) -> tuple[Replay, dict[str, Array]]:
        assert examples.rows is not None
        rest = {name: value for name, value in info.items() if name != "difficulty"}
        return sampling.met(known, examples.rows, info["difficulty"]), rest

    return Functions(keep, draw, lambda source: source.replay, observe)


class DeviceFeed(ImageFeed):
    """A feed from D' on the device.

    Args:
      files: its shards; None to measure without any.
      first: initial images.
      made: number of images that a whole run makes.
      image_shape: (H, W, C) of each image.
      replayed: whether images are drawn non-uniformly.
    """

    def __init__(
        self,
        files: Shards | None,
        first: Rows | None,
        made: int,
        image_shape: tuple[int, int, int],
        replayed: bool,
    ):
        super().__init__(files)
        self._first = first
        self.grows = made > 0
        capacity = made + (0 if first is None else len(first.labels))
        shapes: dict[str, Any] = {"image_shape": image_shape}
        if first is not None:  # with maps, images need not have the network's size
            label = jax.ShapeDtypeStruct(first.labels.shape[1:], first.labels.dtype)
            shapes = {"image_shape": first.images.shape[1:], "label": label}
        self.state: Pool = parallel.everywhere(empty(capacity, replayed=replayed, **shapes))

    def saved(self) -> dict[str, Tree]:
        """Returns the known properties of each image, if sampling uses them."""
        return {} if self.state.replay is None else {"replay": tuple(self.state.replay)}

    def _fill(self, files: Shards, shards: int, saved: Mapping[str, Tree] | None) -> None:
        """Fills the pool in place and one shard at a time, because the images may fill the memory."""
        if saved:
            self.learned(Replay(*saved["replay"]))
        put = parallel.jit(append, donate=(0,))
        if (first := self._first) is not None:
            self.state = put(self.state, first.images, first.labels)
            if self.state.replay is not None and saved is None:
                self.learned(sampling.added(self.state.replay, jnp.int32(0), jnp.asarray(first.labels)))
        for rows in files.read(shards):
            self.state = put(self.state, rows.images, rows.labels)

    def take(self, step: int, ahead: int | None) -> Pool:
        """Returns the whole pool."""
        return self.state

    def learned(self, known: Replay | None) -> None:
        """Stores the known properties of each image; None if there are none."""
        self.state = self.state._replace(replay=known)

    def example(self) -> Pool:
        """Returns the whole pool, with a white image if it is empty."""
        pool = self.state
        if len(self):
            return pool
        _, height, width, channels = pool.images.shape
        shape, label = (height, width, channels), jax.ShapeDtypeStruct(pool.labels.shape[1:], pool.labels.dtype)
        if not len(pool.labels):
            pool = empty(1, shape, pool.replay is not None, label)
        return append(pool, jnp.full((1, *shape), 255, jnp.uint8), jnp.zeros((1, *label.shape), label.dtype))

    def of_rows(self, rows: np.ndarray) -> Pool:
        """Returns the whole pool."""
        return self.state

    def __len__(self) -> int:
        return int(self.state.size)

    def digest(self) -> str:
        """Returns the SHA-256 of all images in their order."""
        return digest_of(len(self), lambda start, stop: np.asarray(self.state.images[start:stop]))
