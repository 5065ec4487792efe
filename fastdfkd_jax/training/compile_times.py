"""Remembers how long each program took to compile on this machine, in the user's cache folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage import files, limits

_KEPT = 200  # programs, the newest


def file() -> Path:
    """Returns the file, in XDG_CACHE_HOME or ~/.cache; UserError if there is no home directory."""
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fastdfkd_jax" / "compile_seconds.json"


def last(program: str) -> float | None:
    """Returns the seconds that a program took to compile the last time; None if they are not known."""
    return next((seconds for name, seconds in _known() if name == program), None)


def remember(program: str, seconds: float) -> None:
    """Stores the seconds; a folder that cannot be written is ignored."""
    with contextlib.suppress(OSError, UserError):
        place = file()
        files.make_folder(place.parent)
        others = [pair for pair in _known() if pair[0] != program]
        files.write_json(place, [*others, (program, round(seconds, 2))][-_KEPT:])


def _known() -> Iterator[tuple[str, float]]:
    """Yields the programs with their seconds, the newest last; none if the file is missing or damaged."""
    found: Any = ()
    with contextlib.suppress(OSError, ValueError, UserError):
        found = limits.read_json(file(), "record")
    for pair in found if isinstance(found, list) else ():
        match pair:
            case [str(name), int() | float() as seconds] if seconds >= 0:
                yield name, float(seconds)
