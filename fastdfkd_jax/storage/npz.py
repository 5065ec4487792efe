"""Reads `.npz` files with checked sizes, and keeps folders of numbered shards of arrays.

A shard is an uncompressed `.npz`, whose zip checksums detect damage. It is written atomically and never changed. A
killed run therefore loses at most the shard that was being written. A run that continues from an earlier point deletes
the later shards.
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

# Every exception that zipfile, zlib and NumPy's header parser raise on a damaged archive. RuntimeError: a damaged flag
# looks like encryption or an unknown compression, or a nested header exceeds the recursion limit.
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, SyntaxError, MemoryError, OverflowError),
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OSError, RuntimeError),
)
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,  # differs only in the encoding of field names
}
MAGIC = b"\x93NUMPY"
_REASON = 80  # shown characters of a library's message


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of an open `.npz`, each read on demand.

    Args:
      archive: the open zip file.
      where: the file's name in messages.
    """

    def __init__(self, archive: zipfile.ZipFile, where: object):
        self._archive, self._where = archive, where
        self._members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads one array after checking its declared size.

        Raises:
          KeyError: there is no array of this name.
          UserError: it would exceed the memory limit of a file.
          any of `DAMAGED`: it is damaged or not a plain array.
        """
        member = self._members[name]
        limits.require_bytes(member.file_size, f"{name} of {self._where}")
        with self._archive.open(member) as file:
            read_header(file, member.file_size)
        with self._archive.open(member) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    @property
    def declared_bytes(self) -> int:
        """Returns the declared unpacked size of all arrays in bytes."""
        return sum(member.file_size for member in self._members.values())

    def __contains__(self, name: object) -> bool:
        return name in self._members  # Mapping's default would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def read_header(file: BinaryIO | Any, size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads the header of an array that occupies `size` bytes from the file's position.

    Returns:
      Its shape, whether it is in Fortran order, and its type.

    Raises:
      ValueError: the array is larger than these bytes, or holds Python objects.
      any of `DAMAGED`: it is not an array, or damaged.
    """
    start = file.tell()
    if file.read(len(MAGIC)) != MAGIC:
        raise ValueError("a member is not an array")
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
    """Opens an `.npz`; raises UserError if it is not a regular file, or any of `DAMAGED`."""
    limits.require_regular(path, kind)
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        yield Arrays(archive, path)


def reason_of(error: BaseException) -> str:
    """Returns the message of a library's exception as one short line."""
    return shortened(error, _REASON) or type(error).__name__


def path_of(directory: Path, index: int) -> Path:
    """Returns the file of the shard with this index, counted from 0."""
    return directory / f"{index:06d}.npz"


def paths(directory: Path) -> list[Path]:
    """Returns the files of all shards in a folder, in their order."""
    return sorted(directory.glob("[0-9]*.npz"))


def write(path: Path, arrays: dict[str, Any]) -> None:
    """Writes one shard durably; if the disk is full, raises UserError and leaves nothing behind."""
    write_atomically(path, lambda file: np.savez(file, **arrays))


def read(path: Path, names: list[str], kind: str, remedy: str) -> list[np.ndarray]:
    """Reads arrays of a shard and verifies their checksums.

    Args:
      path: path of the shard.
      names: names of the arrays.
      kind: the shard's title in messages.
      remedy: advice if it cannot be read.

    Raises:
      UserError: it is missing or damaged, has no such arrays, or they would take too much memory.
    """
    with reading(path, kind, remedy), opened(path, kind) as arrays:
        return [arrays[name] for name in names]


@contextlib.contextmanager
def reading(path: Path, kind: str, remedy: str) -> Iterator[None]:
    """Converts the exceptions of a missing or damaged shard to a UserError of one line."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{kind} {path} is missing: {remedy}") from None
    except DAMAGED as error:
        raise UserError(f"{kind} {path} is damaged ({reason_of(error)}): {remedy}") from None


def truncate(directory: Path, count: int) -> None:
    """Deletes the shards from `count` on, and any partial files."""
    for path in directory.glob("*.npz"):
        if not path.stem.isdigit() or int(path.stem) >= count:
            path.unlink()
    for path in directory.glob(".*.partial"):
        path.unlink()


def count(directory: Path) -> int:
    """Counts the shards from 0 on without a gap."""
    index = 0
    while path_of(directory, index).exists():
        index += 1
    return index


class Sums:
    """Checksums of a folder's shards from their zip directories; the data are not read.

    Attributes:
      known: checksums of the shards found so far.
    """

    def __init__(self, directory: Path, kind: str, remedy: str):
        self._directory, self._kind, self._remedy = directory, kind, remedy
        self.known: list[str] = []

    def first(self, count: int) -> list[str]:
        """Returns a string for each of the first `count` shards; raises UserError if one is missing or damaged."""
        for index in range(len(self.known), count):
            self.known.append(sum_of(path_of(self._directory, index), self._kind, self._remedy))
        return self.known[:count]


def sum_of(path: Path, kind: str, remedy: str) -> str:
    """Returns names and CRC-32 of a shard's arrays; raises UserError if it is missing or damaged."""
    with reading(path, kind, remedy), zipfile.ZipFile(path) as archive:
        return " ".join(f"{member.filename}:{member.CRC:08x}" for member in archive.infolist())
