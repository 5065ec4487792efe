"""Methods without synthesis, whose D' is real data: training from scratch and vanilla KD (METHOD section 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from fastdfkd_jax import losses
from fastdfkd_jax.distillation.distill import Objective
from fastdfkd_jax.methods.base import DATA, ORIGINAL_DATA, OTHER_DATA, Method, Setting
from fastdfkd_jax.options import Options, option

Array = jax.Array


@dataclass(frozen=True)
class KDOnDataOptions(Options, section="kd_on_data"):
    """Options of training on real images: the loss beside KD."""

    label_weight: float = option(
        0.1, "weight of the cross-entropy with the real images' labels; unlabelled images have no such term", at_least=0
    )


def scratch(options: Options, setting: Setting) -> Method:
    """Builds training from scratch: the student learns the labels by cross-entropy, without the teacher."""
    objective = Objective(lambda extra, student, teacher, labels: losses.known_cross_entropies(student.logits, labels))
    return on_data(objective, ORIGINAL_DATA)._replace(needs_labels=True)


def kd(options: KDOnDataOptions, setting: Setting) -> Method:
    """Builds vanilla KD (Eq. 12) on real images, plus cross-entropy with their labels where they are known."""

    def loss(extra: Any, student, teacher, labels: Array) -> Array:
        total = setting.distilled(extra, student, teacher, labels)
        if options.label_weight:
            total += options.label_weight * losses.known_cross_entropies(student.logits, labels)
        return total

    return on_data(Objective(loss), ORIGINAL_DATA if setting.has_original_data else OTHER_DATA)


def on_data(objective: Objective, knows: str) -> Method:
    """Builds a method on real data: it has no state and synthesises nothing."""

    def synthesize(state, teacher_vars, student_vars, key):
        raise AssertionError("a method of data synthesises nothing")

    return Method(
        lambda key, teacher_vars: (), synthesize, images_per_call=0, lifetime=DATA, objective=objective, knows=knows
    )
