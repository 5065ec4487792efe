"""Writes a checkpoint in the format for production that the file's suffix selects."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.convert import checkpoints, naming, torch_modules
from fastdfkd_jax.convert.checkpoints import Opened
from fastdfkd_jax.convert.deploy import integers, onnx_files, stablehlo
from fastdfkd_jax.convert.weight_files import write_whole
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models import NetworkSpec

SUFFIXES = (onnx_files.SUFFIX, stablehlo.SUFFIX)


class Written(NamedTuple):
    """A file for production.

    Attributes:
      spec: the network.
      error: the largest difference of logits from the network, before quantisation, relative to the largest logit.
      calibrated: images that calibrated the quantisation; 0 without it.
      agreement: percentage of other images for which the quantised network predicts the same class.
    """

    spec: NetworkSpec
    error: float
    calibrated: int = 0
    agreement: float = 100.0


def is_for_production(out: str | os.PathLike[str]) -> bool:
    """Returns True for the suffixes of this package's formats."""
    return Path(out).suffix.lower() in SUFFIXES


def write(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    torch_factory: str | None = None,
    unit_range: bool = False,
    int8: str | os.PathLike[str] | None = None,
    **known,
) -> Written:
    """Writes a checkpoint as `.onnx` or `.stablehlo`, after it has been compared with the network on noise images.

    Args:
      path: a checkpoint of any kind, or the folder of a recorded graph.
      out: the file to write or replace.
      torch_factory: for ONNX, 'FILE.py:FACTORY' of the user's own module; by default our twin of the architecture.
      unit_range: put the normalisation inside, so that the file takes images in [0, 1].
      int8: for ONNX, a run's workdir or pool, whose images quantise the network to 8-bit integers.
      known: as in `import_export.import_checkpoint`.

    Raises:
      UserError: the checkpoint is invalid, a package is missing, the network cannot be written in this format, or the
        file would compute something else; then nothing is written.
    """
    is_onnx = Path(out).suffix.lower() == onnx_files.SUFFIX
    if not is_onnx and (torch_factory or int8):
        raise UserError(f"--torch and --int8 are for ONNX: found {out}, expected a name that ends in .onnx")
    if is_onnx:
        onnx_files.import_packages()
    # An ONNX file keeps the normalisation, with which it is evaluated.
    opened = checkpoints.open_checkpoint(path, needs_normalization=unit_range or is_onnx, **known)
    network = opened.build()
    variables = naming.to_variables(opened.state, network)
    if not is_onnx:
        content, error = stablehlo.to_stablehlo(opened, network, variables, unit_range)
        write_whole(out, content)
        return Written(network.spec, error)
    images = None if int8 is None else integers.read_images(expanded(int8), network)
    module = _module(opened, network.spec, torch_factory)
    content, error = onnx_files.to_onnx(module, network, variables, unit_range)
    if images is None:
        write_whole(out, content)
        return Written(network.spec, error)
    result = integers.quantised(content, network, images, unit_range)
    write_whole(out, result.content)
    return Written(network.spec, error, result.calibrated, result.agreement)


def _module(opened: Opened, spec: NetworkSpec, factory: str | None) -> object:
    if factory is not None:
        names = checkpoints.source_naming(opened.source, opened.naming)
        return torch_modules.of_factory(os.path.expanduser(factory), opened.state, names)
    if opened.source.path.is_dir() or spec.arch.startswith("graph:"):
        raise UserError(f"{spec.arch} is a recorded graph: give its PyTorch module, --torch FILE.py:FACTORY")
    return torch_modules.of_twin(opened.state, spec)
