"""Lists the pictures of a folder, and reports its other files."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from fastdfkd_jax import errors
from fastdfkd_jax.data.pictures import SUFFIXES

log = logging.getLogger("fastdfkd_jax.data")

# Leftovers of file managers, besides names that begin with a dot (`._x`, `.DS_Store`, `.ipynb_checkpoints`).
_LEFTOVERS = {"__macosx", "thumbs.db", "desktop.ini", "@eadir"}


class Listing(NamedTuple):
    """The contents of a folder.

    Attributes:
      pictures: in the order of their paths.
      others: files with other suffixes.
      leftovers: hidden files and leftovers of file managers; such a folder counts as one entry.
    """

    pictures: tuple[Path, ...]
    others: tuple[Path, ...]
    leftovers: tuple[Path, ...]


def is_leftover(name: str) -> bool:
    """Returns True if a file or folder of this name is hidden or was left by a file manager."""
    return name.startswith(".") or name.casefold() in _LEFTOVERS


def listed(place: Path, *, below: bool = True, suffixes: Collection[str] = SUFFIXES) -> Listing:
    """Sorts the files of a folder.

    Args:
      place: the folder.
      below: whether to include folders in it, at any depth.
      suffixes: suffixes of pictures, in lower case.
    """
    kinds: tuple[list[Path], list[Path], list[Path]] = ([], [], [])
    for root, folders, files in os.walk(place):
        hidden = any(map(is_leftover, Path(root).relative_to(place).parts))
        for name in files:
            strange = Path(name).suffix.lower() not in suffixes
            kinds[2 if hidden or is_leftover(name) else int(strange)].append(Path(root, name))
        if not below:
            kinds[2].extend(Path(root, name) for name in folders if is_leftover(name))
            folders.clear()
    return Listing(*(tuple(sorted(kind)) for kind in kinds))


def warn_of_skipped(listings: Iterable[Listing], place: Path) -> None:
    """Logs in one line which files of a place are not read, and how many."""
    found = list(listings)
    others = [path for listing in found for path in listing.others]
    leftovers = [path for listing in found for path in listing.leftovers]
    if not others and not leftovers:
        return
    suffixes = errors.listed(sorted({path.suffix.lower() or path.name for path in others}))
    names = errors.listed(sorted({next(filter(is_leftover, reversed(path.parts))) for path in leftovers}))
    one = len(others) == 1
    told = [
        f"{len(others)} {'file that is not a picture' if one else 'files that are not pictures'}: {suffixes}"
        if others
        else "",
        f"{len(leftovers)} hidden or left by other programs: {names}" if leftovers else "",
    ]
    log.warning("skipped %s (in %s)", "; ".join(filter(None, told)), place)


def in_order(names: Iterable[str], where: object) -> list[str]:
    """Sorts class names, by value if all are numbers; logs it if text order would differ."""
    as_text = sorted(names)
    if not as_text or not all(name.isascii() and name.isdigit() for name in as_text):
        return as_text
    by_value = sorted(as_text, key=lambda name: (len(name.lstrip("0")), name.lstrip("0"), name))
    if by_value != as_text:
        _warn_of_order(str(where), errors.listed(by_value), errors.listed(as_text))
    return by_value


@functools.cache
def _warn_of_order(where: str, by_value: str, as_text: str) -> None:
    log.warning(
        "the classes of %s are numbers and are sorted by value (%s); torchvision's ImageFolder sorts them as text "
        "(%s): for a network trained in that order, give it as class names (--class-names, config.data.class_names)",
        where,
        by_value,
        as_text,
    )
