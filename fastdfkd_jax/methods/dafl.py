"""DAFL (Chen et al., ICCV 2019): images of all classes with confident predictions and strong features (METHOD 6).

The generator does not use the student. As in the official code, both learn on the same images in one joint step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from fastdfkd_jax import losses
from fastdfkd_jax.methods.base import Method, Setting
from fastdfkd_jax.methods.parts import online_generator
from fastdfkd_jax.options import option

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class DAFLOptions(online_generator.OnlineGeneratorOptions, section="dafl"):
    """Options of DAFL: the generator and the weights of its terms (METHOD section 6)."""

    generator: str = "dafl"
    latent_dim: int = 1000
    lr: float = 0.02
    student_images: str = "step"
    class_weight: float = option(0.05, "weight of the cross-entropy with the teacher's own prediction; CIFAR-100: 0.5")
    balance_weight: float = option(
        5.0,
        "weight of the negative entropy of the mean prediction, with base-10 logarithms as in the official code: "
        "2.303 times the weight for natural logarithms; CIFAR-100: 20",
    )
    activation_weight: float = option(0.01, "weight of minus the mean absolute penultimate feature; CIFAR-100: 0.1")


def build(options: DAFLOptions, setting: Setting) -> Method:
    """Binds options and networks; the student learns by vanilla KD."""

    def loss(seen: online_generator.Seen) -> tuple[Array, dict[str, Array]]:
        terms = {
            "class": losses.cross_entropy(seen.teacher.logits, seen.teacher.logits.argmax(-1)),
            "balance": -losses.entropy_of_mean(seen.teacher.logits) / math.log(10),
            "activation": -jnp.abs(seen.teacher.features).mean(),
        }
        total = (
            options.class_weight * terms["class"]
            + options.balance_weight * terms["balance"]
            + options.activation_weight * terms["activation"]
        )
        return total, terms

    return online_generator.build(options, setting, loss)
