"""Median times, and workers in processes of their own whose turns are interleaved."""

from __future__ import annotations

import importlib
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def median_seconds(run: Callable[[], Any], repeats: int = 3) -> float:
    """Returns the median time of a function that waits for its own results, after one call that is not counted."""
    run()
    return statistics.median(seconds(run) for _ in range(repeats))


def seconds(run: Callable[[], Any]) -> float:
    """Returns the wall-clock time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


class Worker:
    """An object in a fresh process, so that libraries share neither threads nor memory with each other.

    Args:
      factory: 'module:name' of what builds it, imported in the process.
      *args: what it is built with.

    Attributes:
      start_seconds: from the process's start until the object was built.
    """

    def __init__(self, factory: str, *args: Any):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        start = time.perf_counter()
        self._process = context.Process(target=_serve, args=(theirs, factory, args), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()
        self.start_seconds = time.perf_counter() - start

    def __call__(self, method: str, *args: Any) -> tuple[Any, float]:
        """Calls a method of the object: its result, and the seconds that it took there."""
        self._connection.send((method, args))
        return self._receive()

    def resident_bytes(self) -> tuple[int, int]:
        """Returns the resident memory of the process: now, and its peak."""
        self._connection.send(None)
        return self._receive()

    def _receive(self) -> Any:
        try:
            result = self._connection.recv()
        except EOFError:
            raise SystemExit("error: a worker died, of lack of memory perhaps; its words are above") from None
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.join()


def _serve(connection: Connection, factory: str, args: tuple[Any, ...]) -> None:
    module, name = factory.split(":")
    target = getattr(importlib.import_module(module), name)(*args)
    connection.send(None)
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if message is None:
            connection.send(_resident_bytes())
            continue
        method, arguments = message
        start = time.perf_counter()
        try:
            result = getattr(target, method)(*arguments)
        except Exception as error:
            connection.send(error)
            raise
        connection.send((result, time.perf_counter() - start))


def _resident_bytes() -> tuple[int, int]:
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[1]) * resource.getpagesize()
    return now, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
