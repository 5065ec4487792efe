"""CIFAR-10 and CIFAR-100 as torchvision stores them, unpickled without trusting the file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastdfkd_jax.data.dataset import Dataset, unknown_split
from fastdfkd_jax.errors import UserError


class _Layout(NamedTuple):
    """Where a data set's files lie and what their entries are called."""

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

# Only what rebuilds NumPy arrays and byte strings. Older files have the older name of NumPy's inner package.
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("_codecs", "encode"),
    ("builtins", "bytes"),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)
        if (module, name) not in _ALLOWED:
            raise UserError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)


def read(name: str, split: str, root: Path) -> Dataset:
    """Reads 'train' or 'test' of 'cifar10' or 'cifar100'.

    Args:
      name: of the data set.
      split: 'train' or 'test'.
      root: the folder that holds `cifar-10-batches-py/` or `cifar-100-python/`, or that folder itself.

    Raises:
      UserError: the name or split is unknown, a file is missing or damaged, wants more than arrays, or holds
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
            "holds it, or fetch the Python version from https://www.cs.toronto.edu/~kriz/cifar.html"
        )
    batches = [_batch(folder / file, layout) for file in layout.splits[split]]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    names = tuple(_text(item) for item in _unpickle(folder / layout.meta).get(layout.names, ()))
    if len(names) != layout.classes or not 0 <= labels.min() <= labels.max() < layout.classes:
        raise UserError(
            f"expected {layout.classes} classes in {folder}, found {len(names)} names and labels from "
            f"{labels.min()} to {labels.max()}: it is not {name}"
        )
    return Dataset(images, labels, names)


def _batch(path: Path, layout: _Layout) -> tuple[np.ndarray, np.ndarray]:
    content = _unpickle(path)
    if "data" not in content or layout.labels not in content:
        raise UserError(f"expected data and {layout.labels} in {path}, found {', '.join(sorted(content))}")
    data, labels = np.asarray(content["data"]), np.asarray(content[layout.labels], np.int32)
    if data.dtype != np.uint8 or data.shape != (len(labels), 3072):
        raise UserError(f"expected uint8[{len(labels)}, 3072] in {path}, found {data.dtype}{list(data.shape)}")
    # Stored plane by plane.
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
    except FileNotFoundError as error:
        raise UserError(f"expected the file {path}, found none: unpack the archive again") from error
    except UserError as error:
        raise UserError(f"refused to unpickle {path}: {error}; fetch the file from its publisher") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"cannot unpickle {path} ({type(error).__name__}): unpack the archive again") from error
    if not isinstance(content, dict):
        raise UserError(f"expected a dict in {path}, found {type(content).__name__}")
    return {_text(key): value for key, value in content.items()}


def _text(item: Any) -> str:
    return item.decode() if isinstance(item, bytes) else str(item)
