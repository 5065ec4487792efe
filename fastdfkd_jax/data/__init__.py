"""Labelled images and maps from TFDS, torchvision's CIFAR pickles, `.npz` files, folders and the package itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.data import cifar_pickle, digits, image_folder, map_sources, npz_source, tfds
from fastdfkd_jax.data.dataset import (
    VOID,
    Dataset,
    class_title,
    count_classes,
    in_channels,
    parse_split,
    read_names,
    renumbered,
    require,
    take,
)
from fastdfkd_jax.data.pictures import Square
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.options import Options, option

__all__ = [
    "DEFAULT_DATA_DIR",
    "SOURCES",
    "VOID",
    "DataOptions",
    "Dataset",
    "class_title",
    "count_classes",
    "in_channels",
    "load",
    "require",
]

DEFAULT_DATA_DIR = "~/tensorflow_datasets"
SOURCES = ("tfds:NAME", "pickle:cifar10", "pickle:cifar100", "npz:FILE", "folder:DIR", "digits")
SOURCES += tuple(f"{kind}:DIR" for kind in map_sources.READERS)


@dataclass(frozen=True)
class DataOptions(Options, section="data"):
    """Options of labelled data, which are used only for evaluation, never for synthesis or distillation."""

    source: str = option(
        "",
        "labelled data for evaluation: 'tfds:cifar10', 'pickle:cifar10', 'npz:FILE', ... (docs/data.md); '' for none",
    )
    dir: str = option("", "folder that holds the data source; '' for its default (~/tensorflow_datasets)")
    split: str = option("test", "split of the data source that is evaluated")
    class_names: str = option(
        "", "file with the teacher's classes in order, one per line; '' for the order of the data"
    )
    crop: float = option(
        0.0,
        "share of a picture's shorter side that the centre crop keeps (0.875 for ImageNet); 0 for no crop",
        within="[0, 1]",
    )
    short_side: int = option(
        0, "shorter side in pixels that images for segmentation are resized to; 0 for no resizing", at_least=0
    )
    batch: int = option(256, "images per evaluation step", at_least=1)
    probe: str = option(
        "",
        "folder of pictures of any size without labels, on which student and teacher are compared after the run; '' "
        "for none",
    )


def load(
    source: str,
    split: str = "test",
    *,
    data_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
    crop: float = 0.0,
    short_side: int | None = None,
    class_names: str | os.PathLike | Sequence[str] | None = None,
) -> Dataset:
    """Reads a split of a data set into memory.

    Args:
      source: one of `SOURCES`.
      split: `NAME` or `NAME[start:stop]`; for TFDS, any split that TFDS accepts.
      data_dir: the folder that holds prepared TFDS data sets (`cifar10/3.0.2/`) or is one, or torchvision's
        (`cifar-10-batches-py/`); by default `DEFAULT_DATA_DIR`. A relative FILE or DIR is relative to it.
      image_size: side in pixels to which the images of a folder are resized; other sources keep their size.
      crop: for pictures of any size (a folder, TFDS, or JPEG files in an `.npz`), the share of the shorter side that
        the central square covers, which is resized to `image_size`; 0.875 is ImageNet's; 0 for no crop.
      short_side: for images with a class for every pixel (camvid, nyuv2, pairs), instead of the two above: pixels to
        which the shorter side is resized, masks by the nearest pixel; None keeps the size.
      class_names: names of a network's classes in the order of its outputs, or a text file with one name per line.
        The data set's classes get the numbers of their names there, so a folder may hold some of ImageNet's classes.

    Returns:
      A `Dataset`, with maps for camvid, nyuv2 and pairs. The same source and split always give the same examples in
      the same order.

    Raises:
      UserError: the source or the split is unknown, or the data are missing, damaged or another data set's.
    """
    dataset = _read(source, split, data_dir, image_size, crop, short_side)
    if class_names is None or class_names == "":
        return dataset
    if isinstance(class_names, str | os.PathLike):
        class_names = read_names(expanded(class_names))
    return renumbered(dataset, class_names, source)


def _read(
    source: str,
    split: str,
    data_dir: str | os.PathLike | None,
    image_size: int | None,
    crop: float,
    short_side: int | None,
) -> Dataset:
    """Does the same as `load`, with the classes as the source numbers them."""
    kind, _, name = source.partition(":")
    if not 0 <= crop <= 1 or (crop and image_size is None):
        raise UserError(f"crop must be from 0 to 1, and 0 without an image size, found {crop} with {image_size}")
    if kind in map_sources.READERS and name:
        _require_map_options(source, image_size, crop, short_side)
        return map_sources.READERS[kind](_path(name, data_dir), parse_split(split), short_side)
    if short_side is not None:
        kinds = ", ".join(map_sources.READERS)
        raise UserError(
            f"a short side is for images with masks ({kinds}), found {short_side} for {source}: leave it out"
        )
    square = Square(image_size, crop) if image_size is not None and crop else None
    if kind in ("tfds", "pickle") and name:
        root = expanded(data_dir or DEFAULT_DATA_DIR)
        if kind == "tfds":
            return tfds.read(name, split, root, square)
        wanted = parse_split(split)
        return take(cifar_pickle.read(name, wanted.name, root), wanted)
    if source == "digits":
        wanted = parse_split(split)
        return take(digits.read(wanted.name), wanted)
    if kind in ("npz", "folder") and name:
        wanted = parse_split(split)
        if kind == "npz":
            return take(npz_source.read(_path(name, data_dir), wanted.name, square), wanted)
        whole = Square(image_size) if image_size is not None else None
        return take(image_folder.read(_path(name, data_dir), wanted.name, square or whole), wanted)
    raise UserError(f"unknown data source {source[:80]!r}: expected one of {', '.join(SOURCES)}")


def _path(name: str, data_dir: str | os.PathLike | None) -> Path:
    return expanded(data_dir or ".") / expanded(name)


def _require_map_options(source: str, image_size: int | None, crop: float, short_side: int | None) -> None:
    """Raises UserError if an option of `load` does not apply to maps."""
    if image_size is not None or crop:
        raise UserError(
            f"{source} takes no image size and no crop, found {image_size} and {crop}: leave them out; a "
            "short side resizes images with masks"
        )
    if short_side is not None and short_side < 1:
        raise UserError(f"a short side must be at least 1 pixel, found {short_side}")
