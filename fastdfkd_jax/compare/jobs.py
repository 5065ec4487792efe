"""Runs tasks in separate processes, several at once, each on its share of the cores."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from fastdfkd_jax.cli import config_flags, signals
from fastdfkd_jax.errors import EXIT_STATUS, UserError
from fastdfkd_jax.storage.files import make_folder

FINISHED, STOPPED, REFUSED, CRASHED = "finished", "stopped", "refused", "crashed"
COMMAND = [sys.executable, "-m", "fastdfkd_jax.compare.child"]
_POLL_SECONDS = 0.1
_TELL_SECONDS = 60.0  # between two lines about a running task
_TIME = re.compile(r"^\d\d:\d\d:\d\d ")
Cores = tuple[int, ...]


class Task(NamedTuple):
    """The task of a process.

    Attributes:
      name: name for people.
      action: 'run' or 'measure' (`compare.child`).
      config: config of one seed, as a dict.
      workdir: workdir of the run.
      log: file for the process's output.
    """

    name: str
    action: str
    config: dict[str, Any]
    workdir: Path
    log: Path


class Outcome(NamedTuple):
    """The outcome of a process.

    Attributes:
      kind: `FINISHED`; `STOPPED` by a signal, with everything saved; `REFUSED`, which the user can fix; or `CRASHED`.
      answer: its result, if finished.
      reason: one line, if refused or crashed.
      seconds: its lifetime.
    """

    kind: str
    answer: Any
    reason: str
    seconds: float


def shares(jobs: int) -> list[Cores]:
    """Divides the cores equally among processes; () if the system does not bind processes to cores.

    Raises:
      UserError: there are fewer cores than processes.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if not 1 <= jobs <= len(cores):
        raise UserError(f"config.jobs must be from 1 to {len(cores)}, the number of this machine's cores, found {jobs}")
    each = len(cores) // jobs
    return [tuple(cores[i * each : (i + 1) * each]) for i in range(jobs)]


def run_all(
    tasks: Sequence[Task],
    cores: Sequence[Cores],
    stop: signals.Stop,
    on_start: Callable[[Task], None],
    on_end: Callable[[Task, Outcome], None],
    on_progress: Callable[[Task, str], None] = lambda task, line: None,
) -> None:
    """Runs the tasks in order, one at a time on each share of the cores; on a stop request only ends them.

    Args:
      tasks: the tasks.
      cores: the cores of each concurrent process.
      stop: the request to stop; its signal is passed on.
      on_start, on_end: called when a task starts and ends.
      on_progress: called about once a minute with the newest line of a running task's log, if it is new.
    """
    waiting, free, active = list(tasks), list(cores), []
    asked = False
    try:
        while active or (waiting and not stop.requested):
            while waiting and free and not stop.requested:
                on_start(waiting[0])
                active.append(_Child(waiting.pop(0), free.pop(0)))
            if stop.requested and not asked:
                asked = True
                for child in active:
                    child.process.send_signal(signal.Signals[stop.by] if stop.by else signal.SIGTERM)
            time.sleep(_POLL_SECONDS)
            for child in active:
                if line := child.news():
                    on_progress(child.task, line)
            for child in [child for child in active if child.process.poll() is not None]:
                active.remove(child)
                free.append(child.cores)
                on_end(child.task, child.outcome())
    finally:  # an error in this function leaves no process behind
        for child in active:
            child.process.terminate()
        for child in active:
            child.process.wait()
            child.outcome()


class _Child:
    """A process that runs a task."""

    def __init__(self, task: Task, cores: Cores):
        self.task, self.cores, self._start = task, cores, time.monotonic()
        self._told, self._told_at = "", self._start
        make_folder(task.log.parent)
        self._answer: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by outcome()
        self._log_start = task.log.stat().st_size if task.log.exists() else 0
        with open(task.log, "ab") as log:
            self.process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=self._answer,
                stderr=log,
                # The parent receives Ctrl-C and forwards it. A child with its own session would ignore the parent's
                # `nice`, which Linux applies within a session (sched_autogroup).
                process_group=0,
            )
        request = {
            "action": task.action, "config": task.config, "workdir": str(task.workdir), "cores": cores,
            "parent": os.getpid(), "config_file": config_flags.executed,
        }  # fmt: skip
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin as pipe:
            pickle.dump(request, pipe)

    def news(self) -> str:
        """Returns the newest line of the log, without its time; '' if it was told before or the last line is recent."""
        if time.monotonic() - self._told_at < _TELL_SECONDS:
            return ""
        lines = (_TIME.sub("", line) for line in reversed(self._lines()))
        # A line in brackets explains a word of the line before it.
        line, self._told_at = next((line for line in lines if line and not line.startswith("(")), ""), time.monotonic()
        known, self._told = self._told, line
        return line if line != known else ""

    def outcome(self) -> Outcome:
        """Returns the outcome of the process, which must have ended."""
        status, seconds = self.process.returncode, time.monotonic() - self._start
        with self._answer:
            self._answer.seek(0)
            lines = self._answer.read().decode().splitlines()
        if status == 0 and lines:
            return Outcome(FINISHED, json.loads(lines[-1]), "", seconds)
        # Python may end by SIGINT if it was interrupted during an import, although the signal was caught.
        if status in (0, signals.EXIT_STATUS, *(-number for number in signals.ASKING)):
            return Outcome(STOPPED, None, "", seconds)
        if status == EXIT_STATUS:
            return Outcome(REFUSED, None, self._last_line().removeprefix("error: "), seconds)
        killed = f"killed by {signal.Signals(-status).name}" if status < 0 else self._last_line()
        return Outcome(CRASHED, None, killed or f"exit status {status}", seconds)

    def _last_line(self) -> str:
        return next((line for line in reversed(self._lines()) if line), "")

    def _lines(self) -> list[str]:
        with open(self.task.log, "rb") as log:
            log.seek(self._log_start)
            return [line.strip() for line in log.read().decode(errors="replace").splitlines()]
