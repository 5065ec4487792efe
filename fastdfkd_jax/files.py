"""Writing files so that a reader never finds half of one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from fastdfkd_jax.errors import UserError


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Calls `write(file)` on a temporary file beside `path`, makes it durable and renames it into place.

    Raises:
      UserError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(path, error) from error


def disk_error(path: Path, error: OSError) -> UserError:
    """What a failed write means to the user, in one line."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left for {path}: free some and run the same command again, it goes on")
    return UserError(f"cannot write {path} ({error.strerror}): choose a folder that can be written")
