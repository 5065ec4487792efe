"""The images that a run begins with: the pool of an earlier run, or a folder of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fastdfkd_jax import shards
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.shards import Rows, Shard, Shards

_SUFFIXES = {".png", ".jpg", ".jpeg"}
_PICTURES_A_SHARD = 512


class Found(NamedTuple):
    """What a run begins with, not yet read: shards of an earlier pool, or pictures."""

    shard_files: tuple[Path, ...]
    pictures: tuple[Path, ...]


class Located(NamedTuple):
    """The same, found whole: shards whose images can be read one by one, or pictures that have yet to become some."""

    shards: tuple[Shard, ...]
    pictures: tuple[Path, ...]
    channels: int


def find(directory: Path) -> Found:
    """The pool of an earlier run (its workdir or `pool` folder) or, of one that made none, what it began with.

    Else a folder of pictures.

    Raises:
      UserError: nothing there.
    """
    if not directory.is_dir():
        raise UserError(f"config.pool.initial={directory} is not a folder: give a folder of images or a pool")
    source = directory / "pool" if (directory / "pool").is_dir() else directory
    files = tuple(sorted(source.glob("[0-9]*.npz"))) or tuple(sorted((directory / "initial").glob("[0-9]*.npz")))
    pictures = () if files else tuple(p for p in sorted(source.rglob("*")) if p.suffix.lower() in _SUFFIXES)
    if not files and not pictures:
        raise UserError(f"config.pool.initial={directory} holds no pool shards and no .png or .jpg images")
    return Found(files, pictures)


def read(directory: Path, image_shape: tuple[int, int, int]) -> Rows:
    """Reads what `find` finds; UserError where nothing is, or images are of another size."""
    found = find(directory)
    parts = [shards.read_shard(path) for path in found.shard_files]
    parts += [_read_picture(path, image_shape[-1]) for path in found.pictures]
    for part in parts:
        _require_shape(directory, part.images.shape[1:], image_shape)
    return shards.concatenate(parts)


def locate(directory: Path, image_shape: tuple[int, int, int]) -> Located:
    """Finds and checks what `find` finds without reading it into memory.

    Of pictures only what their first bytes tell is checked. UserError as `read`.
    """
    found = find(directory)
    located = shards.locate(found.shard_files)
    for shard in located:
        _require_shape(directory, shard.image_shape, image_shape)
    for path in found.pictures:
        with _opened(path) as picture:
            _require_shape(directory, (*picture.size[::-1], image_shape[-1]), image_shape)
    return Located(tuple(located), found.pictures, image_shape[-1])


def import_pictures(paths: Sequence[Path], into: Shards, channels: int) -> list[Shard]:
    """Writes pictures into shards, a few at a time, unless all are there already; where they lie."""
    starts = range(0, len(paths), _PICTURES_A_SHARD)
    done = len(list(into.directory.glob("[0-9]*.npz")))
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
        raise UserError(f"images in {directory} are {found}, the teacher takes {expected}")


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path, error) from error


def _read_picture(path: Path, channels: int) -> Rows:
    """One image, grey or in colours, without a label."""
    try:
        with Image.open(path) as file:
            pixels = np.asarray(file.convert("L" if channels == 1 else "RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path, error) from error
    return Rows(pixels.reshape(1, *pixels.shape[:2], -1), np.full(1, -1, np.int32))


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"the picture {path} cannot be read ({error}): restore or remove it")
