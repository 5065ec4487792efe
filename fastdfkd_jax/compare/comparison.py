"""What a compare config says: the runs, the tables that show them, and the overrides that apply to all runs."""

from __future__ import annotations

import fnmatch
import re
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage.digest import file_digest
from fastdfkd_jax.training.config_checks import validate

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Run(NamedTuple):
    """One configuration, run once for each seed.

    Attributes:
      name: of its folder; tables that name the same run share it.
      config: of `fastdfkd_jax.main`, without the seed.
      seeds: to be run.
      teacher: key of `config.teachers`, or '' where the config names the checkpoint itself.
      other_data: whether it learns from other data than the teacher's, which `config.other_data` may give.
    """

    name: str
    config: ConfigDict
    seeds: tuple[int, ...]
    teacher: str
    other_data: bool

    def seeded(self, seed: int) -> ConfigDict:
        """The config of one seed."""
        config = self.config.copy_and_resolve_references()
        config.seed = seed
        return config

    def teacher_digest(self) -> str:
        """SHA-256 of the given teacher's file, or '' where none is given."""
        path = expanded(self.config.teacher.checkpoint)
        return file_digest(path) if self.teacher and path.is_file() else ""


class Row(NamedTuple):
    """A line of a table.

    Attributes:
      section: data set and pair; each has a table of its own.
      label: the method's name in this table.
      run: the run that it shows, or '' for none.
      shows: 'student'; or 'teacher', whose accuracy any run of the section has read.
      times: the run's synthesis seconds are multiplied by this, and nothing else of it is shown; 0 for a measured row.
      knows: what the method is given of the world, where no run tells.
      is_reference: whether speed-ups are over this row.
      is_control: whether it is a control, without a speed-up.
      paper_accuracy: the paper's, percent; None where it has none.
      paper_hours: the paper's hours of synthesis.
      share: its images through the teacher with a gradient over those of the published recipe, as a fraction
        (`synthesis.images_with_gradient`); None where there is no such recipe.
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


class Table(NamedTuple):
    """Rows that are shown together.

    Attributes:
      name: of its files.
      caption: one sentence.
      paper: how the paper's columns are called.
      rows: in order.
      spread: whether it compares deviations: a column has each over the reference's, in place of speed-ups.
      brief: whether it has accuracies and seconds only, for people who read no other table.
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
      chosen: names of those that `config.only` asks for.
      tables: in order.
    """

    runs: dict[str, Run]
    chosen: tuple[str, ...]
    tables: tuple[Table, ...]

    def tables_of(self, run: str) -> list[Table]:
        """The tables that show a run."""
        return [table for table in self.tables if any(row.run == run for row in table.rows)]


def read(config: ConfigDict) -> Comparison:
    """Reads and checks a compare config (configs/compare/).

    Raises:
      UserError: a key is missing or a value cannot work.
    """
    for key in ("runs", "tables", "only", "seeds", "teachers"):
        if key not in config:
            raise UserError(f"config.{key} is missing: expected a config made as those in configs/compare/")
    seeds = _seeds(config.seeds)
    runs = {name: _run(name, entry, config, seeds) for name, entry in config.runs.items()}
    tables = tuple(_table(name, entry, runs) for name, entry in config.tables.items())
    return Comparison(runs, _chosen(config.only, runs), tables)


def _run(name: str, entry: ConfigDict, config: ConfigDict, seeds: tuple[int, ...]) -> Run:
    if not _NAME.fullmatch(name):
        raise UserError(f"the run {name!r} cannot name a folder: expected letters, digits, '.', '_' and '-'")
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
    return Table(name, entry.caption, entry.paper, rows, entry.spread, entry.get("brief", False))


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        seeds = (-1,)
    if any(seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"config.seeds must be whole numbers, each once, as in 0,1,2, found {text!r}")
    return seeds


def _chosen(text: str, runs: dict[str, Run]) -> tuple[str, ...]:
    """Names that match one of the patterns; all of them where there is none."""
    patterns = [part.strip() for part in text.split(",") if part.strip()]
    for pattern in patterns:
        if not fnmatch.filter(runs, pattern):
            raise UserError(f"config.only: no run is called {pattern!r}: expected some of {', '.join(runs)}")
    return tuple(name for name in runs if not patterns or any(fnmatch.fnmatchcase(name, p) for p in patterns))


def require_given(runs: list[Run]) -> None:
    """UserError where a run's teacher, or the data that it is to learn from, is not given or not there."""
    for run in runs:
        path: Any = run.config.teacher.checkpoint
        if run.teacher and not path:
            raise UserError(
                f"config.teachers.{run.teacher} is not set: give the checkpoint of a trained "
                f"{run.config.teacher.arch}, or leave its runs out by config.only"
            )
        if run.teacher and not expanded(path).exists():
            raise UserError(f"config.teachers.{run.teacher}: {path} does not exist: give the checkpoint's place")
        if run.other_data and not run.config.transfer.source:
            raise UserError(
                f"config.other_data is not set: give other pictures than the teacher's for the run {run.name}, as "
                "folder:DIR, or leave it out by config.only"
            )
