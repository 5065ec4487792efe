"""Networks by name and generators, each as a NamedTuple of pure functions.

`build(NetworkSpec("wrn40_2", num_classes=10))` returns a `Network`, `build_generator()` a `Generator`. Both take
`forms`, the precision and the form of convolutions: `Forms(jnp.bfloat16, "xla")` for an accelerator.
"""

from fastdfkd_jax.models.architectures import (
    StudentOptions,
    TeacherOptions,
    arch_names,
    build,
    is_known,
    is_registered,
    register,
    stages_of,
    task_of,
    usual_image_size,
)
from fastdfkd_jax.models.first_batch_norms import first_batch_norms
from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.models.generators.by_kind import Generator, build_generator
from fastdfkd_jax.models.last_linear import last_linear
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
from fastdfkd_jax.models.proxies import ProxyOptions

__all__ = [
    "Forms",
    "Generator",
    "Network",
    "NetworkSpec",
    "OtherEntries",
    "Outputs",
    "ProxyOptions",
    "StudentOptions",
    "TeacherOptions",
    "arch_names",
    "build",
    "build_generator",
    "count_batch_norms",
    "count_parameters",
    "first_batch_norms",
    "has_batch_norms",
    "in_chunks",
    "is_known",
    "is_registered",
    "last_linear",
    "register",
    "rematerialised",
    "stages_of",
    "task_of",
    "usual_image_size",
]
