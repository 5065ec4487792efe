"""NAYER (Tran et al., CVPR 2024): noisy layers between embeddings of the classes and a generator (METHOD 6).

The embedding of a class is constant. What varies is a linear layer, which is redrawn in every call and maps the
embedding to the generator's latent. Generator and layers are trained together for a few steps of Adam, without
meta-learning. The generator persists across calls and is drawn anew after a number of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fastdfkd_jax import losses, meta, moments
from fastdfkd_jax.errors import UserError, require
from fastdfkd_jax.methods.base import (
    LABEL_NAMES,
    TEACHER_ONLY,
    Batch,
    Info,
    Method,
    Setting,
    moment_gaps,
    on_target,
)
from fastdfkd_jax.methods.parts.inversion_loss import Frozen, InversionOptions, Observed, make_inversion_loss
from fastdfkd_jax.models import last_linear
from fastdfkd_jax.models.generators.by_kind import Generator, GeneratorOptions, build_generator
from fastdfkd_jax.options import Options, option

Array = jax.Array
Tree = Any

_EPSILON = 1e-5  # of PyTorch's BatchNorm1d


@dataclass(frozen=True)
class NAYEROptions(Options, section="nayer"):
    """Options of NAYER, beside those of the generator and of the inversion loss (METHOD section 6)."""

    embeddings: str = option(
        "",
        "file of label embeddings, [classes, dimension] as .npy or as the only array of an .npz, for example of a text "
        "encoder; the run then knows the classes' names. '' for the rows of the teacher's last linear layer",
    )
    num_steps: int = option(30, "Adam steps per synthesis call (METHOD section 6: 30, for CIFAR-100 40)", at_least=1)
    lr: float = option(4e-3, "learning rate of Adam, for generator and noisy layers (METHOD section 6)", above=0)
    b1: float = option(0.5, "first decay rate of Adam; the second is 0.999", within="[0, 1)")
    generator_life: int = option(
        20,
        "synthesis calls after which the generator is drawn anew, 10 epochs of 2 batches (METHOD section 6); 0 for "
        "never",
        at_least=0,
    )
    generator: GeneratorOptions = field(default_factory=GeneratorOptions)
    inversion: InversionOptions = field(default_factory=InversionOptions)


class NAYERState(NamedTuple):
    """The state carried from call to call.

    Attributes:
      generator: its parameters.
      embeddings: f32[classes, D], one for each class, constant.
      accumulators: the running moments of Eq. 14.
      call: i32[], synthesis calls so far.
    """

    generator: Tree
    embeddings: Array
    accumulators: moments.Accumulators
    call: Array


def build(options: NAYEROptions, setting: Setting) -> Method:
    """Binds networks, options and the optimizer.

    Raises:
      UserError: the teacher's last linear layer is not found and there are no other embeddings; the generator takes no
        vectors or does not support the teacher's image size; or the loss has a class term and the teacher outputs maps.
    """
    spec, given = setting.teacher.spec, setting.label_embeddings
    sizes = (spec.image_size, spec.channels, options.generator.latent_dim, options.generator.width)
    generator = build_generator(*sizes, kind=options.generator.kind, forms=setting.forms)
    is_vector = len(generator.latent_shape) == 1
    require(is_vector, "generator.kind", "'linear' or 'large' for the method nayer", options.generator.kind)
    bound = _Bound(
        options,
        setting,
        _embeddings(options, setting),
        generator,
        optimizer=optax.adam(options.lr, options.b1, 0.999),
        loss=make_inversion_loss(setting.teacher, setting.student, options.inversion),
    )
    return Method(
        bound.init,
        bound.synthesize,
        images_per_call=setting.batch,
        knows=TEACHER_ONLY if given is None else LABEL_NAMES,
        class_advice=options.inversion.class_advice,
    )


def _embeddings(options: NAYEROptions, setting: Setting) -> Callable[[Tree], Array]:
    """Returns `embeddings(teacher_vars) -> f32[classes, D]`; UserError if there are none."""
    given = setting.label_embeddings
    if given is not None:
        return lambda variables: jnp.asarray(given)
    rows, arch = last_linear(setting.teacher), setting.teacher.spec.arch
    if rows is None:
        expected = f"a file of label embeddings for the teacher {arch}, whose last linear layer was not found"
        raise UserError(f"config.nayer.embeddings must be {expected}, found {options.embeddings!r}")
    return rows


@dataclass(frozen=True, eq=False)
class _Bound:
    """The method with its static parts.

    Attributes:
      options, setting: static choices, and the run's setting.
      embeddings: `embeddings(teacher_vars) -> f32[classes, D]`.
      generator: the generator of images.
      optimizer: optimizer of the parameters {'generator', 'noisy'} within a call, fresh at every call.
      loss: the inversion loss.
    """

    options: NAYEROptions
    setting: Setting
    embeddings: Callable[[Tree], Array]
    generator: Generator
    optimizer: optax.GradientTransformation
    loss: Callable[..., tuple[Array, Observed]]

    def init(self, key: Array, teacher_vars: Tree) -> NAYERState:
        accumulators = moments.init(teacher_vars["batch_stats"])
        embeddings = self.embeddings(teacher_vars)
        return NAYERState(self.generator.init(key), embeddings, accumulators, jnp.zeros((), jnp.int32))

    def synthesize(self, state: NAYERState, teacher_vars: Tree, student_vars: Tree, key: Array):
        """Runs one call; the arguments are those of `Method.synthesize`."""
        options, setting = self.options, self.setting
        fresh_key, noise_key, order_key, view_key = jax.random.split(key, 4)
        order = jax.random.permutation(order_key, setting.teacher.spec.num_classes)
        labels = labels_of(order, setting.batch)
        start = {"generator": self._generator(fresh_key, state), "noisy": self._draw(noise_key, state.embeddings)}
        # Starts one call before the first with KD, as in FastDFKD (METHOD 1.1).
        adversarial_on = jnp.where(state.call + 1 >= max(1, setting.warmup_calls), 1.0, 0.0)
        frozen = Frozen(teacher_vars, student_vars, state.accumulators, adversarial_on)

        def loss_fn(params: Tree, view: Array):
            latents = setting.split(latents_of(params["noisy"], state.embeddings[order])[: setting.batch])
            images = setting.split(self.generator.apply(params["generator"], latents))
            total, observed = self.loss(images, labels, view, frozen)
            return total, (images, observed)

        adapted = meta.adapt(
            loss_fn,
            start,
            self.optimizer,
            jax.random.split(view_key, options.num_steps),
            watch=lambda aux: losses.feature(aux[1].moments, teacher_vars["batch_stats"]),
        )
        (images, _), (_, seen) = adapted.best, adapted.last
        accumulators = moments.update(state.accumulators, seen.moments, options.inversion.accumulator_weight)
        state = NAYERState(adapted.params["generator"], state.embeddings, accumulators, state.call + 1)
        return state, Batch(images, labels), self._info(adapted, labels, teacher_vars)

    def _generator(self, key: Array, state: NAYERState) -> Tree:
        """Returns the generator that a call starts with: the last call's, or a new one if that has reached its life."""
        life = self.options.generator_life
        if not life:
            return state.generator
        ends = (state.call > 0) & (state.call % life == 0)
        return jax.tree.map(lambda new, old: jnp.where(ends, new, old), self.generator.init(key), state.generator)

    def _draw(self, key: Array, embeddings: Array) -> Tree:
        """Draws as many noisy layers as give each image of a class another latent, and the BatchNorm before them."""
        count = -(-self.setting.batch // len(embeddings))
        return noisy_layers(key, count, embeddings.shape[1], *self.generator.latent_shape)

    def _info(self, adapted: meta.Adapted, labels: Array, teacher_vars: Tree) -> Info:
        spec, (_, seen) = self.setting.teacher.spec, adapted.last
        return Info(
            losses={**seen.terms, "first": adapted.losses[0], "last": adapted.losses[-1]},
            agreement=seen.agreement,
            predicted=jnp.bincount(seen.predicted, length=spec.num_classes),
            on_target=on_target(seen.predicted, labels, spec),
            **moment_gaps(seen.moments, teacher_vars, adapted.watched),
        )


def labels_of(order: Array, batch: int) -> Array:
    """Returns the classes of a batch, i32[batch]: `order`, a permutation of the classes, repeated and cut off."""
    return jnp.resize(order, (batch,))


def noisy_layers(key: Array, count: int, embedding_dim: int, latent_dim: int) -> Tree:
    """Draws `count` linear layers from N(0, 1), and the BatchNorm that they share, with scale 1 and bias 0."""
    kernel_key, bias_key = jax.random.split(key)
    return {
        "norm": {"scale": jnp.ones(embedding_dim), "bias": jnp.zeros(embedding_dim)},
        "kernel": jax.random.normal(kernel_key, (count, embedding_dim, latent_dim)),
        "bias": jax.random.normal(bias_key, (count, latent_dim)),
    }


def latents_of(noisy: Tree, embeddings: Array) -> Array:
    """Maps embeddings of all classes f32[C, D] to latents f32[layers · C, L], those of the first layer first.

    The BatchNorm takes its statistics over the classes.
    """
    standard = (embeddings - embeddings.mean(0)) / jnp.sqrt(embeddings.var(0) + _EPSILON)
    standard = standard * noisy["norm"]["scale"] + noisy["norm"]["bias"]
    latents = jnp.einsum("cd,ndl->ncl", standard, noisy["kernel"]) + noisy["bias"][:, None]
    return latents.reshape(-1, latents.shape[-1])
