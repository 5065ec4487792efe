"""The command line of the training commands: a config, its overrides, and a working directory.

`CONFIG[:VARIANT] KEY=VALUE ...` and `--config FILE.py[:VARIANT] --config.KEY=VALUE ...` mean the same.
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from fastdfkd_jax.cli import config_help, config_names
from fastdfkd_jax.cli.parser import HELP, JSON, VERBOSE, VERSION, VERSION_LINE, expanded
from fastdfkd_jax.errors import UserError, nearest, one_line
from fastdfkd_jax.options import RENAMED

_SHOWN_KEYS = 5

executed: Path | None = None  # the config file of this process


def parse(
    argv: Sequence[str],
    command: str,
    default_config: str,
    described: Callable[[ConfigDict], list[str]] | None = None,
) -> tuple[ConfigDict, Path]:
    """Reads a config, its overrides and `--workdir DIR`.

    `--help` prints help, for the config if one is given; `--version` prints the version. Both exit with status 0.

    Args:
      argv: the program's name and its arguments.
      command: name of the `fastdfkd` command.
      default_config: the config file to use if none is given.
      described: returns the lines with which `--help` describes a config's keys; None for all keys without meanings.

    Returns:
      The locked config and the working directory.

    Raises:
      UserError: an unknown flag or key, a value of the wrong type, or a config that cannot be read.
    """
    name, others = _take_config(argv)
    if VERSION in argv:
        print(VERSION_LINE)
        sys.exit()
    if set(HELP) & set(argv):
        if name is None:
            print(config_help.of_command(command))
        else:
            config = _load(name, command)
            lines = described(config) if described else config_help.by_section(config, None)
            print(config_help.of_config(config_names.find(name, command)[0], lines))
        sys.exit()
    name = name or default_config
    config = _load(name, command)
    for argument in others:
        _require_known(argument, config)
    values = flags.FlagValues()
    try:
        define = config_flags.DEFINE_config_dict  # pyright: ignore[reportAttributeAccessIssue] - a module of this name
        define("config", config, flag_values=values, sys_argv=others)
        workdir = flags.DEFINE_string(
            "workdir", "", "where the run's files go; by default runs/<config>", flag_values=values
        )
        rest = values(others)
        loaded: ConfigDict = values["config"].value  # pyright: ignore[reportAssignmentType] - of any flag
    except Exception as error:  # absl and ml_collections raise many types
        raise UserError(f"command line: {_message(error)}") from error
    if len(rest) > 1:
        raise UserError(f"command line: expected KEY=VALUE or --workdir DIR, found {rest[1]!r}")
    folder = workdir.value or Path("runs") / Path(name).name.replace(":", "-").replace(".py", "")
    return loaded, expanded(folder)


def _take_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns the config's name, in any of its spellings, and the other arguments in absl's form."""
    name, others = None, list(argv[:1])
    rest = iter(argv[1:])
    for argument in rest:
        if argument in ("--config", "-config"):
            name = next(rest, None)
            if name is None:
                raise UserError("command line: --config needs a file: write --config FILE.py[:variant]")
        elif argument.startswith(("--config=", "-config=")):
            name = argument.split("=", 1)[1]
        elif argument in ("--workdir", "-workdir"):
            others += [argument, *itertools.islice(rest, 1)]
        elif argument.startswith("-"):
            if argument not in (VERBOSE, JSON):
                others.append(argument)
        elif re.match(r"[A-Za-z_][\w.]*=", argument):
            others.append(f"--config.{argument}")
        elif name is None:
            name = argument
        else:
            others.append(argument)
    return name, others


def _load(name: str, command: str) -> ConfigDict:
    """Loads the config of a name that `config_names.find` understands."""
    path, variant = config_names.find(name, command)
    try:
        module = execute(path)
        if variant is not None and not inspect.signature(module.get_config).parameters:
            raise UserError(f"config file {path} has no variants, found {variant!r}: leave it out")
        config = module.get_config() if variant is None else module.get_config(variant)
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"config file {error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:  # a config file may raise anything
        raise UserError(f"config file {path}: {type(error).__name__}: {_message(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() of {path} returned {type(config).__name__}: expected a ConfigDict, as in configs/"
        )
    return config


def execute(path: Path) -> Any:
    """Imports a config file; processes started from this one import it too, for its registrations."""
    global executed
    _make_importable(path)
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"config file {path} is not Python: expected a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    executed = path.resolve()
    return module


def _make_importable(path: Path) -> None:
    """Lets config files import their neighbours as `<folder>.<name>` from any working directory."""
    root = path.resolve().parent.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))


def _require_known(argument: str, config: ConfigDict) -> None:
    """Refuses an override of an unknown key, and suggests the most similar keys of the section."""
    match = re.match(r"--?(?:no)?config\.([\w.]+)", argument)
    if match is None:
        return
    section: Any = config
    parts = match[1].split(".")
    for depth, part in enumerate(parts):
        if not isinstance(section, ConfigDict):
            return
        if part not in section:
            where, key = ".".join(["config", *parts[:depth]]), ".".join(parts)
            if key in RENAMED:
                raise UserError(f"{where} has no key {part!r}: it is called config.{RENAMED[key]} now")
            raise UserError(
                f"{where} has no key {part!r}: the nearest are {nearest(part, section.keys(), _SHOWN_KEYS)}"
            )
        section = section[part]


def _message(error: Exception) -> str:
    return one_line(error.args[0] if isinstance(error, KeyError) and error.args else error)
