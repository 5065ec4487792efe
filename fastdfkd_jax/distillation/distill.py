"""The student: its state and one knowledge-distillation step (Algorithm 1 lines 17 to 20)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fastdfkd_jax import losses
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.distillation.soft_labels import SoftLabels, decode
from fastdfkd_jax.models import Network, Outputs

Array = jax.Array
Tree = Any
Loss = Callable[[Tree, Outputs, Outputs, Array], Array]


class Objective(NamedTuple):
    """The student's objective.

    Attributes:
      loss: `loss(extra, student_outputs, teacher_outputs, labels) -> f32[B]`, a loss for each image. Each term must be
        linear in the (one-hot) label or independent of it, so that labels can be mixed.
      init: `init(key) -> extra`, parameters that are trained beside the student; () for nothing.
      optimizer: optimizer of these extra parameters, or None.
    """

    loss: Loss
    init: Callable[[Array], Tree] = lambda key: ()
    optimizer: optax.GradientTransformation | None = None


class StudentState(NamedTuple):
    """The complete state of a student in training.

    Attributes:
      params, batch_stats: the student's variables.
      opt_state: state of the optimizer.
      step: i32[], KD steps taken.
      extra: parameters trained beside the student (`Objective.init`).
      extra_opt_state: state of their optimizer.
      averaged: running average of the student's variables, which is then evaluated and exported; () for none.
    """

    params: Tree
    batch_stats: Tree
    opt_state: Tree
    step: Array
    extra: Tree = ()
    extra_opt_state: Tree = ()
    averaged: Tree = ()

    @property
    def variables(self) -> dict[str, Tree]:
        """Returns the student's variables in the form that a `Network` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def result(self) -> dict[str, Tree]:
        """Returns the variables to evaluate and export: the average if there is one, else the latest."""
        return self.averaged or self.variables


def cosine_by_call(peak: float, final: float, calls: int, steps_per_call: int) -> optax.Schedule:
    """Returns a cosine from `peak` to `final` over `calls` synthesis calls, constant within a call (METHOD 1.8).

    As in PyTorch's CosineAnnealingLR stepped once an epoch, the first call runs at the peak, and the end point
    is reached only after the last one.
    """

    def schedule(step: Any) -> Array:
        progress = jnp.minimum(jnp.asarray(step // steps_per_call, float), calls) / calls
        return final + (peak - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

    return schedule


def milestones_by_call(peak: float, milestones: Sequence[int], decay: float, steps_per_call: int) -> optax.Schedule:
    """Returns `peak`, multiplied by `decay` after each listed number of calls with KD (METHOD section 6)."""
    return optax.piecewise_constant_schedule(peak, {call * steps_per_call: decay for call in milestones})


def warmed_up(schedule: optax.Schedule, steps: int) -> optax.Schedule:
    """Adds a linear warm-up of `steps` steps, at least 1, to a schedule: step i runs at (i + 1) / steps of it."""
    return lambda step: schedule(step) * jnp.minimum(jnp.asarray(step + 1, float) / steps, 1)


def average(averaged: Tree, latest: Tree, step: Any, decay: float) -> Tree:
    """Returns the exponential moving average of two trees after KD step `step`, counted from 1.

    The decay is min(decay, step / (step + 9)), so that the initial weights soon lose their influence.
    """
    share = 1 - jnp.minimum(decay, step / (step + 9.0))
    return jax.tree.map(lambda old, new: old + share.astype(old.dtype) * (new - old), averaged, latest)


def sgd(
    schedule: optax.Schedule, momentum: float, weight_decay: float, nesterov: bool = False
) -> optax.GradientTransformation:
    """Returns PyTorch's SGD: weight decay is added before the momentum, the learning rate is applied after it."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(schedule, momentum or None, nesterov=nesterov)
    )


def adam(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Returns PyTorch's Adam, with weight decay added to the gradient."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(schedule))


def from_variables(
    variables: Tree,
    optimizer: optax.GradientTransformation,
    objective: Objective | None = None,
    key: Any = None,
    ema_decay: float = 0.0,
) -> StudentState:
    """Makes a student that starts from given variables; the key draws an objective's extra parameters.

    If there is an average, it starts from a copy of the variables, because compiled steps donate both.
    """
    params = variables["params"]
    state = StudentState(params, variables["batch_stats"], optimizer.init(params), jnp.zeros((), jnp.int32))
    if ema_decay:
        state = state._replace(averaged=jax.tree.map(jnp.copy, state.variables))
    if objective is None or objective.optimizer is None:
        return state
    extra = objective.init(key)
    return state._replace(extra=extra, extra_opt_state=objective.optimizer.init(extra))


def make_step(
    teacher: Network,
    student: Network,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    *,
    extra_optimizer: optax.GradientTransformation | None = None,
    ema_decay: float = 0.0,
    network_input: bool = False,
    views: augment.ViewOptions | None = None,
    square: int = 0,
) -> Callable[..., tuple[StudentState, dict[str, Array]]]:
    """Builds the pure KD step.

    Args:
      teacher, student: the networks; images are normalised with the teacher's constants.
      optimizer: the student's optimizer.
      loss: the loss of each image (`Objective.loss`).
      extra_optimizer: optimizer of the parameters trained beside the student, or None.
      ema_decay: decay of the average of the student's variables (`average`); 0 for none.
      network_input: True if images are already in the networks' input range; they are then neither augmented nor
        normalised.
      views: how images are augmented; None for the defaults. The teacher sees the mixed images too, so its output is
        their label. Label maps are augmented like their images.
      square: side in pixels of a random crop that is first cut from larger images; 0 for whole images.

    Returns:
      `step(state, teacher_vars, images, key, labels=None, weights=None) -> (state, info)`. Images are f32[B, H, W, C]
      in [0, 1], labels i32[B] or maps int[B, H, W]; weights f32[B] weight the images in the loss. Info holds the
      scalars 'loss' and 'agreement' (share of equal predictions in the augmented batch). With weights it also holds
      'difficulty', f32[B], KL(p_t || p_s) in nats.
    """
    shown_as = views or augment.ViewOptions()
    learn = _make_learner(student, optimizer, loss, extra_optimizer, ema_decay)

    def step(
        state: StudentState, teacher_vars: Tree, images: Array, key: Array, labels: Any = None, weights: Any = None
    ):
        view = augment.View()
        if not network_input:
            images, labels = augment.random_squares(jax.random.fold_in(key, 3), images, labels, square)
            view = augment.draw_view(key, images.shape, shown_as)
            images = augment.normalize(augment.apply_view(images, view), teacher.spec.mean, teacher.spec.std)
            if labels is not None and labels.ndim == 3:
                labels, view = augment.apply_view_to_labels(labels, view), augment.View()  # mixed pixel by pixel
        return learn(state, images, view, teacher.apply(teacher_vars, images), key, labels, weights)

    return step


def make_step_from_stored(
    student: Network,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    temperature: float,
    *,
    extra_optimizer: optax.GradientTransformation | None = None,
    ema_decay: float = 0.0,
) -> Callable[..., tuple[StudentState, dict[str, Array]]]:
    """Builds a KD step that uses stored teacher outputs (`soft_labels.make_labeller`) instead of the teacher.

    Args:
      student: the network; its images are normalised with the teacher's constants.
      optimizer: the student's optimizer.
      loss: the loss of each image; of the teacher it may use only the logits divided by the temperature.
      temperature: the KD temperature.
      extra_optimizer: optimizer of the parameters trained beside the student, or None.
      ema_decay: as in `make_step`.

    Returns:
      `step(state, images, view, soft_labels, key, labels=None) -> (state, info)`. Images are f32[B, H, W, C] in [0, 1]
      before augmentation. With the same key, `make_step` takes the same step up to float16 rounding.
    """
    spec = student.spec
    learn = _make_learner(student, optimizer, loss, extra_optimizer, ema_decay)

    def step(
        state: StudentState, images: Array, view: augment.View, stored: SoftLabels, key: Array, labels: Any = None
    ):
        shown = augment.normalize(augment.apply_view(images, view), spec.mean, spec.std)
        logits = decode(stored, spec.num_classes, temperature)
        return learn(state, shown, view, Outputs(logits, logits[:, :0], (), {}, {}), key, labels, None)

    return step


def _make_learner(
    student: Network,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    extra_optimizer: optax.GradientTransformation | None,
    ema_decay: float,
) -> Callable[..., tuple[StudentState, dict[str, Array]]]:
    """Builds the part of a KD step that follows the teacher's outputs."""

    def losses_of(extra: Tree, outputs: Outputs, target: Outputs, labels: Any, mix: augment.Mix | None, shape: Any):
        values = loss(extra, outputs, target, labels)
        if mix is None or labels is None:
            return values
        # Terms linear in the label, such as cross-entropy, get that of the mixed label. Other terms are unchanged.
        share = augment.own_share(mix, shape)
        return share * values + (1 - share) * loss(extra, outputs, target, labels[mix.partner])

    def learn(
        state: StudentState, images: Array, view: augment.View, target: Outputs, key: Array, labels: Any, weights: Any
    ):
        def objective(params: Tree, extra: Tree):
            variables = {"params": params, "batch_stats": state.batch_stats}
            # Derived from the views' key, so that the views are the same with and without dropout.
            outputs = student.apply(variables, images, train=True, key=jax.random.fold_in(key, 1))
            values = losses_of(extra, outputs, target, labels, view.mix, images.shape)
            return (values if weights is None else weights * values).mean(), outputs

        differentiate = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
        (value, outputs), (grads, extra_grads) = differentiate(state.params, state.extra)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        agreement = (outputs.logits.argmax(-1) == target.logits.argmax(-1)).mean()
        info = {"loss": value, "agreement": agreement}
        if weights is not None:
            info["difficulty"] = losses.of_images(losses.kl_divergence(target.logits, outputs.logits))
        state = state._replace(
            params=optax.apply_updates(state.params, updates),
            batch_stats=outputs.batch_stats,
            opt_state=opt_state,
            step=state.step + 1,
        )
        if ema_decay:
            state = state._replace(averaged=average(state.averaged, state.variables, state.step, ema_decay))
        if extra_optimizer is not None:
            updates, opt_state = extra_optimizer.update(extra_grads, state.extra_opt_state, state.extra)
            state = state._replace(extra=optax.apply_updates(state.extra, updates), extra_opt_state=opt_state)
        return state, info

    return learn
