"""DFQ (Choi et al., CVPR workshops 2020): adversarial images that match the teacher's BatchNorm statistics (METHOD 6).

During the warm-up calls only the generator is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from fastdfkd_jax import losses
from fastdfkd_jax.methods.base import Method, Setting
from fastdfkd_jax.methods.parts import online_generator
from fastdfkd_jax.options import option

Array = jax.Array

CLASS_TERMS = ("entropy", "argmax")
STATISTICS = ("gaussian", "l2")


@dataclass(frozen=True, kw_only=True)
class DFQOptions(online_generator.OnlineGeneratorOptions, section="dfq"):
    """Options of DFQ: the generator and the weights of its terms (METHOD section 6)."""

    generator: str = "dfq"
    latent_dim: int = 512
    b1: float = 0.5
    cosine: bool = True
    student_steps: int = 10
    adversarial_weight: float = option(1.0, "weight of minus KL(p_teacher || p_student)")
    balance_weight: float = option(0.01, "weight of the negative entropy of the mean prediction, in nats")
    class_term: str = option(
        "entropy",
        "class term: 'entropy', the mean entropy of the predictions in nats, or 'argmax', the cross-entropy with "
        "the teacher's own prediction (CMI's script, METHOD section 8)",
        choices=CLASS_TERMS,
    )
    class_weight: float = option(0.01, "weight of the class term")
    statistics: str = option(
        "gaussian",
        "distance of the BatchNorm inputs from the running statistics: 'gaussian', the KL divergence of "
        "normal distributions, or 'l2', the plain feature loss of Eq. 13 (CMI's script)",
        choices=STATISTICS,
    )
    statistics_weight: float = option(0.01, "weight of the BatchNorm statistics term")
    warmup_adversarial: bool = option(
        False, "keep the adversarial term on during the warm-up, against an untrained student"
    )


def build(options: DFQOptions, setting: Setting) -> Method:
    """Binds options and networks; the student learns by vanilla KD."""

    def class_term(logits: Array) -> Array:
        if options.class_term == "entropy":
            return losses.entropy(logits).mean()
        return losses.cross_entropy(logits, logits.argmax(-1))

    distance = losses.gaussian_feature if options.statistics == "gaussian" else losses.feature

    def loss(seen: online_generator.Seen) -> tuple[Array, dict[str, Array]]:
        logits = seen.teacher.logits
        terms = {
            "adversarial": -losses.kl_divergence(logits, seen.student.logits).mean(),
            "balance": -losses.entropy_of_mean(logits),
            "class": class_term(logits),
        }
        if jax.tree.leaves(seen.statistics):
            terms["statistics"] = distance(seen.teacher.moments, seen.statistics)
        adversarial_on = 1.0 if options.warmup_adversarial else jnp.where(seen.warm, 0.0, 1.0)
        total = (
            options.adversarial_weight * adversarial_on * terms["adversarial"]
            + options.balance_weight * terms["balance"]
            + options.class_weight * terms["class"]
            + options.statistics_weight * terms.get("statistics", 0.0)
        )
        return total, terms

    return online_generator.build(options, setting, loss)
