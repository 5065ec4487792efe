"""The student: its state and one knowledge-distillation step (Algorithm 1 lines 17 to 20)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fastdfkd_jax import augment, losses
from fastdfkd_jax.models import Network, Outputs

Array = jax.Array
Tree = Any
StudentLoss = Callable[[Outputs, Outputs], Array]


class StudentState(NamedTuple):
    """All that changes while a student learns.

    Attributes:
      params, batch_stats: the student's variables.
      opt_state: of the optimizer.
      step: i32[], KD steps taken.
    """

    params: Tree
    batch_stats: Tree
    opt_state: Tree
    step: Array

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


def sgd(schedule: optax.Schedule, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """PyTorch's SGD: weight decay joins the gradient before the momentum, the rate comes after it."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(schedule, momentum or None))


def init(key: Array, student: Network, optimizer: optax.GradientTransformation) -> StudentState:
    """A freshly initialised student."""
    return from_variables(student.init(key), optimizer)


def from_variables(variables, optimizer: optax.GradientTransformation) -> StudentState:
    """A student that starts from given variables."""
    params = variables["params"]
    return StudentState(params, variables["batch_stats"], optimizer.init(params), jnp.zeros((), jnp.int32))


def kd_loss(temperature: float) -> StudentLoss:
    """Vanilla KD at a temperature (Eq. 12)."""
    return lambda student, teacher: losses.distillation(teacher.logits, student.logits, temperature)


def make_step(
    teacher: Network,
    student: Network,
    optimizer: optax.GradientTransformation,
    loss: StudentLoss,
    *,
    crop_padding: int = 4,
    flip: bool = True,
) -> Callable[[StudentState, Tree, Array, Array], tuple[StudentState, dict[str, Array]]]:
    """Builds the pure KD step.

    Args:
      teacher, student: the networks; images are normalised with the teacher's constants.
      optimizer: the student's.
      loss: `loss(student_outputs, teacher_outputs)`, a scalar.
      crop_padding: largest random shift in pixels; 0 for none.
      flip: whether images are mirrored at random.

    Returns:
      `step(state, teacher_vars, images, key) -> (state, info)`, images being f32[B, H, W, C] in [0, 1] and info
      the scalars 'loss' and 'agreement' (share of equal predictions in the augmented batch).
    """

    def step(state: StudentState, teacher_vars: Tree, images: Array, key: Array):
        images = augment.random_crop_flip(key, images, crop_padding, flip)
        images = augment.normalize(images, teacher.spec.mean, teacher.spec.std)
        target = teacher.apply(teacher_vars, images)

        def objective(params: Tree):
            variables = {"params": params, "batch_stats": state.batch_stats}
            # Of the views' key, so that a student without dropout meets the same views as ever.
            outputs = student.apply(variables, images, train=True, key=jax.random.fold_in(key, 1))
            return loss(outputs, target), outputs

        (value, outputs), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        agreement = (outputs.logits.argmax(-1) == target.logits.argmax(-1)).mean()
        state = StudentState(params, outputs.batch_stats, opt_state, state.step + 1)
        return state, {"loss": value, "agreement": agreement}

    return step
