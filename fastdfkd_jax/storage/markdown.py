"""Markdown tables, and the marked blocks of a file that a command replaces."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage.files import write_atomically

log = logging.getLogger(__name__)

_END = "<!-- /results -->"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], left: int | None = None) -> str:
    """Formats a table, with one line each for the head, the alignment and every row.

    Args:
      head: the columns' names.
      rows: cells, as `str` writes them.
      left: number of left-aligned columns; later ones are right-aligned, as for numbers; None for all.
    """
    alignment = ["---" if left is None or column < left else "---:" for column in range(len(head))]
    lines = [[str(cell).replace("|", r"\|") for cell in row] for row in (head, alignment, *rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def insert(text: str, block: str, name: str = "") -> str:
    """Replaces the text between the marks of a document, `<!-- results NAME -->` and `<!-- /results -->`.

    Args:
      text: the document.
      block: whole lines to put there.
      name: name of the mark; '' for the unnamed one.

    Raises:
      UserError: the document has no such marks.
    """
    mark = start_mark(name)
    before, start, rest = text.partition(f"{mark}\n")
    _, end, after = rest.partition(_END)
    if not (start and end):
        raise UserError(f"the document has no place for the table: expected the lines {mark} and {_END}")
    return before + start + block + end + after


def insert_all(document: Path, blocks: Mapping[str, str]) -> None:
    """Puts each block between its marks in a Markdown file; blocks without marks in the file are left out.

    Args:
      document: the file.
      blocks: whole lines by the name of their mark.

    Raises:
      UserError: the file cannot be read, or has marks for none of them.
    """
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{document} cannot be read ({error.strerror}): give a Markdown file") from error
    marked = [name for name in blocks if start_mark(name) in text]
    if not marked:
        expected = " or ".join(start_mark(name) for name in blocks)
        raise UserError(f"{document} has no place for the tables: expected the line {expected}, and {_END} after it")
    before = text
    for name in marked:
        text = insert(text, blocks[name], name)
    names = ", ".join(filter(None, marked)) or "the table"
    log.info("%s: %s", document, f"has {names} already" if text == before else f"wrote {names}")
    write_atomically(document, lambda file: file.write(text.encode()))


def start_mark(name: str = "") -> str:
    """Returns the line that precedes a table of this name in a document."""
    return f"<!-- results {name} -->" if name else "<!-- results -->"
