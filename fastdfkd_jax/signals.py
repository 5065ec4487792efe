"""Signals that ask a command to end. Ctrl-C (SIGINT), SIGTERM and SIGHUP mean the same; an ignored one stays ignored.

A run finishes its step and saves (`deferred`); anything else unwinds, which removes what is half-written (`unwinding`).
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

ASKING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# As a shell reports a command that Ctrl-C ended.
EXIT_STATUS = 130


class Stop:
    """Whether this process was asked to end, and the name of the signal that asked."""

    def __init__(self):
        self.requested = False
        self.by = ""


@contextlib.contextmanager
def deferred(stop: Stop | None = None) -> Iterator[Stop]:
    """Within it, the first signal only sets `stop.requested`; a second one ends the process at once."""
    stop = stop or Stop()

    def handler(number: int, _: FrameType | None) -> None:
        stop.requested, stop.by = True, signal.Signals(number).name
        for other in handled:
            signal.signal(other, signal.SIG_DFL)  # even while compiled code runs, which Python's handlers wait for

    with _handling(handler) as handled:
        yield stop


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Within it, each signal raises KeyboardInterrupt, as Ctrl-C does in any Python program."""
    with _handling(signal.default_int_handler):
        yield


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], Any]) -> Iterator[tuple[int, ...]]:
    """Installs a handler of those signals that are not ignored, as under nohup; Python has handlers in one thread."""
    if threading.current_thread() is not threading.main_thread():
        yield ()
        return
    previous = {number: signal.getsignal(number) for number in ASKING}
    handled = tuple(number for number, before in previous.items() if before is not signal.SIG_IGN)
    for number in handled:
        signal.signal(number, handler)
    try:
        yield handled
    finally:
        for number in handled:
            signal.signal(number, previous[number] if previous[number] is not None else signal.SIG_DFL)
