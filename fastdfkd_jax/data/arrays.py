"""Labelled images in an `.npz` file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from fastdfkd_jax.data import pictures
from fastdfkd_jax.data.dataset import Dataset, stack, unknown_split
from fastdfkd_jax.data.pictures import Square
from fastdfkd_jax.errors import UserError

_SPLITS = ("train", "test", "val", "all")


def read(path: Path, split: str, square: Square | None = None) -> Dataset:
    """Reads `x_SPLIT` and `y_SPLIT`, or `images` and `labels`, which are the whole of any split.

    Images are uint8 in [0, 255] or floats in [0, 1], [N, H, W, C] or grey [N, H, W]; labels are integers, [N]
    or [N, 1]. In place of `images` there may be JPEG files, `jpeg` and `offsets` (`pictures.concatenated`).

    Args:
      path: of the file.
      split: name of the split.
      square: if given, what is cut out of each JPEG file's picture.

    Raises:
      UserError: the file is missing or damaged, has other entries, or they do not fit together.
    """
    content = load(path)
    if {"jpeg", "offsets", "labels"} <= set(content):
        content["images"] = _decoded(content, str(path), square)
    images, labels = f"x_{split}", f"y_{split}"
    if not {images, labels} <= set(content):
        images, labels = "images", "labels"
        if not {images, labels} <= set(content):
            raise UserError(
                f"expected x_{split} and y_{split}, or images and labels, in {path}, found "
                f"{', '.join(content) or 'nothing'}"
            )
        if split not in _SPLITS:
            raise unknown_split(split, f"npz:{path}", _SPLITS)
    return Dataset(*_check(content[images], content[labels], str(path)))


def _decoded(content: dict[str, np.ndarray], where: str, square: Square | None) -> np.ndarray:
    try:
        return stack([pictures.decode(file, square) for file in pictures.concatenated(content)], where)
    except pictures.DAMAGED as error:
        raise UserError(f"cannot read a picture of {where}: it is damaged or of another kind") from error


def _check(images: np.ndarray, labels: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Brings images to uint8[N, H, W, C] and labels to int32[N].

    Raises:
      UserError: shapes, types or ranges are others.
    """
    if images.ndim == 3:
        images = images[..., None]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or labels.shape != images.shape[:1]:
        raise UserError(
            f"expected images [N, H, W, 1 or 3] and labels [N] in {where}, found {list(images.shape)} and "
            f"{list(labels.shape)}"
        )
    if not len(labels):
        raise UserError(f"expected labelled images in {where}, found none")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise UserError(f"expected integer labels from 0 in {where}, found {labels.dtype} from {labels.min()}")
    if images.dtype != np.uint8:
        # Negated, so that NaN is refused too.
        if not np.issubdtype(images.dtype, np.floating) or not (images.min() >= 0 and images.max() <= 1):
            raise UserError(
                f"expected uint8 images or floats in [0, 1] in {where}, found {images.dtype} from "
                f"{images.min()} to {images.max()}"
            )
        images = np.rint(images * 255).astype(np.uint8)
    return images, labels.astype(np.int32)


def load(path: Path) -> dict[str, np.ndarray]:
    """All entries of an `.npz` archive of plain arrays; UserError where it is none."""
    if not path.is_file():
        raise UserError(f"expected the file {path}, found none: give npz:FILE with its right name")
    try:
        # Opened here, because NumPy leaves its own file open when the archive is damaged.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise UserError(f"expected an .npz archive of arrays, found a single array in {path}")
            with archive:
                content = {key: archive[key] for key in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"cannot read {path} as an .npz archive of plain arrays: it is damaged or of another kind"
        ) from error
    # NumPy hands out members that are no arrays as raw bytes.
    if strange := [key for key, value in content.items() if not isinstance(value, np.ndarray)]:
        raise UserError(f"expected only arrays in {path}, found that {strange[0]} is none: it is damaged")
    return content
