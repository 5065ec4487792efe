"""Recorded graphs as files: `graph.json` and `weights.safetensors`, as `convert.record --graph` writes them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastdfkd_jax.convert.files import read_state_dict
from fastdfkd_jax.convert.naming import from_torch_axes
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.graph.network import Graph, VariablePath, network, tree
from fastdfkd_jax.graph.operations import BATCH_NORM, CONVOLUTION, LINEAR, OPERATIONS
from fastdfkd_jax.models import Network, NetworkSpec

GRAPH, WEIGHTS = "graph.json", "weights.safetensors"
FORMAT = 1


def load(
    folder: str | os.PathLike[str],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: Any = jnp.float32,
    conv_gradient: str = "canonical",
) -> tuple[Network, dict[str, Any]]:
    """Reads a recorded graph; torch is not needed.

    Args:
      folder: what `convert.record --graph` wrote.
      mean, std: per channel, how its images in [0, 1] are normalised; the graph does not tell.
      dtype, conv_gradient: as `models.build`.

    Returns:
      The network, whose `init` draws convolutions, linear layers and BatchNorms as PyTorch does and leaves other
      parameters as recorded, and its recorded variables.

    Raises:
      UserError: a file is missing, damaged or of another format; an operation is not known (all such are listed); the
        weights do not fit.
    """
    folder = Path(folder)
    description = _read_description(folder / GRAPH)
    _check_operations(folder, description["nodes"])
    state, _ = read_state_dict(folder / WEIGHTS)
    entries = description["entries"]
    if missing := sorted(set(entries.values()) - state.keys()):
        raise UserError(f"{folder / WEIGHTS} lacks {', '.join(missing)}: record the network again")
    leaves = _leaves(description)
    variables = tree({leaves[holder]: _ours(leaves[holder], state[name]) for holder, name in entries.items()})
    channels, classes = description["channels"], description["classes"]
    if len(mean) != channels or len(std) != channels:
        raise UserError(f"{folder}: mean and std need {channels} numbers each, found {len(mean)} and {len(std)}")
    spec = NetworkSpec("graph", classes, description["image_size"], channels, tuple(mean), tuple(std))
    graph = Graph(description["images"], description["output"], tuple(description["nodes"]), leaves)
    return network(graph, spec, variables, dtype, conv_gradient), variables


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a recorded graph: {error}; record the network with --graph") from error
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT:
        raise UserError(f"{path} has format {found}, expected {FORMAT}: record the network again")
    return description


def _check_operations(folder: Path, nodes: Sequence[Mapping[str, Any]]) -> None:
    unknown = Counter(node["op"] for node in nodes if node["op"] not in (*OPERATIONS, BATCH_NORM))
    if unknown:
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(unknown.items()))
        raise UserError(f"{folder} has operations that are not known: {listed}; replace them in the PyTorch module")


def _ours(path: VariablePath, array: np.ndarray) -> jax.Array:
    """Our layout: HWIO for OIHW, [I, O] for [O, I]."""
    if path[-1] == "kernel":
        array = array.transpose(from_torch_axes(array.ndim))
    return jnp.asarray(array, jnp.float32)


def _leaves(description: Mapping[str, Any]) -> dict[str, VariablePath]:
    """Where in the variables the entry of every placeholder is, told by what uses it."""
    entries, found = description["entries"], {}

    def enter(argument: Any, collection: str, leaf: str) -> None:
        if argument and argument.get("node") in entries:
            module, _, _ = entries[argument["node"]].rpartition(".")
            found[argument["node"]] = (collection, module, leaf)

    for node in description["nodes"]:
        op, arguments = node["op"], node["args"]
        if op in (CONVOLUTION, LINEAR):
            enter(arguments["weight"], "params", "kernel")
            enter(arguments["bias"], "params", "bias")
        elif op == BATCH_NORM:
            enter(arguments["weight"], "params", "scale")
            enter(arguments["bias"], "params", "bias")
            enter(arguments["running_mean"], "batch_stats", "mean")
            enter(arguments["running_var"], "batch_stats", "var")
    for holder, entry in entries.items():
        module, _, leaf = entry.rpartition(".")
        found.setdefault(holder, ("params", module, leaf))
    return found
