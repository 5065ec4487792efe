"""`import` and `export`: converts another code base's checkpoint to ours, and back to exactly its names."""

from __future__ import annotations

import dataclasses
import hashlib
import os

from absl import logging

from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.convert import checkpoints, naming, weight_files
from fastdfkd_jax.convert.checkpoints import Say, Source
from fastdfkd_jax.convert.naming import Naming
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import Network, NetworkSpec

# The names in RepDistiller and torchvision.
_FC_DOWNSAMPLE = {"linear": "fc", "classifier": "fc", "shortcut": "downsample"}
NAMINGS = ("source", "ours", "torchvision")


def import_checkpoint(
    path: str | os.PathLike[str], out: str | os.PathLike[str], say: Say = logging.warning, **known
) -> NetworkSpec:
    """Converts a checkpoint of any kind to our `.safetensors`, with our names, the spec and the source's naming.

    Args:
      path: the checkpoint to import.
      out: the `.safetensors` to write; it is written only if everything is valid.
      say: called with a line on the weights that were taken and on each kind of dropped entry.
      known: `choice`, and `arch`, `num_classes`, `image_size`, `mean` and `std` as in `sources.find_spec`.

    Returns:
      The spec that was stored.

    Raises:
      UserError: the source is invalid, something required is unknown, or `out` cannot be written.
    """
    path = expanded(path)
    if not str(out).endswith(".safetensors"):
        raise UserError(f"--out {out} must end in .safetensors, the format that keeps the spec with the weights")
    if path.is_dir():
        raise UserError(f"{path} is a folder: a recorded graph needs no import, give it in place of a checkpoint")
    opened = checkpoints.open_checkpoint(path, say=say, **known)
    source, spec = opened.source, opened.build().spec
    origin = {"file": source.path.name, "sha256": hashlib.sha256(source.path.read_bytes()).hexdigest()}
    metadata = dataclasses.asdict(spec) | {
        "naming": dataclasses.asdict(checkpoints.source_naming(source, opened.naming)),
        "source": origin,
    }
    weight_files.write_safetensors(out, opened.state, metadata)
    if source.taken:
        say(f"took the weights under {source.taken}")
    return spec


def export_checkpoint(
    path: str | os.PathLike[str], out: str | os.PathLike[str], style: str = "source", **known
) -> NetworkSpec:
    """Writes a checkpoint as a PyTorch state dictionary that loads with `strict=True`.

    Args:
      path: a checkpoint of any kind, usually ours, or the folder of a recorded graph.
      out: ends in `.pth`, `.pt`, `.th` or `.safetensors`.
      style: 'source' restores the imported names (ours if there was no import), 'ours' uses ours,
        'torchvision' uses fc and downsample, and the names of DeepLab's head in torchvision's module.
      known: as in `import_checkpoint`; the normalisation is not needed.

    Returns:
      The spec of the network.

    Raises:
      UserError: the checkpoint is invalid, or `out` cannot be written.
    """
    opened = checkpoints.open_checkpoint(path, needs_normalization=False, **known)
    network = opened.build()
    target = _target(style, opened.source, opened.naming, network)
    checkpoints.write_state(out, {target.to_source(name): array for name, array in opened.state.items()}, {})
    return network.spec


def _target(style: str, source: Source, found: Naming, network: Network) -> Naming:
    if style == "source":
        return checkpoints.source_naming(source, found)
    if network.others is not None:
        raise UserError(f"a recorded graph keeps its own names: leave --naming {style} out")
    if style == "ours":
        return Naming()
    entries = naming.expected_entries(network)
    if any(name.startswith(f"{naming.DEEPLAB_HEAD[0]}.") for name in entries):
        return Naming(renames=(naming.DEEPLAB_HEAD,))
    parts = {part for name in entries for part in name.split(".")}
    pairs = ((ours, theirs) for ours, theirs in _FC_DOWNSAMPLE.items() if ours in parts and theirs not in parts)
    return Naming(renames=tuple(pairs))
