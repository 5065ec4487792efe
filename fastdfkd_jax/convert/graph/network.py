"""Exported graphs as networks: every BatchNorm's input moments as data, in evaluation and in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax import lax

from fastdfkd_jax.convert.graph import operations, spatial
from fastdfkd_jax.convert.graph.layout import CHANNELS_LAST, Laid, arranged, logical, plain
from fastdfkd_jax.convert.graph.table import OPERATIONS
from fastdfkd_jax.convert.naming import from_torch_axes
from fastdfkd_jax.models import Network, NetworkSpec, Outputs
from fastdfkd_jax.models.layers import at_least_float32, check_conv_gradient, input_moments

Array = jax.Array
Variables = Mapping[str, Any]
VariablePath = tuple[str, str, str]  # collection, module, leaf

# Not in the table: they depend on more than their arguments.
BATCH_NORM = "aten._native_batch_norm_legit_no_training.default"
DROPOUT = "fastdfkd_jax.dropout.default"
# What only moves numbers about is not what a stage gives.
_MOVES = ("aten.slice.Tensor", "aten.pad.default", "aten.constant_pad_nd.default", "aten.cat.default")
_MOMENTUM = 0.1  # of running statistics, where a module averages over all batches instead


class Graph(NamedTuple):
    """A network as nodes.

    Attributes:
      images: name of the input.
      output: name of the logits' node; [B, classes], or [B, classes, H, W].
      nodes: in order; each has 'name', 'op' and 'args', the arguments by PyTorch's name.
      leaves: where in the variables that is, which a placeholder stands for.
      constants: what other placeholders stand for.
    """

    images: str
    output: str
    nodes: tuple[Mapping[str, Any], ...]
    leaves: Mapping[str, VariablePath]
    constants: Mapping[str, np.ndarray]


def network(
    graph: Graph, spec: NetworkSpec, init: Callable[[Array], Variables], dtype: Any, conv_gradient: str
) -> Network:
    """The graph as a network under the contract of all networks.

    Args:
      graph: nodes of known operations.
      spec: its input and classes.
      init: gives fresh variables of a key.
      dtype, conv_gradient: as `models.build`.
    """
    check_conv_gradient(conv_gradient)
    features_of = _penultimate(graph)

    def apply(variables: Variables, images: Array, train: bool = False, moments: bool = False, key=None) -> Outputs:
        leaves: Any = flatten_dict(dict(variables))
        values: dict[str, Any] = {graph.images: Laid(images.astype(dtype), CHANNELS_LAST)}
        values |= {name: plain(_constant(array, dtype)) for name, array in graph.constants.items()}
        values |= {name: _lying(path, leaves[path].astype(dtype)) for name, path in graph.leaves.items()}
        found: dict[str, Any] = {}
        batch_stats = dict(variables["batch_stats"])
        blocks: dict[tuple[int, ...], Laid] = {}

        def resolved(value: Any) -> Any:
            if isinstance(value, list):
                return [resolved(item) for item in value]
            if not isinstance(value, dict):
                return value
            if "float" in value:
                return float(value["float"])
            return values[value["node"]] if "node" in value else value["other"]

        for number, node in enumerate(graph.nodes):
            name, op, arguments = node["name"], node["op"], node["args"]
            if op == BATCH_NORM:
                x = resolved(arguments["input"])
                y, batch, running = _batch_norm(x, _parts(node, graph, leaves), arguments, train, moments)
                module = graph.leaves[arguments["running_mean"]["node"]][1]
                if moments:
                    found[module] = batch
                if train:
                    batch_stats[module] = running
                values[name] = (y,)
                continue
            if op == DROPOUT:
                x = resolved(arguments["input"])
                if train and key is not None:
                    x = _dropout(jax.random.fold_in(key, number), x, arguments["p"], arguments["channels"])
                values[name] = x
                continue
            if op in spatial.CONVOLUTIONS:
                arguments = arguments | {"gradient": conv_gradient}
            value = OPERATIONS[op](**{key: resolved(argument) for key, argument in arguments.items()})
            values[name] = value
            if isinstance(value, Laid) and len(value.order) == 4 and op not in _MOVES:
                blocks[value.shape[2:]] = value
        output = values[graph.output]
        # A map of logits is NHWC, as every other.
        logits = at_least_float32(arranged(output, CHANNELS_LAST) if len(output.order) == 4 else logical(output))
        features = at_least_float32(logical(values[features_of])) if features_of else logits
        stages = tuple(arranged(value, CHANNELS_LAST) for value in blocks.values())
        return Outputs(logits, features, stages, found, batch_stats)

    return Network(spec, init, apply)


def _parts(node: Mapping[str, Any], graph: Graph, leaves: Mapping[Any, Array]) -> tuple[Any, ...]:
    """Scale, shift, running mean and variance of a BatchNorm; None where it has no scale or shift."""
    given = [node["args"][name] for name in ("weight", "bias", "running_mean", "running_var")]
    return tuple(argument and leaves[graph.leaves[argument["node"]]] for argument in given)


def _batch_norm(value: Laid, parts: tuple[Any, ...], arguments: Mapping[str, Any], train: bool, wants_moments: bool):
    """The normalised value, the moments of the input, and the running statistics after it (`layers.BatchNorm`)."""
    scale, bias, mean, var = parts
    momentum = arguments["momentum"] or _MOMENTUM
    last = (*(axis for axis in value.order if axis != 1), 1)
    x = arranged(value, last)
    batch, running = {}, {"mean": mean, "var": var}
    if train or wants_moments:
        batch = dict(zip(("mean", "var"), input_moments(x), strict=True))
    if train:
        count = x.size // x.shape[-1]
        unbiased = batch | {"var": batch["var"] * (count / max(count - 1, 1))}
        running = {name: (1 - momentum) * running[name] + momentum * unbiased[name] for name in running}
        mean, var = batch["mean"], batch["var"]
    multiplier = lax.rsqrt(var + arguments["eps"])
    multiplier = multiplier if scale is None else multiplier * scale
    shift = -mean * multiplier if bias is None else bias - mean * multiplier
    return Laid(x * multiplier.astype(x.dtype) + shift.astype(x.dtype), last), batch, running


def _dropout(key: Array, value: Laid, rate: float, channels: bool) -> Laid:
    """What is kept, by 1 / (1 - rate); of whole channels where only these are dropped."""
    batch_and_channel = [value.array.shape[i] if axis < 2 else 1 for i, axis in enumerate(value.order)]
    shape = batch_and_channel if channels else value.array.shape
    kept = jax.random.bernoulli(key, 1 - rate, shape)
    return value.map(jnp.where(kept, value.array / (1 - rate), 0) if rate < 1 else jnp.zeros_like(value.array))


def _constant(array: np.ndarray, dtype: Any) -> Array:
    return jnp.asarray(array, dtype if np.issubdtype(array.dtype, np.floating) else None)


def _lying(path: VariablePath, leaf: Array) -> Laid:
    """A leaf as its entry: kernels lie as [..., I, O]."""
    return Laid(leaf, from_torch_axes(leaf.ndim)) if path[-1] == "kernel" else plain(leaf)


def _penultimate(graph: Graph) -> str | None:
    """What the last linear layer is applied to."""
    argument = {operations.LINEAR: "input", operations.ADDED_PRODUCT: "mat1"}
    layers = [node["args"][argument[node["op"]]]["node"] for node in graph.nodes if node["op"] in argument]
    return layers[-1] if layers else None
