"""D', the set of synthesised images: uint8 rows on the device, and the same rows in shards on disk.

A shard holds the images of one synthesis call that keeps them. It is an uncompressed .npz, so that it carries
checksums and opens with `numpy.load`. The device array is a cache that is rebuilt from the shards on resume.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from fastdfkd_jax import replay
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.files import make_folder, write_atomically
from fastdfkd_jax.replay import Replay

Array = jax.Array


class Pool(NamedTuple):
    """Images on the device.

    Attributes:
      images: uint8[capacity, H, W, C]; rows from `size` on are not yet filled.
      labels: i32[capacity], the classes that were asked for or that data have; -1 where not known.
      size: i32[], rows that are filled.
      replay: what is known of each image where sampling is not uniform, else None.
    """

    images: Array
    labels: Array
    size: Array
    replay: Replay | None = None


class Rows(NamedTuple):
    """Images on the host.

    Attributes:
      images: uint8[N, H, W, C].
      labels: i32[N]; -1 where not known.
    """

    images: np.ndarray
    labels: np.ndarray


def empty(capacity: int, image_shape: tuple[int, int, int], replayed: bool = False) -> Pool:
    """An empty pool with room for `capacity` images; `replayed` if they will not be drawn uniformly."""
    images = jnp.zeros((capacity, *image_shape), jnp.uint8)
    labels, size = jnp.full(capacity, -1, jnp.int32), jnp.zeros((), jnp.int32)
    return Pool(images, labels, size, replay.init(capacity) if replayed else None)


def to_uint8(images: Array) -> Array:
    """f32 in [0, 1] to uint8, rounded (the released code truncates, which darkens by half a level, METHOD T15)."""
    return jnp.round(jnp.clip(images, 0, 1) * 255).astype(jnp.uint8)


def to_float(images: Array) -> Array:
    """uint8 to f32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def append(pool: Pool, rows: Array, labels: Array, kept: Array | bool = True) -> Pool:
    """Adds uint8[N, H, W, C] and i32[N] (Algorithm 1 line 11) if they are kept; the capacity must hold them."""
    images = jax.lax.dynamic_update_slice(pool.images, rows, (pool.size, 0, 0, 0))
    labels = jax.lax.dynamic_update_slice(pool.labels, labels, (pool.size,))
    return pool._replace(images=images, labels=labels, size=pool.size + jnp.where(kept, rows.shape[0], 0))


def sample(key: Array, pool: Pool, batch: int) -> tuple[Array, Array]:
    """Draws uniformly with replacement (Algorithm 1 line 18).

    Returns:
      Images f32[batch, H, W, C] in [0, 1] and labels i32[batch].
    """
    rows = jax.random.randint(key, (batch,), 0, pool.size)
    return to_float(pool.images[rows]), pool.labels[rows]


class Shards:
    """The pool's rows on disk, one file a synthesis call."""

    def __init__(self, directory: Path):
        self.directory = directory
        make_folder(directory)

    def path(self, index: int) -> Path:
        """File of the shard with this index, counted from 0."""
        return self.directory / f"{index:06d}.npz"

    def write(self, index: int, images: np.ndarray, labels: np.ndarray, weights: Any = ()) -> None:
        """Writes one shard durably: images uint8[N, H, W, C], labels i32[N], and any weights beside them."""
        named = {f"weights{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree.leaves_with_path(weights)}
        write_atomically(self.path(index), lambda file: np.savez(file, images=images, labels=labels, **named))

    def truncate(self, count: int) -> None:
        """Deletes the shards from `count` on, and anything half-written, so that a call can be repeated."""
        for path in self.directory.glob("*.npz"):
            if not path.stem.isdigit() or int(path.stem) >= count:
                path.unlink()
        for path in self.directory.glob(".*.partial"):
            path.unlink()

    def read(self, count: int) -> Iterator[Rows]:
        """Yields the rows of the first `count` shards, each checked against its checksum."""
        for index in range(count):
            yield read_shard(self.path(index))


def concatenate(parts: Sequence[Rows]) -> Rows:
    """All rows, one part after another; there must be a part."""
    return Rows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def read_shard(path: Path) -> Rows:
    """Reads one shard, its checksums verified; UserError where it is missing or damaged."""
    try:
        # Opened here, because numpy does not close a file that it cannot read.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return Rows(arrays["images"], arrays["labels"])
    except FileNotFoundError:
        raise UserError(f"pool shard {path} is missing: restore it, or start in a new workdir") from None
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        message = f"pool shard {path} is damaged ({error}): restore it, or start in a new workdir"
        raise UserError(message) from None


def read_initial(directory: Path, image_shape: tuple[int, int, int]) -> Rows:
    """Images to begin with: the pool of an earlier run (its workdir or `pool` folder), or a folder of pictures.

    Raises:
      UserError: nothing there, or images of another size.
    """
    if not directory.is_dir():
        raise UserError(f"config.pool.initial={directory} is not a folder: give a folder of images or a pool")
    source = directory / "pool" if (directory / "pool").is_dir() else directory
    shards = sorted(source.glob("[0-9]*.npz"))
    if shards:
        parts = [read_shard(path) for path in shards]
    else:
        suffixes = {".png", ".jpg", ".jpeg"}
        pictures = sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes)
        mode = "L" if image_shape[-1] == 1 else "RGB"
        parts = [_read_picture(path, mode) for path in pictures]
    if not parts:
        raise UserError(f"config.pool.initial={directory} holds no pool shards and no .png or .jpg images")
    wrong = {part.images.shape[1:] for part in parts} - {image_shape}
    if wrong:
        raise UserError(f"images in {directory} are {sorted(wrong)[0]}, the teacher takes {image_shape}")
    return concatenate(parts)


def _read_picture(path: Path, mode: str) -> Rows:
    """One image in the colours of a Pillow mode, without a label."""
    try:
        with Image.open(path) as file:
            pixels = np.asarray(file.convert(mode))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"the picture {path} cannot be read ({error}): restore or remove it") from error
    return Rows(pixels.reshape(1, *pixels.shape[:2], -1), np.full(1, -1, np.int32))
