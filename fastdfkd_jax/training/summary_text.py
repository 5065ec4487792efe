"""Formats the summary of a run as text; summary.json has the same figures unrounded."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdfkd_jax.evaluation.scores import score_key

# key of the summary: printed name
_PHASES = {
    "synthesis_seconds": "synthesis",
    "distill_seconds": "distillation",
    "label_seconds": "soft labels",
    "evaluate_seconds": "evaluation",
    "compile_seconds": "compilation",
}
_FILES = {
    "student.pth": "the student, for PyTorch",
    "student.safetensors": "the student",
    "report.html": "the run on one page: open it in a browser",
    "images.png": "the newest images of each class",
    "images": "pictures of each stage",
    "pool": "all synthesised images",
    "held_out": "images that the student never saw",
    "metrics.jsonl": "every call's metrics",
    "summary.json": "this summary",
}


def printed(summary: Mapping[str, Any], folder: Path, as_json: bool) -> str:
    """Returns the summary as commands print it: as text on a terminal, else as one line of JSON."""
    return json.dumps(summary) if as_json or not sys.stdout.isatty() else text(summary, folder)


def text(summary: Mapping[str, Any], folder: Path) -> str:
    """Returns one line each for scores, agreement, warnings, images, time by phase, memory and files.

    Args:
      summary: summary of a run that has ended, including its noise control's if it has one.
      folder: its workdir, for the sizes of files; missing files are left out.
    """
    lines = [
        *_scores(summary),
        *_agreement(summary),
        *(("warning", line) for line in summary.get("warnings", ())),
        ("images", f"{summary['images']:,} synthesised"),
        ("time", _time(summary)),
    ]
    if summary.get("peak_memory_bytes"):
        lines.append(("memory", f"{summary['peak_memory_bytes'] / 1e9:.2f} GB at most"))
    lines += _files(folder)
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {said}".rstrip() for name, said in lines)


def _scores(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    teacher, student = (summary.get(score_key(summary, name)) for name in ("teacher_{}", "student_{}_last"))
    control = summary.get(f"noise_{score_key(summary, 'student_{}_last')}")
    if teacher is None or student is None:
        return [("student", "not evaluated: no labelled images were given")]
    difference = student - teacher
    beside = f"{abs(difference):.2f} points {'below' if difference < 0 else 'above'} the teacher"
    found = [("teacher", f"{teacher:.2f} %"), ("student", f"{student:.2f} %, {beside}")]
    if control is not None:
        found.append(("control", f"{control:.2f} %, the same student trained on noise"))
    return found


def _agreement(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns how often student and teacher agree on images that the student never saw, and the noise control's."""
    sets = {
        "held_out": f"{summary.get('held_out_images', 0):,} held-out synthetic images",
        "noise_images": "noise",
        "probe": f"{summary.get('probe_images', 0):,} pictures of {summary.get('probe', '')}",
    }
    sets = {name: title for name, title in sets.items() if summary.get(f"agreement_{name}") is not None}
    if not sets:
        return []
    found = [("agreement", ", ".join(f"{summary[f'agreement_{name}']:.1f} % on {sets[name]}" for name in sets))]
    for name, title in (("held_out", "the held-out images"), ("probe", "the pictures")):
        if name in sets and (control := summary.get(f"noise_agreement_{name}")) is not None:
            found.append(("", f"the control: {control:.1f} % on {title}, {_gap(summary, name, control)}"))
    if "probe" not in sets and summary.get(score_key(summary, "student_{}_last")) is None:
        found.append(("", "real pictures may be easier or harder: data.probe=DIR measures agreement on yours"))
    if all(summary.get(f"noise_agreement_{name}") is None for name in sets):
        found.append(("", "is that good? noise_control=true also trains the student on noise, for comparison"))
    return found


def _gap(summary: Mapping[str, Any], name: str, control: float) -> str:
    """Says how far a control's agreement is from the student's, and whether so few images can tell the two apart."""
    student, count = summary[f"agreement_{name}"], summary.get(f"{name}_images", 0)
    gap = student - control
    said = f"{abs(gap):.1f} points {'below' if gap >= 0 else 'above'} the student"
    error = math.sqrt(sum(share * (100 - share) for share in (student, control)) / max(count, 1))
    return said if abs(gap) > 2 * error else f"{said}, within twice the standard error of {count:,} images"


def _time(summary: Mapping[str, Any]) -> str:
    phases = [f"{title} {duration(summary[key])}" for key, title in _PHASES.items() if summary.get(key, 0) >= 0.5]
    return f"{duration(summary['total_seconds'])}" + (f": {', '.join(phases)}" if phases else "")


def duration(seconds: float) -> str:
    """Returns seconds in a readable form: '12 s', '3 min 5 s', '2 h 10 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _files(folder: Path) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, title in _FILES.items():
        path = folder / name
        if path.exists():
            found.append(("" if found else "files", f"{path}  {_size(path)}, {title}"))
    return found


def _size(path: Path) -> str:
    inside: Sequence[Path] = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    count = sum(each.stat().st_size for each in inside)
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{max(1, round(count / 1e3))} kB"
