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


def concatenated(content: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """The files that lie one after another in `jpeg`, u8[bytes], the i-th from `offsets[i]` to `offsets[i + 1]`."""
    for start, stop in itertools.pairwise(content["offsets"]):
        yield content["jpeg"][start:stop].tobytes()
