"""Writes a network as StableHLO, which JAX loads without this package."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import export

from fastdfkd_jax.convert.checkpoints import Opened
from fastdfkd_jax.convert.deploy import compared
from fastdfkd_jax.errors import UserError, one_line, shortened
from fastdfkd_jax.models import Forms, Network
from fastdfkd_jax.models.network import Variables

SUFFIX = ".stablehlo"
PLATFORMS = ("cpu", "cuda")


def to_stablehlo(opened: Opened, network: Network, variables: Variables, unit_range: bool) -> tuple[bytes, float]:
    """Converts a network, with its weights, to StableHLO for CPUs and CUDA and batches of any size.

    Args:
      opened: builds the network with XLA's own convolutions.
      network, variables: the same network, which the file is compared with.
      unit_range: put the normalisation inside, so that the file takes images in [0, 1].

    Returns:
      The file's content, for `jax.export.deserialize`, and the largest difference from the network's logits, relative
      to the largest logit. The input is f32[batch, H, W, C], the output f32[batch, classes] or
      f32[batch, H, W, classes].

    Raises:
      UserError: an operation needs a fixed batch, or the file computes something else.
    """
    plain, spec = opened.build(forms=Forms(conv="xla")), network.spec

    def logits(images: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            if unit_range:
                images = (images - jnp.asarray(spec.mean)) / jnp.asarray(spec.std)
            return plain.apply(variables, images).logits

    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *spec.input_shape), jnp.float32)
    try:
        exported = export.export(jax.jit(logits), platforms=PLATFORMS)(images)
    except Exception as error:  # an operation that computes with the batch may raise almost anything
        reason = shortened(one_line(error), 120)
        raise UserError(f"{spec.arch} cannot be written for batches of any size: {reason}") from error
    content = bytes(exported.serialize())
    call = jax.jit(export.deserialize(bytearray(content)).call)
    return content, compared.require_same(network, variables, lambda images: jax.device_get(call(images)), unit_range)
