"""Pictures of any size, without labels, as random square crops: stand-ins for the data that a teacher saw."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from fastdfkd_jax.data import arrays, pictures, prepared
from fastdfkd_jax.data.folder import SUFFIXES
from fastdfkd_jax.errors import UserError

SOURCES = ("tfds:NAME", "npz:FILE", "folder:DIR")
# Of the shorter side: smaller crops show texture only.
_SMALLEST_CROP = 0.3
_CHUNK = 1024


def stream(
    source: str, split: str, root: Path, *, image_size: int, channels: int, crops: int, limit: int
) -> Iterator[np.ndarray]:
    """Reads pictures one by one and cuts crops out of them, the same ones at every call.

    In parts, because those of ImageNet take 4 GB of memory at 32 pixels and 63 GB at 128.

    Args:
      source: 'tfds:NAME' with a feature 'image'; 'npz:FILE' with `images` (or `x_SPLIT`), or with `jpeg`, all files one
        after another, and `offsets`; 'folder:DIR' with pictures at any depth, of which the folder's names mean nothing.
      split: of TFDS or of an `.npz`.
      root: folder of TFDS data sets; what a relative FILE or DIR is relative to.
      image_size: side of a crop as it is kept, in pixels.
      channels: 3, or 1 for grey.
      crops: of each picture: squares of random place, their side between 0.3 and 1 of the picture's shorter one.
      limit: most crops in all; 0 for any number.

    Yields:
      uint8[N, image_size, image_size, channels], N being 1 to 1024.

    Raises:
      UserError: the source is unknown, empty or damaged.
    """
    kind, _, name = source.partition(":")
    readers = {"tfds": _of_tfds, "npz": _of_npz, "folder": _of_folder}
    if kind not in readers or not name:
        raise UserError(f"unknown source of pictures {source!r}: expected one of {', '.join(SOURCES)}")
    generator = np.random.default_rng(0)
    mode = "L" if channels == 1 else "RGB"
    pictures_of_source = (picture.convert(mode) for picture in readers[kind](name, split, root))
    cut = (_random_square(generator, picture, image_size) for picture in pictures_of_source for _ in range(crops))
    cut, is_empty = itertools.islice(cut, limit or None), True
    while chunk := list(itertools.islice(cut, _CHUNK)):
        is_empty = False
        yield np.stack(chunk).reshape(-1, image_size, image_size, channels)
    if is_empty:
        raise UserError(f"expected pictures in {source}, found none")


def _random_square(generator: np.random.Generator, picture: Image.Image, size: int) -> np.ndarray:
    side = min(picture.size) * generator.uniform(_SMALLEST_CROP, 1)
    left, top = (generator.uniform(0, whole - side) for whole in picture.size)
    box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))


def _of_tfds(name: str, split: str, root: Path) -> Iterator[Image.Image]:
    for encoded in prepared.encoded_images(name, split, root):
        yield _decoded(encoded, f"tfds:{name}")


def _of_npz(name: str, split: str, root: Path) -> Iterator[Image.Image]:
    path = root / Path(name).expanduser()
    content = arrays.load(path)
    if {"jpeg", "offsets"} <= set(content):
        for file in pictures.concatenated(content):
            yield _decoded(file, str(path))
        return
    images = content.get(f"x_{split}", content.get("images"))
    if images is None or images.dtype != np.uint8 or images.ndim not in (3, 4):
        found = ", ".join(content) or "nothing"
        raise UserError(f"expected jpeg and offsets, or uint8 x_{split} or images, in {path}, found {found}")
    for image in images:
        yield Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image)


def _of_folder(name: str, split: str, root: Path) -> Iterator[Image.Image]:
    place = root / Path(name).expanduser()
    if not place.is_dir():
        raise UserError(f"expected a folder of pictures, found no folder {place}")
    for path in sorted(place.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            yield _decoded(path.read_bytes(), str(path))


def _decoded(content: bytes, where: str) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(content))
        picture.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"cannot read a picture of {where}: it is damaged or of another kind") from error
    return picture
