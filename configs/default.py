"""The whole configuration; other configs are overrides of this one only.

A section is the class that is named here: its fields have the defaults with unit, range and source.
"""

from ml_collections import ConfigDict

from fastdfkd_jax.data import DataOptions
from fastdfkd_jax.distillation.kd_options import KDOptions
from fastdfkd_jax.distributed.parallel import ParallelOptions
from fastdfkd_jax.methods.cmi import CMIOptions
from fastdfkd_jax.methods.dafl import DAFLOptions
from fastdfkd_jax.methods.deepinversion import DeepInversionOptions
from fastdfkd_jax.methods.dfad import DFADOptions
from fastdfkd_jax.methods.dfnd import DFNDOptions
from fastdfkd_jax.methods.dfq import DFQOptions
from fastdfkd_jax.methods.fastdfkd import FastDFKDOptions
from fastdfkd_jax.methods.generative_dfd import GenerativeDFDOptions
from fastdfkd_jax.methods.parts.inversion_loss import InversionOptions
from fastdfkd_jax.methods.parts.optimizers import InnerOptions, MetaOptions
from fastdfkd_jax.methods.real_data import KDOnDataOptions
from fastdfkd_jax.methods.registry import MethodOptions
from fastdfkd_jax.methods.zskt import ZSKTOptions
from fastdfkd_jax.models import StudentOptions, TeacherOptions
from fastdfkd_jax.models.generators.by_kind import GeneratorOptions
from fastdfkd_jax.options import section
from fastdfkd_jax.pool.feed import PoolOptions
from fastdfkd_jax.pool.real_images import TransferOptions
from fastdfkd_jax.pool.sampling import ReplayOptions
from fastdfkd_jax.pool.stored_labels import SoftLabelOptions
from fastdfkd_jax.training.run_options import RunOptions


def get_config() -> ConfigDict:
    """The defaults: Fast-5 for WRN-40-2 -> WRN-16-1 as the published tables were made (METHOD section 2)."""
    config = ConfigDict(section(RunOptions))  # calls, batches, precision: what belongs to no part
    config.teacher = section(TeacherOptions)
    config.student = section(StudentOptions)
    config.data = section(DataOptions)
    config.transfer = section(TransferOptions)
    config.method = section(MethodOptions)

    config.fastdfkd = section(FastDFKDOptions)  # Algorithm 1
    config.generator = section(GeneratorOptions)  # of FastDFKD and CMI, as the next
    config.inversion = section(InversionOptions)
    config.inner = section(InnerOptions)
    config.meta = section(MetaOptions)
    config.cmi = section(CMIOptions)
    config.deepinversion = section(DeepInversionOptions)
    config.dafl = section(DAFLOptions)
    config.zskt = section(ZSKTOptions)
    config.dfq = section(DFQOptions)
    config.dfad = section(DFADOptions)
    config.generative_dfd = section(GenerativeDFDOptions)
    config.dfnd = section(DFNDOptions)
    config.kd_on_data = section(KDOnDataOptions)

    config.kd = section(KDOptions)  # the student's recipe
    config.pool = section(PoolOptions)
    config.soft_labels = section(SoftLabelOptions)
    config.replay = section(ReplayOptions)
    config.parallel = section(ParallelOptions)
    return config
