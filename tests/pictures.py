"""Pictures that are easy to check, and files of them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0)
    return np.frombuffer(file.getvalue(), np.uint8)


def bordered(height: int, width: int, border: int) -> np.ndarray:
    """White, but for a black border of so many pixels."""
    image = np.zeros((height, width, 3), np.uint8)
    image[border : height - border, border : width - border] = 255
    return image


def write_jpegs(path: Path, *images: np.ndarray) -> None:
    files = [jpeg(image) for image in images]
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(path, jpeg=np.concatenate(files), offsets=offsets, labels=np.arange(len(files)))
