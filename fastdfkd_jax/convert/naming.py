"""The rule that maps variable trees to PyTorch state dictionaries, and the aliases of module names.

Linen modules carry the dotted PyTorch name of the module, so that only leaf names and layouts differ:
`kernel` (HWIO, or [I, O]) is `weight` (OIHW, or [O, I]), `scale` is `weight`, `mean` and `var` are
`running_mean` and `running_var`. Statistics are copied unchanged, because both sides keep the unbiased variance.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict

from fastdfkd_jax.convert.messages import UNKNOWN_NETWORK, all_faults
from fastdfkd_jax.models import Network
from fastdfkd_jax.models.network import variables_of

State = Mapping[str, np.ndarray]

COUNTER = "num_batches_tracked"
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")

# Names of the same part in different code bases; RepDistiller and torchvision use fc and downsample.
ALIASES = (("linear", "fc", "classifier"), ("shortcut", "downsample"))

# DeepLab's head in the port that we follow and in torchvision, and torchvision's second head, used only in training.
DEEPLAB_HEAD = ("classifier.classifier", "classifier")
AUXILIARY = "aux_classifier."

# Leaf of a parameter outside the usual layers; its module's name is the entry's full name.
WHOLE = "value"

_LEAVES = {
    ("params", WHOLE): "",
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


@dataclass(frozen=True)
class Naming:
    """The differences between a checkpoint's entry names and ours.

    Attributes:
      prefix: prefix of every name, for example 'module.' of DataParallel.
      renames: pairs (our name, their name) of a dotted component, or of a few in a row.
    """

    prefix: str = ""
    renames: tuple[tuple[str, str], ...] = ()

    def to_ours(self, name: str) -> str:
        """Returns our name of a checkpoint entry."""
        table = {theirs: ours for ours, theirs in self.renames}
        return _rename(name.removeprefix(self.prefix), table)

    def to_source(self, name: str) -> str:
        """Returns the checkpoint's name of one of our entries."""
        return self.prefix + _rename(name, dict(self.renames))


class Entry(NamedTuple):
    """One array of a network: its path in the tree (if it is a variable), and its shape in PyTorch's layout."""

    path: tuple[str, ...]
    shape: tuple[int, ...]


def _rename(name: str, table: Mapping[str, str]) -> str:
    if not table:
        return name
    longest_first = sorted(table, key=len, reverse=True)
    return re.sub(rf"(?<![^.])(?:{'|'.join(map(re.escape, longest_first))})(?![^.])", lambda m: table[m[0]], name)


def common_prefix(names: Iterable[str]) -> str:
    """Returns the leading components that all names share ('module.model.', 'backbone.'), or ''.

    A layer's name is not a prefix: the remaining names must have components too, and not all the same first one.
    """
    parts = [name.split(".") for name in names]
    shared = next((i for i, column in enumerate(zip(*parts, strict=False)) if len(set(column)) > 1), None)
    if shared is not None and any(len(name) > shared + 1 for name in parts):
        return "".join(f"{part}." for part in parts[0][:shared])
    return _wrappers(".".join(name) for name in parts)


def _wrappers(names: Iterable[str]) -> str:
    """Returns the prefix of known wrappers only, for names that are too few to infer one."""
    names, prefix = list(names), ""
    while step := next((p for p in PREFIXES if names and all(n.startswith(prefix + p) for n in names)), None):
        prefix += step
    return prefix


def find_naming(names: Iterable[str], expected: Iterable[str]) -> Naming:
    """Finds the prefix and the aliases that map `names` to the `expected` ones as far as possible."""
    names, expected = list(names), list(expected)
    prefix = common_prefix(names).removesuffix(common_prefix(expected))
    theirs = {part for name in names for part in name.removeprefix(prefix).split(".")}
    ours = {part for name in expected for part in name.split(".")}
    pairs = []
    for group in ALIASES:
        our_names, their_names = ours.intersection(group), theirs.intersection(group)
        # Two names of a group on one side are ambiguous, so neither is renamed.
        if len(our_names) == len(their_names) == 1 and our_names != their_names:
            pairs.append((our_names.pop(), their_names.pop()))
    if _has_torchvisions_head([name.removeprefix(prefix) for name in names], expected):
        pairs.append(DEEPLAB_HEAD)
    return Naming(prefix, tuple(pairs))


def _has_torchvisions_head(names: Sequence[str], expected: Sequence[str]) -> bool:
    inner, outer = (f"{head}." for head in DEEPLAB_HEAD)
    is_deeplab = any(name.startswith(inner) for name in expected)
    return is_deeplab and any(n.startswith(outer) for n in names) and not any(n.startswith(inner) for n in names)


def torch_name(path: tuple[str, ...]) -> str:
    """Returns the entry name of a leaf, (collection, modules..., leaf)."""
    return ".".join(filter(None, (*path[1:-1], _LEAVES[path[0], path[-1]])))


def _torch_shape(shape: tuple[int, ...], leaf: str) -> tuple[int, ...]:
    if leaf != "kernel":
        return shape
    return tuple(shape[axis] for axis in _to_torch_axes(len(shape)))


def _to_torch_axes(rank: int) -> tuple[int, ...]:
    """Returns the axes that permute [..., I, O] to [O, I, ...]."""
    return (rank - 1, rank - 2, *range(rank - 2))


def from_torch_axes(rank: int) -> tuple[int, ...]:
    """Returns the axes that permute [O, I, ...] to [..., I, O]."""
    return (*range(2, rank), 1, 0)


def expected_entries(network: Network) -> dict[str, Entry]:
    """Returns every state dictionary entry of the network by our name, except the batch counters."""
    shapes: Any = flatten_dict(dict(jax.eval_shape(network.init, jax.random.key(0))))
    return {torch_name(path): Entry(path, _torch_shape(leaf.shape, path[-1])) for path, leaf in shapes.items()}


def batch_norm_names(entries: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of the modules with running statistics, in order."""
    suffix = ".running_mean"
    return tuple(sorted(name.removesuffix(suffix) for name in entries if name.endswith(suffix)))


def to_state_dict(variables: Mapping[str, Any], num_batches_tracked: int | None = 0) -> dict[str, np.ndarray]:
    """Converts variables to a PyTorch state dictionary.

    Args:
      variables: the collections 'params' and 'batch_stats'.
      num_batches_tracked: value of every BatchNorm's counter; None leaves the counters out.

    Returns:
      f32 arrays with PyTorch's names and layout, and the int64 counters. Load it with `strict=True`.
    """
    state = {}
    for path, leaf in flatten_dict({name: variables[name] for name in ("params", "batch_stats")}).items():
        array = np.asarray(leaf)
        if path[-1] == "kernel":
            array = array.transpose(_to_torch_axes(array.ndim))
        state[torch_name(path)] = np.array(array, order="C")
    if num_batches_tracked is not None:
        for name in batch_norm_names(state):
            state[f"{name}.{COUNTER}"] = np.array(num_batches_tracked, np.int64)
    return state


def state_of(network: Network, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the network's complete state dictionary, which its PyTorch module loads with `strict=True`."""
    if network.others is None:
        return to_state_dict(variables)
    state = to_state_dict(variables, num_batches_tracked=None) | dict(network.others.fixed)
    return state | {name: state[owner] for name, owner in network.others.ties.items()}


def from_state_dict(state: State, network: Network) -> dict[str, Any]:
    """Converts a PyTorch state dictionary to the network's variables.

    Args:
      state: arrays with PyTorch's names and layout. Wrapper prefixes and known aliases are recognised, and
        the batch counters are dropped.
      network: the network, whose tree and shapes are expected.

    Returns:
      The collections 'params' and 'batch_stats', f32. A zero variance is logged as a warning.

    Raises:
      UserError: lists every missing, unused, mis-shaped and impossible entry, by the checkpoint's names.
    """
    return to_variables(understand(state, network)[0], network)


def understand(state: State, network: Network) -> tuple[dict[str, np.ndarray], Naming]:
    """Returns a state dictionary under our names, checked, and how its own names differ.

    Raises:
      UserError: it is not a valid checkpoint of this network (`from_state_dict`).
    """
    expected, state = expected_entries(network), without_auxiliary(state, network)
    naming = find_naming(state, expected)
    ours = {naming.to_ours(name): array for name, array in state.items()}
    _check(ours, expected, naming, network)
    return ours, naming


def without_auxiliary(state: State, network: Network) -> State:
    """Removes the second head that torchvision trains a segmentation network with, and logs it."""
    if network.spec.task != "segmentation" or network.others is not None:
        return state
    start = common_prefix(state) + AUXILIARY
    kept = {name: array for name, array in state.items() if not name.startswith(start)}
    if len(kept) < len(state):
        logging.warning("ignored %d entries of %s*, a head used only in training", len(state) - len(kept), start)
    return kept


def to_variables(ours: State, network: Network) -> dict[str, Any]:
    """Converts arrays that `understand` has checked to the collections 'params' and 'batch_stats', f32."""
    return variables_of({entry.path: to_leaf(ours[name], entry) for name, entry in expected_entries(network).items()})


def to_leaf(array: np.ndarray, entry: Entry) -> jax.Array:
    """Converts an array in PyTorch's layout to the variable of an entry, f32."""
    array = np.asarray(array, np.float32)
    return jnp.asarray(array.transpose(from_torch_axes(array.ndim)) if entry.path[-1] == "kernel" else array)


def _check(ours: State, expected: Mapping[str, Entry], naming: Naming, network: Network) -> None:
    """Refuses a state dictionary that does not fit the network, with all faults in one line."""
    known = {f"{name}.{COUNTER}" for name in batch_norm_names(expected)}
    if network.others is not None:
        fixed = {n: Entry((), array.shape) for n, array in network.others.fixed.items() if not n.endswith(COUNTER)}
        known |= {*network.others.fixed, *network.others.ties}
        expected = {**expected, **fixed}
    present = [name for name in expected if name in ours]
    fitting = [name for name in present if _fits(ours[name], expected[name])]
    variances = [name for name in fitting if name.endswith("running_var")]
    faults = {
        "missing": [n for n in expected if n not in ours],
        "not used": [n for n in ours if n not in expected and n not in known],
        "mis-shaped": [n for n in present if n not in fitting],
        "not finite": [n for n in fitting if not np.isfinite(ours[n]).all()],
        "negative variance": [n for n in variances if (ours[n] < 0).any()],
    }
    wrong = {fault: sorted(names) for fault, names in faults.items() if names}
    texts = {f: [_described(n, f, ours, expected, naming) for n in names] for f, names in wrong.items()}
    if texts:
        arch, classes = network.spec.arch, network.spec.num_classes
        bare = "" if batch_norm_names(ours) else " (it has no BatchNorm)"
        raise all_faults(f"not a valid {arch} of {classes} classes{bare}", texts, _mend(texts, network))
    _warn_of_zeros({naming.to_source(name): ours[name] for name in variances})


def _described(name: str, fault: str, ours: State, expected: Mapping[str, Entry], naming: Naming) -> str:
    source = naming.to_source(name)
    return f"{source} ({_misfit(ours[name], expected[name])})" if fault == "mis-shaped" else source


def _mend(texts: Mapping[str, Sequence[str]], network: Network) -> str:
    if network.others is not None:
        return "expected weights of the recorded module"
    if texts.keys() <= {"not finite", "negative variance"}:
        return "training diverged or the file is damaged: take another checkpoint"
    if texts.keys() == {"not used"}:
        return f"--ignore '{texts['not used'][0].rpartition('.')[0]}.*' drops entries; {UNKNOWN_NETWORK}"
    return f"check --arch; {UNKNOWN_NETWORK}"


def _warn_of_zeros(variances: State) -> None:
    zeros = {name: int((array == 0).sum()) for name, array in variances.items()}
    if any(zeros.values()):
        texts = (f"{name} ({count} channels)" for name, count in zeros.items() if count)
        logging.warning("a variance of 0, so BatchNorm divides by the root of epsilon: %s", ", ".join(texts))


def _fits(array: np.ndarray, entry: Entry) -> bool:
    # An entry that is not a variable may also be an index.
    return array.shape == entry.shape and (not entry.path or np.issubdtype(array.dtype, np.floating))


def _misfit(array: np.ndarray, entry: Entry) -> str:
    found = "x".join(map(str, array.shape)) or "one number"
    kind = "" if np.issubdtype(array.dtype, np.floating) else f" {array.dtype}"
    return f"found {found}{kind}, expected {'x'.join(map(str, entry.shape))}"
