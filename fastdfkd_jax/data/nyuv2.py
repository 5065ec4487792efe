"""Prepares NYUv2 with 13 classes from its official file.

python -m fastdfkd_jax.data.nyuv2 nyu_depth_v2_labeled.mat --meta nyuv2-meta-data --to NYUv2

The file is http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/nyu_depth_v2_labeled.mat (2.8 GB); the folder of
--meta is https://github.com/ankurhanda/nyuv2-meta-data: classMapping40.mat, class13Mapping.mat and splits.mat are read.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fastdfkd_jax.cli.command import run_command
from fastdfkd_jax.cli.parser import OneLineParser, expanded
from fastdfkd_jax.data.dataset import VOID
from fastdfkd_jax.data.map_sources import NYUV2
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage import limits
from fastdfkd_jax.storage.files import stopped_in_one_line, whole_folder

log = logging.getLogger("fastdfkd_jax.data.nyuv2")  # not __name__, which is __main__

URL = "http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/nyu_depth_v2_labeled.mat"
META_URL = "https://github.com/ankurhanda/nyuv2-meta-data"
_RAW, _MIDDLE = 894, 40
_CACHE = 2**26  # bytes; a chunk of the file may span several images
_SECONDS_BETWEEN_LINES = 10


class Meta(NamedTuple):
    """The contents of the three files of `META_URL`.

    Attributes:
      classes: uint8[895], the class from 0, or `VOID`, of each raw label; raw 0 is unlabelled.
      splits: the split of every image, ordered by the images' numbers from 1.
    """

    classes: np.ndarray
    splits: dict[int, str]


def prepare(file: Path, meta: Path, to: Path) -> dict[str, int]:
    """Writes `image/SPLIT/NUMBER.png` and `seg13/SPLIT/NUMBER.png`, one image in memory at a time.

    Args:
      file: the official MATLAB file: `images`, uint8[N, 3, W, H], and `labels`, uint16[N, W, H], as HDF5 gives them.
      meta: the folder of the class mappings and the splits.
      to: a new or empty folder; it appears when everything is written.

    Returns:
      The number of images of each split.

    Raises:
      UserError: a file is missing, damaged or the wrong one, h5py is not installed, the target is not empty, or the
        disk is full.
    """
    known = read_meta(meta)
    counts: dict[str, int] = {"train": 0, "test": 0}
    with _opened(file) as (images, labels):
        if len(images) < max(known.splits):
            raise UserError(
                f"expected {max(known.splits)} images in {file}, as {meta} splits them, found {len(images)}: download "
                f"{URL} again"
            )
        with whole_folder(to) as partial:
            for folder in ("image", "seg13"):
                for split in counts:
                    (partial / folder / split).mkdir(parents=True)
            told = time.monotonic()
            for done, (number, split) in enumerate(known.splits.items()):
                if time.monotonic() - told > _SECONDS_BETWEEN_LINES:
                    told = time.monotonic()
                    log.info("wrote %d of %d images", done, len(known.splits))
                image, raw = _read(images, labels, number, file)
                if raw.max() >= len(known.classes):
                    raise UserError(
                        f"expected labels 0 to {_RAW} in image {number} of {file}, found {raw.max()}: download "
                        f"{URL} again"
                    )
                Image.fromarray(image).save(partial / "image" / split / f"{number:05d}.png")
                Image.fromarray(known.classes[raw]).save(partial / "seg13" / split / f"{number:05d}.png")
                counts[split] += 1
    return counts


def read_meta(folder: Path) -> Meta:
    """Reads `classMapping40.mat`, `class13Mapping.mat` and `splits.mat`.

    Raises:
      UserError: one is missing, damaged or the wrong file.
    """
    middle = _numbers(folder / "classMapping40.mat", "mapClass")
    coarse = _numbers(folder / "class13Mapping.mat", "classMapping13", "labels13")
    train, test = (_numbers(folder / "splits.mat", name).tolist() for name in ("trainNdxs", "testNdxs"))
    for name, found, size, largest in (
        ("classMapping40.mat", middle, _RAW, _MIDDLE),
        ("class13Mapping.mat", coarse, _MIDDLE, len(NYUV2)),
    ):
        if len(found) != size or found.min() < 1 or found.max() > largest:
            raise UserError(
                f"expected {size} classes from 1 to {largest} in {folder / name}, found {len(found)}: download it "
                f"again from {META_URL}"
            )
    numbers = [*train, *test]
    if not train or not test or len(set(numbers)) != len(numbers) or min(numbers) < 1:
        raise UserError(f"expected two splits of images from 1 in {folder / 'splits.mat'}: download it from {META_URL}")
    splits = dict.fromkeys(train, "train") | dict.fromkeys(test, "test")
    # Raw label 0 has no class; the others go through both tables, which count from 1 as MATLAB does.
    classes = np.concatenate([[VOID], coarse[middle - 1] - 1]).astype(np.uint8)
    return Meta(classes, dict(sorted(splits.items())))


def _numbers(path: Path, name: str, field: str | None = None) -> np.ndarray:
    """Reads the variable `name` of a MATLAB file, or a field of that structure, as i64[N]."""
    import scipy.io

    if not path.exists():
        raise UserError(f"expected {path}, found none: give --meta the folder of {META_URL}")
    # MATLAB compresses with deflate, by a factor of 1,032 at most.
    limits.require_bytes(1032 * limits.require_regular(path, "file"), path)
    try:
        value = scipy.io.loadmat(str(path))[name]
        return np.asarray(value[field][0, 0] if field else value).ravel().astype(np.int64)
    except Exception as error:  # a damaged MATLAB file can raise almost anything
        raise UserError(
            f"cannot read {name} of {path}: it is damaged or another file; download it from {META_URL}"
        ) from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Opens the file's images and labels, whose rows are read on demand."""
    try:
        import h5py
    except ImportError as error:
        raise UserError("reading NYUv2's file needs h5py, which is not installed: pip install h5py") from error
    if not path.exists():
        raise UserError(f"expected the file {path}, found none: download it from {URL}")
    limits.require_regular(path, "file")
    try:
        file = h5py.File(path, "r", rdcc_nbytes=_CACHE)
    except OSError as error:
        raise UserError(f"cannot read {path} as HDF5 (MATLAB v7.3): it is damaged; download it from {URL}") from error
    with file:
        found: list[Any] = [file.get(name) for name in ("images", "labels")]
        shapes = [getattr(part, "shape", ()) for part in found]
        kinds = [getattr(part, "dtype", None) for part in found]
        if (
            [len(shape) for shape in shapes] != [4, 3]
            or shapes[0] != (len(found[1]), 3, *shapes[1][1:])
            or kinds != [np.uint8, np.uint16]
        ):
            described = " and ".join(f"{kind}{list(shape)}" for kind, shape in zip(kinds, shapes, strict=True))
            raise UserError(
                f"expected images uint8[N, 3, W, H] and labels uint16[N, W, H] in {path}, found {described}: download "
                f"{URL}"
            )
        width, height = found[1].shape[1:]
        limits.require_pixels(width, height, f"in {path}")
        yield found[0], found[1]


def _read(images: Any, labels: Any, number: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads uint8[H, W, 3] and uint16[H, W] of an image by its number from 1; HDF5 reverses MATLAB's axes."""
    try:
        image, raw = images[number - 1], labels[number - 1]
    except OSError as error:
        raise UserError(f"cannot read image {number} of {path}: it is damaged; download it from {URL}") from error
    return np.ascontiguousarray(image.transpose(2, 1, 0)), np.ascontiguousarray(raw.T)


def main(argv: Sequence[str]) -> None:
    """Parses the arguments, prepares the data and reports the result; `argv` begins with the program's name."""
    parser = OneLineParser(
        prog="python -m fastdfkd_jax.data.nyuv2",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="nyu_depth_v2_labeled.mat")
    parser.add_argument("--meta", type=Path, required=True, metavar="DIR", help="of the three files of mappings")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="a folder that is new or empty")
    arguments = parser.parse_args(argv[1:])
    with stopped_in_one_line(arguments.to):
        counts = prepare(expanded(arguments.file), expanded(arguments.meta), arguments.to)
    print(f"{arguments.to}: " + ", ".join(f"{count:,} images of {split}" for split, count in counts.items()))


if __name__ == "__main__":
    run_command(main)
