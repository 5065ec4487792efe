"""DFAD (Fang et al., 2019): an adversarial game of generator and student on the L1 distance of logits (METHOD 6)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from fastdfkd_jax import losses
from fastdfkd_jax.distillation.distill import Objective
from fastdfkd_jax.methods.base import Method, Setting
from fastdfkd_jax.methods.parts import online_generator
from fastdfkd_jax.options import option

Array = jax.Array

GENERATOR_LOSSES = ("l1", "log_l1")


@dataclass(frozen=True, kw_only=True)
class DFADOptions(online_generator.OnlineGeneratorOptions, section="dfad"):
    """Options of DFAD: the generator and its loss (METHOD section 6)."""

    generator: str = "dfad"
    latent_dim: int = 256
    milestones: tuple[int, ...] = (100, 200)
    student_steps: int = 5
    student_mode: str = "train"
    generator_loss: str = option(
        "l1",
        "loss of the generator: minus the L1 distance of student and teacher ('l1'), or minus log(1 + distance) "
        "('log_l1'), as for segmentation",
        choices=GENERATOR_LOSSES,
    )


def build(options: DFADOptions, setting: Setting) -> Method:
    """Binds options and networks; the student minimises the distance."""

    def loss(seen: online_generator.Seen) -> tuple[Array, dict[str, Array]]:
        gap = distance(seen.teacher.logits, seen.student.logits).mean()
        term = -gap if options.generator_loss == "l1" else -jnp.log1p(gap)
        return term, {"adversarial": term}

    objective = Objective(lambda extra, student, teacher, labels: distance(teacher.logits, student.logits))
    return online_generator.build(options, setting, loss, objective)


def distance(teacher_logits: Array, student_logits: Array) -> Array:
    """Returns the mean absolute difference of each image's logits, f32[B], for logits f32[B, ..., C]."""
    return losses.of_images(jnp.abs(teacher_logits - student_logits))
