"""Exported graphs as networks, which return every BatchNorm's input moments in evaluation and in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax import lax

from fastdfkd_jax.convert.graph import arrangements, attention, made_arrays, operations, products, spatial  # noqa: F401
from fastdfkd_jax.convert.graph.axis_order import CHANNELS_LAST, Laid, arranged, logical, plain
from fastdfkd_jax.convert.graph.norms import INSTANCE_NORM, normalised_by
from fastdfkd_jax.convert.graph.stages import NormInput, attentions, channels_last, norm_inputs, tokens_of
from fastdfkd_jax.convert.graph.table import OPERATIONS
from fastdfkd_jax.convert.naming import WHOLE, from_torch_axes
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import Forms, Network, NetworkSpec, Outputs
from fastdfkd_jax.models.layers import at_least_float32, image_means, input_moments

Array = jax.Array
Variables = Mapping[str, Any]
VariablePath = tuple[str, str, str]  # collection, module, leaf

# Not in the table, because they depend on more than their arguments.
BATCH_NORM = "aten._native_batch_norm_legit_no_training.default"
DROPOUT = "fastdfkd_jax.dropout.default"
# Operations that only move values are not the output of a stage.
_MOVES = ("aten.slice.Tensor", "aten.pad.default", "aten.constant_pad_nd.default", "aten.cat.default")
_LINEAR_INPUT = {products.LINEAR: "input", products.ADDED_PRODUCT: "mat1"}
_MOMENTUM = 0.1  # of running statistics, if a module averages over all batches instead


class Graph(NamedTuple):
    """A network as nodes.

    Attributes:
      images: name of the input.
      output: name of the logits' node; [B, classes], or [B, classes, H, W].
      nodes: in order; each has 'name', 'op' and 'args', the arguments by PyTorch's name.
      leaves: the path in the variables that each placeholder refers to.
      constants: the values of the other placeholders.
    """

    images: str
    output: str
    nodes: tuple[Mapping[str, Any], ...]
    leaves: Mapping[str, VariablePath]
    constants: Mapping[str, np.ndarray]


def network(graph: Graph, spec: NetworkSpec, init: Callable[[Array], Variables], forms: Forms) -> Network:
    """Wraps the graph in the interface of all networks.

    Args:
      graph: nodes of known operations.
      spec: its input and classes.
      init: draws fresh variables from a key.
      forms: precision and convolutions.
    """
    head = _last_linear(graph)
    wide = _descendants(graph, head["name"]) if head else {graph.output}
    of_images = _descendants(graph, graph.images)
    norms, attending = norm_inputs(graph.nodes, _names(graph)), attentions(graph.nodes)
    features_of: str | None = head["args"][_LINEAR_INPUT[head["op"]]]["node"] if head else None

    def apply(
        variables: Variables,
        images: Array,
        train: bool = False,
        moments: bool = False,
        key=None,
        image_means: bool = False,
        tokens: bool = False,
    ) -> Outputs:
        run = _Pass(graph, variables, images, forms.dtype, train, _Asked(moments, image_means), key)
        blocks: dict[tuple[int, ...], Laid] = {}
        for number, node in enumerate(graph.nodes):
            name, op = node["name"], node["op"]
            value: Any
            if op == BATCH_NORM:
                value = (run.batch_norm(node["args"]),)
            elif op == DROPOUT:
                value = run.dropout(node["args"], number)
            else:
                if op == INSTANCE_NORM and train and not node["args"]["use_input_stats"]:
                    raise _untrainable(name)
                own = {"form": forms.conv} if op in spatial.CONVOLUTIONS else {}
                arguments = {argument: run.resolved(given) for argument, given in node["args"].items()}
                value = OPERATIONS[op](**arguments, **own)
            if name not in wide:  # a student learns from logits, so they keep the precision of their sums
                value = jax.tree.map(partial(_rounded, dtype=forms.dtype), value, is_leaf=_is_laid)
            run.values[name] = value
            if name in of_images and op not in _MOVES and _is_map(value, images):
                blocks[value.shape[2:]] = value
        output = run.values[graph.output]
        # Maps of logits are NHWC, like all maps.
        logits = at_least_float32(arranged(output, CHANNELS_LAST) if len(output.order) == 4 else logical(output))
        features = at_least_float32(logical(run.values[features_of])) if features_of else logits
        maps = tuple(arranged(value, CHANNELS_LAST) for value in blocks.values())
        if moments:
            run.observe(norms)
        gathered = (at_least_float32(tokens_of(run.values[name])) for name in attending if tokens)
        return Outputs(logits, features, maps, run.moments, run.batch_stats, run.image_means, tuple(gathered))

    return Network(spec, init, apply, other_norms=tuple(norm.layer for norm in norms))


class _Asked(NamedTuple):
    """The extra outputs that a pass returns for every BatchNorm's input (`models.Outputs`)."""

    moments: bool
    image_means: bool


class _Pass:
    """One forward pass.

    Attributes:
      values: the result of every node and the value of every placeholder.
      batch_stats: running statistics after the BatchNorms so far.
      moments, image_means: those of the BatchNorm inputs so far, if requested.
    """

    def __init__(self, graph: Graph, variables: Variables, images: Array, dtype: Any, train: bool, asked: _Asked, key):
        self._graph, self._train, self._asked, self._key = graph, train, asked, key
        self._leaves: Any = flatten_dict(dict(variables))
        self.values: dict[str, Any] = {graph.images: Laid(images.astype(dtype), CHANNELS_LAST)}
        self.values |= {name: plain(_constant(array, dtype)) for name, array in graph.constants.items()}
        for name, path in graph.leaves.items():
            self.values[name] = _lying(path, _in_precision(path, self._leaves, dtype))
        self.batch_stats = dict(variables["batch_stats"])
        self.moments: dict[str, Any] = {}
        self.image_means: dict[str, Any] = {}

    def resolved(self, argument: Any) -> Any:
        """Returns the value of an argument."""
        if isinstance(argument, list):
            return [self.resolved(item) for item in argument]
        if not isinstance(argument, dict):
            return argument
        if "float" in argument:
            return float(argument["float"])
        return self.values[argument["node"]] if "node" in argument else argument["other"]

    def batch_norm(self, arguments: Mapping[str, Any]) -> Laid:
        """Returns a BatchNorm's output and stores its statistics."""
        holder = arguments["running_mean"]["node"]
        if holder not in self._graph.leaves:
            return self._instance_norm(arguments)
        module = self._graph.leaves[holder][1]
        scale, bias = (self._parameter(arguments[name]) for name in ("weight", "bias"))
        running = self.batch_stats[module]
        x = self.resolved(arguments["input"])
        y, batch, running = _batch_norm(x, scale, bias, running, arguments, self._train, self._asked.moments)
        if self._asked.moments:
            self.moments[module] = batch
        if self._asked.image_means:
            by_image = arranged(x, (0, *(axis for axis in x.order if axis > 1), 1))
            self.image_means[module] = {"mean": image_means(by_image)}
        if self._train:
            self.batch_stats[module] = running
        return y

    def observe(self, norms: Sequence[NormInput]) -> None:
        """Stores the moments of other layers' inputs that the variables hold statistics to compare with."""
        for norm in norms:
            if norm.layer in self.batch_stats:
                x = channels_last(self.values[norm.node], norm.axis)
                self.moments[norm.layer] = dict(zip(("mean", "var"), input_moments(x), strict=True))

    def _instance_norm(self, arguments: Mapping[str, Any]) -> Laid:
        """Evaluates a decomposed InstanceNorm with running statistics, which are repeated, not entries."""
        if self._train:
            raise _untrainable(arguments["running_mean"]["node"])
        names = ("input", "running_mean", "running_var", "weight", "bias")
        values = {name: self.resolved(arguments[name]) for name in names}
        return normalised_by(**values, eps=arguments["eps"])

    def _parameter(self, argument: Mapping[str, Any] | None) -> Array | None:
        return self._leaves[self._graph.leaves[argument["node"]]] if argument else None

    def dropout(self, arguments: Mapping[str, Any], number: int) -> Laid:
        """Returns a dropout's output; every node of the graph has its own key."""
        x = self.resolved(arguments["input"])
        if not self._train or self._key is None:
            return x
        return _dropout(jax.random.fold_in(self._key, number), x, arguments["p"], arguments["channels"])


def _names(graph: Graph) -> dict[str, str]:
    """Returns the names of the whole parameters by placeholder; scales of layers without statistics are such."""
    return {holder: path[1] for holder, path in graph.leaves.items() if path[-1] == WHOLE}


def _untrainable(name: str) -> UserError:
    return UserError(
        f"the InstanceNorm {name} of a recorded graph has running statistics, which are not trained: record the "
        "student with track_running_stats=False"
    )


def _batch_norm(
    value: Laid,
    scale: Array | None,
    bias: Array | None,
    running: Mapping[str, Array],
    arguments: Mapping[str, Any],
    train: bool,
    wants_moments: bool,
) -> tuple[Laid, dict[str, Array], Mapping[str, Array]]:
    """Returns the normalised value, the input's moments, and the new running statistics (`layers.BatchNorm`)."""
    momentum = arguments["momentum"] or _MOMENTUM
    mean, var = running["mean"], running["var"]
    last = (*(axis for axis in value.order if axis != 1), 1)
    x = arranged(value, last)
    batch: dict[str, Array] = {}
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
    """Drops values, or whole channels if `channels`, and scales the kept ones by 1 / (1 - rate)."""
    batch_and_channel = [value.array.shape[i] if axis < 2 else 1 for i, axis in enumerate(value.order)]
    shape = batch_and_channel if channels else value.array.shape
    kept = jax.random.bernoulli(key, 1 - rate, shape)
    return value.map(jnp.where(kept, value.array / (1 - rate), 0) if rate < 1 else jnp.zeros_like(value.array))


def _constant(array: np.ndarray, dtype: Any) -> Array:
    return jnp.asarray(array, dtype if np.issubdtype(array.dtype, np.floating) else None)


def _in_precision(path: VariablePath, leaves: Mapping[Any, Array], dtype: Any) -> Array:
    """Keeps linear layers in the precision of their weights, as `layers.Dense`; casts everything else."""
    kernel = leaves.get((path[0], path[1], "kernel"))
    return leaves[path] if kernel is not None and kernel.ndim == 2 else leaves[path].astype(dtype)


def _rounded(value: Any, dtype: Any) -> Any:
    """Casts a floating-point array to the network's precision; sums use a wider one."""
    if isinstance(value, Laid) and jnp.issubdtype(value.array.dtype, jnp.floating):
        return value.map(value.array.astype(dtype))
    return value


def _lying(path: VariablePath, leaf: Array) -> Laid:
    """Wraps a leaf in the axis order of its entry; kernels are stored as [..., I, O]."""
    return Laid(leaf, from_torch_axes(leaf.ndim)) if path[-1] == "kernel" else plain(leaf)


def _is_map(value: Any, images: Array) -> bool:
    """Returns True for [B, C, h, w] with the images' proportions, unlike attention's [B, heads, tokens, channels]."""
    if not _is_laid(value) or len(value.order) != 4 or not jnp.issubdtype(value.array.dtype, jnp.floating):
        return False
    batch, _, height, width = value.shape
    proportion = abs(height * images.shape[2] - width * images.shape[1])
    return batch == images.shape[0] and proportion <= max(images.shape[1:3])


def _is_laid(value: Any) -> bool:
    return isinstance(value, Laid)


def _last_linear(graph: Graph) -> Mapping[str, Any] | None:
    layers = [node for node in graph.nodes if node["op"] in _LINEAR_INPUT]
    return layers[-1] if layers else None


def _descendants(graph: Graph, name: str) -> set[str]:
    """Returns a node and the nodes whose values depend on it."""
    from fastdfkd_jax.convert.record import references  # not above: `python -m` runs that file as a program

    found = {name}
    for node in graph.nodes:
        if references(node["args"]) & found:
            found.add(node["name"])
    return found
