"""Images in one folder a class, as torchvision's ImageFolder and our `folder:DIR` read them."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from fastdfkd_jax.errors import UserError
from fastdfkd_jax.export.images import Batch, encode

UNLABELLED = "unlabelled"


def class_names(num_classes: int) -> list[str]:
    """Names whose sorted order is that of the classes: their numbers, with zeros in front."""
    width = len(str(num_classes - 1))
    return [f"{index:0{width}d}" for index in range(num_classes)]


def write(batches: Iterable[Batch], directory: Path, num_classes: int, threads: Executor) -> None:
    """Writes `DIR/CLASS/NUMBER.png`, NUMBER that of the image in the pool, and a folder for each class without images.

    Images without labels become `DIR/unlabelled/NUMBER.png`, without folders of classes.

    Args:
      batches: at least one.
      directory: an empty folder.
      num_classes: more than any label.
      threads: what encodes and writes the files.

    Raises:
      UserError: some images have labels and some have not, which such a folder cannot tell.
      OSError: the disk is full.
    """
    names = class_names(num_classes)
    kinds: set[bool] = set()
    for start, images, labels in batches:
        kinds |= set((labels >= 0).tolist())
        if len(kinds) > 1:
            # A folder more would count as a class more.
            raise UserError("some of the images have no label, which folders of classes cannot tell: use --format tfds")
        folders = [directory / (names[label] if label >= 0 else UNLABELLED) for label in labels]
        for folder in set(folders):
            folder.mkdir(exist_ok=True)

        def save(folder: Path, number: int, image: np.ndarray) -> None:
            # Eight digits, so that files sort by their numbers.
            (folder / f"{number:08d}.png").write_bytes(encode(image))

        for _ in threads.map(save, folders, range(start, start + len(labels)), images):
            pass
    if True in kinds:
        for name in names:
            (directory / name).mkdir(exist_ok=True)
