"""The command line of the training commands: a config file, its overrides, and a working directory."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from fastdfkd_jax.errors import EXIT_STATUS, UserError


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
    _make_importable(argv, default_config)
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_file("config", default_config, flag_values=values, sys_argv=list(argv))
        workdir = flags.DEFINE_string(
            "workdir", "", "where the run's files go; by default runs/<config>", flag_values=values
        )
        with warnings.catch_warnings():
            # ml_collections loads config files by a function that Python 3.15 will drop.
            warnings.simplefilter("ignore", DeprecationWarning)
            rest = values(list(argv))
        loaded = values["config"].value
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"config file {error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:  # whatever a config file raises
        raise UserError(f"command line: {_first_line(error)}") from error
    if not isinstance(loaded, ConfigDict):
        raise UserError("the config file's get_config() must return a ConfigDict, as those in configs/ do")
    if len(rest) > 1:
        raise UserError(f"command line: expected only --flags, found {rest[1]!r}: write --config.key=value")
    name = next((arg for arg in _config_arguments(argv)), default_config)
    folder = Path(workdir.value or Path("runs") / Path(name).name.replace(":", "-").replace(".py", ""))
    return loaded, folder.expanduser()


def run_command(command: Callable[[Sequence[str]], int | None]) -> None:
    """Runs a command's main function and exits: 2 and one line for what a user can mend."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    ours = logging.getLogger("fastdfkd_jax")  # the libraries below us are too talkative to share their level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
    try:
        status = command(sys.argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_STATUS)
    sys.exit(status or 0)


def _config_arguments(argv: Sequence[str]) -> list[str]:
    """Values of --config, in either spelling."""
    found = [arg.split("=", 1)[1] for arg in argv if arg.startswith(("--config=", "-config="))]
    return found + [argv[i + 1] for i, arg in enumerate(argv[:-1]) if arg in ("--config", "-config")]


def _make_importable(argv: Sequence[str], default_config: str) -> None:
    """Config files import their neighbours as `configs.<name>`, wherever the command is run from."""
    for name in (*_config_arguments(argv), default_config):
        path = Path(name.split(":")[0])
        if not path.is_file():
            raise UserError(f"config file {path} does not exist: give one of the files in configs/")
        root = path.resolve().parent.parent
        while (root / "__init__.py").is_file():  # configs/compare/ lies in the package configs/
            root = root.parent
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
        return


def _first_line(error: Exception) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return " ".join(text.split())
