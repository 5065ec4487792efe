"""Writes a network as ONNX from its PyTorch module, and reads such files back."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.convert import metadata
from fastdfkd_jax.convert.deploy import compared
from fastdfkd_jax.convert.sources import check_spec
from fastdfkd_jax.convert.torch_files import import_torch
from fastdfkd_jax.errors import UserError, one_line, shortened
from fastdfkd_jax.models import Network, NetworkSpec
from fastdfkd_jax.models.network import Outputs, Variables
from fastdfkd_jax.storage import limits

SUFFIX = ".onnx"
ARCH = "onnx:"  # prefix of `arch` in the spec of a network from such a file
INPUT, OUTPUT = "images", "logits"
UNIT_RANGE = "unit_range"


def to_onnx(module: Any, network: Network, variables: Variables, unit_range: bool) -> tuple[bytes, float]:
    """Converts a network to ONNX, for batches of any size.

    Args:
      module: its PyTorch module with the same weights; takes NCHW images and returns logits.
      network, variables: the network, which the file is compared with.
      unit_range: put the normalisation inside, so that the file takes images in [0, 1].

    Returns:
      The file's content, and the largest difference from the network's logits, relative to the largest logit. The
      input is 'images', f32[batch, C, H, W], the output 'logits', f32[batch, classes] or f32[batch, classes, H, W].

    Raises:
      UserError: a package is missing, the module cannot be converted, or the file computes something else.
    """
    model = _exported(module, network.spec, unit_range)
    described = dataclasses.asdict(network.spec) | {UNIT_RANGE: unit_range}
    content = with_metadata(model, described)
    worst = compared.require_same(network, variables, runner(content), unit_range)
    return content, worst


def _exported(module: Any, spec: NetworkSpec, unit_range: bool) -> Any:
    import_packages()
    torch = import_torch()
    module = _normalising(module, spec) if unit_range else module
    height, width, channels = spec.input_shape
    images = torch.zeros(2, channels, height, width)
    with quiet():
        try:
            program = torch.onnx.export(
                module.eval(),
                (images,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
        except Exception as error:  # the converter raises errors of many kinds
            reason = one_line(error.__cause__ or error)
            raise UserError(f"this module cannot be converted to ONNX by PyTorch: {shortened(reason, 150)}") from error
    assert program is not None
    return program.model_proto


def with_metadata(model: Any, described: Mapping[str, Any]) -> bytes:
    """Returns a model's bytes with our metadata alone; the converter's own name files of this machine."""
    for part in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    for part in (*model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = metadata.KEY, json.dumps(described, sort_keys=True)
    return model.SerializeToString(deterministic=True)


def _normalising(module: Any, spec: NetworkSpec) -> Any:
    torch = import_torch()

    class Normalising(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module
            for name, numbers in (("mean", spec.mean), ("std", spec.std)):
                self.register_buffer(name, torch.tensor(numbers, dtype=torch.float32).reshape(1, -1, 1, 1))

        def forward(self, images: Any) -> Any:
            return self.module((images - self.mean) / self.std)

    return Normalising()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what a converter or quantiser says of its own parts: deprecations, advice, code that it could not read."""
    before = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def runner(content: bytes) -> compared.Run:
    """Returns an ONNX file's content as a function of f32[B, H, W, C], in onnxruntime on the CPU."""
    return _run_of(_session(content))


def _run_of(session: Any) -> compared.Run:
    def run(images: np.ndarray) -> np.ndarray:
        batch = np.ascontiguousarray(np.moveaxis(images, -1, 1), np.float32)
        return np.moveaxis(np.asarray(session.run([OUTPUT], {INPUT: batch})[0]), 1, -1)

    return run


def _session(content: bytes) -> Any:
    """Starts onnxruntime with a file's content; arrays in other files are not read."""
    runtime = _import("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def load_network(path: str) -> tuple[Network, dict[str, Any]]:
    """Loads an ONNX file that we wrote, to evaluate it like any other network; its variables are empty.

    Its `apply` cannot be compiled: a program that calls onnxruntime may wait for the thread that it runs on itself.

    Raises:
      UserError: onnxruntime is not installed, or the file is not one of ours.
    """
    place = expanded(path)
    content = _content(place)
    _import("onnxruntime")
    try:
        session = _session(content)
        text = session.get_modelmeta().custom_metadata_map.get(metadata.KEY)
    except Exception as error:  # onnxruntime's errors have no common class
        raise UserError(f"{path} is not an ONNX file, or is damaged: {shortened(one_line(error), 100)}") from error
    if text is None:
        raise UserError(f"{path} was not written by fastdfkd convert export: its normalisation is unknown")
    described = metadata.parse(place, text)
    try:
        fields: dict[str, Any] = {field.name: described[field.name] for field in dataclasses.fields(NetworkSpec)}
        fields |= {name: tuple(fields[name]) for name in ("mean", "std")}
        spec = NetworkSpec(**{**fields, "arch": ARCH + fields["arch"]})
        inside = bool(described[UNIT_RANGE])
    except KeyError as error:
        raise UserError(f"the metadata of {path} lack {error.args[0]!r}: export the network again") from error
    try:
        check_spec(spec)
    except UserError as error:
        raise UserError(f"the metadata of {path} are damaged ({error}): export the network again") from error
    _require_shapes(session, spec, path)
    run = _run_of(session)
    mean, std = (np.asarray(numbers, np.float32) for numbers in (spec.mean, spec.std))

    def apply(variables: Variables, images: jax.Array, **_: Any) -> Outputs:
        if inside:
            images = images * std + mean
        logits = jnp.asarray(run(np.asarray(images)))  # outside JAX: only for concrete arrays
        return Outputs(logits, logits, (), {}, {})

    return Network(spec, lambda key: {"params": {}, "batch_stats": {}}, apply), {"params": {}, "batch_stats": {}}


def _require_shapes(session: Any, spec: NetworkSpec, path: str) -> None:
    """Refuses a file whose input or output is not the one that its metadata describe."""
    height, width, channels = spec.input_shape
    image, maps = [channels, height, width], [height, width] if spec.gives_maps else []
    expected = {INPUT: image, OUTPUT: [spec.num_classes, *maps]}
    values = (*session.get_inputs(), *session.get_outputs())
    found = {value.name: value.shape[1:] for value in values if value.name in expected}
    if found != expected:
        raise UserError(
            f"{path} has inputs and outputs {shortened(found, 80)}, expected {shortened(expected, 80)}: export the "
            "network again"
        )


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"there is no ONNX file {path}: check the path")
    limits.require_bytes(limits.require_regular(path, "ONNX file"), path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"the ONNX file {path} cannot be read: {error.strerror}") from error


def import_packages() -> None:
    """Imports what writing needs, so that a missing package is refused before any work.

    Raises:
      UserError: one is not installed.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):  # torch.onnx.export needs onnxscript
        _import(name)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name} is needed for ONNX files: pip install 'fastdfkd_jax[onnx]'") from error
