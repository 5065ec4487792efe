"""Checks the types and declared sizes in graph.json before anything is built from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastdfkd_jax.errors import UserError, listed, shortened
from fastdfkd_jax.storage.limits import require_bytes, require_pixels

TASKS = {"classification": 2, "segmentation": 4}  # axes of the logits
_FLOAT_BYTES = 4
_MAX_AXES, _MAX_LENGTH = 64, 2**40  # PyTorch's limit on axes; longer than any axis of a network


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < _MAX_LENGTH


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value.values())


def _is_shapes(value: Any) -> bool:
    shapes = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(s, list) and len(s) <= _MAX_AXES and all(_is_count(n, 0) for n in s) for s in shapes)


def _is_nodes(value: Any) -> bool:
    fields = {"name": str, "op": str, "args": dict}
    return isinstance(value, list) and all(
        isinstance(node, dict) and all(isinstance(node.get(key), kind) for key, kind in fields.items())
        for node in value
    )


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(x) in (int, float) and abs(x) < math.inf for x in value)


_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "nodes": ("a list of nodes with name, op and args", _is_nodes),
    "images": ("a name", lambda value: isinstance(value, str)),
    "output": ("a name", lambda value: isinstance(value, str)),
    "entries": ("names by name", _is_table),
    "parameters": ("a list of names", _is_names),
    "shapes": ("lists of lengths by name", _is_shapes),
    "state": ("a list of names", _is_names),
    "ties": ("names by name", _is_table),
    "classes": ("a whole number of at least 1", _is_count),
    "channels": ("a whole number of at least 1", _is_count),
    "image_size": ("a whole number of at least 1", _is_count),
    "task": (f"one of {', '.join(TASKS)}", lambda value: isinstance(value, str) and value in TASKS),
    "initial": ("true or false", lambda value: isinstance(value, bool)),
}
_OPTIONAL: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "mean": ("a list of finite numbers", _is_numbers),
    "std": ("a list of finite numbers", _is_numbers),
}


def check_declared(description: Mapping[str, Any], path: Path) -> None:
    """Refuses a description whose parts have wrong types or declare sizes above the machine's limits.

    Raises:
      UserError: a type is wrong or a size is above the limit.
    """
    if missing := _CHECKS.keys() - description.keys():
        raise UserError(f"{path} is damaged (it has no {listed(sorted(missing))}): record the network again")
    for key, (expected, holds) in (_CHECKS | _OPTIONAL).items():
        if key in description and not holds(description[key]):
            found = shortened(description[key], 40)
            raise UserError(f"{path} is damaged ({key} must be {expected}, found {found}): record the network again")
    side = description["image_size"]
    require_pixels(side, side, f"that {path} takes")
    require_bytes(_FLOAT_BYTES * description["channels"] * side**2, f"an image of {path}")
    weights = sum(math.prod(shape) for shape in description["shapes"].values())
    require_bytes(_FLOAT_BYTES * min(weights, 2**80), f"the weights of {path}")
