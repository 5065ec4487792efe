"""The synthesised images of a run as a folder of pictures or as a TFDS data set.

fastdfkd images WORKDIR --to DIR --format folder
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastdfkd_jax.cli.command import run_command
from fastdfkd_jax.cli.parser import PROGRAM, OneLineParser, expanded
from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.export import answers, folder_writer, images, tfds_writer
from fastdfkd_jax.export.images import Batch
from fastdfkd_jax.storage.files import stopped_in_one_line, whole_folder

log = logging.getLogger("fastdfkd_jax.export")  # not __name__, which is __main__

FORMATS = {"folder": folder_writer.write, "tfds": tfds_writer.write}
LABELS = TEACHER, ASKED = "teacher", "asked"
_SECONDS_BETWEEN_LINES = 30
_MOST_THREADS = 8  # more threads would wait for the disk


class Written(NamedTuple):
    """The result of an export.

    Attributes:
      counts: i64[num_classes + 1], images of each class, and last those without a label.
      agreement: the teacher's agreement with the target classes; None if it did not label the images.
    """

    counts: np.ndarray
    agreement: answers.Agreement | None


def export(place: Path, to: Path, file_format: str, num_classes: int | None = None, label: str = TEACHER) -> Written:
    """Writes all images of a pool, one shard in memory at a time.

    Args:
      place: a run's workdir, or its `pool` folder.
      to: a new or empty folder; it appears when everything is written.
      file_format: one of `FORMATS`.
      num_classes: by default the teacher's or, if it does not label the images, the workdir's.
      label: 'teacher', the class that the teacher predicts, or 'asked', the target class. A segmentation teacher
        predicts no class of an image as a whole, and the labels are those of 'asked'.

    Raises:
      UserError: there are no images, a shard is damaged or does not fit, the number of classes is unknown, the
        target is not empty, the disk is full, or the labelling teacher cannot be loaded.
    """
    paths = images.shards(place)
    pool, agreement = paths[0].absolute().parent, None
    teacher = answers.load_classifier(pool.parent) if label == TEACHER else None
    least = 1 if teacher is None else teacher[0].spec.num_classes
    if num_classes is not None and num_classes < least:
        raise UserError(f"--num-classes must be at least {least}, found {num_classes}")
    num_classes = num_classes or (images.count_classes(pool) if teacher is None else least)
    counts = np.zeros(num_classes + 1, np.int64)
    with whole_folder(to) as partial, ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as threads:
        batches = images.read(paths, num_classes)
        if teacher is not None:
            agreement = answers.Agreement()
            batches = answers.labelled(batches, *teacher, agreement)
        FORMATS[file_format](_counted(batches, counts, len(paths)), partial, num_classes, threads)
    return Written(counts, agreement)


def _counted(batches: Iterable[Batch], counts: np.ndarray, total: int) -> Iterator[Batch]:
    """Adds each batch to `counts` and reports progress through the `total` shards at intervals."""
    told = time.monotonic()
    for index, batch in enumerate(batches):
        if time.monotonic() - told > _SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            log.info("wrote %s images, %d of %d shards", f"{batch.start:,}", index, total)
        yield batch
        counts += np.bincount(np.where(batch.labels < 0, len(counts) - 1, batch.labels), minlength=len(counts))


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog=f"{PROGRAM} images", description=__doc__)
    parser.add_argument("workdir", type=Path, help="of the run, or its pool folder")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="a folder that is new or empty")
    parser.add_argument("--format", choices=FORMATS, required=True, help="CLASS/NUMBER.png, or array_record files")
    parser.add_argument(
        "--label", choices=LABELS, default=TEACHER,
        help="an image's label: the teacher's answer (default), or the class that was asked for",
    )  # fmt: skip
    parser.add_argument("--num-classes", type=int, help="with --label asked, where the workdir does not tell")
    return parser


def main(argv: Sequence[str]) -> None:
    """Parses the arguments, writes the images and reports the result; `argv` begins with the program's name."""
    arguments = _parser().parse_args(argv[1:])
    parallel.split_cpu(0)
    with stopped_in_one_line(arguments.to):
        chosen = (arguments.format, arguments.num_classes, arguments.label)
        counts, agreement = export(expanded(arguments.workdir), arguments.to, *chosen)
    *labelled, unlabelled = counts.tolist()
    empty = labelled.count(0)
    if unlabelled:
        log.warning("%s images have no label", f"{unlabelled:,}")
    elif empty and arguments.format == "folder":
        log.warning("%d classes have no image: torchvision's ImageFolder needs allow_empty=True", empty)
    print(f"{arguments.to}: {sum(counts):,} images, {len(labelled)} classes, {_labels(sum(labelled), agreement)}")


def _labels(labelled: int, agreement: answers.Agreement | None) -> str:
    if agreement is None:
        return "labelled with the class that was asked for" if labelled else "without labels"
    if not agreement.asked:
        return "labelled by the teacher"
    return (
        f"labelled by the teacher, which agrees with the class that was asked for on {agreement.agreed:,} of "
        f"{agreement.asked:,} ({agreement.agreed / agreement.asked:.1%})"
    )


if __name__ == "__main__":
    run_command(main)
