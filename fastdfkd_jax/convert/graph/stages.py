"""Nodes of a graph whose values inversion can use: inputs of normalisation layers, and outputs of attention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax

from fastdfkd_jax.convert.graph.axis_order import Laid, arranged, logical

Array = jax.Array
Node = Mapping[str, Any]

_LAYER_NORMS = ("aten.layer_norm.default", "aten.native_layer_norm.default")
_GROUP_NORMS = ("aten.group_norm.default", "aten.native_group_norm.default", "aten.instance_norm.default")
_ATTENTION = "aten.scaled_dot_product_attention.default"
_SOFTMAX = ("aten.softmax.int", "aten._softmax.default")
_PRODUCTS = ("aten.matmul.default", "aten.bmm.default")
# Operations between a softmax and the product with the values that change no share, or only scale it in training.
_BETWEEN = ("fastdfkd_jax.dropout.default", "aten.clone.default", "aten.expand.default", "aten.view.default")
_BETWEEN += ("aten.reshape.default", "aten._unsafe_view.default", "aten.alias.default", "aten.contiguous.default")


class NormInput(NamedTuple):
    """The input of a normalisation layer without running statistics.

    Attributes:
      layer: name of the layer.
      node: name of the node that is its input.
      axis: logical axis of the channels.
    """

    layer: str
    node: str
    axis: int


def norm_inputs(nodes: Iterable[Node], entries: Mapping[str, str]) -> tuple[NormInput, ...]:
    """Finds the inputs of the layers with a scale, in the order of the nodes; a layer that is used twice counts once.

    Args:
      nodes: the graph's nodes.
      entries: names in the state dictionary by placeholder.
    """
    found: dict[str, NormInput] = {}
    for node in nodes:
        arguments = node["args"]
        scale = arguments.get("weight")
        if node["op"] not in (*_LAYER_NORMS, *_GROUP_NORMS) or not scale or scale.get("node") not in entries:
            continue
        layer = entries[scale["node"]].rpartition(".")[0]
        one_axis = len(arguments.get("normalized_shape", ())) == 1
        found.setdefault(layer, NormInput(layer, arguments["input"]["node"], -1 if one_axis else 1))
    return tuple(found.values())


def channels_last(value: Laid, axis: int) -> Array:
    """Returns the array with this logical axis last."""
    rank = len(value.order)
    axis %= rank
    return arranged(value, (*(other for other in value.order if other != axis), axis))


def attentions(nodes: Iterable[Node]) -> list[str]:
    """Returns the names of the nodes that give what attention has gathered: [..., tokens, channels of a head]."""
    found, shares = [], set()
    for node in nodes:
        name, op, arguments = node["name"], node["op"], node["args"]
        first = next((given.get("node") for given in arguments.values() if isinstance(given, dict)), None)
        if op == _ATTENTION:
            found.append(name)
        elif op in _SOFTMAX or (op in _BETWEEN and first in shares):
            shares.add(name)
        elif op in _PRODUCTS and first in shares:
            found.append(name)
    return found


def tokens_of(value: Laid) -> Array:
    """Returns what attention has gathered as f32[images or windows, tokens, channels of all heads].

    Heads that were merged with the images count as images.
    """
    x = logical(value)
    if x.ndim < 4:
        return x.reshape(-1, *x.shape[-2:])
    *_, heads, tokens, channels = x.shape
    return x.swapaxes(-3, -2).reshape(-1, tokens, heads * channels)
