"""Labelled images from TFDS, torchvision's CIFAR pickles, `.npz` files, folders and the package itself."""

from __future__ import annotations

import os
from pathlib import Path

from fastdfkd_jax.data import arrays, cifar_pickle, digits, folder, prepared
from fastdfkd_jax.data.dataset import Dataset, parse_split, require, take
from fastdfkd_jax.data.pictures import Square
from fastdfkd_jax.errors import UserError

__all__ = ["DEFAULT_DATA_DIR", "SOURCES", "Dataset", "load", "require"]

DEFAULT_DATA_DIR = "~/tensorflow_datasets"
SOURCES = ("tfds:NAME", "pickle:cifar10", "pickle:cifar100", "npz:FILE", "folder:DIR", "digits")


def load(
    source: str,
    split: str = "test",
    *,
    data_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
    crop: float = 0.0,
) -> Dataset:
    """Reads a split of a data set into memory.

    Args:
      source: one of `SOURCES`.
      split: `NAME` or `NAME[start:stop]`; of TFDS whatever TFDS understands.
      data_dir: the folder that holds prepared TFDS data sets (`cifar10/3.0.2/`) or is one, or torchvision's
        (`cifar-10-batches-py/`), by default `DEFAULT_DATA_DIR`; what a relative FILE or DIR is relative to.
      image_size: side in pixels to which the images of a folder are brought; other sources keep theirs.
      crop: of pictures of any size, of a folder, of TFDS or as JPEG files in an `.npz`: part of the shorter side that
        the square of `image_size` pixels at their centre spans; 0.875 is ImageNet's; 0 for the above.

    Returns:
      A `Dataset`; the same source and split always give the same examples in the same order.

    Raises:
      UserError: the source or the split is unknown, or the data are missing, damaged or another data set.
    """
    kind, _, name = source.partition(":")
    root = Path(data_dir or DEFAULT_DATA_DIR).expanduser()
    if not 0 <= crop <= 1 or (crop and image_size is None):
        raise UserError(f"crop must be from 0 to 1, and 0 without an image size, found {crop} with {image_size}")
    square = Square(image_size, crop) if image_size is not None and crop else None
    if kind == "tfds" and name:
        return prepared.read(name, split, root, square)
    if kind == "pickle" and name:
        wanted = parse_split(split)
        return take(cifar_pickle.read(name, wanted.name, root), wanted)
    if source == "digits":
        wanted = parse_split(split)
        return take(digits.read(wanted.name), wanted)
    if kind in ("npz", "folder") and name:
        wanted = parse_split(split)
        path = Path(data_dir or ".").expanduser() / Path(name).expanduser()
        if kind == "npz":
            return take(arrays.read(path, wanted.name, square), wanted)
        whole = Square(image_size) if image_size is not None else None
        return take(folder.read(path, wanted.name, square or whole), wanted)
    raise UserError(f"unknown data source {source!r}: expected one of {', '.join(SOURCES)}")
