"""Starts a network from another network's weights: with another head, or as the backbone of a larger network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict

from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.convert import graph, naming
from fastdfkd_jax.convert.naming import COUNTER, State
from fastdfkd_jax.convert.sources import Say, read_source
from fastdfkd_jax.errors import UserError, listed, shortened
from fastdfkd_jax.models import Network
from fastdfkd_jax.models.network import variables_of

_PLACES = ("", "backbone.")  # in the network, of another network's weights
_OF_FILE, _OF_NETWORK = 0.5, 0.25  # least shares of the file's and of the network's entries that fit


def starting_from(network: Network, path: str | os.PathLike[str], say: Say = logging.info) -> Network:
    """Returns the network with an `init` that draws new weights only where the given ones do not fit.

    Names are compared, and then shapes; a layer is taken or drawn as a whole. The names of code bases that we know are
    translated. If the network has a backbone, the weights may be those of the backbone alone.

    Args:
      network: the network to train.
      path: a checkpoint of any kind, or the folder of a recorded graph with trained weights.
      say: called with a line about the entries that were taken and those that are drawn.

    Raises:
      UserError: the file cannot be read, less than half of its entries or a quarter of the network's fit, or one of
        them cannot be a weight.
    """
    place = expanded(path)
    state: State = graph.read(place).state if place.is_dir() else read_source(place).state
    given = {name: array for name, array in state.items() if not name.endswith(COUNTER)}
    entries, where = naming.expected_entries(network), shortened(str(path), 80)
    taken = max((_fitting(given, entries, part) for part in _PLACES), key=len)
    if not taken or len(taken) < max(_OF_FILE * len(given), _OF_NETWORK * len(entries)):
        raise UserError(
            f"{where} does not fit {network.spec.arch}: {len(taken)} of its {len(given)} entries have a name and shape "
            f"of the network's {len(entries)}; give weights of such a network or of its backbone"
        )
    if damaged := sorted(name for name, array in taken.items() if not _is_sound(name, array)):
        raise UserError(
            f"expected finite weights and variances of at least 0 in {where}, found others in {listed(damaged)}: give "
            "another file"
        )
    drawn = [name for name in entries if name not in taken]
    say(f"begins with {len(taken)} of the {len(entries)} entries from {where}; drawn: {listed(drawn) or 'none'}")
    leaves = {entries[name].path: naming.to_leaf(array, entries[name]) for name, array in taken.items()}

    def init(key: jax.Array) -> Mapping[str, Any]:
        return variables_of(flatten_dict(dict(network.init(key))) | leaves)

    return network._replace(init=init)


def _fitting(given: State, entries: Mapping[str, naming.Entry], place: str) -> dict[str, np.ndarray]:
    """Returns the weights that fit, by our names, if they are those of the network's part with this prefix."""
    inside = {name.removeprefix(place): name for name in entries if name.startswith(place)}
    names = naming.find_naming(given, inside)
    found = {inside[ours]: array for name, array in given.items() if (ours := names.to_ours(name)) in inside}
    misfits = {_layer(name) for name, array in found.items() if array.shape != entries[name].shape}
    return {name: array for name, array in found.items() if _layer(name) not in misfits}


def _layer(name: str) -> str:
    """Returns the layer of an entry, which is taken or drawn as a whole."""
    return name.rpartition(".")[0]


def _is_sound(name: str, array: np.ndarray) -> bool:
    real = np.issubdtype(array.dtype, np.floating) and bool(np.isfinite(array).all())
    return real and not (name.endswith("running_var") and bool((array < 0).any()))
