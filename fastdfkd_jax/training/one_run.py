"""Runs or resumes one run in its folder: lock, identity, training, summary."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from fastdfkd_jax import __version__
from fastdfkd_jax.distributed import hosts, parallel
from fastdfkd_jax.evaluation.scores import score_key
from fastdfkd_jax.methods.registry import other_sections
from fastdfkd_jax.options import read
from fastdfkd_jax.storage.digest import digest
from fastdfkd_jax.storage.files import LOCK, lock_folder, write_json
from fastdfkd_jax.training import class_rows, compiled_programs, held_out, layer_statistics, phases, run_page, workdir
from fastdfkd_jax.training.build import Parts, assemble
from fastdfkd_jax.training.loop import Training
from fastdfkd_jax.training.programs import Programs
from fastdfkd_jax.training.run_options import RunOptions

log = logging.getLogger("fastdfkd_jax.main")  # the name that users know


# Keys that may differ between the processes of a run.
_OWN_KEYS = (
    "teacher.checkpoint",
    "data.dir",
    "data.class_names",
    "data.probe",
    "compilation_cache",
    "parallel.process",
    "parallel.lost_after",
)


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Writes summary.json; with several processes, only one writes."""
    if hosts.is_writer():
        write_json(folder / "summary.json", summary)


class Built(NamedTuple):
    """Everything built from a config before its run begins; runs that need the same parts may share it.

    Attributes:
      parts: networks, method, data.
      programs: programs for them, compiled when they are first called.
    """

    parts: Parts
    programs: Programs


def build(config: ConfigDict) -> Built:
    """Builds everything that a config needs; UserError if it does not fit together."""
    parts = assemble(config)
    return Built(parts, Programs(parts, read(RunOptions, config)))


def run(config: ConfigDict, folder: Path, built: Built | None = None) -> dict[str, Any]:
    """Runs or resumes one run in a folder.

    Args:
      config: config of the run.
      folder: folder for all its files.
      built: result of `build` for the same config, or for one that differs only in its seed and in when things are
        saved; None to build it.

    Returns:
      The run's summary, or {} if it was stopped and saved.

    Raises:
      UserError: an error that the user can fix; the folder's contents are then unchanged.
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
        log.info("moved the contents of %s to %s; to continue this run later, leave out restart", folder, aside)
    workdir.require_resumable(folder)
    workdir.remove_leftovers(folder)


def complete(config: ConfigDict, folder: Path, built: Built) -> dict[str, Any]:
    """Runs or resumes a run and, if asked, its noise control; writes its page.

    Args:
      config, folder, built: as for `run`.

    Returns:
      The summary with the control's score, or {} if the run was stopped and saved.
    """
    summary = run(config, folder, built)
    if summary and config.noise_control:
        summary |= run_noise_control(config, folder, built)
        write_summary(folder, summary)
    if summary and hosts.is_writer():
        phases.enter("writing report.html")
        layers = layer_statistics.measure(built.parts, folder / "pool")
        run_page.write(folder, summary, class_rows.of_run(folder, *built), layers)
    return summary


def run_noise_control(config: ConfigDict, folder: Path, built: Built) -> dict[str, Any]:
    """Trains the same student with the same budget on Gaussian noise, in a subfolder.

    Args:
      config: config of the run that it accompanies.
      folder: folder of that run.
      built: result of `build` for that run.
    """
    control = config.copy_and_resolve_references()
    control.method.name = "noise"
    control.soft_labels.dir = ""  # these belong to other images
    control.data.probe = ""  # these are read already
    log.info("noise control: the same student, distilled from Gaussian noise images")
    images = held_out.images_of(folder)
    probes = built.parts.probes if images is None else {**built.parts.probes, "held_out": images}
    parts = assemble(control)._replace(probes=probes)
    programs = Programs(parts, read(RunOptions, control), like=built.programs)
    summary = run(control, folder / "noise_control", Built(parts, programs))
    names = (score_key(summary, "student_{}_last"), "agreement_held_out", "agreement_probe")
    return {f"noise_{name}": summary[name] for name in names if name in summary}


def set_up_jax(config: ConfigDict) -> None:
    """Applies the settings that must precede the first use of a device."""
    parallel.split_cpu(config.parallel.cpu_devices)
    if place := compiled_programs.folder(config.compilation_cache):
        jax.config.update("jax_compilation_cache_dir", str(place))


def record_identity(config: ConfigDict, parts: Parts, folder: Path) -> dict[str, Any]:
    """Writes config.json, or refuses a workdir that holds another run; returns the run's identity."""
    identity = {**identity_of(config), "teacher weights": digest(parts.teacher_vars)}
    hosts.require_same("teacher", {"digest of its weights": identity["teacher weights"]})
    if hosts.is_writer():
        workdir.record(folder, config.to_dict(), identity, __version__)
    return identity


def identity_of(config: ConfigDict) -> dict[str, Any]:
    """Returns the flat names and values that must be equal to resume a run, except for the teacher's weights."""
    others = other_sections(config.method.name)
    flat = workdir.flatten(config.to_dict())
    return {k: v for k, v in flat.items() if k.split(".")[0] not in others and k not in workdir.FREE_KEYS}
