"""Networks by name: `build('wrn40_2', num_classes=10)` gives a `Network` of pure functions."""

from fastdfkd_jax.models.network import (
    Network,
    NetworkSpec,
    Outputs,
    count_batch_norms,
    count_parameters,
)
from fastdfkd_jax.models.registry import arch_names, build, is_known

__all__ = [
    "Network",
    "NetworkSpec",
    "Outputs",
    "arch_names",
    "build",
    "count_batch_norms",
    "count_parameters",
    "is_known",
]
