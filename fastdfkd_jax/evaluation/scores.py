"""Scores of a network on labelled images, by task: sums over batches on the device, and measurements from them.

A label outside [0, C), such as -1 or 255 for void pixels, is unknown and is left out of every score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fastdfkd_jax import losses
from fastdfkd_jax.models import NetworkSpec

Array = jax.Array
Sums = dict[str, Any]
_TOP = 5


class Score(NamedTuple):
    """The score of a task.

    Attributes:
      name: name of the main measurement, which is in percent.
      title: its title in tables and plots.
      sums: `sums(logits f32[B, ..., C], labels int[B, ...]) -> Sums`, which are added over batches.
      read: `read(total Sums in float64, classes of the data) -> {name: measurement}`.
    """

    name: str
    title: str
    sums: Callable[[Array, Array], Sums]
    read: Callable[[Sums, int], dict[str, Any]]


def of_task(spec: NetworkSpec) -> Score:
    """Returns the score of a network's task."""
    return SEGMENTATION if spec.gives_maps else CLASSIFICATION


def top_sums(logits: Array, labels: Array) -> Sums:
    """Counts images, correct first predictions and labels among the first five, and sums cross-entropies, f32[] each.

    A row with a logit that is not finite counts as wrong, whatever `argmax` returns. Labels are int[B], logits
    f32[B, C]. 'top5' is included with more than five classes.
    """
    classes = logits.shape[-1]
    known, labels = _known(labels, classes)
    hits = lax.top_k(logits, min(_TOP, classes))[1] == labels[:, None]
    hits &= (known & jnp.isfinite(logits).all(1))[:, None]
    sums = {"count": known.sum(), "accuracy": hits[:, 0].sum(), "loss": _loss(logits, labels, known)}
    return sums | ({"top5": hits.any(1).sum()} if classes > _TOP else {})


def read_top(sums: Sums, classes: int) -> dict[str, Any]:
    """Returns 'accuracy' and, if included, 'top5' in percent, and 'loss', the mean cross-entropy in nats."""
    count = float(sums["count"])
    shares = {name: 100 * float(sums[name]) / count for name in ("accuracy", "top5") if name in sums}
    return {**shares, "loss": float(sums["loss"]) / count}


def confusion_sums(logits: Array, labels: Array) -> Sums:
    """Returns the confusion matrix and the summed cross-entropy of known pixels.

    Args:
      logits: f32[B, H, W, C].
      labels: int[B, H, W].

    Returns:
      'confusion' i32[C, C + 1], a row for each label and a column for each prediction; the last column counts pixels
      with a logit that is not finite, which have no prediction. 'loss' f32[].
    """
    classes = logits.shape[-1]
    known, labels = _known(labels, classes)
    predicted = jnp.where(jnp.isfinite(logits).all(-1), logits.argmax(-1), classes)
    # Unknown pixels fall behind the last cell.
    cells = jnp.where(known, labels * (classes + 1) + predicted, classes * (classes + 1))
    counts = jnp.bincount(cells.reshape(-1), length=classes * (classes + 1) + 1)[:-1]
    return {"confusion": counts.reshape(classes, classes + 1), "loss": _loss(logits, labels, known)}


def read_confusion(sums: Sums, classes: int) -> dict[str, Any]:
    """Returns the mean intersection over union and more (METHOD section 4).

    Args:
      sums: sums of `confusion_sums`.
      classes: classes of the data; pixels assigned to a network's other outputs, such as void, count as misses.

    Returns:
      'miou', the mean over the classes that occur as a label or a prediction, and 'pixel_accuracy' in percent;
      'iou' of each class in percent, None for the other classes; 'loss', the mean cross-entropy per pixel in nats.
    """
    confusion = np.asarray(sums["confusion"], np.float64)
    hits = np.diag(confusion)
    union = confusion.sum(1) + confusion[:, :-1].sum(0) - hits
    union[classes:] = 0
    iou = [100 * float(hit) / float(whole) if whole else None for hit, whole in zip(hits, union, strict=True)]
    seen = [value for value in iou if value is not None]
    total = float(confusion.sum())
    return {
        "miou": sum(seen) / len(seen) if seen else 0.0,
        "pixel_accuracy": 100 * float(hits.sum()) / total if total else 0.0,
        "iou": iou,
        "loss": float(sums["loss"]) / total if total else 0.0,
    }


CLASSIFICATION = Score("accuracy", "accuracy", top_sums, read_top)
SEGMENTATION = Score("miou", "mIoU", confusion_sums, read_confusion)


def _known(labels: Array, classes: int) -> tuple[Array, Array]:
    """Returns a mask of the known labels, and labels that are valid indices."""
    labels = labels.astype(jnp.int32)
    known = (labels >= 0) & (labels < classes)
    return known, jnp.where(known, labels, 0)


def _loss(logits: Array, labels: Array, known: Array) -> Array:
    return jnp.where(known, losses.cross_entropies(logits, labels), 0).sum()


def score_key(summary: Mapping[str, Any], name: str) -> str:
    """Fills the score of a run's task into a key such as 'student_{}_last'; older records all have accuracy."""
    return name.format(summary.get("score", "accuracy"))
