"""Computes the figures of a table's rows from summaries: means, deviations, speed-ups; no rounding, no text."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastdfkd_jax.compare.comparison import Row, Table
from fastdfkd_jax.evaluation import scores

Summary = Mapping[str, Any]

# Set in a record's summary if its programs were timed separately, because the runs shared the machine.
SECONDS_APART = "seconds_measured_apart"


@dataclass(frozen=True)
class Line:
    """A row with its measurements; None is a missing measurement.

    Attributes:
      row: the row of the table.
      score: the measured score, 'accuracy' or 'miou'.
      seeds: number of finished runs.
      wanted: number of requested runs.
      failures: one line for each run that failed.
      knows: the data that the method uses.
      method: the method's name in `methods.registry`; None if no run records it.
      accuracy: the score of the student after the last call, percent, mean over seeds.
      deviation: its standard deviation over seeds (n - 1), if there are several.
      best_on_test: mean over seeds of the best score on the test set, percent.
      teacher_accuracy: the teacher's score, percent.
      images: number of synthesised images.
      synthesis_seconds, total_seconds: means over seeds.
      peak_bytes: largest over seeds.
      devices: kinds of all devices that the runs used.
      synthesises: False if the method makes no images; None if no run records it.
      speed_up: the reference's synthesis seconds over this row's.
      seconds_apart: whether the seconds come from programs timed separately from the runs.
      is_computed: whether the synthesis seconds are another run's times a factor.
    """

    row: Row
    score: str = "accuracy"
    seeds: int = 0
    wanted: int = 0
    failures: tuple[str, ...] = ()
    knows: str | None = None
    method: str | None = None
    accuracy: float | None = None
    deviation: float | None = None
    best_on_test: float | None = None
    teacher_accuracy: float | None = None
    images: float | None = None
    synthesis_seconds: float | None = None
    total_seconds: float | None = None
    peak_bytes: float | None = None
    devices: tuple[str, ...] = ()
    synthesises: bool | None = None
    speed_up: float | None = None
    seconds_apart: bool = False
    is_computed: bool = False


def sections(
    table: Table,
    summaries: Mapping[str, Sequence[Summary]],
    wanted: Mapping[str, int],
    failures: Mapping[str, Sequence[str]],
) -> dict[str, list[Line]]:
    """Returns the lines of each section, in order.

    Args:
      table: the table.
      summaries: summaries of the finished runs, by name.
      wanted: number of requested runs, by name.
      failures: reasons of failed runs, by name.
    """
    found: dict[str, list[Row]] = {}
    for row in table.rows:
        found.setdefault(row.section, []).append(row)
    lines = {}
    for section, rows in found.items():
        all_of = [summary for row in rows for summary in summaries.get(row.run, ())]
        made = [_line(row, summaries, wanted, failures, all_of) for row in rows]
        lines[section] = _with_speed_ups(made)
    return lines


def _line(row: Row, summaries, wanted, failures, all_of: Sequence[Summary]) -> Line:
    of_run = summaries.get(row.run, ())
    score = all_of[0].get("score", "accuracy") if all_of else "accuracy"
    line = Line(row, score, len(of_run), wanted.get(row.run, 0), tuple(failures.get(row.run, ())), row.knows or None)
    if row.shows == "teacher":
        return replace(line, accuracy=_mean(all_of, "teacher_{}"), synthesises=False)
    if not of_run:
        return line
    images = _mean(of_run, "images")
    line = replace(
        line,
        knows=of_run[0].get("knows") or line.knows,
        method=of_run[0].get("method"),
        teacher_accuracy=_mean(of_run, "teacher_{}"),
        images=images,
        synthesises=images != 0,
        synthesis_seconds=_mean(of_run, "synthesis_seconds"),
        seconds_apart=any(summary.get(SECONDS_APART) for summary in of_run),
    )
    if row.times:
        seconds = line.synthesis_seconds
        computed = None if seconds is None else row.times * seconds
        return replace(
            line, seeds=0, wanted=0, failures=(), synthesis_seconds=computed, is_computed=computed is not None
        )
    accuracies = _values(of_run, "student_{}_last")
    return replace(
        line,
        accuracy=_mean(of_run, "student_{}_last"),
        deviation=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        best_on_test=_mean(of_run, "student_{}_best_on_test"),
        total_seconds=_mean(of_run, "total_seconds"),
        peak_bytes=max(_values(of_run, "peak_memory_bytes"), default=None),
        devices=tuple(sorted({kind for summary in of_run for kind in summary.get("devices", ())})),
    )


def _with_speed_ups(lines: list[Line]) -> list[Line]:
    reference = next((line.synthesis_seconds for line in lines if line.row.is_reference), None)
    if not reference:
        return lines
    return [
        replace(line, speed_up=reference / line.synthesis_seconds)
        if line.synthesis_seconds and line.synthesises and not line.row.is_control
        else line
        for line in lines
    ]


def _values(summaries: Sequence[Summary], name: str) -> list[float]:
    found = (summary.get(scores.score_key(summary, name)) for summary in summaries)
    return [value for value in found if value is not None]


def _mean(summaries: Sequence[Summary], name: str) -> float | None:
    values = _values(summaries, name)
    return statistics.fmean(values) if values else None
