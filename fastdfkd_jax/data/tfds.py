"""Reads TensorFlow Datasets in array_record format without TensorFlow, which is needed only to prepare them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastdfkd_jax.data import npz_source, pictures, tfds_features
from fastdfkd_jax.data.dataset import Dataset, collected, stack
from fastdfkd_jax.data.pictures import Square
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage import limits

# Expected number of classes and image shape of well-known data sets.
_EXPECTED = {"cifar10": (10, (32, 32, 3)), "cifar100": (100, (32, 32, 3))}
_VERSION = re.compile(r"(\d+|\*)(\.(\d+|\*)){1,2}")
_CHUNK = 256  # encoded records in memory at a time
_BYTES_PER_NAME = 64
_REASON = 100


def read(name: str, split: str, root: Path, square: Square | None = None) -> Dataset:
    """Reads a split of a prepared data set, of the newest version unless one is named.

    TFDS shuffles by a hash of the example's key when it prepares data, so 'train[:5000]' is the same set
    everywhere. Here the set is sorted by its ids, if it has any.

    Args:
      name: name of the data set, with its configuration if it has one ('cifar10', 'imagenet_resized/32x32'), and with a
        version to read another than the newest ('cifar10:3.0.2', 'cifar10:3.*.*').
      split: any split that TFDS accepts ('test', 'train[:5000]', 'train[:10]+test').
      root: the folder that holds `NAME/VERSION/`, or NAME or VERSION itself.
      square: the square to cut out of each image, if any.

    Raises:
      UserError: it is missing, not in a format with random access, damaged, or another data set.
    """
    builder, name = _open(name, root)
    features = builder.info.features
    if not {"image", "label"} <= set(features) or not tfds_features.is_class_label(features["label"]):
        found = npz_source.named(sorted(features))
        raise UserError(
            f"expected tfds:{name} to have the features image and label, found {found}: give another data set"
        )
    limits.require_bytes(_BYTES_PER_NAME * (features["label"].num_classes or 0), f"classes of tfds:{name}")
    names = tuple(features["label"].names)
    source = _source(builder, name, split)
    labels: list[Any] = []
    ids: list[Any] = []
    decoded = _decoded(builder, name, source, square, labels, ids)
    images = stack(collected(decoded, len(source), f"tfds:{name}"), f"tfds:{name}")
    numbers = np.array(labels, np.int64)
    if numbers.min() < 0:
        raise UserError(f"examples of split {split!r} of tfds:{name} have no label: choose a split with labels")
    if numbers.max() >= len(names):
        raise UserError(
            f"expected labels below {len(names)} in tfds:{name}, found {numbers.max()}: prepare the data set again"
        )
    expected = _EXPECTED.get(name, (len(names), images.shape[1:]))
    if len(names) != expected[0] or (square is None and images.shape[1:] != expected[1]):
        raise UserError(
            f"expected tfds:{name} to have {expected[0]} classes and images of {expected[1]}, "
            f"found {len(names)} classes and {images.shape[1:]} in {builder.data_path}: "
            "it is another data set"
        )
    numbers = numbers.astype(np.int32)
    if ids:
        order = np.argsort(np.array(ids), kind="stable")
        images, numbers = images[order], numbers[order]
    return Dataset(images, numbers, names)


def _decoded(
    builder: Any, name: str, source: Any, square: Square | None, labels: list[Any], ids: list[Any]
) -> Iterator[np.ndarray]:
    """Yields the images of a split, and appends their labels, and their ids if any, to the lists."""
    for record in _records(builder, name, source):
        labels.append(record["label"])
        if "id" in record:
            ids.append(record["id"])
        yield _decode(record["image"], name, square)


def encoded_images(name: str, split: str, root: Path) -> Iterator[bytes]:
    """Yields the encoded images of a split in TFDS's order, a few in memory at a time.

    Raises:
      UserError: as in `read`, but labels are optional.
    """
    builder, name = _open(name, root)
    if "image" not in builder.info.features:
        found = npz_source.named(sorted(builder.info.features))
        raise UserError(f"expected tfds:{name} to have the feature image, found {found}: give another data set")
    for record in _records(builder, name, _source(builder, name, split)):
        yield record["image"]


def _records(builder: Any, name: str, source: Any) -> Iterator[dict[str, Any]]:
    """Yields all records of a split, a few in memory at a time."""
    for start in range(0, len(source), _CHUNK):
        yield from _read(builder, name, source, range(start, min(start + _CHUNK, len(source))))


def _how_to_get(name: str) -> str:
    return f"give --data-dir the folder that holds {name}/, or prepare it as docs/data.md says"


def _find(name: str, version: str, root: Path) -> Path:
    """Returns the newest folder of a requested version below `root`, which may also be that or the data set's own."""
    if not root.is_dir():
        raise UserError(f"expected the data directory {root}, found no such folder: {_how_to_get(name)}")
    parts = name.split("/")
    whole = list(root.absolute().parts)
    above = [root.joinpath(*parts[i:]) for i in range(len(parts) + 1) if whole[len(whole) - i :] == parts[:i]]
    found = [root, *(path for base in above for path in (base, *_folders(base)))]
    found = [path for path in found if (path / "dataset_info.json").is_file()]
    fitting = [path for path in found if not version or fnmatch.fnmatchcase(path.name, version)]
    if fitting:
        return fitting[0] if fitting[0] == root else max(fitting, key=_version_of)
    held = npz_source.named(sorted(path.name for path in found) or sorted(path.name for path in root.iterdir()))
    wanted = f"version {version} of {name}" if found else f"{name}/VERSION/"
    raise UserError(f"expected {wanted} in {root}, found {held}: {_how_to_get(name)}")


def _folders(base: Path) -> list[Path]:
    return [path for path in base.iterdir() if path.is_dir()] if base.is_dir() else []


def _version_of(path: Path) -> list[int]:
    return [int(part) for part in path.name.split(".") if part.isdigit()]


def _open(name: str, root: Path) -> tuple[Any, str]:
    """Returns the reader of a data set ('NAME' or 'NAME:VERSION'), and its name."""
    name, _, version = name.partition(":")
    head, _, tail = name.rpartition("/")
    if head and _VERSION.fullmatch(tail) and not any((root / name).glob("*/dataset_info.json")):  # NAME/VERSION
        name, version = head, version or tail
    if version and not _VERSION.fullmatch(version):
        raise UserError(f"expected a version such as 3.0.2 or 3.*.* after tfds:{name}:, found {version!r}")
    directory = _find(name, version, root)
    # It takes a second to import, and only this source needs it.
    import tensorflow_datasets as tfds

    tfds_features.require_known(directory, name)
    # The reader's layers (epath, JSON, protobuf) each raise their own exceptions on damaged files.
    try:
        with tfds_features.without_imports():
            builder = tfds.builder_from_directory(directory)
    except Exception as error:
        raise UserError(
            f"cannot read the description of tfds:{name} in {directory} ({_line(error)}): prepare it again"
        ) from error
    if builder.info.name != name.partition("/")[0]:
        raise UserError(f"expected tfds:{name} in {directory}, found tfds:{builder.info.name[:40]}: give its name")
    file_format = getattr(builder.info.file_format, "value", None)
    if file_format != "array_record":
        raise UserError(f"expected {directory} in array_record format, found {file_format}: {_how_to_get(name)}")
    return builder, name


def _source(builder: Any, name: str, split: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        # PNG and JPEG are decoded here by Pillow, which TFDS would use too, after a warning about OpenCV.
        # Other pictures of an example are not decoded, because nothing would check their size.
        keys = {"image", *tfds_features.pictures_of(builder.info.features)}
        skipped = {key: tfds.decode.SkipDecoding() for key in keys}
        source = builder.as_data_source(split, decoders=skipped)
        count = len(source)
    except (ValueError, KeyError, AssertionError, OverflowError) as error:
        held = npz_source.named(f"{key} ({value.num_examples})" for key, value in builder.info.splits.items())
        raise UserError(f"tfds:{name} has no split {split!r} ({_line(error)}): it has {held}") from error
    if not count:
        raise UserError(f"split {split!r} of tfds:{name} has no examples: choose another")
    return source


def _read(builder: Any, name: str, source: Any, rows: range) -> list[dict[str, Any]]:
    try:
        return source.__getitems__(list(rows))
    except Exception as error:  # RuntimeError, DecodeError, IndexError ... depending on the failing layer
        raise UserError(
            f"corrupt or missing record of tfds:{name} in {builder.data_path} ({_line(error)}): "
            "restore the file or prepare the data set again"
        ) from error


def _decode(encoded: bytes, name: str, square: Square | None) -> np.ndarray:
    try:
        return pictures.decode(encoded, square, f"of tfds:{name}")
    except pictures.DAMAGED as error:
        raise UserError(f"corrupt image in tfds:{name} ({_line(error)}): prepare the data set again") from error


def _line(error: Exception) -> str:
    """Returns the first line of a message, shortened to fit into another."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:_REASON]
