"""Reads embeddings of the classes' names, such as a text encoder's, from a file of NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.data.npz_source import named
from fastdfkd_jax.errors import UserError, shortened
from fastdfkd_jax.storage import limits, npz

_KIND = "file of label embeddings"


def read(file: str | Path, classes: int) -> np.ndarray:
    """Reads an `.npy` file, or an `.npz` file of one array, without pickle.

    Args:
      file: its path.
      classes: the teacher's outputs.

    Returns:
      f32[classes, D], a row for each output.

    Raises:
      UserError: the file is missing, is damaged, holds something else, or takes too much memory.
    """
    path = expanded(file)
    where = shortened(path, 120)
    try:
        array = _array(path, where)
    except FileNotFoundError:
        raise UserError(f"expected a {_KIND} at {where}, found none: check the path") from None
    except npz.DAMAGED as error:
        raise UserError(
            f"cannot read {where} as an array of numbers ({npz.reason_of(error)}): write it with numpy.save"
        ) from None
    is_table = array.ndim == 2 and len(array) == classes and array.shape[1] > 0
    if not is_table or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        found = "numbers that are not finite" if is_table and array.dtype.kind == "f" else ""
        raise UserError(
            f"expected finite numbers [{classes}, dimension] in {where}, found {found or array.dtype}"
            f"{'' if found else list(array.shape)}: give a row for each output of the teacher, in their order"
        )
    return array.astype(np.float32)


def _array(path: Path, where: str) -> np.ndarray:
    """Reads the only array of a file; raises UserError if there are several, or any of `npz.DAMAGED`."""
    size = limits.require_regular(path, _KIND)
    with path.open("rb") as file:
        if file.read(len(npz.MAGIC)) == npz.MAGIC:
            limits.require_bytes(size, where)
            file.seek(0)
            npz.read_header(file, size)
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    with npz.opened(path, _KIND) as arrays:
        if len(arrays) != 1:
            raise UserError(f"expected one array in {where}, found {named(arrays)}: save the embeddings alone")
        return arrays[next(iter(arrays))]
