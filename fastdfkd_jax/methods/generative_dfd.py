"""Generative DFD (Luo et al., 2020): one generator after another, for a class or a group of classes each (METHOD 6).

Each is trained to be classified as asked and to match the teacher's BatchNorm statistics, then makes its images for D'
and makes way for the next. It lives in the state, so the memory is that of one generator, and its training is cut into
calls, so that a run that is killed repeats little of it.
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
from fastdfkd_jax.methods.base import Batch, Method, Setting, class_advice, on_target
from fastdfkd_jax.methods.parts.online_generator import health
from fastdfkd_jax.models import count_batch_norms
from fastdfkd_jax.models.generators.by_kind import build_generator
from fastdfkd_jax.models.generators.vector import ARCHITECTURES

Array = jax.Array
Tree = Any


@dataclass(frozen=True)
class Options:
    """Static choices. Calls beyond one pass over the classes begin another, with new generators.

    Attributes:
      generator: architecture, a key of `ARCHITECTURES`.
      latent_dim: length of z; the one-hot class follows it.
      width: channels of the generator's last hidden layer.
      lr: Adam's rate.
      b1: Adam's first decay; the second is 0.999.
      classes_per_generator: size of a group of classes; 0 for one generator of all.
      calls_per_generator: synthesis calls that a generator is trained in; after the last one its images are kept.
      steps_per_call: its Adam steps in each of them.
      batches_kept: batches of images that a generator leaves behind.
      class_weight: of the cross-entropy with the classes asked for.
      statistics_weight: of the plain feature loss (Eq. 13). The statistics are those of all classes, so that a large
        weight turns the images of one class into images of all.
      balance_weight: of the negative entropy of the mean prediction, in nats: diversity, within a group only.
    """

    generator: str = "generative_dfd"
    latent_dim: int = 256
    width: int = 64
    lr: float = 1e-3
    b1: float = 0.5
    classes_per_generator: int = 1
    calls_per_generator: int = 4
    steps_per_call: int = 500
    batches_kept: int = 20
    class_weight: float = 1.0
    statistics_weight: float = 0.1
    balance_weight: float = 0.0

    def __post_init__(self):
        self.require("generator", self.generator in ARCHITECTURES, f"one of {', '.join(ARCHITECTURES)}")
        for name in ("latent_dim", "width", "calls_per_generator", "steps_per_call", "batches_kept"):
            self.require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("classes_per_generator", "class_weight", "statistics_weight", "balance_weight"):
            self.require(name, getattr(self, name) >= 0, "at least 0")
        self.require("lr", self.lr > 0, "more than 0")
        self.require("b1", 0 <= self.b1 < 1, "in [0, 1)")

    def require(self, name: str, condition: bool, expected: str) -> None:
        """UserError where the option of this name cannot work."""
        require(condition, f"generative_dfd.{name}", expected, getattr(self, name))


class State(NamedTuple):
    """What is carried from call to call.

    Attributes:
      generator: parameters of the one in training.
      opt_state: of its optimizer.
      call: i32[], synthesis calls so far.
    """

    generator: Tree
    opt_state: Tree
    call: Array


def build(options: Options, setting: Setting) -> Method:
    """Binds options and networks.

    Raises:
      UserError: the run has too few calls for one pass over the classes, or the student would learn before there are
        images.
    """
    spec, teacher = setting.teacher.spec, setting.teacher
    size = min(options.classes_per_generator or spec.num_classes, spec.num_classes)
    groups = -(-spec.num_classes // size)
    period = options.calls_per_generator
    expected = f"at least {groups} generators x generative_dfd.calls_per_generator={period}"
    require(setting.calls >= groups * period, "calls", expected, setting.calls)
    expected = f"at least generative_dfd.calls_per_generator - 1 = {period - 1}: there are no images before"
    require(setting.warmup_calls >= period - 1, "warmup_calls", expected, setting.warmup_calls)
    sizes = (spec.image_size, spec.channels, options.latent_dim + size, options.width)
    generator = build_generator(*sizes, kind=options.generator, forms=setting.forms)
    optimizer = optax.adam(options.lr, options.b1, 0.999)

    def init(key: Array, teacher_vars: Tree) -> State:
        params = generator.init(key)
        return State(params, optimizer.init(params), jnp.zeros((), jnp.int32))

    def draw(key: Array, group: Array) -> tuple[Array, Array]:
        """A batch of latents with their one-hot classes, and the classes, i32[N]; the last group may be smaller."""
        latent_key, class_key = jax.random.split(key)
        present = jnp.minimum(size, spec.num_classes - group * size)
        member = jax.random.randint(class_key, (setting.batch,), 0, present)
        latents = jax.random.normal(latent_key, (setting.batch, options.latent_dim))
        return setting.split(jnp.concatenate([latents, jax.nn.one_hot(member, size)], axis=-1)), group * size + member

    def render(params: Tree, latents: Array) -> Array:
        """Images in [0, 1], as they are stored: what lies outside is clipped here, and not behind the loss's back."""
        images = setting.split(generator.apply(params, latents))
        return jnp.clip(augment.denormalize(images, spec.mean, spec.std), 0, 1) if generator.network_input else images

    def look(teacher_vars: Tree, images: Array):
        return teacher.apply(teacher_vars, augment.normalize(images, spec.mean, spec.std), moments=True)

    def loss(params: Tree, teacher_vars: Tree, latents: Array, labels: Array):
        seen = look(teacher_vars, render(params, latents))
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

    def synthesize(state: State, teacher_vars: Tree, student_vars: Tree, key: Array):
        """One call; the names are those of `Method.synthesize`."""
        fresh_key, train_key, image_key = jax.random.split(key, 3)
        group = state.call // period % groups
        fresh = generator.init(fresh_key)
        begins = state.call % period == 0
        start = jax.tree.map(
            lambda new, old: jnp.where(begins, new, old),
            (fresh, optimizer.init(fresh)),
            (state.generator, state.opt_state),
        )

        def step(carry: tuple[Tree, Tree], step_key: Array):
            params, opt_state = carry
            gradient, terms = jax.grad(loss, has_aux=True)(params, teacher_vars, *draw(step_key, group))
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), terms

        (params, opt_state), terms = jax.lax.scan(step, start, jax.random.split(train_key, options.steps_per_call))

        def make(batch_key: Array) -> tuple[Array, Array]:
            latents, labels = draw(batch_key, group)
            return render(params, latents), labels

        images, labels = jax.lax.map(make, jax.random.split(image_key, options.batches_kept))
        info = {f"loss/{name}": values[-1] for name, values in terms.items()}
        info |= signals(images[0], labels[0], teacher_vars, student_vars)
        kept = (state.call + 1) % period == 0
        rows = images.reshape(-1, *spec.input_shape), labels.reshape(-1)
        return State(params, opt_state, state.call + 1), Batch(*rows, kept, {"generator": params}), info

    def signals(images: Array, labels: Array, teacher_vars: Tree, student_vars: Tree) -> dict[str, Array]:
        taught = look(teacher_vars, images)
        learned = setting.student.apply(student_vars, augment.normalize(images, spec.mean, spec.std))
        found = health(taught, learned, teacher_vars, spec.num_classes)
        if groups > 1:
            del found["predicted"]  # one group's images are no measure of the balance of classes
        return found | on_target(taught.logits.argmax(-1), labels, spec)

    advice = class_advice(
        ("generative_dfd.class_weight", options.class_weight),
        ("generative_dfd.statistics_weight", options.statistics_weight),
    )
    return Method(init, synthesize, images_per_call=options.batches_kept * setting.batch, class_advice=advice)
