"""Writes metrics during a run: metrics.jsonl, TensorBoard events and lines on the terminal."""

from __future__ import annotations

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

log = logging.getLogger(__name__)


class Metrics:
    """Writes each record to all places.

    `offset` lets a resumed run cut off the records that it will write again.
    """

    def __init__(self, workdir: Path, total_calls: int, call: int = 0, offset: int = 0):
        self._lines = AppendFile(workdir / "metrics.jsonl", offset)
        self._events = Events(workdir / "events", first_step=call + 1)
        self._bar = tqdm(total=total_calls, initial=call, unit="call") if sys.stderr.isatty() else None

    @property
    def offset(self) -> int:
        """Bytes of metrics.jsonl written so far, all of them on disk."""
        return self._lines.sync()

    def write(self, call: int, values: dict[str, Any]) -> None:
        """Records values at a synthesis call; lists go only to metrics.jsonl."""
        self._lines.append((json.dumps({"call": call, **values}) + "\n").encode())
        self._events.write(call, {name: value for name, value in values.items() if isinstance(value, int | float)})

    def say(self, line: str) -> None:
        """Shows a line without breaking the progress bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            log.info("%s", line)

    def advance(self, call: int, status: str) -> None:
        """Shows the call that has just ended."""
        if self._bar is None:
            log.info("call %d: %s", call, status)
        else:
            self._bar.set_postfix_str(status)
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
