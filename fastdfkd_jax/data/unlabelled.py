"""Random square crops of unlabelled pictures of any size, which stand in for the teacher's training data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.data import listing, npz_source, pictures, tfds
from fastdfkd_jax.errors import UserError

SOURCES = ("tfds:NAME", "npz:FILE", "folder:DIR")
# Share of the shorter side; smaller crops show only texture.
_SMALLEST_CROP = 0.3
_CHUNK = 1024
_CHANNELS = ((), (1,), (3,), (4,))


def stream(
    source: str, split: str, root: Path, *, image_size: int, channels: int, crops: int, limit: int
) -> Iterator[np.ndarray]:
    """Reads pictures one by one and yields crops in chunks, the same ones at every call.

    They come in chunks, because the crops of ImageNet take 4 GB of memory at 32 pixels and 63 GB at 128.

    Args:
      source: 'tfds:NAME' with a feature 'image'; 'npz:FILE' with `images` (or `x_SPLIT`), or with `jpeg`, concatenated
        files, and `offsets`; 'folder:DIR' with pictures at any depth, whose folder names are ignored.
      split: split of TFDS or of an `.npz`.
      root: folder of TFDS data sets; a relative FILE or DIR is relative to it.
      image_size: side in pixels of a stored crop.
      channels: 3, or 1 for grey.
      crops: crops per picture: squares at random places, with a side of 0.3 to 1 times the picture's shorter side.
      limit: largest total number of crops; 0 for no limit.

    Yields:
      uint8[N, image_size, image_size, channels], with N from 1 to 1024.

    Raises:
      UserError: the source is unknown, empty or damaged.
    """
    kind, _, name = source.partition(":")
    readers = {"tfds": _of_tfds, "npz": _of_npz, "folder": _of_folder}
    if kind not in readers or not name:
        raise UserError(f"unknown source of pictures {source!r}: expected one of {', '.join(SOURCES)}")
    generator = np.random.default_rng(0)
    mode = "L" if channels == 1 else "RGB"
    pictures_of_source = (pictures.to_mode(picture, mode) for picture in readers[kind](name, split, root))
    cut = (_random_square(generator, picture, image_size) for picture in pictures_of_source for _ in range(crops))
    cut, is_empty = itertools.islice(cut, limit or None), True
    while chunk := list(itertools.islice(cut, _CHUNK)):
        is_empty = False
        yield np.stack(chunk).reshape(-1, image_size, image_size, channels)
    if is_empty:
        raise UserError(f"expected pictures in {source}, found none: check the path")


def _random_square(generator: np.random.Generator, picture: Image.Image, size: int) -> np.ndarray:
    side = min(picture.size) * generator.uniform(_SMALLEST_CROP, 1)
    left, top = (generator.uniform(0, whole - side) for whole in picture.size)
    box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))


def _of_tfds(name: str, split: str, root: Path) -> Iterator[Image.Image]:
    for encoded in tfds.encoded_images(name, split, root):
        yield _decoded(encoded, f"tfds:{name}")


def _of_npz(name: str, split: str, root: Path) -> Iterator[Image.Image]:
    path = root / expanded(name)
    names = npz_source.names_of(path)
    if {"jpeg", "offsets"} <= set(names):
        for file in pictures.concatenated(npz_source.load(path, ("jpeg", "offsets")), path):
            yield _decoded(file.tobytes(), str(path))
        return
    title = npz_source.find(names, split) or npz_source.find(names, "")
    images = npz_source.load(path, [title])[title] if title else None
    if images is None or images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in _CHANNELS:
        found = npz_source.named(names) if images is None else f"{images.dtype}{list(images.shape)}"
        raise UserError(
            f"expected jpeg and offsets, or uint8 x_{split} or images, in {path}, found {found}: store pictures so"
        )
    for image in images:
        yield Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image)


def _of_folder(name: str, split: str, root: Path) -> Iterator[Image.Image]:
    place = root / expanded(name)
    if not place.is_dir():
        raise UserError(f"expected a folder of pictures, found no folder {place}: check the path")
    found = listing.listed(place)
    listing.warn_of_skipped([found], place)
    for path in found.pictures:
        yield _decoded(path, str(path))


def _decoded(file: Path | bytes, where: str) -> Image.Image:
    try:
        return pictures.read(file, where if isinstance(file, Path) else f"of {where}")
    except pictures.DAMAGED as error:
        raise UserError(f"cannot read a picture of {where}: it is damaged or not an image; remove it") from error
