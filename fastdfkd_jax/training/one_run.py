"""One run in its folder: lock, identity, training, summary."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from fastdfkd_jax import __version__
from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.distributed import hosts, parallel
from fastdfkd_jax.evaluation.scores import score_key
from fastdfkd_jax.methods.registry import other_sections
from fastdfkd_jax.options import read
from fastdfkd_jax.storage.digest import digest
from fastdfkd_jax.storage.files import LOCK, lock_folder, write_json
from fastdfkd_jax.training import workdir
from fastdfkd_jax.training.build import Parts, assemble
from fastdfkd_jax.training.loop import Training
from fastdfkd_jax.training.programs import Programs
from fastdfkd_jax.training.run_options import RunOptions

log = logging.getLogger("fastdfkd_jax.main")  # whose words these are to a reader


# What may differ between the processes of a run.
_OWN_KEYS = (
    "teacher.checkpoint",
    "data.dir",
    "data.class_names",
    "compilation_cache",
    "parallel.process",
    "parallel.lost_after",
)


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Writes summary.json; of several processes one does."""
    if hosts.is_writer():
        write_json(folder / "summary.json", summary)


class Built(NamedTuple):
    """What is made of a config before its run begins; runs that differ in nothing of it may share one.

    Attributes:
      parts: networks, method, data.
      programs: compiled for them when they are first called.
    """

    parts: Parts
    programs: Programs


def class_names(built: Built) -> tuple[str, ...]:
    """Names of the teacher's classes, where the evaluation data have them."""
    return tuple(built.parts.test.class_names or ()) if built.parts.test is not None else ()


def build(config: ConfigDict) -> Built:
    """Builds all that is made of a config; UserError where it does not fit together."""
    parts = assemble(config)
    return Built(parts, Programs(parts, read(RunOptions, config)))


def run(config: ConfigDict, folder: Path, built: Built | None = None) -> dict[str, Any]:
    """Runs or resumes one run in a folder.

    Args:
      config: of the run.
      folder: where it leaves all that it makes.
      built: of the same config, or of one that differs in its seed and in when things are saved; None to build it.

    Returns:
      Its summary, or {} where it was stopped and saved.

    Raises:
      UserError: anything that a user can mend; the folder then holds what it held before.
    """
    workdir.require_foreign(config.pool.initial, folder)
    parts, programs = built or build(config)
    hosts.require_same("config", {k: v for k, v in workdir.flatten(config.to_dict()).items() if k not in _OWN_KEYS})
    lock = lock_folder(folder) if hosts.is_writer() else None
    try:
        hosts.require_shared(folder, LOCK)
        if hosts.is_writer():
            _prepare(folder, restart=config.restart)
        identity = record_identity(config, parts, folder)
        summary = Training(read(RunOptions, config), parts, programs, folder, identity).run()
        if summary:
            write_summary(folder, summary)
        return summary
    finally:
        if lock is not None:
            lock.close()


def _prepare(folder: Path, restart: bool) -> None:
    if restart and (aside := workdir.put_aside(folder)) is not None:
        log.info("moved all that %s held to %s; to continue this run later, leave out restart", folder, aside)
    workdir.require_resumable(folder)
    workdir.remove_leftovers(folder)


def run_noise_control(config: ConfigDict, folder: Path, built: Built) -> dict[str, Any]:
    """Trains the same student with the same budget on Gaussian noise, in a folder of its own.

    Args:
      config, folder: of the run that it accompanies.
      built: from that run's config.
    """
    control = config.copy_and_resolve_references()
    control.method.name = "noise"
    control.soft_labels.dir = ""  # those are of other images
    log.info("noise control: the same student, distilled from Gaussian noise images")
    parts = assemble(control)
    programs = Programs(parts, read(RunOptions, control), like=built.programs)
    summary = run(control, folder / "noise_control", Built(parts, programs))
    return {f"noise_{name}": summary[name] for name in (score_key(summary, "student_{}_last"),) if summary}


def set_up_jax(config: ConfigDict) -> None:
    """Settings that must precede the first use of a device."""
    parallel.split_cpu(config.parallel.cpu_devices)
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", str(expanded(config.compilation_cache)))


def record_identity(config: ConfigDict, parts: Parts, folder: Path) -> dict[str, Any]:
    """Writes config.json, or refuses a workdir that holds another run; returns the run's identity."""
    identity = {**identity_of(config), "teacher weights": digest(parts.teacher_vars)}
    hosts.require_same("teacher", {"digest of its weights": identity["teacher weights"]})
    if hosts.is_writer():
        workdir.record(folder, config.to_dict(), identity, __version__)
    return identity


def identity_of(config: ConfigDict) -> dict[str, Any]:
    """The flat names and values that must be equal for a run to continue, the teacher's weights aside."""
    others = other_sections(config.method.name)
    flat = workdir.flatten(config.to_dict())
    return {k: v for k, v in flat.items() if k.split(".")[0] not in others and k not in workdir.FREE_KEYS}
