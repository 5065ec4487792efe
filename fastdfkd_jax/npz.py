"""Folders of numbered shards: each an uncompressed .npz, whose zip checksums find damage.

A shard is written whole or not at all and is never changed, so that a killed run loses at most the one that was being
written, and one that goes on from an earlier point deletes what came after it.
"""

from __future__ import annotations

import contextlib
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastdfkd_jax.errors import UserError
from fastdfkd_jax.files import write_atomically


def path_of(directory: Path, index: int) -> Path:
    """File of the shard with this index, counted from 0."""
    return directory / f"{index:06d}.npz"


def write(path: Path, arrays: dict[str, Any]) -> None:
    """Writes one shard durably; UserError, and nothing left behind, where the disk is full."""
    write_atomically(path, lambda file: np.savez(file, **arrays))


def read(path: Path, names: list[str], kind: str, remedy: str) -> list[np.ndarray]:
    """Reads arrays of a shard, their checksums verified.

    Args:
      path: of the shard.
      names: of the arrays.
      kind: what to call the shard.
      remedy: what to do where it cannot be read.

    Raises:
      UserError: it is missing or damaged, or has no such arrays.
    """
    # Opened here, because numpy does not close a file that it cannot read.
    with reading(path, kind, remedy), open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        return [arrays[name] for name in names]


@contextlib.contextmanager
def reading(path: Path, kind: str, remedy: str) -> Iterator[None]:
    """Turns what a missing or damaged shard raises into a UserError of one line."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{kind} {path} is missing: {remedy}") from None
    # RuntimeError: a spoiled flag reads as encryption, or as a compression that is not known.
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError, RuntimeError, struct.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{kind} {path} is damaged ({reason}): {remedy}") from None


def truncate(directory: Path, count: int) -> None:
    """Deletes the shards from `count` on, and anything half-written."""
    for path in directory.glob("*.npz"):
        if not path.stem.isdigit() or int(path.stem) >= count:
            path.unlink()
    for path in directory.glob(".*.partial"):
        path.unlink()


def count(directory: Path) -> int:
    """How many shards there are from 0 on without a gap."""
    index = 0
    while path_of(directory, index).exists():
        index += 1
    return index


class Sums:
    """Checksums of a folder's shards, as their directories have them; the data are not read."""

    def __init__(self, directory: Path, kind: str, remedy: str):
        self._directory, self._kind, self._remedy = directory, kind, remedy
        self._known: list[str] = []

    def first(self, count: int) -> list[str]:
        """A string for each of the first `count` shards; UserError where one is missing or damaged."""
        for index in range(len(self._known), count):
            self._known.append(sum_of(path_of(self._directory, index), self._kind, self._remedy))
        return self._known[:count]


def sum_of(path: Path, kind: str, remedy: str) -> str:
    """The names and CRC-32 of a shard's arrays; UserError where it is missing or damaged."""
    with reading(path, kind, remedy), zipfile.ZipFile(path) as archive:
        return " ".join(f"{member.filename}:{member.CRC:08x}" for member in archive.infolist())
