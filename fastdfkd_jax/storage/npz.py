"""Reads `.npz` files with checked sizes, and keeps folders of numbered shards of arrays.

A shard is an uncompressed `.npz`, whose zip checksums find damage. It is written whole or not at all and is never
changed, so that a killed run loses at most the one that was being written, and one that goes on from an earlier point
deletes what came after it.
"""

from __future__ import annotations

import contextlib
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastdfkd_jax.errors import UserError, shortened
from fastdfkd_jax.storage import limits
from fastdfkd_jax.storage.files import write_atomically

# Every exception that zipfile, zlib and NumPy's header parser raise on a damaged archive. RuntimeError: a spoiled flag
# reads as encryption or as an unknown compression, a nested header exceeds the recursion limit.
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, SyntaxError, MemoryError, OverflowError),
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OSError, RuntimeError),
)
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,  # differs in the encoding of field names alone
}
_MAGIC = b"\x93NUMPY"
_REASON = 80  # characters of a library's message that are shown


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of an open `.npz`, each of which is read when it is asked for.

    Args:
      archive: the open zip file.
      where: names the file in messages.
    """

    def __init__(self, archive: zipfile.ZipFile, where: object):
        self._archive, self._where = archive, where
        self._members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads one array after checking its declared size.

        Raises:
          KeyError: there is none of this name.
          UserError: it would take more memory than a file may.
          any of `DAMAGED`: it is damaged or no plain array.
        """
        member = self._members[name]
        limits.require_bytes(member.file_size, f"{name} of {self._where}")
        with self._archive.open(member) as file:
            read_header(file, member.file_size)
        with self._archive.open(member) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    @property
    def declared_bytes(self) -> int:
        """Bytes that all arrays say they take, unpacked."""
        return sum(member.file_size for member in self._members.values())

    def __contains__(self, name: object) -> bool:
        return name in self._members  # a Mapping's own would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def read_header(file: BinaryIO | Any, size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads the header of an array that lies in `size` bytes from the file's position on.

    Returns:
      Its shape, whether it is in Fortran order, and its type.

    Raises:
      ValueError: the array is larger than these bytes, or holds Python objects.
      any of `DAMAGED`: it is no array, or damaged.
    """
    start = file.tell()
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("a member is no array")
    file.seek(start)
    shape, fortran_order, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
    if dtype.hasobject:
        raise ValueError("a member holds Python objects")
    needed = file.tell() - start + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or needed > size:
        raise ValueError(f"its header asks for {needed:.3g} bytes, found {size:.3g}")
    return shape, fortran_order, dtype


@contextlib.contextmanager
def opened(path: Path, kind: str) -> Iterator[Arrays]:
    """Opens an `.npz`; UserError where it is no regular file, else any of `DAMAGED`."""
    limits.require_regular(path, kind)
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        yield Arrays(archive, path)


def reason_of(error: BaseException) -> str:
    """The message of a library's exception on one short line."""
    return shortened(error, _REASON) or type(error).__name__


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
      UserError: it is missing or damaged, has no such arrays, or they would take too much memory.
    """
    with reading(path, kind, remedy), opened(path, kind) as arrays:
        return [arrays[name] for name in names]


@contextlib.contextmanager
def reading(path: Path, kind: str, remedy: str) -> Iterator[None]:
    """Turns what a missing or damaged shard raises into a UserError of one line."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{kind} {path} is missing: {remedy}") from None
    except DAMAGED as error:
        raise UserError(f"{kind} {path} is damaged ({reason_of(error)}): {remedy}") from None


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
    """Checksums of a folder's shards, as their directories have them; the data are not read.

    Attributes:
      known: of the shards that were found so far.
    """

    def __init__(self, directory: Path, kind: str, remedy: str):
        self._directory, self._kind, self._remedy = directory, kind, remedy
        self.known: list[str] = []

    def first(self, count: int) -> list[str]:
        """A string for each of the first `count` shards; UserError where one is missing or damaged."""
        for index in range(len(self.known), count):
            self.known.append(sum_of(path_of(self._directory, index), self._kind, self._remedy))
        return self.known[:count]


def sum_of(path: Path, kind: str, remedy: str) -> str:
    """The names and CRC-32 of a shard's arrays; UserError where it is missing or damaged."""
    with reading(path, kind, remedy), zipfile.ZipFile(path) as archive:
        return " ".join(f"{member.filename}:{member.CRC:08x}" for member in archive.infolist())
