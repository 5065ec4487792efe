"""What a run leaves for people: PNG grids, summary.json, tables from recorded runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastdfkd_jax.files import write_atomically


def write_grid(path: Path, images: np.ndarray, columns: int = 16, scale: int = 2) -> None:
    """Writes the first images, row by row, as one PNG.

    Args:
      path: the file.
      images: uint8[N, H, W, C]; at most columns * columns of them are shown.
      columns: images in a row.
      scale: pixels of the picture for a pixel of an image.
    """
    images = np.asarray(images)[: columns * columns]
    rows = -(-len(images) // columns)
    height, width, channels = images.shape[1:]
    sheet = np.full((rows * (height + 1), columns * (width + 1), channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    write_atomically(path, lambda file: picture.save(file, format="PNG"))


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON atomically."""
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
