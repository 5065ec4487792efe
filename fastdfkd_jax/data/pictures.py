"""Encoded pictures of any size, and the squares that are cut out of them."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage import limits

# All exceptions that Pillow raises on a damaged picture.
DAMAGED = (
    *(OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, RuntimeError),
    *(MemoryError, OverflowError, struct.error, zlib.error, Image.DecompressionBombError),
)
# Suffixes of pictures when a folder is read.
SUFFIXES = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp", ".avif"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga"),
    }
)
# Pillow detects formats by content, not by suffix. Formats that it reads with another program (EPS starts
# Ghostscript) and formats that are not pictures are left out.
_FORMATS = (
    *("PNG", "JPEG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "AVIF", "PPM", "JPEG2000", "TGA"),
    *("ICO", "PCX", "SGI", "PSD", "QOI", "DDS"),
)


class Square(NamedTuple):
    """The centre of a picture.

    Attributes:
      size: side in pixels.
      crop: share of the shorter side that it covers; 0.875 is ImageNet's (224 of 256 pixels).
    """

    size: int
    crop: float = 1.0


@contextlib.contextmanager
def opened(file: Path | BinaryIO | bytes, where: object) -> Iterator[Image.Image]:
    """Opens a picture whose size is within the limits, without reading its pixels yet.

    Args:
      file: its path, file or content.
      where: its name in messages.

      Raises:
        UserError: it has too many pixels or is not a regular file.
      any of `DAMAGED`: it is damaged or of another kind.
    """
    if isinstance(file, Path):
        limits.require_regular(file, "picture")
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    with _without_pillows_limit(), Image.open(source, formats=_formats()) as picture:
        limits.require_pixels(picture.width, picture.height, where)
        yield picture


@functools.cache
def _formats() -> tuple[str, ...]:
    """Returns those of `_FORMATS` that the installed Pillow supports."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


_lock, _pillow = threading.Lock(), {"open": 0, "limit": Image.MAX_IMAGE_PIXELS}


@contextlib.contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Lifts Pillow's process-wide limit, which warns at half of ours, while a picture is open here."""
    with _lock:
        if not _pillow["open"]:
            _pillow["limit"] = Image.MAX_IMAGE_PIXELS
            Image.MAX_IMAGE_PIXELS = None
        _pillow["open"] += 1
    try:
        yield
    finally:
        with _lock:
            _pillow["open"] -= 1
            if not _pillow["open"]:
                Image.MAX_IMAGE_PIXELS = _pillow["limit"]


def read(file: Path | BinaryIO | bytes, where: object) -> Image.Image:
    """Reads a picture's pixels (the first frame of an animation), 8 bits a sample; grey ones as mode L.

    Raises:
      UserError: as in `opened`, or the samples have no known range.
      any of `DAMAGED`: as in `opened`.
    """
    with opened(file, where) as picture:
        picture.load()
        return _to_8_bits(picture, where)


def _to_8_bits(picture: Image.Image, where: object) -> Image.Image:
    """Scales 16-bit grey levels and floats in [0, 1] to 0 to 255, where Pillow would clip them."""
    mode = picture.mode
    if not mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture).astype(np.float32)
    # Depending on its version, Pillow stores 16 bits of PNG and PPM as I;16 or as I.
    if mode.startswith("I;16") or (mode == "I" and picture.format in ("PNG", "PPM")):
        values = values / 257
    elif mode == "F" and values.size and values.max() <= 1:
        values = values * 255
    # The condition is negated so that NaN is refused too.
    if not (values.min() >= 0 and values.max() <= 255):
        raise UserError(
            f"expected levels from 0 to 255, 16 bits, or floats in [0, 1] in the picture {where}, found mode {mode} "
            f"from {values.min():g} to {values.max():g}: save it with 8 bits"
        )
    return Image.fromarray(np.rint(values).astype(np.uint8))


def decode(file: Path | BinaryIO | bytes, square: Square | None = None, where: object = None) -> np.ndarray:
    """Reads a picture as uint8[H, W] if grey, else as uint8[H, W, 3].

    Args:
      file: its path, file or content.
      square: the square to cut out after resizing the shorter side to `size / crop` pixels; None for the whole.
      where: its name in messages, by default its path.

    Raises:
      UserError, any of `DAMAGED`: as in `read`.
    """
    picture = read(file, where or (file if isinstance(file, Path) else "in memory"))
    picture = picture if picture.mode == "L" else to_mode(picture, "RGB")
    return np.asarray(picture if square is None else _cut(picture, square))


def to_mode(picture: Image.Image, mode: str) -> Image.Image:
    """Converts a picture to mode RGB or L, without its transparency."""
    if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
        picture = picture.convert("RGBA")  # Pillow warns about a direct conversion
    return picture.convert(mode)


def _cut(image: Image.Image, square: Square) -> Image.Image:
    size, shorter = square.size, round(square.size / square.crop)
    scale = shorter / min(image.size)
    width, height = (max(shorter, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    limits.require_pixels(width, height, f"brought to {shorter} pixels")
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))


def resize(image: np.ndarray, short_side: int, resampling: Image.Resampling) -> np.ndarray:
    """Resizes the shorter side of uint8[H, W] or uint8[H, W, 3] to `short_side` pixels and keeps the aspect ratio.

    Bilinear resampling averages when it shrinks. Nearest takes the value at the centre of the new pixel and
    produces no new values.
    """
    scale = short_side / min(image.shape[:2])
    height, width = (max(short_side, round(side * scale)) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    limits.require_pixels(width, height, f"brought to {short_side} pixels")
    return np.asarray(Image.fromarray(image).resize((width, height), resampling))


def concatenated(content: Mapping[str, np.ndarray], where: object) -> list[np.ndarray]:
    """Returns the files stored in `jpeg`, u8[bytes]; the i-th lies from `offsets[i]` to `offsets[i + 1]`.

    Raises:
      UserError: they have other types, or the offsets do not increase within `jpeg`.
    """
    files, offsets = content["jpeg"], content["offsets"]
    is_list = offsets.ndim == 1 and offsets.dtype.kind in "iu" and len(offsets) > 0
    if files.dtype != np.uint8 or files.ndim != 1 or not is_list:
        raise UserError(
            f"expected jpeg uint8[bytes] and integer offsets [N + 1] in {where}, found "
            f"{files.dtype}{list(files.shape)} and {offsets.dtype}{list(offsets.shape)}: store them so"
        )
    bounds = [int(offset) for offset in offsets]
    if bounds[0] < 0 or bounds[-1] > len(files) or any(stop <= start for start, stop in itertools.pairwise(bounds)):
        raise UserError(
            f"expected growing offsets from 0 to {len(files)}, the bytes of jpeg, in {where}, found {min(bounds)} to "
            f"{max(bounds)}: the file is damaged or made from other pictures"
        )
    return [files[start:stop] for start, stop in itertools.pairwise(bounds)]
