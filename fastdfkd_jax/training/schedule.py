"""The schedule of a run: its calls, and the student's learning rate and optimizer."""

from __future__ import annotations

import optax

from fastdfkd_jax.distillation import distill
from fastdfkd_jax.methods import base
from fastdfkd_jax.methods.base import Method
from fastdfkd_jax.training.run_options import RunOptions


def student_rate(run: RunOptions) -> optax.Schedule:
    """Returns the student's learning rate as a function of its step, counted from 0."""
    kd = run.kd
    if kd.milestones:
        schedule = distill.milestones_by_call(kd.lr, kd.milestones, kd.lr_decay, kd.steps_per_call)
    else:
        calls = max(1, run.calls - run.warmup_calls)
        schedule = distill.cosine_by_call(kd.lr, kd.final_lr, calls, kd.steps_per_call)
    return distill.warmed_up(schedule, kd.rate_warmup_steps) if kd.rate_warmup_steps else schedule


def student_optimizer(run: RunOptions) -> optax.GradientTransformation:
    """Returns the student's optimizer with its learning rate and optional gradient clipping."""
    kd, schedule = run.kd, student_rate(run)
    if kd.optimizer == "adam":
        optimizer = distill.adam(schedule, kd.weight_decay)
    else:
        optimizer = distill.sgd(schedule, kd.momentum, kd.weight_decay, kd.nesterov)
    return optax.chain(optax.clip_by_global_norm(kd.clip_norm), optimizer) if kd.clip_norm else optimizer


def last_synthesis_call(run: RunOptions) -> int:
    """Returns the last call in which a method that keeps its images synthesises."""
    return run.synthesis_calls or run.calls


def count_synthesis_calls(run: RunOptions, method: Method) -> int:
    """Returns the number of synthesis calls in a whole run."""
    if run.mode == "distill" or method.lifetime == base.DATA:
        return 0
    if method.lifetime == base.ONCE:
        return run.calls * run.kd.steps_per_call // method.steps_per_round
    return last_synthesis_call(run)


def last_call(run: RunOptions) -> int:
    """Returns the number of calls in a run."""
    return last_synthesis_call(run) if run.mode == "synthesize" else run.calls


def count_kd_steps(run: RunOptions) -> int:
    """Returns the number of student steps in a whole run."""
    return 0 if run.mode == "synthesize" else (run.calls - run.warmup_calls) * run.kd.steps_per_call
