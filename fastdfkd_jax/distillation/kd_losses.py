"""The losses of KD: that of the paper (Eq. 12), and later ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import log_softmax
from jax.scipy.special import logsumexp

from fastdfkd_jax import losses
from fastdfkd_jax.models import Outputs

Array = jax.Array
Tree = Any

LOSSES = ("kl", "decoupled")
_NEVER = -1e30  # logit of an excluded class; a finite one, so that differences of two are 0


def kd_loss(
    temperature: float, kind: str = "kl", others_weight: float = 8.0, standardize: bool = False
) -> Callable[..., Array]:
    """Returns the loss of KD, of each image.

    Args:
      temperature: the temperature.
      kind: one of `LOSSES`: vanilla KD (Eq. 12) or `decoupled`.
      others_weight: weight of the other classes in the latter.
      standardize: whether both networks' logits are standardised first (`standardized`).
    """

    def loss(extra: Tree, student: Outputs, teacher: Outputs, labels: Array) -> Array:
        pair = teacher.logits, student.logits
        if standardize:
            pair = standardized(pair[0]), standardized(pair[1])
        if kind == "kl":
            return losses.distillation(*pair, temperature)
        return decoupled(*pair, temperature, others_weight)

    return loss


def decoupled(teacher_logits: Array, student_logits: Array, temperature: float, others_weight: float) -> Array:
    """Returns the loss of decoupled KD for each image, f32[B] (DKD, Zhao et al., CVPR 2022, Eq. 7; METHOD section 6).

    KL(p_teacher || p_student) is that of (p, 1 - p), with p of the teacher's first class, plus 1 - p times the KL over
    the other classes. Here `others_weight` replaces 1 - p, which is near 0 for a confident teacher. The first class
    replaces the label, which synthesised images do not have.
    """
    first = jax.nn.one_hot(teacher_logits.argmax(-1), teacher_logits.shape[-1], dtype=bool)

    def parts(logits: Array) -> tuple[Array, Array]:
        """Returns log(p, 1 - p) and the log-probabilities of the other classes among themselves."""
        logits = logits / temperature
        others = jnp.where(first, _NEVER, logits)
        two = jnp.stack([jnp.where(first, logits, 0.0).sum(-1), logsumexp(others, axis=-1)], -1)
        return log_softmax(two), log_softmax(others)

    of_first, of_others = (
        (jnp.exp(log_teacher) * (log_teacher - log_student)).sum(-1)
        for log_teacher, log_student in zip(parts(teacher_logits), parts(student_logits), strict=True)
    )
    return temperature**2 * losses.of_images(of_first + others_weight * of_others)


def standardized(logits: Array) -> Array:
    """Returns logits with mean 0 and deviation 1 over the classes (Sun et al., CVPR 2024; METHOD section 6).

    The student then learns the shape of the teacher's logits, not their size.
    """
    centred = logits - logits.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-12)
