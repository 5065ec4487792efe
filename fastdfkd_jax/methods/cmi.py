"""CMI, contrastive model inversion (Fang et al. 2021): a generator from scratch for every batch, whose images differ.

The inversion loss of every call is joined by a contrast with the images of earlier calls (METHOD 1.5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fastdfkd_jax import losses, moments
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.errors import UserError, require
from fastdfkd_jax.meta import Adapted, adapt
from fastdfkd_jax.methods.base import Batch, Method, Setting, moment_gaps, on_target
from fastdfkd_jax.methods.parts import contrastive
from fastdfkd_jax.methods.parts.inversion_loss import Frozen, InversionOptions, Observed, make_inversion_loss
from fastdfkd_jax.methods.parts.parametrization import Representation
from fastdfkd_jax.models import Network, NetworkSpec, Outputs, has_batch_norms
from fastdfkd_jax.models.layers import global_average_pool

Array = jax.Array
Tree = Any

FEATURES = ("batch_norm", "blocks")


@dataclass(frozen=True)
class CMIOptions:
    """Static choices beside those of the inversion loss; METHOD 1.5.

    Attributes:
      num_steps: steps of a call, on a generator and latents drawn anew.
      learning_rate: of Adam (0.5, 0.999) for both, fresh at every call.
      head_learning_rate: of the head's own Adam, which goes on from call to call.
      contrastive_weight: of the contrastive term; 0 for a call without head and bank.
      temperature: of its logits.
      bank_size: images whose features are remembered.
      negatives: of them drawn at random for each step.
      head_dim: length of the vectors that are compared.
      features: of an image, 'batch_norm', the means of every BatchNorm's input, or 'blocks', those of each stage.
      local_scale: least and largest share of the image that the local view shows.
    """

    num_steps: int = 200
    learning_rate: float = 1e-3
    head_learning_rate: float = 1e-3
    contrastive_weight: float = 0.8
    temperature: float = 0.2
    bank_size: int = 40960
    negatives: int = 4096
    head_dim: int = 256
    features: str = "batch_norm"
    local_scale: tuple[float, float] = (0.25, 1.0)

    def __post_init__(self):
        for key in ("num_steps", "bank_size", "negatives", "head_dim"):
            require(getattr(self, key) >= 1, f"cmi.{key}", "at least 1", getattr(self, key))
        for key in ("learning_rate", "head_learning_rate", "temperature"):
            require(getattr(self, key) > 0, f"cmi.{key}", "more than 0", getattr(self, key))
        require(self.contrastive_weight >= 0, "cmi.contrastive_weight", "at least 0", self.contrastive_weight)
        require(self.features in FEATURES, "cmi.features", f"one of {', '.join(FEATURES)}", self.features)
        low, high = self.local_scale
        require(0 < low <= high <= 1, "cmi.local_scale", "(least, largest) within (0, 1]", self.local_scale)


class CMIState(NamedTuple):
    """What is carried from call to call; the generator is not.

    Attributes:
      head: of the contrast; () without one.
      head_opt_state: of its optimizer.
      bank: features of earlier images, `bank_bytes` of memory; () without a contrast.
    """

    head: Tree
    head_opt_state: Tree
    bank: Tree


def build(options: CMIOptions, inversion: InversionOptions, representation: Representation, setting: Setting) -> Method:
    """Binds networks, options and the generator.

    Raises:
      UserError: the bank holds less than one batch, or the teacher has nothing to contrast images by.
    """
    teacher, student = setting.teacher, setting.student
    key, size = "cmi.bank_size", options.bank_size
    require(size >= setting.batch, key, f"at least synthesis_batch={setting.batch}", size)
    contrasts = options.contrastive_weight > 0
    if contrasts:
        _require_features(teacher, options.features)
    described, describe = describing(teacher, options.features)
    if contrasts:
        inversion_loss = make_inversion_loss(described, student, inversion, describe)
    else:
        inversion_loss = make_inversion_loss(teacher, student, inversion)
    adam = optax.adam(options.learning_rate, 0.5, 0.999)
    head_adam = optax.adam(options.head_learning_rate)
    optimizer = _pair(adam, head_adam)
    generator_shapes = jax.eval_shape(representation.init, jax.random.key(0))

    def init(key: Array, teacher_vars: Tree) -> CMIState:
        if not contrasts:
            return CMIState((), head_adam.init(()), ())
        dim = feature_dim(teacher, options.features)
        head = contrastive.init_head(key, dim, options.head_dim)
        return CMIState(head, head_adam.init(head), contrastive.init_bank(options.bank_size, dim))

    def features_of_local_view(key: Array, images: Array, teacher_vars: Tree) -> Array:
        crop_key, flip_key = jax.random.split(key)
        view = augment.random_resized_crop(crop_key, images, options.local_scale)
        view = augment.random_flip(flip_key, view) if inversion.flip else view
        view = augment.normalize(view, teacher.spec.mean, teacher.spec.std)
        return describe(described.apply(teacher_vars, view))

    def synthesize(state: CMIState, teacher_vars: Tree, student_vars: Tree, key: Array):
        """One call; the names are those of `Method.synthesize`."""
        label_key, latents_key, generator_key, steps_key = jax.random.split(key, 4)
        labels = jax.random.randint(label_key, (setting.batch,), 0, teacher.spec.num_classes)
        # The student's term is on from the first call (METHOD 1.5).
        empty = moments.init(teacher_vars["batch_stats"])
        frozen = Frozen(teacher_vars, student_vars, empty, jnp.ones(()))
        made = {
            "latents": representation.draw(latents_key, setting.batch),
            "generator": representation.reset(generator_key, generator_shapes),
        }

        def loss_fn(params: tuple[Tree, Tree], key: Array):
            made, head = params
            view_key, local_key, others_key = jax.random.split(key, 3)
            images = representation.render(made["generator"], made["latents"])
            total, observed = inversion_loss(images, labels, view_key, frozen)
            if not contrasts:
                return total, (images, (), observed)
            local = features_of_local_view(local_key, images, teacher_vars)
            views = jnp.stack([local, observed.described], 1)
            others = contrastive.draw(others_key, state.bank, options.negatives)
            term = contrastive.contrastive_loss(head, views, *others, options.temperature)
            observed = observed._replace(terms={**observed.terms, "contrastive": term}, described=())
            return total + options.contrastive_weight * term, (images, views, observed)

        done = adapt(
            loss_fn,
            (made, state.head),
            optimizer,
            jax.random.split(steps_key, options.num_steps),
            opt_state=(adam.init(made), state.head_opt_state),
            watch=lambda aux: losses.feature(aux[2].moments, teacher_vars["batch_stats"]),
        )
        images, views, _ = done.best
        bank = contrastive.push(state.bank, views) if contrasts else ()
        state = CMIState(done.params[1], done.opt_state[1], bank)
        return state, Batch(images, labels), _info(done, labels, teacher_vars, teacher.spec)

    return Method(init, synthesize, images_per_call=setting.batch, class_advice=inversion.class_advice)


def describing(teacher: Network, features: str) -> tuple[Network, Callable[[Outputs], Array]]:
    """A network that gives what the features need, and what makes f32[B, D] of its outputs."""

    def of_batch_norms(outputs: Outputs) -> Array:
        return jnp.concatenate(jax.tree.leaves(outputs.image_means), -1)

    def of_blocks(outputs: Outputs) -> Array:
        return jnp.concatenate([global_average_pool(block) for block in outputs.blocks], -1)

    if features == "blocks":
        return teacher, of_blocks
    return teacher._replace(apply=partial(teacher.apply, image_means=True)), of_batch_norms


def feature_dim(teacher: Network, features: str) -> int:
    """Features of one image: channels of all BatchNorms together, or of all stages."""
    network, describe = describing(teacher, features)

    def features_of(variables: Tree, image: Array) -> Array:
        return describe(network.apply(variables, image))

    return jax.eval_shape(features_of, *_shapes(network)).shape[1]


def _shapes(network: Network) -> tuple[Tree, Any]:
    """A network's variables and one image, without values."""
    image = jax.ShapeDtypeStruct((1, *network.spec.input_shape), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0)), image


def _require_features(teacher: Network, features: str) -> None:
    """UserError where a teacher has no features of this kind."""
    arch = teacher.spec.arch
    if features == "batch_norm":
        expected = f"'blocks' for the teacher {arch}, which has no BatchNorm (or cmi.contrastive_weight=0)"
        require(has_batch_norms(teacher), "cmi.features", expected, features)
    elif not jax.eval_shape(teacher.apply, *_shapes(teacher)).blocks:
        raise UserError(
            f"config.cmi.contrastive_weight must be 0 for the teacher {arch}, which has no stages of features"
        )


def bank_bytes(options: CMIOptions, teacher: Network) -> int:
    """Memory of the bank on every device and in every checkpoint: bank_size x 2 views x features x 4 bytes.

    WRN-40-2 has 2,704 channels in its BatchNorms: 1.77 GB by default.
    """
    return contrastive.bank_bytes(options.bank_size, feature_dim(teacher, options.features))


def _pair(first: optax.GradientTransformation, second: optax.GradientTransformation) -> optax.GradientTransformation:
    """Two optimizers side by side, of the two parts of the parameters."""

    def init(params: Any):
        return first.init(params[0]), second.init(params[1])

    def update(updates: Any, state: Any, params: Any = None):
        parts = (first, second)
        done = [part.update(u, s, p) for part, u, s, p in zip(parts, updates, state, params, strict=True)]
        return tuple(updates for updates, _ in done), tuple(state for _, state in done)

    return optax.GradientTransformation(init, update)


def _info(done: Adapted, labels: Array, teacher_vars: Tree, spec: NetworkSpec) -> dict[str, Array]:
    last: Observed = done.last[2]
    return {
        **{f"loss/{name}": value for name, value in last.terms.items()},
        "loss/first": done.losses[0],
        "loss/last": done.losses[-1],
        "agreement": last.agreement,
        **moment_gaps(last.moments, teacher_vars, done.watched),
        "predicted": jnp.bincount(last.predicted, length=spec.num_classes),
        **on_target(last.predicted, labels, spec),
    }
