"""Checks that a run's other files (pool, soft labels, first images, metrics) still belong to a checkpoint."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.pool import initial_images
from fastdfkd_jax.storage import npz
from fastdfkd_jax.storage.digest import file_digest

_CHUNK = 1 << 20


class Evidence:
    """Checksums of the files beside a checkpoint; if they have changed, the checkpoint is not used.

    Args:
      workdir: folder of the run.
      labels: folder of the soft labels, if there are any.
      first: folder of the initial images of D'; '' for none.
    """

    def __init__(self, workdir: Path, labels: Path, first: str):
        self._metrics = workdir / "metrics.jsonl"
        self._folders = {"pool": workdir / "pool", "labels": labels, "initial": workdir / "initial"}
        self._first = _of_first_images(first)
        self._sums = self._read()

    def _read(self) -> dict[str, npz.Sums]:
        return {name: npz.Sums(folder, name, "restore it") for name, folder in self._folders.items()}

    def of(self, shards: int, labels: int, metrics: int) -> dict[str, Any]:
        """Returns the checksums at a point of the run, as JSON.

        Args:
          shards: shards of the pool.
          labels: shards of soft labels.
          metrics: bytes of metrics.jsonl.
        """
        return {
            "pool": self._sums["pool"].first(shards),
            "labels": self._sums["labels"].first(labels),
            "initial": self._sums["initial"].first(npz.count(self._folders["initial"])),
            "first images": self._first,
            "metrics": [metrics, _head(self._metrics, metrics)],
        }

    def fault(self, progress: dict[str, Any], evidence: dict[str, Any]) -> str:
        """Returns a line that names the file that has changed since this was saved; '' if none has.

        Raises:
          UserError: soft labels or imported pictures have changed, which no older checkpoint can repair.
        """
        found = self._read()  # not stored in self, because shards of an unused checkpoint are made again
        try:
            pool = found["pool"].first(len(evidence["pool"]))
        except UserError:
            return f"shard {len(found['pool'].known)} of the pool is missing or damaged"
        if (changed := _first_difference(pool, evidence["pool"])) is not None:
            return f"shard {changed} of the pool has changed since the run made it"
        for name in ("labels", "initial"):
            self._require_same(name, found[name], evidence[name])
        if self._first != evidence["first images"]:
            return "the images that config.pool.initial begins with have changed"
        length, sha = evidence["metrics"]
        if length != progress["metrics_offset"] or _head(self._metrics, length) != sha:
            return f"the first {length:,} bytes of {self._metrics.name} have changed since the run wrote them"
        return ""

    def _require_same(self, name: str, found: npz.Sums, expected: list[str]) -> None:
        """Refuses shards that differ from the saved ones; missing ones are made again, with equal contents."""
        folder = self._folders[name]
        there = min(npz.count(folder), len(expected))
        if (changed := _first_difference(found.first(there), expected[:there])) is not None:
            raise UserError(
                f"{npz.path_of(folder, changed)} has changed since the run made it: restore it, or delete it and all "
                "later ones, which are then made again"
            )


def _first_difference(found: list[str], expected: list[str]) -> int | None:
    pairs = enumerate(itertools.zip_longest(found, expected))
    return next((index for index, (one, other) in pairs if one != other), None)


def _of_first_images(directory: str) -> str:
    """Returns the SHA-256 of the initial images of D', from their shards' checksums or from each picture."""
    if not directory:
        return ""
    root = expanded(directory)
    found = initial_images.find(root)
    signs = [npz.sum_of(path, "pool shard", "restore it") for path in found.shard_files]
    signs += [f"{path.relative_to(root)} {file_digest(path)}" for path in found.pictures]
    return hashlib.sha256("\n".join(signs).encode()).hexdigest()


def _head(path: Path, length: int) -> str:
    """Returns the SHA-256 of a file's first bytes; '' if it has fewer."""
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
