"""Ensures that only one process on a machine is number 0 of a run at a port."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import tempfile
from pathlib import Path
from typing import IO

from fastdfkd_jax.errors import UserError

_first_process: list[IO[str]] = []  # the lock, held until this process ends


def require_only_one_first_process(address: str) -> None:
    """Raises UserError if another process on this machine is number 0 at the same port, or the port is in use.

    JAX's service can share its port with another service, so that both would wait for the other processes in vain.
    """
    port = int(address.rpartition(":")[2])
    expected = (
        f"the port of config.parallel.hosts={address} is in use on this machine: is another process number 0 too?"
    )
    remedy = "give each process its own config.parallel.process, or choose another port"
    path = Path(tempfile.gettempdir()) / f"fastdfkd_jax-{os.getuid()}-port-{port}.lock"
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with contextlib.suppress(PermissionError):  # if the folder cannot be written; the port itself is tried below
        lock = open(os.open(path, flags, 0o600), "w")  # noqa: SIM115 - held until this process ends
        _first_process.append(lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{expected} {remedy}") from None
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a run that has just ended may still occupy it
        try:
            tried.bind(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(f"{expected} {remedy}") from None
