"""The table of ATen operations, which `operations` and `spatial` fill.

Each function takes its operation's arguments by PyTorch's names, with arrays as `Laid`, and returns a `Laid`, a tuple
of them or a number. Axes are logical, as PyTorch counts them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastdfkd_jax.errors import UserError

OPERATIONS: dict[str, Callable[..., Any]] = {}
MAX_STEPS = 2**14  # of an operation that is unrolled, such as the positions of a pooling window


def operation(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function in the table under ATen's names."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        OPERATIONS.update(dict.fromkeys(names, function))
        return function

    return enter


def require_steps(count: int) -> None:
    """Refuses an operation whose unrolled steps would not fit in memory.

    Raises:
      UserError: there are more than `MAX_STEPS`.
    """
    if count > MAX_STEPS:
        raise UserError(
            f"a window or split of the graph has {count:,} parts, expected at most {MAX_STEPS:,}: use smaller ones"
        )


def jax_type(dtype: str | None) -> Any:
    """Returns JAX's type of 'torch.TYPE', single precision for None and for every floating-point type.

    The network's own precision is applied where the graph runs. Whole numbers of 64 bits become JAX's default.
    """
    kind = (dtype or "torch.float32").removeprefix("torch.")
    return {"int64": int, "float64": "float32", "float16": "float32", "bfloat16": "float32"}.get(kind, kind)
