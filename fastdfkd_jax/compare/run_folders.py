"""The folders of runs, in a workdir or among records: `runs/NAME/seedK`, and their contents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastdfkd_jax.compare.comparison import Comparison, Run
from fastdfkd_jax.errors import UserError, shortened
from fastdfkd_jax.storage import limits
from fastdfkd_jax.storage.files import make_folder, write_atomically
from fastdfkd_jax.training import one_run, run_records
from fastdfkd_jax.training.checkpoint import in_present_names
from fastdfkd_jax.training.workdir import flatten

FINISHED, BEGUN, TO_DO = "finished", "begun", "to do"
Summaries = dict[str, list[dict[str, Any]]]


def folder(workdir: Path, run: str, seed: int) -> Path:
    """Returns the folder of a run with one seed."""
    return workdir / "runs" / run / f"seed{seed}"


def state(workdir: Path, run: Run, seed: int) -> str:
    """Returns `FINISHED`, `BEGUN` or `TO_DO`.

    Raises:
      UserError: the folder holds a run of another configuration.
    """
    place = folder(workdir, run.name, seed)
    if not (place / "config.json").exists():
        return TO_DO
    _require_same(place, run, seed)
    return FINISHED if (place / "summary.json").exists() else BEGUN


def summaries(workdir: Path, comparison: Comparison) -> Summaries:
    """Returns summaries of the finished runs with the comparison's seeds; runs without any are left out.

    A folder may hold other seeds from another comparison that shares the run.

    Raises:
      UserError: a folder holds a run of another configuration, or a summary cannot be read.
    """
    found: Summaries = {}
    for run in comparison.runs.values():
        for seed in sorted(run.seeds):
            if state(workdir, run, seed) == FINISHED:
                found.setdefault(run.name, []).append(_read(folder(workdir, run.name, seed) / "summary.json"))
    return found


def require_same_teacher(workdir: Path, run: Run) -> None:
    """Stores a digest of the teacher's file beside a run's seeds; raises UserError if it has changed."""
    digest, path = run.teacher_digest(), workdir / "runs" / run.name / "teacher.sha256"
    if not digest:
        return
    if path.exists() and path.read_text().strip() != digest:
        raise UserError(
            f"{shortened(path.parent, 90)} holds runs with a teacher other than "
            f"{shortened(run.config.teacher.checkpoint, 90)}: use another workdir, or the first teacher"
        )
    make_folder(path.parent)
    write_atomically(path, lambda file: file.write(f"{digest}\n".encode()))


def _require_same(place: Path, run: Run, seed: int) -> None:
    """Compares the keys that both configs have: a later version may add keys, and a record has no paths."""
    content = _read(place / "config.json")
    recorded = run_records.without_places(content["identity"] if "identity" in content else flatten(content))
    recorded = in_present_names(recorded)
    wanted = json.loads(json.dumps(run_records.without_places(one_run.identity_of(run.seeded(seed)))))
    differing = [key for key in wanted if key in recorded and recorded[key] != wanted[key] and key not in _PLACES]
    if differing:
        changes = ", ".join(f"{key}: {recorded[key]!r} there, {wanted[key]!r} now" for key in differing)
        fix = f"use another workdir, or rename {run.name!r}"
        if differing == ["transfer.source"] and run.other_data:
            fix = f"give other_data={recorded['transfer.source']}; {fix}"
        raise UserError(f"{shortened(place, 90)} holds a run of another configuration ({changes}): {fix}")


# Keys for the location of data rather than their identity.
_PLACES = ("transfer.dir",)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = limits.read_json(path, "record")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove its folder, and run the same command again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not the record of a run: remove its folder, and run the same command again")
    return content
