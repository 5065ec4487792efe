"""`fastdfkd compare TABLE[:variant] --workdir DIR`: runs, tables, figures.

It shows the plan first, then runs each configuration in a separate process. The same command continues a stopped
comparison.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from fastdfkd_jax.cli import config_flags, signals
from fastdfkd_jax.cli.command import run_command
from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.cli.signals import Stop
from fastdfkd_jax.compare import estimates, jobs, outputs, run_folders
from fastdfkd_jax.compare.comparison import Comparison, read, require_given
from fastdfkd_jax.compare.estimates import Entry
from fastdfkd_jax.compare.jobs import Cores, Outcome, Task
from fastdfkd_jax.compare.keys import described
from fastdfkd_jax.errors import EXIT_STATUS
from fastdfkd_jax.evaluation import scores
from fastdfkd_jax.storage import markdown
from fastdfkd_jax.storage.files import lock_folder

log = logging.getLogger("fastdfkd_jax.compare")  # not __name__, which is __main__

DEFAULT_CONFIG = "configs/compare/all.py"


def command(argv: Sequence[str]) -> int:
    """Starts the missing runs and writes the tables; returns 1 if a run crashed, 2 if the user can fix a failure."""
    config, workdir = config_flags.parse(argv, "compare", DEFAULT_CONFIG, described)
    comparison = read(config)
    if config.tables_only:
        _finish(config, workdir, comparison, {})
        return 0
    cores = jobs.shares(config.jobs)
    chosen = [comparison.runs[name] for name in comparison.chosen]
    left = [run for run in chosen if any(run_folders.state(workdir, run, s) != run_folders.FINISHED for s in run.seeds)]
    if not config.dry_run:  # a plan needs neither teachers nor data
        require_given(chosen if config.time_all else left)  # before anything is written
    lock = lock_folder(workdir)
    try:
        with signals.deferred() as stop:
            return _compare(config, workdir, comparison, cores, stop)
    finally:
        lock.close()


def _compare(config: ConfigDict, workdir: Path, comparison: Comparison, cores: list[Cores], stop: Stop) -> int:
    for name in comparison.chosen:
        run_folders.require_same_teacher(workdir, comparison.runs[name])
    if config.time_all:
        estimates.time_all(workdir, comparison, cores, stop)
        return 0
    plan = estimates.make(workdir, comparison, cores, config.dry_run and config.estimate, stop)
    if not stop.requested:
        print(estimates.describe(plan, cores), flush=True)
    if config.dry_run or stop.requested:
        return 0
    failures = _run(workdir, comparison, [entry for entry in plan if entry.state != run_folders.FINISHED], cores, stop)
    reasons = {name: [reason for _, reason in found] for name, found in failures.items()}
    _finish(config, workdir, comparison, reasons, shown=not stop.requested)
    if stop.requested:
        log.info("stopped by %s, everything is saved; run the same command to continue", stop.by)
    for found in reasons.values():
        for reason in found:
            log.error("failed: %s", reason)
    kinds = {kind for found in failures.values() for kind, _ in found}
    return EXIT_STATUS if kinds == {jobs.REFUSED} else int(bool(kinds))


def _run(
    workdir: Path, comparison: Comparison, left: list[Entry], cores: list[Cores], stop: Stop
) -> dict[str, list[tuple[str, str]]]:
    """Starts the remaining runs and rewrites the tables after each; returns kinds and reasons of failures by name."""
    failures: dict[str, list[tuple[str, str]]] = {}
    tasks = [_task(workdir, entry) for entry in left]
    entries = {task.name: entry for task, entry in zip(tasks, left, strict=True)}
    done = 0

    def start(task: Task) -> None:
        begun = entries[task.name].state == run_folders.BEGUN
        log.info("%s: %s, %s", task.name, "continues" if begun else "started", task.log)

    def tell(task: Task, line: str) -> None:
        log.info("%s: %s", task.name, line)

    def end(task: Task, outcome: Outcome) -> None:
        nonlocal done
        done += 1
        name = entries[task.name].run.name
        if outcome.kind == jobs.FINISHED:
            accuracy = outcome.answer.get(scores.score_key(outcome.answer, "student_{}_last"))
            text = "" if accuracy is None else f", student {accuracy:.2f} %"
            log.info("%s: finished in %.2f hours%s; %d of %d", task.name, outcome.seconds / 3600, text, done, len(left))
        elif outcome.kind == jobs.STOPPED:
            log.info("%s: stopped and saved", task.name)
        else:
            failures.setdefault(name, []).append((outcome.kind, f"{task.name}: {outcome.reason}"))
            log.error("%s: failed (%s), see %s", task.name, outcome.reason, task.log)
        if outcome.kind != jobs.STOPPED:
            reasons = {name: [reason for _, reason in found] for name, found in failures.items()}
            outputs.write(workdir, comparison, comparison.tables_of(name), reasons)

    jobs.run_all(tasks, cores, stop, start, end, tell)
    return failures


def _task(workdir: Path, entry: Entry) -> Task:
    place = run_folders.folder(workdir, entry.run.name, entry.seed)
    log_file = workdir / "logs" / f"{entry.run.name}-seed{entry.seed}.log"
    return Task(entry.name, "run", entry.run.seeded(entry.seed).to_dict(), place, log_file)


def _finish(
    config: ConfigDict, workdir: Path, comparison: Comparison, failures: dict[str, list[str]], shown: bool = True
) -> None:
    written = outputs.write(workdir, comparison, comparison.tables, failures)
    for name, text in written.items() if shown else ():
        print(f"{name}:\n\n{text}")
    if config.record:
        cores = jobs.shares(config.jobs)
        place = expanded(config.record)
        measured = partial(estimates.measured_seconds, workdir, cores)
        written = outputs.record(workdir, comparison, place, config.timed, measured)
    blocks = {f"compare/{name}": text for name, text in written.items()}
    for document in filter(None, map(str.strip, config.into.split(","))):
        markdown.insert_all(expanded(document), blocks)


if __name__ == "__main__":
    run_command(command)
