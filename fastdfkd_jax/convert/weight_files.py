"""Reads and writes state dictionaries: PyTorch files without trusting them, safetensors without torch."""

from __future__ import annotations

import glob
import io
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from absl import logging
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save

from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.convert import choosing, keras, torch_files
from fastdfkd_jax.convert import metadata as stored_metadata
from fastdfkd_jax.convert.choosing import CONTAINERS, Choice
from fastdfkd_jax.convert.torch_files import import_torch
from fastdfkd_jax.errors import UserError, shortened
from fastdfkd_jax.storage import limits
from fastdfkd_jax.storage.files import write_atomically

__all__ = ["CONTAINERS", "import_torch", "read", "read_state_dict", "write_safetensors", "write_torch", "write_whole"]

State = dict[str, np.ndarray]

# Suffixes of files to write. When reading, the first bytes determine the format.
TORCH_SUFFIXES = (".pth", ".pt", ".th")
SUFFIXES = (*TORCH_SUFFIXES, ".safetensors")
METADATA_KEY = stored_metadata.KEY

_SAFETENSORS_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_ALIGNMENT = 8  # alignment of a safetensors header, in bytes
# First bytes of files that people mistake for checkpoints.
_OTHERS = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: run git lfs pull",
    b"<": "is a web page (HTML or XML), not the file itself: download it again",
    b"\x89HDF": "is an HDF5 file, as of Keras: expected a PyTorch or safetensors file, or TensorFlow.js's model.json",
    b"\x1f\x8b": "is compressed with gzip: unpack it first",
    b"\x93NUMPY": "is a NumPy array: expected a checkpoint, which has a name for every array",
}


class Content(NamedTuple):
    """A checkpoint as read.

    Attributes:
      state: arrays by the file's own names; every float is float32.
      metadata: the metadata that `write_safetensors` stored, or the known spec of Keras's network; else {}.
      taken: the keys that lead to the weights in the file, '' if they are bare.
      notes: one line each for the user on averaged weights in the file and on dropped entries.
    """

    state: State
    metadata: dict[str, Any]
    taken: str = ""
    notes: tuple[str, ...] = ()


def read_state_dict(path: str | os.PathLike[str]) -> tuple[State, dict[str, Any]]:
    """Reads a checkpoint (`read`) and logs the notes on the choice.

    Returns:
      The arrays by the file's own names, and the metadata that `write_safetensors` stored.
    """
    content = read(path)
    for note in content.notes:
        logging.warning("%s: %s", path, note)
    return content.state, content.metadata


def read(path: str | os.PathLike[str], choice: Choice | None = None) -> Content:
    """Reads a checkpoint of the format that its first bytes show, whatever its name.

    Args:
      path: a PyTorch file (bare weights, or under one of the usual keys), a safetensors file, which does not need
        torch, or the `model.json` of a network for `convert.keras`.
      choice: selects the weights if a file has several.

    Raises:
      UserError: the file is missing, empty, damaged, too large, not a checkpoint, or refers to more than tensors.
    """
    path = expanded(path)
    start = _first_bytes(path)
    if _is_safetensors(path, start):
        content = _read_safetensors(path)
    elif start.lstrip()[:1] in (b"{", b"["):
        content = Content(*keras.read(path))
    else:
        content = _read_torch(path, start, choice or Choice())
    if not content.state:
        raise UserError(f"{path} holds no tensors: expected the state dictionary of a network")
    return content


def _first_bytes(path: Path) -> bytes:
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}: check the path")
    if path.is_dir():
        raise UserError(f"{path} is a folder: expected a checkpoint, a file")
    try:
        limits.require_bytes(limits.require_regular(path, "checkpoint"), path)
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"the checkpoint {path} cannot be read: {error.strerror}") from error
    if not start:
        raise UserError(f"the checkpoint {path} is empty (0 bytes): copy or download it again")
    return start


def _is_safetensors(path: Path, start: bytes) -> bool:
    # Eight bytes for the header's length, then the JSON header. A zip archive or a pickle begins differently.
    named = path.suffix.lower() == ".safetensors"
    if start[8:9] == b"{":
        return named or struct.unpack("<Q", start[:8])[0] <= path.stat().st_size
    return named and start[:2] != b"PK" and start[:1] != b"\x80"


def _read_safetensors(path: Path) -> Content:
    try:
        with safe_open(path, framework="numpy") as file:
            stored, order = file.metadata() or {}, file.offset_keys()
        entries = dict(deserialize(path.read_bytes()))
    except (SafetensorError, OSError) as error:
        reason = shortened(str(error), 80)
        raise UserError(f"{path} is not a safetensors file, or is truncated: {reason}") from error
    wide = sum(2 * len(entry["data"]) for entry in entries.values() if entry["dtype"] in ("F16", "BF16"))
    limits.require_bytes(path.stat().st_size + wide, path)
    # The file's order shows the last layer; `deserialize` returns another order at every call.
    state = {name: _safetensors_array(path, name, entries[name]) for name in order}
    return Content(state, stored_metadata.parse(path, stored.get(METADATA_KEY, "{}")))


def _safetensors_array(path: Path, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    label = shortened(name, 60)
    dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
    if dtype is None:
        raise UserError(f"{label} in {path} has the type {entry['dtype']}: expected floating-point weights")
    try:
        array = np.frombuffer(bytes(entry["data"]), dtype).reshape(entry["shape"])
    except ValueError as error:
        raise UserError(f"{label} in {path} has an impossible shape: the file is damaged") from error
    return array.astype(np.float32) if entry["dtype"] in ("F64", "F16", "BF16") else array


def _read_torch(path: Path, start: bytes, choice: Choice) -> Content:
    for magic, reason in _OTHERS.items():
        if start.lower().startswith(magic.lower()):
            raise UserError(f"{path} {reason}")
    torch = import_torch()
    content = torch_files.load(path)
    try:
        chosen = choosing.find_weights(content, choice, lambda value: isinstance(value, torch.Tensor))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Content(torch_files.to_arrays(path, chosen.entries), {}, chosen.taken, chosen.notes)


def write_safetensors(path: str | os.PathLike[str], state: Mapping[str, np.ndarray], metadata: Mapping) -> None:
    """Writes a state dictionary with our metadata, atomically.

    Args:
      path: the file to write or replace.
      state: arrays by name.
      metadata: any JSON value; `read_state_dict` returns it.

    Raises:
      UserError: the file cannot be written.
    """
    text = {METADATA_KEY: json.dumps(metadata, sort_keys=True), "format": "pt"}
    arrays = {name: np.asarray(array, order="C") for name, array in state.items()}
    write_whole(path, _in_fixed_order(save(arrays, text)))


def _in_fixed_order(content: bytes) -> bytes:
    """Sorts the metadata keys of a safetensors file, because the library writes them in a different order each time."""
    end = _ALIGNMENT + struct.unpack("<Q", content[:_ALIGNMENT])[0]
    header = json.loads(content[_ALIGNMENT:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text + content[end:]


def write_torch(path: str | os.PathLike[str], state: Mapping[str, np.ndarray]) -> None:
    """Writes a bare PyTorch state dictionary, atomically.

    Raises:
      UserError: torch is not installed, or the file cannot be written.
    """
    torch = import_torch()
    buffer = io.BytesIO()
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in state.items()}, buffer)
    write_whole(path, buffer.getvalue())


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes bytes under a temporary name beside the target, then renames it onto the target.

    Temporary files of killed writers of this file are removed.

    Raises:
      UserError: the folder is missing or read-only, or the disk is full; no temporary file remains.
    """
    path = expanded(path)
    if path.is_dir():
        raise UserError(f"cannot write {path}, which is a folder: give the name of a file")
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):  # named by earlier releases
        old.unlink(missing_ok=True)
    write_atomically(path, lambda file: file.write(content))
