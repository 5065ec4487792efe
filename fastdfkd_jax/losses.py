"""Losses of data-free distillation: functions from arrays to a scalar (paper Eq. 12, 13 and 15; METHOD 1.1).

Logits are f32[B, ..., C]: f32[B, C] for classification, or f32[B, H, W, C] for segmentation, which has a class for
every pixel. For segmentation "each sample" means each pixel, and a loss "of each image" is the mean over its pixels.

The examples here and in `meta` and `moments` assume `import fastdfkd_jax as fd`, `jax`, `jax.numpy as jnp` and `optax`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import log_softmax, softmax
from jax.scipy.special import logsumexp

from fastdfkd_jax.moments import Accumulators

Array = jax.Array
Tree = Any

STATISTICS = ("variance", "deviation")


def kl_divergence(teacher_logits: Array, student_logits: Array, temperature: float = 1.0) -> Array:
    """Returns KL(p_teacher || p_student) of each sample in nats, f32[B, ...].

    Both logits, f32[B, ..., C], are divided by the temperature.

    >>> teacher, student = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> fd.losses.kl_divergence(teacher, student).round(3)
    Array([0.328], dtype=float32)
    """
    log_teacher = log_softmax(teacher_logits / temperature)
    log_student = log_softmax(student_logits / temperature)
    return (jnp.exp(log_teacher) * (log_teacher - log_student)).sum(-1)


def distillation(teacher_logits: Array, student_logits: Array, temperature: float) -> Array:
    """Returns the KD loss of each image, f32[B]: temperature^2 times KL(p_teacher || p_student) (Eq. 12, METHOD 1.8).

    >>> teacher, student = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> fd.losses.distillation(teacher, student, temperature=4.0).round(3)
    Array([0.485], dtype=float32)
    """
    return temperature**2 * of_images(kl_divergence(teacher_logits, student_logits, temperature))


def of_images(values: Array) -> Array:
    """Averages f32[B, ...] over the samples of each image, giving f32[B]."""
    return values.mean(tuple(range(1, values.ndim)))


def cross_entropies(logits: Array, labels: Array) -> Array:
    """Returns -log p(label) of each sample in nats, f32[B, ...]; logits f32[B, ..., C], labels i32[B, ...]."""
    return -jnp.take_along_axis(log_softmax(logits), labels[..., None], axis=-1)[..., 0]


def known_cross_entropies(logits: Array, labels: Array) -> Array:
    """Returns -log p(label) of each image in nats, f32[B], averaged over the samples with a known label.

    Labels int[B, ...] outside [0, C), such as -1 or 255 for void pixels, are unknown. An image without known labels has
    loss 0. If the logits are maps, labels i32[B] give every pixel of an image the same label.

    >>> void = 255
    >>> fd.losses.known_cross_entropies(jnp.zeros((2, 3, 4)), jnp.array([[0, 1, void], [void] * 3])).round(3)
    Array([1.386, 0.   ], dtype=float32)
    """
    labels = labels.astype(jnp.int32).reshape(labels.shape + (1,) * (logits.ndim - 1 - labels.ndim))
    labels = jnp.broadcast_to(labels, logits.shape[:-1])
    known = (labels >= 0) & (labels < logits.shape[-1])
    values = jnp.where(known, cross_entropies(logits, jnp.where(known, labels, 0)), 0.0)
    samples = tuple(range(1, values.ndim))
    return values.sum(samples) / jnp.maximum(known.sum(samples), 1)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Returns the class confidence loss of Eq. 13: the batch mean of `cross_entropies`.

    >>> fd.losses.cross_entropy(jnp.zeros((8, 4)), jnp.zeros(8, int)).round(3)  # log 4
    Array(1.386, dtype=float32)
    """
    return cross_entropies(logits, labels).mean()


def adversarial_kl(teacher_logits: Array, student_logits: Array) -> Array:
    """Returns minus KL(p_teacher || p_student), counted where both predict the same class (METHOD T5).

    The mean is over the whole batch. Gradients flow to the logits f32[B, ..., C] of both networks, not to the mask.

    >>> teacher, student = jnp.array([[2.0, 0.0], [2.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> fd.losses.adversarial_kl(teacher, student).round(3)  # the second image, on which they disagree, counts as 0
    Array(-0.034, dtype=float32)
    """
    agree = teacher_logits.argmax(-1) == student_logits.argmax(-1)
    return -(agree * kl_divergence(teacher_logits, student_logits)).mean()


def jensen_shannon(teacher_logits: Array, student_logits: Array, temperature: float = 1.0) -> Array:
    """Returns the Jensen-Shannon divergence of each sample in nats, f32[B, ...] in [0, log 2].

    >>> fd.losses.jensen_shannon(jnp.array([[99.0, 0.0]]), jnp.array([[0.0, 99.0]])).round(3)  # log 2, the maximum
    Array([0.693], dtype=float32)
    """
    log_p = log_softmax(teacher_logits / temperature)
    log_q = log_softmax(student_logits / temperature)
    log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    return 0.5 * (p * (log_p - log_m)).sum(-1) + 0.5 * (q * (log_q - log_m)).sum(-1)


def clamped_jensen_shannon(
    teacher_logits: Array, student_logits: Array, temperature: float, low: float = 0.01, high: float = 0.99
) -> Array:
    """Returns the mean of KL(m || p) and KL(m || q) of each sample, f32[B, ...] (METHOD 1.6).

    All three distributions are clamped to [low, high]. Both divergences are reversed compared with
    `jensen_shannon`. Clamped probabilities do not sum to 1, so the value can be negative; they pass no gradient.
    """
    p, q = softmax(teacher_logits / temperature), softmax(student_logits / temperature)
    m, p, q = (jnp.clip(x, low, high) for x in ((p + q) / 2, p, q))
    return 0.5 * (m * (2 * jnp.log(m) - jnp.log(p) - jnp.log(q))).sum(-1)


def adversarial_jsd(teacher_logits: Array, student_logits: Array, temperature: float) -> Array:
    """Returns the paper's adversarial loss: minus the batch mean of the Jensen-Shannon divergence (Eq. 13)."""
    return -jensen_shannon(teacher_logits, student_logits, temperature).mean()


def feature(moments: Tree, batch_stats: Tree, statistic: str = "variance") -> Array:
    """Sums the L2 distances between batch moments and running statistics over BatchNorm layers (Eq. 13).

    Like every loss of statistics here, it is 0 for a network without BatchNorm.

    Args:
      moments: tree of means and biased variances of the layers' inputs, f32[C].
      batch_stats: the teacher's running statistics, same tree.
      statistic: 'variance' compares variances (released code), 'deviation' standard deviations (Eq. 13).

    >>> moments = {"bn1": {"mean": jnp.array([3.0, 4.0]), "var": jnp.ones(2)}}
    >>> statistics = {"bn1": {"mean": jnp.zeros(2), "var": jnp.ones(2)}}
    >>> fd.losses.feature(moments, statistics)
    Array(5., dtype=float32)
    """
    return _sum(_distances(moments, batch_stats, statistic))


def feature_by_layer(moments: Tree, batch_stats: Tree, statistic: str = "variance") -> Array:
    """Returns the terms of `feature`, f32[layers] in the order of the tree, to be weighted separately (METHOD 6)."""
    distances = list(_distances(moments, batch_stats, statistic))
    return jnp.stack(distances) if distances else jnp.zeros(0)


def gaussian_feature(moments: Tree, batch_stats: Tree) -> Array:
    """Sums KL(N(batch) || N(running)) in nats over BatchNorm layers and channels (METHOD section 6, DFQ).

    Both variances are raised by 1e-5, as in BatchNorm, so that a constant channel has a finite loss.

    >>> moments = {"bn1": {"mean": jnp.array([1.0]), "var": jnp.ones(1)}}
    >>> statistics = {"bn1": {"mean": jnp.zeros(1), "var": jnp.ones(1)}}
    >>> fd.losses.gaussian_feature(moments, statistics).round(3)
    Array(0.5, dtype=float32)
    """

    def divergence(mean: Array, var: Array, running_mean: Array, running_var: Array) -> Array:
        var, running_var = var + 1e-5, running_var + 1e-5
        ratio = var / running_var
        return 0.5 * (ratio - 1 - jnp.log(ratio) + jnp.square(mean - running_mean) / running_var).sum()

    return _sum(
        divergence(got["mean"], got["var"], stats["mean"], stats["var"]) for got, stats in _layers(moments, batch_stats)
    )


def momentum_feature(
    moments: Tree,
    batch_stats: Tree,
    accumulators: Accumulators,
    weight: float,
    statistic: str = "variance",
) -> Array:
    """Returns the feature loss of mixed moments, weight * accumulated + (1 - weight) * batch (Eq. 15).

    With empty accumulators it equals `feature` (METHOD T3). With 'deviation', standard deviations are mixed.

    Args:
      moments: tree of means and biased variances of this batch, f32[C].
      batch_stats: the teacher's running statistics, same tree.
      accumulators: moments of the images synthesised before.
      weight: the accumulators' share; 1 - m in the paper's notation.
      statistic: as for `feature`.

    >>> statistics = {"bn1": {"mean": jnp.zeros(1), "var": jnp.ones(1)}}
    >>> before, now = ({"bn1": {"mean": jnp.array([m]), "var": jnp.ones(1)}} for m in (0.5, 1.0))
    >>> accumulators = fd.moments.update(fd.moments.init(statistics), before, weight=0.9)
    >>> fd.losses.momentum_feature(now, statistics, accumulators, weight=0.9).round(3)  # 0.9 * 0.5 + 0.1 * 1
    Array(0.55, dtype=float32)
    """
    spread = _spread(statistic)
    keep = jnp.where(accumulators.count == 0, 0.0, weight)

    def distance(old: Array, new: Array, target: Array) -> Array:
        return _norm(target - (1 - keep) * new - keep * old)

    return _sum(
        distance(old["mean"], got["mean"], stats["mean"])
        + distance(spread(old["var"]), spread(got["var"]), spread(stats["var"]))
        for got, stats, old in _layers(moments, batch_stats, accumulators.moments)
    )


def total_variation(images: Array) -> Array:
    """Sums the Frobenius norms of the four neighbour differences of f32[B, H, W, C] (METHOD 6, TVl2).

    >>> fd.losses.total_variation(jnp.ones((1, 4, 4, 3)))
    Array(0., dtype=float32)
    """
    right, down, diagonal, antidiagonal = map(_norm, _neighbour_differences(images))
    return right + down + diagonal + antidiagonal


def total_variation_l1(images: Array) -> Array:
    """Sums the mean absolute values of the four neighbour differences of f32[B, H, W, C] (METHOD 6, TVl1)."""
    return _sum(jnp.abs(difference).mean() for difference in _neighbour_differences(images))


def mean_l2(images: Array) -> Array:
    """Returns the batch mean of each image's L2 norm; images f32[B, H, W, C] (METHOD 6)."""
    return jax.vmap(_norm)(images).mean()


def entropy(logits: Array) -> Array:
    """Returns the entropy of each sample's prediction in nats, f32[B, ...], for logits f32[B, ..., C].

    >>> fd.losses.entropy(jnp.zeros((1, 4))).round(3)  # log 4
    Array([1.386], dtype=float32)
    """
    return _entropy(log_softmax(logits))


def entropy_of_mean(logits: Array) -> Array:
    """Returns the entropy of a batch's mean prediction in nats, f32[], for logits f32[B, ..., C].

    >>> sure = jnp.array([[99.0, 0.0], [0.0, 99.0]])
    >>> fd.losses.entropy_of_mean(sure).round(3)  # log 2, although each prediction is certain
    Array(0.693, dtype=float32)
    """
    samples = tuple(range(logits.ndim - 1))
    return _entropy(logsumexp(log_softmax(logits), samples) - math.log(math.prod(logits.shape[:-1])))


def _entropy(log_p: Array) -> Array:
    """Returns the entropy of log-probabilities; one that underflows adds 0 to value and gradient."""
    p = jnp.exp(log_p)
    return -(p * jnp.where(p > 0, log_p, 0.0)).sum(-1)


def _distances(moments: Tree, batch_stats: Tree, statistic: str) -> Iterator[Array]:
    spread = _spread(statistic)
    for got, stats in _layers(moments, batch_stats):
        yield _norm(stats["mean"] - got["mean"]) + _norm(spread(stats["var"]) - spread(got["var"]))


def _neighbour_differences(images: Array) -> tuple[Array, Array, Array, Array]:
    """Returns the differences to the right, downwards and along the two diagonals."""
    return (
        images[:, :, 1:] - images[:, :, :-1],
        images[:, 1:] - images[:, :-1],
        images[:, 1:, 1:] - images[:, :-1, :-1],
        images[:, 1:, :-1] - images[:, :-1, 1:],
    )


def _norm(x: Array) -> Array:
    """Returns the L2 norm, with gradient zero rather than NaN at zero."""
    square = jnp.sum(jnp.square(x))
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def _sum(terms: Iterable[Array]) -> Array:
    return sum(terms, start=jnp.zeros(()))


def _spread(statistic: str):
    # The square root of a variance of 0 would have an infinite gradient.
    return {"variance": lambda var: var, "deviation": lambda var: jnp.sqrt(var + 1e-8)}[statistic]


def _layers(*trees: Tree) -> Iterator[tuple[dict[str, Array], ...]]:
    """Iterates over the {'mean', 'var'} pairs of several trees of the same structure, layer by layer."""

    def is_layer(node) -> bool:
        return isinstance(node, dict) and "mean" in node and not isinstance(node["mean"], dict)

    return zip(*(jax.tree.leaves(tree, is_leaf=is_layer) for tree in trees), strict=True)
