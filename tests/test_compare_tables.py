"""Tables of a comparison, from handwritten summaries: exact text, computed rows, speed-ups, and what is missing."""

import csv
import io
import sys

import pytest

from fastdfkd_jax.compare import figure, results, tables
from fastdfkd_jax.compare.comparison import Row, Table
from fastdfkd_jax.errors import UserError

SUMMARY = {
    "knows": "teacher only", "teacher_accuracy": 91.73, "student_accuracy_last": 60.0,
    "student_accuracy_best_on_test": 61.0, "images": 7680, "synthesis_seconds": 100.0, "total_seconds": 600.4,
    "peak_memory_bytes": 1_234_000_000,
}  # fmt: skip
HEAD = (
    "| method | knows | student %, last epoch | n | best on test % | teacher % | images | synthesis s | total s "
    "| peak memory MB | speed-up over DeepInversion, 2,000 steps | paper: % | paper: hours |"
)


def row(label, run="", **changes):
    fields = {"shows": "student", "times": 0.0, "knows": "", "is_reference": False, "is_control": False,
              "paper_accuracy": None, "paper_hours": None}  # fmt: skip
    return Row("CIFAR-10", label, run, **(fields | changes))


REFERENCE = row("DeepInversion, 2,000 steps", "deep10", times=200.0, is_reference=True, paper_hours=16.9)
TABLE = Table(
    "t",
    "Students.",
    "paper",
    (
        row("Teacher", shows="teacher", knows="everything", paper_accuracy=94.87),
        row("Student", "scratch"),
        REFERENCE,
        row("Fast-5", "fast5", paper_accuracy=88.9, paper_hours=0.08),
        row("noise", "noise", is_control=True),
    ),
)
SUMMARIES = {
    "scratch": [SUMMARY | {"images": 0, "synthesis_seconds": 0.0, "knows": "the teacher's training data"}],
    "deep10": [SUMMARY | {"synthesis_seconds": 204.0}],
    "fast5": [SUMMARY, SUMMARY | {"student_accuracy_last": 64.0, "peak_memory_bytes": 2e9, "synthesis_seconds": 104.0}],
    "noise": [SUMMARY | {"student_accuracy_last": 20.0, "synthesis_seconds": 0.25}],
}
WANTED = {"scratch": 1, "deep10": 1, "fast5": 3, "noise": 1}


def made(table=TABLE, summaries=SUMMARIES, failures=None):
    return results.sections(table, summaries, WANTED, failures or {})


def lines_of(text, start="| "):
    return [line for line in text.splitlines() if line.startswith(start)]


def test_a_whole_table():
    text = tables.markdown(TABLE, made(failures={"fast5": ["fast5 seed 2: no space left."]}))
    # Mean and deviation of 60 and 64: 62 and the root of 8. 200 times 204 s over 102 s are 400.
    assert text == (
        "**CIFAR-10**\n\n"
        f"{HEAD}\n"
        f"| --- | --- {'| ---: ' * 11}|\n"
        "| Teacher | everything | 91.73 | – | – | – | – | – | – | – | – | 94.87 | – |\n"
        "| Student | the teacher's training data | 60.00 † | 1 | 61.00 | 91.73 | – | – | 600 | 1,234 | – | – | – |\n"
        "| DeepInversion, 2,000 steps | teacher only | not measured | – | not measured | 91.73 | 7,680 "
        "| 40,800 (computed) | not measured | not measured | 1.0× (computed) | – | 16.9 |\n"
        "| Fast-5 | teacher only | 62.00 ± 2.83 | 2 of 3, 1 failed | 61.00 | 91.73 | 7,680 | 102 | 600 | 2,000 | 400× "
        "| 88.90 | 0.08 |\n"
        "| noise | teacher only | 20.00 † | 1 | 61.00 | 91.73 | 7,680 | 0.25 | 600 | 1,234 | – | – | – |\n"
        "\n"
        "Accuracies are of the last epoch, means ± standard deviations over n seeds; seconds are means over them, peak "
        "memory is the largest. † one seed, so no deviation. DeepInversion, 2,000 steps: synthesis seconds computed as "
        "200 times those of the run deep10. Columns named 'paper' are copied from the paper: best epoch on the test "
        "set, hours on its GPU. Failed: fast5 seed 2: no space left.\n"
    )


def test_nothing_is_measured_yet():
    text = tables.markdown(TABLE, made(summaries={}))
    assert lines_of(text)[2:] == [
        "| Teacher | everything | not measured | – | – | – | – | – | – | – | – | 94.87 | – |",
        f"| Student | {'not measured | ' * 2}0 of 1 | {'not measured | ' * 7}– | – |",
        f"| DeepInversion, 2,000 steps | {'not measured | ' * 2}– | {'not measured | ' * 7}– | 16.9 |",
        f"| Fast-5 | {'not measured | ' * 2}0 of 3 | {'not measured | ' * 7}88.90 | 0.08 |",
        f"| noise | {'not measured | ' * 2}0 of 1 | {'not measured | ' * 6}– | – | – |",
    ]


def test_a_run_that_failed_says_so():
    text = tables.markdown(TABLE, made(summaries={}, failures={"noise": ["noise seed 0: killed by SIGKILL"]}))
    assert lines_of(text)[-1].startswith("| noise | not measured | failed | 0 of 1, 1 failed |")
    assert text.endswith(" Failed: noise seed 0: killed by SIGKILL.\n")


def test_without_a_reference_or_figures_of_the_paper_there_are_no_such_columns():
    table = Table("t", "", "paper", (row("Fast-5", "fast5"),))
    found = made(table)
    assert found["CIFAR-10"][0].speed_up is None
    text = tables.markdown(table, found)
    assert "speed-up" not in text
    assert "paper" not in text
    assert lines_of(text)[2].endswith(" | 102 | 600 | 2,000 |")


def test_summaries_without_seconds_leave_them_unmeasured():
    """Records of a busy machine, and those of earlier versions."""
    kept = {name: value for name, value in SUMMARY.items() if not name.endswith("_seconds")}
    summaries = {"fast5": [kept], "deep10": [kept]}
    lines = {line.row.label: line for line in made(summaries=summaries)["CIFAR-10"]}
    assert lines["Fast-5"].accuracy == 60
    assert lines["Fast-5"].synthesis_seconds is lines["Fast-5"].total_seconds is lines["Fast-5"].speed_up is None
    assert not lines[REFERENCE.label].is_computed
    assert "not measured (computed)" not in tables.markdown(TABLE, made(summaries=summaries))


def test_lines_say_what_they_ran_on_where_that_was_not_the_same():
    on = {"cpu": {"devices": ["cpu", "cpu"]}, "gpu": {"devices": ["NVIDIA H200"]}}
    same = {name: [summary | on["cpu"] for summary in found] for name, found in SUMMARIES.items()}
    assert "ran on" not in tables.markdown(TABLE, made(summaries=same))
    differing = same | {"fast5": [SUMMARY | on["gpu"], SUMMARY | on["cpu"]], "noise": [SUMMARY]}
    sections = made(summaries=differing)
    head, _, teacher, scratch, deep, fast, noise, *_ = lines_of(tables.markdown(TABLE, sections))
    at = head.split(" | ").index("ran on")
    found = [line.split(" | ")[at] for line in (teacher, scratch, deep, fast, noise)]
    assert found == ["–", "cpu", "–", "NVIDIA H200, cpu", "not measured"]
    rows = csv.DictReader(io.StringIO(tables.as_csv(TABLE, sections)))
    assert [row["devices"] for row in rows if row["run"] == "fast5"] == ["NVIDIA H200, cpu"]


def test_each_section_has_a_table_with_its_own_reference():
    other = [entry._replace(section="CIFAR-100") for entry in TABLE.rows[2:4]]
    other[0] = other[0]._replace(times=1000.0)
    found = made(TABLE._replace(rows=(*TABLE.rows, *other)))
    assert list(found) == ["CIFAR-10", "CIFAR-100"]
    assert [line.speed_up for line in found["CIFAR-100"]] == [1, 2000]
    assert tables.markdown(TABLE, found).count(HEAD) == 2


def test_csv_has_unrounded_figures():
    rows = list(csv.DictReader(io.StringIO(tables.as_csv(TABLE, made()))))
    fast = rows[3]
    assert (fast["section"], fast["method"], fast["run"], fast["seeds"]) == ("CIFAR-10", "Fast-5", "fast5", "2")
    assert (fast["student_score_last"], fast["teacher_score"], fast["paper_score"]) == ("62.0", "91.73", "88.9")
    assert float(fast["student_score_last_sd"]) == pytest.approx(8**0.5)
    assert fast["total_seconds"] == "600.4"
    assert rows[4]["student_score_last_sd"] == "not measured"
    assert {rows[4][name] for name in ("paper_score", "paper_hours", "share_of_published_synthesis")} == {"–"}
    assert (rows[2]["synthesis_seconds"], rows[2]["synthesis_seconds_computed"]) == ("40800.0", "True")


def test_a_column_of_scores_says_which_score_they_are():
    summary = {name.replace("accuracy", "miou"): value for name, value in SUMMARY.items()} | {"score": "miou"}
    (row,) = csv.DictReader(io.StringIO(tables.as_csv(*of_one(TABLE.rows[3], summary))))
    assert (row["score"], row["student_score_last"], row["teacher_score"]) == ("miou", "60.0", "91.73")
    assert not any("accuracy" in name for name in row)


def of_one(row, summary):
    """A table of one row, and its sections."""
    table = Table("t", "", "paper", (row,))
    return table, results.sections(table, {row.run: [summary]}, WANTED, {})


def test_rows_say_what_share_of_the_published_synthesis_they_have():
    table = TABLE._replace(rows=(*TABLE.rows[:3], TABLE.rows[3]._replace(share=0.13636), TABLE.rows[4]))
    sections = made(table)
    text = tables.markdown(table, sections)
    head, _, *body = lines_of(text)
    at = head.split(" | ").index("share of the published synthesis, %")
    assert [line.split(" | ")[at] for line in body] == ["–", "–", "–", "13.6", "–"]
    assert "The share of the published synthesis counts images through the teacher with a gradient, over those" in text
    shares = [
        row["share_of_published_synthesis"] for row in csv.DictReader(io.StringIO(tables.as_csv(table, sections)))
    ]
    assert [shares[0], float(shares[3])] == ["–", pytest.approx(13.636)]
    assert r" & 13.6 & " in tables.latex(table, sections)
    assert "share of the published" not in tables.markdown(TABLE, made())


def test_slower_than_the_reference_keeps_two_digits():
    table = Table("t", "", "paper", (TABLE.rows[3]._replace(is_reference=True), row("slow", "slow")))
    text = tables.markdown(table, made(table, SUMMARIES | {"slow": [SUMMARY | {"synthesis_seconds": 2203.2}]}))
    # 102 seconds over 21.6 times as many.
    assert " | 0.046× | " in lines_of(text)[3]


def test_a_table_of_spreads_compares_deviations():
    seeds = [SUMMARY, SUMMARY | {"student_accuracy_last": 61.0}]
    rows = (TABLE.rows[3]._replace(is_reference=True), row("averaged", "averaged"), row("one", "scratch"))
    table = Table("t", "", "paper", rows, spread=True)
    text = tables.markdown(table, made(table, SUMMARIES | {"averaged": seeds}))
    head, _, *body = lines_of(text)
    at = head.split(" | ").index("deviation over that of Fast-5")
    # Deviations of 60 and 64, and of 60 and 61: a quarter.
    assert [line.split(" | ")[at] for line in body] == ["1.00", "0.25", "not measured"]
    assert "speed-up" not in text


def test_latex_is_escaped_and_needs_no_package():
    odd = row("50% & #1_{a}~^\\ → <x>", "fast5", paper_accuracy=1.0)
    table = Table("t", "Students.", "paper", (odd, REFERENCE))
    text = tables.latex(table, made(table))
    assert r"50\% \& \#1\_\{a\}\textasciitilde{}\textasciicircum{}\textbackslash{} $\rightarrow$ $<$x$>$ & " in text
    assert r"62.00 $\pm$ 2.83 & 2 of 3 & 61.00" in text
    assert text.splitlines()[:4] == [
        "% Students.", r"\begin{tabular}{llrrrrrrrrrrr}", r"\multicolumn{13}{l}{CIFAR-10} \\", r"\hline"
    ]  # fmt: skip
    assert "book" not in text
    assert all(line.count(" & ") == 12 for line in text.splitlines() if " & " in line)


def test_markdown_escapes_what_would_end_a_cell():
    table = Table("t", "", "paper", (row("a|b", "fast5"),))
    assert lines_of(tables.markdown(table, made(table)))[2].startswith(r"| a\|b | ")


def test_the_figure_has_a_mark_for_each_row_and_equal_files_of_equal_figures(tmp_path):
    pytest.importorskip("matplotlib")
    figure.write(tmp_path / "a", made())
    (tmp_path / "b").mkdir()
    figure.write(tmp_path / "b" / "a", made())
    picture = (tmp_path / "a.svg").read_text()
    # The rows with accuracy and synthesis seconds, and the control as a line; neither the teacher nor computed rows.
    for label, times in (("Fast-5", 1), ("noise", 1), ("Teacher", 0), ("DeepInversion", 0), ("Student", 0)):
        assert picture.count(f">{label}") == times, label
    assert picture == (tmp_path / "b" / "a.svg").read_text()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_of_nothing_is_empty(tmp_path):
    pytest.importorskip("matplotlib")
    figure.write(tmp_path / "a", made(summaries={}))
    assert (tmp_path / "a.svg").exists()


def test_without_matplotlib_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"a figure needs matplotlib, which is not installed: pip install matplotlib"):
        figure.write(tmp_path / "a", made())
