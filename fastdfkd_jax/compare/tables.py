"""Formats a table as Markdown, CSV and LaTeX; 'not measured' marks a missing value, '–' an impossible one."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence

from fastdfkd_jax.compare.comparison import Table
from fastdfkd_jax.compare.results import Line
from fastdfkd_jax.storage.markdown import table as markdown_table

Sections = Mapping[str, Sequence[Line]]
MISSING, NONE = "not measured", "–"
ONE_SEED = "†"
_BRIEF_NOTE = f"Means ± standard deviations over n seeds; {ONE_SEED} one seed. Seconds are without evaluation."
_BRIEF = ("method", "n", "synthesis s", "total s")  # columns of a brief table, besides the student's
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "→": r"$\rightarrow$",
    "†": r"$^{\dagger}$", "–": "--", "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def markdown(table: Table, sections: Sections) -> str:
    """Returns each section's name in bold and its table, and below all an explanation of the marks."""
    parts = []
    for section, lines in sections.items():
        head, *body = _head_and_rows(table, lines)
        parts.append(f"**{section}**\n\n{markdown_table(head, body, left=2)}")
    return "\n".join([*parts, " ".join(notes(table, sections)) + "\n"])


def latex(table: Table, sections: Sections) -> str:
    """Returns a plain `tabular` for each section, which needs no package, and an explanation of the marks."""
    parts = [f"% {table.caption}"]
    for section, lines in sections.items():
        rows = _head_and_rows(table, lines)
        width = len(rows[0])
        parts += [
            rf"\begin{{tabular}}{{ll{'r' * (width - 2)}}}",
            rf"\multicolumn{{{width}}}{{l}}{{{escape(section)}}} \\",
            r"\hline",
            *(rf"{' & '.join(map(escape, row))} \\" for row in rows),
            r"\hline",
            r"\end{tabular}",
            "",
        ]
    return "\n".join([*parts, escape(" ".join(notes(table, sections)))]) + "\n"


def escape(text: str) -> str:
    """Escapes text for LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)


def as_csv(table: Table, sections: Sections) -> str:
    """Returns unrounded values with one row each and its section; seconds, bytes and percent."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["section", "method", "run", *(name for name, _ in _FIGURES)])
    for section, lines in sections.items():
        for line in lines:
            values = [get(line) for _, get in _FIGURES]
            texts = (MISSING if value is None else value for value in values)
            writer.writerow([section, line.row.label, line.row.run, *texts])
    return file.getvalue()


_FIGURES: tuple[tuple[str, Callable[[Line], object]], ...] = (
    ("knows", lambda line: line.knows),
    ("score", lambda line: line.score),
    ("student_score_last", lambda line: line.accuracy),
    ("student_score_last_sd", lambda line: line.deviation),
    ("seeds", lambda line: line.seeds),
    ("student_score_best_on_test", lambda line: line.best_on_test),
    ("teacher_score", lambda line: line.teacher_accuracy),
    ("images", lambda line: line.images),
    ("synthesis_seconds", lambda line: line.synthesis_seconds),
    ("synthesis_seconds_computed", lambda line: line.is_computed),
    ("total_seconds", lambda line: line.total_seconds),
    ("peak_memory_bytes", lambda line: line.peak_bytes),
    ("devices", lambda line: ", ".join(line.devices) or None),
    ("speed_up", lambda line: line.speed_up),
    ("share_of_published_synthesis", lambda line: NONE if line.row.share is None else 100 * line.row.share),
    ("paper_score", lambda line: NONE if line.row.paper_accuracy is None else line.row.paper_accuracy),
    ("paper_hours", lambda line: NONE if line.row.paper_hours is None else line.row.paper_hours),
)


def _columns(table: Table, lines: Sequence[Line]) -> list[tuple[str, Callable[[Line], str]]]:
    """Returns the columns of a section's table: the head, and a line's cell."""
    measured = " mIoU" if any(line.score == "miou" for line in lines) else ""
    made: list[tuple[str, Callable[[Line], str]]] = [
        ("method", lambda line: line.row.label),
        ("knows", lambda line: line.knows or MISSING),
        (f"student{measured} %, last epoch", _accuracy),
        ("n", _seeds),
        ("best on test %", _of_students(lambda line: _number(line.best_on_test, 2))),
        ("teacher %", _of_students(lambda line: _number(line.teacher_accuracy, 2))),
        ("images", _of_synthesis(lambda line: _number(line.images, 0))),
        ("synthesis s", _of_synthesis(lambda line: _seconds(line.synthesis_seconds) + _computed(line))),
        ("total s", _of_students(lambda line: _seconds(line.total_seconds))),
        ("peak memory MB", _of_students(lambda line: _number(line.peak_bytes, 0, unit=1e6))),
    ]
    if table.brief:
        return [(head, cell) for head, cell in made if head in _BRIEF or head.endswith("last epoch")]
    if len({line.devices for line in lines if line.devices}) > 1:
        made.append(("ran on", _of_students(_ran_on)))
    if reference := next((line for line in lines if line.row.is_reference), None):
        label = reference.row.label
        if table.spread:
            made.append((f"deviation over that of {label}", lambda line: _deviation_over(reference, line)))
        else:
            made.append((f"speed-up over {label}", _of_synthesis(_speed_up)))
    if _has_share(lines):
        made.append(("share of the published synthesis, %", _share))
    if _has_paper(lines):
        made += [(f"{table.paper}: %", _paper_accuracy), (f"{table.paper}: hours", _paper_hours)]
    return made


def _head_and_rows(table: Table, lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """Returns a section's head and rows, rounded."""
    columns = _columns(table, lines)
    return [tuple(head for head, _ in columns), *(tuple(cell(line) for _, cell in columns) for line in lines)]


def _of_students(cell: Callable[[Line], str]) -> Callable[[Line], str]:
    return lambda line: NONE if line.row.shows == "teacher" else cell(line)


def _of_synthesis(cell: Callable[[Line], str]) -> Callable[[Line], str]:
    return lambda line: NONE if line.synthesises is False else cell(line)


def _computed(line: Line) -> str:
    return " (computed)" if line.is_computed else ""


def _ran_on(line: Line) -> str:
    return NONE if line.is_computed else ", ".join(line.devices) or MISSING


def _deviation_over(reference: Line, line: Line) -> str:
    if not reference.deviation or line.deviation is None:
        return MISSING
    return f"{line.deviation / reference.deviation:.2f}"


def _has_share(lines: Sequence[Line]) -> bool:
    return any(line.row.share is not None for line in lines)


def _share(line: Line) -> str:
    return NONE if line.row.share is None else f"{100 * line.row.share:.1f}"


def _has_paper(lines: Sequence[Line]) -> bool:
    return any(line.row.paper_accuracy is not None or line.row.paper_hours is not None for line in lines)


def _paper_accuracy(line: Line) -> str:
    return NONE if line.row.paper_accuracy is None else f"{line.row.paper_accuracy:.2f}"


def _paper_hours(line: Line) -> str:
    return NONE if line.row.paper_hours is None else f"{line.row.paper_hours:g}"


def _accuracy(line: Line) -> str:
    if line.accuracy is None:
        return "failed" if line.failures else MISSING
    if line.deviation is not None:
        return f"{line.accuracy:.2f} ± {line.deviation:.2f}"
    return f"{line.accuracy:.2f}" + (f" {ONE_SEED}" if line.seeds == 1 and line.row.shows == "student" else "")


def _seeds(line: Line) -> str:
    if not line.wanted or line.row.times or line.row.shows == "teacher":
        return NONE
    text = str(line.seeds) if line.seeds >= line.wanted else f"{line.seeds} of {line.wanted}"
    return f"{text}, {len(line.failures)} failed" if line.failures else text


def _speed_up(line: Line) -> str:
    if line.row.is_control:
        return NONE
    if line.speed_up is None:
        return MISSING + _computed(line)
    if line.speed_up < 1:
        return f"{line.speed_up:.2g}×{_computed(line)}"
    return f"{line.speed_up:,.{0 if line.speed_up >= 100 else 1}f}×{_computed(line)}"


def _number(value: float | None, digits: int, unit: float = 1) -> str:
    return MISSING if value is None else f"{value / unit:,.{digits}f}"


def _seconds(seconds: float | None) -> str:
    return _number(seconds, 0 if seconds is None or seconds >= 10 else 2)


def notes(table: Table, sections: Sections) -> list[str]:
    """Returns sentences that explain the figures."""
    lines = [line for found in sections.values() for line in found]
    if table.brief:
        return [_BRIEF_NOTE]
    made = [
        "Accuracies are of the last epoch, means ± standard deviations over n seeds; seconds are means over them, "
        "peak memory is the largest.",
    ]
    if any(_accuracy(line).endswith(ONE_SEED) for line in lines):
        made.append(f"{ONE_SEED} one seed, so no deviation.")
    for text in dict.fromkeys(
        f"{line.row.label}: synthesis seconds computed as {line.row.times:g} times those of the run {line.row.run}."
        for line in lines
        if line.is_computed
    ):
        made.append(text)
    if any(line.seconds_apart for line in lines):
        made.append(
            "The runs shared their machine: seconds are those of each program, timed apart on the idle machine, times "
            "how often a run needs it, without evaluation."
        )
    if _has_share(lines):
        made.append(
            "The share of the published synthesis counts images through the teacher with a gradient, over those of "
            "the published recipe."
        )
    if _has_paper(lines):
        made.append(
            f"Columns named '{table.paper}' are copied from the paper: best epoch on the test set, hours on its GPU."
        )
    failures = dict.fromkeys(failure for line in lines for failure in line.failures)
    return [*made, *(f"Failed: {re.sub(r'[.]$', '', failure)}." for failure in failures)]
