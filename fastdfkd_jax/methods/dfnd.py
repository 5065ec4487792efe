"""DFND (Chen et al., CVPR 2021): the teacher selects unlabelled images, and a matrix models its label noise.

METHOD section 6. The images with the most confident predictions are kept. Beside KD, the student learns the teacher's
labels through a noise matrix. Its diagonal is the teacher's accuracy; its other entries are learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.nn import log_softmax, softmax

from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.distillation.distill import Objective
from fastdfkd_jax.losses import cross_entropies, of_images
from fastdfkd_jax.methods.base import OTHER_DATA, Method, Setting
from fastdfkd_jax.methods.real_data import on_data
from fastdfkd_jax.models import Network
from fastdfkd_jax.options import Options, option

Array = jax.Array


@dataclass(frozen=True)
class DFNDOptions(Options, section="dfnd"):
    """Options of DFND: the noise matrix, which models the teacher's wrong labels (METHOD section 6)."""

    teacher_accuracy: float = option(
        0.9523, "assumed accuracy of the teacher's labels, the diagonal of the noise matrix", within="(0, 1]"
    )
    noise_weight: float = option(
        1.0, "weight of the loss with the teacher's noisy labels, added to the KD loss", at_least=0
    )
    noise_lr: float = option(1e-3, "learning rate of the noise matrix's Adam", above=0)


def build(options: DFNDOptions, setting: Setting) -> Method:
    """Binds options, the KD loss and the networks."""
    classes = setting.teacher.spec.num_classes

    def loss(extra: Array, student, teacher, labels: Array) -> Array:
        noise = noise_loss(extra, student.logits, teacher.logits, options.teacher_accuracy)
        return setting.distilled(extra, student, teacher, labels) + options.noise_weight * noise

    objective = Objective(loss, lambda key: jnp.zeros((classes, classes)), optax.adam(options.noise_lr))
    return on_data(objective, OTHER_DATA)._replace(select=selection(setting.teacher))


def selection(teacher: Network):
    """Returns `select(teacher_vars, images) -> f32[N]`, the teacher's cross-entropy with its own prediction."""

    def select(teacher_vars: Any, images: Array) -> Array:
        logits = teacher.apply(teacher_vars, augment.normalize(images, teacher.spec.mean, teacher.spec.std)).logits
        return of_images(cross_entropies(logits, logits.argmax(-1)))

    return select


def noise_matrix(logits: Array, accuracy: float) -> Array:
    """Returns f32[C, C] of p(teacher predicts j | class i): `accuracy` on the diagonal, rows that sum to 1.

    The other entries of a row share the remainder by the softmax of their logits.
    """
    diagonal = jnp.eye(len(logits), dtype=bool)
    others = softmax(jnp.where(diagonal, -jnp.inf, logits), axis=-1)
    return jnp.where(diagonal, accuracy, (1 - accuracy) * others)


def noise_loss(matrix_logits: Array, student_logits: Array, teacher_logits: Array, accuracy: float) -> Array:
    """Returns -log p(the teacher's label) of each image, f32[B], with the noise matrix applied to the student."""
    log_matrix = jnp.log(jnp.maximum(noise_matrix(matrix_logits, accuracy), 1e-12))
    said = teacher_logits.argmax(-1)
    return -of_images(jax.scipy.special.logsumexp(log_softmax(student_logits) + log_matrix.T[said], axis=-1))
