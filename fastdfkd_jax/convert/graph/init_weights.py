"""Fresh weights for recorded networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from fastdfkd_jax.convert.graph.graph_network import VariablePath
from fastdfkd_jax.models.layers import torch_bias, torch_uniform
from fastdfkd_jax.models.network import variables_of

Array = jax.Array


def shuffled(key: Array, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Draws initial weights again by permuting the entries of each kernel and of its bias.

    Entries drawn from one distribution, whichever it is, are equally likely in any order. BatchNorms and parameters
    outside the usual layers, whose positions may have a meaning, stay.
    """
    flat = _flat(recorded)
    new = {}
    for own, (path, leaf) in zip(jax.random.split(key, len(flat)), flat.items(), strict=True):
        drawn = path[-1] == "kernel" or (path[-1] == "bias" and _kernel(flat, path) is not None)
        new[path] = jax.random.permutation(own, leaf.ravel()).reshape(leaf.shape) if drawn else leaf
    return variables_of(new)


def redrawn(key: Array, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Draws PyTorch's default initial convolutions, linear layers and BatchNorms; keeps other parameters."""
    flat = _flat(recorded)
    new = {}
    for own, (path, leaf) in zip(jax.random.split(key, len(flat)), flat.items(), strict=True):
        kernel = _kernel(flat, path)
        match path[-1]:
            case "kernel":
                new[path] = torch_uniform(own, leaf.shape)
            case "bias" if kernel is not None:
                new[path] = torch_bias(kernel.size // kernel.shape[-1])(own, leaf.shape)
            case "bias" | "mean":
                new[path] = jnp.zeros_like(leaf)
            case "scale" | "var":
                new[path] = jnp.ones_like(leaf)
            case _:
                new[path] = leaf
    return variables_of(new)


def _flat(variables: Mapping[str, Any]) -> dict[VariablePath, Array]:
    flat: Any = jax.tree.map(jnp.asarray, flatten_dict(dict(variables)))
    return flat


def _kernel(flat: Mapping[VariablePath, Array], path: VariablePath) -> Array | None:
    """Returns the kernel of the layer that a leaf belongs to."""
    return flat.get((path[0], path[1], "kernel"))
