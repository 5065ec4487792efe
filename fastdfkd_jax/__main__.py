"""`fastdfkd COMMAND ...`: every command of the package behind one name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import NamedTuple

from fastdfkd_jax.cli.command import run_command
from fastdfkd_jax.cli.parser import HELP, PROGRAM, VERSION, VERSION_LINE
from fastdfkd_jax.errors import UserError, nearest


class Command(NamedTuple):
    """A command.

    Attributes:
      module: has the function.
      summary: one line for `--help`.
      function: takes `argv`, which begins with the program's name, and returns the exit status.
    """

    module: str
    summary: str
    function: str = "main"


COMMANDS = {
    "run": Command("fastdfkd_jax.main", "train a student as a config says"),
    "distill": Command("fastdfkd_jax.own_networks", "train a student from a PyTorch network of your own"),
    "pretrain": Command("fastdfkd_jax.pretrain", "train a teacher as a config says"),
    "compare": Command("fastdfkd_jax.compare.__main__", "run several methods and make their table", "command"),
    "evaluate": Command("fastdfkd_jax.evaluate", "measure a network on labelled images"),
    "convert": Command(
        "fastdfkd_jax.convert.__main__", "import, verify, export or record a PyTorch network", "command"
    ),
    "images": Command("fastdfkd_jax.export.__main__", "write the synthesised images of a run as files"),
    "overlay": Command("fastdfkd_jax.overlay", "draw segmentation maps over pictures"),
    "report": Command("fastdfkd_jax.report", "make a table of recorded runs"),
}


def usage() -> str:
    """Returns the help of the program itself."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND ...",
            "",
            "Data-free knowledge distillation: trains a student from a teacher without its training data.",
            "",
            "commands:",
            *lines,
            "",
            f"start with:      {PROGRAM} run quickstart",
            f"help:            {PROGRAM} COMMAND --help",
            f"version:         {PROGRAM} --version",
        ]
    )


def main(argv: Sequence[str]) -> int | None:
    """Runs the command that `argv[1]` names; without one it prints the help."""
    _, *arguments = argv
    if not arguments or arguments[0] in (*HELP, "help"):
        print(usage())
        return 0
    name, *others = arguments
    if name == VERSION:
        print(VERSION_LINE)
        return 0
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}: the nearest are {nearest(name, COMMANDS)}; see {PROGRAM} --help")
    command = COMMANDS[name]
    run = getattr(importlib.import_module(command.module), command.function)
    return run([f"{PROGRAM} {name}", *(others or ["--help"])])


def entry() -> None:
    """Runs the console script."""
    run_command(main)


if __name__ == "__main__":
    entry()
