"""A folder that is there as a whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from fastdfkd_jax.errors import UserError
from fastdfkd_jax.files import disk_error, make_folder


@contextlib.contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Gives an empty folder beside `target` that takes its name when the block ends, and is removed when it fails.

    What a killed process left of it is replaced.

    Raises:
      UserError: the target holds something or is being written, or the disk is full or cannot be written.
    """
    target = target.expanduser().resolve()
    _require_free(target)
    partial = target.with_name(f".{target.name}.partial")
    make_folder(partial)
    lock = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{target} is being written by another export: wait, or give another folder") from None
        try:
            _clear(partial)
            yield partial
            os.replace(partial, target)
        except OSError as error:
            raise disk_error(target, error, then="it begins anew") from error
        finally:
            # Not there any more where all went well.
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(lock)


def _require_free(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file: give a new folder")
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{target} is not empty: give a new folder, or remove what it holds")
    if target.is_mount():
        raise UserError(f"{target} is a file system of its own: give a new folder in it")


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
