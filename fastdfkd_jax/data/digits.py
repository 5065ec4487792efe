"""Real handwritten digits that come with the package, and the network trained on them.

`digits.npz` holds the 1,797 images of the test part of "Optical Recognition of Handwritten Digits" by
E. Alpaydin and C. Kaynak (UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49), licensed
CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/), as scikit-learn distributes them: digits of 13
writers, 8x8 pixels of 0 to 16. Changes: stored as uint8 (`make_digits`), scaled to 0 to 255 and enlarged to
16x16 when read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastdfkd_jax.data.dataset import Dataset, unknown_split

PATH = Path(__file__).with_name("digits.npz")
TEACHER_PATH = Path(__file__).with_name("digits_teacher.safetensors")
NUM_TRAIN = 1300
_SPLITS = {"train": slice(None, NUM_TRAIN), "test": slice(NUM_TRAIN, None), "all": slice(None)}


def read(split: str) -> Dataset:
    """Reads 'train' (the first 1,300 digits), 'test' (the last 497) or 'all'.

    Returns:
      A `Dataset` of uint8[N, 16, 16, 1] and ten classes.

    Raises:
      UserError: the split is unknown.
    """
    if split not in _SPLITS:
        raise unknown_split(split, "digits", tuple(_SPLITS))
    with np.load(PATH, allow_pickle=False) as file:
        images, labels = file["images"][_SPLITS[split]], file["labels"][_SPLITS[split]]
    return Dataset(enlarge(images), labels.astype(np.int32), tuple("0123456789"))


def enlarge(images: np.ndarray) -> np.ndarray:
    """Enlarges images bilinearly, uint8[N, 8, 8] of 0 to 16 to uint8[N, 16, 16, 1] of 0 to 255."""
    images = images * (255 / 16)
    for axis in (1, 2):
        # Pixel centres lie at quarters: each new pixel is 3/4 its own old pixel and 1/4 the nearest neighbour.
        last = images.shape[axis] - 1
        indices = np.arange(images.shape[axis])
        before = images.take(np.maximum(indices - 1, 0), axis)
        after = images.take(np.minimum(indices + 1, last), axis)
        pair = np.stack([0.75 * images + 0.25 * before, 0.75 * images + 0.25 * after], axis + 1)
        shape = [*images.shape]
        shape[axis] *= 2
        images = pair.reshape(shape)
    return np.rint(images).astype(np.uint8)[..., None]
