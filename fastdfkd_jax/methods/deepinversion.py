"""DeepInversion and Adaptive DeepInversion (Yin et al. 2020): optimises every batch's pixels from noise.

Nothing is learned from call to call. METHOD 1.6 is the form that FastDFKD's tables compare with; METHOD 6 the original.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fastdfkd_jax import losses
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.meta import Adapted, adapt
from fastdfkd_jax.methods.base import (
    Batch,
    Info,
    Method,
    Setting,
    asked_classes,
    class_advice,
    moment_gaps,
    on_target,
    require_no_class_term,
)
from fastdfkd_jax.methods.parts import parametrization
from fastdfkd_jax.methods.parts.optimizers import RATE_SCHEDULES, rate_of_steps
from fastdfkd_jax.methods.parts.patches import PATCHES, patch_similarity, require_attention
from fastdfkd_jax.models import Network, NetworkSpec, first_batch_norms, has_batch_norms
from fastdfkd_jax.options import Options, option

Array = jax.Array
Tree = Any

ADVERSARIAL = ("jsd", "adi")
LABELS = ("uniform", "balanced")
IMAGES = ("last", "best")
FEATURE = ("statistics", PATCHES)


@dataclass(frozen=True)
class DeepInversionOptions(Options, section="deepinversion"):
    """Options of DeepInversion; the defaults are those of METHOD 1.6 with the steps of the paper's tables.

    ADI is the paper's: in the authors' code it can be constant with 1,000 classes, without a gradient (METHOD 8).
    """

    num_steps: int = option(
        2000, "Adam steps on the pixels of a batch at full size; the k that Table 4 sets to 2, 5 and 10", at_least=1
    )
    half_size_steps: int = option(
        0, "earlier Adam steps on images halved by 2x2 means; 0 for none (METHOD 6, setting 0)", at_least=0
    )
    lr: float = option(0.1, "learning rate of Adam, restarted at every call and stage, in normalised pixels", above=0)
    b1: float = option(0.5, "first decay rate of Adam")
    b2: float = option(0.99, "second decay rate of Adam")
    schedule: str = option(
        "constant",
        "rate schedule of each stage: 'constant', or 'cosine' after a warm-up (METHOD 6)",
        choices=RATE_SCHEDULES,
    )
    rate_warmup_steps: int = option(100, "steps of the linear warm-up before the cosine schedule", at_least=0)
    jitter: int = option(4, "largest random roll of the whole batch, in pixels; half of it at half size", at_least=0)
    flip: bool = option(True, "mirror the whole batch at random")
    labels: str = option(
        "uniform",
        "class labels: 'uniform', drawn for each image, or 'balanced', with equal counts up to one (METHOD 6, CIFAR)",
        choices=LABELS,
    )
    images: str = option(
        "last",
        "images kept: those after the 'last' step, or the 'best', after the last stage's step of lowest loss",
        choices=IMAGES,
    )
    class_weight: float = option(1.0, "weight of the cross-entropy with the class labels")
    feature_weight: float = option(10.0, "weight of the feature term")
    feature: str = option(
        "statistics",
        "feature term: 'statistics', the sum of the BatchNorm terms r_l, or 'patch_similarity' for teachers with "
        "attention, which compares no statistics (Li et al. 2022)",
        choices=FEATURE,
    )
    first_bn_multiplier: float = option(
        1.0, "factor on r_l of the first BatchNorm (`models.first_batch_norms`); 1 for the others"
    )
    student_feature_weight: float = option(
        -0.001,
        "weight of the student's own sum of r_l, added to the teacher's in the feature term (METHOD 1.6); unused "
        "for a student without BatchNorm",
    )
    tv_l1: float = option(0.0, "weight of the total variation as mean absolute differences")
    tv_l2: float = option(0.0, "weight of the total variation as norms of differences")
    l2: float = option(0.0, "weight of the mean L2 norm of an image")
    adversarial_weight: float = option(1.0, "weight of the adversarial term, which compares teacher and student")
    adversarial: str = option(
        "jsd",
        "adversarial term: 'jsd', minus `losses.clamped_jensen_shannon` (METHOD 1.6), or 'adi', 1 - clamp(JSD, 0, "
        "1) with the unclamped `losses.jensen_shannon` (METHOD 8)",
        choices=ADVERSARIAL,
    )
    jsd_temperature: float = option(3.0, "temperature of the softmax in the adversarial term", above=0)


class DeepInversionState(NamedTuple):
    """The state carried from call to call: the synthesis calls so far, i32[]."""

    call: Array


class Frozen(NamedTuple):
    """The inputs of the loss that do not change during one call.

    Attributes:
      teacher_vars, student_vars: the networks' variables; no gradient is taken with respect to them.
      labels: i32[B].
      student_on: f32[], 1 if the terms that use the student count, else 0.
    """

    teacher_vars: Tree
    student_vars: Tree
    labels: Array
    student_on: Array


class Observed(NamedTuple):
    """The outputs of one loss evaluation: unweighted terms, the view, the teacher's moments and predictions."""

    terms: dict[str, Array]
    view: Array
    moments: Tree
    predicted: Array


def build(options: DeepInversionOptions, setting: Setting) -> Method:
    """Binds networks and options.

    Raises:
      UserError: the teacher cannot take images of half the size, which `half_size_steps` needs; it outputs maps and
        the loss has a class term; or the loss compares patches and the teacher has no attention.
    """
    teacher, student = setting.teacher, setting.student
    pixels = parametrization.laid_out(parametrization.from_pixels(teacher.spec), setting.split)
    _require_fit(options, teacher)
    # As in FastDFKD, the student's terms count from the last call in which it does not learn.
    student_start = max(1, setting.warmup_calls)

    def init(key: Array, teacher_vars: Tree) -> DeepInversionState:
        return DeepInversionState(jnp.zeros((), jnp.int32))

    def run_stage(x: Array, key: Array, frozen: Frozen, steps: int, half: bool) -> Adapted:
        loss = make_loss(teacher, student, options, half)
        rate = rate_of_steps(options.schedule, options.lr, options.rate_warmup_steps, steps)
        optimizer = optax.adam(rate, options.b1, options.b2)
        keys = jax.random.split(key, steps)
        return adapt(
            lambda x, key: loss(x, key, frozen),
            x,
            optimizer,
            keys,
            project=pixels.project,
            watch=lambda seen: losses.feature(seen.moments, frozen.teacher_vars["batch_stats"]),
        )

    def synthesize(state: DeepInversionState, teacher_vars: Tree, student_vars: Tree, key: Array):
        """Makes the images of one call; the names are those of `Method.synthesize`."""
        state = state._replace(call=state.call + 1)
        label_key, draw_key, half_key, full_key = jax.random.split(key, 4)
        labels = draw_labels(label_key, setting.batch, teacher.spec, options.labels)
        student_on = (state.call >= student_start).astype(jnp.float32)
        frozen = Frozen(teacher_vars, student_vars, labels, student_on)

        x = pixels.draw(draw_key, setting.batch)
        before, gaps = [], []
        if options.half_size_steps:
            stage = run_stage(x, half_key, frozen, options.half_size_steps, half=True)
            x = stage.params
            before, gaps = [stage.losses], [stage.watched]
        stage = run_stage(x, full_key, frozen, options.num_steps, half=False)

        kept = stage.best_params if options.images == "best" else stage.params
        # Pixels clipped in normalised space may exceed [0, 1] by a rounding error.
        images = jnp.clip(pixels.render({}, kept), 0, 1)
        last: Observed = stage.last
        student_predicted = student.apply(student_vars, last.view).logits.argmax(-1)
        by_step = jnp.concatenate([*before, stage.losses]), jnp.concatenate([*gaps, stage.watched])
        return state, Batch(images, labels), _info(last, *by_step, student_predicted, frozen, teacher.spec)

    advice = class_advice(
        ("deepinversion.class_weight", options.class_weight), ("deepinversion.feature_weight", options.feature_weight)
    )
    return Method(init, synthesize, images_per_call=setting.batch, class_advice=advice)


def _info(
    last: Observed, by_step: Array, gaps: Array, student_predicted: Array, frozen: Frozen, spec: NetworkSpec
) -> Info:
    """Returns the signals of a call's last view, and of the losses and gaps of all its steps."""
    return Info(
        losses={**last.terms, "first": by_step[0], "last": by_step[-1]},
        agreement=(last.predicted == student_predicted).mean(),
        predicted=jnp.bincount(last.predicted.reshape(-1), length=spec.num_classes),
        on_target=on_target(last.predicted, frozen.labels, spec),
        **moment_gaps(last.moments, frozen.teacher_vars, gaps),
    )


def make_loss(
    teacher: Network, student: Network, options: DeepInversionOptions, half: bool = False
) -> Callable[[Array, Array, Frozen], tuple[Array, Observed]]:
    """Builds `loss(pixels, key, frozen) -> (total, Observed)`; pixels are normalised, the key draws the view.

    Terms of weight 0 cost nothing once compiled. The student is not run if no term uses it.
    """
    jitter = options.jitter // 2 if half else options.jitter
    weights = {
        "class": options.class_weight,
        "feature": options.feature_weight,
        "tv_l1": options.tv_l1,
        "tv_l2": options.tv_l2,
        "l2": options.l2,
        "adversarial": options.adversarial_weight,
        # Without BatchNorm layers the term would always be 0.
        "student_feature": has_batch_norms(student) * options.feature_weight * options.student_feature_weight,
    }
    weights = {name: weight for name, weight in weights.items() if weight}
    patches = _compares_patches(options)
    of_student = weights.keys() & {"adversarial", "student_feature"}
    of_layers: Array | float = 1.0
    if options.first_bn_multiplier != 1:
        of_layers = jnp.where(jnp.array(first_batch_norms(teacher)), options.first_bn_multiplier, 1.0)

    def loss(pixels: Array, key: Array, frozen: Frozen) -> tuple[Array, Observed]:
        roll_key, flip_key = jax.random.split(key)
        view = augment.half_size(pixels) if half else pixels
        view = augment.random_roll(roll_key, view, jitter)
        view = augment.random_batch_flip(flip_key, view) if options.flip else view
        seen = teacher.apply(frozen.teacher_vars, view, moments=True, tokens=patches)
        by_layer = losses.feature_by_layer(seen.moments, frozen.teacher_vars["batch_stats"])
        terms = {
            "feature": patch_similarity(seen.tokens) if patches else (of_layers * by_layer).sum(),
            "tv_l1": losses.total_variation_l1(view),
            "tv_l2": losses.total_variation(view),
            "l2": losses.mean_l2(view),
        }
        if "class" in weights:
            terms["class"] = losses.cross_entropy(seen.logits, frozen.labels)
        if of_student:
            theirs = student.apply(frozen.student_vars, view, moments="student_feature" in of_student)
            terms["adversarial"] = _adversarial(seen.logits, theirs.logits, options)
            if "student_feature" in of_student:
                terms["student_feature"] = losses.feature(theirs.moments, frozen.student_vars["batch_stats"])
        terms = {name: terms[name] for name in weights}
        total = sum(
            weight * (frozen.student_on if name in of_student else 1) * terms[name] for name, weight in weights.items()
        )
        predicted = seen.logits.argmax(-1).astype(jnp.int32)
        return jnp.asarray(total), Observed(terms, view, seen.moments, predicted)

    return loss


def draw_labels(key: Array, batch: int, spec: NetworkSpec, kind: str) -> Array:
    """Draws target classes, i32[batch]: 'uniform' or 'balanced' (a random order of all classes, repeated)."""
    if kind == "uniform" or spec.gives_maps:
        return asked_classes(key, batch, spec)
    return jnp.resize(jax.random.permutation(key, spec.num_classes), (batch,)).astype(jnp.int32)


def _adversarial(teacher_logits: Array, student_logits: Array, options: DeepInversionOptions) -> Array:
    if options.adversarial == "jsd":
        return -losses.clamped_jensen_shannon(teacher_logits, student_logits, options.jsd_temperature).mean()
    divergence = losses.jensen_shannon(teacher_logits, student_logits, options.jsd_temperature).mean()
    return 1 - jnp.clip(divergence, 0, 1)


def _compares_patches(options: DeepInversionOptions) -> bool:
    return options.feature == PATCHES and options.feature_weight != 0


def _require_fit(options: DeepInversionOptions, teacher: Network) -> None:
    require_no_class_term(teacher.spec, "deepinversion.class_weight", options.class_weight)
    if _compares_patches(options):
        require_attention(teacher, "deepinversion.feature")
    if not options.half_size_steps:
        return
    variables = jax.eval_shape(teacher.init, jax.random.key(0))
    side, channels = teacher.spec.image_size // 2, teacher.spec.channels
    try:
        jax.eval_shape(teacher.apply, variables, jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"config.deepinversion.half_size_steps must be 0 for {teacher.spec.arch}, which takes no images of "
            f"{side} pixels"
        ) from error
