"""Help for the commands that take a config, and for the configs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fastdfkd_jax.cli import config_names
from fastdfkd_jax.cli.parser import PROGRAM
from fastdfkd_jax.options import Options, part, ranges, said

_WIDTH = 100


def of_command(command: str) -> str:
    """Returns a command's usage and the list of our configs for it."""
    configs = config_names.listed(command)
    width = max(map(len, configs), default=0)
    return "\n".join(
        [
            f"usage: {PROGRAM} {command} CONFIG[:VARIANT] [KEY=VALUE ...] [--workdir DIR]",
            "",
            "  CONFIG         a name from the list below, or a Python file with get_config()",
            "  KEY=VALUE      changes one value of the config, for example kd.lr=0.05",
            "  --workdir DIR  where the files go (default: runs/CONFIG); the same command resumes there",
            "  --json         print the result as JSON; this is the default if the output is not a terminal",
            "  --verbose      print messages of more than 300 characters in full",
            "  --version      print the version",
            "",
            "configs:",
            *(f"  {name:{width}}  {summary}" for name, summary in configs.items()),
            "",
            f"{PROGRAM} {command} CONFIG --help describes a config: its variants, and its keys with their values.",
        ]
    )


def of_config(path: Path, keys: Iterable[str]) -> str:
    """Returns a config file's description, and the lines that describe its keys."""
    return "\n".join([config_names.docstring(path), "", "keys:", *keys])


def by_section(config: ConfigDict, kinds: Mapping[str, type[Options]] | None) -> list[str]:
    """Returns the keys of a config by section, with their values and meanings, line by line.

    Args:
      config: the config.
      kinds: options class of each section; sections without one are left out. None to list all keys, without meanings.
    """
    return list(_section("", config, kinds))


def _section(prefix: str, section: ConfigDict, kinds: Mapping[str, type[Options]] | None) -> Iterator[str]:
    if kinds is not None and prefix not in kinds:
        return
    kind = kinds[prefix] if kinds else None
    for key, value in section.items():
        if not isinstance(value, ConfigDict):
            full = f"{prefix}.{key}".lstrip(".")
            yield from key_lines(full, value, _meaning(kind, key))
    for key, value in section.items():
        if isinstance(value, ConfigDict):
            below = list(_section(f"{prefix}.{key}".lstrip("."), value, kinds))
            yield from (["", *below] if below else [])


def _meaning(kind: type[Options] | None, key: str) -> str:
    fields = getattr(kind, "__dataclass_fields__", {})
    if kind is None or key not in fields or part(fields[key]) is not None:
        return ""
    return "; ".join(filter(None, (said(kind, key).get("about", ""), ranges(kind, key))))


def key_lines(full: str, value: Any, meaning: str) -> Iterator[str]:
    """Yields the lines that describe a key: its full name, value and meaning."""
    line = f"  {full}={value!r}" if not isinstance(value, str) else f"  {full}={value}"
    if not meaning:
        yield line
        return
    yield from textwrap.wrap(
        meaning, _WIDTH, initial_indent=f"{line:<44}  ", subsequent_indent=" " * 46, break_long_words=False
    )
