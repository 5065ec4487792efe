"""`fastdfkd run CONFIG[:VARIANT]`: runs a config and writes the trained student."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastdfkd_jax.cli import config_flags, config_help
from fastdfkd_jax.cli.command import run_command
from fastdfkd_jax.cli.parser import JSON
from fastdfkd_jax.distributed import hosts
from fastdfkd_jax.methods.registry import other_sections
from fastdfkd_jax.options import by_section, read
from fastdfkd_jax.training import dry_run, phases, summary_text
from fastdfkd_jax.training.build import assemble
from fastdfkd_jax.training.config_checks import validate
from fastdfkd_jax.training.one_run import build, complete, set_up_jax
from fastdfkd_jax.training.run_options import RunOptions, every_kind

log = logging.getLogger("fastdfkd_jax.main")  # not __name__, which is __main__ here

DEFAULT_CONFIG = "configs/quickstart.py"


def _described(config: Any) -> list[str]:
    """Returns the help of the sections that a run of this config reads."""
    others = other_sections(config.method.name)
    kinds = {name: kind for name, kind in by_section(every_kind()).items() if name not in others}
    return config_help.by_section(config, kinds)


def main(argv: Sequence[str]) -> None:
    """Parses, checks and runs a config, then prints the summary: as text on a terminal, else as one line of JSON."""
    config, folder = config_flags.parse(argv, "run", DEFAULT_CONFIG, _described)
    validate(config)
    set_up_jax(config)
    chosen = config.parallel
    hosts.join(chosen.hosts, chosen.processes, chosen.process, chosen.lost_after)
    if not hosts.is_writer():
        logging.getLogger("fastdfkd_jax").setLevel(logging.ERROR)  # the writing process logs the same messages
    with hosts.together(), phases.reported():
        phases.enter("reading networks and data")
        if config.dry_run:
            output = dry_run.describe(read(RunOptions, config), assemble(config))
        else:
            summary = complete(config, folder, build(config))
            output = summary_text.printed(summary, folder, JSON in argv) if summary else ""  # stopped
        if output and hosts.is_writer():
            print(output, flush=True)


if __name__ == "__main__":
    run_command(main)
