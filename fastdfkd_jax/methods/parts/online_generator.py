"""The common part of the generative methods: one generator for the whole run, trained against the student.

A round is one or more generator steps, followed by the student's steps on its images, which are then dropped.
The networks take the images directly, without augmentation (METHOD 1.7). The adversarial terms use the real
student; one released code uses the teacher itself, and the terms vanish (METHOD T8).

`student_mode` sets the BatchNorm statistics of the student in the generator's step (METHOD section 8). In official
DFAD and ZSKT the student is in training mode: it uses the batch's statistics and updates its running ones. Here it also
uses the batch's statistics, but updates the running ones only in its own steps, because `Method.synthesize` does not
return the student. There are five or ten student steps for each generator step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.distillation.distill import Objective
from fastdfkd_jax.methods.base import ONCE, Batch, Info, Method, Setting, moment_gaps
from fastdfkd_jax.models import Outputs
from fastdfkd_jax.models.generators.by_kind import ALL_GENERATORS, Generator, build_generator
from fastdfkd_jax.options import Options, option

Array = jax.Array
Tree = Any

# The generators whose latents are vectors.
GENERATORS = tuple(kind for kind in ALL_GENERATORS if kind != "spatial")
STUDENT_IMAGES = ("step", "repeated", "fresh")
STUDENT_MODES = ("train", "eval")


@dataclass(frozen=True, kw_only=True)
class OnlineGeneratorOptions(Options):
    """Options of every method that trains one generator during the whole run."""

    generator: str = option(MISSING, "architecture of the generator (models/generators/by_kind.py)", choices=GENERATORS)
    latent_dim: int = option(MISSING, "dimension of the latents z", at_least=1)
    width: int = option(64, "channels of the generator's last hidden layer", at_least=1)
    lr: float = option(1e-3, "learning rate of the generator's Adam", above=0)
    b1: float = option(0.9, "first decay rate of the generator's Adam; the second is 0.999", within="[0, 1)")
    cosine: bool = option(
        False, "anneal the generator's learning rate to 0 along a cosine over all steps of the run, warm-up included"
    )
    milestones: tuple[int, ...] = option(
        (), "calls, counted from the first, after which the generator's learning rate is multiplied by lr_decay"
    )
    lr_decay: float = option(0.1, "factor on the generator's learning rate at each milestone", above=0)
    clip_norm: float = option(0.0, "largest norm of the generator's gradient; 0 disables clipping", at_least=0)
    generator_steps: int = option(
        1, "Adam steps of the generator per round, each on new latents, before the student's steps", at_least=1
    )
    student_steps: int = option(1, "student steps per round", at_least=1)
    student_images: str = option(
        "fresh",
        "images the student trains on: 'step', those of the generator's last step, rendered before its update; "
        "'repeated', the same latents rendered again after it; 'fresh', a new batch for every student step",
        choices=STUDENT_IMAGES,
    )
    student_mode: str = option(
        "eval",
        "mode of the student in the generator's step: 'train' uses batch statistics and dropout, 'eval' running "
        "statistics and no dropout",
        choices=STUDENT_MODES,
    )
    ema_decay: float = option(
        0.0,
        "decay of a running average of the generator's weights, which then renders half of the student's images "
        "(Momentum Adversarial Distillation, Do et al., NeurIPS 2022); 0 for none",
        within="[0, 1)",
    )

    def __post_init__(self):
        super().__post_init__()
        self.require("milestones", min(self.milestones, default=1) >= 1, "numbers of calls, at least 1")


class State(NamedTuple):
    """The state carried from round to round.

    Attributes:
      generator: the generator's parameters.
      opt_state: state of its optimizer.
      averaged: the average of its parameters; () without averaging.
      round: i32[], rounds so far.
    """

    generator: Tree
    opt_state: Tree
    averaged: Tree
    round: Array


class Seen(NamedTuple):
    """The inputs of a generator's loss.

    Attributes:
      teacher, student: the networks' outputs on a batch of generated images: the teacher's with moments, the student's
        in the mode that the options set.
      statistics: the teacher's running statistics; an empty tree if it has no BatchNorm.
      warm: bool[], True during the warm-up, in which the student does not learn.
    """

    teacher: Outputs
    student: Outputs
    statistics: Tree
    warm: Array


# `loss(seen) -> (total, terms)`: the generator's loss and its unweighted terms, f32[] each.
Loss = Callable[[Seen], tuple[Array, dict[str, Array]]]


def build(options: OnlineGeneratorOptions, setting: Setting, loss: Loss, objective: Objective | None = None) -> Method:
    """Builds a generative method.

    Args:
      options: static choices.
      setting: the run's setting.
      loss: the generator's loss.
      objective: the student's objective, or None for vanilla KD.
    """
    spec = setting.teacher.spec
    sizes = (spec.image_size, spec.channels, options.latent_dim, options.width)
    generator = build_generator(*sizes, kind=options.generator, forms=setting.forms)
    rounds_per_call = _rounds_per_call(options, setting.steps_per_call)
    bound = _Bound(
        options,
        setting,
        loss,
        generator=generator,
        render=as_network_input(generator, setting),
        optimizer=_optimizer(options, setting),
        warmup_rounds=setting.warmup_calls * rounds_per_call,
    )
    batches = options.student_steps if options.student_images == "fresh" else 1
    return Method(
        bound.init,
        bound.synthesize,
        images_per_call=batches * setting.batch,
        steps_per_round=options.student_steps,
        lifetime=ONCE,
        network_input=True,
        objective=objective,
    )


@dataclass(frozen=True, eq=False)
class _Bound:
    """The method with its static parts.

    Attributes:
      options, setting, loss: the arguments of `build`.
      generator: the generator network.
      render: renders its images in the networks' input range.
      optimizer: the generator's optimizer.
      warmup_rounds: first rounds, in which the student does not learn.
    """

    options: OnlineGeneratorOptions
    setting: Setting
    loss: Loss
    generator: Generator
    render: Callable[[Tree, Array], Array]
    optimizer: optax.GradientTransformation
    warmup_rounds: int

    def init(self, key: Array, teacher_vars: Tree) -> State:
        params = self.generator.init(key)
        averaged = params if self.options.ema_decay else ()
        return State(params, self.optimizer.init(params), averaged, jnp.zeros((), jnp.int32))

    def synthesize(self, state: State, teacher_vars: Tree, student_vars: Tree, key: Array):
        """Runs one round, with the arguments of `Method.synthesize`; Info describes the last generator step."""
        options = self.options
        *step_keys, sample_key, dropout_key = jax.random.split(key, options.generator_steps + 2)

        def step(state: State, latents: Array):
            return self._step(state, latents, teacher_vars, student_vars, dropout_key)

        if options.generator_steps > 1:
            earlier = jnp.stack(step_keys[:-1])
            state, _ = jax.lax.scan(
                lambda state, step_key: (step(state, self._draw(step_key))[0], None), state, earlier
            )
        latents = self._draw(step_keys[-1])
        state, (images, terms, info) = step(state, latents)
        state = state._replace(round=state.round + 1)

        if options.student_images == "fresh":
            keys = jax.random.split(sample_key, options.student_steps)
            images = jax.lax.map(lambda batch_key: self._student_batch(state, self._draw(batch_key)), keys)
        else:
            given = images if options.student_images == "step" else None
            images = self._student_batch(state, latents, given)[None]
        labels = jnp.full(images.shape[:2], -1, jnp.int32)  # no target class
        return state, Batch(images, labels), info._replace(losses=terms)

    def _step(self, state: State, latents: Array, teacher_vars: Tree, student_vars: Tree, dropout_key: Array):
        """Takes one Adam step; returns also the images before it, the loss's terms and the health signals."""
        setting, options = self.setting, self.options
        mode: dict[str, Any] = {"train": True, "key": dropout_key} if options.student_mode == "train" else {}

        def generator_loss(params: Tree, latents: Array):
            images = setting.split(self.render(params, latents))
            taught = setting.teacher.apply(teacher_vars, images, moments=True)
            learned = setting.student.apply(student_vars, images, **mode)
            warm = state.round < self.warmup_rounds
            total, terms = self.loss(Seen(taught, learned, teacher_vars["batch_stats"], warm))
            return total, (images, terms, health(taught, learned, teacher_vars, setting.teacher.spec.num_classes))

        gradient, seen = jax.grad(generator_loss, has_aux=True)(state.generator, latents)
        updates, opt_state = self.optimizer.update(gradient, state.opt_state, state.generator)
        params: Tree = optax.apply_updates(state.generator, updates)
        averaged = state.averaged
        if options.ema_decay:
            averaged = optax.incremental_update(params, averaged, 1 - options.ema_decay)
        return State(params, opt_state, averaged, state.round), seen

    def _draw(self, key: Array) -> Array:
        return self.setting.split(jax.random.normal(key, (self.setting.batch, *self.generator.latent_shape)))

    def _student_batch(self, state: State, latents: Array, images: Array | None = None) -> Array:
        """Returns images for the student, given or new; with an averaged generator, it makes half of them."""
        remembered = self.setting.batch // 2 if self.options.ema_decay else 0
        images = self.render(state.generator, latents[remembered:]) if images is None else images[remembered:]
        if remembered:
            images = jnp.concatenate([self.render(state.averaged, latents[:remembered]), images])
        return self.setting.split(images)


def as_network_input(generator: Generator, setting: Setting) -> Callable[[Tree, Array], Array]:
    """Returns `render(params, latents) -> images` in the networks' input range, for any generator head."""
    if generator.network_input:
        return generator.apply
    spec = setting.teacher.spec
    return lambda params, latents: augment.normalize(generator.apply(params, latents), spec.mean, spec.std)


def health(taught: Outputs, learned: Outputs, teacher_vars: Tree, num_classes: int) -> Info:
    """Returns a batch's signals without its losses; the teacher's outputs must include moments."""
    predicted = taught.logits.argmax(-1)
    return Info(
        losses={},
        agreement=(predicted == learned.logits.argmax(-1)).mean(),
        predicted=jnp.bincount(predicted.reshape(-1), length=num_classes),
        **moment_gaps(taught.moments, teacher_vars),
    )


def generator_rate(options: OnlineGeneratorOptions, calls: int, steps_per_call: int) -> optax.Schedule:
    """Returns the generator's learning rate as a function of its own steps, counted from 0.

    Args:
      options: static choices.
      calls: synthesis calls in the whole run, including the warm-up.
      steps_per_call: student steps per call.
    """
    steps = _rounds_per_call(options, steps_per_call) * options.generator_steps  # generator steps per call
    factor = optax.cosine_decay_schedule(1.0, calls * steps) if options.cosine else optax.constant_schedule(1.0)
    drops = {call * steps: options.lr_decay for call in options.milestones}
    level = optax.piecewise_constant_schedule(options.lr, drops)
    return lambda count: factor(count) * level(count)


def _rounds_per_call(options: OnlineGeneratorOptions, steps_per_call: int) -> int:
    return max(1, steps_per_call // options.student_steps)


def _optimizer(options: OnlineGeneratorOptions, setting: Setting) -> optax.GradientTransformation:
    adam = optax.adam(generator_rate(options, setting.calls, setting.steps_per_call), options.b1, 0.999)
    return optax.chain(optax.clip_by_global_norm(options.clip_norm), adam) if options.clip_norm else adam
