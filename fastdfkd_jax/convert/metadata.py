"""Checks the metadata of our `.safetensors`, which are untrusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastdfkd_jax.errors import UserError, shortened
from fastdfkd_jax.storage import limits

KEY = "fastdfkd_jax"
_MOST_NUMBERS = 1024  # of a mean or std: one for each input channel


def parse(path: Path, text: str) -> dict[str, Any]:
    """Parses a file's metadata from JSON.

    Raises:
      UserError: they are not a JSON object, are nested too deeply, or a value that we use has a wrong type.
    """
    try:
        metadata = limits.parse_json(text)
    except ValueError as error:
        raise UserError(f"the metadata {KEY!r} of {path} are not JSON: import the source again") from error
    if not isinstance(metadata, dict):
        raise _wrong(path, KEY, "a JSON object", metadata)
    for name, (expected, fits) in _VALUES.items():
        if name in metadata and not fits(metadata[name]):
            raise _wrong(path, name, expected, metadata[name])
    return metadata


def _wrong(path: Path, name: str, expected: str, found: Any) -> UserError:
    wrong = f"{name} must be {expected}, found {shortened(repr(found)[:200], 40)}"
    return UserError(f"the metadata of {path} are damaged ({wrong}): import the source again")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= _MOST_NUMBERS and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _is_naming(value: Any) -> bool:
    if not isinstance(value, Mapping) or not (value.keys() == {"prefix", "renames"} or not value):
        return False
    renames = value.get("renames", [])
    return _is_text(value.get("prefix", "")) and isinstance(renames, list) and all(map(_is_pair, renames))


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_text, value))


_VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "arch": ("text", _is_text),
    "task": ("text", _is_text),
    "num_classes": ("a whole number above 0", _is_size),
    "image_size": ("a whole number above 0", _is_size),
    "channels": ("a whole number above 0", _is_size),
    "mean": ("a list of finite numbers", _is_numbers),
    "std": ("a list of finite numbers", _is_numbers),
    "naming": ("a prefix and pairs of names", _is_naming),
}
