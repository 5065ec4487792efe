"""Soft labels on disk: shards of a few KD steps each, and beside them what they are of.

Whoever opens the folder says what it needs, and is refused where the folder holds something else: labels of another
teacher, pool or view would be learned without a sign that anything is wrong.
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
_KIND, _REMEDY = "shard of soft labels", "restore it, or delete it and those after it, which are then made again"


@dataclasses.dataclass(frozen=True)
class Description:
    """What soft labels are of; two that are equal may share a folder.

    Attributes:
      teacher: digest of its variables.
      arch, mean, std, precision: of it: how it looks at images, and in which numbers.
      classes: of the teacher.
      pool: digest of the images that rows count in.
      pool_size: how many they are.
      seed: of the key that drew rows and views; the labels' own and not a student's, so that several learn from them
        and a folder that is found holds what the same run would have made.
      batch: images of a KD step.
      steps: KD steps of a shard.
      top_k: probabilities of each view, or 0 for all logits.
      temperature: of the probabilities; of no meaning, and not compared, for logits.
      views: how images are shown.
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
        """Flat names and values, as JSON has them."""
        flat = dataclasses.asdict(self)
        views = {f"views.{name}": value for name, value in flat.pop("views").items()}
        flat["temperature"] = float(self.temperature) if self.top_k else "any"
        lists = {name: list(flat.pop(name)) for name in ("mean", "std")}  # as JSON gives them back
        return {"format": FORMAT, **flat, **lists, **views}

    @property
    def bytes_per_shard(self) -> int:
        """Of a shard's arrays; their names and checksums take up to five kilobytes more."""
        view = soft_labels.bytes_per_view(self.classes, self.top_k, self.views, self.batch)
        return round(self.steps * self.batch * view)


def check(directory: Path, description: Description) -> None:
    """Refuses a folder that holds anything but such labels, and writes nothing; one that is not there holds nothing.

    Raises:
      UserError: names every difference.
    """
    path = directory / "description.json"
    if not path.exists():
        if npz.count(directory):
            raise UserError(f"{directory} holds shards, but no {path.name} that tells what of: use another folder")
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
    """The soft labels of KD steps in one folder, made where it is missing.

    Args:
      directory: the folder.
      description: of what it holds.

    Raises:
      UserError: it holds something else, or cannot be written.
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
        """Shards from 0 on without a gap."""
        return npz.count(self.directory)

    def write(self, index: int, steps: LabelledViews) -> None:
        """Writes one shard durably; `steps` has every array of `soft_labels.shapes` with the steps before its axes."""
        arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(steps)]
        if [(array.shape, array.dtype) for array in arrays] != self._kinds:
            raise ValueError(f"steps must have the arrays {self._kinds}")
        npz.write(npz.path_of(self.directory, index), dict(zip(self._names, arrays, strict=True)))

    def read(self, index: int) -> LabelledViews:
        """Reads one shard, its checksums verified; UserError where it is missing, damaged or of other steps."""
        path = npz.path_of(self.directory, index)
        arrays = npz.read(path, self._names, _KIND, _REMEDY)
        for name, array, (shape, dtype) in zip(self._names, arrays, self._kinds, strict=True):
            if (array.shape, array.dtype) != (shape, dtype):
                found = f"{array.dtype}{list(array.shape)}"
                raise UserError(f"{_KIND} {path} has {name} as {found}, expected {dtype}{list(shape)}: {_REMEDY}")
        return jax.tree.unflatten(self._structure, arrays)
