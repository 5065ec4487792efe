"""Reads recorded graphs: `graph.json` and `weights.safetensors`, as `convert.record --graph` writes them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.convert.graph.arrangements import PERMUTE
from fastdfkd_jax.convert.graph.declared import TASKS, check_declared
from fastdfkd_jax.convert.graph.graph_network import BATCH_NORM, DROPOUT, Graph, VariablePath, network
from fastdfkd_jax.convert.graph.init_weights import redrawn, shuffled
from fastdfkd_jax.convert.graph.products import ADDED_PRODUCT, LINEAR
from fastdfkd_jax.convert.graph.spatial import CONVOLUTIONS
from fastdfkd_jax.convert.graph.table import OPERATIONS
from fastdfkd_jax.convert.naming import WHOLE, from_torch_axes, torch_name
from fastdfkd_jax.convert.weight_files import SUFFIXES, State, read_state_dict
from fastdfkd_jax.errors import UserError, listed, shortened
from fastdfkd_jax.models import Forms, Network, NetworkSpec, OtherEntries
from fastdfkd_jax.models.network import variables_of
from fastdfkd_jax.storage.limits import read_json, require_bytes

ARCH = "graph"  # prefix of `arch` in every recorded network's spec
_ROOM = 160  # characters of a reason within a message


class Recorded(NamedTuple):
    """A recorded graph as read from its folder.

    Attributes:
      folder: path of the folder.
      description: the result of `record.describe`, with the classes, the task and known properties of the images.
      weights: the state dictionary and other constants, by name.
    """

    folder: Path
    description: Mapping[str, Any]
    weights: State

    @property
    def state(self) -> State:
        """The state dictionary alone."""
        return {name: self.weights[name] for name in self.description["state"]}


def read(folder: str | os.PathLike[str]) -> Recorded:
    """Reads and checks a recorded graph; torch is not needed.

    Raises:
      UserError: a file is missing, damaged or of another format; an operation is unknown (all such are listed); or the
        weights do not fit.
    """
    from fastdfkd_jax.convert.record import WEIGHTS  # not above: `python -m` runs that file as a program

    folder = expanded(folder)
    description = read_description(folder)
    weights, _ = read_state_dict(folder / WEIGHTS)
    recorded = Recorded(folder, description, weights)
    check(recorded)
    return recorded


def check(recorded: Recorded) -> None:
    """Checks a graph with its weights, without computing anything.

    Raises:
      UserError: as in `read`.
    """
    from fastdfkd_jax.convert.record import GRAPH, WEIGHTS

    folder, description, weights = recorded
    try:
        _check_nodes(folder, description)
        _check_weights(folder / WEIGHTS, weights, description)
        found = _shape_of_logits(recorded)
    except UserError:
        raise
    except Exception as error:  # damaged descriptions or unusual arguments can raise anything
        reason = shortened(f"{type(error).__name__}: {error}", _ROOM)
        raise UserError(f"{folder / GRAPH} is damaged or cannot be built ({reason}): record it again") from error
    classes = description["classes"]
    if found[-1:] != (classes,) or len(found) != TASKS[description["task"]]:
        wrong = f"expected logits of {classes} classes, found shape {found}"
        raise UserError(f"{folder / GRAPH} is damaged ({wrong}): record it again")


def _shape_of_logits(recorded: Recorded) -> tuple[int, ...]:
    """Returns the shape for one image without computing; no array may exceed the memory limit."""
    unit = (1.0,) * recorded.description["channels"]
    network = build(recorded, mean=unit, std=unit)
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0)))
    images = jax.ShapeDtypeStruct((1, *network.spec.input_shape), jnp.float32)
    program, outputs = jax.make_jaxpr(network.apply, return_shape=True)(variables, images)
    arrays = [variable.aval for equation in program.jaxpr.eqns for variable in equation.outvars]
    largest = max((aval.size * aval.dtype.itemsize for aval in arrays), default=0)
    require_bytes(largest, f"an array that {recorded.folder} computes of one image")
    return outputs.logits.shape


def build(
    recorded: Recorded,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    forms: Forms = Forms(),
) -> Network:
    """Builds the network of a recorded graph.

    Args:
      recorded: the result of `read`.
      mean, std: per-channel normalisation of images in [0, 1].
      forms: precision and convolutions.

    Returns:
      The network. If the recorded weights are a constructor's initial ones, its `init` shuffles each tensor of
      convolutions and linear layers, which is a new draw if all entries have one distribution. Otherwise `init` draws
      these and BatchNorms with PyTorch's defaults. Other parameters stay as recorded.
    """
    description = recorded.description
    size, channels = description["image_size"], description["channels"]
    arch = f"{ARCH}:{recorded.folder.resolve().name}"
    spec = NetworkSpec(arch, description["classes"], size, channels, tuple(mean), tuple(std), description["task"])
    leaves = _leaves(description)
    entries = description["entries"]
    constants = {holder: recorded.weights[name] for holder, name in entries.items() if holder not in leaves}
    graph = Graph(description["images"], description["output"], tuple(description["nodes"]), leaves, constants)
    trained = {entries[holder]: path for holder, path in leaves.items()}
    ties = description["ties"]
    fixed = {
        # A student has seen no batches yet.
        name: np.zeros_like(array) if name.endswith("num_batches_tracked") else array
        for name, array in recorded.state.items()
        if name not in trained and name not in ties
    }
    values = variables_of({path: _ours(path, recorded.weights[name]) for name, path in trained.items()})
    init = shuffled if description["initial"] else redrawn
    return network(graph, spec, partial(init, recorded=values), forms)._replace(others=OtherEntries(fixed, ties))


def read_description(folder: Path) -> dict[str, Any]:
    """Reads and checks the description of a recorded graph alone; raises UserError as `read` does."""
    from fastdfkd_jax.convert.record import FORMAT, GRAPH

    path = folder / GRAPH
    try:
        description = read_json(path, "graph")
    except FileNotFoundError as error:
        raise UserError(
            f"{path.parent} is a folder without {path.name}: expected a file that ends in {', '.join(SUFFIXES)}, "
            "or what convert.record --graph wrote"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({shortened(error, _ROOM)}): record the network again"
        ) from error
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT:
        raise UserError(f"{path} has format {shortened(found, _ROOM)}, expected {FORMAT}: record the network again")
    check_declared(description, path)
    return description


def _check_nodes(folder: Path, description: Mapping[str, Any]) -> None:
    """Checks that every operation is known and that every input of a node is defined before it."""
    from fastdfkd_jax.convert.record import GRAPH, references

    unknown: Counter[str] = Counter()
    there = {description["images"], *description["entries"]}
    for node in description["nodes"]:
        op = node["op"]
        if op not in OPERATIONS and op not in (BATCH_NORM, DROPOUT):
            unknown[op] += 1
        elif node["args"].get("transposed"):
            unknown[f"transposed {op}"] += 1
        if strange := references(node["args"]) - there:
            wrong = f"node {node['name']} takes {listed(sorted(strange))}, which no node gives"
            raise UserError(f"{folder / GRAPH} is damaged ({wrong}): record it again")
        there.add(node["name"])
    if unknown:
        names = ", ".join(f"{name} ({count})" for name, count in sorted(unknown.items()))
        raise UserError(
            f"{shortened(folder, 60)} has unsupported operations: {shortened(names, _ROOM)}; replace them in "
            "the PyTorch module"
        )
    if description["output"] not in there:
        wrong = f"no node gives its output {description['output']}"
        raise UserError(f"{folder / GRAPH} is damaged ({wrong}): record it again")


def _check_weights(path: Path, weights: State, description: Mapping[str, Any]) -> None:
    shapes = description["shapes"]
    faults = []
    for name in sorted({*shapes, *description["entries"].values(), *description["state"]}):
        if name not in weights or name not in shapes:
            faults.append(f"lacks {name}")
        elif list(weights[name].shape) != shapes[name]:
            faults.append(f"has {name} of shape {list(weights[name].shape)}, expected {shapes[name]}")
    if faults:
        text = shortened("; it ".join(faults), _ROOM)
        raise UserError(f"{path} does not fit its graph (it {text}): record the network again")


def _ours(path: VariablePath, array: np.ndarray) -> np.ndarray:
    """Converts OIHW to HWIO and [O, I] to [I, O], as a view, because networks are built more often than initialised."""
    return array.transpose(from_torch_axes(array.ndim)) if path[-1] == "kernel" else array


def _leaves(description: Mapping[str, Any]) -> dict[str, VariablePath]:
    """Finds the path in the variables of every placeholder that trains, from the operations that use it.

    Buffers other than running statistics, such as the kernel of a blur, are constants.
    """
    entries, found = description["entries"], {}

    def enter(argument: Any, collection: str, leaf: str) -> None:
        if not argument or argument.get("node") not in entries or argument["node"] in found:
            return
        entry = entries[argument["node"]]
        path = (collection, entry.rpartition(".")[0], leaf)
        # Names from a function, or a second layer of this kind in a module, are entered by the full name below.
        if entry == torch_name(path) and path not in found.values():
            found[argument["node"]] = path
        elif collection == "batch_stats":
            raise UserError(f"the BatchNorm statistics {entry} are not called {torch_name(path)}: rename the buffer")

    nodes = {node["name"]: node for node in description["nodes"]}
    for node in nodes.values():
        op, arguments = node["op"], node["args"]
        if op in (*CONVOLUTIONS, LINEAR):
            enter(arguments["weight"], "params", "kernel")
            enter(arguments["bias"], "params", "bias")
        elif op == ADDED_PRODUCT:  # a decomposed linear layer
            factor = nodes.get(arguments["mat2"]["node"], {})
            if factor.get("op") == PERMUTE:
                enter(factor["args"]["self"], "params", "kernel")
                enter(arguments["self"], "params", "bias")
        elif op == BATCH_NORM:
            enter(arguments["weight"], "params", "scale")
            enter(arguments["bias"], "params", "bias")
            enter(arguments["running_mean"], "batch_stats", "mean")
            enter(arguments["running_var"], "batch_stats", "var")
    trains = {*description["parameters"]} | {entries[holder] for holder, path in found.items() if path[0] != "params"}
    for holder, entry in entries.items():
        found.setdefault(holder, ("params", entry, WHOLE))
    return {holder: path for holder, path in found.items() if entries[holder] in trains}
