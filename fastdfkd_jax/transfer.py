"""Real images in place of synthesised ones, for the methods that are given some and say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fastdfkd_jax import data, pool
from fastdfkd_jax.data import unlabelled
from fastdfkd_jax.models import NetworkSpec
from fastdfkd_jax.shards import Rows

_BATCH = 256


def read(
    source: str,
    split: str,
    directory: str,
    spec: NetworkSpec,
    *,
    crops: int,
    limit: int,
    short_side: int = 0,
    square: int = 0,
) -> Rows:
    """Images of the teacher's size, or with maps of labels of any.

    Args:
      source, split, directory: as `data.load` takes them, or `data.unlabelled.load` where crops are wanted.
      spec: the teacher's.
      crops: 0 for a labelled data set as it is, else so many random crops of each picture, without labels.
      limit: most images; 0 for all.
      short_side: to which images with maps are brought; 0 for as they are.
      square: side of what is cut out of these before the network sees them; 0 for whole images.

    Raises:
      UserError: the data are missing or damaged, or do not fit the teacher.
    """
    if not crops:
        dataset = data.require(
            data.load(source, split, data_dir=directory or None, short_side=short_side or None), spec, square
        )
        rows = slice(limit or None)
        return Rows(dataset.images[rows], dataset.labels[rows])
    root = Path(directory or (data.DEFAULT_DATA_DIR if source.startswith("tfds:") else ".")).expanduser()
    size = {"image_size": spec.image_size, "channels": spec.channels}
    images = unlabelled.load(source, split, root, **size, crops=crops, limit=limit)
    return Rows(images, np.full(len(images), -1, np.int32))


def choose(rows: Rows, score: Callable[[Any, jax.Array], jax.Array], teacher_vars: Any, count: int) -> Rows:
    """The `count` images of lowest score, in the order in which they lie.

    Args:
      rows: to choose from.
      score: `score(teacher_vars, images f32[B, H, W, C] in [0, 1]) -> f32[B]`.
      teacher_vars: the teacher's variables.
      count: how many; no more than there are.
    """
    compiled = jax.jit(lambda variables, images: score(variables, pool.to_float(images)))
    scores = []
    for start in range(0, len(rows.images), _BATCH):
        images = rows.images[start : start + _BATCH]
        padding = ((0, _BATCH - len(images)), (0, 0), (0, 0), (0, 0))  # one compilation for all
        scores.append(np.asarray(compiled(teacher_vars, np.pad(images, padding)))[: len(images)])
    chosen = np.sort(np.argsort(np.concatenate(scores), kind="stable")[:count])
    return Rows(rows.images[chosen], rows.labels[chosen])
