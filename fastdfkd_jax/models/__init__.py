"""Networks by name and generators, each as a NamedTuple of pure functions.

`build(NetworkSpec("wrn40_2", num_classes=10))` gives a `Network`, `build_generator()` a `Generator`.
"""

from fastdfkd_jax.models.generators import Generator, build_generator
from fastdfkd_jax.models.network import (
    Network,
    NetworkSpec,
    OtherEntries,
    Outputs,
    count_batch_norms,
    count_parameters,
    has_batch_norms,
    in_chunks,
    rematerialised,
)
from fastdfkd_jax.models.order import first_batch_norms
from fastdfkd_jax.models.registry import arch_names, build, is_known, stages_of, task_of, usual_image_size

__all__ = [
    "Generator",
    "Network",
    "NetworkSpec",
    "OtherEntries",
    "Outputs",
    "arch_names",
    "build",
    "build_generator",
    "count_batch_norms",
    "count_parameters",
    "first_batch_norms",
    "has_batch_norms",
    "in_chunks",
    "is_known",
    "rematerialised",
    "stages_of",
    "task_of",
    "usual_image_size",
]
