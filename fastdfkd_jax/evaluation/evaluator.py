"""Evaluates a network on labelled images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fastdfkd_jax import data
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.data import Dataset
from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.evaluation import scores
from fastdfkd_jax.evaluation.batches import padded
from fastdfkd_jax.models import Network
from fastdfkd_jax.models.network import Variables


def make_evaluator(
    network: Network, batch_size: int = 256, compiled: bool = True
) -> Callable[[Variables, Dataset], dict[str, Any]]:
    """Builds `evaluate(variables, dataset) -> measurements`, which compiles once for all data sets of one size.

    Args:
      network: the network; its spec normalises the images.
      batch_size: images per step; the last step is padded to it.
      compiled: False for a network that computes outside JAX, whose `apply` takes concrete arrays only.

    Returns:
      A function that returns the measurements of the score of the network's task (`scores.of_task`), and `count`
      (images). It raises UserError if the data set does not fit the network (`data.require`).
    """
    spec, score = network.spec, scores.of_task(network.spec)
    split = parallel.batch_splitter(parallel.devices(parallel.batch_devices(0 if compiled else 1, (batch_size,))))

    # Defined here, so that each evaluator has a separate compiled function, whose traces can be counted.
    def sums_of_batch(variables, images, labels):
        inputs = augment.normalize_bytes(split(images), spec.mean, spec.std)
        return score.sums(network.apply(variables, inputs).logits, labels)

    step = parallel.jit(sums_of_batch) if compiled else sums_of_batch

    def evaluate(variables: Variables, dataset: Dataset) -> dict[str, Any]:
        data.require(dataset, spec)
        total = len(dataset.labels)
        variables = parallel.copy(variables)  # a run's variables may be on other devices than a batch here
        sums = []
        for start in range(0, total, batch_size):
            rows = slice(start, start + batch_size)
            images, labels = dataset.images[rows], dataset.labels[rows].astype(np.int32)
            sums.append(step(variables, padded(images, batch_size), padded(labels, batch_size, -1)))
        # Summed on the host in float64, because a float32 sum of many batches would lose digits.
        whole = jax.tree.map(lambda *parts: np.sum(parts, axis=0, dtype=np.float64), *jax.device_get(sums))
        return {**score.read(whole, data.count_classes(dataset)), "count": total}

    return evaluate
