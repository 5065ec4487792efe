"""Encoded pictures of any size, and the squares that are evaluated."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

# What Pillow raises on a damaged picture.
DAMAGED = (OSError, SyntaxError, ValueError)


class Square(NamedTuple):
    """The centre of a picture.

    Attributes:
      size: side in pixels.
      crop: part of the shorter side that it spans; 0.875 is ImageNet's (256 pixels, of which 224).
    """

    size: int
    crop: float = 1.0


def decode(file: str | PathLike | BinaryIO | bytes, square: Square | None = None) -> np.ndarray:
    """Reads a picture, uint8[H, W] of a grey one, uint8[H, W, 3] of any other.

    Args:
      file: its path, file or content.
      square: what to cut out, after bringing the shorter side to `size / crop` pixels; None for the whole.

    Raises:
      any of `DAMAGED`.
    """
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
        image = opened if opened.mode == "L" else opened.convert("RGB")
        return np.asarray(image if square is None else _cut(image, square))


def _cut(image: Image.Image, square: Square) -> Image.Image:
    size, shorter = square.size, round(square.size / square.crop)
    scale = shorter / min(image.size)
    width, height = (max(shorter, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))


def resize(image: np.ndarray, short_side: int, resampling: Image.Resampling) -> np.ndarray:
    """Brings the shorter side of uint8[H, W] or uint8[H, W, 3] to so many pixels and keeps the aspect.

    Bilinear resampling averages where it makes smaller; nearest takes the value at the centre of the new pixel and
    makes no other.
    """
    scale = short_side / min(image.shape[:2])
    height, width = (max(short_side, round(side * scale)) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), resampling))


def concatenated(content: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """The files that lie one after another in `jpeg`, u8[bytes], the i-th from `offsets[i]` to `offsets[i + 1]`."""
    for start, stop in itertools.pairwise(content["offsets"]):
        yield content["jpeg"][start:stop].tobytes()
