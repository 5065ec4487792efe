"""Measures how often two networks agree on images without labels."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.evaluation.batches import padded
from fastdfkd_jax.models import Network
from fastdfkd_jax.models.network import Variables

Array = jax.Array
BATCH = 64  # images per step; small, since it is also used for images of 224 pixels


def agreeing(teacher_logits: Array, student_logits: Array) -> Array:
    """Returns the share of samples of each image for which both predict the same class, f32[B].

    Logits are f32[B, ..., C]. A sample with a logit that is not finite has no prediction and does not agree.
    """
    same = teacher_logits.argmax(-1) == student_logits.argmax(-1)
    finite = jnp.isfinite(teacher_logits).all(-1) & jnp.isfinite(student_logits).all(-1)
    return (same & finite).reshape(len(same), -1).mean(1)


class Agreement:
    """A function that compiles once for all sets of images of one size.

    Args:
      teacher, student: networks with the same classes and input; each spec normalises the images for its network.
      batch: images per step; the last step is padded to it.
      compiled: False if the student computes outside JAX and takes concrete arrays only.

    Attributes:
      compile_seconds: seconds of compilation in the last call; 0 in all but the first.
    """

    def __init__(self, teacher: Network, student: Network, batch: int = BATCH, compiled: bool = True):
        split = parallel.batch_splitter(parallel.devices(parallel.batch_devices(0 if compiled else 1, (batch,))))

        def logits(network: Network, variables: Variables, images: Array) -> Array:
            return network.apply(variables, augment.normalize_bytes(images, network.spec.mean, network.spec.std)).logits

        def shares(teacher_vars: Variables, student_vars: Variables, images: Array) -> Array:
            images = split(images)
            return agreeing(logits(teacher, teacher_vars, images), logits(student, student_vars, images))

        self._compiled = parallel.CompiledStep(shares) if compiled else None
        self._step: Callable[..., Array] = self._compiled or shares
        self._batch, self.compile_seconds = batch, 0.0

    def __call__(self, teacher_vars: Variables, student_vars: Variables, images: np.ndarray) -> float:
        """Returns the share of images, or of pixels of maps, on which both networks predict the same class.

        Args:
          teacher_vars, student_vars: variables of the networks.
          images: uint8[N, H, W, C], at least one.
        """
        # A run's variables may be on other devices than a batch here.
        teacher_vars, student_vars = parallel.copy(teacher_vars), parallel.copy(student_vars)
        total = self.compile_seconds = 0.0
        for start in range(0, len(images), self._batch):
            part = images[start : start + self._batch]
            found = self._step(teacher_vars, student_vars, padded(part, self._batch))
            self.compile_seconds += self._compiled.compile_seconds if self._compiled else 0.0
            total += float(np.sum(np.asarray(found, np.float64)[: len(part)]))
        return total / len(images)
