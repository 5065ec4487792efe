"""Checks the description of a TFDS data set before TFDS reads it and imports the modules that `features.json` names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage import limits

# Both spellings that protobuf reads, and the older versions' (beside "content").
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
_OLDER_NAMES = {"tensorflow_datasets.core.features.feature.Tensor"}  # TFDS keeps it under this name too
_DESCRIPTIONS = {".json", ".txt"}


def require_known(directory: Path, name: str) -> None:
    """Refuses a data set whose features are not TFDS's own, or whose files are not regular.

    Args:
      directory: folder of its version, with `features.json`.
      name: name of the data set, for messages.

    Raises:
      UserError: a feature is of another class, or a description is damaged, not a regular file, or too large.
    """
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            continue
        size = limits.require_regular(path, "file")
        if path.suffix in _DESCRIPTIONS and size > limits.MAX_JSON_BYTES:
            raise UserError(
                f"expected at most {limits.MAX_JSON_BYTES:,} bytes in {path}, found {size:,}: it is damaged"
            )
    known = _known_classes()
    for file in ("dataset_info.json", "features.json"):
        path = directory / file
        try:
            content = limits.read_json(path, "description")
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot read the description of tfds:{name} in {path} ({str(error)[:80]}): prepare it again"
            ) from error
        if file == "features.json" and (strange := sorted(_class_names(content) - known)):
            raise UserError(
                f"expected only features of TFDS in {path}, found {strange[0][:80]!r}, whose module would be executed: "
                "prepare the data set with TFDS's own features"
            )


@contextlib.contextmanager
def without_imports() -> Iterator[None]:
    """Restricts TFDS to its own feature classes, where it would otherwise import whatever a name refers to.

    `require_known` checks the names in a description as written, but TFDS also parses JSON within its strings.
    """
    import tensorflow_datasets as tfds

    base, known = tfds.features.FeatureConnector, _known_classes()
    original = base.__dict__["cls_from_name"]

    def of_name(cls: Any, python_class_name: str) -> Any:
        if python_class_name not in known or python_class_name not in cls._registered_features:
            raise ValueError(
                f"{str(python_class_name)[:80]!r} is not a feature of TFDS, and its module would be executed"
            )
        return cls._registered_features[python_class_name]

    base.cls_from_name = classmethod(of_name)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        base.cls_from_name = original


def pictures_of(features: Any) -> list[str]:
    """Returns the names of an example's features that hold an encoded picture."""
    import tensorflow_datasets as tfds

    return [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]


def is_class_label(feature: Any) -> bool:
    """Returns True if a feature is a class.

    Its `names` are not read, because TFDS builds them from their number, however large.
    """
    import tensorflow_datasets as tfds

    return isinstance(feature, tfds.features.ClassLabel)


def _known_classes() -> set[str]:
    """Returns the full names of TFDS's own feature classes."""
    import tensorflow_datasets as tfds

    base = tfds.features.FeatureConnector
    classes = [value for value in vars(tfds.features).values() if isinstance(value, type) and issubclass(value, base)]
    return {f"{value.__module__}.{value.__name__}" for value in classes} | _OLDER_NAMES


def _class_names(content: Any) -> set[str]:
    """Returns every text in nested JSON that TFDS may use as a class name."""
    found, left = set(), [content]
    while left:
        item = left.pop()
        if isinstance(item, list):
            left.extend(item)
        elif isinstance(item, dict):
            keys = _CLASS_KEYS if "content" in item else _CLASS_KEYS[:2]
            found |= {value for key in keys if isinstance(value := item.get(key), str)}
            left.extend(item.values())
    return found
