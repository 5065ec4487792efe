"""Reads PyTorch files without running anything that they name, within the memory limits."""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from fastdfkd_jax.errors import UserError, one_line, shortened
from fastdfkd_jax.storage import limits

# Values that training scripts save beside the weights. Each is replaced by an object that accepts any arguments and
# keeps none, so that nothing in the named module is imported, called or changed.
_VALUES = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Bool", "Int32", "Int64", "UInt8", "Float16", "Float32", "Float64")),
    *(f"numpy.{kind}" for kind in ("bool_", "int32", "int64", "float16", "float32", "float64")),
    *(f"pathlib.{kind}" for kind in ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")),
    *(f"pathlib._local.{kind}" for kind in ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")),
    *(f"datetime.{kind}" for kind in ("datetime", "date", "time", "timedelta")),
    "torch.torch_version.TorchVersion",
    *(f"builtins.{kind}" for kind in ("dict", "list", "int", "float")),
)
_MAPPINGS = (
    "collections.defaultdict",
    "easydict.EasyDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
)


class Inert:
    """A placeholder for an unneeded value; it accepts any arguments and any state, and keeps nothing."""

    __slots__ = ()

    def __new__(cls, *_arguments: object) -> Inert:
        """Accepts any arguments."""
        return object.__new__(cls)

    def __init__(self, *_arguments: object):
        pass

    def __setstate__(self, _state: object) -> None:
        """Ignores the state."""


class InertMapping:
    """A placeholder for a class of dictionaries; each becomes an `OrderedDict` without its other arguments."""

    def __new__(cls, *_arguments: object) -> Any:
        """Makes an empty dictionary, which the unpickler fills."""
        return OrderedDict()


def import_torch() -> Any:
    """Returns the module torch.

    Raises:
      UserError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError("this needs PyTorch: pip install torch") from error
    return torch


def load(path: Path) -> Any:
    """Unpickles a PyTorch file: tensors, containers, numbers and text, and `Inert` for the values of `_VALUES`.

    Raises:
      UserError: it is damaged, of another format or too large, or names a class or function that is not allowed.
    """
    torch = import_torch()
    _require_size(path)
    try:
        # With an open file, PyTorch cannot infer the format from the name.
        with warnings.catch_warnings(), _stand_ins(torch), path.open("rb") as file:
            warnings.simplefilter("ignore")  # about old storage classes; the reader cannot change the file
            return torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:
        # Damaged input can raise almost anything in the unpickler, from KeyError to OSError and MemoryError.
        raise UserError(_why_unreadable(path, str(error))) from error


def _stand_ins(torch: Any) -> Any:
    """Lets the unpickler accept the values of `_VALUES` and `_MAPPINGS`, and replaces each."""
    pairs = [(Inert, name) for name in _VALUES] + [(InertMapping, name) for name in _MAPPINGS]
    return torch.serialization.safe_globals(pairs)


def _require_size(path: Path) -> None:
    """Checks the size that an archive declares before unpacking anything."""
    limits.require_bytes(path.stat().st_size, path)
    if not _is_archive(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            total = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # a damaged archive directory can raise almost anything
        raise UserError(_damaged(path)) from error
    limits.require_bytes(total, path)
    if not any(name.endswith("data.pkl") for name in names):
        found = shortened(", ".join(names), 60) or "nothing"
        raise UserError(f"{path} is a zip archive without a checkpoint of PyTorch (it has {found}): unpack it first")


def _is_archive(path: Path) -> bool:
    # PyTorch's test. Weights in the old format may contain an archive's end mark by chance.
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def to_arrays(path: Path, tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    """Copies tensors to arrays, with every float as float32.

    Raises:
      UserError: a tensor is quantised or sparse, or all together are too large.
    """
    torch = import_torch()
    total = 0
    for name, tensor in tensors.items():
        label = shortened(name, 60)
        if tensor.is_quantized:
            raise UserError(f"{label} in {path} is quantised: expected floating-point weights, as before quantisation")
        if tensor.layout != torch.strided or tensor.is_nested:
            raise UserError(f"{label} in {path} is sparse: expected dense weights; save tensor.to_dense()")
        if tensor.is_meta:
            raise UserError(f"{label} in {path} has no values (a 'meta' tensor): save the network with its weights")
        if tensor.is_complex():
            raise UserError(f"{label} in {path} is complex: expected floating-point weights")
        # A view of one number may declare any size; only the copy takes the memory.
        total += tensor.numel() * (4 if tensor.is_floating_point() else tensor.element_size())
        limits.require_bytes(total, path)
    return {name: _to_array(path, name, tensor) for name, tensor in tensors.items()}


def _to_array(path: Path, name: str, tensor: Any) -> np.ndarray:
    try:
        tensor = tensor.detach()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy().copy()
    except (TypeError, RuntimeError) as error:
        raise UserError(
            f"{shortened(name, 60)} in {path} has the type {tensor.dtype}: expected floating-point weights"
        ) from error


def _damaged(path: Path) -> str:
    return f"{path} is not a PyTorch checkpoint, or is truncated or damaged: copy or download it again"


def _why_unreadable(path: Path, message: str) -> str:
    if "legacy .tar format" in message:
        return f"{path} is in PyTorch's format of before 2017 (a tar archive): load and save it again with PyTorch"
    if wanted := _wanted_global(path, message):
        return (
            f"{path} is refused: its pickle asks for {shortened(wanted, 80)}, but only tensors are loaded; save "
            "model.state_dict() alone"
        )
    if "TorchScript" in message:
        return f"{path} is a TorchScript archive: expected a state dictionary; save model.state_dict()"
    if "Unsupported operand" in message:
        return f"{path} is not a PyTorch checkpoint: expected a file that torch.save wrote"
    detail = f" ({shortened(message, 80)})" if "EOF" in message else ""
    return f"{path} is not a PyTorch checkpoint, or is truncated or damaged{detail}: copy or download it again"


def _wanted_global(path: Path, message: str) -> str | None:
    """Finds the function or class that the pickle would call, without running it."""
    if match := re.search(r"GLOBAL (\S+)", message):
        return one_line(match[1])
    if _is_archive(path) or "operand" not in message:
        return None
    strings: list[str] = []
    try:
        # From memory, as reading a file would first reserve as many bytes as a damaged length declares.
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            if opcode.name == "GLOBAL":
                return str(argument).replace(" ", ".")
            if opcode.name == "STACK_GLOBAL":
                return ".".join(strings[-2:])
            if isinstance(argument, str):
                strings = [*strings[-1:], argument]
    except Exception:  # damaged input can raise almost anything here too
        return None
    return None
