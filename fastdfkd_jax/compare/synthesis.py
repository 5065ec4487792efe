"""The size of a run's synthesis, from its config: the number of images through the teacher with a gradient."""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from fastdfkd_jax.options import read
from fastdfkd_jax.training.run_options import RunOptions
from fastdfkd_jax.training.schedule import last_synthesis_call


def images_with_gradient(config: ConfigDict) -> int:
    """Counts images that pass through the teacher with a gradient in synthesis, each step's batch anew.

    Several views of an image in one step count once. A method without synthesis has 0.

    Args:
      config: config of `fastdfkd_jax.main`.
    """
    count = _COUNTS.get(config.method.name)
    return count(config) if count is not None and config.mode != "distill" else 0


def _per_call(steps: Callable[[ConfigDict], int]) -> Callable[[ConfigDict], int]:
    """Returns the count for a method with this many steps on a batch in each synthesis call."""
    return lambda config: last_synthesis_call(read(RunOptions, config)) * config.synthesis_batch * steps(config)


def _per_round(config: ConfigDict) -> int:
    """Counts a generative method's images: the generator's steps in every round (methods/parts/online_generator.py)."""
    section = config[config.method.name]
    rounds = config.calls * config.kd.steps_per_call // section.student_steps
    return rounds * section.generator_steps * config.synthesis_batch


_COUNTS: dict[str, Callable[[ConfigDict], int]] = {
    "fastdfkd": _per_call(lambda config: config.fastdfkd.num_tasks * config.fastdfkd.num_steps),
    "deepinversion": _per_call(lambda config: config.deepinversion.num_steps + config.deepinversion.half_size_steps),
    "cmi": _per_call(lambda config: config.cmi.num_steps),
    "nayer": _per_call(lambda config: config.nayer.num_steps),
    "generative_dfd": _per_call(lambda config: config.generative_dfd.steps_per_call),
    **dict.fromkeys(("dafl", "zskt", "dfq", "dfad"), _per_round),
}
