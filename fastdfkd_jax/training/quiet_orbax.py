"""Silences the tracebacks of Orbax's tasks; the error that matters is reported in one line."""

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
    """Keeps Orbax and asyncio from printing a traceback for each further reader or writer that fails."""
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
            gc.collect()  # now, since failed tasks print a complaint when they are collected
            raise
        finally:
            for logger, before in zip(loggers, disabled, strict=True):
                logger.disabled = before


def _ignore_late_reports() -> None:
    """Silences the tracebacks of objects that TensorStore keeps after a failed save and drops later."""
    before = sys.unraisablehook
    if getattr(before, "__module__", None) == __name__:
        return

    def hook(late: sys.UnraisableHookArgs) -> None:
        closed = isinstance(late.exc_value, RuntimeError) and "loop is closed" in str(late.exc_value)
        # Orbax wraps the exception that Python throws into an unfinished reader when dropping it.
        dropped = late.exc_value is not None and isinstance(late.exc_value.__cause__, GeneratorExit)
        if not (closed or dropped):
            before(late)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(_is_not_of_a_checkpoint)


def _is_not_of_a_checkpoint(record: logging.LogRecord) -> bool:
    """Returns False for asyncio's reports of failed Orbax tasks or TensorStore writes, already reported."""
    failure = record.exc_info[1] if record.exc_info else None
    return re.search("orbax|tensorstore|os_error_code=", f"{record.getMessage()} {failure}") is None
