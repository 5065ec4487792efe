"""The keys of a compare config that apply to all its runs, and the help that lists them."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastdfkd_jax.cli import config_help


class Key(NamedTuple):
    """A key, with its default and meaning."""

    default: Any
    about: str


KEYS = {
    "data_source": Key("", "data.source of all runs, only for evaluation; empty for each run's own"),
    "data_dir": Key("", "folder of the data: data.dir of all runs, transfer.dir of runs on the original data"),
    "other_data": Key("", "pictures that are not the teacher's (transfer.source), for example folder:PICTURES"),
    "other_data_dir": Key("", "folder of other_data (transfer.dir)"),
    "only": Key("", "names of runs, or patterns such as *-fast5, separated by commas; !PATTERN leaves runs out"),
    "seeds": Key("", "seeds of all runs, for example 0,1,2; empty for each run's own; tables show only these"),
    "jobs": Key(1, "runs at the same time, each on its share of the cores"),
    "estimate": Key(True, "whether dry_run=true measures each configuration once, for the plan's hours"),
    "time_all": Key(False, "measure all runs again and stop; for runs that shared a machine that is now idle"),
    "dry_run": Key(False, "print the plan and stop"),
    "tables_only": Key(False, "run nothing: make the tables from the runs or records in the workdir"),
    "record": Key("", "folder that receives the records of finished runs, and their tables"),
    "timed": Key(True, "whether the machine was idle; if not, records have the seconds of time_all, or none"),
    "into": Key(
        "",
        "Markdown files, separated by commas: tables go after <!-- results compare/TABLE -->, before <!-- /results -->",
    ),
}


def described(config: Any) -> list[str]:
    """Returns the help of a compare config, line by line: its keys, runs and tables."""
    lines = [line for name in config.teachers for line in config_help.key_lines(
        f"teachers.{name}", config.teachers[name], "checkpoint of this teacher")]  # fmt: skip
    for name, key in KEYS.items():
        lines += config_help.key_lines(name, config[name], key.about)
    runs = [f"  {name} ({_seeds(entry.seeds)})" for name, entry in config.runs.items()]
    of_runs = (
        "runs, with the keys runs.NAME.seeds and runs.NAME.config.KEY (fastdfkd run CONFIG --help lists each KEY):"
    )
    return [*lines, "", of_runs, *runs, "", "tables:", *(f"  {name}" for name in config.tables)]


def _seeds(seeds: tuple[int, ...]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
