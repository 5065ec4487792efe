"""What a run would do and cost, without doing it (`--config.dry_run=true`)."""

from __future__ import annotations

import jax
import numpy as np
from ml_collections import ConfigDict

from fastdfkd_jax import models, pool
from fastdfkd_jax.assemble import Parts
from fastdfkd_jax.train import Programs, initial_state


def describe(config: ConfigDict, parts: Parts) -> str:
    """A few lines: networks, counts, memory, disk and time.

    Both programs are compiled, for their memory, and run once each on this machine, for their time; nothing is written.
    """
    synthesizes, trains = config.mode != "distill", config.mode != "synthesize"
    kd_calls = config.calls - config.warmup_calls if trains else 0
    kd_steps = kd_calls * config.kd.steps_per_call
    per_call = config.fastdfkd.synthesis_batch * config.fastdfkd.num_tasks
    images = config.calls * per_call if synthesizes else 0
    shape = parts.teacher.spec.input_shape
    pool_bytes = images * shape[0] * shape[1] * shape[2]
    lines = [
        _network("teacher", parts.teacher, parts.teacher_vars),
        _network("student", parts.student, jax.eval_shape(parts.student.init, jax.random.key(0))),
        f"{images // per_call} synthesis calls of {config.fastdfkd.num_adapt_steps} steps: {images} images",
        f"{kd_steps} KD steps of {config.kd.batch} images",
        f"disk: {pool_bytes / 1e6:.0f} MB of pool, beside checkpoints",
    ]
    return "\n".join([*lines, *_costs(config, parts, images, kd_steps, per_call)])


def _network(role: str, network: models.Network, variables) -> str:
    spec = network.spec
    return (
        f"{role} {spec.arch}: {models.count_parameters(variables):,} parameters, "
        f"{models.count_batch_norms(variables)} BatchNorm layers, {spec.num_classes} classes, "
        f"images {'x'.join(map(str, spec.input_shape))}, mean {spec.mean}, std {spec.std}"
    )


def _costs(config: ConfigDict, parts: Parts, images: int, kd_steps: int, per_call: int) -> list[str]:
    programs = Programs(parts, config)
    key = jax.random.key(config.seed)
    state = initial_state(key, parts)
    lines, seconds = [], 0.0
    if images:
        filled = pool.empty(images, parts.teacher.spec.input_shape)
        student = state["student"].variables
        programs.synthesize(state["method"], filled, parts.teacher_vars, student, key, np.int32(1))
        total = programs.synthesize.run_seconds * images / per_call
        lines.append(_cost("synthesis call", programs.synthesize, total))
        seconds += total
    if kd_steps:
        shape = parts.teacher.spec.input_shape
        filled = pool.append(pool.empty(per_call, shape), pool.to_uint8(jax.numpy.ones((per_call, *shape))))
        programs.distill(state["student"], parts.teacher_vars, filled, key)
        total = programs.distill.run_seconds * kd_steps / programs.steps
        lines.append(_cost(f"{programs.steps} KD steps", programs.distill, total))
        seconds += total
    return [*lines, f"about {seconds / 3600:.2f} hours in all on this machine, without evaluation"]


def _cost(name: str, step, total_seconds: float) -> str:
    memory = step.compiled.memory_analysis()
    held = (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 1e6 if memory else float("nan")
    return (
        f"{name}: {step.run_seconds:.2f} s measured once, {held:.0f} MB held on each device, "
        f"compiled in {step.compile_seconds:.0f} s; {total_seconds / 3600:.2f} hours for all"
    )
