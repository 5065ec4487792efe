"""Reads labelled images from an `.npz` file."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np

from fastdfkd_jax.data import listing, pictures
from fastdfkd_jax.data.dataset import SPLIT_NAMES, Dataset, collected, kind_of, stack, unknown_split
from fastdfkd_jax.data.pictures import Square
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage import limits, npz

_SPLITS = ("train", "test", "val", "all")
_IMAGES, _LABELS = ("x", "images", "image", "data"), ("y", "labels", "label", "targets")
_JPEGS = ("jpeg", "offsets", "labels")
_LARGEST = np.iinfo(np.int32).max
_LISTED = 6


def read(path: Path, split: str, square: Square | None = None) -> Dataset:
    """Reads a split's images and labels, or `images` and `labels`, which are used whole for any split.

    The arrays of a split are called `x_SPLIT` and `y_SPLIT`, or `SPLIT_images` and `SPLIT_labels` as in MedMNIST; other
    usual names work too (`find`). Images are uint8 in [0, 255] or floats in [0, 1], [N, H, W, C] or grey [N, H, W].
    Labels are integers, or names of classes, [N] or [N, 1]. `images` may be replaced by JPEG files in `jpeg` and
    `offsets` (`pictures.concatenated`).

    Args:
      path: path of the file.
      split: name of the split.
      square: the square to cut out of each JPEG picture, if any.

    Returns:
      A `Dataset`. If the labels are names, they become its class names, numbered in sorted order.

    Raises:
      UserError: the file is missing or damaged, has other entries, or its arrays do not match.
    """
    names = names_of(path)
    images, labels = find(names, split, _IMAGES), find(names, split, _LABELS)
    if images and labels:
        content = load(path, (images, labels))
        return _checked(content[images], content[labels], str(path))
    encoded = set(_JPEGS) <= set(names)
    images, labels = ("images", "labels") if encoded else (find(names, "", _IMAGES), find(names, "", _LABELS))
    if not images or not labels:
        raise UserError(
            f"expected x_{split} and y_{split}, or images and labels, in {path}, found {named(names)}: rename them"
        )
    if split not in _SPLITS and kind_of(split) is None:
        raise unknown_split(split, f"npz:{path}", _SPLITS)
    if encoded:
        content = load(path, _JPEGS)
        return _checked(_decoded(content, str(path), square), content[labels], str(path))
    content = load(path, (images, labels))
    return _checked(content[images], content[labels], str(path))


def find(names: Iterable[str], split: str, titles: Collection[str] = _IMAGES) -> str | None:
    """Finds the name of a split's images, or labels, among an archive's arrays; None if there is none.

    Args:
      names: names of the arrays, in any case.
      split: the requested split; '' for arrays that belong to no split.
      titles: usual names of the images or labels.
    """
    by_lower = {name.casefold(): name for name in sorted(names)}
    splits = dict.fromkeys((split.casefold(), *SPLIT_NAMES.get(kind_of(split) or "", ())))
    wanted = [form for part in splits for title in titles for form in (f"{title}_{part}", f"{part}_{title}")]
    return next((by_lower[name] for name in (wanted if split else titles) if name in by_lower), None)


def named(names: Iterable[str]) -> str:
    """Lists the first of some names for a message."""
    listed = list(names)
    return ", ".join(listed[:_LISTED]) + (", ..." if len(listed) > _LISTED else "") or "nothing"


def _decoded(content: dict[str, np.ndarray], where: str, square: Square | None) -> np.ndarray:
    files = pictures.concatenated(content, where)
    try:
        decoded = (pictures.decode(file.tobytes(), square, f"of {where}") for file in files)
        return stack(collected(decoded, len(files), where), where)
    except pictures.DAMAGED as error:
        raise UserError(f"cannot read a picture of {where}: it is damaged or not an image; restore it") from error


def _checked(images: np.ndarray, labels: np.ndarray, where: str) -> Dataset:
    """Converts images to uint8[N, H, W, C] and labels to int32[N].

    Raises:
      UserError: shapes, types or ranges are wrong.
    """
    if images.ndim == 3:
        images = images[..., None]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or labels.shape != images.shape[:1]:
        raise UserError(
            f"expected images [N, H, W, 1 or 3] and labels [N] in {where}, found {list(images.shape)} and "
            f"{list(labels.shape)}: store them so"
        )
    if not len(labels):
        raise UserError(f"expected labelled images in {where}, found none: check the file")
    numbers, names = _numbered(labels, where)
    return Dataset(_as_bytes(images, where), numbers, names)


def _numbered(labels: np.ndarray, where: str) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Returns labels as int32[N], and the names of the classes if the labels are names."""
    if labels.dtype.kind in "US":
        try:
            texts = labels if labels.dtype.kind == "U" else np.char.decode(labels, "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"expected labels as UTF-8 text in {where}, found other bytes: store them as str"
            ) from error
        found, places = np.unique(texts, return_inverse=True)
        names = listing.in_order(found.tolist(), where)
        number = {name: i for i, name in enumerate(names)}
        return np.array([number[name] for name in found.tolist()], np.int32)[places], tuple(names)
    if labels.dtype.kind not in "iu":
        raise UserError(f"expected integer labels from 0, or names, in {where}, found {labels.dtype}: convert them")
    if labels.min() < 0 or labels.max() > _LARGEST:
        raise UserError(
            f"expected integer labels from 0 to {_LARGEST} in {where}, found {labels.dtype} from {labels.min()} to "
            f"{labels.max()}: number the classes from 0"
        )
    return labels.astype(np.int32), None


def _as_bytes(images: np.ndarray, where: str) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    found = str(images.dtype)
    if images.dtype.kind in "iufb":
        found += f" from {images.min()} to {images.max()}"
    # The condition is negated so that NaN is refused too.
    if images.dtype.kind != "f" or not (images.min() >= 0 and images.max() <= 1):
        raise UserError(f"expected uint8 images or floats in [0, 1] in {where}, found {found}: convert them")
    return np.rint(images * 255).astype(np.uint8)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[npz.Arrays]:
    """Opens an archive; raises UserError if the file is not one, or if reading its arrays shows damage."""
    if not path.exists():
        raise UserError(f"expected the file {path}, found none: check the path in npz:FILE")
    try:
        limits.require_regular(path, "archive")
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise UserError(
                    f"expected an .npz archive of arrays, found a single array in {path}: save it with numpy.savez"
                )
        with npz.opened(path, "archive") as arrays:
            yield arrays
    except npz.DAMAGED as error:
        raise UserError(
            f"cannot read {path} as an .npz archive of plain arrays ({npz.reason_of(error)}): it is damaged or of "
            "another kind; write it with numpy.savez"
        ) from error


def names_of(path: Path) -> list[str]:
    """Returns the names of an archive's arrays; raises UserError if it is not an archive."""
    with _opened(path) as arrays:
        return list(arrays)


def load(path: Path, wanted: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Reads the wanted arrays (None: all) that an `.npz` archive has, after checking their declared sizes.

    Raises:
      UserError: it is not an archive, is damaged, holds Python objects under these names, or takes too much memory.
    """
    with _opened(path) as arrays:
        return {name: arrays[name] for name in (arrays if wanted is None else wanted) if name in arrays}
