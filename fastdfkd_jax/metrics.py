"""Numbers as they come: metrics.jsonl, TensorBoard events and lines on the terminal."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import sys
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from fastdfkd_jax.files import disk_error

log = logging.getLogger(__name__)


class Metrics:
    """Writes each record to all places; `offset` lets a resumed run cut off what it will write again."""

    def __init__(self, workdir: Path, total_calls: int, call: int = 0, offset: int = 0):
        self._path = workdir / "metrics.jsonl"
        self._file = open(self._path, "ab")  # noqa: SIM115 - closed by close()
        self._file.truncate(offset)
        self._file.seek(offset)
        self._events = SummaryWriter(str(workdir / "events"), purge_step=call + 1 if call else None)
        self._bar = tqdm(total=total_calls, initial=call, unit="call") if sys.stderr.isatty() else None

    @property
    def offset(self) -> int:
        """Bytes of metrics.jsonl written so far, all of them on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def write(self, call: int, values: dict[str, Any]) -> None:
        """Records values at a synthesis call; lists go to metrics.jsonl only."""
        try:
            self._file.write((json.dumps({"call": call, **values}) + "\n").encode())
            self._file.flush()
        except OSError as error:
            raise disk_error(self._path, error) from error
        for name, value in values.items():
            if isinstance(value, int | float):
                self._events.add_scalar(name, value, call)

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
        """Flushes and closes everything."""
        self._file.close()
        self._events.close()
        if self._bar is not None:
            self._bar.close()


def peak_memory_bytes() -> int:
    """Peak of the device's memory where the device tells, else the peak of this process's resident memory."""
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def class_balance(predicted: list[int]) -> float:
    """Entropy of a class histogram over its maximum: 1 is balanced, 0 means a single class."""
    total = sum(predicted)
    shares = [count / total for count in predicted if count]
    return -sum(share * math.log(share) for share in shares) / math.log(len(predicted))
