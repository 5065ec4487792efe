"""Several processes as one run, on one or many hosts: how they find each other, communicate and end together.

Process 0 is the writer. Besides the devices' own communication, the processes share JAX's coordination service, a small
key-value store in process 0. Each process writes a sign of life to it every second and, if it fails, the reason. So no
process waits forever for one that is gone: it ends with one line and the exit status of a user's error.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from fastdfkd_jax.cli.command import no_output, say, told
from fastdfkd_jax.distributed.first_process import require_only_one_first_process
from fastdfkd_jax.errors import EXIT_STATUS, UserError

T = TypeVar("T")
_GATHER_SECONDS = 300  # hosts of a cluster may start minutes apart
_BEAT_SECONDS = 1.0
_LINGER_SECONDS = 5.0  # process 0 waits this long for the others to read why it ends, as the store ends with it
_RESUME = "start the same command in all processes again to continue from the last checkpoint"
# Messages of the underlying libraries when another process is gone.
_LOST = re.compile(r"gloo|nccl|rccl|peer|connection (reset|closed|refused)|socket closed|unavailable|barrier", re.I)
_link: _Link | None = None


class _Link:
    """This process's connection to the others.

    Attributes:
      process: its number.
      count: number of processes.
      client: client of the coordination service.
    """

    def __init__(self, process: int, count: int, client: Any, lost_after: float):
        self.process, self.count, self.client = process, count, client
        self._lost_after = lost_after
        self._heard = dict.fromkeys(range(count), time.monotonic())
        self._beats = dict.fromkeys(range(count), "")
        self._asked: dict[str, int] = {}
        self._leaving = threading.Event()
        # Two threads, because a call to a store that has lost its host does not return.
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._watch)]
        for thread in self._threads:
            thread.start()

    def _beat(self) -> None:
        number = 0
        while not self._leaving.wait(_BEAT_SECONDS):
            number += 1
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # the other thread counts how long this fails
                self.client.key_value_set(f"alive/{self.process}", str(number), allow_overwrite=True)
                if (failure := self.failure()) is not None:
                    end(failure)
                for name, beat in self.client.key_value_dir_get("alive/"):
                    process = int(name.rsplit("/", 1)[1])
                    if beat != self._beats[process] or beat == "left":
                        self._heard[process], self._beats[process] = time.monotonic(), beat

    def _watch(self) -> None:
        while not self._leaving.wait(_BEAT_SECONDS):
            silence = {process: time.monotonic() - heard for process, heard in self._heard.items()}
            # A process that does not hear itself does not hear the store, which is in process 0.
            lost = 0 if silence[self.process] > self._lost_after else max(silence, key=silence.__getitem__)
            if silence[lost] > self._lost_after:
                told = f"process {lost} of {self.count} has given no sign of life for {silence[lost]:.0f} s"
                end(f"{told}: see what it said, then {_RESUME}")

    def failure(self) -> str | None:
        """Returns the reason why another process has failed, if one has reported it."""
        failed = [(int(name.rsplit("/", 1)[1]), line) for name, line in self.client.key_value_dir_get("failed/")]
        return next((f"process {n} of {self.count} failed: {line}" for n, line in failed if n != self.process), None)

    def tell(self, line: str) -> None:
        """Reports to the others why this process ends, and gives them time to read it."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self.client.key_value_set(f"failed/{self.process}", line, allow_overwrite=True)
            self.client.key_value_set(f"alive/{self.process}", "left", allow_overwrite=True)
            deadline = time.monotonic() + _LINGER_SECONDS
            while self.process == 0 and time.monotonic() < deadline:
                if sum(beat == "left" for _, beat in self.client.key_value_dir_get("alive/")) == self.count:
                    break
                time.sleep(_BEAT_SECONDS / 5)

    def unique(self, name: str) -> str:
        """Returns an unused key of the store; it is the same in all processes, which ask in the same order."""
        self._asked[name] = self._asked.get(name, 0) + 1
        return f"{name}/{self._asked[name]}"

    def leave(self) -> None:
        """Lets the others continue without this process's signs of life, and waits for them."""
        self._leaving.set()
        for thread in self._threads:
            thread.join(2 * _BEAT_SECONDS)  # else a last sign of life might come after "left"
        try:
            self.client.key_value_set(f"alive/{self.process}", "left", allow_overwrite=True)
            jax.distributed.shutdown()
        except jax.errors.JaxRuntimeError as error:
            end(f"another process was lost at the end of the run ({_first_line(error)}): {_RESUME}")


def join(hosts: str, processes: int, process: int, lost_after: float) -> None:
    """Makes this process one of several; must precede the first use of a device.

    Args:
      hosts: 'one' for a run of one process; 'cluster' if JAX finds the others by SLURM, Kubernetes, Open MPI or the
        metadata of a Cloud TPU; else HOST:PORT, a free port of process 0 that the others can reach.
      processes: number of processes; 0 if the cluster provides it.
      process: number of this process, from 0.
      lost_after: seconds without a sign of life after which another process counts as lost.

    Raises:
      UserError: the cluster is not recognised, or the port is not available.
    """
    global _link
    if hosts == "one":
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from the host loop
    known = {} if hosts == "cluster" else {
        "coordinator_address": hosts, "num_processes": processes, "process_id": process,
        "cluster_detection_method": "deactivate",
    }  # fmt: skip
    _tell_of_aborts(
        f"not all processes have joined within {_GATHER_SECONDS} s: start them all, with a config.parallel.hosts "
        "that each of them can reach"
    )
    if hosts != "cluster" and process == 0:
        require_only_one_first_process(hosts)
    try:
        jax.distributed.initialize(
            **known,
            initialization_timeout=_GATHER_SECONDS,
            # Our timeout comes first and names the lost process; JAX's own is for when ours cannot run. JAX may take a
            # process for lost half this time after its end, because it sends a sign of life every half of it.
            heartbeat_timeout_seconds=max(10, round(4 * lost_after)),
            shutdown_timeout_seconds=max(10, round(lost_after)),
        )
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        expected = "expected SLURM, Kubernetes, Open MPI or a Cloud TPU" if hosts == "cluster" else "is its port free?"
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        line = " ".join(str(error).split())
        raise UserError(f"config.parallel.hosts={hosts!r} cannot be joined ({line}): {expected}") from error
    from jax._src import distributed  # the store has no public name

    state = distributed.global_state
    _link = _Link(state.process_id, state.num_processes, state.client, lost_after)
    _tell_of_aborts(f"process 0 of {state.num_processes} was lost: {_RESUME}")
    with no_output():  # gloo, which connects the devices of CPUs, prints a line when they first connect
        any_process(False)


def count() -> int:
    """Returns the number of processes of this run."""
    return 1 if _link is None else _link.count


def is_writer() -> bool:
    """Returns whether this process writes files and prints."""
    return _link is None or _link.process == 0


def any_process(flag: bool) -> bool:
    """Returns whether the flag is set in any process; all must ask."""
    return flag if _link is None else bool(multihost_utils.process_allgather(np.array(flag)).any())


def wait() -> None:
    """Waits until all processes are here."""
    any_process(False)


def writer_first(work: Callable[[], T]) -> T:
    """Does work in process 0 and then in the others, which find the files that it has written."""
    if is_writer():
        result = work()
        wait()
        return result
    wait()
    return work()


def from_writer(name: str, value: Any) -> Any:
    """Returns process 0's JSON value in all processes; all must ask, in the same order."""
    if _link is None:
        return value
    key = _link.unique(name)
    if _link.process == 0:
        _link.client.key_value_set(key, json.dumps(value))
    # If process 0 is gone, the watching thread ends this process long before.
    return json.loads(_link.client.blocking_key_value_get(key, 24 * 3600 * 1000))


def require_same(what: str, values: dict[str, Any]) -> None:
    """Raises UserError in each process whose values differ from those of process 0, and names them."""
    here = json.loads(json.dumps(values))  # tuples become lists
    first = from_writer(what, here)
    differing = sorted(key for key in here.keys() | first.keys() if here.get(key) != first.get(key))
    if differing:
        changes = ", ".join(f"{key}: {first.get(key)!r} there, {here.get(key)!r} here" for key in differing)
        raise UserError(
            f"the {what} of this process differs from that of process 0 ({changes}): give all processes the same one"
        )


def require_shared(folder: Path, file: str) -> None:
    """Raises UserError in each process that does not find in the folder what process 0 has written there.

    Args:
      folder: a folder that exists on the host of process 0.
      file: name of a file in it, which process 0 may write.
    """
    if _link is None:
        return
    token = from_writer("token", f"{os.getpid()}-{time.time_ns()}")
    if _link.process == 0:
        (folder / file).write_text(token)
    from_writer("token written", True)
    deadline = time.monotonic() + 10  # a network file system may show it late
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if (folder / file).read_text() == token:
                return
        time.sleep(0.1)
    raise UserError(f"{folder} is not the folder that process 0 writes to: give one that all processes share")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends all processes if one fails within this context, each with one line and an exit status."""
    if _link is None:
        yield
        return
    try:
        yield
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError | OSError | ValueError) and _LOST.search(str(error)):
            time.sleep(2 * _BEAT_SECONDS)  # if the other gave a reason, the thread that reads it ends this process
            end(f"another process was lost ({_first_line(error)}): see what it said, then {_RESUME}")
        status, line = told(error)
        end(line, status)
    _link.leave()


_ending = threading.Lock()


def end(line: str, status: int = EXIT_STATUS) -> None:
    """Ends this process immediately, whichever thread asks first; informs the others and prints the line.

    It raises no exception, because the main thread may wait forever in a library, and a normal exit waits for all
    processes.
    """
    _ending.acquire()  # never released
    say(line)
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # so that JAX's service, which notices the end, does not bury the line
    if _link is not None:
        # In a thread, because a call to a store that has lost its host does not return.
        told = threading.Thread(target=_link.tell, args=(line,), daemon=True)
        told.start()
        told.join(2 * _LINGER_SECONDS)
    os._exit(status)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:200]


_handlers: list[Any] = []  # keeps alive the functions that C calls


def _tell_of_aborts(line: str) -> None:
    """Makes `line` the last output if JAX's service aborts the process, as it does when process 0 is gone.

    JAX offers no other way: it aborts from its own thread, where Python's signal handlers do not run.
    """

    def handler(_: int) -> None:
        _ending.acquire()
        os.write(2, f"error: {line}\n".encode())
        os._exit(EXIT_STATUS)

    _handlers.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(handler))
    ctypes.CDLL(None).signal(signal.SIGABRT, _handlers[-1])
