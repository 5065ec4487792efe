"""The options of a run: the config's top-level keys, and the sections that every run reads."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastdfkd_jax.data import DataOptions
from fastdfkd_jax.distillation.kd_options import KDOptions
from fastdfkd_jax.distributed.parallel import ParallelOptions
from fastdfkd_jax.methods.registry import METHODS, MethodOptions
from fastdfkd_jax.models import ProxyOptions, StudentOptions, TeacherOptions
from fastdfkd_jax.models.forms import CONV_FORMS, OLD_NAMES
from fastdfkd_jax.models.network import REMATERIALISATIONS
from fastdfkd_jax.options import Options, kinds, option
from fastdfkd_jax.pool.feed import PoolOptions
from fastdfkd_jax.pool.real_images import TransferOptions
from fastdfkd_jax.pool.sampling import ReplayOptions
from fastdfkd_jax.pool.stored_labels import SoftLabelOptions

MODES = ("all", "synthesize", "distill")
PRECISIONS = ("float32", "bfloat16", "float64")


@dataclass(frozen=True)
class RunOptions(Options):
    """Options of a whole run. The defaults are Fast-5 for WRN-40-2 -> WRN-16-1 as published (METHOD section 2)."""

    seed: int = option(0, "random seed", at_least=0)
    mode: str = option(
        "all",
        "parts of the run: 'all', 'synthesize' (only fill the pool) or 'distill' (only train on pool.initial)",
        choices=MODES,
    )
    dry_run: bool = option(False, "print the plan and stop")
    restart: bool = option(
        False, "start again: first move everything in the workdir into a folder previous-N inside it"
    )
    calls: int = option(
        220,
        "synthesis calls, each followed by student steps; the released code calls them epochs (METHOD 1.8)",
        at_least=1,
    )
    synthesis_calls: int = option(
        0,
        "number of first calls that synthesise images, after which the student trains alone; 0 for all calls",
        at_least=0,
    )
    synthesis_batch: int = option(256, "images per synthesis call; for FastDFKD, images per lane", at_least=1)
    warmup_calls: int = option(20, "number of first calls during which the student does not train", at_least=0)
    noise_control: bool = option(False, "after the run, train the same student on Gaussian noise images for comparison")
    held_out: bool = option(
        True,
        "after the run, synthesise one more batch, which the student never sees, and measure how often student and "
        "teacher agree on it",
    )
    eval_every: int = option(10, "calls between evaluations", at_least=1)
    checkpoint_every: int = option(10, "calls between checkpoints", at_least=1)
    images_every: int = option(20, "calls between PNG grids", at_least=1)
    precision: str = option(
        "float32",
        "floating-point type of convolutions and activations; float64 needs JAX_ENABLE_X64=1",
        choices=PRECISIONS,
    )
    conv_gradient: str = option(
        "auto",
        "implementation of convolution gradients: 'cpu' (fast on CPUs), 'xla' (accelerators, exact MAML) or "
        "'auto' (chosen for the device)",
        choices=("auto", *CONV_FORMS),
    )
    remat: str = option(
        "none",
        "values kept for the backward pass: 'none' keeps all, 'activations' convolution outputs, 'blocks' block "
        "outputs; the rest is recomputed",
        choices=REMATERIALISATIONS,
    )
    profile: bool = option(False, "write a profiler trace of this start's second call to workdir/profile")
    compilation_cache: str = option(
        "auto",
        "folder of compiled programs to reuse; do not copy it to another machine. 'auto' for one in the user's cache "
        "folder (~/.cache/fastdfkd_jax), '' for none",
    )
    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    proxy: ProxyOptions = field(default_factory=ProxyOptions)
    student: StudentOptions = field(default_factory=StudentOptions)
    data: DataOptions = field(default_factory=DataOptions)
    transfer: TransferOptions = field(default_factory=TransferOptions)
    method: MethodOptions = field(default_factory=MethodOptions)
    kd: KDOptions = field(default_factory=KDOptions)
    pool: PoolOptions = field(default_factory=PoolOptions)
    soft_labels: SoftLabelOptions = field(default_factory=SoftLabelOptions)
    replay: ReplayOptions = field(default_factory=ReplayOptions)
    parallel: ParallelOptions = field(default_factory=ParallelOptions)

    def __post_init__(self):
        old = self.conv_gradient
        self.require("conv_gradient", old not in OLD_NAMES, f"{OLD_NAMES.get(old)!r}, as this value is called now")
        super().__post_init__()
        self.require("warmup_calls", self.warmup_calls < self.calls, f"less than calls={self.calls}")
        self.require("synthesis_calls", self.synthesis_calls <= self.calls, f"at most calls={self.calls}")

    @property
    def afterwards(self) -> str:
        """Names the work after the last call; '' for none."""
        return "the noise control" if self.noise_control and self.method.name != "noise" else ""


def every_kind() -> list[type[Options]]:
    """Returns every class that a run or a method reads; sections and classes may occur more than once."""
    tops = (RunOptions, *(entry.options for entry in METHODS.values()))
    return [kind for top in tops for kind in kinds(top)]
