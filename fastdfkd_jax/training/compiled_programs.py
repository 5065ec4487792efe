"""Keeps compiled programs, so that a run that is repeated or resumed does not compile them again."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import time
from pathlib import Path

import jax

from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage.files import make_folder
from fastdfkd_jax.training import compile_times

AUTO = "auto"
_KEPT_SECONDS = 60 * 86400


def folder(asked: str) -> Path | None:
    """Returns the folder to set as JAX's compilation cache; None to leave JAX's own setting, which is none by default.

    Args:
      asked: a folder, '' or 'auto' (`RunOptions.compilation_cache`). 'auto' is a folder in the user's cache folder,
        unless JAX has a cache already or the folder cannot be written.
    """
    if asked != AUTO:
        return expanded(asked) if asked else None
    if jax.config.values["jax_compilation_cache_dir"]:
        return None
    with contextlib.suppress(OSError, UserError):
        place = compile_times.file().parent / "compiled" / _processor()
        make_folder(place)
        _remove_old(place.parent)
        return place
    return None


def _processor() -> str:
    """Returns a digest of the processor's instructions: XLA uses all of them, so another processor may lack some."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    known = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return hashlib.sha256(f"{platform.machine()} {known}".encode()).hexdigest()[:12]


def _remove_old(place: Path) -> None:
    for path in place.glob("*/*"):
        if path.stat().st_mtime < time.time() - _KEPT_SECONDS:
            path.unlink()
