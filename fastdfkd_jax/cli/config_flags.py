"""The command line of the training commands: a config file, its overrides, and a working directory."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from fastdfkd_jax.cli.parser import VERBOSE, expanded
from fastdfkd_jax.errors import UserError, one_line
from fastdfkd_jax.options import RENAMED

_SHOWN_KEYS = 5

executed: Path | None = None  # the config file of this process


def parse(argv: Sequence[str], default_config: str) -> tuple[ConfigDict, Path]:
    """Reads `--config FILE[:variant] --workdir DIR --config.key=value ...`.

    Args:
      argv: the program's name and its arguments.
      default_config: the config file where none is given.

    Returns:
      The locked config and the working directory.

    Raises:
      UserError: an unknown flag or key, a value of the wrong type, a config that cannot be read.
    """
    name, others = _take_config(argv, default_config)
    config = _load(name)
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
    except Exception as error:  # absl and ml_collections raise many kinds
        raise UserError(f"command line: {_message(error)}") from error
    if len(rest) > 1:
        raise UserError(f"command line: expected only --flags, found {rest[1]!r}: write --config.key=value")
    folder = workdir.value or Path("runs") / Path(name).name.replace(":", "-").replace(".py", "")
    return loaded, expanded(folder)


def _take_config(argv: Sequence[str], default_config: str) -> tuple[str, list[str]]:
    """The last value of --config, in either spelling, and the other arguments."""
    name, others, waiting = default_config, [], False
    for argument in argv:
        if waiting:
            name, waiting = argument, False
        elif argument in ("--config", "-config"):
            waiting = True
        elif argument.startswith(("--config=", "-config=")):
            name = argument.split("=", 1)[1]
        elif argument != VERBOSE:
            others.append(argument)
    if waiting:
        raise UserError("command line: --config needs a file: write --config FILE.py[:variant]")
    return name, others


def _load(name: str) -> ConfigDict:
    """The config of FILE.py or FILE.py:variant; a colon elsewhere belongs to the path."""
    file, variant = match.groups() if (match := re.fullmatch(r"(.+?\.py):(.*)", name, re.DOTALL)) else (name, None)
    path = expanded(file)
    if not path.is_file():
        raise UserError(f"config file {path} does not exist: give one of the files in configs/")
    try:
        module = execute(path)
        if variant is not None and not inspect.signature(module.get_config).parameters:
            raise UserError(f"config file {path} has no variants, found {variant!r}: leave it out")
        config = module.get_config() if variant is None else module.get_config(variant)
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"config file {error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:  # whatever a config file raises
        raise UserError(f"config file {path}: {type(error).__name__}: {_message(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() of {path} returned {type(config).__name__}: expected a ConfigDict, as in configs/"
        )
    return config


def execute(path: Path) -> Any:
    """The module of a config file. Processes that this one starts execute it too, for what it registers."""
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
    """Config files import their neighbours as `configs.<name>`, wherever the command is run from."""
    root = path.resolve().parent.parent
    while (root / "__init__.py").is_file():  # configs/compare/ lies in the package configs/
        root = root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))


def _require_known(argument: str, config: ConfigDict) -> None:
    """Refuses an override of a key that the config lacks, and names those of the section that are most like it."""
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
            near = ", ".join(_nearest(part, list(section.keys())))
            raise UserError(f"{where} has no key {part!r}: the nearest are {near}")
        section = section[part]


def _nearest(wanted: str, known: Sequence[str]) -> list[str]:
    """Keys in the order of their likeness; `lr` is like `learning_rate`, whose initials it is."""

    def initials(text: str) -> str:
        return "".join(word[0] for word in text.split("_") if word)

    def likeness(key: str) -> float:
        ratio = difflib.SequenceMatcher(None, wanted.lower(), key.lower()).ratio()
        same = initials(wanted) == key or initials(key) == wanted
        shared = set(wanted.lower().split("_")) & set(key.lower().split("_"))
        return ratio + same + 0.5 * bool(shared)

    return sorted(known, key=lambda key: (-likeness(key), key))[:_SHOWN_KEYS]


def _message(error: Exception) -> str:
    return one_line(error.args[0] if isinstance(error, KeyError) and error.args else error)
