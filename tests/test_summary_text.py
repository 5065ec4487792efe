"""The summary for people: scores, time by phase and files."""

import json
import sys

import pytest

from fastdfkd_jax.training import summary_text

SUMMARY = {
    "score": "accuracy",
    "teacher_accuracy": 98.99396,
    "student_accuracy_last": 98.39034,
    "noise_student_accuracy_last": 29.77867,
    "images": 1920,
    "synthesis_seconds": 30.8,
    "distill_seconds": 66.2,
    "label_seconds": 0.0,
    "evaluate_seconds": 2.6,
    "compile_seconds": 26.6,
    "total_seconds": 126.2,
    "peak_memory_bytes": 1279180800,
}


def test_a_summary_has_what_a_person_looks_for(tmp_path):
    (tmp_path / "student.safetensors").write_bytes(b"x" * 321_000)
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "one").write_bytes(b"x" * 1_500_000)
    assert summary_text.text(SUMMARY, tmp_path).splitlines() == [
        "teacher  98.99 %",
        "student  98.39 %, 0.60 points below the teacher",
        "control  29.78 %, the same student trained on noise",
        "images   1,920 synthesised",
        "time     2 min 6 s: synthesis 31 s, distillation 1 min 6 s, evaluation 3 s, compilation 27 s",
        "memory   1.28 GB at most",
        f"files    {tmp_path}/student.safetensors  321 kB, the student",
        f"         {tmp_path}/pool  1.5 MB, all synthesised images",
    ]


def test_agreement_is_said_with_the_controls_gap(tmp_path):
    measured = {"agreement_held_out": 96.875, "held_out_images": 64, "agreement_noise_images": 73.4375}
    lines = summary_text.text(SUMMARY | measured, tmp_path).splitlines()
    assert lines[3] == "agreement  96.9 % on 64 held-out synthetic images, 73.4 % on noise"
    assert lines[4].strip() == "is that good? noise_control=true also trains the student on noise, for comparison"
    assert lines[5].startswith("images ")
    measured |= {"agreement_probe": 88.0, "probe_images": 1200, "probe": "mine", "noise_agreement_held_out": 25.0}
    lines = summary_text.text(SUMMARY | measured | {"noise_agreement_probe": 90.0}, tmp_path).splitlines()
    assert lines[3].endswith(", 73.4 % on noise, 88.0 % on 1,200 pictures of mine")
    assert lines[4:6] == [
        "           the control: 25.0 % on the held-out images, 71.9 points below the student",
        "           the control: 90.0 % on the pictures, 2.0 points above the student, "
        "within twice the standard error of 1,200 images",
    ]
    assert lines[6].startswith("images "), "the control is there already"


def test_warnings_of_the_run_are_repeated(tmp_path):
    lines = summary_text.text(SUMMARY | {"warnings": ["at call 10, few are on target: raise a"]}, tmp_path).splitlines()
    assert lines[3] == "warning  at call 10, few are on target: raise a"


def test_a_student_that_was_not_evaluated_has_no_score(tmp_path):
    blind = SUMMARY | {"teacher_accuracy": None, "student_accuracy_last": None}
    lines = summary_text.text(blind, tmp_path).splitlines()
    assert lines[0] == "student  not evaluated: no labelled images were given"
    assert not any("%" in line for line in lines)
    lines = summary_text.text(blind | {"agreement_held_out": 82.8, "held_out_images": 64}, tmp_path).splitlines()
    assert lines[2].endswith("data.probe=DIR measures agreement on yours")
    assert lines[3].strip().startswith("is that good? noise_control=true")


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (7800, "2 h 10 min")])
def test_seconds_are_said_as_people_say_them(seconds, said):
    assert summary_text.duration(seconds) == said


@pytest.mark.parametrize(
    ("terminal", "flag", "is_json"), [(True, False, False), (True, True, True), (False, False, True)]
)
def test_json_where_a_program_reads(terminal, flag, is_json, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    printed = summary_text.printed(SUMMARY, tmp_path, flag)
    if is_json:
        assert json.loads(printed) == SUMMARY
    else:
        assert printed == summary_text.text(SUMMARY, tmp_path)
