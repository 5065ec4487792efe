"""Images in one folder a class, and Tiny-ImageNet's validation folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastdfkd_jax.data import pictures
from fastdfkd_jax.data.dataset import Dataset, stack, unknown_split
from fastdfkd_jax.data.pictures import Square
from fastdfkd_jax.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm"}
_SPLITS = ("train", "val", "validation", "test")
_ANNOTATIONS = "val_annotations.txt"


def read(directory: Path, split: str, square: Square | None = None) -> Dataset:
    """Reads `DIR/SPLIT/CLASS/**/image`, or `DIR/CLASS/**/image` where DIR has no splits.

    A folder with `images/` and `val_annotations.txt` is read as Tiny-ImageNet's. Classes are numbered by
    their sorted names, those of `DIR/train` where it exists, so that all splits number them alike. A folder
    without images is a class too: those after it keep their numbers.

    Args:
      directory: DIR.
      split: name of the split.
      square: if given, what is cut out of each image.

    Raises:
      UserError: the folder is missing, empty or has no labels; a file is damaged; sizes are mixed.
    """
    if not directory.is_dir():
        raise UserError(f"expected a folder of images by class, found no folder {directory}")
    place = directory / split
    if not place.is_dir():
        splits = [name for name in _SPLITS if (directory / name).is_dir()]
        if splits or split not in (*_SPLITS, "all"):
            raise unknown_split(split, f"folder:{directory}", splits or [*_SPLITS, "all"])
        place = directory
    annotated = (place / _ANNOTATIONS).is_file()
    labelled = _annotated(place) if annotated else _by_class(place)
    if not labelled:
        raise UserError(f"expected images in one folder a class in {place}, found none")
    train = directory / "train"
    if annotated and not train.is_dir():
        names = sorted({name for _, name in labelled})
    else:
        names = _class_folders(train if train.is_dir() else place)
    index = {name: i for i, name in enumerate(names)}
    if strange := sorted({name for _, name in labelled} - set(index)):
        raise UserError(f"expected the {len(names)} classes of {train} in {place}, found also {strange[0]!r}")
    images = stack([_image(path, square) for path, _ in labelled], str(place))
    labels = np.array([index[name] for _, name in labelled], np.int32)
    return Dataset(images, labels, tuple(names))


def _class_folders(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))


def _by_class(place: Path) -> list[tuple[Path, str]]:
    names = _class_folders(place)
    if names == ["images"]:
        # Tiny-ImageNet's test split; as a class folder it would score one class.
        raise UserError(f"the images of {place} have no labels: choose a split that has, such as val")
    return [
        (path, name) for name in names for path in sorted((place / name).rglob("*")) if path.suffix.lower() in SUFFIXES
    ]


def _annotated(place: Path) -> list[tuple[Path, str]]:
    rows = [line.split("\t") for line in (place / _ANNOTATIONS).read_text().splitlines() if line.strip()]
    if any(len(row) < 2 for row in rows):
        raise UserError(f"expected lines of file name, tab, class in {place / _ANNOTATIONS}, found others")
    return [(place / "images" / row[0], row[1]) for row in sorted(rows)]


def _image(path: Path, square: Square | None) -> np.ndarray:
    try:
        return pictures.decode(path, square)
    except pictures.DAMAGED as error:
        raise UserError(f"cannot read the image {path}: it is missing, damaged or of another kind") from error
