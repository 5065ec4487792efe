"""Soft labels on disk: shards of a few KD steps each, and a description of their origin.

A folder is opened with a description of the labels needed, and refused if its own description differs. Otherwise,
labels of another teacher, pool or view would be learned without any sign of an error.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.distillation import soft_labels
from fastdfkd_jax.distillation.soft_labels import LabelledViews
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage import limits, npz
from fastdfkd_jax.storage.files import make_folder, write_atomically

FORMAT = 1
_KIND, _REMEDY = "shard of soft labels", "restore it, or delete it and all later ones, which are then made again"


@dataclasses.dataclass(frozen=True)
class Description:
    """The origin of soft labels; labels with equal descriptions may share a folder.

    Attributes:
      teacher: digest of the teacher's variables.
      arch, mean, std, precision: the teacher's architecture, normalisation and floating-point type.
      classes: number of the teacher's classes.
      pool: digest of the images that rows refer to.
      pool_size: number of these images.
      seed: seed of the key that drew rows and views. It belongs to the labels and not to a student, so that several
        students can use them, and an existing folder holds what the same run would have made.
      batch: images per KD step.
      steps: KD steps per shard.
      top_k: probabilities stored per view, or 0 for all logits.
      temperature: temperature of the probabilities; without meaning, and not compared, for logits.
      views: how images are augmented.
    """

    teacher: str
    arch: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    precision: str
    classes: int
    pool: str
    pool_size: int
    seed: int
    batch: int
    steps: int
    top_k: int
    temperature: float
    views: augment.ViewOptions

    @property
    def record(self) -> dict[str, Any]:
        """The description as flat names and values, in JSON types."""
        flat = dataclasses.asdict(self)
        views = {f"views.{name}": value for name, value in flat.pop("views").items()}
        flat["temperature"] = float(self.temperature) if self.top_k else "any"
        lists = {name: list(flat.pop(name)) for name in ("mean", "std")}  # JSON returns tuples as lists
        return {"format": FORMAT, **flat, **lists, **views}

    @property
    def bytes_per_shard(self) -> int:
        """Bytes of a shard's arrays; their names and checksums take up to five kilobytes more."""
        view = soft_labels.bytes_per_view(self.classes, self.top_k, self.views, self.batch)
        return round(self.steps * self.batch * view)


def check(directory: Path, description: Description) -> None:
    """Refuses a folder that holds anything but such labels; a missing folder is accepted. Writes nothing.

    Raises:
      UserError: names every difference.
    """
    path = directory / "description.json"
    if not path.exists():
        if npz.count(directory):
            raise UserError(
                f"{directory} holds shards of labels but no {path.name} that describes them: use another folder"
            )
        return
    try:
        found = dict(limits.read_json(path, "description"))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path} is not a description of soft labels: restore it, or use another folder") from None
    wanted = description.record
    differing = [name for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name)]
    if differing:
        changes = ", ".join(f"{name}: {found.get(name)!r} there, {wanted.get(name)!r} now" for name in differing)
        raise UserError(f"{directory} holds other soft labels ({changes}): use another folder")


class LabelFiles:
    """The soft labels of KD steps in one folder, which is made if it is missing.

    Args:
      directory: the folder.
      description: description of its labels.

    Raises:
      UserError: the folder holds something else, or cannot be written.
    """

    def __init__(self, directory: Path, description: Description):
        check(directory, description)
        self.directory, self.description = directory, description
        make_folder(directory)
        path, text = directory / "description.json", json.dumps(description.record, indent=2) + "\n"
        if not path.exists():
            write_atomically(path, lambda file: file.write(text.encode()))
        step = soft_labels.shapes(description.classes, description.top_k, description.views, description.batch)
        leaves, self._structure = jax.tree.flatten(step)
        self._names = [
            jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(step)
        ]
        self._kinds = [((description.steps, *leaf.shape), np.dtype(leaf.dtype)) for leaf in leaves]

    @property
    def count(self) -> int:
        """Number of shards from 0 without a gap."""
        return npz.count(self.directory)

    def write(self, index: int, steps: LabelledViews) -> None:
        """Writes one shard durably; `steps` has the arrays of `soft_labels.shapes` with a leading axis of steps."""
        arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(steps)]
        if [(array.shape, array.dtype) for array in arrays] != self._kinds:
            raise ValueError(f"steps must have the arrays {self._kinds}")
        npz.write(npz.path_of(self.directory, index), dict(zip(self._names, arrays, strict=True)))

    def read(self, index: int) -> LabelledViews:
        """Reads one shard and verifies its checksums; UserError if it is missing, damaged or of other steps."""
        path = npz.path_of(self.directory, index)
        arrays = npz.read(path, self._names, _KIND, _REMEDY)
        for name, array, (shape, dtype) in zip(self._names, arrays, self._kinds, strict=True):
            if (array.shape, array.dtype) != (shape, dtype):
                found = f"{array.dtype}{list(array.shape)}"
                raise UserError(f"{_KIND} {path} has {name} as {found}, expected {dtype}{list(shape)}: {_REMEDY}")
        return jax.tree.unflatten(self._structure, arrays)
