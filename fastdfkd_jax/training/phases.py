"""Says which phase a run is in: before each compilation, and whenever nothing was said for ten seconds."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

from fastdfkd_jax.distributed import hosts
from fastdfkd_jax.training import compile_times
from fastdfkd_jax.training.summary_text import duration

log = logging.getLogger("fastdfkd_jax.main")  # the name that users know

_QUIET, _AGAIN = 10.0, 60.0  # seconds without a line, before a phase is first named and before each later time


class Phases:
    """The current phase, and when a line about it is due.

    Args:
      clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._name, self._detail, self._begun, self._said = "", "", clock(), False
        self._heard = clock()

    def enter(self, name: str, detail: str = "") -> None:
        """Begins a phase, or gives the current one another detail; '' if the user can see what happens."""
        if name != self._name:
            self._name, self._begun, self._said = name, self._clock(), False
        self._detail = detail

    @contextlib.contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Begins a phase that ends with the block; the one before it then continues."""
        before = self._name, self._detail
        self.enter(name)
        try:
            yield
        finally:
            self.enter(*before)

    def heard(self) -> None:
        """Notes that something was shown."""
        self._heard = self._clock()

    def due(self) -> str:
        """Returns the line to show now; '' if the last one is recent."""
        now = self._clock()
        if not self._name or now - self._heard < (_AGAIN if self._said else _QUIET):
            return ""
        self._said = True
        whole = f"{self._name}, {self._detail}" if self._detail else self._name
        elapsed = now - self._begun
        return f"{whole} ({duration(elapsed)} so far)" if elapsed >= _QUIET / 2 else whole

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        """Logs a line whenever one is due within the block."""
        ended, ours = threading.Event(), logging.getLogger("fastdfkd_jax")
        handler = _Listener(self.heard)

        def watch() -> None:
            while not ended.wait(1.0):
                if line := self.due():
                    log.info("%s", line)

        thread = threading.Thread(target=watch, name="phases", daemon=True)
        self.heard()
        ours.addHandler(handler)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            ours.removeHandler(handler)
            self.enter("")


class _Listener(logging.Handler):
    """Calls a function at each line of the log."""

    def __init__(self, heard: Callable[[], None]):
        super().__init__(logging.INFO)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        """Shows nothing; another handler does."""
        self._heard()


OF_PROCESS = Phases()
enter, within, reported = OF_PROCESS.enter, OF_PROCESS.within, OF_PROCESS.reported


@contextlib.contextmanager
def compiling(name: str, program: str) -> Iterator[None]:
    """Says that a program is compiled within the block, and how long that took the last time.

    Args:
      name: printed name of the program.
      program: everything that determines how long its compilation takes.
    """
    before, start = compile_times.last(program), time.perf_counter()
    about = f": about {duration(before)} last time" if before is not None and before >= 1 else ""
    log.info("compiling %s%s", name, about)
    with within(f"compiling {name}"):
        yield
    if hosts.is_writer():
        compile_times.remember(program, time.perf_counter() - start)
