"""Shared parts of the commands' argument parsers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

from fastdfkd_jax import __version__
from fastdfkd_jax.errors import UserError

PROGRAM = "fastdfkd"
VERBOSE, VERSION, JSON = "--verbose", "--version", "--json"
HELP = ("-h", "--help")
VERSION_LINE = f"{PROGRAM} {__version__}"

_LARGEST_STD = 5.0  # for images in [0, 1]; for images in 0 to 255 it is 20 or more


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that reports mistakes in one line and adds `--verbose` and `--version`."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        if self.add_help and VERBOSE not in self._option_string_actions:
            self.add_argument(VERBOSE, action="store_true", help="print messages of more than 300 characters in full")
            self.add_argument(VERSION, action="version", version=VERSION_LINE)

    def error(self, message: str) -> NoReturn:
        """Raises the message as UserError."""
        raise UserError(f"{message}: see {self.prog} --help")


def numbers(text: str) -> tuple[float, ...]:
    """Parses comma-separated numbers."""
    try:
        return tuple(float(item) for item in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas, found {text!r}") from None


def expanded(path: str | PathLike[str]) -> Path:
    """Returns a path with a leading `~` replaced by the home directory.

    Raises:
      UserError: there is no home directory, as in a container whose user has none.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"there is no home directory for {path}: set HOME, or give a path without ~") from None


def require_unit_scale(mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuses mean and standard deviation of images in 0 to 255, because our images are in [0, 1].

    The mean of images in [0, 1] is at most 1. Their standard deviation is at most 0.5; a few networks scale by 1 or 2
    instead.

    Raises:
      UserError: the numbers belong to images in 0 to 255.
    """
    if max(mean) <= 1 and max(std) <= _LARGEST_STD:
        return
    texts = (",".join(f"{number / 255:.4g}" for number in numbers) for numbers in (mean, std))
    found = " and ".join(",".join(f"{number:g}" for number in numbers) for numbers in (mean, std))
    raise UserError(
        f"mean and std must be those of images in [0, 1], found {found[:80]}, which are of images of 0 to 255: divide "
        f"them by 255 ({' and '.join(texts)[:80]})"
    )
