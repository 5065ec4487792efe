"""Estimates the remaining work and its time; each configuration is measured once, and the result is stored."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastdfkd_jax.cli.signals import Stop
from fastdfkd_jax.compare import jobs, run_folders
from fastdfkd_jax.compare.comparison import Comparison, Run, lacking
from fastdfkd_jax.compare.jobs import Cores, Outcome, Task
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage import files, limits
from fastdfkd_jax.training import one_run

log = logging.getLogger(__name__)

# The measured seconds of a run, by their names in its summary.
PARTS = ("synthesis_seconds", "distill_seconds", "label_seconds", "compile_seconds")


class Entry(NamedTuple):
    """One run of the plan.

    Attributes:
      run, seed: the run and its seed.
      state: a state from `run_folders`.
      seconds: time of the whole run from its start; None if unknown.
    """

    run: Run
    seed: int
    state: str
    seconds: float | None

    @property
    def name(self) -> str:
        """The run's name for people."""
        return f"{self.run.name} seed {self.seed}"


def make(workdir: Path, comparison: Comparison, cores: Sequence[Cores], measured: bool, stop: Stop) -> list[Entry]:
    """Returns the chosen runs in order, with their times.

    Args:
      workdir: workdir of the comparison; its plan.json stores measurements.
      comparison: runs and tables.
      cores: the cores of each concurrent process.
      measured: whether to measure unknown times.
      stop: ends the measurements when a stop is requested.

    Raises:
      UserError: a folder holds a run of another configuration.
    """
    chosen = [comparison.runs[name] for name in comparison.chosen]
    entries = [Entry(run, seed, run_folders.state(workdir, run, seed), None) for run in chosen for seed in run.seeds]
    waiting = {entry.run.name: entry.run for entry in entries if entry.state != run_folders.FINISHED}
    keys = {name: _digest(run, len(cores[0])) for name, run in waiting.items()}
    known = _known(workdir)
    if measured:
        unknown = [run for name, run in waiting.items() if keys[name] not in known]
        for reason in filter(None, dict.fromkeys(map(lacking, unknown))):
            log.info("not measured: %s", reason)
        _measure(workdir, {keys[run.name]: run for run in unknown if not lacking(run)}, known, cores, stop)

    def seconds(entry: Entry) -> float | None:
        found = known.get(keys.get(entry.run.name, ""))
        return sum(found.get(name, 0.0) for name in PARTS) if found else None

    return [entry._replace(seconds=seconds(entry)) for entry in entries]


def time_all(workdir: Path, comparison: Comparison, cores: Sequence[Cores], stop: Stop) -> None:
    """Measures every chosen configuration again, to time runs that shared the machine with other work."""
    chosen = [comparison.runs[name] for name in comparison.chosen]
    _measure(workdir, {_digest(run, len(cores[0])): run for run in chosen}, _known(workdir), cores, stop)


def measured_seconds(workdir: Path, cores: Sequence[Cores], run: Run) -> dict[str, float] | None:
    """Returns a whole run's measured seconds, by their names in its summary (`PARTS`); None if unmeasured."""
    found = _known(workdir).get(_digest(run, len(cores[0])))
    return {name: found.get(name, 0.0) for name in PARTS} if found else None


def _known(workdir: Path) -> dict[str, Any]:
    path = workdir / "plan.json"
    try:
        return dict(limits.read_json(path, "plan")) if path.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a plan of measured times ({error}): remove it") from None


def _measure(workdir: Path, unknown: dict[str, Run], known: dict[str, Any], cores: Sequence[Cores], stop: Stop) -> None:
    """Measures unknown configurations; one that fails stays unknown, and its run then shows the reason."""
    of_task = {run.name: key for key, run in unknown.items()}

    begun = itertools.count(1)

    def start(task: Task) -> None:
        log.info("measuring %s, %d of %d; each takes minutes", task.name, next(begun), len(tasks))

    def end(task: Task, outcome: Outcome) -> None:
        if outcome.kind == jobs.FINISHED:
            known[of_task[task.name]] = {"run": task.name, **outcome.answer}
            files.write_json(workdir / "plan.json", known)
        elif outcome.reason:
            log.warning("%s could not be measured: %s", task.name, outcome.reason)

    def progress(task: Task, line: str) -> None:
        log.info("%s: %s", task.name, line)

    tasks = [
        Task(run.name, "measure", run.config.to_dict(), workdir, workdir / "logs" / f"{run.name}.plan.log")
        for run in unknown.values()
    ]
    jobs.run_all(tasks, cores, stop, start, end, progress)


def _digest(run: Run, cores: int) -> str:
    identity = {key: value for key, value in one_run.identity_of(run.config).items() if key != "seed"}
    content = json.dumps([identity, run.teacher_digest(), cores], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def describe(entries: Sequence[Entry], cores: Sequence[Cores]) -> str:
    """Returns a table of the runs, and a line with their sums."""
    width = max([len("run"), *(len(entry.run.name) for entry in entries)])
    lines = [f"{'run':{width}}  seed  {'state':9}  hours"]
    for entry in entries:
        known = entry.state != run_folders.FINISHED and entry.seconds is not None
        hours = f"{(entry.seconds or 0) / 3600:5.2f}" if known else f"{'-':>5}"
        lines.append(f"{entry.run.name:{width}}  {entry.seed:4d}  {entry.state:9}  {hours}")
    return "\n".join([*lines, _sum(entries, cores)])


def _sum(entries: Sequence[Entry], cores: Sequence[Cores]) -> str:
    counts = [f"{sum(entry.state == state for entry in entries)} {state}"
              for state in (run_folders.FINISHED, run_folders.BEGUN, run_folders.TO_DO)]  # fmt: skip
    left = [entry.seconds for entry in entries if entry.state != run_folders.FINISHED]
    text = f"{len(entries)} run{'' if len(entries) == 1 else 's'}: {', '.join(counts)}"
    if not left:
        return text
    if all(seconds is None for seconds in left):
        return f"{text}; their hours are not known: dry_run=true estimate=true measures them"
    ends = [0.0] * len(cores)
    for seconds in left:  # each run goes to the process that is free first
        i = ends.index(min(ends))
        ends[i] += seconds or 0.0
    cpu_hours = sum(seconds or 0.0 for seconds in left) * len(cores[0]) / 3600
    unknown = sum(seconds is None for seconds in left)
    without = f", without {unknown} that are not measured" if unknown else ""
    return (
        f"{text}; about {max(ends) / 3600:.2f} hours with {len(cores)} at once, {cpu_hours:.2f} CPU hours on "
        f"{len(cores) * len(cores[0])} cores{without}\n"
        "(each synthesis and KD program measured on this machine as it is now; without evaluation and reading data)"
    )
