"""Generative DFD (Luo et al., 2020): trains a sequence of generators, each for one or more classes (METHOD 6).

Each generator is trained so that its images get the target class and match the teacher's BatchNorm statistics. It then
makes its images for D', and the next generator replaces it. The state holds only one generator, so memory does not
grow. Training is split into calls, so that a killed run repeats little of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fastdfkd_jax import losses
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.errors import require
from fastdfkd_jax.methods.base import Batch, Info, Method, Setting, class_advice, on_target
from fastdfkd_jax.methods.parts.online_generator import health
from fastdfkd_jax.models import Outputs, count_batch_norms
from fastdfkd_jax.models.generators.by_kind import Generator, build_generator
from fastdfkd_jax.models.generators.vector import ARCHITECTURES
from fastdfkd_jax.options import Options, option

Array = jax.Array
Tree = Any


@dataclass(frozen=True)
class GenerativeDFDOptions(Options, section="generative_dfd"):
    """Options of Generative DFD (METHOD section 6); the recipe is ours, as none was released.

    Calls beyond one pass over the classes start another pass with new generators.
    """

    generator: str = option(
        "generative_dfd",
        "architecture of the generators, a key of models/generators/vector.py",
        choices=tuple(ARCHITECTURES),
    )
    latent_dim: int = option(256, "dimension of the latents z, which the one-hot class is appended to", at_least=1)
    width: int = option(64, "channels of the generator's last hidden layer", at_least=1)
    lr: float = option(1e-3, "learning rate of the generator's Adam", above=0)
    b1: float = option(0.5, "first decay rate of the generator's Adam; the second is 0.999", within="[0, 1)")
    classes_per_generator: int = option(
        1, "number of classes per generator; 0 for one generator of all classes", at_least=0
    )
    calls_per_generator: int = option(
        4,
        "synthesis calls that train each generator, whose images are kept after the last of them; calls must be "
        "at least this times classes / classes_per_generator",
        at_least=1,
    )
    steps_per_call: int = option(500, "Adam steps of the generator per synthesis call", at_least=1)
    batches_kept: int = option(20, "batches of synthesis_batch images kept from each generator", at_least=1)
    class_weight: float = option(1.0, "weight of the cross-entropy with the requested classes", at_least=0)
    statistics_weight: float = option(
        0.1,
        "weight of the plain feature loss (Eq. 13); the BatchNorm statistics cover all classes, so a large weight "
        "makes images of one class resemble all of them",
        at_least=0,
    )
    balance_weight: float = option(
        0.0,
        "weight of the negative entropy of the mean prediction, in nats, for diversity within a group of classes",
        at_least=0,
    )


class State(NamedTuple):
    """The state carried from call to call.

    Attributes:
      generator: parameters of the current generator.
      opt_state: state of its optimizer.
      call: i32[], synthesis calls so far.
    """

    generator: Tree
    opt_state: Tree
    call: Array


def build(options: GenerativeDFDOptions, setting: Setting) -> Method:
    """Binds options and networks.

    Raises:
      UserError: the run has too few calls for one pass over the classes, or the student would start before there are
        images.
    """
    spec = setting.teacher.spec
    size = min(options.classes_per_generator or spec.num_classes, spec.num_classes)
    groups = -(-spec.num_classes // size)
    period = options.calls_per_generator
    expected = f"at least {groups} generators x generative_dfd.calls_per_generator={period}"
    require(setting.calls >= groups * period, "calls", expected, setting.calls)
    expected = f"at least generative_dfd.calls_per_generator - 1 = {period - 1}: there are no images before"
    require(setting.warmup_calls >= period - 1, "warmup_calls", expected, setting.warmup_calls)
    sizes = (spec.image_size, spec.channels, options.latent_dim + size, options.width)
    bound = _Bound(
        options,
        setting,
        generator=build_generator(*sizes, kind=options.generator, forms=setting.forms),
        optimizer=optax.adam(options.lr, options.b1, 0.999),
        size=size,
        groups=groups,
    )
    advice = class_advice(
        ("generative_dfd.class_weight", options.class_weight),
        ("generative_dfd.statistics_weight", options.statistics_weight),
    )
    return Method(
        bound.init, bound.synthesize, images_per_call=options.batches_kept * setting.batch, class_advice=advice
    )


@dataclass(frozen=True, eq=False)
class _Bound:
    """The method with its static parts.

    Attributes:
      options, setting: static choices, and the run's setting.
      generator: the network that is trained anew for each group.
      optimizer: the optimizer of each generator.
      size: classes in a group.
      groups: number of groups; the last may be smaller.
    """

    options: GenerativeDFDOptions
    setting: Setting
    generator: Generator
    optimizer: optax.GradientTransformation
    size: int
    groups: int

    def init(self, key: Array, teacher_vars: Tree) -> State:
        params = self.generator.init(key)
        return State(params, self.optimizer.init(params), jnp.zeros((), jnp.int32))

    def synthesize(self, state: State, teacher_vars: Tree, student_vars: Tree, key: Array):
        """Runs one call; the arguments are those of `Method.synthesize`."""
        options, spec = self.options, self.setting.teacher.spec
        fresh_key, train_key, image_key = jax.random.split(key, 3)
        group = state.call // options.calls_per_generator % self.groups
        start = self._start(fresh_key, state)

        def step(carry: tuple[Tree, Tree], step_key: Array):
            params, opt_state = carry
            gradient, terms = jax.grad(self._loss, has_aux=True)(params, teacher_vars, *self._draw(step_key, group))
            updates, opt_state = self.optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), terms

        (params, opt_state), terms = jax.lax.scan(step, start, jax.random.split(train_key, options.steps_per_call))

        def make(batch_key: Array) -> tuple[Array, Array]:
            latents, labels = self._draw(batch_key, group)
            return self._render(params, latents), labels

        images, labels = jax.lax.map(make, jax.random.split(image_key, options.batches_kept))
        info = self._signals(images[0], labels[0], teacher_vars, student_vars)
        info = info._replace(losses={name: values[-1] for name, values in terms.items()})
        kept = (state.call + 1) % options.calls_per_generator == 0
        rows = images.reshape(-1, *spec.input_shape), labels.reshape(-1)
        return State(params, opt_state, state.call + 1), Batch(*rows, kept, {"generator": params}), info

    def _start(self, key: Array, state: State) -> tuple[Tree, Tree]:
        """Returns parameters and optimizer state of the current generator, a new one if a group begins."""
        fresh = self.generator.init(key)
        begins = state.call % self.options.calls_per_generator == 0
        return jax.tree.map(
            lambda new, old: jnp.where(begins, new, old),
            (fresh, self.optimizer.init(fresh)),
            (state.generator, state.opt_state),
        )

    def _draw(self, key: Array, group: Array) -> tuple[Array, Array]:
        """Draws a batch of latents with one-hot classes, and the classes i32[N]; the last group may be smaller."""
        batch, first = self.setting.batch, group * self.size
        latent_key, class_key = jax.random.split(key)
        present = jnp.minimum(self.size, self.setting.teacher.spec.num_classes - first)
        member = jax.random.randint(class_key, (batch,), 0, present)
        latents = jax.random.normal(latent_key, (batch, self.options.latent_dim))
        return self.setting.split(
            jnp.concatenate([latents, jax.nn.one_hot(member, self.size)], axis=-1)
        ), first + member

    def _render(self, params: Tree, latents: Array) -> Array:
        """Renders images in [0, 1], clipped as they are stored, so that the loss sees the stored images."""
        spec = self.setting.teacher.spec
        images = self.setting.split(self.generator.apply(params, latents))
        if not self.generator.network_input:
            return images
        return jnp.clip(augment.denormalize(images, spec.mean, spec.std), 0, 1)

    def _look(self, teacher_vars: Tree, images: Array) -> Outputs:
        teacher = self.setting.teacher
        return teacher.apply(teacher_vars, augment.normalize(images, teacher.spec.mean, teacher.spec.std), moments=True)

    def _loss(self, params: Tree, teacher_vars: Tree, latents: Array, labels: Array):
        options, seen = self.options, self._look(teacher_vars, self._render(params, latents))
        terms = {
            "class": losses.cross_entropy(seen.logits, labels),
            "balance": -losses.entropy_of_mean(seen.logits),
        }
        if count_batch_norms(teacher_vars):
            terms["statistics"] = losses.feature(seen.moments, teacher_vars["batch_stats"])
        total = (
            options.class_weight * terms["class"]
            + options.statistics_weight * terms.get("statistics", 0.0)
            + options.balance_weight * terms["balance"]
        )
        return total, terms

    def _signals(self, images: Array, labels: Array, teacher_vars: Tree, student_vars: Tree) -> Info:
        spec, student = self.setting.teacher.spec, self.setting.student
        taught = self._look(teacher_vars, images)
        learned = student.apply(student_vars, augment.normalize(images, spec.mean, spec.std))
        found = health(taught, learned, teacher_vars, spec.num_classes)
        if self.groups > 1:
            found = found._replace(predicted=None)  # one group's images do not measure class balance
        return found._replace(on_target=on_target(taught.logits.argmax(-1), labels, spec))
