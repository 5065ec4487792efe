"""Tables of recorded runs."""

import json

import numpy as np
import pytest

from fastdfkd_jax import report
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage import image_grid, markdown
from fastdfkd_jax.training import run_records

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
    row = run_records.table(tmp_path).splitlines()[2]
    # Mean of 60 and 64; their deviation 2.83 over the root of 2 is 2.
    assert "| 62.00 ± 2.00 |" in row
    assert "| 0, 1 |" in row


def test_what_was_not_measured_is_said(tmp_path):
    record(tmp_path / "short" / "seed0")
    row = run_records.table(tmp_path).splitlines()[2]
    assert row.startswith("| short | resnet20 → wrn16_1 | 0 | 91.73 | 60.00 | 61.00 | not measured | 7,680 | 600 |")
    assert row.endswith("| not measured |")


def test_a_document_keeps_everything_but_the_table():
    text = "before\n<!-- results -->\nold\n<!-- /results -->\nafter\n"
    assert markdown.insert(text, "new\n") == "before\n<!-- results -->\nnew\n<!-- /results -->\nafter\n"


def test_a_finished_run_is_recorded_without_the_places_of_a_machine(tmp_path, capsys):
    workdir = tmp_path / "run"
    record(workdir)
    config = {"teacher": {"checkpoint": "/home/me/teacher.th"}, "data": {"dir": "~/data", "source": "tfds:cifar10"}}
    (workdir / "config.json").write_text(json.dumps({"config": config, "identity": {}}))
    (workdir / "metrics.jsonl").write_text("{}\n")
    image_grid.write_grid(workdir / "images" / "000010.png", np.zeros((2, 4, 4, 1), np.uint8))
    image_grid.write_grid(workdir / "images" / "000020.png", np.ones((3, 4, 4, 1), np.uint8))
    results = tmp_path / "results"
    report.main(["report", str(results), "--add", str(workdir), "--as", "short/seed0"])
    assert "| short |" in capsys.readouterr().out
    kept = results / "short" / "seed0"
    assert sorted(path.name for path in kept.iterdir()) == [
        "config.json",
        "images.png",
        "metrics.jsonl",
        "summary.json",
    ]
    assert json.loads((kept / "config.json").read_text()) == {
        "teacher": {"checkpoint": "teacher.th"}, "data": {"dir": "data", "source": "tfds:cifar10"}
    }  # fmt: skip
    assert json.loads((kept / "summary.json").read_text()) == SUMMARY
    report.main(["report", str(results), "--add", str(workdir), "--as", "short/seed0", "--untimed"])
    assert "synthesis_seconds" not in json.loads((kept / "summary.json").read_text())
    assert (kept / "images.png").read_bytes() == (workdir / "images" / "000020.png").read_bytes()
    image_grid.write_grid(workdir / "images.png", np.zeros((1, 4, 4, 1), np.uint8))
    report.main(["report", str(results), "--add", str(workdir), "--as", "short/seed0"])
    assert (kept / "images.png").read_bytes() == (workdir / "images.png").read_bytes()


def test_mistakes_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="holds no records"):
        run_records.table(tmp_path)
    with pytest.raises(UserError, match="no place for the table"):
        markdown.insert("nothing", "new\n")
    with pytest.raises(UserError, match="holds no finished run"):
        run_records.add(tmp_path, tmp_path / "record")
    with pytest.raises(UserError, match="--add needs the place of the record: give --as"):
        report.main(["report", str(tmp_path), "--add", str(tmp_path)])
    with pytest.raises(UserError, match=r"unrecognized arguments: --onto: see fastdfkd report --help"):
        report.main(["report", str(tmp_path), "--onto"])
    with pytest.raises(UserError, match=r"none\.md cannot be read"):
        markdown.insert_all(tmp_path / "none.md", {"": "new\n"})
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "summary.json").write_text("{")
    with pytest.raises(UserError, match="not the summary"):
        run_records.table(tmp_path)
