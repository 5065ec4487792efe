"""DAFL (Chen et al., ICCV 2019): images that the teacher is sure of, of all classes, with strong features (METHOD 6).

The generator does not look at the student. As in the official code both learn on the same images, in one joint step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from fastdfkd_jax import losses
from fastdfkd_jax.methods.base import Method, Setting
from fastdfkd_jax.methods.parts import online_generator

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Options(online_generator.GeneratorOptions):
    """Weights of the generator's terms.

    Attributes:
      class_weight: of the cross-entropy with the teacher's own prediction.
      balance_weight: of the negative entropy of the mean prediction, with the logarithm to base 10 of the official
        code; a weight for the natural logarithm times 2.303.
      activation_weight: of minus the mean absolute penultimate feature.
    """

    class_weight: float = 0.05
    balance_weight: float = 5.0
    activation_weight: float = 0.01

    section: ClassVar[str] = "dafl"


def build(options: Options, setting: Setting) -> Method:
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
