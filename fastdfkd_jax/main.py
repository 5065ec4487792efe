"""`python -m fastdfkd_jax.main --config FILE[:variant] --workdir DIR`: one run, from a config to a student."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from fastdfkd_jax import __version__, configuration, hosts, parallel, plan, report
from fastdfkd_jax.assemble import Parts, assemble
from fastdfkd_jax.checkpoint import check_same_run, digest
from fastdfkd_jax.files import LOCK, lock_folder
from fastdfkd_jax.registry import other_sections
from fastdfkd_jax.train import Training
from fastdfkd_jax.validate import validate

log = logging.getLogger("fastdfkd_jax.main")  # not __name__, which is __main__

DEFAULT_CONFIG = "configs/quickstart.py"
# What may differ between a run and its resumption: where things lie (weights are compared by digest) and
# how often it looks at itself.
_FREE_KEYS = (
    "dry_run",
    "profile",
    "compilation_cache",
    "teacher.checkpoint",
    "data.dir",
    "data.class_names",
    "soft_labels.dir",
    "pool.place",  # the student meets the same images
    "noise_control",
    # How a run lies on devices and hosts, of which the checkpoint tells.
    "parallel.task_devices",
    "parallel.batch_devices",
    "parallel.cpu_devices",
    "parallel.hosts",
    "parallel.processes",
    "parallel.process",
    "parallel.lost_after",
)
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
    config, workdir = configuration.parse(argv, DEFAULT_CONFIG)
    validate(config)
    set_up_jax(config)
    chosen = config.parallel
    hosts.join(chosen.hosts, chosen.processes, chosen.process, chosen.lost_after)
    if not hosts.is_writer():
        logging.getLogger("fastdfkd_jax").setLevel(logging.ERROR)  # the writer says the same
    with hosts.together():
        output = _output(config, workdir)
        if output and hosts.is_writer():
            print(output, flush=True)


def _output(config: ConfigDict, workdir: Path) -> str:
    """What is printed in the end: the plan of a dry run, else the summary; '' where the run was stopped."""
    if config.dry_run:
        return plan.describe(config, assemble(config))
    summary = run(config, workdir)
    if summary and config.noise_control:
        summary |= run_noise_control(config, workdir)
        _write_summary(workdir, summary)
    return json.dumps(summary) if summary else ""


def _write_summary(workdir: Path, summary: dict[str, Any]) -> None:
    if hosts.is_writer():
        report.write_json(workdir / "summary.json", summary)


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Runs or resumes one run; returns its summary, or {} where it was stopped and saved.

    Raises:
      UserError: anything that a user can mend; the workdir then holds what it held before.
    """
    parts = assemble(config)
    hosts.require_same("config", {k: v for k, v in flatten(config.to_dict()).items() if k not in _OWN_KEYS})
    lock = lock_folder(workdir) if hosts.is_writer() else None
    try:
        hosts.require_shared(workdir, LOCK)
        record_identity(config, parts, workdir)
        summary = Training(config, parts, workdir).run()
        if summary:
            _write_summary(workdir, summary)
        return summary
    finally:
        if lock is not None:
            lock.close()


def run_noise_control(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains the same student with the same budget on Gaussian noise, in a folder of its own."""
    control = config.copy_and_resolve_references()
    control.method.name = "noise"
    control.soft_labels.dir = ""  # those are of other images
    log.info("noise control: the same student, distilled from Gaussian noise images")
    summary = run(control, workdir / "noise_control")
    return {f"noise_{name}": summary[name] for name in (report.score_key(summary, "student_{}_last"),) if summary}


def set_up_jax(config: ConfigDict) -> None:
    """Settings that must precede the first use of a device."""
    parallel.split_cpu(config.parallel.cpu_devices)
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", str(Path(config.compilation_cache).expanduser()))


def record_identity(config: ConfigDict, parts: Parts, workdir: Path) -> None:
    """Writes config.json, or refuses a workdir that holds another run."""
    path = workdir / "config.json"
    identity = {**identity_of(config), "teacher weights": digest(parts.teacher_vars)}
    hosts.require_same("teacher", {"digest of its weights": identity["teacher weights"]})
    if hosts.is_writer():
        check_same_run(path, identity, _FREE_KEYS)
        content = {"config": config.to_dict(), "identity": identity, "version": __version__}
        report.write_json(path, content)


def identity_of(config: ConfigDict) -> dict[str, Any]:
    """What must be equal for a run to go on, the teacher's weights aside: flat names and values."""
    others = other_sections(config.method.name)
    flat = {key: value for key, value in flatten(config.to_dict()).items() if key.split(".")[0] not in others}
    return {key: value for key, value in flat.items() if key not in _FREE_KEYS}


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} becomes {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


if __name__ == "__main__":
    configuration.run_command(main)
