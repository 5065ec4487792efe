"""The initial images of a run: the pool of an earlier run, or a folder of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastdfkd_jax.data import listing, pictures
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.pool import shards
from fastdfkd_jax.pool.shards import Rows, Shard, Shards
from fastdfkd_jax.storage import npz

_PICTURES_A_SHARD = 512


class Found(NamedTuple):
    """Initial images that are not read yet: shards of an earlier pool, or pictures."""

    shard_files: tuple[Path, ...]
    pictures: tuple[Path, ...]


class Located(NamedTuple):
    """Initial images that were checked: shards whose images can be read one by one, or pictures yet to be imported."""

    shards: tuple[Shard, ...]
    pictures: tuple[Path, ...]
    channels: int


def find(directory: Path, warn: bool = False) -> Found:
    """Finds the initial images in a folder.

    They are the pool of an earlier run (its workdir or `pool` folder) or, if that run made none, its own initial
    images; otherwise the folder's pictures.

    Args:
      directory: the folder.
      warn: whether to log which files of a folder of pictures are skipped.

    Raises:
      UserError: there are no images.
    """
    if not directory.is_dir():
        raise UserError(f"config.pool.initial={directory} is not a folder: give a folder of images or a pool")
    source = directory / "pool" if (directory / "pool").is_dir() else directory
    files = tuple(npz.paths(source) or npz.paths(directory / "initial"))
    if files:
        return Found(files, ())
    found = listing.listed(source)
    if not found.pictures:
        raise UserError(
            f"config.pool.initial={directory} holds no pool shards and no .png or .jpg images (or other pictures): "
            "give a folder of images or a pool"
        )
    if warn:
        listing.warn_of_skipped([found], source)
    return Found((), found.pictures)


def read(directory: Path, image_shape: tuple[int, int, int]) -> Rows:
    """Reads the images that `find` finds; UserError if there are none, or if they have another size."""
    found = find(directory, warn=True)
    parts = [shards.read_shard(path) for path in found.shard_files]
    parts += [_read_picture(path, image_shape[-1]) for path in found.pictures]
    for part in parts:
        _require_shape(directory, part.images.shape[1:], image_shape)
    return shards.concatenate(parts)


def locate(directory: Path, image_shape: tuple[int, int, int]) -> Located:
    """Finds images as `find` does and checks them without reading them into memory.

    Of pictures, only the headers are checked. Raises UserError as `read` does.
    """
    found = find(directory, warn=True)
    located = shards.locate(found.shard_files)
    for shard in located:
        _require_shape(directory, shard.image_shape, image_shape)
    for path in found.pictures:
        _require_shape(directory, (*_size_of(path), image_shape[-1]), image_shape)
    return Located(tuple(located), found.pictures, image_shape[-1])


def import_pictures(paths: Sequence[Path], into: Shards, channels: int) -> list[Shard]:
    """Writes pictures into shards, a few at a time, unless all exist already; returns the shards."""
    starts = range(0, len(paths), _PICTURES_A_SHARD)
    done = len(npz.paths(into.directory))
    into.truncate(min(done, len(starts)))
    with ThreadPoolExecutor() as threads:
        for index, start in list(enumerate(starts))[done:]:
            some = paths[start : start + _PICTURES_A_SHARD]
            rows = shards.concatenate(list(threads.map(lambda path: _read_picture(path, channels), some)))
            into.write(index, rows.images, rows.labels)
    located = into.locate(len(starts))
    found = sum(len(shard.labels) for shard in located)
    if found != len(paths):
        raise UserError(
            f"{into.directory} holds {found} images, expected the {len(paths)} of config.pool.initial: their folder "
            "has changed; restore it, or start in a new workdir"
        )
    return located


def _require_shape(directory: Path, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if tuple(found) != tuple(expected):
        raise UserError(f"images in {directory} are {found}, the teacher takes {expected}: resize them")


def _size_of(path: Path) -> tuple[int, int]:
    """Returns height and width from a picture's header."""
    try:
        with pictures.opened(path, path) as picture:
            return picture.height, picture.width
    except pictures.DAMAGED as error:
        raise _unreadable(path, error) from error


def _read_picture(path: Path, channels: int) -> Rows:
    """Reads one picture, grey or in colour, without a label."""
    try:
        pixels = np.asarray(pictures.to_mode(pictures.read(path, path), "L" if channels == 1 else "RGB"))
    except pictures.DAMAGED as error:
        raise _unreadable(path, error) from error
    return Rows(pixels.reshape(1, *pixels.shape[:2], -1), np.full(1, -1, np.int32))


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"the picture {path} cannot be read ({npz.reason_of(error)}): restore or remove it")
