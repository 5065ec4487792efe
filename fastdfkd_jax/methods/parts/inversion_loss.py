"""The inversion loss L of Eq. 13 and 15 on rendered images, with class, adversarial and feature terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fastdfkd_jax import losses
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.methods.base import class_advice, require_no_class_term
from fastdfkd_jax.methods.parts.patches import PATCHES, patch_similarity, require_attention
from fastdfkd_jax.models import Network, Outputs, count_batch_norms
from fastdfkd_jax.moments import Accumulators
from fastdfkd_jax.options import Options, option

Array = jax.Array
Tree = Any

ADVERSARIAL = ("kl", "jsd")
FEATURE = ("momentum", "plain", PATCHES)


@dataclass(frozen=True)
class InversionOptions(Options, section="inversion"):
    """Options of the terms of Eq. 13 and 15 (METHOD section 2: oh, adv, bn) and of the view they are computed on."""

    class_weight: float = option(
        0.4, "weight of the class term; 0 for a segmentation teacher, which has none (the paper's Table 3)", at_least=0
    )
    adversarial_weight: float = option(1.1, "weight of the adversarial term", at_least=0)
    feature_weight: float = option(10.0, "weight of the feature term", at_least=0)
    adversarial: str = option(
        "kl",
        "adversarial term: 'kl', masked and without temperature (METHOD T5), or 'jsd' (Eq. 13)",
        choices=ADVERSARIAL,
    )
    jsd_temperature: float = option(3.0, "temperature tau of the 'jsd' adversarial term (Eq. 13)", above=0)
    feature: str = option(
        "momentum",
        "feature term: 'momentum' (Eq. 15), 'plain' (Eq. 13), or 'patch_similarity' for teachers with attention, "
        "which compares no statistics (Li et al. 2022)",
        choices=FEATURE,
    )
    statistic: str = option(
        "variance",
        "second statistic of the feature term: 'variance' (METHOD T3) or 'deviation' (Eq. 13)",
        choices=losses.STATISTICS,
    )
    accumulator_weight: float = option(
        0.9, "weight of the accumulators in Eq. 14 and 15, 1 - m (METHOD T3)", within="[0, 1)"
    )
    tv_l1: float = option(0.0, "weight of the images' total variation, as mean absolute differences", at_least=0)
    crop_padding: int = option(4, "largest random shift of the augmented view, in pixels", at_least=0)
    least_crop: float = option(
        0.0,
        "smallest share of the area in randomly resized crops, which replace shifts; 0 keeps shifts",
        within="[0, 1]",
    )
    flip: bool = option(True, "mirror the augmented view at random")

    @property
    def class_advice(self) -> str:
        """Returns `Method.class_advice` for these weights."""
        weights = ("inversion.class_weight", self.class_weight), ("inversion.feature_weight", self.feature_weight)
        advice = class_advice(*weights)
        share = 1 - self.accumulator_weight
        if not advice or not self.feature_weight or self.feature != "plain" or not 0 < share < 1:
            return advice
        # The batch's share in Eq. 15 scales the gradient (METHOD section 8).
        return f"{advice}; config.inversion.feature='momentum' (Eq. 15) weighs statistics {1 / share:.0f} times less"


class Frozen(NamedTuple):
    """The inputs of the loss that do not change during one synthesis call.

    Attributes:
      teacher_vars, student_vars: the networks' variables; no gradient is taken with respect to them.
      accumulators: moments synthesised so far.
      adversarial_on: f32[], 0 during the warm-up and 1 after it.
    """

    teacher_vars: Tree
    student_vars: Tree
    accumulators: Accumulators
    adversarial_on: Array


class Observed(NamedTuple):
    """The outputs of one loss evaluation.

    Attributes:
      terms: unweighted 'class', 'adversarial', 'feature' and 'tv_l1', f32[] each. Maps have no 'class' term; a teacher
        without statistics has no 'feature' term that compares them; 'tv_l1' needs a weight.
      moments: the teacher's BatchNorm input moments, a tree of f32[C].
      predicted: the teacher's predictions, i32[B], or i32[B, H, W] for maps.
      agreement: f32[], share of the batch for which the student predicts the same class.
      described: the result of `describe` on the teacher's outputs; () without one.
    """

    terms: dict[str, Array]
    moments: Tree
    predicted: Array
    agreement: Array
    described: Tree = ()


def make_inversion_loss(
    teacher: Network,
    student: Network,
    options: InversionOptions,
    describe: Callable[[Outputs], Tree] = lambda outputs: (),
) -> Callable[[Array, Array, Array, Frozen], tuple[Array, Observed]]:
    """Builds `loss(images, labels, key, frozen) -> (total, Observed)`.

    Images are f32[B, H, W, C] in [0, 1] before augmentation, labels i32[B]. The key draws the augmented view,
    which teacher and student share. One teacher pass computes all three terms and the input of `describe`, whose result
    is part of `Observed`.

    Raises:
      UserError: the loss has a class term and the teacher outputs maps; or it compares patches and the teacher has no
        attention.
    """
    require_no_class_term(teacher.spec, "inversion.class_weight", options.class_weight)
    patches = options.feature == PATCHES and options.feature_weight > 0
    if patches:
        require_attention(teacher, "inversion.feature")
    names_classes = not teacher.spec.gives_maps

    def feature_loss(moments: Tree, frozen: Frozen) -> Array:
        batch_stats = frozen.teacher_vars["batch_stats"]
        if options.feature == "plain":
            return losses.feature(moments, batch_stats, options.statistic)
        return losses.momentum_feature(
            moments, batch_stats, frozen.accumulators, options.accumulator_weight, options.statistic
        )

    def adversarial_loss(teacher_logits: Array, student_logits: Array) -> Array:
        if options.adversarial == "kl":
            return losses.adversarial_kl(teacher_logits, student_logits)
        return losses.adversarial_jsd(teacher_logits, student_logits, options.jsd_temperature)

    def loss(images: Array, labels: Array, key: Array, frozen: Frozen) -> tuple[Array, Observed]:
        view = augment.random_crop_flip(key, images, options.crop_padding, options.flip, options.least_crop)
        view = augment.normalize(view, teacher.spec.mean, teacher.spec.std)
        seen = teacher.apply(frozen.teacher_vars, view, moments=True, tokens=patches)
        student_logits = student.apply(frozen.student_vars, view).logits
        terms = {"class": losses.cross_entropy(seen.logits, labels)} if names_classes else {}
        terms["adversarial"] = adversarial_loss(seen.logits, student_logits)
        if patches:
            terms["feature"] = patch_similarity(seen.tokens)
        elif options.feature != PATCHES and count_batch_norms(frozen.teacher_vars):
            terms["feature"] = feature_loss(seen.moments, frozen)
        if options.tv_l1:
            terms["tv_l1"] = losses.total_variation_l1(images)
        weights = {
            "class": options.class_weight,
            "adversarial": options.adversarial_weight * frozen.adversarial_on,
            "feature": options.feature_weight,
            "tv_l1": options.tv_l1,
        }
        total = jnp.asarray(sum(weights[name] * term for name, term in terms.items()))
        predicted = seen.logits.argmax(-1).astype(jnp.int32)
        agreement = (predicted == student_logits.argmax(-1)).mean()
        return total, Observed(terms, seen.moments, predicted, agreement, describe(seen))

    return loss
