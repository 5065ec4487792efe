"""Writes a TFDS data set as array_record files, without TensorFlow."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from fastdfkd_jax.export.images import Batch, encode

NAME, VERSION, SPLIT = "synthesised", "1.0.0", "train"
# Bytes of pixels per file: large enough for few files, small enough to copy them one by one.
_FILE_BYTES = 2**28


def write(batches: Iterable[Batch], directory: Path, num_classes: int, threads: Executor) -> None:
    """Writes the split `train` of the data set `synthesised`, with its records in the order of the pool.

    TFDS's writer makes groups of one record, so that a reader decompresses only what it requests.

    Args:
      batches: at least one; images without labels keep -1, as in TFDS.
      directory: an empty folder.
      num_classes: more than any label.
      threads: executor that encodes the images.

    Raises:
      OSError: the disk is full.
    """
    writer = None
    try:
        for _, images, labels in batches:
            writer = writer or _writer(directory, images.shape[1:], num_classes)
            encoded = threads.map(encode, images)
            examples = [{"image": png, "label": int(label)} for png, label in zip(encoded, labels, strict=True)]
            writer.add_examples({SPLIT: examples})
        if writer is not None:
            writer.close_all()
    except RuntimeError as error:
        # array_record wraps the error of a failed write.
        for code in (errno.ENOSPC, errno.EDQUOT):
            if os.strerror(code) in str(error):
                raise OSError(code, os.strerror(code)) from error
        raise


def _writer(directory: Path, shape: tuple[int, ...], num_classes: int) -> Any:
    # It takes a second to import, and only this format needs it.
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=shape, encoding_format="png"),
        "label": tfds.features.ClassLabel(num_classes=num_classes),
    }
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=NAME, version=tfds.core.Version(VERSION), data_dir=os.fspath(directory), module_name=__name__
        ),
        description="Images synthesised from a teacher alone, by fastdfkd_jax.",
        features=tfds.features.FeaturesDict(features),
        supervised_keys=("image", "label"),
        disable_shuffling=True,
    )
    writer = tfds.core.SequentialWriter(info, max(1, _FILE_BYTES // math.prod(shape)), file_format="array_record")
    writer.initialize_splits([SPLIT])
    return writer
