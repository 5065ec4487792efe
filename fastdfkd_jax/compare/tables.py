"""A table as Markdown, CSV and LaTeX: what no run measured is 'not measured', what cannot be measured is '–'."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence

from fastdfkd_jax.compare.comparison import Row, Table
from fastdfkd_jax.compare.results import Line

Sections = Mapping[str, Sequence[Line]]
MISSING, NONE = "not measured", "–"
ONE_SEED = "†"
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$", "→": r"$\rightarrow$",
    "†": r"$^{\dagger}$", "–": "--", "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def markdown(table: Table, sections: Sections) -> str:
    """Each section's name in bold and its table; what the marks mean below all."""
    parts = []
    for section, lines in sections.items():
        head = columns(table, lines)
        alignment = ["---", "---", *("---:" for _ in head[2:])]
        rows = [head, alignment, *rows_of(lines)]
        parts.append(f"**{section}**\n\n" + "".join(f"| {' | '.join(map(_cell, row))} |\n" for row in rows))
    return "\n".join([*parts, " ".join(notes(table, sections)) + "\n"])


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def latex(table: Table, sections: Sections) -> str:
    """A plain `tabular` for each section, which needs no package, and the marks' meaning."""
    parts = [f"% {table.caption}"]
    for section, lines in sections.items():
        head = columns(table, lines)
        parts += [
            rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}",
            rf"\multicolumn{{{len(head)}}}{{l}}{{{escape(section)}}} \\",
            r"\hline",
            *(rf"{' & '.join(map(escape, row))} \\" for row in (head, *rows_of(lines))),
            r"\hline",
            r"\end{tabular}",
            "",
        ]
    return "\n".join([*parts, escape(" ".join(notes(table, sections)))]) + "\n"


def escape(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_LATEX.get(character, character) for character in text)


def as_csv(table: Table, sections: Sections) -> str:
    """Unrounded figures, one row each with its section; seconds, bytes and percent."""
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
    ("student_accuracy_last", lambda line: line.accuracy),
    ("student_accuracy_last_sd", lambda line: line.deviation),
    ("seeds", lambda line: line.seeds),
    ("student_accuracy_best_on_test", lambda line: line.best_on_test),
    ("teacher_accuracy", lambda line: line.teacher_accuracy),
    ("images", lambda line: line.images),
    ("synthesis_seconds", lambda line: line.synthesis_seconds),
    ("synthesis_seconds_computed", lambda line: line.is_computed),
    ("total_seconds", lambda line: line.total_seconds),
    ("peak_memory_bytes", lambda line: line.peak_bytes),
    ("devices", lambda line: ", ".join(line.devices) or None),
    ("speed_up", lambda line: line.speed_up),
    ("paper_accuracy", lambda line: line.row.paper_accuracy),
    ("paper_hours", lambda line: line.row.paper_hours),
)


def columns(table: Table, lines: Sequence[Line]) -> tuple[str, ...]:
    """The head of a section's table."""
    reference = reference_of(lines)
    return (
        "method", "knows", "student %, last epoch", "n", "best on test %", "teacher %", "images", "synthesis s",
        "total s", "peak memory MB", *(["ran on"] if _has_devices(lines) else []),
        *([f"speed-up over {reference.label}"] if reference else []),
        *([f"{table.paper}: %", f"{table.paper}: hours"] if _has_paper(lines) else []),
    )  # fmt: skip


def reference_of(lines: Sequence[Line]) -> Row | None:
    """The row that speed-ups are over; without one there is no such column."""
    return next((line.row for line in lines if line.row.is_reference), None)


def rows_of(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """A section's rows, rounded."""
    return [_cells(line, _has_devices(lines), reference_of(lines) is not None, _has_paper(lines)) for line in lines]


def _has_devices(lines: Sequence[Line]) -> bool:
    """Whether the lines must say what they ran on, as it was not the same for all."""
    return len({line.devices for line in lines if line.devices}) > 1


def _has_paper(lines: Sequence[Line]) -> bool:
    return any(line.row.paper_accuracy is not None or line.row.paper_hours is not None for line in lines)


def _cells(line: Line, has_devices: bool, has_reference: bool, has_paper: bool) -> tuple[str, ...]:
    row, is_teacher = line.row, line.row.shows == "teacher"
    computed = " (computed)" if line.is_computed else ""
    makes_none = line.synthesises is False
    speed_up = NONE if makes_none or row.is_control else _speed_up(line) + computed
    return (
        row.label,
        line.knows or MISSING,
        _accuracy(line),
        _seeds(line),
        NONE if is_teacher else _number(line.best_on_test, 2),
        NONE if is_teacher else _number(line.teacher_accuracy, 2),
        NONE if makes_none else _number(line.images, 0),
        NONE if makes_none else _number(line.synthesis_seconds, _digits(line.synthesis_seconds)) + computed,
        NONE if is_teacher else _number(line.total_seconds, _digits(line.total_seconds)),
        NONE if is_teacher else _number(None if line.peak_bytes is None else line.peak_bytes / 1e6, 0),
        *([NONE if is_teacher or line.is_computed else ", ".join(line.devices) or MISSING] if has_devices else []),
        *([speed_up] if has_reference else []),
        *(_paper(row) if has_paper else ()),
    )


def _paper(row: Row) -> tuple[str, str]:
    accuracy = NONE if row.paper_accuracy is None else f"{row.paper_accuracy:.2f}"
    return accuracy, NONE if row.paper_hours is None else f"{row.paper_hours:g}"


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
    if line.speed_up is None:
        return MISSING
    return f"{line.speed_up:,.{0 if line.speed_up >= 100 else 1}f}×"


def _number(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:,.{digits}f}"


def _digits(seconds: float | None) -> int:
    return 0 if seconds is None or seconds >= 10 else 2


def notes(table: Table, sections: Sections) -> list[str]:
    """Sentences that say what the figures are."""
    lines = [line for found in sections.values() for line in found]
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
    if _has_paper(lines):
        made.append(
            f"Columns named '{table.paper}' are copied from the paper: best epoch on the test set, hours on its GPU."
        )
    failures = dict.fromkeys(failure for line in lines for failure in line.failures)
    return [*made, *(f"Failed: {re.sub(r'[.]$', '', failure)}." for failure in failures)]
