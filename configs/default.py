"""The complete default config; every other config only overrides its values.

Each section is a class, named here or by the methods. Its fields hold the defaults with unit, range and source.
"""

from ml_collections import ConfigDict

from fastdfkd_jax.data import DataOptions
from fastdfkd_jax.distillation.kd_options import KDOptions
from fastdfkd_jax.distributed.parallel import ParallelOptions
from fastdfkd_jax.methods import registry
from fastdfkd_jax.models import ProxyOptions, StudentOptions, TeacherOptions
from fastdfkd_jax.options import section
from fastdfkd_jax.pool.feed import PoolOptions
from fastdfkd_jax.pool.real_images import TransferOptions
from fastdfkd_jax.pool.sampling import ReplayOptions
from fastdfkd_jax.pool.stored_labels import SoftLabelOptions
from fastdfkd_jax.training.run_options import RunOptions


def get_config() -> ConfigDict:
    """Returns the defaults: Fast-5 for WRN-40-2 -> WRN-16-1, as in the published tables (METHOD section 2)."""
    config = ConfigDict(section(RunOptions))  # calls, batches, precision and other options of the whole run
    config.teacher = section(TeacherOptions)
    config.proxy = section(ProxyOptions)
    config.student = section(StudentOptions)
    config.data = section(DataOptions)
    config.transfer = section(TransferOptions)
    config.method = section(registry.MethodOptions)
    for name, options in registry.sections().items():  # fastdfkd, generator, inversion, ...
        if not name or name in config:
            raise TypeError(f"{options.__name__} needs its own section, found {name!r}")
        config[name] = section(options)

    config.kd = section(KDOptions)  # the student's recipe
    config.pool = section(PoolOptions)
    config.soft_labels = section(SoftLabelOptions)
    config.replay = section(ReplayOptions)
    config.parallel = section(ParallelOptions)
    return config
