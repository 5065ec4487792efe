"""The table of ATen operations, which `operations` and `spatial` fill.

Each takes the arguments of its operation by PyTorch's name, arrays as `Laid`, and gives a `Laid`, a tuple of them or a
number. Axes are logical ones, as PyTorch counts them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

OPERATIONS: dict[str, Callable[..., Any]] = {}


def operation(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enters a function in the table under ATen's names."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        OPERATIONS.update(dict.fromkeys(names, function))
        return function

    return enter
