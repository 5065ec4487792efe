"""Writes images to one folder per class, as torchvision's ImageFolder and our `folder:DIR` read them."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Executor
from pathlib import Path

from fastdfkd_jax.errors import UserError
from fastdfkd_jax.export.images import Batch, encode

UNLABELLED = "unlabelled"


def class_names(num_classes: int) -> list[str]:
    """Returns names that sort in the order of the classes: their numbers with leading zeros."""
    width = len(str(num_classes - 1))
    return [f"{index:0{width}d}" for index in range(num_classes)]


def write(batches: Iterable[Batch], directory: Path, num_classes: int, threads: Executor) -> None:
    """Writes `DIR/CLASS/NUMBER.png`, with NUMBER from the pool, and empty folders for classes without images.

    Images without labels become `DIR/unlabelled/NUMBER.png`, without folders of classes.

    Args:
      batches: at least one batch.
      directory: an empty folder.
      num_classes: more than any label.
      threads: executor that encodes the images.

    Raises:
      UserError: only some of the images have labels, which such a folder cannot represent.
      OSError: the disk is full.
    """
    names = class_names(num_classes)
    kinds: set[bool] = set()
    for start, images, labels in batches:
        kinds |= set((labels >= 0).tolist())
        if len(kinds) > 1:
            # An extra folder would count as an extra class.
            raise UserError("some images have no label, and no class folder to go into: use --format tfds")
        folders = [directory / (names[label] if label >= 0 else UNLABELLED) for label in labels]
        for folder in set(folders):
            folder.mkdir(exist_ok=True)
        # Only this thread writes. A thread whose start was interrupted is not waited for, and could write into a folder
        # that is being removed.
        for folder, number, png in zip(
            folders, range(start, start + len(labels)), threads.map(encode, images), strict=True
        ):
            # Eight digits, so that files sort by their numbers.
            (folder / f"{number:08d}.png").write_bytes(png)
    if True in kinds:
        for name in names:
            (directory / name).mkdir(exist_ok=True)
