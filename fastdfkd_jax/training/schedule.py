"""What a config says of a run's course: its calls, and the student's learning rate and optimizer."""

from __future__ import annotations

import optax
from ml_collections import ConfigDict

from fastdfkd_jax.distillation import distill
from fastdfkd_jax.methods import base
from fastdfkd_jax.methods.base import Method


def student_rate(config: ConfigDict) -> optax.Schedule:
    """The student's learning rate by its step, 0 being the first."""
    kd = config.kd
    if kd.milestones:
        schedule = distill.milestones_by_call(kd.lr, tuple(kd.milestones), kd.lr_decay, kd.steps_per_call)
    else:
        calls = max(1, config.calls - config.warmup_calls)
        schedule = distill.cosine_by_call(kd.lr, kd.final_lr, calls, kd.steps_per_call)
    return distill.warmed_up(schedule, kd.rate_warmup_steps) if kd.rate_warmup_steps else schedule


def student_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """The student's optimizer, with its rate and, where it is asked for, clipped gradients."""
    kd, schedule = config.kd, student_rate(config)
    if kd.optimizer == "adam":
        optimizer = distill.adam(schedule, kd.weight_decay)
    else:
        optimizer = distill.sgd(schedule, kd.momentum, kd.weight_decay, kd.nesterov)
    return optax.chain(optax.clip_by_global_norm(kd.clip_norm), optimizer) if kd.clip_norm else optimizer


def last_synthesis_call(config: ConfigDict) -> int:
    """The last call in which a method that keeps its images makes some."""
    return config.synthesis_calls or config.calls


def count_synthesis_calls(config: ConfigDict, method: Method) -> int:
    """How often the method synthesises in a whole run."""
    if config.mode == "distill" or method.lifetime == base.DATA:
        return 0
    if method.lifetime == base.ONCE:
        return config.calls * config.kd.steps_per_call // method.steps_per_round
    return last_synthesis_call(config)


def last_call(config: ConfigDict) -> int:
    """How many calls a run has."""
    return last_synthesis_call(config) if config.mode == "synthesize" else config.calls
