"""The content of a compare config: the runs, the tables that show them, and overrides for all runs."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.errors import UserError, nearest, shortened
from fastdfkd_jax.storage.digest import file_digest
from fastdfkd_jax.training.config_checks import validate
from fastdfkd_jax.training.one_run import identity_of

# Last parts of the keys in which the runs of a series may differ: a method's rates belong to its number of steps.
_OF_A_POINT = ("seed", "num_steps", "lr", "generator_lr", "latents_lr")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Run(NamedTuple):
    """One configuration, run once for each seed.

    Attributes:
      name: name of its folder; tables that name the same run share it.
      config: config of `fastdfkd_jax.main`, without the seed.
      seeds: the seeds to run.
      teacher: key of `config.teachers`, or '' if the config names the checkpoint itself.
      other_data: whether it learns from data other than the teacher's, which `config.other_data` may set.
    """

    name: str
    config: ConfigDict
    seeds: tuple[int, ...]
    teacher: str
    other_data: bool

    def seeded(self, seed: int) -> ConfigDict:
        """Returns the config of one seed."""
        config = self.config.copy_and_resolve_references()
        config.seed = seed
        return config

    def teacher_digest(self) -> str:
        """Returns the SHA-256 of the given teacher's file, or '' if none is given."""
        path = expanded(self.config.teacher.checkpoint)
        return file_digest(path) if self.teacher and path.is_file() else ""


class Row(NamedTuple):
    """A line of a table.

    Attributes:
      section: data set and network pair; each has a separate table.
      label: the method's name in this table.
      run: the run that it shows, or '' for none.
      shows: 'student'; or 'teacher', whose accuracy is taken from any run of the section.
      times: factor for the run's synthesis seconds, in which case nothing else of it is shown; 0 for a measured row.
      knows: the data that the method uses, if no run records it.
      is_reference: whether speed-ups are relative to this row.
      is_control: whether it is a control, without a speed-up.
      paper_accuracy: the paper's accuracy in percent; None if it has none.
      paper_hours: the paper's hours of synthesis.
      share: its images through the teacher with a gradient as a fraction of the published recipe's
        (`synthesis.images_with_gradient`); None if there is no such recipe.
      series: equal for rows whose runs differ only in their steps and learning rates; '' if it shows no run.
    """

    section: str
    label: str
    run: str
    shows: str
    times: float
    knows: str
    is_reference: bool
    is_control: bool
    paper_accuracy: float | None
    paper_hours: float | None
    share: float | None = None
    series: str = ""


class Table(NamedTuple):
    """Rows that are shown together.

    Attributes:
      name: name of its files.
      caption: a caption of one sentence.
      paper: title of the paper's columns.
      rows: in order.
      spread: whether it compares deviations; a column then shows each over the reference's instead of speed-ups.
      brief: whether it shows only accuracies and seconds, for a quick overview.
    """

    name: str
    caption: str
    paper: str
    rows: tuple[Row, ...]
    spread: bool = False
    brief: bool = False


class Comparison(NamedTuple):
    """All runs and tables.

    Attributes:
      runs: by name.
      chosen: names of the runs that `config.only` selects.
      tables: in order.
    """

    runs: dict[str, Run]
    chosen: tuple[str, ...]
    tables: tuple[Table, ...]

    def tables_of(self, run: str) -> list[Table]:
        """Returns the tables that show a run."""
        return [table for table in self.tables if any(row.run == run for row in table.rows)]


def read(config: ConfigDict) -> Comparison:
    """Reads and checks a compare config (configs/compare/).

    Raises:
      UserError: a key is missing or a value is invalid.
    """
    for key in ("runs", "tables", "only", "seeds", "teachers"):
        if key not in config:
            raise UserError(f"config.{key} is missing: expected a config like those in configs/compare/")
    seeds = _seeds(config.seeds)
    runs = {name: _run(name, entry, config, seeds) for name, entry in config.runs.items()}
    tables = tuple(_table(name, entry, runs) for name, entry in config.tables.items())
    return Comparison(runs, _chosen(config.only, runs), tables)


def _run(name: str, entry: ConfigDict, config: ConfigDict, seeds: tuple[int, ...]) -> Run:
    if not _NAME.fullmatch(name):
        raise UserError(f"the run name {name!r} cannot name a folder: expected letters, digits, '.', '_' and '-' only")
    made = entry.config.copy_and_resolve_references()
    original = bool(made.transfer.source) and made.transfer.source == made.data.source
    if config.data_source:
        made.data.source = config.data_source
    if config.data_dir and made.data.source != "digits":
        made.data.dir = config.data_dir
        if original:
            made.transfer.dir = config.data_dir
    if entry.other_data and config.other_data:
        made.transfer.source, made.transfer.dir = config.other_data, config.other_data_dir
    if entry.teacher:
        made.teacher.checkpoint = config.teachers[entry.teacher]
    made.seed = 0
    try:
        validate(made)
    except UserError as error:
        raise UserError(f"run {name}: {error}") from None
    return Run(name, made, seeds or tuple(entry.seeds), entry.teacher, entry.other_data)


def _table(name: str, entry: ConfigDict, runs: dict[str, Run]) -> Table:
    rows = tuple(Row(**row.to_dict()) for row in entry.rows.values())
    for row in rows:
        if row.run and row.run not in runs:
            raise UserError(f"table {name}, row {row.label!r}: unknown run {row.run!r}: expected one of config.runs")
    rows = tuple(row._replace(series=_series(runs[row.run].config)) if row.run else row for row in rows)
    return Table(name, entry.caption, entry.paper, rows, entry.spread, entry.get("brief", False))


def _series(config: ConfigDict) -> str:
    """Returns a text that is equal for runs which differ only in their seed, their steps and their learning rates."""
    flat = identity_of(config)
    return json.dumps({key: value for key, value in flat.items() if key.rpartition(".")[2] not in _OF_A_POINT})


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        seeds = (-1,)
    if any(seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"config.seeds must be different whole numbers, such as 0,1,2, found {text!r}")
    return seeds


def _chosen(text: str, runs: dict[str, Run]) -> tuple[str, ...]:
    """Returns the names that match a pattern, all if there is none, without those that match a pattern after '!'."""
    patterns = [part.strip() for part in text.split(",") if part.strip()]
    for pattern in (part.removeprefix("!") for part in patterns):
        if not fnmatch.filter(runs, pattern):
            found = nearest(pattern, runs, longest=60)  # whole, to be copied
            raise UserError(f"config.only: no run matches {shortened(pattern, 60)!r}: the nearest are {found}")
    left_out = [part[1:] for part in patterns if part.startswith("!")]
    wanted = [part for part in patterns if not part.startswith("!")] or ["*"]

    def matches(name: str, among: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in among)

    return tuple(name for name in runs if matches(name, wanted) and not matches(name, left_out))


def lacking(run: Run) -> str:
    """Returns what is missing for a run, its teacher or the data that it learns from, and how to give it; or ''."""
    path: Any = run.config.teacher.checkpoint
    if run.teacher and not path:
        return (
            f"config.teachers.{run.teacher} is not set: give the checkpoint of a trained {run.config.teacher.arch}, or "
            "leave out its runs with only='!PATTERN'"
        )
    if run.teacher and not expanded(path).exists():
        return f"config.teachers.{run.teacher}: {path} does not exist: give the checkpoint's path"
    if run.other_data and not run.config.transfer.source:
        return (
            f"config.other_data is not set: give the run {run.name} pictures other than the teacher's data, as "
            f"folder:DIR, or leave it out with only='!{run.name}'"
        )
    return ""


def require_given(runs: Iterable[Run]) -> None:
    """Raises UserError if a run's teacher, or the data that it learns from, is not set or missing."""
    for run in runs:
        if reason := lacking(run):
            raise UserError(reason)
