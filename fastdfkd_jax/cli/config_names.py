"""Finds config files: those of the package by name, and users' own by path."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from fastdfkd_jax.cli.parser import PROGRAM, expanded
from fastdfkd_jax.errors import UserError, nearest

# In the repository, this is a link to the top-level folder of that name.
OURS = Path(__file__).resolve().parent.parent / "configs"
# Prefixes of the config paths of these commands, which users leave out.
_BEGINS = {"compare": "compare/", "pretrain": "pretrain_"}


def find(name: str, command: str) -> tuple[Path, str | None]:
    """Finds the file and the variant of `NAME[:variant]` or `FILE.py[:variant]`.

    A name without `.py` is one of our configs, such as `quickstart`. For `compare`, `table1` means `compare/table1`;
    for `pretrain`, `digits` means `pretrain_digits`. `configs/NAME.py` is also one of ours if no such file exists.
    Other colons belong to the path.

    Raises:
      UserError: there is no such config.
    """
    if match := re.fullmatch(r"(.+?\.py):(.*)", name, re.DOTALL):
        file, variant = match[1], match[2]
    elif match := re.fullmatch(r"(\w[\w/]*)(?::(.*))?", name):
        return _ours(match[1], command), match[2] or None
    else:
        file, variant = name, None
    path = expanded(file)
    packaged = OURS / file.removeprefix("configs/")
    if not path.is_file() and file.startswith("configs/") and packaged.is_file():
        path = packaged
    if not path.is_file():
        raise UserError(f"config file {path} does not exist: give a file, or a name that {_help(command)} lists")
    return path, variant


def _ours(name: str, command: str) -> Path:
    for begin in (_BEGINS.get(command, ""), ""):
        path = OURS / f"{begin}{name}.py"
        if path.is_file():
            return path
    near = nearest(name, listed(command))
    raise UserError(f"no config is called {name!r}: the nearest are {near}; {_help(command)} lists all")


def _help(command: str) -> str:
    return f"{PROGRAM} {command} --help"


def listed(command: str) -> dict[str, str]:
    """Returns names and one-line descriptions of our configs for this command."""
    found = {}
    for path in sorted(OURS.rglob("*.py")):
        text = docstring(path)
        if f"{PROGRAM} {command} " in text:
            name = path.relative_to(OURS).with_suffix("").as_posix()
            found[name.removeprefix(_BEGINS.get(command, ""))] = text.splitlines()[0]
    return found


def docstring(path: Path) -> str:
    """Returns the description of a config file without executing it."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
