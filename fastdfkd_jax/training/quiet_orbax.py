"""Orbax without the tracebacks of its tasks, where the one error that counts is told in a line."""

from __future__ import annotations

import contextlib
import gc
import logging
import re
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_tasks() -> Iterator[None]:
    """Keeps Orbax and asyncio from printing a traceback for each reader or writer that failed with the first."""
    _ignore_late_reports()
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    disabled = [logger.disabled for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        try:
            for logger in loggers:
                logger.disabled = True
            yield
        except BaseException:
            gc.collect()  # now, as tasks that failed complain when they are collected
            raise
        finally:
            for logger, before in zip(loggers, disabled, strict=True):
                logger.disabled = before


def _ignore_late_reports() -> None:
    """Keeps what TensorStore still holds when a save fails, and drops at any later time, from printing a traceback."""
    before = sys.unraisablehook
    if getattr(before, "__module__", None) == __name__:
        return

    def hook(late: sys.UnraisableHookArgs) -> None:
        closed = isinstance(late.exc_value, RuntimeError) and "loop is closed" in str(late.exc_value)
        # Orbax wraps what Python throws into a reader that it drops unfinished.
        dropped = late.exc_value is not None and isinstance(late.exc_value.__cause__, GeneratorExit)
        if not (closed or dropped):
            before(late)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(_is_not_of_a_checkpoint)


def _is_not_of_a_checkpoint(record: logging.LogRecord) -> bool:
    """False for asyncio's report of a task of Orbax, or of a write of TensorStore, whose failure was told already."""
    failure = record.exc_info[1] if record.exc_info else None
    return re.search("orbax|tensorstore|os_error_code=", f"{record.getMessage()} {failure}") is None
