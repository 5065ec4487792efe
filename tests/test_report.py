"""Tables of recorded runs."""

import json

import pytest

from fastdfkd_jax import report
from fastdfkd_jax.errors import UserError

SUMMARY = {
    "teacher": "resnet20", "student": "wrn16_1", "seed": 0, "teacher_accuracy": 91.73, "images": 7680,
    "student_accuracy_last": 60.0, "student_accuracy_best_on_test": 61.0, "synthesis_seconds": 600.4,
}  # fmt: skip


def record(directory, **changes):
    directory.mkdir(parents=True)
    (directory / "summary.json").write_text(json.dumps(SUMMARY | changes))


def test_seeds_become_mean_and_standard_error(tmp_path):
    record(tmp_path / "short" / "seed0")
    record(tmp_path / "short" / "seed1", seed=1, student_accuracy_last=64.0)
    row = report.table(tmp_path).splitlines()[2]
    # Mean of 60 and 64; their deviation 2.83 over the root of 2 is 2.
    assert "| 62.00 ± 2.00 |" in row
    assert "| 0, 1 |" in row


def test_what_was_not_measured_is_said(tmp_path):
    record(tmp_path / "short" / "seed0")
    row = report.table(tmp_path).splitlines()[2]
    assert row.startswith("| short | resnet20 → wrn16_1 | 0 | 91.73 | 60.00 | 61.00 | not measured | 7,680 | 600 |")
    assert row.endswith("| not measured |")


def test_a_document_keeps_everything_but_the_table():
    text = "before\n<!-- results -->\nold\n<!-- /results -->\nafter\n"
    assert report.insert(text, "new\n") == "before\n<!-- results -->\nnew\n<!-- /results -->\nafter\n"


def test_mistakes_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="holds no records"):
        report.table(tmp_path)
    with pytest.raises(UserError, match="no place for the table"):
        report.insert("nothing", "new\n")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "summary.json").write_text("{")
    with pytest.raises(UserError, match="not the summary"):
        report.table(tmp_path)
