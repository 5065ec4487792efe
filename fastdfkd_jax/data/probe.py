"""Reads pictures without labels on which two networks are compared."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from PIL import Image

from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.data import listing, pictures
from fastdfkd_jax.data.dataset import collected
from fastdfkd_jax.data.pictures import Square
from fastdfkd_jax.errors import UserError

log = logging.getLogger("fastdfkd_jax.data")

MOST = 1000  # pictures that are read, since each start of a run reads them


def read(directory: str | Path, shape: tuple[int, int, int], crop: float = 0.0) -> np.ndarray:
    """Reads the pictures of a folder at any depth, and cuts the network's input out of each centre.

    Of more than `MOST` pictures, it reads that many at equal distances in the order of their paths.

    Args:
      directory: the folder; other files in it are skipped with a warning.
      shape: height, width and channels of the network's input; height and width are equal.
      crop: share of the shorter side that is kept; 0 for all of it.

    Returns:
      uint8[N, H, W, C]. Grey pictures become colour, and colour becomes grey, as the network needs.

    Raises:
      UserError: there is no such folder, it has no pictures, one is damaged, or the network takes other channels.
    """
    place, (size, _, channels) = expanded(directory), shape
    if channels not in (1, 3):
        raise UserError(f"expected a network of 1 or 3 channels for the pictures of {place}, found {channels}")
    if not place.is_dir():
        raise UserError(f"expected a folder of pictures, found no folder {place}: give its right name")
    found = listing.listed(place)
    listing.warn_of_skipped([found], place)
    if not found.pictures:
        raise UserError(f"expected pictures in {place}, found none")
    paths = [found.pictures[index] for index in spread(len(found.pictures), MOST)]
    if len(paths) < len(found.pictures):
        log.info("reading %s of the %s pictures of %s", f"{len(paths):,}", f"{len(found.pictures):,}", place)
    square = Square(size, crop or 1.0)
    return np.stack(collected((_image(path, square, channels) for path in paths), len(paths), str(place)))


def spread(count: int, most: int) -> np.ndarray:
    """Returns at most so many numbers below `count`, at equal distances, from the first to the last."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def _image(path: Path, square: Square, channels: int) -> np.ndarray:
    try:
        image = Image.fromarray(pictures.decode(path, square))
    except pictures.DAMAGED as error:
        raise UserError(f"cannot read the picture {path}: it is damaged or of another kind; remove it") from error
    values = np.asarray(pictures.to_mode(image, "L" if channels == 1 else "RGB"))
    return values.reshape(square.size, square.size, channels)
