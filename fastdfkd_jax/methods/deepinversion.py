"""DeepInversion and Adaptive DeepInversion (Yin et al. 2020): every batch's pixels are optimised from noise.

Nothing is learned from call to call. METHOD 1.6 is the form that FastDFKD's tables compare with, METHOD 6 the original.
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
from fastdfkd_jax.errors import UserError, require
from fastdfkd_jax.meta import Adapted, adapt
from fastdfkd_jax.methods.base import (
    Batch,
    Method,
    Setting,
    asked_classes,
    class_advice,
    moment_gaps,
    on_target,
    require_no_class_term,
)
from fastdfkd_jax.methods.parts import parametrization
from fastdfkd_jax.models import Network, NetworkSpec, first_batch_norms, has_batch_norms

Array = jax.Array
Tree = Any

ADVERSARIAL = ("jsd", "adi")
LABELS = ("uniform", "balanced")
IMAGES = ("last", "best")
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class DeepInversionOptions:
    """Static choices; the defaults are those of METHOD 1.6 with the steps of the paper's tables.

    Attributes:
      num_steps: Adam steps on images of the full size; 'k', which Table 4 makes 2, 5 and 10.
      half_size_steps: steps before these, on images halved by 2x2 means; 0 for none (METHOD 6, setting 0).
      learning_rate, b1, b2: of Adam, which starts afresh at every call and stage.
      schedule: 'constant', or 'cosine' after a linear warm-up, for each stage.
      rate_warmup_steps: of the cosine schedule.
      jitter: largest roll of the whole batch in pixels, half of it at half the size.
      flip: whether the whole batch is mirrored at random.
      labels: 'uniform', drawn for each image, or 'balanced', every class equally often, give or take one.
      images: kept after the 'last' step, or after the step of the lowest loss, the 'best' of the last stage.
      class_weight, feature_weight: of the cross-entropy and of the sum of the BatchNorms' r_l.
      first_bn_multiplier: weight of r_l of the first BatchNorm (`models.first_batch_norms`), 1 for the others.
      student_feature_weight: of the student's own sum of r_l beside the teacher's, within the feature term. A student
        without BatchNorm has no such term.
      tv_l1, tv_l2, l2: of the total variation by mean absolute values, by norms, and of the mean image norm.
      adversarial_weight: of the student's term.
      adversarial: 'jsd', minus `losses.clamped_jensen_shannon` (METHOD 1.6), or 'adi', 1 - clamp(JSD, 0, 1), JSD being
        `losses.jensen_shannon` as the paper defines it. The authors' code for ADI clamps probabilities to [0.01, 0.99]
        and reverses the divergences; with 1,000 classes that can be constant, without a gradient (METHOD section 8).
      jsd_temperature: of its softmax.
    """

    num_steps: int = 2000
    half_size_steps: int = 0
    learning_rate: float = 0.1
    b1: float = 0.5
    b2: float = 0.99
    schedule: str = "constant"
    rate_warmup_steps: int = 100
    jitter: int = 4
    flip: bool = True
    labels: str = "uniform"
    images: str = "last"
    class_weight: float = 1.0
    feature_weight: float = 10.0
    first_bn_multiplier: float = 1.0
    student_feature_weight: float = -0.001
    tv_l1: float = 0.0
    tv_l2: float = 0.0
    l2: float = 0.0
    adversarial_weight: float = 1.0
    adversarial: str = "jsd"
    jsd_temperature: float = 3.0

    def __post_init__(self):
        for key, least in {"num_steps": 1, "half_size_steps": 0, "rate_warmup_steps": 0, "jitter": 0}.items():
            found = getattr(self, key)
            require(found >= least, f"deepinversion.{key}", f"at least {least}", found)
        for key in ("learning_rate", "jsd_temperature"):
            require(getattr(self, key) > 0, f"deepinversion.{key}", "more than 0", getattr(self, key))
        choices = {"schedule": SCHEDULES, "labels": LABELS, "images": IMAGES, "adversarial": ADVERSARIAL}
        for key, known in choices.items():
            found = getattr(self, key)
            require(found in known, f"deepinversion.{key}", f"one of {', '.join(known)}", found)


class DeepInversionState(NamedTuple):
    """What is carried from call to call.

    Attributes:
      call: i32[], synthesis calls so far.
    """

    call: Array


class Frozen(NamedTuple):
    """What the loss depends on and does not change during one call.

    Attributes:
      teacher_vars, student_vars: the networks' variables; no gradient is taken with respect to them.
      labels: i32[B].
      student_on: f32[], whether the terms that ask the student count.
    """

    teacher_vars: Tree
    student_vars: Tree
    labels: Array
    student_on: Array


class Observed(NamedTuple):
    """What one evaluation of the loss shows: unweighted terms, the view, the teacher's moments and predictions."""

    terms: dict[str, Array]
    view: Array
    moments: Tree
    predicted: Array


def build(options: DeepInversionOptions, setting: Setting) -> Method:
    """Binds networks and options.

    Raises:
      UserError: the teacher takes no images of half the size, as `half_size_steps` need; or it gives maps, and there is
        a class term.
    """
    teacher, student, classes = setting.teacher, setting.student, setting.teacher.spec.num_classes
    pixels = parametrization.laid_out(parametrization.from_pixels(teacher.spec), setting.split)
    if options.half_size_steps:
        _require_half_size(teacher)
    require_no_class_term(teacher.spec, "deepinversion.class_weight", options.class_weight)
    # As FastDFKD has it: the student's opinion counts from the last call that it does not learn in.
    student_start = max(1, setting.warmup_calls)

    def init(key: Array, teacher_vars: Tree) -> DeepInversionState:
        return DeepInversionState(jnp.zeros((), jnp.int32))

    def run_stage(x: Array, key: Array, frozen: Frozen, steps: int, half: bool) -> Adapted:
        loss = make_loss(teacher, student, options, half)
        optimizer = optax.adam(_rate(options, steps), options.b1, options.b2)
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
        """One call; the names are those of `Method.synthesize`."""
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
        # What was clipped in normalised space may be off by a rounding here.
        images = jnp.clip(pixels.render({}, kept), 0, 1)
        last: Observed = stage.last
        student_predicted = student.apply(student_vars, last.view).logits.argmax(-1)
        info = {
            **{f"loss/{name}": value for name, value in last.terms.items()},
            "loss/first": jnp.concatenate([*before, stage.losses])[0],
            "loss/last": stage.losses[-1],
            "agreement": (last.predicted == student_predicted).mean(),
            **moment_gaps(last.moments, teacher_vars, jnp.concatenate([*gaps, stage.watched])),
            "predicted": jnp.bincount(last.predicted.reshape(-1), length=classes),
            **on_target(last.predicted, labels, teacher.spec),
        }
        return state, Batch(images, labels), info

    advice = class_advice(
        ("deepinversion.class_weight", options.class_weight), ("deepinversion.feature_weight", options.feature_weight)
    )
    return Method(init, synthesize, images_per_call=setting.batch, class_advice=advice)


def make_loss(
    teacher: Network, student: Network, options: DeepInversionOptions, half: bool = False
) -> Callable[[Array, Array, Frozen], tuple[Array, Observed]]:
    """Builds `loss(pixels, key, frozen) -> (total, Observed)`; pixels are normalised, the key draws the view.

    Terms of weight 0 cost nothing once compiled; without a term that asks it, nor does the student.
    """
    jitter = options.jitter // 2 if half else options.jitter
    weights = {
        "class": options.class_weight,
        "feature": options.feature_weight,
        "tv_l1": options.tv_l1,
        "tv_l2": options.tv_l2,
        "l2": options.l2,
        "adversarial": options.adversarial_weight,
        # Over no layers it would be a term of 0.
        "student_feature": has_batch_norms(student) * options.feature_weight * options.student_feature_weight,
    }
    weights = {name: weight for name, weight in weights.items() if weight}
    of_student = weights.keys() & {"adversarial", "student_feature"}
    of_layers: Array | float = 1.0
    if options.first_bn_multiplier != 1:
        of_layers = jnp.where(jnp.array(first_batch_norms(teacher)), options.first_bn_multiplier, 1.0)

    def loss(pixels: Array, key: Array, frozen: Frozen) -> tuple[Array, Observed]:
        roll_key, flip_key = jax.random.split(key)
        view = augment.half_size(pixels) if half else pixels
        view = augment.random_roll(roll_key, view, jitter)
        view = augment.random_batch_flip(flip_key, view) if options.flip else view
        seen = teacher.apply(frozen.teacher_vars, view, moments=True)
        by_layer = losses.feature_by_layer(seen.moments, frozen.teacher_vars["batch_stats"])
        terms = {
            "feature": (of_layers * by_layer).sum(),
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
    """Classes to ask for, i32[batch]: 'uniform' or 'balanced' (a random order of all classes, repeated)."""
    if kind == "uniform" or spec.gives_maps:
        return asked_classes(key, batch, spec)
    return jnp.resize(jax.random.permutation(key, spec.num_classes), (batch,)).astype(jnp.int32)


def _adversarial(teacher_logits: Array, student_logits: Array, options: DeepInversionOptions) -> Array:
    if options.adversarial == "jsd":
        return -losses.clamped_jensen_shannon(teacher_logits, student_logits, options.jsd_temperature).mean()
    divergence = losses.jensen_shannon(teacher_logits, student_logits, options.jsd_temperature).mean()
    return 1 - jnp.clip(divergence, 0, 1)


def _rate(options: DeepInversionOptions, steps: int) -> float | optax.Schedule:
    """The learning rate of a stage: constant, or up to the peak by equal parts and down by half a cosine (METHOD 6)."""
    peak, rise = options.learning_rate, min(options.rate_warmup_steps, steps)
    if options.schedule == "constant":
        return peak

    def rate(step: Any) -> Array:
        up = (step + 1) / max(rise, 1)
        down = 0.5 * (1 + jnp.cos(jnp.pi * (step - rise) / max(steps - rise, 1)))
        return peak * jnp.where(step < rise, up, down)

    return rate


def _require_half_size(teacher: Network) -> None:
    variables = jax.eval_shape(teacher.init, jax.random.key(0))
    side, channels = teacher.spec.image_size // 2, teacher.spec.channels
    try:
        jax.eval_shape(teacher.apply, variables, jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"config.deepinversion.half_size_steps must be 0 for {teacher.spec.arch}, which takes no images of "
            f"{side} pixels"
        ) from error
