"""Data-free knowledge distillation in JAX.

`meta`, `losses`, `moments`, `methods` and `models` hold pure functions, `load_network` reads a checkpoint, and
`distill` trains a student from a teacher. Each is imported when it is first used, so that importing the package takes
no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fastdfkd_jax import losses, meta, methods, models, moments
    from fastdfkd_jax.convert import load_network
    from fastdfkd_jax.own_networks import distill

__all__ = ["__version__", "distill", "load_network", "losses", "meta", "methods", "models", "moments"]


def __getattr__(name: str) -> Any:
    if name == "load_network":
        from fastdfkd_jax.convert import load_network

        return load_network
    if name == "distill":
        from fastdfkd_jax.own_networks import distill

        return distill
    if name in __all__:
        return importlib.import_module(f"fastdfkd_jax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
