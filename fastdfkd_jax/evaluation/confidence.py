"""Measures a classifier's confidence in given classes of images."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.evaluation.batches import padded
from fastdfkd_jax.models import Network
from fastdfkd_jax.models.network import Variables


def make_confidence(
    network: Network, batch_size: int = 40
) -> Callable[[Variables, np.ndarray, np.ndarray], np.ndarray]:
    """Builds `confidence(variables, images uint8[N, H, W, C], labels i32[N]) -> f32[N]`, compiled by its first call.

    It runs on this process's first device alone, whatever other devices or processes share a run.

    Args:
      network: a classifier; its spec normalises the images.
      batch_size: images per step; the last step is padded to it.

    Returns:
      A function that returns each image's softmax probability of its label.
    """
    spec = network.spec

    @jax.jit
    def of_batch(variables, images, labels):
        logits = network.apply(variables, augment.normalize_bytes(images, spec.mean, spec.std)).logits
        return jnp.take_along_axis(jax.nn.softmax(logits.astype(jnp.float32)), labels[:, None], 1)[:, 0]

    def confidence(variables: Variables, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        held = jax.tree.map(np.asarray, variables)  # equal in all processes, so this one may compute alone
        found = [np.zeros(0, np.float32)]
        for start in range(0, len(labels), batch_size):
            part, asked = images[start : start + batch_size], labels[start : start + batch_size]
            made = of_batch(held, padded(part, batch_size), padded(asked.astype(np.int32), batch_size))
            found.append(np.asarray(made)[: len(asked)])
        return np.concatenate(found)

    return confidence
