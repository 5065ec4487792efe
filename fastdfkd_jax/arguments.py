"""What the commands' parsers of arguments share."""

from __future__ import annotations

import argparse
from os import PathLike
from pathlib import Path
from typing import NoReturn

from fastdfkd_jax.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """Says a mistake of the command line in one line, as every other mistake."""

    def error(self, message: str) -> NoReturn:
        """Raises it as UserError."""
        raise UserError(f"{message}: see {self.prog} --help")


def numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between them."""
    try:
        return tuple(float(item) for item in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas, found {text!r}") from None


def expanded(path: str | PathLike[str]) -> Path:
    """A path with the home directory in place of a leading `~`.

    Raises:
      UserError: there is no home directory, as in a container whose user has none.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"there is no home directory for {path}: set HOME, or give a path without ~") from None
