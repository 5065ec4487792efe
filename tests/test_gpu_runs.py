"""Visits to a GPU that run the published protocol: what is run, what comes back, and what the next visit continues."""

import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from runs import ROOT

from fastdfkd_jax.cli import config_flags
from fastdfkd_jax.options import read
from fastdfkd_jax.training.config_checks import validate
from fastdfkd_jax.training.run_options import RunOptions
from fastdfkd_jax.training.supervised import Recipe

SCRIPT = ROOT / "benchmarks" / "gpu_runs.sh"
# A stand-in for Python. It notes what it is asked to run, and leaves what such a run leaves. The run that
# $FAILS names fails, and the one of $STOPS stops at first. A run that continues is noted with its checkpoint's sum.
STAND_IN = """#!/bin/sh
for word; do folder=$word; done
found=$(cat "$folder"/checkpoints/*/state 2>/dev/null | cksum)
printf '%s\\t' "$@" "$found" >> "$ASKED"
echo >> "$ASKED"
case $folder in
  *$FAILS) echo 'what it did' >&2; echo 'error: no GPU' >&2; exit 2 ;;
  *$STOPS)
    [ -e "$folder/checkpoints" ] || {
      mkdir -p "$folder/checkpoints/30" "$folder/checkpoints/40" "$folder/pool" "$folder/events"
      echo '{"config": {}}' > "$folder/config.json"
      head -c 300000 /dev/urandom > "$folder/checkpoints/40/state"
      touch "$folder/checkpoints/30/old" "$folder/pool/000000.npz" "$folder/events/large" "$folder/.saved"
      echo 'stopped by SIGTERM' >&2
      exit 0
    } ;;
esac
echo '{}' > "$folder/config.json"
touch "$folder/teacher.safetensors" "$folder/student.safetensors"
mkdir -p "$folder/images"
touch "$folder/images/000010.png" "$folder/images/000020.png"
echo '{"epoch": 200}'
"""
SHORT = {"MINUTES": 1, "LEAST": 0}  # too short for runs that cannot come back
TEACHER, FAST5 = "cifar10-wrn40_2-teacher", "cifar10-wrn40_2-wrn16_1-fast5/seed0"


class Visits:
    """Successive visits, each to a new machine."""

    def __init__(self, folder: pathlib.Path, python: str):
        self.folder, self.number = folder, 0
        self.python = folder / "python"
        self.python.write_text(python)
        self.python.chmod(0o755)
        self.data = folder / "data" / "cifar10" / "3.0.2"
        self.data.mkdir(parents=True)
        for number in range(4):
            (self.data / f"cifar10-train.array_record-{number:05}-of-00004").touch()

    @property
    def out(self) -> pathlib.Path:
        """Files that came back from the last visit."""
        return self.folder / f"out{self.number}"

    def environment(self, **settings) -> dict[str, str]:
        """Of the next visit, which is given what came back last."""
        kept = {"KEPT": str(self.out)} if self.number else {}
        self.number += 1
        new = {"OUT": self.out, "WORK": self.folder / f"work{self.number}", "DATA": self.folder / "data"}
        new |= {"PYTHON": self.python, "ASKED": self.folder / f"asked{self.number}", "MINUTES": 60}
        new = {"FAILS": "nothing", "STOPS": "nothing", **kept, **new, **settings}
        return {**os.environ, **{name: str(value) for name, value in new.items()}}

    def visit(self, *arguments, **settings):
        """A whole visit: its process, and the arguments of each run."""
        environment = self.environment(**settings)
        done = subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False)
        asked = pathlib.Path(environment["ASKED"])
        lines = asked.read_text().splitlines() if asked.exists() else []
        return done, [line.split("\t")[:-1] for line in lines]

    def log(self) -> list[str]:
        """Lines that the last visit printed."""
        return (self.out / "log.txt").read_text().splitlines()

    def back(self) -> list[str]:
        """All that its archives hold."""
        names = []
        for archive in ("finished", "state"):
            data = b"".join(path.read_bytes() for path in sorted(self.out.glob(f"{archive}.tar.gz.*")))
            if data:
                done = subprocess.run(["tar", "-tz"], input=data, capture_output=True, check=True)
                names += done.stdout.decode().split()
        return names


@pytest.fixture
def visits(tmp_path) -> Visits:
    return Visits(tmp_path, STAND_IN)


def workdir(words: list[str]) -> str:
    """The run's name."""
    return words[-2].partition("/runs/")[2]


def test_every_run_of_the_protocol_is_begun_once_and_its_config_builds(visits, monkeypatch):
    done, asked = visits.visit()
    assert done.returncode == 0, done.stderr
    names = [workdir(words) for words in asked]
    assert names[:3] == [TEACHER, FAST5, "cifar10-wrn40_2-wrn16_1-fast10/seed0"], "what matters most comes first"
    assert len(names) == len(set(names)) == 17
    assert [name for name in names if "wrn16_1-fast" in name] == names[1:7]
    for words in asked:
        module, arguments = words[1], words[2:-1]
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        config, _ = config_flags.parse(["program", *arguments], "run", "")
        if module == "fastdfkd_jax.pretrain":
            assert Recipe(**config.recipe).epochs == 200
            continue
        assert module == "fastdfkd_jax.main"
        validate(config)
        options = read(RunOptions, config)
        assert options.teacher.checkpoint.endswith(f"{TEACHER}/teacher.safetensors")
        assert options.data.dir == str(visits.folder / "data")
        assert f"seed{options.seed}" == pathlib.Path(workdir(words)).name
        if options.method.name in ("kd", "scratch"):
            assert options.transfer.dir == options.data.dir
    # All came back, so nothing is left to do.
    done, asked = visits.visit()
    assert (done.returncode, asked) == (0, [])
    assert visits.log() == [f"{name}: finished before" for name in names]
    record = f"runs/{FAST5}"
    expected = {"summary.json", "config.json", "student.safetensors", "run.log", "images/000020.png"}
    assert {f"{record}/{name}" for name in expected} <= set(visits.back())
    assert f"{record}/images/000010.png" not in visits.back()


def test_what_needs_a_missing_teacher_waits_in_one_line_and_a_failure_is_one_line(visits):
    done, asked = visits.visit(FAILS=TEACHER)
    assert done.returncode == 1
    assert [workdir(words) for words in asked] == [TEACHER]
    assert visits.log()[:2] == [f"{TEACHER}: ended with status 2: error: no GPU", f"{FAST5}: waits for its teacher"]
    assert visits.back() == [f"runs/{TEACHER}/run.log"]
    done, asked = visits.visit(FAILS=FAST5)
    assert done.returncode == 1
    assert len(asked) == 17, "a failed run stops nothing"


def test_what_needs_training_data_is_left_out_where_they_are_not_whole(visits):
    visits.visit(FAILS="seed*")
    next(visits.data.glob("*-00002-of-*")).unlink()
    done, asked = visits.visit(NEEDS=1)
    assert done.returncode == 0
    assert asked
    assert all("-fast" in workdir(words) for words in asked)
    name = "cifar10-wrn40_2-wrn16_1-kd/seed0"
    assert f"{name}: left out, as DATA lacks files of the training split" in visits.log()


def test_a_run_that_cannot_come_back_is_begun_only_where_it_is_expected_to_end(visits):
    _, asked = visits.visit(MINUTES=5, NEEDS=6)
    assert [workdir(words).split("-")[-1] for words in asked] == ["teacher", *3 * ("kd/seed0", "scratch/seed0")]
    not_begun = [line for line in visits.log() if line.startswith(FAST5)]
    assert re.fullmatch(r".*: not begun, as it needs some 360 seconds and 2\d\d are left", not_begun[0])
    _, asked = visits.visit(MINUTES=5, NEEDS=6, MORE=3)
    assert len(asked) == 17 - 7, "another call on the same machine can end them"


def test_what_a_run_takes_is_measured(visits):
    """By one that has made 100 of its 200 calls with KD after 100 seconds: twice that and a tenth."""
    work = visits.folder / "work"
    kind = FAST5.partition("/")[0]
    folder = work / "runs" / FAST5
    (folder / "checkpoints" / "120").mkdir(parents=True)
    (folder / "seconds").write_text("100\n")
    (folder / "config.json").write_text('{\n "calls": 220,\n "warmup_calls": 20\n}\n')
    (folder / "metrics.jsonl").write_text('{"call": 120, "kd/loss": 1.0}\n')
    visits.visit(WORK=work, MINUTES=3, NEEDS=3, FAILS=FAST5)
    expected = work / "expected" / kind
    assert 220 <= int(expected.read_text()) <= 260
    # By one that has ended; and what was measured is what the next visit expects, on another machine too.
    visits.visit(WORK=work, MINUTES=4, FAILS="fast5/seed[12]")
    assert 110 <= int(expected.read_text()) <= 150
    _, asked = visits.visit(MINUTES=2)
    assert not asked
    assert re.search(r"fast5/seed1: not begun, as it needs some 1\d\d seconds and 7", "\n".join(visits.log()))


def test_an_unfinished_run_comes_back_in_parts_and_continues_from_its_newest_checkpoint(visits):
    first, _ = visits.visit(STOPS=TEACHER, PART_BYTES=100_000)
    assert first.returncode == 0
    assert re.fullmatch(rf"{TEACHER}: stopped after \d seconds: stopped by SIGTERM", visits.log()[0])
    parts = sorted(visits.out.glob("state.tar.gz.*"))
    assert [path.name[-2:] for path in parts] == ["00", "01", "02", "03"]
    assert max(path.stat().st_size for path in visits.out.iterdir()) <= 100_000
    assert not list(visits.out.glob(".*")), "whatever lies there comes back"
    names = [name.removeprefix(f"runs/{TEACHER}/") for name in visits.back()]
    assert {"checkpoints/40/state", "pool/000000.npz", "config.json", ".saved", "seconds"} <= set(names)
    assert not {"checkpoints/30/old", "events/large"} & set(names)
    state = visits.folder / "work1" / "runs" / TEACHER / "checkpoints" / "40" / "state"
    expected = subprocess.run(["cksum"], input=state.read_bytes(), capture_output=True, check=True).stdout.decode()
    _, asked = visits.visit(STOPS=TEACHER, **SHORT)
    assert (workdir(asked[0]), asked[0][-1]) == (TEACHER, expected.strip())
    assert not list(visits.out.glob("state.tar.gz.*"))


def test_what_cannot_come_back_is_said_and_stays_for_another_call_on_that_machine(visits):
    visits.visit(STOPS=TEACHER, MOST_BYTES=200_000)
    work = visits.folder / "work1"
    place = work / "runs" / TEACHER
    assert visits.log()[-1] == f"{TEACHER}: its state of 0 MB cannot come back; only this machine has it, in {place}"
    assert not list(visits.out.glob("state.tar.gz.*"))
    _, asked = visits.visit(STOPS=TEACHER, WORK=work, **SHORT)
    assert workdir(asked[0]) == TEACHER
    assert not asked[0][-1].endswith(" 0"), "it has its checkpoint"


def test_mistakes_are_one_line(visits, tmp_path):
    visits.visit(STOPS=TEACHER, PART_BYTES=100_000)
    next(visits.out.glob("state.tar.gz.01")).unlink()
    for expected, arguments, settings in (
        ("the state archive in KEPT=.* is damaged or lacks a part", [], {}),
        ("no cifar10 in DATA=.*nowhere", [], {"DATA": tmp_path / "nowhere"}),
        ("KEPT=.*nowhere is no folder", [], {"KEPT": tmp_path / "nowhere"}),
        ("expected a number of minutes, found 'soon'", [], {"MINUTES": "soon"}),
        ("expected nothing or --rehearse, found --rehears", ["--rehears"], {}),
    ):
        settings = {"KEPT": visits.folder / "out1", **settings}
        done, asked = visits.visit(*arguments, **settings)
        assert (done.returncode, asked) == (2, [])
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert re.search(expected, done.stderr), done.stderr


def test_a_visit_that_is_asked_to_end_stops_its_run_and_packs(tmp_path):
    slow = """#!/bin/sh
for word; do folder=$word; done
mkdir -p "$folder/checkpoints/1"
touch "$folder/checkpoints/1/state"
trap 'echo stopped >&2; exit 0' TERM
touch "$ASKED"
while :; do sleep 0.05; done
"""
    visits = Visits(tmp_path, slow)
    stopped_after(visits, lambda: (tmp_path / "asked1").exists())
    assert re.fullmatch(rf"{TEACHER}: stopped after \d seconds: stopped", visits.log()[0])
    assert f"runs/{TEACHER}/checkpoints/1/state" in visits.back()
    # The end of its minutes stops a run as well.
    done, _ = visits.visit(MINUTES="0.07", RESERVE=2, LEAST=0)
    assert done.returncode == 0
    assert re.fullmatch(rf"{TEACHER}: stopped after \d seconds: stopped", visits.log()[0])
    # A run that would have no second is not begun: a limit of 0 seconds would be none.
    done, _ = visits.visit(MINUTES="0.034", RESERVE=2, LEAST=0)
    assert done.returncode == 0
    assert visits.log()[0] == f"{TEACHER}: not begun, as it needs some 1 seconds and 0 are left"


def stopped_after(visits: Visits, reached, *arguments, **settings) -> None:
    """A visit that is sent SIGTERM as soon as something is reached."""
    process = subprocess.Popen([SCRIPT, *arguments], env=visits.environment(**settings))
    while not reached():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0


@pytest.mark.slow
def test_a_run_that_was_cut_short_ends_in_the_next_visit_as_without_a_break(tmp_path):
    """Without PyTorch, whose import would take longer than these runs."""
    (tmp_path / "sitecustomize.py").write_text("import sys\n\nsys.modules['torch'] = None\n")
    visits = Visits(tmp_path, f'#!/bin/sh\nPYTHONPATH="{tmp_path}:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    metrics = tmp_path / "work1" / "runs" / "digits-fast2" / "seed0" / "metrics.jsonl"
    stopped_after(visits, lambda: metrics.exists() and b"eval/" in metrics.read_bytes(), "--rehearse")
    assert [line.split(" after")[0] for line in visits.log()] == [
        "digits-teacher: finished",
        "digits-fast2/seed0: stopped",
    ]
    done, _ = visits.visit("--rehearse")
    assert done.returncode == 0, done.stdout
    log = tmp_path / "work2" / "runs" / "digits-fast2" / "seed0" / "run.log"
    assert "resumed at call" in log.read_text()
    # The same without a break, with the same teacher.
    whole = tmp_path / "work4"
    (whole / "runs").mkdir(parents=True)
    (whole / "runs" / "digits-teacher").symlink_to(tmp_path / "work2" / "runs" / "digits-teacher")
    found = outcome(tmp_path / "work2")
    done, _ = visits.visit("--rehearse")
    assert visits.log() == ["digits-teacher: finished before", "digits-fast2/seed0: finished before"]
    visits.visit("--rehearse", WORK=whole, KEPT="")
    assert visits.log()[0] == "digits-teacher: finished before"
    assert outcome(whole) == found


def outcome(work: pathlib.Path) -> tuple[float, str]:
    """A rehearsal's accuracy, and the digest of its student."""
    folder = work / "runs" / "digits-fast2" / "seed0"
    accuracy = json.loads((folder / "summary.json").read_text())["student_accuracy_last"]
    return accuracy, hashlib.sha256((folder / "student.safetensors").read_bytes()).hexdigest()
