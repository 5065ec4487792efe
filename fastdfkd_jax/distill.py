"""The student: its state and one knowledge-distillation step (Algorithm 1 lines 17 to 20)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fastdfkd_jax import augment, losses
from fastdfkd_jax.models import Network, Outputs

Array = jax.Array
Tree = Any
Loss = Callable[[Tree, Outputs, Outputs, Array], Array]


class Objective(NamedTuple):
    """What a student minimises.

    Attributes:
      loss: `loss(extra, student_outputs, teacher_outputs, labels) -> f32[B]`, a loss for each image.
      init: `init(key) -> extra`, what is trained beside the student; () for nothing.
      optimizer: of the extra trainables, or None.
    """

    loss: Loss
    init: Callable[[Array], Tree] = lambda key: ()
    optimizer: optax.GradientTransformation | None = None


class StudentState(NamedTuple):
    """All that changes while a student learns.

    Attributes:
      params, batch_stats: the student's variables.
      opt_state: of the optimizer.
      step: i32[], KD steps taken.
      extra: what is trained beside the student (`Objective.init`).
      extra_opt_state: of its optimizer.
    """

    params: Tree
    batch_stats: Tree
    opt_state: Tree
    step: Array
    extra: Tree = ()
    extra_opt_state: Tree = ()

    @property
    def variables(self) -> dict[str, Tree]:
        """The student's variables as a `Network` takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def cosine_by_call(peak: float, final: float, calls: int, steps_per_call: int) -> optax.Schedule:
    """Cosine from `peak` to `final` over `calls` synthesis calls, constant within a call (METHOD 1.8).

    As in PyTorch's CosineAnnealingLR stepped once an epoch: the first call runs at the peak, the end point
    is reached only after the last one.
    """

    def schedule(step: Any) -> Array:
        progress = jnp.minimum(step // steps_per_call, calls) / calls
        return final + (peak - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

    return schedule


def milestones_by_call(peak: float, milestones: Sequence[int], decay: float, steps_per_call: int) -> optax.Schedule:
    """`peak`, times `decay` after each of these numbers of calls with KD (METHOD section 6)."""
    return optax.piecewise_constant_schedule(peak, {call * steps_per_call: decay for call in milestones})


def sgd(
    schedule: optax.Schedule, momentum: float, weight_decay: float, nesterov: bool = False
) -> optax.GradientTransformation:
    """PyTorch's SGD: weight decay joins the gradient before the momentum, the rate comes after it."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(schedule, momentum or None, nesterov=nesterov)
    )


def adam(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """PyTorch's Adam, whose weight decay joins the gradient."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(schedule))


def from_variables(
    variables: Tree,
    optimizer: optax.GradientTransformation,
    objective: Objective | None = None,
    key: Any = None,
) -> StudentState:
    """A student that starts from given variables; what an objective trains beside it is drawn by the key."""
    params = variables["params"]
    state = StudentState(params, variables["batch_stats"], optimizer.init(params), jnp.zeros((), jnp.int32))
    if objective is None or objective.optimizer is None:
        return state
    extra = objective.init(key)
    return state._replace(extra=extra, extra_opt_state=objective.optimizer.init(extra))


def kd_loss(temperature: float) -> Loss:
    """Vanilla KD at a temperature (Eq. 12)."""
    return lambda extra, student, teacher, labels: losses.distillation(teacher.logits, student.logits, temperature)


def make_step(
    teacher: Network,
    student: Network,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    *,
    extra_optimizer: optax.GradientTransformation | None = None,
    network_input: bool = False,
    crop_padding: int = 4,
    flip: bool = True,
    least_crop: float = 0.0,
) -> Callable[..., tuple[StudentState, dict[str, Array]]]:
    """Builds the pure KD step.

    Args:
      teacher, student: the networks; images are normalised with the teacher's constants.
      optimizer: the student's.
      loss: of each image (`Objective.loss`).
      extra_optimizer: of what is trained beside the student, or None.
      network_input: whether images are as the networks take them; then they are neither augmented nor normalised.
      crop_padding: largest random shift in pixels; 0 for none.
      flip: whether images are mirrored at random.
      least_crop: where it is not 0, the least share of the area that a randomly resized crop keeps, in place of shifts.

    Returns:
      `step(state, teacher_vars, images, key, labels=None, weights=None) -> (state, info)`, images being f32[B, H, W, C]
      in [0, 1], weights f32[B] of the images in the loss, and info the scalars 'loss' and 'agreement' (share of equal
      predictions in the augmented batch) and, where there are weights, 'difficulty', f32[B], KL(p_t || p_s) in nats.
    """

    def step(
        state: StudentState, teacher_vars: Tree, images: Array, key: Array, labels: Any = None, weights: Any = None
    ):
        if not network_input:
            images = augment.random_crop_flip(key, images, crop_padding, flip, least_crop)
            images = augment.normalize(images, teacher.spec.mean, teacher.spec.std)
        target = teacher.apply(teacher_vars, images)

        def objective(params: Tree, extra: Tree):
            variables = {"params": params, "batch_stats": state.batch_stats}
            # Of the views' key, so that a student without dropout meets the same views as ever.
            outputs = student.apply(variables, images, train=True, key=jax.random.fold_in(key, 1))
            values = loss(extra, outputs, target, labels)
            return (values if weights is None else weights * values).mean(), outputs

        differentiate = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
        (value, outputs), (grads, extra_grads) = differentiate(state.params, state.extra)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        agreement = (outputs.logits.argmax(-1) == target.logits.argmax(-1)).mean()
        info = {"loss": value, "agreement": agreement}
        if weights is not None:
            info["difficulty"] = losses.kl_divergence(target.logits, outputs.logits)
        state = state._replace(
            params=optax.apply_updates(state.params, updates),
            batch_stats=outputs.batch_stats,
            opt_state=opt_state,
            step=state.step + 1,
        )
        if extra_optimizer is not None:
            updates, opt_state = extra_optimizer.update(extra_grads, state.extra_opt_state, state.extra)
            state = state._replace(extra=optax.apply_updates(state.extra, updates), extra_opt_state=opt_state)
        return state, info

    return step
