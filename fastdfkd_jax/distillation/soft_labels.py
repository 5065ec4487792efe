"""The teacher's outputs on a view, stored compactly: it runs once, and any number of students can learn from it.

Based on FKD (Shen and Xing, *A Fast Knowledge Distillation Framework for Visual Recognition*, ECCV 2022). Either all
logits are stored, which fit any temperature, or the k largest probabilities at the KD temperature. In the second case
the remaining mass is spread evenly over the other classes, as in FKD's marginal smoothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.models import Network

Array = jax.Array
Tree = Any

# Float16's smallest number. Values that round to 0 are raised to it, so that logarithms are finite.
_LEAST = 2.0**-24


class SoftLabels(NamedTuple):
    """The teacher's outputs for a batch.

    Attributes:
      values: f16[B, C] logits, or f16[B, k + 1] probabilities of the k likeliest classes and of all others together.
      classes: u16[B, k], the likeliest first; None if all logits are kept.
    """

    values: Array
    classes: Array | None = None


class LabelledViews(NamedTuple):
    """The data that replace the teacher in one KD step, or in several with a leading axis.

    Attributes:
      rows: i32[B], indices of the images in D'.
      view: how the images are augmented (`augment.compact`).
      labels: the teacher's outputs on the augmented images.
    """

    rows: Array
    view: augment.View
    labels: SoftLabels


def encode(logits: Array, temperature: float, top_k: int) -> SoftLabels:
    """Encodes logits f32[B, C] of up to 65,536 classes as all logits (`top_k` 0) or `top_k` probabilities.

    The mean of the logits is removed, which changes no softmax, to keep float16's rounding error small.
    """
    if not top_k:
        return SoftLabels((logits - logits.mean(-1, keepdims=True)).astype(jnp.float16))
    probabilities = jax.nn.softmax(logits / temperature)
    largest, classes = jax.lax.top_k(probabilities, top_k)
    # The others' mass is stored too: for a confident teacher, 1 minus a sum of float16 is mostly rounding error.
    others = probabilities.at[_images(logits), classes].set(0, unique_indices=True)
    values = jnp.concatenate([largest, others.sum(-1, keepdims=True)], -1)
    return SoftLabels(values.astype(jnp.float16), classes.astype(jnp.uint16))


def decode(labels: SoftLabels, classes: int, temperature: float) -> Array:
    """Returns logits f32[B, classes] whose softmax at the temperature is the stored one, up to float16's rounding.

    Args:
      labels: the labels of a batch.
      classes: number of classes.
      temperature: the KD temperature; for k stored probabilities, the one at which they were stored.
    """
    values = labels.values.astype(jnp.float32)
    if labels.classes is None:
        return values
    values = jnp.maximum(values, _LEAST)
    likeliest = labels.classes.astype(jnp.int32)
    others = max(1, classes - likeliest.shape[-1])
    probabilities = jnp.broadcast_to(values[:, -1:] / others, (len(values), classes))
    probabilities = probabilities.at[_images(values), likeliest].set(values[:, :-1], unique_indices=True)
    return temperature * jnp.log(probabilities / probabilities.sum(-1, keepdims=True))


def make_labeller(
    teacher: Network, views: augment.ViewOptions, temperature: float, top_k: int
) -> Callable[[Tree, Array, Array], tuple[augment.View, SoftLabels]]:
    """Builds `label(teacher_vars, images, key) -> (view, labels)`, the teacher's part of a KD step.

    Images are f32[B, H, W, C] in [0, 1]. `distill.make_step` draws the same view from the same key.
    """

    def label(teacher_vars: Tree, images: Array, key: Array) -> tuple[augment.View, SoftLabels]:
        view = augment.draw_view(key, images.shape, views)
        shown = augment.normalize(augment.apply_view(images, view), teacher.spec.mean, teacher.spec.std)
        return augment.compact(view), encode(teacher.apply(teacher_vars, shown).logits, temperature, top_k)

    return label


def shapes(classes: int, top_k: int, views: augment.ViewOptions, batch: int) -> LabelledViews:
    """Returns shape and type of every array of one step."""

    def make(logits: Array) -> LabelledViews:
        view = augment.draw_view(jax.random.key(0), (batch, 1, 1, 1), views)
        return LabelledViews(jnp.zeros(batch, jnp.int32), augment.compact(view), encode(logits, 1.0, top_k))

    return jax.eval_shape(make, jax.ShapeDtypeStruct((batch, classes), jnp.float32))


def bytes_per_view(classes: int, top_k: int, views: augment.ViewOptions, batch: int) -> float:
    """Returns the bytes of one view on disk: its image's row, its parameters and its labels.

    A batch shares one CutMix box.
    """
    leaves = jax.tree.leaves(shapes(classes, top_k, views, batch))
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in leaves) / batch


def _images(batch: Array) -> Array:
    """Returns i32[B, 1], which indexes the rows when a row's entries are indexed."""
    return jnp.arange(len(batch))[:, None]
