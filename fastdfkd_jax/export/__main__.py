"""The synthesised images of a run as a folder of pictures or as a TFDS data set.

python -m fastdfkd_jax.export WORKDIR --to DIR --format folder
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fastdfkd_jax import configuration
from fastdfkd_jax.arguments import OneLineParser
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.export import folder, images, records
from fastdfkd_jax.export.images import Batch
from fastdfkd_jax.files import stopped_in_one_line, whole_folder

log = logging.getLogger("fastdfkd_jax.export")  # not __name__, which is __main__

FORMATS = {"folder": folder.write, "tfds": records.write}
_SECONDS_BETWEEN_LINES = 30
_MOST_THREADS = 8  # more would wait for the disk


def export(place: Path, to: Path, file_format: str, num_classes: int | None = None) -> np.ndarray:
    """Writes all images of a pool, one shard in memory at a time.

    Args:
      place: a run's workdir, or its `pool` folder.
      to: a folder that is not there yet or empty; it appears when all is written.
      file_format: one of `FORMATS`.
      num_classes: by default what the workdir tells.

    Returns:
      i64[num_classes + 1], images of each class, and last those without a label.

    Raises:
      UserError: there are no images, a shard is damaged or does not fit, the number of classes is not known, the
        target is not empty, or the disk is full.
    """
    if num_classes is not None and num_classes < 1:
        raise UserError(f"--num-classes must be at least 1, found {num_classes}")
    paths = images.shards(place)
    num_classes = num_classes or images.count_classes(paths[0].absolute().parent)
    counts = np.zeros(num_classes + 1, np.int64)
    with whole_folder(to) as partial, ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as threads:
        batches = _counted(images.read(paths, num_classes), counts, len(paths))
        FORMATS[file_format](batches, partial, num_classes, threads)
    return counts


def _counted(batches: Iterable[Batch], counts: np.ndarray, total: int) -> Iterator[Batch]:
    """Adds each batch to `counts` and says now and then how many of the `total` shards are written."""
    told = time.monotonic()
    for index, batch in enumerate(batches):
        if time.monotonic() - told > _SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            log.info("wrote %s images, %d of %d shards", f"{batch.start:,}", index, total)
        yield batch
        counts += np.bincount(np.where(batch.labels < 0, len(counts) - 1, batch.labels), minlength=len(counts))


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m fastdfkd_jax.export", description=__doc__)
    parser.add_argument("workdir", type=Path, help="of the run, or its pool folder")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="a folder that is new or empty")
    parser.add_argument("--format", choices=FORMATS, required=True, help="CLASS/NUMBER.png, or array_record files")
    parser.add_argument("--num-classes", type=int, help="where the workdir does not tell, as there is no student yet")
    return parser


def main(argv: Sequence[str]) -> None:
    """Parses, writes and says what was written; `argv` begins with the program's name."""
    arguments = _parser().parse_args(argv[1:])
    with stopped_in_one_line(arguments.to):
        counts = export(arguments.workdir.expanduser(), arguments.to, arguments.format, arguments.num_classes)
    *labelled, unlabelled = counts.tolist()
    empty = labelled.count(0)
    if unlabelled:
        log.warning("%s images have no label", f"{unlabelled:,}")
    elif empty and arguments.format == "folder":
        log.warning("%d classes have no image: torchvision's ImageFolder wants allow_empty=True", empty)
    print(f"{arguments.to}: {sum(counts):,} images, {len(labelled)} classes")


if __name__ == "__main__":
    configuration.run_command(main)
