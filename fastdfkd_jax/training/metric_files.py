"""Writes metrics during a run, to metrics.jsonl and TensorBoard, and shows lines on the terminal."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fastdfkd_jax.storage.files import AppendFile
from fastdfkd_jax.training import described, phases
from fastdfkd_jax.training.summary_text import duration
from fastdfkd_jax.training.tensorboard_events import Events

log = logging.getLogger(__name__)

# Of the newest records, what a line about a call says.
_SHOWN = {"synthesis/on_target": "on target {:.0%}", "kd/agreement": "agreement {:.0%}", "kd/loss": "loss {:.3g}"}
_EXPLAINED = {"synthesis/on_target": "on target", "kd/agreement": "agreement"}  # after the first line that has them
_PACE_CALLS = 5  # the newest ones, by which the time left is told: calls of the warm-up take less than others
_REFRESH = 0.5  # seconds between two texts beside the bar
_compiling = [0.0]  # seconds of this process so far


def _count_compilation(event: str, duration_secs: float, **_: Any) -> None:
    if event.startswith("/jax/core/compile/"):
        _compiling[0] += duration_secs


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


class Pace:
    """Estimates the time left from the newest calls, without the seconds of compilation, which come once."""

    def __init__(self, total_calls: int, call: int):
        self._total = total_calls
        self._marks = collections.deque([(call, self._now())], maxlen=_PACE_CALLS + 1)

    @staticmethod
    def _now() -> float:
        return time.monotonic() - _compiling[0]

    def left(self, call: int) -> float:
        """Seconds that the calls after this one will take."""
        self._marks.append((call, self._now()))
        (first, begin), (_, end) = self._marks[0], self._marks[-1]
        return (end - begin) / max(call - first, 1) * (self._total - call)


class Metrics:
    """Writes each record to all places.

    `offset` lets a resumed run cut off the records that it will write again. `settings` are recorded by a run from the
    start. `afterwards` names what follows the last call, which the time left does not count.
    """

    def __init__(
        self,
        workdir: Path,
        total_calls: int,
        call: int = 0,
        offset: int = 0,
        settings: Mapping[str, Any] | None = None,
        afterwards: str = "",
    ):
        self._lines = AppendFile(workdir / "metrics.jsonl", offset)
        self._events = Events(workdir / "events", first_step=call + 1)
        if settings and not call:
            self._events.settings(settings)
        self._pace, self._newest = Pace(total_calls, call), dict[str, float]()
        self._afterwards, self._unexplained = afterwards, dict(_EXPLAINED)
        self._total, self._status, self._shown = total_calls, "", 0.0
        shape = "{percentage:3.0f} %|{bar}| call {n_fmt} of {total_fmt}{postfix}"
        on_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total_calls, initial=call, bar_format=shape, leave=False) if on_terminal else None
        self._open = contextlib.ExitStack()
        if self._bar is not None:  # other lines must not break the bar
            self._open.enter_context(logging_redirect_tqdm([logging.getLogger("fastdfkd_jax")]))

    @property
    def offset(self) -> int:
        """Bytes of metrics.jsonl written so far, all of them on disk."""
        return self._lines.sync()

    def write(self, call: int, values: dict[str, Any]) -> None:
        """Records values at a synthesis call; lists go only to metrics.jsonl."""
        self._lines.append((json.dumps({"call": call, **values}) + "\n").encode())
        self._newest |= {name: values[name] for name in _SHOWN if name in values}
        self._events.write(call, {name: value for name, value in values.items() if isinstance(value, int | float)})

    def picture(self, call: int, path: Path) -> None:
        """Records a picture of a call's images for TensorBoard."""
        self._events.picture(call, "images", path)

    def doing(self, call: int, phase: str, detail: str = "") -> None:
        """Shows what the run is doing: beside the bar, or in a line if it takes long."""
        if self._bar is None:
            phases.enter(f"call {call} of {self._total}: {phase}", detail)
            return
        phases.enter("")  # the bar shows it
        if time.monotonic() - self._shown >= _REFRESH:
            self._shown = time.monotonic()
            self._bar.set_postfix_str("; ".join(filter(None, (phase, detail, self._status))))

    def say(self, line: str) -> None:
        """Shows a line without breaking the progress bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            log.info("%s", line)

    def advance(self, call: int, status: str) -> None:
        """Shows the call that has just ended, the newest signals, and the time left."""
        left = self._pace.left(call)
        said = [status, *(text.format(self._newest[name]) for name, text in _SHOWN.items() if name in self._newest)]
        then = f", then {self._afterwards}" if self._afterwards else ""
        line = ", ".join(said) + (f"; {duration(left)} left{then}" if left >= 1 else "")
        self._status = line
        if self._bar is None:
            log.info("call %d: %s", call, line)
        else:
            self._bar.set_postfix_str(line)
            self._bar.update(call - self._bar.n)
        new = {name: word for name, word in self._unexplained.items() if name in self._newest}
        for name, word in new.items():
            meaning = described.METRICS[name].meaning.rstrip(".")
            self.say(f"({word}: {meaning[0].lower()}{meaning[1:]})")
            del self._unexplained[name]

    def close(self) -> None:
        """Closes everything."""
        self._lines.close()
        self._events.close()
        self._open.close()
        if self._bar is not None:
            self._bar.close()


class Silent:
    """Replaces `Metrics` in the processes that do not write."""

    offset = 0

    def write(self, call: int, values: dict[str, Any]) -> None:
        """Records nothing."""

    def picture(self, call: int, path: Path) -> None:
        """Records nothing."""

    def doing(self, call: int, phase: str, detail: str = "") -> None:
        """Shows nothing."""

    def say(self, line: str) -> None:
        """Shows nothing."""

    def advance(self, call: int, status: str) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """Does nothing."""


def device_peak_bytes() -> int | None:
    """Returns the first device's peak memory, or None if the device does not report it (CPUs do not)."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def peak_memory_bytes() -> int:
    """Returns the device's peak memory if it reports one, else this process's peak resident memory."""
    on_device = device_peak_bytes()
    return on_device if on_device is not None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
