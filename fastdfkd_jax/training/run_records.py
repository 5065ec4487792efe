"""Records of finished runs, and the table of many records."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from fastdfkd_jax.errors import UserError, one_line, shortened
from fastdfkd_jax.evaluation.scores import score_key
from fastdfkd_jax.storage import limits, markdown
from fastdfkd_jax.storage.files import make_folder, write_atomically, write_json

_COLUMNS = (
    "run", "teacher → student", "seeds", "teacher %", "student %, last", "best on test %", "noise control %",
    "images", "synthesis s", "KD s",
)  # fmt: skip


def _json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; OSError or ValueError if there is none."""
    content = limits.read_json(path, "record")
    if not isinstance(content, dict):
        raise ValueError("expected a JSON object")
    return content


def table(directory: Path) -> str:
    """Returns a Markdown table of the runs in a folder: a row for each folder of seeds, `NAME/SEED/summary.json`.

    Several seeds are shown as mean ± standard error. Values that no summary holds are 'not measured'.

    Raises:
      UserError: there are no summaries, or one cannot be read.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(directory.glob("*/*/summary.json")):
        try:
            groups.setdefault(path.parent.parent.name, []).append(_json(path))
        except ValueError as error:
            raise UserError(f"{path} is not the summary of a run: {error}") from None
    if not groups:
        raise UserError(f"{directory} holds no records: expected NAME/SEED/summary.json")
    rows = []
    for name, summaries in groups.items():
        try:
            rows.append(_row(name, summaries))
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            reason = shortened(f"{type(error).__name__}: {one_line(error)}", 80)
            raise UserError(
                f"{shortened(directory / name, 120)} has a summary that no run writes ({reason}): record the run again"
            ) from error
    return markdown.table(_COLUMNS, rows)


def _row(name: str, summaries: list[dict[str, Any]]) -> tuple[str, ...]:
    first = summaries[0]

    def mean(key: str, digits: int) -> str:
        values = [summary[key] for summary in summaries if summary.get(key) is not None]
        if not values:
            return "not measured"
        text = f"{np.mean(values):,.{digits}f}"
        return f"{text} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.{digits}f}" if len(values) > 1 else text

    return (
        name + (f" ({first['score']})" if first.get("score", "accuracy") != "accuracy" else ""),
        f"{first['teacher']} → {first['student']}",
        ", ".join(str(summary["seed"]) for summary in summaries),
        f"{first[score_key(first, 'teacher_{}')]:.2f}",
        mean(score_key(first, "student_{}_last"), 2),
        mean(score_key(first, "student_{}_best_on_test"), 2),
        mean(score_key(first, "noise_student_{}_last"), 2),
        f"{first['images']:,}",
        mean("synthesis_seconds", 0),
        mean("distill_seconds", 0),
    )


def add(workdir: Path, record: Path, timed: bool = True, picture: bool = True) -> None:
    """Copies the parts of a finished run that are worth keeping: config, metrics, summary and picture.

    Paths on this machine are reduced to their last name.

    Args:
      workdir: folder of the run.
      record: the folder to write.
      timed: whether the machine was otherwise idle; if not, the summary's seconds are left out.
      picture: whether the picture of the newest images is kept, or that of the last stage if there is none.

    Raises:
      UserError: the run is not finished.
    """
    try:
        config, summary = (_json(workdir / name) for name in ("config.json", "summary.json"))
        chosen = config["config"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{workdir} holds no finished run: expected its config.json and summary.json") from error
    make_folder(record)
    write_json(record / "config.json", without_places(chosen))
    if not timed:
        summary = {name: value for name, value in summary.items() if not name.endswith("_seconds")}
    write_json(record / "summary.json", summary)
    pictures = [*sorted((workdir / "images").glob("*.png")), *workdir.glob("images.png")] if picture else []
    copies = [("metrics.jsonl", workdir / "metrics.jsonl"), *(("images.png", path) for path in pictures[-1:])]
    for name, source in copies:
        content = source.read_bytes()
        write_atomically(record / name, lambda file, content=content: file.write(content))


def without_places(value: Any) -> Any:
    """Returns a JSON tree with each path on this machine reduced to its last name."""
    if isinstance(value, dict):
        return {key: without_places(item) for key, item in value.items()}
    is_place = isinstance(value, str) and value.startswith(("/", "~", "."))
    return Path(value).name if is_place else value
