"""DFQ (Choi et al., CVPR workshops 2020): adversarial images that match the teacher's BatchNorm statistics (METHOD 6).

The generator alone is trained during the warm-up calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from fastdfkd_jax import losses
from fastdfkd_jax.methods import generative
from fastdfkd_jax.methods.base import Method, Setting

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Options(generative.GeneratorOptions):
    """Weights of the generator's terms.

    Attributes:
      adversarial_weight: of minus KL(p_teacher || p_student).
      balance_weight: of the negative entropy of the mean prediction, in nats.
      class_weight: of the mean entropy of the predictions, in nats.
      statistics_weight: of the divergence of the BatchNorm inputs from the running statistics.
      warmup_adversarial: whether the adversarial term is on in the warm-up, against an untrained student.
    """

    adversarial_weight: float = 1.0
    balance_weight: float = 0.01
    class_weight: float = 0.01
    statistics_weight: float = 0.01
    warmup_adversarial: bool = False

    section: ClassVar[str] = "dfq"


def build(options: Options, setting: Setting) -> Method:
    """Binds options and networks; the student learns by vanilla KD."""

    def loss(seen: generative.Seen) -> tuple[Array, dict[str, Array]]:
        logits = seen.teacher.logits
        terms = {
            "adversarial": -losses.kl_divergence(logits, seen.student.logits).mean(),
            "balance": -losses.entropy_of_mean(logits),
            "class": losses.entropy(logits).mean(),
        }
        if jax.tree.leaves(seen.statistics):
            terms["statistics"] = losses.gaussian_feature(seen.teacher.moments, seen.statistics)
        adversarial_on = 1.0 if options.warmup_adversarial else jnp.where(seen.warm, 0.0, 1.0)
        total = (
            options.adversarial_weight * adversarial_on * terms["adversarial"]
            + options.balance_weight * terms["balance"]
            + options.class_weight * terms["class"]
            + options.statistics_weight * terms.get("statistics", 0.0)
        )
        return total, terms

    return generative.build(options, setting, loss)
