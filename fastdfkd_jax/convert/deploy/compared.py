"""Compares a file for production with the network that it was made from."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from fastdfkd_jax.convert import record
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import Network
from fastdfkd_jax.models.network import Variables

Run = Callable[[np.ndarray], np.ndarray]
_TOLERANCE = 1e-4  # as for logits in convert/verify.py
_SIZES = (1, 5)  # images in a batch: more than one size, as the file takes any


def normalised(images: np.ndarray, network: Network) -> np.ndarray:
    """Brings images in [0, 1], f32[B, H, W, C], to the network's input."""
    mean, std = (np.asarray(numbers, np.float32) for numbers in (network.spec.mean, network.spec.std))
    return (images - mean) / std


def logits_of(network: Network, variables: Variables) -> Run:
    """Returns the network as a function of its input, f32[B, H, W, C]."""
    apply = jax.jit(lambda variables, images: network.apply(variables, images).logits)

    def run(images: np.ndarray) -> np.ndarray:
        with jax.default_matmul_precision("highest"):
            return np.asarray(apply(variables, images))

    return run


def require_same(network: Network, variables: Variables, found: Run, unit_range: bool) -> float:
    """Compares the file's logits with the network's on noise images.

    Args:
      network, variables: the network.
      found: the file as a function of f32[B, H, W, C]; its logits have the classes last.
      unit_range: True if the file takes images in [0, 1], False if it takes the network's input.

    Returns:
      The largest difference of logits, relative to the largest logit.

    Raises:
      UserError: the difference is above 1e-4, or the shapes differ.
    """
    expected, errors = logits_of(network, variables), []
    for size in _SIZES:
        images = record.fixed_images((size, *network.spec.input_shape), seed=size)
        if unit_range:
            images = 1 / (1 + np.exp(-images))
        ours = expected(normalised(images, network) if unit_range else images)
        theirs = found(images)
        if theirs.shape != ours.shape:
            raise UserError(f"the file's logits have shape {theirs.shape}, expected {ours.shape}: check --torch")
        errors.append(np.abs(theirs - ours).max() / max(np.abs(ours).max(), np.finfo(np.float32).tiny))
    worst = float(np.max(errors))  # NaN if one is
    if not worst <= _TOLERANCE:
        raise UserError(
            f"the file's logits differ from the network's by {worst:.1e} of the largest, expected at most "
            f"{_TOLERANCE:.0e}; nothing was written: compare the module first, with fastdfkd convert verify"
        )
    return worst
