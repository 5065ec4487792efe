"""Reads torchvision's CIFAR-10 and CIFAR-100 without running any code in the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastdfkd_jax.data import plain_pickle
from fastdfkd_jax.data.dataset import Dataset, unknown_split
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage import limits


class _Layout(NamedTuple):
    """The location of a data set's files and the names of their entries."""

    folder: str
    splits: dict[str, list[str]]
    meta: str
    labels: str
    names: str
    classes: int


_LAYOUTS = {
    "cifar10": _Layout(
        "cifar-10-batches-py",
        {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
        "batches.meta",
        "labels",
        "label_names",
        10,
    ),
    "cifar100": _Layout(
        "cifar-100-python",
        {"train": ["train"], "test": ["test"]},
        "meta",
        "fine_labels",
        "fine_label_names",
        100,
    ),
}


def read(name: str, split: str, root: Path) -> Dataset:
    """Reads 'train' or 'test' of 'cifar10' or 'cifar100'.

    Args:
      name: name of the data set.
      split: 'train' or 'test'.
      root: the folder that holds `cifar-10-batches-py/` or `cifar-100-python/`, or that folder itself.

    Raises:
      UserError: the name or split is unknown, or a file is missing or damaged, contains more than arrays, or holds
        another data set.
    """
    if name not in _LAYOUTS:
        raise UserError(f"unknown data source 'pickle:{name}': expected pickle:cifar10 or pickle:cifar100")
    layout = _LAYOUTS[name]
    if split not in layout.splits:
        raise unknown_split(split, f"pickle:{name}", tuple(layout.splits))
    folder = root if root.name == layout.folder else root / layout.folder
    if not folder.is_dir():
        raise UserError(
            f"expected {layout.folder}/ in {root}, found no such folder: give --data-dir the folder that "
            "holds it, or download the Python version from https://www.cs.toronto.edu/~kriz/cifar.html"
        )
    batches = [_batch(folder / file, layout) for file in layout.splits[split]]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    names = _names(_unpickle(folder / layout.meta).get(layout.names))
    if not len(labels):
        raise UserError(f"expected images in {folder}, found none: unpack the archive again")
    if len(names) != layout.classes or not 0 <= labels.min() <= labels.max() < layout.classes:
        raise UserError(
            f"expected {layout.classes} classes in {folder}, found {len(names)} names and labels from "
            f"{labels.min()} to {labels.max()}: it is not {name}"
        )
    return Dataset(images, labels.astype(np.int32), names)


def _names(found: Any) -> tuple[str, ...]:
    if not isinstance(found, list | tuple) or not all(isinstance(item, str | bytes) for item in found):
        return ()
    return tuple(item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in found)


def _batch(path: Path, layout: _Layout) -> tuple[np.ndarray, np.ndarray]:
    content = _unpickle(path)
    if "data" not in content or layout.labels not in content:
        found = ", ".join(sorted(content)[:5])[:80]
        raise UserError(f"expected data and {layout.labels} in {path}, found {found}: it is another file")
    data, labels = content["data"], _labels(content[layout.labels], path)
    kind, shape = getattr(data, "dtype", type(data).__name__), list(getattr(data, "shape", ()))
    if kind != np.uint8 or shape != [len(labels), 3072]:
        raise UserError(
            f"expected uint8[{len(labels)}, 3072] in {path}, found {kind}{shape}: download the file from its publisher"
        )
    # The images are stored plane by plane.
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _labels(found: Any, path: Path) -> np.ndarray:
    """Converts a list or an array of integers to labels i64[N]."""
    if isinstance(found, np.ndarray) and found.ndim == 1:
        return found.astype(np.int64)
    # Larger integers would not fit into the array.
    if isinstance(found, list | tuple) and all(type(item) is int and 0 <= item < 2**31 for item in found):
        return np.array(found, np.int64)
    raise UserError(f"expected a list of labels from 0 in {path}, found others: download the file from its publisher")


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        size = limits.require_regular(path, "file")
        limits.require_bytes(3 * size, path)  # the file, and its strings in two forms
        content = plain_pickle.loads(path.read_bytes())
        if isinstance(content, dict):
            return {_text(key): value for key, value in content.items()}
    except FileNotFoundError as error:
        raise UserError(f"expected the file {path}, found none: unpack the archive again") from error
    except UserError as error:
        raise UserError(f"refused to unpickle {path}: {error}; download the file from its publisher") from None
    except Exception as error:  # a damaged pickle can raise almost anything
        raise UserError(f"cannot unpickle {path} ({type(error).__name__}): unpack the archive again") from error
    raise UserError(f"expected a dict in {path}, found {type(content).__name__}: download the file from its publisher")


def _text(item: Any) -> str:
    return item.decode() if isinstance(item, bytes) else str(item)
