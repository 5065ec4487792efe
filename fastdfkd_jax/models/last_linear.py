"""Finds the last linear layer of a classifier, whose name differs between architectures."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fastdfkd_jax.models.first_batch_norms import depend
from fastdfkd_jax.models.network import Network, Variables


def last_linear(network: Network) -> Callable[[Variables], jax.Array] | None:
    """Finds the kernel [features, classes] that the logits depend on and the features do not.

    The program is only traced, nothing is computed.

    Returns:
      `rows(variables) -> f32[classes, features]`, the layer's weights for each class; None if there is no such kernel,
      or if there are several.
    """
    variables = jax.eval_shape(network.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *network.spec.input_shape), jnp.float32)

    def answers(params: Variables, batch_stats: Variables, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        seen = network.apply({"params": params, "batch_stats": batch_stats}, image)
        return seen.logits, seen.features

    program = jax.make_jaxpr(answers)(variables["params"], variables["batch_stats"], image).jaxpr
    logits, features = (output.aval.shape[-1] for output in program.outvars)  # pyright: ignore
    found = [
        place
        for place, leaf in enumerate(jax.tree.leaves(variables["params"]))
        if leaf.shape == (features, logits)
        and depend(program, [other == place for other in range(len(program.invars))]) == [True, False]
    ]
    return (lambda variables: jax.tree.leaves(variables["params"])[found[0]].T) if len(found) == 1 else None
