"""Reads the images to export, one shard in memory at a time, and determines the number of classes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastdfkd_jax.convert.weight_files import read_state_dict
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.pool.shards import Rows, read_shard
from fastdfkd_jax.storage import image_grid, limits, npz


class Batch(NamedTuple):
    """The images of one shard.

    Attributes:
      start: the first image's number in the pool, from 0.
      images: uint8[N, H, W, C].
      labels: i32[N]; -1 if unknown.
    """

    start: int
    images: np.ndarray
    labels: np.ndarray


def shards(place: Path) -> list[Path]:
    """Returns the shards of a pool in the order in which they were made.

    Args:
      place: a run's workdir, or its `pool` folder.

    Raises:
      UserError: there are none, or one is missing.
    """
    if not place.is_dir():
        raise UserError(f"expected a run's workdir or its pool folder, found no folder {place}")
    pool = place / "pool" if (place / "pool").is_dir() else place
    found = npz.paths(pool)
    if not found:
        raise UserError(
            f"{pool} holds no pool shards: give the workdir of a run whose method keeps its images, or its pool folder"
        )
    for index, path in enumerate(found):
        # Checked before hours of work, not after them.
        if path.name != f"{index:06d}.npz":
            read_shard(pool / f"{index:06d}.npz")
    return found


def count_classes(pool: Path) -> int:
    """Returns the number of classes, with or without images: the student's, else the teacher's in the run's config.

    Args:
      pool: the folder of the shards, in a workdir.

    Raises:
      UserError: the workdir does not contain it.
    """
    student, config = pool.parent / "student.safetensors", pool.parent / "config.json"
    known = read_state_dict(student)[1].get("num_classes") if student.is_file() else None
    if not known and config.is_file():
        try:
            known = limits.read_json(config, "record")["config"]["teacher"]["num_classes"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{config} is not the record of a run: give --num-classes") from error
    if not known:
        raise UserError(
            f"{pool.parent} does not record the number of classes, as it has no student yet: give --num-classes"
        )
    return int(known)


def read(paths: list[Path], num_classes: int) -> Iterator[Batch]:
    """Yields the shards one by one.

    Args:
      paths: paths of the shards.
      num_classes: upper bound of the labels, exclusive.

    Raises:
      UserError: a shard is damaged, or its images differ in shape from the first or have an invalid class.
    """
    start, shape = 0, None
    for path in paths:
        rows = read_shard(path)
        shape = shape or rows.images.shape[1:]
        _check(rows, path, shape, num_classes)
        yield Batch(start, *rows)
        start += len(rows.labels)


def _check(rows: Rows, path: Path, shape: tuple[int, ...], num_classes: int) -> None:
    images, labels = rows
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape or shape[-1] not in (1, 3):
        expected = f"uint8 images of {'x'.join(map(str, shape))}, grey or in colour"
        raise UserError(f"expected {expected}, in {path}, found {images.dtype}{list(images.shape)}")
    if len(labels) and not -1 <= labels.min() <= labels.max() < num_classes:
        found = f"{labels.min()} to {labels.max()}"
        raise UserError(f"expected labels below {num_classes} in {path}, found {found}: check --num-classes")


def encode(image: np.ndarray) -> bytes:
    """Encodes uint8[H, W, 1 or 3] as a PNG file, grey or in colour."""
    file = io.BytesIO()
    image_grid.as_picture(image).save(file, "PNG")
    return file.getvalue()
