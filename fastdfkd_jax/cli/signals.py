"""Signals that ask a command to stop: Ctrl-C (SIGINT), SIGTERM and SIGHUP, which are treated alike.

An ignored signal stays ignored. A run finishes its step and saves (`deferred`). Everything else unwinds, which removes
half-written files (`unwinding`).
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

ASKING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_GRACE_SECONDS = 1.0
# The status with which a shell reports a command ended by Ctrl-C.
EXIT_STATUS = 130


class Stop:
    """The request to stop this process, and the name of the signal that asked."""

    def __init__(self):
        self.requested = False
        self.by = ""


@contextlib.contextmanager
def deferred(stop: Stop | None = None) -> Iterator[Stop]:
    """Makes the first signal only set `stop.requested`; a signal at least a second later ends the process immediately.

    Earlier repeats are ignored because some senders signal twice, such as `timeout`, or a parent with several threads
    that is killed.
    """
    stop = stop or Stop()
    timers: list[threading.Timer] = []
    lock, inside = threading.Lock(), True

    def rearm() -> None:
        """Restores the system's handlers, which end a process even while compiled code runs.

        It calls C, because Python sets handlers only in its main thread, where they wait for compiled code to return.
        """
        with lock:
            for number in handled if inside else ():
                ctypes.CDLL(None).signal(number, int(signal.SIG_DFL))

    def handler(number: int, _: FrameType | None) -> None:
        stop.requested, stop.by = True, stop.by or signal.Signals(number).name
        if not timers:
            timers.append(threading.Timer(_GRACE_SECONDS, rearm))
            timers[0].daemon = True
            timers[0].start()

    with _handling(handler) as handled:
        try:
            yield stop
        finally:
            for timer in timers:
                timer.cancel()
            with lock:
                inside = False


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Makes each signal raise KeyboardInterrupt, but not again within a second of cleaning up."""
    raised: list[float] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if not raised or time.monotonic() - raised[-1] > _GRACE_SECONDS:
            raised.append(time.monotonic())
            signal.default_int_handler(number, frame)

    with _handling(handler):
        yield


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], Any]) -> Iterator[tuple[int, ...]]:
    """Handles the signals not ignored (as under nohup); does nothing outside Python's main thread."""
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
