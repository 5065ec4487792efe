"""TensorFlow Datasets in array_record format, read without TensorFlow (it is needed only to prepare them)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastdfkd_jax.data import pictures
from fastdfkd_jax.data.dataset import Dataset, stack
from fastdfkd_jax.data.pictures import Square
from fastdfkd_jax.errors import UserError

# What the well-known names must contain: classes and the shape of an image.
_EXPECTED = {"cifar10": (10, (32, 32, 3)), "cifar100": (100, (32, 32, 3))}


def read(name: str, split: str, root: Path, square: Square | None = None) -> Dataset:
    """Reads a split of the newest prepared version of a data set.

    TFDS shuffles when it prepares, by a hash of the example's key, so that 'train[:5000]' is the same set
    everywhere; here the set is put into the order of its ids, where it has any.

    Args:
      name: of the data set, with its configuration if it has one ('cifar10', 'imagenet_resized/32x32').
      split: whatever TFDS understands ('test', 'train[:5000]', 'train[:10]+test').
      root: the folder that holds `NAME/VERSION/`, or VERSION itself.
      square: if given, what is cut out of each image.

    Raises:
      UserError: it is not there, not in a format for random access, damaged, or another data set.
    """
    builder = _open(name, _newest_version(name, root))
    features = builder.info.features
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "names"):
        raise UserError(f"expected tfds:{name} to have the features image and label, found {sorted(features)}")
    names = tuple(features["label"].names)
    source = _source(builder, name, split)
    records = _read(builder, name, source, range(len(source)))
    images = stack([_decode(record["image"], name, square) for record in records], f"tfds:{name}")
    labels = np.array([record["label"] for record in records], np.int32)
    if labels.min() < 0:
        raise UserError(f"examples of split {split!r} of tfds:{name} have no label: choose a split that has")
    expected = _EXPECTED.get(name, (len(names), images.shape[1:]))
    if len(names) != expected[0] or (square is None and images.shape[1:] != expected[1]):
        raise UserError(
            f"expected tfds:{name} to have {expected[0]} classes and images of {expected[1]}, "
            f"found {len(names)} classes and {images.shape[1:]} in {builder.data_path}: "
            "it is another data set"
        )
    if "id" in records[0]:
        order = np.argsort(np.array([record["id"] for record in records]), kind="stable")
        images, labels = images[order], labels[order]
    return Dataset(images, labels, names)


def encoded_images(name: str, split: str, root: Path) -> Iterator[bytes]:
    """Yields the images of a split as they are stored, in TFDS's order, a few in memory at a time.

    Raises:
      UserError: as `read`, but for labels, which need not be there.
    """
    builder = _open(name, _newest_version(name, root))
    if "image" not in builder.info.features:
        raise UserError(f"expected tfds:{name} to have the feature image, found {sorted(builder.info.features)}")
    source = _source(builder, name, split)
    for start in range(0, len(source), 256):
        yield from (
            record["image"] for record in _read(builder, name, source, range(start, min(start + 256, len(source))))
        )


def _how_to_get(name: str) -> str:
    return (
        f"give --data-dir the folder that holds {name}/VERSION/, or prepare it once: pip install "
        "'fastdfkd_jax[prepare]', then in Python tensorflow_datasets.builder"
        f"('{name}', file_format='array_record').download_and_prepare()"
    )


def _newest_version(name: str, root: Path) -> Path:
    if not root.is_dir():
        raise UserError(f"expected the data directory {root}, found no such folder: {_how_to_get(name)}")
    if (root / "dataset_info.json").is_file():
        return root
    found = list((root / name).glob("*/dataset_info.json"))
    if not found:
        held = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
        raise UserError(f"expected {name}/VERSION/dataset_info.json in {root}, found {held}: {_how_to_get(name)}")
    return max(found, key=lambda path: [int(p) for p in path.parent.name.split(".") if p.isdigit()]).parent


def _open(name: str, directory: Path) -> Any:
    # A second to import, and of use to this source alone.
    import tensorflow_datasets as tfds

    # The reader's layers (epath, JSON, protobuf) each raise their own exceptions on damaged files.
    try:
        builder = tfds.builder_from_directory(directory)
    except Exception as error:
        raise UserError(
            f"cannot read the description of tfds:{name} in {directory} ({_line(error)}): prepare it anew"
        ) from error
    if builder.info.name != name.partition("/")[0]:
        raise UserError(f"expected tfds:{name} in {directory}, found tfds:{builder.info.name}: give its name")
    file_format = getattr(builder.info.file_format, "value", None)
    if file_format != "array_record":
        raise UserError(f"expected {directory} in array_record format, found {file_format}: {_how_to_get(name)}")
    return builder


def _source(builder: Any, name: str, split: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        # PNG and JPEG are decoded here by pillow, which TFDS would do too, after a warning on OpenCV.
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        count = len(source)
    except (ValueError, KeyError, AssertionError) as error:
        held = ", ".join(f"{key} ({value.num_examples})" for key, value in builder.info.splits.items())
        raise UserError(f"tfds:{name} has no split {split!r} ({_line(error)}): it has {held}") from error
    if not count:
        raise UserError(f"split {split!r} of tfds:{name} holds no example")
    return source


def _read(builder: Any, name: str, source: Any, rows: range) -> list[dict[str, Any]]:
    try:
        return source.__getitems__(list(rows))
    except Exception as error:  # RuntimeError, DecodeError, IndexError ... by the layer that stumbles
        raise UserError(
            f"corrupt or missing record of tfds:{name} in {builder.data_path} ({_line(error)}): "
            "restore the file or prepare the data set anew"
        ) from error


def _decode(encoded: bytes, name: str, square: Square | None) -> np.ndarray:
    try:
        return pictures.decode(encoded, square)
    except pictures.DAMAGED as error:
        raise UserError(f"corrupt image in tfds:{name} ({_line(error)}): prepare the data set anew") from error


def _line(error: Exception) -> str:
    """The first line of a message, short enough to be part of another."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
