"""Reads images from one folder per class, and Tiny-ImageNet's validation folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastdfkd_jax.data import listing, pictures
from fastdfkd_jax.data.dataset import Dataset, collected, kind_of, stack, unknown_split
from fastdfkd_jax.data.pictures import Square
from fastdfkd_jax.errors import UserError, shortened
from fastdfkd_jax.storage import limits

_SPLITS = ("train", "val", "validation", "test")
_ANNOTATIONS = "val_annotations.txt"
_LISTED = 5


def read(directory: Path, split: str, square: Square | None = None) -> Dataset:
    """Reads `DIR/SPLIT/CLASS/**/image`, or `DIR/CLASS/**/image` if DIR has no splits.

    A split's folder may have another usual name ('training_set', 'Test', 'valid'). A folder with `images/` and
    `val_annotations.txt` is read as Tiny-ImageNet's. Classes are numbered by their sorted names (by value if all are
    numbers). The names come from the training split if it exists, so that all splits have the same numbers. A folder
    without images is a class too, so that later classes keep their numbers.

    Args:
      directory: DIR.
      split: name of the split.
      square: the square to cut out of each image, if any.

    Raises:
      UserError: the folder is missing, empty or has no labels; a file is damaged; sizes are mixed.
    """
    if not directory.is_dir():
        raise UserError(f"expected a folder of images by class, found no folder {directory}: check the path")
    place = _place(directory, split)
    train = directory / "train"
    if place != directory and not train.is_dir():
        train = next(iter(_splits(directory).get("train", [])), train)
    annotated = (place / _ANNOTATIONS).is_file()
    labelled = _annotated(place) if annotated else _by_class(place)
    if annotated and not train.is_dir():
        names = listing.in_order({name for _, name in labelled}, directory)
    else:
        names = _class_folders(train if train.is_dir() else place)
    index = {name: i for i, name in enumerate(names)}
    if strange := sorted({name for _, name in labelled} - set(index)):
        raise UserError(
            f"expected the {len(names)} classes of {shortened(train, 70)} in {shortened(place, 70)}, found also "
            f"{shortened(strange[0], 40)!r}: give both the same class names"
        )
    decoded = (_image(path, square) for path, _ in labelled)
    images = stack(collected(decoded, len(labelled), str(place)), str(place))
    labels = np.array([index[name] for _, name in labelled], np.int32)
    return Dataset(images, labels, tuple(names))


def _place(directory: Path, split: str) -> Path:
    """Returns the folder of a split, or `directory` if it has none."""
    if (directory / split).is_dir():
        return directory / split
    splits, kind = _splits(directory), kind_of(split)
    found = splits.get(kind or "", [])
    if len(found) == 1:
        return found[0]
    if splits or (kind is None and split != "all"):
        held = sorted(path.name for paths in splits.values() for path in paths)
        raise unknown_split(split, f"folder:{directory}", held or [*_SPLITS, "all"])
    return directory


def _splits(directory: Path) -> dict[str, list[Path]]:
    """Finds the folders of splits by kind; a lone 'training' among other folders may be a class."""
    folders = [path for path in sorted(directory.iterdir()) if path.is_dir() and not listing.is_leftover(path.name)]
    kinds: dict[str, list[Path]] = {}
    for path in folders:
        if kind := kind_of(path.name):
            kinds.setdefault(kind, []).append(path)
    count = sum(map(len, kinds.values()))
    usual = any(path.name in _SPLITS for path in folders)
    return kinds if usual or len(kinds) > 1 or count == len(folders) else {}


def _class_folders(place: Path) -> list[str]:
    found = [path.name for path in place.iterdir() if path.is_dir() and not listing.is_leftover(path.name)]
    return listing.in_order(found, place)


def _by_class(place: Path) -> list[tuple[Path, str]]:
    names = _class_folders(place)
    if names == ["images"]:
        # This is Tiny-ImageNet's test split; read as a class folder it would have a single class.
        raise UserError(f"the images of {place} have no labels: choose a split with labels, such as val")
    found = {name: listing.listed(place / name) for name in names}
    direct = listing.listed(place, below=False)
    listing.warn_of_skipped([*found.values(), direct], place)
    labelled = [(path, name) for name in names for path in found[name].pictures]
    if not labelled:
        held = f"{len(direct.pictures)} images outside such folders" if direct.pictures else "none"
        raise UserError(f"expected one folder of images for each class in {place}, found {held}: make these folders")
    if direct.pictures:
        listing.log.warning("skipped %d pictures outside the class folders of %s", len(direct.pictures), place)
    _warn_of_empty([name for name in names if not found[name].pictures], len(names), place)
    return labelled


def _warn_of_empty(empty: Sequence[str], count: int, place: Path) -> None:
    if empty:
        named = ", ".join(empty[:_LISTED]) + (", ..." if len(empty) > _LISTED else "")
        listing.log.warning("%d of the %d class folders of %s have no pictures: %s", len(empty), count, place, named)


def _annotated(place: Path) -> list[tuple[Path, str]]:
    path = place / _ANNOTATIONS
    limits.require_bytes(limits.require_regular(path, "file"), path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: save it as UTF-8 text, with lines of file name, tab, class") from error
    rows = [line.split("\t") for line in lines if line.strip()]
    if not rows or any(len(row) < 2 for row in rows):
        raise UserError(f"expected lines of file name, tab, class in {path}, found others: restore the file")
    return [(place / "images" / row[0], row[1]) for row in sorted(rows)]


def _image(path: Path, square: Square | None) -> np.ndarray:
    try:
        return pictures.decode(path, square)
    except pictures.DAMAGED as error:
        raise UserError(
            f"cannot read the image {path}: it is missing, damaged or not a picture; restore or remove it"
        ) from error
