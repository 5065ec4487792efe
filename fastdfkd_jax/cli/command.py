"""Runs a command's main function as a program, with logging, exit status and one-line errors."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence

from fastdfkd_jax.cli import signals
from fastdfkd_jax.cli.parser import VERBOSE
from fastdfkd_jax.errors import EXIT_STATUS, UserError, one_line, shortened

_CRASHED = 1
_CUT = " [... --verbose shows all ...] "


def run_command(command: Callable[[Sequence[str]], int | None]) -> None:
    """Runs `command(argv)` and exits.

    The exit status is the function's result (0 for None), 2 after an error that the user can fix, 130 after a signal to
    stop, and 1 after any other failure, whose traceback is written to a file. Every failure is one line on standard
    error, of at most 300 characters unless `--verbose` is among the arguments.
    """
    _write_any_letter()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    ours = logging.getLogger("fastdfkd_jax")  # the libraries we use log too much at this level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
    try:
        with signals.unwinding():
            status = command(sys.argv) or 0
            sys.stdout.flush()
    except SystemExit:
        raise
    except BaseException as error:
        status, line = told(error)
        say(line)
    sys.exit(status)


def say(line: str, verbose: bool | None = None) -> None:
    """Prints an error, cut to 300 characters unless verbose; by default, `--verbose` among the arguments decides."""
    line = one_line(f"error: {line}")
    whole = VERBOSE in sys.argv if verbose is None else verbose
    print(line if whole else shortened(line, mark=_CUT), file=sys.stderr, flush=True)


def told(error: BaseException) -> tuple[int, str]:
    """Returns the exit status and message of a failure."""
    if isinstance(error, UserError):
        return EXIT_STATUS, str(error)
    if isinstance(error, KeyboardInterrupt):
        return signals.EXIT_STATUS, "stopped by a signal"
    if isinstance(error, BrokenPipeError):
        # Python would report it again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _CRASHED, "the program that reads this output has closed it; the rest of the output is lost"
    if (known := _environment(error)) is not None:
        return EXIT_STATUS, known
    detail = one_line(error)
    reason = f"{type(error).__name__}: {detail[:100]}" if detail else type(error).__name__
    return _CRASHED, f"unexpected {reason}; the traceback is in {_saved(error)}: please report it"


def _environment(error: BaseException) -> str | None:
    """Explains a failure of the machine or of its settings; returns None for any other failure."""
    text = one_line(error)
    if isinstance(error, MemoryError):
        return f"out of memory ({text or 'of this machine'}): close other programs, or use smaller inputs"
    if "RESOURCE_EXHAUSTED" in text:
        return f"the device's memory is full ({text[:120]}): lower config.synthesis_batch or config.kd.batch"
    if isinstance(error, RuntimeError) and "backend" in text and "nitialize" in text:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        return f"JAX cannot use JAX_PLATFORMS={platforms!r} ({text[:110]}): unset it, or install that backend's jaxlib"
    return None


def _saved(error: BaseException) -> str:
    """Writes a traceback to a file and returns its name; prints the traceback if that fails."""
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="fastdfkd_jax-", suffix="-traceback.txt", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.write(text)
        return file.name
    except OSError:
        print(text, file=sys.stderr)
        return "the lines above"


def _write_any_letter() -> None:
    """Makes the console print `?` for letters that its encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextlib.contextmanager
def no_output() -> Iterator[None]:
    """Discards what libraries write to standard output."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
