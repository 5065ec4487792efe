"""A comparison from its config to its tables: a real one in small that is stopped, shared and recorded; overrides."""

import fcntl
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from runs import ROOT, tiny_config

from fastdfkd_jax.compare import __main__ as compare
from fastdfkd_jax.compare import comparison, run_folders
from fastdfkd_jax.configs.compare import parts
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.storage.files import lock_folder
from fastdfkd_jax.training import one_run

LONG = "calls=600, warmup_calls=599, eval_every=600, checkpoint_every=600, images_every=600"
SECTION = "Digits, WRN-16-1 → WRN-10-1"
# A compare config in small, of controls, which compile in a moment; runs of all tests share what they compile.
CONFIG = """
    from fastdfkd_jax.configs.compare import parts
    from runs import tiny_config

    def get_config(variant=None):
        def made(**changes):
            return tiny_config(method__name="noise", compilation_cache={cache!r}, **changes)

        runs = {{
            "one": parts.run("one", made({changes})),
            "two": parts.run("two", made(kd__lr=0.02), seeds=(0, 1)),
            "refused": parts.run("refused", made(parallel__batch_devices=2, parallel__cpu_devices=1)),
        }}
        names = (variant or "one,two").split(",")
        rows = [parts.row({section!r}, name, name, paper=(88.9, 0.08), is_reference=name == "one") for name in names]
        table = parts.table("digits", rows, caption="Digits.")
        return parts.comparison(runs=[runs[name] for name in names], tables=[table])
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compare")


def config_file(places: Path, name: str = "digits", changes: str = "") -> Path:
    path = places / f"{name}.py"
    text = textwrap.dedent(CONFIG).format(cache=str(places / "cache"), changes=changes, section=SECTION)
    path.write_text(f"import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n{text}")
    return path


def command(*arguments) -> int:
    return compare.command(["compare", *map(str, arguments)])


def process(*arguments) -> subprocess.Popen:
    words = [sys.executable, "-m", "fastdfkd_jax.compare", *map(str, arguments)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, places):
    """Workdir, standard output and standard error of a whole comparison, one for all processes of the suite."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished comparison"
    said = shared / "said.json"
    shared.mkdir(exist_ok=True)
    with open(shared / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            words = ("--config", config_file(places), "--workdir", shared / "workdir", "--config.jobs=2")
            done = process(*words, "--config.estimate=false")
            out, err = done.communicate()
            assert done.returncode == 0, err
            said.write_text(json.dumps([out, err]))
    workdir = tmp_path_factory.mktemp("finished") / "workdir"
    return Path(shutil.copytree(shared / "workdir", workdir)), *json.loads(said.read_text())


def no_process(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("no process was to be started")

    monkeypatch.setattr(subprocess, "Popen", refuse)


# The whole of it.


def test_the_plan_comes_first(finished):
    _, out, _ = finished
    assert out.startswith(
        "run  seed  state      hours\n"
        "one     0  to do          -\n"
        "two     0  to do          -\n"
        "two     1  to do          -\n"
        "3 runs: 0 finished, 0 begun, 3 to do; their hours are not known: dry_run=true estimate=true measures them\n"
    )


def test_every_run_has_a_folder_and_a_process_of_its_own(finished):
    workdir, _, err = finished
    found = sorted(str(path.parent.relative_to(workdir)) for path in workdir.rglob("summary.json"))
    assert found == ["runs/one/seed0", "runs/two/seed0", "runs/two/seed1"]
    assert json.loads((workdir / "runs/two/seed1/summary.json").read_text())["seed"] == 1
    assert re.search(r"two seed 1: finished in 0\.\d\d hours, student 15.62 %; \d of 3", err)
    logs = (workdir / "logs" / "one-seed0.log").read_text()
    assert "call 3: 24 images" in logs


def test_times_are_of_all_that_a_run_did(finished):
    workdir, _, _ = finished
    summary = json.loads((workdir / "runs/one/seed0/summary.json").read_text())
    parts_of = ("synthesis", "distill", "compile", "evaluate")
    assert summary["total_seconds"] == pytest.approx(sum(summary[f"{name}_seconds"] for name in parts_of))


def test_tables_and_figure_are_written_and_printed(finished):
    workdir, out, _ = finished
    text = (workdir / "digits.md").read_text()
    assert out.endswith(f"{text}\n")
    accuracies = [
        json.loads(path.read_text())["student_accuracy_last"] for path in workdir.glob("runs/two/*/summary.json")
    ]
    row = next(line for line in text.splitlines() if line.startswith("| two "))
    assert f"| {sum(accuracies) / 2:.2f} ± " in row
    assert row.endswith(" | 88.90 | 0.08 |")
    assert text.startswith(f"**{SECTION}**\n")
    assert (workdir / "digits.csv").exists()
    assert (workdir / "digits.tex").exists()
    if importlib.util.find_spec("matplotlib") is not None:
        assert (workdir / "digits-figure1.png").exists()
        assert (workdir / "digits-figure1.svg").exists()


def test_the_same_command_finds_everything_done(finished, places, monkeypatch, capsys):
    workdir, _, _ = finished
    before = (workdir / "digits.md").read_bytes()
    no_process(monkeypatch)
    assert command("--config", config_file(places), "--workdir", workdir) == 0
    assert "3 runs: 3 finished, 0 begun, 0 to do\n" in capsys.readouterr().out
    assert (workdir / "digits.md").read_bytes() == before


def test_another_table_shares_the_runs_by_name(finished, places, monkeypatch):
    workdir, _, _ = finished
    no_process(monkeypatch)
    path = config_file(places, "other")
    path.write_text(path.read_text().replace('table("digits"', 'table("other"'))
    assert command("--config", f"{path}:one", "--workdir", workdir) == 0
    assert "| one | teacher only |" in (workdir / "other.md").read_text()


def test_a_name_with_another_config_is_refused(finished, places):
    workdir, _, _ = finished
    path = config_file(places, "changed", changes="calls=4")
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.name != ".lock"}
    with pytest.raises(UserError, match=r"runs/one/seed0 holds a run of another configuration \(calls: 3 there, 4 now"):
        command("--config", path, "--workdir", workdir)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.name != ".lock"} == before


def test_a_workdir_is_used_by_one_comparison_at_a_time(finished, places):
    workdir, _, _ = finished
    with lock_folder(workdir), pytest.raises(UserError, match="in use by another run"):
        command("--config", config_file(places), "--workdir", workdir)


def test_records_alone_make_the_same_tables(finished, places, tmp_path, monkeypatch):
    workdir, _, _ = finished
    no_process(monkeypatch)
    document = tmp_path / "README.md"
    document.write_text("a\n<!-- results compare/digits -->\nold\n<!-- /results -->\nb\n")
    records, path = tmp_path / "results", config_file(places)
    words = ("--config", path, "--workdir", workdir, f"--config.record={records}", f"--config.into={document}")
    assert command(*words) == 0
    seed = records / "runs" / "two" / "seed1"
    assert sorted(path.name for path in seed.iterdir()) == ["config.json", "metrics.jsonl", "summary.json"]
    text = (workdir / "digits.md").read_text()
    assert document.read_text() == f"a\n<!-- results compare/digits -->\n{text}<!-- /results -->\nb\n"
    made = [f"digits{ending}" for ending in (".md", ".csv", ".tex")]
    for name in made:
        assert (records / name).read_bytes() == (workdir / name).read_bytes()
        (records / name).unlink()
    assert command("--config", path, "--workdir", records, "--config.tables_only=true") == 0
    for name in made:
        assert (records / name).read_bytes() == (workdir / name).read_bytes()
    words = ("--config", config_file(places, "changed", "calls=4"), "--workdir", records, "--config.tables_only=true")
    with pytest.raises(UserError, match="holds a run of another configuration"):
        command(*words)


def test_a_table_shows_the_seeds_that_are_asked_for(finished, places, monkeypatch):
    """A folder may hold more, for another comparison that shares the run."""
    workdir, _, _ = finished
    no_process(monkeypatch)
    words = ("--config", f"{config_file(places)}:two", "--workdir", workdir, "--config.tables_only=true")
    for seeds, n in (("", "2"), ("1", "1"), ("1,2", "1 of 2")):
        assert command(*words, f"--config.seeds={seeds}") == 0
        row = next(line for line in (workdir / "digits.md").read_text().splitlines() if line.startswith("| two "))
        assert row.split(" | ")[3] == n


def test_several_documents_are_filled_at_once(finished, places, tmp_path):
    workdir, _, _ = finished
    documents = [tmp_path / name for name in ("a.md", "b.md")]
    for document in documents:
        document.write_text("<!-- results compare/digits -->\n<!-- /results -->\n")
    into = ", ".join(map(str, documents))
    words = ("--config", config_file(places), "--workdir", workdir, "--config.tables_only=true")
    assert command(*words, f"--config.into={into}") == 0
    text = (workdir / "digits.md").read_text()
    for document in documents:
        assert document.read_text() == f"<!-- results compare/digits -->\n{text}<!-- /results -->\n"


def test_a_busy_machine_leaves_no_seconds_in_records(finished, places, tmp_path):
    workdir, _, _ = finished
    document = tmp_path / "README.md"
    document.write_text("<!-- results compare/digits -->\n<!-- /results -->\n")
    words = ("--config", config_file(places), "--workdir", workdir, f"--config.record={tmp_path}")
    assert command(*words, "--config.timed=false", f"--config.into={document}") == 0
    row = next(line for line in (tmp_path / "digits.md").read_text().splitlines() if line.startswith("| two "))
    assert row.split(" | ")[7:9] == ["not measured", "not measured"]
    assert row in document.read_text(), "a document has the records' table, not that of the runs"


def test_times_that_were_taken_apart_stand_in_their_place(finished, places, tmp_path):
    workdir, _, _ = finished
    words = ("--config", config_file(places), "--workdir", workdir, "--config.only=two")
    assert command(*words, "--config.time_all=true") == 0
    assert command(*words, f"--config.record={tmp_path}", "--config.timed=false") == 0
    (known,) = json.loads((workdir / "plan.json").read_text()).values()
    for seed in (0, 1):
        summary = json.loads((tmp_path / "runs" / "two" / f"seed{seed}" / "summary.json").read_text())
        parts_of = ("synthesis_seconds", "distill_seconds", "compile_seconds")
        assert [summary[name] for name in parts_of] == [known[name] for name in parts_of]
        assert summary["total_seconds"] == pytest.approx(sum(known[name] for name in parts_of))
    text = (tmp_path / "digits.md").read_text()
    assert "The runs shared their machine: seconds are those of each program, timed apart" in text
    row = next(line for line in text.splitlines() if line.startswith("| one "))
    assert row.split(" | ")[7:9] == ["not measured", "not measured"]


def test_a_document_without_a_place_is_refused(finished, places, tmp_path):
    workdir, _, _ = finished
    (tmp_path / "README.md").write_text("<!-- results -->\n<!-- /results -->\n")
    words = ("--config", config_file(places), "--workdir", workdir, "--config.tables_only=true")
    with pytest.raises(UserError, match="no place for the tables: expected the line <!-- results compare/digits -->"):
        command(*words, f"--config.into={tmp_path / 'README.md'}")
    with pytest.raises(UserError, match="cannot be read"):
        command(*words, f"--config.into={tmp_path / 'none.md'}")


def test_a_comparison_that_is_killed_or_stopped_goes_on(places, tmp_path):
    """SIGKILL takes the run along, which saves; SIGTERM is passed on and waited for; the third start ends it."""
    words = ("--config", f"{config_file(places, 'long', LONG)}:one", "--workdir", tmp_path, "--config.estimate=false")
    metrics = tmp_path / "runs" / "one" / "seed0" / "metrics.jsonl"

    first = process(*words)
    wait_for(lambda: metrics.exists() and metrics.stat().st_size > 0)
    first.kill()
    first.communicate()
    wait_for(lambda: is_free(tmp_path / "runs" / "one" / "seed0" / ".lock"))
    calls = last_call(metrics)

    second = process(*words)
    wait_for(lambda: last_call(metrics) > calls)
    second.send_signal(signal.SIGTERM)
    out, err = second.communicate()
    assert second.returncode == 0, err
    assert "one     0  begun" in out
    assert "stopped by SIGTERM, everything is saved; run the same command to continue" in err
    assert is_free(tmp_path / "runs" / "one" / "seed0" / ".lock"), "the run has ended"
    assert not (tmp_path / "runs" / "one" / "seed0" / "summary.json").exists()
    log = (tmp_path / "logs" / "one-seed0.log").read_text()
    assert log.count("checkpoint saved; run the same command to continue") == 2
    assert "resumed at call" in log

    assert "0 of 1" in (tmp_path / "digits.md").read_text()
    assert command(*words) == 0
    assert "0 of 1" not in (tmp_path / "digits.md").read_text()
    recorded = [json.loads(line)["call"] for line in metrics.read_text().splitlines()]
    assert recorded == sorted(recorded)
    assert recorded[-1] == 600


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.02)


def last_call(metrics: Path) -> int:
    lines = metrics.read_text().splitlines()[:-1]  # the last may be half written
    return json.loads(lines[-1])["call"] if lines else 0


def is_free(lock: Path) -> bool:
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def test_a_run_that_fails_does_not_stop_the_others(places, tmp_path, finished):
    shutil.copytree(finished[0] / "runs" / "one", tmp_path / "runs" / "one")
    words = ("--config", f"{config_file(places)}:refused,one", "--workdir", tmp_path, "--config.estimate=false")
    done = process(*words)
    out, err = done.communicate()
    assert done.returncode == 2, "a user can mend all that failed"
    reason = "2 devices asked for, found 1"
    assert f"failed: refused seed 0: {reason}" in err
    assert "Traceback" not in err
    rows = [line for line in out.splitlines() if line.startswith("| ")]
    assert rows[2].startswith("| refused | not measured | failed | 0 of 1, 1 failed |")
    assert rows[3].startswith("| one | teacher only | ")
    assert f"Failed: refused seed 0: {reason}" in (tmp_path / "digits.md").read_text()


def test_a_dry_run_measures_and_plans_only(places, finished, monkeypatch, tmp_path, capsys):
    shutil.copytree(finished[0] / "runs" / "two", tmp_path / "runs" / "two")
    words = ("--config", config_file(places), "--workdir", tmp_path, "--config.dry_run=true")
    assert command(*words) == 0
    out = capsys.readouterr().out
    assert re.search(r"one     0  to do       [\d.]+\ntwo     0  finished       -\n", out)
    assert "3 runs: 2 finished, 0 begun, 1 to do; about " in out
    (known,) = json.loads((tmp_path / "plan.json").read_text()).values()
    assert known["run"] == "one"
    assert known["synthesis_seconds"] > 0
    assert known["compile_seconds"] > 0
    assert not (tmp_path / "digits.md").exists()
    no_process(monkeypatch)
    assert command(*words) == 0
    assert capsys.readouterr().out == out, "what was measured is remembered"


def test_a_plan_needs_neither_teachers_nor_data(tmp_path, monkeypatch, capsys, caplog):
    no_process(monkeypatch)
    wanted = a_comparison(teachers__resnet20="", dry_run=True, only="a-fast,c-other")
    monkeypatch.setattr(compare.config_flags, "parse", lambda *_: (wanted, tmp_path / "run"))
    with caplog.at_level("INFO"):
        assert command() == 0
    assert re.findall(r"(\S+) +\d  to do +-\n", capsys.readouterr().out) == ["a-fast", "a-fast", "c-other"]
    reasons = [record.message for record in caplog.records if record.message.startswith("not measured: ")]
    assert [reason[14:32] for reason in reasons] == ["config.teachers.re", "config.other_data "], "each once"
    wanted.dry_run = False
    monkeypatch.setattr(compare.config_flags, "parse", lambda *_: (wanted, tmp_path / "refused"))
    with pytest.raises(UserError, match=r"config.teachers.resnet20 is not set"):
        command()
    assert not (tmp_path / "refused").exists()


# The config.


def a_comparison(**changes):
    """Two runs and a table of them, with overrides."""
    config = parts.comparison(
        runs=[
            parts.run("a-fast", tiny_config(), seeds=(0, 1), teacher="resnet20"),
            parts.run("b-kd", tiny_config(transfer__source="digits", data__source="digits")),
            parts.run("c-other", tiny_config(), other_data=True),
        ],
        tables=[parts.table("t", [parts.row("s", "B", "b-kd"), parts.row("s", "A", "a-fast")], caption="c")],
        teachers=["resnet20"],
    )
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config.lock()


def test_runs_and_rows_keep_their_order():
    found = comparison.read(a_comparison())
    assert list(found.runs) == ["a-fast", "b-kd", "c-other"]
    assert [row.label for row in found.tables[0].rows] == ["B", "A"]
    assert [table.name for table in found.tables_of("a-fast")] == ["t"]
    assert found.tables_of("c-other") == []


def test_seeds_and_names_are_chosen():
    found = comparison.read(a_comparison())
    assert [run.seeds for run in found.runs.values()] == [(0, 1), (0,), (0,)]
    assert found.runs["a-fast"].seeded(1).seed == 1
    found = comparison.read(a_comparison(seeds="3, 4", only="*-kd,a-fast"))
    assert [run.seeds for run in found.runs.values()] == [(3, 4)] * 3
    assert found.chosen == ("a-fast", "b-kd")
    assert comparison.read(a_comparison(only="!*-kd")).chosen == ("a-fast", "c-other")
    assert comparison.read(a_comparison(only="!c*, *-kd, c-*")).chosen == ("b-kd",)


def test_places_reach_the_runs_that_need_them():
    config = tiny_config(data__source="tfds:cifar10", transfer__source="tfds:cifar10")
    other = tiny_config(data__source="tfds:cifar10")
    runs = [parts.run("kd", config, teacher="r"), parts.run("other", other, other_data=True)]
    made = parts.comparison(runs=runs, tables=[], teachers=["r"])
    made.data_dir, made.other_data, made.other_data_dir, made.teachers.r = "/d", "folder:p", "/o", "/t.pth"
    kd, other = (run.config for run in comparison.read(made).runs.values())
    assert (kd.data.dir, kd.transfer.source, kd.transfer.dir, kd.teacher.checkpoint) == (
        "/d",
        "tfds:cifar10",
        "/d",
        "/t.pth",
    )
    assert (other.data.dir, other.transfer.source, other.transfer.dir) == ("/d", "folder:p", "/o")
    assert other.teacher.checkpoint == tiny_config().teacher.checkpoint


def test_a_teacher_must_be_given_and_stay_the_same(tmp_path):
    def run(path):
        return comparison.read(a_comparison(teachers__resnet20=str(path))).runs["a-fast"]

    with pytest.raises(UserError, match=r"config.teachers.resnet20 is not set.*only='!PATTERN'"):
        comparison.require_given([run("")])
    with pytest.raises(UserError, match=r"config.teachers.resnet20: .*none.pth does not exist"):
        comparison.require_given([run(tmp_path / "none.pth")])
    with pytest.raises(UserError, match=r"config.other_data is not set.* run c-other .*only='!c-other'"):
        comparison.require_given([comparison.read(a_comparison()).runs["c-other"]])
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_text(name)
    run_folders.require_same_teacher(tmp_path, run(tmp_path / "a.pth"))
    run_folders.require_same_teacher(tmp_path, run(tmp_path / "a.pth"))
    with pytest.raises(UserError, match=r"runs/a-fast holds runs with a teacher other than .*b.pth"):
        run_folders.require_same_teacher(tmp_path, run(tmp_path / "b.pth"))


def test_records_of_other_pictures_name_the_key_to_give(tmp_path):
    recorded = comparison.read(a_comparison(other_data="npz:theirs.npz")).runs["c-other"]
    place = run_folders.folder(tmp_path, "c-other", 0)
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps({"identity": one_run.identity_of(recorded.seeded(0))}))
    assert run_folders.state(tmp_path, recorded, 0) == run_folders.BEGUN
    without = comparison.read(a_comparison()).runs["c-other"]
    with pytest.raises(UserError, match=r"another configuration .*: give other_data=npz:theirs.npz; use another"):
        run_folders.state(tmp_path, without, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": "0,x"}, "config.seeds must be different whole numbers, such as 0,1,2, found '0,x'"),
        ({"seeds": "1,1"}, "config.seeds must be"),
        ({"only": "a-fast,d*"}, r"config.only: no run matches 'd\*': the nearest are b-kd, a-fast, c-other"),
        ({"only": "!d*"}, r"config.only: no run matches 'd\*'"),
        ({"only": "x" * 300}, r"no run matches 'x{19} \.\.\. x{36}': the nearest are "),
    ],
)
def test_mistakes_are_user_errors(changes, message):
    with pytest.raises(UserError, match=message):
        comparison.read(a_comparison(**changes))


def test_a_config_that_cannot_work_names_its_run():
    config = a_comparison().unlock()
    config.runs["b-kd"].config.kd.batch = 0
    with pytest.raises(UserError, match=r"run b-kd: config\.kd\.batch must be at least 1, found 0"):
        comparison.read(config)
    with pytest.raises(UserError, match=r"config.runs is missing: expected a config like those in configs/compare/"):
        comparison.read(tiny_config())
    made = parts.table("t", [parts.row("s", "A", "unknown")], caption="")
    with pytest.raises(UserError, match="table t, row 'A': unknown run 'unknown'"):
        comparison.read(parts.comparison(runs=[], tables=[made]))
    with pytest.raises(UserError, match="cannot name a folder"):
        comparison.read(parts.comparison(runs=[parts.run("a/b", tiny_config())], tables=[]))
    with pytest.raises(UserError, match="two different runs are called 'a'"):
        parts.comparison(runs=[parts.run("a", tiny_config()), parts.run("a", tiny_config(calls=4))], tables=[])


def test_a_user_error_is_one_line_with_exit_status_2(places, tmp_path):
    done = process("--config", config_file(places), "--workdir", tmp_path, "--config.only=nothing")
    out, err = done.communicate()
    assert (done.returncode, out) == (2, "")
    assert err == "error: config.only: no run matches 'nothing': the nearest are one, two\n"
