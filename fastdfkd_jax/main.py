"""`python -m fastdfkd_jax.main --config FILE[:variant] --workdir DIR`: one run, from a config to a student."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from fastdfkd_jax import __version__, configuration, hosts, parallel, plan, report, workdir
from fastdfkd_jax.arguments import expanded
from fastdfkd_jax.assemble import Parts, assemble
from fastdfkd_jax.checkpoint import digest
from fastdfkd_jax.command import run_command
from fastdfkd_jax.files import LOCK, lock_folder
from fastdfkd_jax.registry import other_sections
from fastdfkd_jax.train import Training
from fastdfkd_jax.validate import validate

log = logging.getLogger("fastdfkd_jax.main")  # not __name__, which is __main__

DEFAULT_CONFIG = "configs/quickstart.py"
# What may differ between the processes of a run.
_OWN_KEYS = (
    "teacher.checkpoint",
    "data.dir",
    "data.class_names",
    "compilation_cache",
    "parallel.process",
    "parallel.lost_after",
)


def main(argv: Sequence[str]) -> None:
    """Parses, checks, runs, and prints the summary as the last line of standard output."""
    config, folder = configuration.parse(argv, DEFAULT_CONFIG)
    validate(config)
    set_up_jax(config)
    chosen = config.parallel
    hosts.join(chosen.hosts, chosen.processes, chosen.process, chosen.lost_after)
    if not hosts.is_writer():
        logging.getLogger("fastdfkd_jax").setLevel(logging.ERROR)  # the writer says the same
    with hosts.together():
        output = _output(config, folder)
        if output and hosts.is_writer():
            print(output, flush=True)


def _output(config: ConfigDict, folder: Path) -> str:
    """What is printed in the end: the plan of a dry run, else the summary; '' where the run was stopped."""
    if config.dry_run:
        return plan.describe(config, assemble(config))
    summary = run(config, folder)
    if summary and config.noise_control:
        summary |= run_noise_control(config, folder)
        _write_summary(folder, summary)
    return json.dumps(summary) if summary else ""


def _write_summary(folder: Path, summary: dict[str, Any]) -> None:
    if hosts.is_writer():
        report.write_json(folder / "summary.json", summary)


def run(config: ConfigDict, folder: Path) -> dict[str, Any]:
    """Runs or resumes one run in a folder; returns its summary, or {} where it was stopped and saved.

    Raises:
      UserError: anything that a user can mend; the folder then holds what it held before.
    """
    workdir.require_foreign(config.pool.initial, folder)
    parts = assemble(config)
    hosts.require_same("config", {k: v for k, v in workdir.flatten(config.to_dict()).items() if k not in _OWN_KEYS})
    lock = lock_folder(folder) if hosts.is_writer() else None
    try:
        hosts.require_shared(folder, LOCK)
        if hosts.is_writer():
            _prepare(folder, restart=config.restart)
        identity = record_identity(config, parts, folder)
        summary = Training(config, parts, folder, identity).run()
        if summary:
            _write_summary(folder, summary)
        return summary
    finally:
        if lock is not None:
            lock.close()


def _prepare(folder: Path, restart: bool) -> None:
    if restart and (aside := workdir.put_aside(folder)) is not None:
        log.info("moved all that %s held to %s; to continue this run later, leave out --config.restart", folder, aside)
    workdir.require_resumable(folder)
    workdir.remove_leftovers(folder)


def run_noise_control(config: ConfigDict, folder: Path) -> dict[str, Any]:
    """Trains the same student with the same budget on Gaussian noise, in a folder of its own."""
    control = config.copy_and_resolve_references()
    control.method.name = "noise"
    control.soft_labels.dir = ""  # those are of other images
    log.info("noise control: the same student, distilled from Gaussian noise images")
    summary = run(control, folder / "noise_control")
    return {f"noise_{name}": summary[name] for name in (report.score_key(summary, "student_{}_last"),) if summary}


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


if __name__ == "__main__":
    run_command(main)
