"""The outputs of a comparison: tables and figures of a folder of runs, records of them, and tables in a document."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fastdfkd_jax.compare import figure, results, run_folders, tables
from fastdfkd_jax.compare.comparison import Comparison, Run, Table
from fastdfkd_jax.compare.results import SECONDS_APART
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage import files, limits
from fastdfkd_jax.storage.files import make_folder, write_atomically
from fastdfkd_jax.training import run_records

log = logging.getLogger(__name__)
Failures = Mapping[str, Sequence[str]]


def write(workdir: Path, comparison: Comparison, chosen: Sequence[Table], failures: Failures) -> dict[str, str]:
    """Writes NAME.md, .csv and .tex of each table, and NAME-figure1.png and .svg unless it is brief.

    Args:
      workdir: workdir with the folder `runs`; the files are written beside that.
      comparison: defines what the runs must be.
      chosen: the tables to write.
      failures: reasons of failed runs, by name.

    Returns:
      The Markdown by name.
    """
    make_folder(workdir)
    written = {}
    for table, sections in figures_of(workdir, comparison, chosen, failures):
        written[table.name] = tables.markdown(table, sections)
        _write_text(workdir / f"{table.name}.md", written[table.name])
        _write_text(workdir / f"{table.name}.csv", tables.as_csv(table, sections))
        _write_text(workdir / f"{table.name}.tex", tables.latex(table, sections))
        if table.brief:
            continue
        try:
            figure.write(workdir / f"{table.name}-figure1", sections)
        except UserError as error:
            _warn_once(str(error))
    return written


def figures_of(
    workdir: Path, comparison: Comparison, chosen: Sequence[Table], failures: Failures
) -> list[tuple[Table, dict[str, list[results.Line]]]]:
    """Returns the chosen tables' figures from finished runs in a workdir or from records; arguments as in `write`."""
    summaries = run_folders.summaries(workdir, comparison)
    wanted = {run.name: len(run.seeds) for run in comparison.runs.values()}
    return [(table, results.sections(table, summaries, wanted, failures)) for table in chosen]


@functools.cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)


def record(
    workdir: Path,
    comparison: Comparison,
    records: Path,
    timed: bool,
    measured: Callable[[Run], dict[str, float] | None],
) -> dict[str, str]:
    """Copies the results worth keeping of each finished run, and makes tables and figures from the copies, as `write`.

    Args:
      workdir: workdir of the runs.
      comparison: the comparison; all its runs, chosen or not, are copied.
      records: folder with the same layout; it may be a workdir.
      timed: whether the machine was otherwise idle; if not, separately measured seconds are used, or none.
      measured: returns a whole run's separately measured seconds, or None (`estimates.measured_seconds`).
    """
    for run in comparison.runs.values():
        seconds = None if timed else measured(run)
        for path in sorted((workdir / "runs" / run.name).glob("seed*/summary.json")):
            place = records / "runs" / run.name / path.parent.name
            run_records.add(path.parent, place, timed=timed, picture=False)
            if seconds is not None:
                summary = limits.read_json(place / "summary.json", "record")
                total = {"total_seconds": sum(seconds.values()), SECONDS_APART: True}
                files.write_json(place / "summary.json", {**summary, **seconds, **total})
    return write(records, comparison, comparison.tables, {})


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
