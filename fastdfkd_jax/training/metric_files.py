"""Writes metrics during a run: metrics.jsonl, TensorBoard events and lines on the terminal."""

from __future__ import annotations

import collections
import json
import logging
import resource
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

import jax
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue] - made at import
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue] - made at import
from tensorboard.summary.writer.record_writer import masked_crc32c
from tqdm import tqdm

from fastdfkd_jax.storage.files import AppendFile
from fastdfkd_jax.training.summary_text import duration

log = logging.getLogger(__name__)

# Of the newest records, what a line about a call says.
_SHOWN = {"synthesis/on_target": "on target {:.0%}", "kd/agreement": "agreement {:.0%}", "kd/loss": "loss {:.3g}"}
_PACE_CALLS = 5  # the newest ones, by which the time left is told: calls of the warm-up take less than others
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

    `offset` lets a resumed run cut off the records that it will write again.
    """

    def __init__(self, workdir: Path, total_calls: int, call: int = 0, offset: int = 0):
        self._lines = AppendFile(workdir / "metrics.jsonl", offset)
        self._events = Events(workdir / "events", first_step=call + 1)
        self._pace, self._newest = Pace(total_calls, call), dict[str, float]()
        shape = "{percentage:3.0f} %|{bar}| call {n_fmt} of {total_fmt}{postfix}"
        on_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total_calls, initial=call, bar_format=shape, leave=False) if on_terminal else None

    @property
    def offset(self) -> int:
        """Bytes of metrics.jsonl written so far, all of them on disk."""
        return self._lines.sync()

    def write(self, call: int, values: dict[str, Any]) -> None:
        """Records values at a synthesis call; lists go only to metrics.jsonl."""
        self._lines.append((json.dumps({"call": call, **values}) + "\n").encode())
        self._newest |= {name: values[name] for name in _SHOWN if name in values}
        self._events.write(call, {name: value for name, value in values.items() if isinstance(value, int | float)})

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
        line = ", ".join(said) + (f"; {duration(left)} left" if left >= 1 else "")
        if self._bar is None:
            log.info("call %d: %s", call, line)
        else:
            self._bar.set_postfix_str(line)
            self._bar.update(call - self._bar.n)

    def close(self) -> None:
        """Closes everything."""
        self._lines.close()
        self._events.close()
        if self._bar is not None:
            self._bar.close()


class Silent:
    """Replaces `Metrics` in the processes that do not write."""

    offset = 0

    def write(self, call: int, values: dict[str, Any]) -> None:
        """Records nothing."""

    def say(self, line: str) -> None:
        """Shows nothing."""

    def advance(self, call: int, status: str) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """Does nothing."""


class Events:
    """A TensorBoard file of scalars that is written immediately.

    TensorBoard's own writer has a thread, whose failure on a full disk hides the error that ends the run.
    """

    def __init__(self, directory: Path, first_step: int):
        self._file = AppendFile(directory / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}")
        self._append(file_version="brain.Event:2")
        if first_step > 1:
            # Hides events that the interrupted run wrote after its last checkpoint.
            self._append(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Records numbers at a step."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._append(step=step, summary=Summary(value=values))

    def _append(self, **fields: Any) -> None:
        data = Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        parts = (length, _checksum(length), data, _checksum(data))
        self._file.append(b"".join(parts))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))


def device_peak_bytes() -> int | None:
    """Returns the first device's peak memory, or None if the device does not report it (CPUs do not)."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def peak_memory_bytes() -> int:
    """Returns the device's peak memory if it reports one, else this process's peak resident memory."""
    on_device = device_peak_bytes()
    return on_device if on_device is not None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
