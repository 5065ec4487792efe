"""CMI, contrastive model inversion (Fang et al. 2021): trains a new generator for every batch of diverse images.

The inversion loss of every call includes a contrast with the images of earlier calls (METHOD 1.5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fastdfkd_jax import losses, moments
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.errors import UserError, require
from fastdfkd_jax.meta import Adapted, adapt
from fastdfkd_jax.methods.base import Batch, Info, Method, Setting, moment_gaps, on_target
from fastdfkd_jax.methods.parts import contrastive, parametrization
from fastdfkd_jax.methods.parts.inversion_loss import Frozen, InversionOptions, Observed, make_inversion_loss
from fastdfkd_jax.methods.parts.parametrization import Representation
from fastdfkd_jax.models import Network, NetworkSpec, Outputs, has_batch_norms
from fastdfkd_jax.models.generators.by_kind import GeneratorOptions
from fastdfkd_jax.models.layers import global_average_pool
from fastdfkd_jax.options import Options, option

Array = jax.Array
Tree = Any

FEATURES = ("batch_norm", "blocks")


@dataclass(frozen=True)
class CMIOptions(Options, section="cmi"):
    """Options of CMI, beside those of the inversion loss (METHOD 1.5)."""

    num_steps: int = option(200, "Adam steps per call, on a newly initialised generator and latents", at_least=1)
    lr: float = option(
        1e-3, "learning rate of Adam (0.5, 0.999) for generator and latents, restarted at every call", above=0
    )
    head_lr: float = option(
        1e-3, "learning rate of the projection head's own Adam, which continues from call to call", above=0
    )
    contrastive_weight: float = option(
        0.8, "weight of the contrastive term; 0 removes the head and the memory bank", at_least=0
    )
    temperature: float = option(0.2, "temperature of the contrastive logits", above=0)
    bank_size: int = option(
        40960, "images whose features the memory bank keeps; it takes bank_size x features x 8 bytes", at_least=1
    )
    negatives: int = option(4096, "images drawn at random from the memory bank as negatives for each step", at_least=1)
    head_dim: int = option(256, "dimension of the vectors that the contrastive term compares", at_least=1)
    features: str = option(
        "batch_norm",
        "features that describe an image: 'batch_norm', the mean input of every BatchNorm, or 'blocks', the mean "
        "output of each stage (the released code for ResNet-34)",
        choices=FEATURES,
    )
    local_scale: tuple[float, float] = option(
        (0.25, 1.0), "smallest and largest share of the image's area in the local view"
    )
    generator: GeneratorOptions = field(default_factory=GeneratorOptions)
    inversion: InversionOptions = field(default_factory=InversionOptions)

    def __post_init__(self):
        super().__post_init__()
        low, high = self.local_scale
        self.require("local_scale", 0 < low <= high <= 1, "(least, largest) within (0, 1]")


class CMIState(NamedTuple):
    """The state carried from call to call; the generator is not part of it.

    Attributes:
      head: parameters of the contrastive head; () without a contrast.
      head_opt_state: state of the head's optimizer.
      bank: features of earlier images, `bank_bytes` of memory; () without a contrast.
    """

    head: Tree
    head_opt_state: Tree
    bank: Tree


def build(options: CMIOptions, setting: Setting) -> Method:
    """Binds networks, options and the generator.

    Raises:
      UserError: the bank holds less than one batch, or the teacher has no features to contrast.
    """
    return build_of_images(options, setting, parametrization.of_kind("generator", options.generator, setting))


def build_of_images(options: CMIOptions, setting: Setting, representation: Representation) -> Method:
    """Does the same as `build` for any representation of the images."""
    teacher, student = setting.teacher, setting.student
    size = options.bank_size
    require(size >= setting.batch, "cmi.bank_size", f"at least synthesis_batch={setting.batch}", size)
    described, describe, inversion_loss = teacher, None, make_inversion_loss(teacher, student, options.inversion)
    if options.contrastive_weight:
        _require_features(teacher, options.features)
        described, describe = describing(teacher, options.features)
        inversion_loss = make_inversion_loss(described, student, options.inversion, describe)
    bound = _Bound(
        options,
        setting,
        representation,
        described=described,
        describe=describe,
        inversion_loss=inversion_loss,
        adam=optax.adam(options.lr, 0.5, 0.999),
        head_adam=optax.adam(options.head_lr),
    )
    return Method(
        bound.init, bound.synthesize, images_per_call=setting.batch, class_advice=options.inversion.class_advice
    )


@dataclass(frozen=True, eq=False)
class _Bound:
    """The method with its static parts.

    Attributes:
      options, setting: static choices, and the run's setting.
      representation: the generator.
      described: the teacher, extended to output the features.
      describe: maps its outputs to features f32[B, D]; None without a contrast.
      inversion_loss: the loss of Eq. 13.
      adam: optimizer of the generator and latents.
      head_adam: optimizer of the head.
    """

    options: CMIOptions
    setting: Setting
    representation: Representation
    described: Network
    describe: Callable[[Outputs], Array] | None
    inversion_loss: Callable[..., tuple[Array, Observed]]
    adam: optax.GradientTransformation
    head_adam: optax.GradientTransformation

    def init(self, key: Array, teacher_vars: Tree) -> CMIState:
        if self.describe is None:
            return CMIState((), self.head_adam.init(()), ())
        dim = feature_dim(self.setting.teacher, self.options.features)
        head = contrastive.init_head(key, dim, self.options.head_dim)
        return CMIState(head, self.head_adam.init(head), contrastive.init_bank(self.options.bank_size, dim))

    def synthesize(self, state: CMIState, teacher_vars: Tree, student_vars: Tree, key: Array):
        """Runs one call; the arguments are those of `Method.synthesize`."""
        options, batch, spec = self.options, self.setting.batch, self.setting.teacher.spec
        label_key, latents_key, generator_key, steps_key = jax.random.split(key, 4)
        labels = jax.random.randint(label_key, (batch,), 0, spec.num_classes)
        # The student's term is on from the first call (METHOD 1.5).
        empty = moments.init(teacher_vars["batch_stats"])
        frozen = Frozen(teacher_vars, student_vars, empty, jnp.ones(()))
        shapes = jax.eval_shape(self.representation.init, jax.random.key(0))
        made = {
            "latents": self.representation.draw(latents_key, batch),
            "generator": self.representation.reset(generator_key, shapes),
        }
        done = adapt(
            lambda params, key: self._loss(params, key, labels, state.bank, frozen),
            (made, state.head),
            _pair(self.adam, self.head_adam),
            jax.random.split(steps_key, options.num_steps),
            opt_state=(self.adam.init(made), state.head_opt_state),
            watch=lambda aux: losses.feature(aux[2].moments, teacher_vars["batch_stats"]),
        )
        images, views, _ = done.best
        bank = () if self.describe is None else contrastive.push(state.bank, views)
        state = CMIState(done.params[1], done.opt_state[1], bank)
        return state, Batch(images, labels), _info(done, labels, teacher_vars, spec)

    def _loss(self, params: tuple[Tree, Tree], key: Array, labels: Array, bank: Tree, frozen: Frozen):
        """Returns the inversion loss plus the contrast, as a function of generator, latents and head."""
        options, (made, head) = self.options, params
        view_key, local_key, others_key = jax.random.split(key, 3)
        images = self.representation.render(made["generator"], made["latents"])
        total, observed = self.inversion_loss(images, labels, view_key, frozen)
        if self.describe is None:
            return total, (images, (), observed)
        local = self.describe(self.described.apply(frozen.teacher_vars, self._local_view(local_key, images)))
        views = jnp.stack([local, observed.described], 1)
        others = contrastive.draw(others_key, bank, options.negatives)
        term = contrastive.contrastive_loss(head, views, *others, options.temperature)
        observed = observed._replace(terms={**observed.terms, "contrastive": term}, described=())
        return total + options.contrastive_weight * term, (images, views, observed)

    def _local_view(self, key: Array, images: Array) -> Array:
        """Returns a random crop of each image, resized and normalised for the teacher."""
        crop_key, flip_key = jax.random.split(key)
        view = augment.random_resized_crop(crop_key, images, self.options.local_scale)
        view = augment.random_flip(flip_key, view) if self.options.inversion.flip else view
        spec = self.setting.teacher.spec
        return augment.normalize(view, spec.mean, spec.std)


def describing(teacher: Network, features: str) -> tuple[Network, Callable[[Outputs], Array]]:
    """Returns a network that outputs the features, and a function from its outputs to f32[B, D]."""

    def of_batch_norms(outputs: Outputs) -> Array:
        return jnp.concatenate(jax.tree.leaves(outputs.image_means), -1)

    def of_blocks(outputs: Outputs) -> Array:
        return jnp.concatenate([global_average_pool(block) for block in outputs.blocks], -1)

    if features == "blocks":
        return teacher, of_blocks
    return teacher._replace(apply=partial(teacher.apply, image_means=True)), of_batch_norms


def feature_dim(teacher: Network, features: str) -> int:
    """Counts the features of one image: channels of all BatchNorms together, or of all stages."""
    network, describe = describing(teacher, features)

    def features_of(variables: Tree, image: Array) -> Array:
        return describe(network.apply(variables, image))

    return jax.eval_shape(features_of, *_shapes(network)).shape[1]


def _shapes(network: Network) -> tuple[Tree, Any]:
    """Returns the shapes of a network's variables and of one image, without values."""
    image = jax.ShapeDtypeStruct((1, *network.spec.input_shape), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0)), image


def _require_features(teacher: Network, features: str) -> None:
    """Raises UserError if a teacher has no features of this kind."""
    arch = teacher.spec.arch
    if features == "batch_norm":
        expected = f"'blocks' for the teacher {arch}, which has no BatchNorm (or cmi.contrastive_weight=0)"
        require(has_batch_norms(teacher), "cmi.features", expected, features)
    elif not jax.eval_shape(teacher.apply, *_shapes(teacher)).blocks:
        raise UserError(
            f"config.cmi.contrastive_weight must be 0 for the teacher {arch}, which has no stages of features"
        )


def bank_bytes(options: CMIOptions, teacher: Network) -> int:
    """Returns the memory of the bank, needed on every device and in every checkpoint.

    It is bank_size x 2 views x features x 4 bytes. WRN-40-2 has 2,704 channels in its BatchNorms: 1.77 GB by default.
    """
    return contrastive.bank_bytes(options.bank_size, feature_dim(teacher, options.features))


def _pair(first: optax.GradientTransformation, second: optax.GradientTransformation) -> optax.GradientTransformation:
    """Combines two optimizers for the two parts of the parameters."""

    def init(params: Any):
        return first.init(params[0]), second.init(params[1])

    def update(updates: Any, state: Any, params: Any = None):
        parts = (first, second)
        done = [part.update(u, s, p) for part, u, s, p in zip(parts, updates, state, params, strict=True)]
        return tuple(updates for updates, _ in done), tuple(state for _, state in done)

    return optax.GradientTransformation(init, update)


def _info(done: Adapted, labels: Array, teacher_vars: Tree, spec: NetworkSpec) -> Info:
    last: Observed = done.last[2]
    return Info(
        losses={**last.terms, "first": done.losses[0], "last": done.losses[-1]},
        agreement=last.agreement,
        predicted=jnp.bincount(last.predicted, length=spec.num_classes),
        on_target=on_target(last.predicted, labels, spec),
        **moment_gaps(last.moments, teacher_vars, done.watched),
    )
