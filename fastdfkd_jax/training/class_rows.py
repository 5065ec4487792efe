"""Pictures of synthesised images, sorted by class, with the teacher's confidence beside each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastdfkd_jax.pool.shards import read_shard
from fastdfkd_jax.storage import image_grid, npz
from fastdfkd_jax.storage.image_grid import LabelledRow
from fastdfkd_jax.training.build import Parts
from fastdfkd_jax.training.programs import Programs

_PICTURE = "images.png"
_PER_CLASS, _CLASSES, _SHARDS = 8, 20, 8  # images of a class, classes, and newest shards that are looked at
_PLAIN = 64  # images without a class
_ABOUT = "with the teacher's mean confidence in that class."


class ClassRow(NamedTuple):
    """Images of one class.

    Attributes:
      label: the class that they were made for; -1 for none.
      name: its name.
      images: uint8[N, H, W, C].
      confidence: f32[N], the teacher's softmax probability of the class; None without one.
    """

    label: int
    name: str
    images: np.ndarray
    confidence: np.ndarray | None = None

    @property
    def note(self) -> str:
        """Returns the mean confidence as text."""
        return "" if self.confidence is None else f"{100 * self.confidence.mean():.0f} %"


class Gallery(NamedTuple):
    """The images to show.

    Attributes:
      rows: by class, few enough to look at.
      classes: number of classes that have images.
    """

    rows: tuple[ClassRow, ...] = ()
    classes: int = 0

    @property
    def cut(self) -> str:
        """Returns how many classes are shown, if not all."""
        shown = len(self.rows)
        return f"{shown} of {self.classes:,} classes are shown." if shown < self.classes else ""

    @property
    def has_classes(self) -> bool:
        """Returns whether the images have classes."""
        return bool(self.rows) and self.rows[-1].label >= 0


def write_stage(workdir: Path, call: int, images: np.ndarray, labels: Any, parts: Parts, programs: Programs) -> Path:
    """Writes `images/CALL.png` from a call's batch: rows by class, or a plain grid if classes have too few images.

    Args:
      workdir: folder of the run.
      call: number of the call.
      images: uint8[N, H, W, C].
      labels: i32[N] or, with several batches, i32[M, N] of which the first are the images'; -1 for none.
      parts: parts of the run.
      programs: its programs.
    """
    path, labels = workdir / "images" / f"{call:06d}.png", np.asarray(labels).reshape(-1)[: len(images)]
    known = labels >= 0
    if not known.any() or known.sum() < 2 * len(np.unique(labels[known])):
        image_grid.write_grid(path, images)
        return path
    gallery = _gallery(_by_class([(images, labels)]), parts, programs)
    _write(path, f"Call {call}: images by class, {_ABOUT}", gallery)
    return path


def of_run(workdir: Path, parts: Parts, programs: Programs) -> Gallery:
    """Writes `images.png` from the newest images in a run's pool, and returns them; nothing if the pool is empty."""
    newest = npz.paths(workdir / "pool")[: -_SHARDS - 1 : -1]
    found = _by_class(read_shard(path) for path in newest)
    gallery = _gallery(found, parts, programs)
    if gallery.has_classes:
        _write(workdir / _PICTURE, f"The newest images of each class, {_ABOUT}", gallery)
    elif gallery.rows:
        image_grid.write_grid(workdir / _PICTURE, gallery.rows[0].images)
    return gallery


def _by_class(batches: Any) -> dict[int, list[np.ndarray]]:
    """Returns the first images of each class."""
    found: dict[int, list[np.ndarray]] = {}
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            kept = found.setdefault(int(label), [])
            if len(kept) < (_PER_CLASS if label >= 0 else _PLAIN):
                kept.append(image)
    return found


def _gallery(found: dict[int, list[np.ndarray]], parts: Parts, programs: Programs) -> Gallery:
    """Returns the classes with the most images, sorted."""
    labels = sorted(sorted(found, key=lambda label: (-len(found[label]), label))[:_CLASSES])
    names = (parts.test.class_names if parts.test is not None else None) or ()
    rows = [ClassRow(label, _name(label, names), np.stack(found[label])) for label in labels]
    known = [row for row in rows if 0 <= row.label < parts.teacher.spec.num_classes]
    if known:
        images = np.concatenate([row.images for row in known])
        sure = programs.confidence(
            parts.teacher_vars, images, np.repeat([row.label for row in known], [len(row.images) for row in known])
        )
        ends = np.cumsum([len(row.images) for row in known])[:-1]
        judged = dict(zip((row.label for row in known), np.split(sure, ends), strict=True))
        rows = [row._replace(confidence=judged.get(row.label)) for row in rows]
    return Gallery(tuple(rows), len(found))


def _name(label: int, names: Sequence[str]) -> str:
    return names[label] if 0 <= label < len(names) else f"class {label}" if label >= 0 else "no class"


def _write(path: Path, heading: str, gallery: Gallery) -> None:
    rows = [LabelledRow(row.name, row.note, row.images[:_PER_CLASS]) for row in gallery.rows]
    image_grid.write_rows(path, f"{heading} {gallery.cut}".strip(), rows)
