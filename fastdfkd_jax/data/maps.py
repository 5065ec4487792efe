"""Checks and resizes images with a class for every pixel, for all their sources."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fastdfkd_jax.data import listing, pictures
from fastdfkd_jax.data.dataset import VOID, Dataset, Split, rows, stack
from fastdfkd_jax.errors import UserError, listed, shortened

_SIZES = "resize them to one size, with a short side if they have one aspect ratio"


class Classes(NamedTuple):
    """The meaning of the values in a source's masks.

    Attributes:
      names: names of the classes, or None if any value below `VOID` may be a class.
      void: the value of a pixel without a class, in addition to `VOID`.
      hint: a possible cause of values beyond the classes, for the message.
    """

    names: tuple[str, ...] | None
    void: int = VOID
    hint: str = "give the masks of this data set"


class Pair(NamedTuple):
    """An image, uint8[H, W] or uint8[H, W, 3], its mask, uint8[H, W], and their location."""

    image: np.ndarray
    mask: np.ndarray
    where: str


def collect(pairs: Iterable[Pair], classes: Classes, short_side: int | None, where: str) -> Dataset:
    """Checks and resizes pairs one by one and stacks them.

    Args:
      pairs: at least one pair.
      classes: classes of the masks.
      short_side: new shorter side in pixels, or None to keep the size.
      where: the place they came from, for the message.

    Returns:
      A `Dataset` of maps.

    Raises:
      UserError: a mask does not have its image's size or has other classes; or sizes are mixed.
    """
    images, masks = [], []
    for pair in pairs:
        mask = _checked(pair, classes)
        bring = short_side is not None
        images.append(pictures.resize(pair.image, short_side, Image.Resampling.BILINEAR) if bring else pair.image)
        masks.append(pictures.resize(mask, short_side, Image.Resampling.NEAREST) if bring else mask)
    return Dataset(stack(images, where, _SIZES), np.stack(masks), classes.names)


def _checked(pair: Pair, classes: Classes) -> np.ndarray:
    """Returns the mask with the source's void value replaced by `VOID`."""
    size, expected = ("x".join(map(str, array.shape[:2])) for array in (pair.mask, pair.image))
    if size != expected:
        raise UserError(
            f"expected the mask {pair.where} to be of its image's {expected} pixels, found {size}: restore the pair"
        )
    mask = np.where(pair.mask == classes.void, np.uint8(VOID), pair.mask)
    count = VOID if classes.names is None else len(classes.names)
    if (strange := mask[(mask >= count) & (mask != VOID)]).size:
        void = " or ".join(map(str, sorted({classes.void, VOID})))
        raise UserError(
            f"expected classes 0 to {count - 1}, or {void} for no class, in the mask {pair.where}, found "
            f"{strange.max()}: {classes.hint}"
        )
    return mask


def read_folders(images: Path, masks: Path, split: Split, classes: Classes, short_side: int | None) -> Dataset:
    """Reads pictures from one folder and masks of the same names from another, in the order of the names.

    Args:
      images: a folder of pictures.
      masks: a folder of palette or grey PNG files of class indices.
      split: split whose bounds limit what is read.
      classes: classes of the masks.
      short_side: new shorter side in pixels, or None to keep the size.

      Raises:
        UserError: a picture lacks its mask or a mask its picture, a file is damaged or not a mask, or as in `collect`.
    """
    pictures_by_name, masks_by_name = _by_name(images, pictures.SUFFIXES), _by_name(masks, {".png"})
    if not pictures_by_name:
        raise UserError(f"expected images in {images}, found none: check the path")
    if alone := sorted(pictures_by_name.keys() ^ masks_by_name.keys()):
        unpaired = listed([(pictures_by_name | masks_by_name)[name].name for name in alone], 3, 20)
        raise UserError(
            f"expected one mask NAME.png in {shortened(masks, 60)} for every image NAME of {shortened(images, 60)}, "
            f"found files without the other: {unpaired}"
        )
    names = sorted(pictures_by_name)[rows(split, len(pictures_by_name))]
    pairs = (Pair(_image(pictures_by_name[name]), read_mask(path := masks_by_name[name]), str(path)) for name in names)
    return collect(pairs, classes, short_side, str(images))


def _by_name(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    files = listing.listed(folder, below=False, suffixes=suffixes)
    for path in files.pictures:
        if path.stem in found:
            raise UserError(
                f"expected one file of each name in {folder}, found {found[path.stem].name} and {path.name}: remove one"
            )
        found[path.stem] = path
    listing.warn_of_skipped([files], folder)
    return found


def _image(path: Path) -> np.ndarray:
    try:
        return pictures.decode(path)
    except pictures.DAMAGED as error:
        raise UserError(f"cannot read the image {path}: it is damaged or not an image; restore it") from error


def _bits(path: Path) -> int:
    """Returns the bits per sample in a PNG's header."""
    with path.open("rb") as file:
        return file.read(25)[-1]


def read_mask(path: Path) -> np.ndarray:
    """Reads class indices, uint8[H, W], from a PNG file with a palette or grey levels.

    Raises:
      UserError: the file is damaged or another kind of picture.
    """
    try:
        with pictures.opened(path, path) as opened:
            kind, mode, bits = opened.format, opened.mode, _bits(path)
            values = np.asarray(opened)
    except pictures.DAMAGED as error:
        raise UserError(f"cannot read the mask {path}: it is damaged or not an image; restore it") from error
    # Reading stretches grey levels of fewer bits to 0 to 255, and JPEG changes them.
    if kind != "PNG" or mode not in ("P", "L") or (mode == "L" and bits != 8):
        found = f"{bits}-bit {mode}" if kind == "PNG" else kind
        raise UserError(
            f"expected the mask {path} to be a PNG file of class indices, palette or 8-bit grey, found {found}: "
            "replace colours by class numbers"
        )
    return values
