"""The images of D' on disk, in shards that are only ever appended.

A shard holds the images of one synthesis call that keeps them. It is an uncompressed .npz, so that it has checksums and
opens with `numpy.load`, and any single image in it can be read.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np

from fastdfkd_jax.storage import limits, npz
from fastdfkd_jax.storage.files import make_folder

_KIND, _REMEDY = "pool shard", "restore it, or start in a new workdir"
_CHUNK = 1 << 20  # bytes read at a time to verify a checksum


class Rows(NamedTuple):
    """Images on the host.

    Attributes:
      images: uint8[N, H, W, C].
      labels: i32[N]; -1 where not known.
    """

    images: np.ndarray
    labels: np.ndarray


class Shard(NamedTuple):
    """The location of a shard's images.

    Attributes:
      path: the file.
      offset: the first byte of the first image; the images follow one another without a gap.
      image_shape: (H, W, C) of each image.
      labels: i32[N]; -1 where not known.
    """

    path: Path
    offset: int
    image_shape: tuple[int, ...]
    labels: np.ndarray


class Shards:
    """The pool's rows on disk, one file per synthesis call."""

    def __init__(self, directory: Path):
        self.directory = directory
        make_folder(directory)

    def path(self, index: int) -> Path:
        """Returns the file of the shard with this index, counted from 0."""
        return npz.path_of(self.directory, index)

    def write(self, index: int, images: np.ndarray, labels: np.ndarray, weights: Any = ()) -> None:
        """Writes one shard durably: images uint8[N, H, W, C], labels i32[N] and optional weights."""
        named = {f"weights{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree.leaves_with_path(weights)}
        images = np.ascontiguousarray(images)  # one image after another, whatever the device's layout is
        npz.write(self.path(index), {"images": images, "labels": labels, **named})

    def truncate(self, count: int) -> None:
        """Deletes the shards from `count` and all half-written files, so that a call can be repeated."""
        npz.truncate(self.directory, count)

    def read(self, count: int) -> Iterator[Rows]:
        """Yields the rows of the first `count` shards, and verifies their checksums."""
        for index in range(count):
            yield read_shard(self.path(index))

    def locate(self, count: int) -> list[Shard]:
        """Locates the images of the first `count` shards, and verifies their checksums."""
        return locate([self.path(index) for index in range(count)])


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Concatenates rows; there must be at least one part."""
    return Rows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def read_shard(path: Path) -> Rows:
    """Reads one shard and verifies its checksums; UserError if it is missing or damaged."""
    images, labels = npz.read(path, ["images", "labels"], _KIND, _REMEDY)
    with npz.reading(path, _KIND, _REMEDY):
        return Rows(images, _labels(images.shape, images.dtype, labels))


def _labels(shape: tuple[int, ...], dtype: np.dtype, labels: np.ndarray) -> np.ndarray:
    """Returns the labels as int32[N]; ValueError if these are not a pool's images and labels."""
    if dtype != np.uint8 or len(shape) != 4:
        raise ValueError(f"images are {dtype}{list(shape)}, not uint8[N, H, W, C]")
    kept = labels.astype(np.int32) if np.issubdtype(labels.dtype, np.integer) else None
    if kept is None or labels.shape != shape[:1] or not np.array_equal(kept, labels):
        raise ValueError(f"labels are {labels.dtype}{list(labels.shape)}, not int32[{shape[0]}]")
    return kept


def locate(paths: Sequence[Path]) -> list[Shard]:
    """Locates the images of shards and verifies all checksums; holds no images in memory.

    Raises:
      UserError: a shard is missing or damaged.
    """
    # zlib releases Python's lock while it computes checksums.
    with ThreadPoolExecutor() as threads:
        return list(threads.map(locate_one, paths))


def locate_one(path: Path, verify: bool = True) -> Shard:
    """Locates the images of one shard; a shard that was just written need not be verified."""
    with npz.reading(path, _KIND, _REMEDY):
        limits.require_regular(path, _KIND)
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            return _located(path, file, archive, verify)


def _located(path: Path, file: BinaryIO, archive: zipfile.ZipFile, verify: bool) -> Shard:
    if verify:
        for name in archive.namelist():
            with archive.open(name) as member:
                while member.read(_CHUNK):
                    pass
    labels = npz.Arrays(archive, path)["labels"]
    offset, shape = _find_array(file, archive.getinfo("images.npy"))
    return Shard(path, offset, shape[1:], _labels(shape, np.dtype(np.uint8), labels))


def _find_array(file: BinaryIO, member: zipfile.ZipInfo) -> tuple[int, tuple[int, ...]]:
    """Returns the first byte and the shape of a uint8 array in an uncompressed zip file."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError("it is compressed")
    file.seek(member.header_offset + 26)  # the local header, whose extra field may be longer than the directory's
    name_length, extra_length = struct.unpack("<HH", file.read(4))
    file.seek(member.header_offset + 30 + name_length + extra_length)
    shape, fortran_order, dtype = npz.read_header(file, member.file_size)
    if dtype != np.uint8 or fortran_order or len(shape) != 4:
        raise ValueError(f"images are {dtype}{list(shape)}, not uint8[N, H, W, C]")
    return file.tell(), shape
