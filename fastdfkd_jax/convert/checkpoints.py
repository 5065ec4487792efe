"""Networks from checkpoints and recorded graphs: `load_network`, `save_network`, and the spec of the weights."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from absl import logging

from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.convert import graph, naming, weight_files
from fastdfkd_jax.convert.choosing import ALL, Choice
from fastdfkd_jax.convert.messages import LongError
from fastdfkd_jax.convert.naming import Naming
from fastdfkd_jax.convert.sources import Say, Source, check_spec, find_spec, not_normalised, read_source
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import Forms, Network, build


class Build(Protocol):
    """Builds the network of a checkpoint, with the arguments of `models.build`."""

    def __call__(self, *, forms: Forms = ...) -> Network: ...


class Opened(NamedTuple):
    """A checkpoint and the network that it belongs to.

    Attributes:
      source: the source that was read.
      build: builds the network in any precision and form of convolutions.
      state: the source's arrays under our names, checked.
      naming: how the source's names differ from ours.
    """

    source: Source
    build: Build
    state: dict[str, np.ndarray]
    naming: Naming


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    needs_normalization: bool = True,
    choice: Choice = ALL,
    say: Say = logging.warning,
    **known,
) -> Opened:
    """Reads and checks a checkpoint, or the folder of a recorded graph.

    Args:
      path: the file or folder.
      needs_normalization, known: as in `find_spec`; `arch` may be the folder of a recorded graph to which the weights
        belong.
      choice, say: as in `read_source`.

    Raises:
      UserError: the source is invalid, or something required is unknown.
    """
    path = expanded(path)
    if known.get("arch"):
        known["arch"] = os.path.expanduser(known["arch"])
    arch = known.get("arch")
    if path.is_dir():
        if choice != ALL:
            raise UserError(f"{path} is a recorded graph: leave out --weights, --key, --prefix and --ignore")
        if arch is not None and Path(arch).resolve() != Path(path).resolve():
            raise UserError(f"{path} is a recorded graph, expected {arch}: leave --arch out")
        recorded = graph.read(path)
        return _open_graph(recorded, Source(recorded.folder, recorded.state, {}), needs_normalization, **known)
    if arch is not None and Path(arch).is_dir():
        recorded = graph.read(arch)
        source = read_source(path, choice, recorded.state, say)
        return _open_graph(recorded, source, needs_normalization, **known)
    source = read_source(path, choice, say=say)
    spec = find_spec(source, needs_normalization=needs_normalization, **known)
    network = build(spec)
    source = source._replace(state=dict(naming.without_auxiliary(source.state, network)))
    return Opened(source, partial(build, spec), *understand(source, network))


def _open_graph(
    recorded: graph.Recorded,
    source: Source,
    needs_normalization: bool,
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Opened:
    """Opens weights, the folder's own or others, as those of a recorded graph."""
    description = recorded.description
    for key, wanted in (("classes", num_classes), ("image_size", image_size)):
        if wanted not in (None, description[key]):
            raise UserError(
                f"{recorded.folder} was recorded with {key} {description[key]}, expected {wanted}: record it again, or "
                "use what it was recorded with"
            )
    given = {"mean": mean, "std": std}
    for key, numbers in given.items():
        if numbers and description.get(key, list(numbers)) != list(numbers):
            raise UserError(
                f"expected {key} {description[key]}, with which {recorded.folder} was recorded, found {list(numbers)}: "
                f"give that, or leave {key} out"
            )
    known = {**description, **source.metadata}
    fields: dict[str, Any] = {key: numbers or known.get(key) for key, numbers in given.items()}
    if None in fields.values():
        if needs_normalization:
            raise not_normalised(source.path)
        fields = dict.fromkeys(fields, (0.5,) * description["channels"])
    network = graph.build(recorded, **fields)
    check_spec(network.spec)
    state, names = understand(source, network)
    # Buffers that do not train come with the weights.
    others = network.others.fixed if network.others else {}
    recorded = recorded._replace(weights=recorded.weights | {name: state[name] for name in others if name in state})
    return Opened(source, partial(graph.build, recorded, **fields), state, names)


def load_network(
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    forms: Forms = Forms(),
) -> tuple[Network, dict[str, Any]]:
    """Loads a network from our own `.safetensors`, a PyTorch file or the folder of a recorded graph.

    Args:
      path: the checkpoint or folder.
      arch: architecture, or the folder of a recorded graph; by default the stored one, else inferred from the entries.
      num_classes: must equal the checkpoint's number, if given.
      image_size: side of the input in pixels; by default the stored one, else the architecture's usual one.
      mean, std: normalisation; by default the stored one. A PyTorch file stores none, so they must be given.
      forms: precision and convolutions.

    Returns:
      The network and its variables.

    Raises:
      UserError: the file is not a valid checkpoint of this architecture, or the normalisation is unknown.
    """
    opened = open_checkpoint(path, arch=arch, num_classes=num_classes, image_size=image_size, mean=mean, std=std)
    network = opened.build(forms=forms)
    return network, naming.to_variables(opened.state, network)


def understand(source: Source, network: Network) -> tuple[dict[str, np.ndarray], Naming]:
    """Returns the source's arrays under our names, checked, and its naming.

    Errors of `naming.understand` get the file's name.
    """
    try:
        return naming.understand(source.state, network)
    except LongError as error:
        raise error.within(source.path) from error
    except UserError as error:
        raise UserError(f"{source.path}: {error}") from error


def save_network(
    path: str | os.PathLike[str],
    network: Network,
    variables: Mapping[str, Any],
    *,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes a network as `.safetensors` with its spec, or as a bare PyTorch state dictionary.

    Args:
      path: ends in `.safetensors`, or in `.pth`, `.pt` or `.th` (needs torch; no spec is kept).
      network: the network; its spec is stored.
      variables: the collections 'params' and 'batch_stats'.
      metadata: more data to store in a `.safetensors`; any JSON value.

    Raises:
      UserError: the suffix is unknown, torch is needed but not installed, or the file cannot be written.
    """
    write_state(path, naming.state_of(network, variables), dict(metadata or {}) | dataclasses.asdict(network.spec))


def write_state(path: str | os.PathLike[str], state: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Writes a state dictionary in the format of the suffix; only safetensors can hold the metadata."""
    suffix = Path(path).suffix.lower()
    if suffix == ".safetensors":
        weight_files.write_safetensors(path, state, metadata)
    elif suffix in weight_files.TORCH_SUFFIXES:
        weight_files.write_torch(path, state)
    else:
        raise UserError(f"{path} must end in one of {', '.join(weight_files.SUFFIXES)}, which selects the format")


def load_described(path: str | Path, described: Mapping[str, Any], forms: Forms = Forms()) -> tuple[Network, Any]:
    """Loads the network that a config's section `teacher` describes; a recorded graph names its own architecture.

    Args:
      path: the checkpoint, which may be weights for the graph, or the graph's folder.
      described: graph, arch, num_classes, image_size, mean and std; empty values are taken from the file.
      forms: precision and convolutions.
    """
    return load_network(
        path,
        arch=described["graph"] or (None if Path(path).is_dir() else described.get("arch")) or None,
        num_classes=described.get("num_classes") or None,
        image_size=described.get("image_size") or None,
        mean=tuple(described.get("mean") or ()) or None,
        std=tuple(described.get("std") or ()) or None,
        forms=forms,
    )


def source_naming(source: Source, found: Naming) -> Naming:
    """Returns the names of the checkpoint's code base: its own, or those stored at the import."""
    stored = source.metadata.get("naming", {})
    if found != Naming() or not stored:
        return found
    return Naming(stored["prefix"], tuple((ours, theirs) for ours, theirs in stored["renames"]))
