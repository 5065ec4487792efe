"""The folder of one run: whose it is, when a run may begin or continue in it, and how to put its contents aside."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage import files, limits
from fastdfkd_jax.storage.files import LOCK, disk_error
from fastdfkd_jax.training.checkpoint import require_same_run

log = logging.getLogger(__name__)

RECORD = "config.json"
RESULTS = (
    "pool", "initial", "soft_labels", "checkpoints", "images", "events", "profile", "noise_control",
    "metrics.jsonl", "summary.json", "student.safetensors", "student.pth",
)  # fmt: skip
# Is there as soon as the run has a checkpoint, so that a run that has lost all of them is not taken for a new one.
_SAVED = ".saved"
_ASIDE = "previous-"
# What may differ between a run and its resumption: where things lie (weights are compared by digest) and
# how often it looks at itself.
FREE_KEYS = (
    "dry_run",
    "restart",
    "profile",
    "compilation_cache",
    "teacher.checkpoint",
    "data.dir",
    "data.class_names",
    "soft_labels.dir",
    "pool.place",  # the student meets the same images
    "noise_control",
    "eval_every",
    "checkpoint_every",
    "images_every",
    # How a run lies on devices and hosts, which is recorded with its checkpoints.
    "parallel.task_devices",
    "parallel.batch_devices",
    "parallel.cpu_devices",
    "parallel.hosts",
    "parallel.processes",
    "parallel.process",
    "parallel.lost_after",
)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} becomes {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def require_foreign(initial: str, workdir: Path) -> None:
    """Refuses the run's own pool as the images that it begins with, as beginning a run empties its pool.

    Raises:
      UserError: `config.pool.initial` is the workdir or lies among its results.
    """
    if not initial:
        return
    own, given = workdir.resolve(), expanded(initial).resolve()
    if given == own or any((own / name) == given or (own / name) in given.parents for name in RESULTS):
        raise UserError(
            f"config.pool.initial={initial} is a folder of this run: give another run's, or another --workdir"
        )


def put_aside(workdir: Path) -> Path | None:
    """Moves all that the folder holds into a new folder within it; None where it holds nothing.

    Raises:
      UserError: it cannot be written.
    """
    entries = [path for path in workdir.iterdir() if path.name != LOCK and not path.name.startswith(_ASIDE)]
    # Killed after any of these moves, the folder is one of results without their record, which no run begins in.
    entries.sort(key=lambda path: path.name != RECORD)
    if not entries:
        return None
    taken = {path.name for path in workdir.iterdir()}
    number = next(n for n in range(1, len(taken) + 2) if f"{_ASIDE}{n}" not in taken)
    target = workdir / f"{_ASIDE}{number}"
    try:
        target.mkdir()
        for path in entries:
            path.rename(target / path.name)
    except OSError as error:
        raise disk_error(target, error) from error
    return target


def require_resumable(workdir: Path) -> None:
    """Refuses a folder in which a run would begin anew and thereby lose an earlier one's results, or follow a link.

    Raises:
      UserError: it holds results but no config.json, or has lost all its checkpoints, or a link leads out of it.
    """
    for name in (*RESULTS, RECORD, LOCK):
        if (workdir / name).is_symlink():
            raise UserError(f"{workdir / name} is a symbolic link: make the whole workdir a link instead, or remove it")
    found = [name for name in RESULTS if _holds_something(workdir / name)]
    remedy = f"restore it, give a new --workdir, or restart=true, which moves all into {_ASIDE}N there"
    if found and not (workdir / RECORD).exists():
        raise UserError(f"{workdir} holds results ({', '.join(found)}) but no {RECORD}: {remedy}")
    # Copies may lack the hidden mark; a student is there only at the end.
    ends = (_SAVED, "summary.json", "student.safetensors", "student.pth")
    if any((workdir / name).exists() for name in ends) and not any(_numbered(workdir / "checkpoints")):
        raise UserError(f"{workdir} has lost its checkpoints, and a run from the start would delete its pool: {remedy}")


def _numbered(directory: Path) -> Iterator[Path]:
    return (path for path in directory.glob("*") if path.name.isdigit())


def _holds_something(path: Path) -> bool:
    if path.is_dir():
        return any(not child.name.startswith(".") for child in path.iterdir())
    return path.exists() and path.stat().st_size > 0


def mark_saved(workdir: Path) -> None:
    """Notes that the run has had a checkpoint."""
    try:
        (workdir / _SAVED).touch()
    except OSError as error:
        raise disk_error(workdir / _SAVED, error) from error


def record(workdir: Path, config: dict[str, Any], identity: dict[str, Any], version: str) -> None:
    """Writes config.json.

    Raises:
      UserError: the folder holds the record of another run.
    """
    path = workdir / RECORD
    if path.exists():
        try:
            recorded = limits.read_json(path, "record")["identity"]
            known = recorded.keys()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path} is not the record of a run: start in a new workdir") from None
        require_same_run(recorded, identity, str(workdir), FREE_KEYS)
        if "calls" in known and recorded["calls"] < identity.get("calls", 0):
            log.warning(
                "config.calls was %d and is %d: the learning rates now follow schedules of %d calls, so the student "
                "differs from that of one run of so many",
                recorded["calls"], identity["calls"], identity["calls"],
            )  # fmt: skip
    files.write_json(path, {"config": config, "identity": identity, "version": version})


def remove_leftovers(workdir: Path) -> None:
    """Removes what killed writers of this run have left half-written; soft labels may have another run's."""
    leftovers = [workdir / f".{name}.partial" for name in (*RESULTS, RECORD)]
    for name in ("pool", "initial", "images"):
        leftovers += (workdir / name).glob(".*.partial")
    for path in leftovers:
        if path.is_file() or path.is_symlink():
            path.unlink()
