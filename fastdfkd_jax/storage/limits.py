"""Limits on the memory and picture size that a file may require. Every reader checks them before it allocates.

Two environment variables raise (or lower) them: `FASTDFKD_MAX_GB`, for the memory that the contents of one file may
take, and `FASTDFKD_MAX_PIXELS`, for the size of one picture.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from fastdfkd_jax.errors import UserError

MEMORY_VARIABLE, PIXELS_VARIABLE = "FASTDFKD_MAX_GB", "FASTDFKD_MAX_PIXELS"
# Pillow refuses pictures with more pixels by default.
MAX_PIXELS = 178_956_970
# Descriptions (graphs, configurations, metadata) take kilobytes to a few megabytes.
MAX_JSON_BYTES = 256 * 2**20
_SHARE_OF_MEMORY = 0.75


def max_bytes() -> int:
    """Returns the most memory for the contents of one file: three quarters of the machine's by default."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(_setting(MEMORY_VARIABLE, _SHARE_OF_MEMORY * memory / 1e9) * 1e9)


def max_pixels() -> int:
    """Returns the most pixels that one picture may have."""
    return int(_setting(PIXELS_VARIABLE, MAX_PIXELS))


def require_bytes(count: int, where: object) -> None:
    """Refuses contents of more than `max_bytes`.

    Raises:
      UserError: `count` is larger.
    """
    most = max_bytes()
    if count > most:
        raise UserError(
            f"{where} would take {_gigabytes(count)} of memory, expected at most {_gigabytes(most)}: it is damaged or "
            f"too large; {MEMORY_VARIABLE} raises the limit"
        )


def require_pixels(width: int, height: int, where: object) -> None:
    """Refuses a picture of more than `max_pixels`.

    Raises:
      UserError: it has more.
    """
    most = max_pixels()
    if width * height > most:
        raise UserError(
            f"the picture {where} has {width:,} x {height:,} pixels, expected at most {most:,} in all: make it "
            f"smaller, or raise the limit with {PIXELS_VARIABLE}"
        )


def require_regular(path: Path, kind: str) -> int:
    """Returns the size in bytes of a regular file; a device, pipe or socket could be endless or never answer.

    Args:
      path: path of the file, which must exist.
      kind: its name in the message.

      Raises:
        UserError: it is not a regular file.
      OSError: it does not exist or is not accessible.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"the {kind} {path} is not a regular file: give a file on disk")
    return status.st_size


def parse_json(text: str | bytes) -> Any:
    """Parses JSON of bounded size and depth.

    Raises:
      ValueError: the text is not JSON, is too long, or is nested too deeply.
    """
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"expected at most {MAX_JSON_BYTES:,} bytes of JSON, found {len(text):,}")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def read_json(path: Path, kind: str) -> Any:
    """Reads a JSON file of bounded size and depth.

    Raises:
      UserError: it is not a regular file.
      OSError: it cannot be read.
      ValueError: as in `parse_json`, or it is not text.
    """
    size = require_regular(path, kind)
    if size > MAX_JSON_BYTES:
        raise ValueError(f"expected at most {MAX_JSON_BYTES:,} bytes of JSON, found {size:,}")
    return parse_json(path.read_bytes())


def _setting(variable: str, default: float) -> float:
    text = os.environ.get(variable, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise UserError(f"the environment variable {variable} must be a number above 0, found {text!r}")
    return value


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count < 1e15 else f"{count:.1e} bytes"
