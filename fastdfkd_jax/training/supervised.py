"""Supervised training on images with class labels or segmentation maps, which makes the teachers (METHOD 5)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fastdfkd_jax import losses
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.cli import signals
from fastdfkd_jax.data import Dataset
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import Network
from fastdfkd_jax.models.network import Variables

Array = jax.Array

# Steps dispatched ahead of their results. More would gain nothing, and all must end before a stop can be saved.
_STEPS_AHEAD = 4
OPTIMIZERS, SCHEDULES = ("sgd", "adamw"), ("milestones", "cosine")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The recipe of a teacher's training; the configs hold every field.

    Attributes:
      epochs: passes over the training images.
      batch_size: images per step; the rest of an epoch's permutation is dropped.
      lr: peak learning rate.
      lr_milestones: epochs after which the learning rate is multiplied by `lr_decay`.
      lr_decay: factor at each milestone.
      momentum: momentum of SGD.
      weight_decay: added to the gradient of every parameter, as in PyTorch's SGD; of AdamW, the decoupled decay.
      padding: pixels of black around the images before they are cropped at random; 0 for no crop.
      flip: whether images are mirrored at random.
      seed: random seed of weights, order and augmentation.
      eval_every: epochs between evaluations; the checkpoint is written at each.
      square: side in pixels of a random square that is first cut out of larger images; 0 keeps whole images.
      least_crop: smallest share of the area that a random crop keeps; if not 0, such crops replace padding.
      optimizer: 'sgd', or 'adamw' with its usual decay rates (0.9, 0.999), which networks of attention need.
      schedule: 'milestones', or 'cosine' for a learning rate that falls to 0 and needs no milestones.
      rate_warmup_epochs: epochs at the start during which the learning rate rises linearly from 0.
    """

    epochs: int
    batch_size: int
    lr: float
    lr_milestones: tuple[int, ...]
    lr_decay: float
    momentum: float
    weight_decay: float
    padding: int
    flip: bool
    seed: int
    eval_every: int
    square: int = 0
    least_crop: float = 0.0
    optimizer: str = "sgd"
    schedule: str = "milestones"
    rate_warmup_epochs: int = 0

    def __post_init__(self):
        for name in ("epochs", "batch_size", "eval_every"):
            if getattr(self, name) < 1:
                raise UserError(f"expected recipe.{name} of at least 1, found {getattr(self, name)}")
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                found = getattr(self, name)
                raise UserError(f"expected recipe.{name} to be one of {', '.join(known)}, found {found!r}")
        if not 0 <= self.rate_warmup_epochs < self.epochs:
            raise UserError(
                f"expected recipe.rate_warmup_epochs in 0..{self.epochs - 1}, fewer than all epochs, found "
                f"{self.rate_warmup_epochs}"
            )
        for name in ("lr", "lr_decay", "momentum", "weight_decay", "square", "least_crop", "padding", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"expected recipe.{name} of at least 0, found {getattr(self, name)}")
        if self.least_crop > 1:
            raise UserError(f"expected recipe.least_crop of at most 1, found {self.least_crop}")


class TrainState(NamedTuple):
    """The state that changes while a teacher is trained.

    Attributes:
      variables: 'params' and 'batch_stats'.
      opt_state: state of the optimizer.
    """

    variables: Variables
    opt_state: Any


class Position(NamedTuple):
    """A point between two steps from which training can continue.

    Attributes:
      state: the state after the steps done.
      steps: number of steps done, over all epochs.
      losses: losses of the steps done in an unfinished epoch; [] between two epochs.
    """

    state: TrainState
    steps: int
    losses: list[float]


class Keeping(NamedTuple):
    """The hooks that let training stop and continue with the same result.

    Attributes:
      restore: `restore(state) -> Position | None`, the point to continue from; `state` shows the structure.
      save: `save(position)`, called after every report, and when training stops early.
      stop: whether to stop, checked before every step.
    """

    restore: Callable[[TrainState], Position | None]
    save: Callable[[Position], None]
    stop: signals.Stop


def steps_per_epoch(recipe: Recipe, count: int) -> int:
    """Returns the number of whole batches in `count` images.

    Raises:
      UserError: there is none.
    """
    if count < recipe.batch_size:
        raise UserError(
            f"expected at least a batch of {recipe.batch_size} training images, found {count}: lower recipe.batch_size"
        )
    return count // recipe.batch_size


def make_optimizer(recipe: Recipe, num_steps: int) -> optax.GradientTransformation:
    """Returns SGD with momentum and coupled weight decay, or AdamW, with the recipe's learning rates.

    Args:
      recipe: learning rates, momentum and milestones in epochs.
      num_steps: steps per epoch.
    """
    schedule = _rates(recipe, num_steps)
    if recipe.optimizer == "adamw":
        return optax.adamw(schedule, weight_decay=recipe.weight_decay)
    return optax.chain(
        optax.add_decayed_weights(recipe.weight_decay),
        optax.sgd(schedule, momentum=recipe.momentum or None),
    )


def _rates(recipe: Recipe, num_steps: int) -> optax.Schedule:
    """Returns the learning rate of each step: it rises linearly, then falls at the milestones or along a cosine."""
    rising = recipe.rate_warmup_epochs * num_steps
    if recipe.schedule == "milestones":
        drops = {epoch * num_steps - rising: recipe.lr_decay for epoch in recipe.lr_milestones}
        falling = optax.piecewise_constant_schedule(recipe.lr, drops)
    else:
        falling = optax.cosine_decay_schedule(recipe.lr, recipe.epochs * num_steps - rising)
    if not rising:
        return falling
    return optax.join_schedules([optax.linear_schedule(0, recipe.lr, rising), falling], [rising])


def train_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    recipe: Recipe,
    state: TrainState,
    images: Array,
    labels: Array,
    key: Array,
) -> tuple[TrainState, Array]:
    """Does one step of cross-entropy training on an augmented batch.

    Args:
      network, optimizer, recipe: bound before compilation.
      state: state of training.
      images: u8[B, H, W, C].
      labels: i32[B], or maps int[B, H, W]; the loss ignores pixels outside the classes.
      key: random key of this step's augmentation and dropout.

    Returns:
      The new state and the batch's mean cross-entropy in nats.
    """
    spec = network.spec
    square_key, dropout_key = (jax.random.fold_in(key, number) for number in (2, 3))
    views, shown = augment.random_squares(square_key, images.astype(jnp.float32) / 255, labels, recipe.square)
    view = augment.draw_view(key, views.shape, augment.ViewOptions(recipe.padding, recipe.flip, recipe.least_crop))
    inputs = augment.normalize(augment.apply_view(views, view), spec.mean, spec.std)
    shown = augment.apply_view_to_labels(shown, view) if shown.ndim == 3 else shown

    def loss_of(params):
        outputs = network.apply({**state.variables, "params": params}, inputs, train=True, key=dropout_key)
        return losses.known_cross_entropies(outputs.logits, shown).mean(), outputs.batch_stats

    params = state.variables["params"]
    (loss, batch_stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, params)
    variables = {"params": optax.apply_updates(params, updates), "batch_stats": batch_stats}
    return TrainState(variables, opt_state), loss


def train_teacher(
    network: Network,
    recipe: Recipe,
    dataset: Dataset,
    report: Callable[[int, float, Variables], None],
    keeping: Keeping | None = None,
) -> Variables | None:
    """Trains a network on labelled images.

    Args:
      network: the network, to be initialised from the recipe's seed.
      recipe: hyper-parameters.
      dataset: training images.
      report: called as `report(epoch, mean training loss, variables)` every `eval_every` epochs and after the
        last one.
      keeping: how to stop and continue; None to train from the first step to the last.

    Returns:
      The variables after the last epoch; None if training was stopped before.

    Raises:
      UserError: the data set is smaller than a batch, or the loss is no longer finite.
    """
    steps = steps_per_epoch(recipe, len(dataset.labels))
    init_key, order_key, augment_key = jax.random.split(jax.random.key(recipe.seed), 3)
    optimizer = make_optimizer(recipe, steps)
    variables = network.init(init_key)
    state = TrainState(variables, optimizer.init(variables["params"]))
    state, done, losses_so_far = (keeping and keeping.restore(state)) or Position(state, 0, [])

    @jax.jit
    def step(state, images, labels, index):
        key = jax.random.fold_in(augment_key, index)
        return train_step(network, optimizer, recipe, state, images, labels, key)

    for epoch in range(done // steps, recipe.epochs):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(order_key, epoch), len(dataset.labels)))
        history: list[Any] = [np.float32(loss) for loss in losses_so_far]
        for rows in order[: steps * recipe.batch_size].reshape(steps, -1)[len(history) :]:
            if keeping is not None and keeping.stop.requested:
                keeping.save(Position(state, done, [float(loss) for loss in jax.device_get(history)]))
                return None
            state, loss = step(state, dataset.images[rows], dataset.labels[rows], done)
            history.append(loss)
            done += 1
            jax.block_until_ready(history[-_STEPS_AHEAD:][0])
        losses_so_far = []
        mean_loss = float(np.mean(jax.device_get(history)))
        if not math.isfinite(mean_loss):
            raise UserError(f"the training loss became {mean_loss} in epoch {epoch + 1}: lower recipe.lr")
        if (epoch + 1) % recipe.eval_every == 0 or epoch + 1 == recipe.epochs:
            report(epoch + 1, mean_loss, state.variables)
            if keeping is not None:
                keeping.save(Position(state, done, []))
    return state.variables
