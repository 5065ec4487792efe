"""Reading and writing state dictionaries: PyTorch files without trusting them, safetensors without torch."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save

from fastdfkd_jax.convert import keras
from fastdfkd_jax.errors import UserError

State = dict[str, np.ndarray]

TORCH_SUFFIXES = (".pth", ".pt", ".th")
SUFFIXES = (*TORCH_SUFFIXES, ".safetensors")
KERAS_SUFFIX = ".json"
CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net")
METADATA_KEY = "fastdfkd_jax"

_SAFETENSORS_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


def read_state_dict(path: str | os.PathLike[str]) -> tuple[State, dict[str, Any]]:
    """Reads a checkpoint; every float becomes float32.

    Args:
      path: a `.pth`, `.pt` or `.th` file of PyTorch (bare or under one of `CONTAINERS`), a
        `.safetensors` file, for which torch is not needed, or the `model.json` of a network of `convert.keras`.

    Returns:
      The arrays by the file's own names, and the metadata that `write_safetensors` stored, or what Keras's network is
      known to be ({} in others).

    Raises:
      UserError: the file is missing, empty, damaged, no checkpoint, or wants more than tensors.
    """
    path = Path(path)
    _check_file(path)
    if path.suffix == ".safetensors":
        state, metadata = _read_safetensors(path)
    elif path.suffix == KERAS_SUFFIX:
        state, metadata = keras.read(path)
    else:
        state, metadata = _read_torch(path), {}
    if not state:
        raise UserError(f"{path} holds no tensors: expected the state dictionary of a network")
    return state, metadata


def _check_file(path: Path) -> None:
    if path.suffix not in (*SUFFIXES, KERAS_SUFFIX):
        raise UserError(
            f"{path} is not a checkpoint: expected a file that ends in {', '.join((*SUFFIXES, KERAS_SUFFIX))}"
        )
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}: check the path")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise UserError(f"the checkpoint {path} cannot be read: {error.strerror}") from error
    if empty:
        raise UserError(f"the checkpoint {path} is empty (0 bytes): copy or download it again")


def _read_safetensors(path: Path) -> tuple[State, dict[str, Any]]:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        entries = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file, or is truncated: {_one_line(error)}") from error
    state = {name: _safetensors_array(path, name, entry) for name, entry in entries}
    try:
        return state, dict(json.loads(metadata.get(METADATA_KEY, "{}")))
    except (ValueError, TypeError) as error:
        raise UserError(f"the metadata {METADATA_KEY!r} of {path} are not JSON: import the source anew") from error


def _safetensors_array(path: Path, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
    if dtype is None:
        raise UserError(f"{name} in {path} has the type {entry['dtype']}: expected floating-point weights")
    array = np.frombuffer(bytes(entry["data"]), dtype).reshape(entry["shape"])
    return array.astype(np.float32) if entry["dtype"] in ("F64", "F16", "BF16") else array


def import_torch() -> Any:
    """Gives the module torch.

    Raises:
      UserError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError("this needs PyTorch: pip install 'fastdfkd_jax[torch]'") from error
    return torch


def _read_torch(path: Path) -> State:
    torch = import_torch()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old storage classes; whoever reads cannot mend the file
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Damaged input can raise nearly anything in the unpickler, from KeyError to OSError.
        raise UserError(_why_unreadable(path, str(error))) from error
    content = _unwrap(content)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} is not a checkpoint: expected a dictionary of tensors, found {type(content).__name__}")
    strangers = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        raise UserError(
            f"{path} is not a state dictionary: expected tensors, bare or under {', '.join(CONTAINERS)}; "
            f"these entries are not tensors: {', '.join(strangers)}"
        )
    return {str(name): _torch_array(path, str(name), value) for name, value in content.items()}


def _unwrap(content: Any) -> Any:
    while isinstance(content, Mapping):
        inner = next((content[k] for k in CONTAINERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = inner
    return content


def _torch_array(path: Path, name: str, tensor: Any) -> np.ndarray:
    if tensor.is_quantized or tensor.layout != import_torch().strided:
        raise UserError(f"{name} in {path} is quantized or sparse: expected dense floating-point weights")
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy().copy()


def _why_unreadable(path: Path, message: str) -> str:
    if wanted := _wanted_global(path, message):
        return (
            f"{path} is refused: its pickle wants {wanted}, and only tensors are loaded; save model.state_dict() alone"
        )
    if "TorchScript" in message:
        return f"{path} is a TorchScript archive: expected a state dictionary; save model.state_dict()"
    if "Unsupported operand" in message:
        return f"{path} is not a PyTorch checkpoint: expected a file that torch.save wrote"
    detail = f" ({_one_line(message)})" if "EOF" in message else ""
    return f"{path} is not a PyTorch checkpoint, or is truncated or damaged{detail}: copy or download it again"


def _wanted_global(path: Path, message: str) -> str | None:
    """Which function or class the pickle would call, found without running it."""
    if match := re.search(r"GLOBAL (\S+)", message):
        return match[1]
    if zipfile.is_zipfile(path) or "operand" not in message:
        return None
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            if opcode.name == "GLOBAL":
                return str(argument).replace(" ", ".")
            if opcode.name == "STACK_GLOBAL":
                return ".".join(strings[-2:])
            if isinstance(argument, str):
                strings.append(argument)
    except (ValueError, pickle.UnpicklingError):
        return None
    return None


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def write_safetensors(path: str | os.PathLike[str], state: Mapping[str, np.ndarray], metadata: Mapping) -> None:
    """Writes a state dictionary with our metadata, whole or not at all.

    Args:
      path: the file to write or replace.
      state: arrays by name.
      metadata: anything JSON can hold; `read_state_dict` gives it back.

    Raises:
      UserError: the file cannot be written.
    """
    text = {METADATA_KEY: json.dumps(metadata, sort_keys=True), "format": "pt"}
    arrays = {name: np.asarray(array, order="C") for name, array in state.items()}
    write_whole(path, save(arrays, text))


def write_torch(path: str | os.PathLike[str], state: Mapping[str, np.ndarray]) -> None:
    """Writes a bare PyTorch state dictionary, whole or not at all.

    Raises:
      UserError: torch is not installed, or the file cannot be written.
    """
    torch = import_torch()
    buffer = io.BytesIO()
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in state.items()}, buffer)
    write_whole(path, buffer.getvalue())


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes bytes under a temporary name beside the target, then renames it onto the target.

    Raises:
      UserError: the folder is missing or read-only, or the disk is full; nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}; choose another place") from error
