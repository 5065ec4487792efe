"""Writes files so that a reader never finds a partial one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from fastdfkd_jax.cli import signals
from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.errors import UserError

LOCK = ".lock"


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Calls `write(file)` on a temporary file beside `path`, makes it durable and renames it into place.

    Raises:
      UserError: the folder cannot be written or the disk is full; no temporary file remains.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.unlink(missing_ok=True)  # left by a killed process; or a link to a foreign file
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(path, error) from error


def _sync_folder(path: Path) -> None:
    """Makes the names in a folder durable; otherwise a renamed file may revert to its old name after a power cut."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def make_folder(path: Path) -> None:
    """Makes a folder and its parents; raises UserError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(path, error) from error


def _no_link(path: str, flags: int) -> int:
    """Opens a file that is not a symbolic link, because a link's target may belong to anybody."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def lock_folder(path: Path) -> IO[str]:
    """Makes a folder and locks it against a second run, as long as the returned file is open.

    Raises:
      UserError: another run has locked it, or it cannot be written.
    """
    make_folder(path)
    try:
        lock = open(path / LOCK, "w", opener=_no_link)  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise disk_error(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise UserError(f"{path} is in use by another run: wait for it, or use another folder") from None
    return lock


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target` that is renamed to it when the block succeeds, and removed if it fails.

    Leftovers of a killed process are replaced.

    Raises:
      UserError: the target is not empty or is being written, or the disk is full or cannot be written.
    """
    target = expanded(target).resolve()
    _require_free(target)
    partial = target.with_name(f".{target.name}.partial")
    if partial.is_symlink():
        raise UserError(
            f"{partial} is a symbolic link: expected nothing, or the folder of an earlier attempt; remove it"
        )
    make_folder(partial)
    lock = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{target} is being written by another process: wait, or give another folder") from None
        try:
            _clear(partial)
            yield partial
            os.replace(partial, target)
        except OSError as error:
            raise disk_error(target, error, then="to start again") from error
        finally:
            # It no longer exists if all went well.
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(lock)


@contextlib.contextmanager
def stopped_in_one_line(target: Path) -> Iterator[None]:
    """Makes termination signals unwind the block around a `whole_folder`, so that no partial folder remains.

    Raises:
      UserError: a signal arrived.
    """
    try:
        with signals.unwinding():
            yield
    except KeyboardInterrupt:
        raise UserError(f"stopped: nothing was written to {target}; run the same command to start again") from None


def _require_free(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file: give a new folder")
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{target} is not empty: give a new folder, or remove what it holds")
    if target.is_mount():
        raise UserError(f"{target} is the root of a file system: give a new folder in it")


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


class AppendFile:
    """A file that grows by whole records; a record cut off by a full disk is removed.

    Args:
      path: the file; its folder is made if missing.
      length: bytes of its content to keep; the rest is cut off.
    """

    def __init__(self, path: Path, length: int = 0):
        self._path = path
        make_folder(path.parent)
        try:
            self._file = open(path, "ab", buffering=0, opener=_no_link)  # noqa: SIM115 - closed by close()
            self._file.truncate(min(length, self._size()))
        except OSError as error:
            raise disk_error(path, error) from error

    def append(self, record: bytes) -> None:
        """Writes a record; if the disk is full, raises UserError and writes nothing."""
        start = self._size()
        try:
            while record:
                record = record[self._file.write(record) :]
        except OSError as error:
            self._file.truncate(start)
            raise disk_error(self._path, error) from error

    def sync(self) -> int:
        """Makes all records durable; returns the file's length."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise disk_error(self._path, error) from error
        return self._size()

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Closes the file; no writes are pending."""
        self._file.close()


def disk_error(path: Path, error: OSError, then: str = "to continue") -> UserError:
    """Describes a failed write to the user in one line; `then` says what a rerun does once there is space."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left for {path}: free some and run the same command {then}")
    if error.errno == errno.ELOOP:
        return UserError(f"{path} is a symbolic link, which is not followed: remove it, or give another folder")
    return UserError(f"cannot write {path} ({error.strerror}): choose a folder that can be written")


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON atomically."""
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
