"""Writes many images as one picture: a plain grid, or rows with labels."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastdfkd_jax.storage.files import make_folder, write_atomically

_LEAST, _MOST = 48, 128  # sides in labelled rows, pixels: smaller images are enlarged, larger ones reduced
_GAP, _MARGIN = 2, 8  # pixels between images, and around everything
_TEXT, _NAME_WIDTH = 14, 180  # size of text, and the most that a name takes, pixels
_INK, _FAINT = (20, 20, 20), (95, 95, 95)


class LabelledRow(NamedTuple):
    """A row of a picture.

    Attributes:
      name: text on the left, in ASCII, cut where it is too long.
      note: fainter text below it; may be ''.
      images: uint8[N, H, W, C], all rows' of one size.
    """

    name: str
    note: str
    images: np.ndarray


def write_grid(path: Path, images: np.ndarray, columns: int = 16, scale: int = 0, rows: int = 0) -> None:
    """Writes the first images, row by row, as one PNG.

    Args:
      path: the file.
      images: uint8[N, H, W, C].
      columns: images in a row.
      scale: picture pixels per image pixel; 0 for as many as make images visible.
      rows: largest number of rows; 0 for as many as columns.
    """
    images = np.asarray(images)[: columns * (rows or columns)]
    used = -(-len(images) // columns)
    height, width, channels = images.shape[1:]
    sheet = np.full((used * (height + 1), columns * (width + 1), channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image
    picture = as_picture(sheet)
    scale = scale or magnification(min(height, width), _LEAST)
    save(path, picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST))


def write_rows(path: Path, heading: str, rows: Sequence[LabelledRow]) -> None:
    """Writes rows of images, each with its name and note on the left, below a heading, as one PNG."""
    save(path, draw_rows(heading, rows))


def draw_rows(heading: str, rows: Sequence[LabelledRow]) -> Image.Image:
    """Returns the picture of `write_rows`; there must be at least one row."""
    font, bold = ImageFont.load_default(_TEXT), ImageFont.load_default(_TEXT + 2)
    tiles = [[tile(image) for image in row.images] for row in rows]
    width, height = (max(size) for size in zip(*(made.size for row in tiles for made in row), strict=True))
    names = [_cut(row.name, bold) for row in rows]
    texts = [*((name, bold) for name in names), *((row.note, font) for row in rows)]
    left = 2 * _MARGIN + round(max(face.getlength(text) for text, face in texts))
    sheet_width = max(left + max(map(len, tiles)) * (width + _GAP) + _MARGIN, 420)
    lines = textwrap.wrap(heading, int((sheet_width - 2 * _MARGIN) / font.getlength("n" * 20) * 21))
    top = _MARGIN + len(lines) * (_TEXT + 4) + (_MARGIN if lines else 0)
    sheet = Image.new("RGB", (sheet_width, top + len(rows) * (height + _GAP) + _MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        pen.text((_MARGIN, _MARGIN + number * (_TEXT + 4)), line, _FAINT, font)
    for row, name, made in zip(rows, names, tiles, strict=True):
        middle = top + height / 2
        if row.note:
            pen.text((_MARGIN, middle - 1), name, _INK, bold, anchor="ls")
            pen.text((_MARGIN, middle + 3), row.note, _FAINT, font, anchor="la")
        else:
            pen.text((_MARGIN, middle), name, _INK, bold, anchor="lm")
        for number, each in enumerate(made):
            sheet.paste(each, (left + number * (width + _GAP), top))
        top += height + _GAP
    return sheet


def magnification(side: int, least: int) -> int:
    """Returns the smallest whole factor that enlarges a side to at least this many pixels."""
    return max(1, -(-least // side))


def as_picture(image: np.ndarray) -> Image.Image:
    """Returns uint8[H, W, 1 or 3] as a picture, grey or in colour."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def tile(image: np.ndarray, least: int = _LEAST) -> Image.Image:
    """Returns uint8[H, W, 1 or 3] as a picture: small ones enlarged without smoothing, large ones reduced."""
    made = as_picture(image)
    scale = magnification(min(made.size), least)
    if scale > 1:
        return made.resize((made.width * scale, made.height * scale), Image.Resampling.NEAREST)
    made.thumbnail((_MOST, _MOST))
    return made


def save(path: Path, picture: Image.Image) -> None:
    """Writes a picture as PNG, in grey where it has no colour."""
    bands = np.asarray(picture)
    if bands.ndim == 3 and (bands == bands[..., :1]).all():
        picture = picture.convert("L")
    make_folder(path.parent)
    write_atomically(path, lambda file: picture.save(file, format="PNG", optimize=True))


def _cut(name: str, font: Any) -> str:
    # The font that comes with Pillow has few letters beyond ASCII.
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    name = " ".join(plain.split()) or "?"
    if font.getlength(name) <= _NAME_WIDTH:
        return name
    while name and font.getlength(name + "...") > _NAME_WIDTH:
        name = name[:-1]
    return name + "..."
