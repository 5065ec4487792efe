"""Labelled images and maps from TFDS, torchvision's CIFAR pickles, `.npz` files, folders and the package itself."""

from __future__ import annotations

import os
from pathlib import Path

from fastdfkd_jax.data import arrays, cifar_pickle, digits, folder, map_sources, prepared
from fastdfkd_jax.data.dataset import VOID, Dataset, class_title, count_classes, parse_split, require, take
from fastdfkd_jax.data.pictures import Square
from fastdfkd_jax.errors import UserError

__all__ = ["DEFAULT_DATA_DIR", "SOURCES", "VOID", "Dataset", "class_title", "count_classes", "load", "require"]

DEFAULT_DATA_DIR = "~/tensorflow_datasets"
SOURCES = ("tfds:NAME", "pickle:cifar10", "pickle:cifar100", "npz:FILE", "folder:DIR", "digits")
SOURCES += tuple(f"{kind}:DIR" for kind in map_sources.READERS)


def load(
    source: str,
    split: str = "test",
    *,
    data_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
    crop: float = 0.0,
    short_side: int | None = None,
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
      short_side: of images with a class for every pixel (camvid, nyuv2, pairs), which take neither of these: pixels to
        which their shorter side is brought, masks by the nearest pixel; None keeps them.

    Returns:
      A `Dataset`, of maps from the sources just named; the same source and split always give the same examples in the
      same order.

    Raises:
      UserError: the source or the split is unknown, or the data are missing, damaged or another data set.
    """
    kind, _, name = source.partition(":")
    root = Path(data_dir or DEFAULT_DATA_DIR).expanduser()
    if not 0 <= crop <= 1 or (crop and image_size is None):
        raise UserError(f"crop must be from 0 to 1, and 0 without an image size, found {crop} with {image_size}")
    if kind in map_sources.READERS and name:
        _require_map_options(source, image_size, crop, short_side)
        path = Path(data_dir or ".").expanduser() / Path(name).expanduser()
        return map_sources.READERS[kind](path, parse_split(split), short_side)
    if short_side is not None:
        kinds = ", ".join(map_sources.READERS)
        raise UserError(
            f"a short side is for images with masks ({kinds}), found {short_side} for {source}: leave it out"
        )
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


def _require_map_options(source: str, image_size: int | None, crop: float, short_side: int | None) -> None:
    """Raises UserError where an option of `load` is not for maps."""
    if image_size is not None or crop:
        raise UserError(
            f"{source} takes no image size and no crop, found {image_size} and {crop}: a short side brings images and "
            "their masks to another size"
        )
    if short_side is not None and short_side < 1:
        raise UserError(f"a short side must be at least 1 pixel, found {short_side}")
