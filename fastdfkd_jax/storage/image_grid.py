"""Writes many images as one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fastdfkd_jax.storage.files import make_folder, write_atomically


def write_grid(path: Path, images: np.ndarray, columns: int = 16, scale: int = 2, rows: int = 0) -> None:
    """Writes the first images, row by row, as one PNG.

    Args:
      path: the file.
      images: uint8[N, H, W, C].
      columns: images in a row.
      scale: picture pixels per image pixel.
      rows: largest number of rows; 0 for as many as columns.
    """
    images = np.asarray(images)[: columns * (rows or columns)]
    used = -(-len(images) // columns)
    height, width, channels = images.shape[1:]
    sheet = np.full((used * (height + 1), columns * (width + 1), channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
    make_folder(path.parent)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    write_atomically(path, lambda file: picture.save(file, format="PNG"))
