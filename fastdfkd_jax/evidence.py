"""Signs that a run's other files are still those of a checkpoint: its pool, soft labels, first images and metrics."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

from fastdfkd_jax import initial, npz
from fastdfkd_jax.arguments import expanded
from fastdfkd_jax.errors import UserError

_CHUNK = 1 << 20


class Evidence:
    """Checksums of the files beside a checkpoint, which is not used where they have changed.

    Args:
      workdir: the run's.
      labels: folder of the soft labels, if there are any.
      first: folder of the images that D' begins with; '' for none.
    """

    def __init__(self, workdir: Path, labels: Path, first: str):
        remedy = "restore it"
        self._metrics = workdir / "metrics.jsonl"
        self._pool = npz.Sums(workdir / "pool", "pool shard", remedy)
        self._labels_folder, self._labels = labels, npz.Sums(labels, "shard of soft labels", remedy)
        self._first = _of_first_images(first)

    def of(self, shards: int, labels: int, metrics: int) -> dict[str, Any]:
        """The checksums at a point of the run, as JSON.

        Args:
          shards: of the pool.
          labels: shards of soft labels.
          metrics: bytes of metrics.jsonl.
        """
        return {
            "pool": self._pool.first(shards),
            "labels": self._labels.first(labels),
            "first images": self._first,
            "metrics": [metrics, _head(self._metrics, metrics)],
        }

    def fault(self, progress: dict[str, Any], evidence: dict[str, Any]) -> str:
        """The file that is not as it was when this was saved, in one line; '' where all are."""
        try:
            pool = self._pool.first(len(evidence["pool"]))
        except UserError:
            return f"shard {len(self._pool.known)} of the pool is missing or damaged"
        if (changed := _first_difference(pool, evidence["pool"])) is not None:
            return f"shard {changed} of the pool is not the one that the run made"
        # Labels that are not there are made again, and equal.
        there = min(npz.count(self._labels_folder), len(evidence["labels"]))
        if (changed := _first_difference(self._labels.first(there), evidence["labels"][:there])) is not None:
            return f"shard {changed} of the soft labels in {self._labels_folder} is not the one that the run made"
        if self._first != evidence["first images"]:
            return "the images that config.pool.initial begins with have changed"
        length, sha = evidence["metrics"]
        if length != progress["metrics_offset"] or _head(self._metrics, length) != sha:
            return f"the first {length:,} bytes of {self._metrics.name} are not what the run wrote"
        return ""


def _first_difference(found: list[str], expected: list[str]) -> int | None:
    pairs = enumerate(itertools.zip_longest(found, expected))
    return next((index for index, (one, other) in pairs if one != other), None)


def _of_first_images(directory: str) -> str:
    """SHA-256 of what tells of a change of the images that D' begins with: shards' checksums, or pictures' sizes."""
    if not directory:
        return ""
    found = initial.find(expanded(directory))
    signs = [npz.sum_of(path, "pool shard", "restore it") for path in found.shard_files]
    signs += [f"{path.name} {path.stat().st_size}" for path in found.pictures]
    return hashlib.sha256("\n".join(signs).encode()).hexdigest()


def _head(path: Path, length: int) -> str:
    """SHA-256 of a file's first bytes; '' where it has fewer."""
    if not length:
        return hashlib.sha256().hexdigest()
    sha = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while length and (chunk := file.read(min(length, _CHUNK))):
                sha.update(chunk)
                length -= len(chunk)
    except FileNotFoundError:
        return ""
    return "" if length else sha.hexdigest()
