"""The folder of one run: its owner, when a run may start or resume in it, and moving its contents aside."""

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
    "pool", "initial", "soft_labels", "checkpoints", "images", "held_out", "events", "profile", "noise_control",
    "metrics.jsonl", "summary.json", "student.safetensors", "student.pth", "images.png", "report.html",
)  # fmt: skip
# Exists once the run has a checkpoint, so that a run that has lost all checkpoints is not mistaken for a new one.
_SAVED = ".saved"
_ASIDE = "previous-"
# Keys that may differ between a run and its resumption: locations (weights are compared by digest), how often the
# run evaluates and saves, and measurements after its end.
FREE_KEYS = (
    "dry_run",
    "restart",
    "profile",
    "compilation_cache",
    "teacher.checkpoint",
    "data.dir",
    "data.class_names",
    "soft_labels.dir",
    "pool.place",  # the student sees the same images
    "noise_control",
    "held_out",
    "data.probe",
    "eval_every",
    "checkpoint_every",
    "images_every",
    # Layout on devices and hosts, which is recorded with the checkpoints.
    "parallel.task_devices",
    "parallel.batch_devices",
    "parallel.cpu_devices",
    "parallel.hosts",
    "parallel.processes",
    "parallel.process",
    "parallel.lost_after",
)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dictionaries: {'a': {'b': 1}} becomes {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def require_foreign(initial: str, workdir: Path) -> None:
    """Refuses the run's own pool as initial images, because starting a run empties its pool.

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
    """Moves all contents of the folder into a new folder inside it; returns that, or None if there are none.

    Raises:
      UserError: the new folder cannot be written.
    """
    entries = [path for path in workdir.iterdir() if path.name != LOCK and not path.name.startswith(_ASIDE)]
    # If killed after any of these moves, the folder holds results without a record, and no run starts in it.
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
    """Refuses a folder in which a run would start again and so lose an earlier one's results, or would follow a link.

    Raises:
      UserError: it holds results but no config.json, or has lost all its checkpoints, or a link leads out of it.
    """
    for name in (*RESULTS, RECORD, LOCK):
        if (workdir / name).is_symlink():
            raise UserError(f"{workdir / name} is a symbolic link: make the whole workdir a link instead, or remove it")
    found = [name for name in RESULTS if _holds_something(workdir / name)]
    remedy = f"restore it, give a new --workdir, or restart=true, which moves everything into {_ASIDE}N there"
    if found and not (workdir / RECORD).exists():
        raise UserError(f"{workdir} holds results ({', '.join(found)}) but no {RECORD}: {remedy}")
    # Copies may lack the hidden mark. A student exists only at the end.
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
    """Records that the run has had a checkpoint."""
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
                "config.calls was %d and is now %d: the learning rates follow schedules of %d calls, so the student "
                "differs from that of one run of so many",
                recorded["calls"], identity["calls"], identity["calls"],
            )  # fmt: skip
    files.write_json(path, {"config": config, "identity": identity, "version": version})


def remove_leftovers(workdir: Path) -> None:
    """Removes half-written files of this run's killed writers; soft labels may have another run's."""
    leftovers = [workdir / f".{name}.partial" for name in (*RESULTS, RECORD)]
    for name in ("pool", "initial", "images", "held_out"):
        leftovers += (workdir / name).glob(".*.partial")
    for path in leftovers:
        if path.is_file() or path.is_symlink():
            path.unlink()
