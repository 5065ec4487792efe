"""Labelled images from TFDS, torchvision's CIFAR pickles, `.npz` files, folders and the package itself."""

from __future__ import annotations

import os
from pathlib import Path

from fastdfkd_jax.data import arrays, cifar_pickle, digits, folder, prepared
from fastdfkd_jax.data.dataset import Dataset, parse_split, require, take
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
) -> Dataset:
    """Reads a split of a data set into memory.

    Args:
      source: one of `SOURCES`.
      split: `NAME` or `NAME[start:stop]`; of TFDS whatever TFDS understands.
      data_dir: the folder that holds prepared TFDS data sets (`cifar10/3.0.2/`) or torchvision's
        (`cifar-10-batches-py/`), by default `DEFAULT_DATA_DIR`; what a relative FILE or DIR is relative to.
      image_size: side in pixels to which the images of a folder are brought; other sources keep theirs.

    Returns:
      A `Dataset`; the same source and split always give the same examples in the same order.

    Raises:
      UserError: the source or the split is unknown, or the data are missing, damaged or another data set.
    """
    kind, _, name = source.partition(":")
    root = Path(data_dir or DEFAULT_DATA_DIR).expanduser()
    if kind == "tfds" and name:
        return prepared.read(name, split, root)
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
            return take(arrays.read(path, wanted.name), wanted)
        return take(folder.read(path, wanted.name, image_size), wanted)
    raise UserError(f"unknown data source {source!r}: expected one of {', '.join(SOURCES)}")
