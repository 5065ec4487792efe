"""Processes of a comparison, with small scripts in place of runs: how they end, how many at once, and how they stop."""

import os
import signal
import sys
import textwrap
import threading
import time

import pytest

from fastdfkd_jax.cli import signals
from fastdfkd_jax.cli.signals import Stop
from fastdfkd_jax.compare import jobs
from fastdfkd_jax.compare.jobs import Task
from fastdfkd_jax.errors import UserError


@pytest.fixture
def child(monkeypatch):
    """Puts a script in the place of the child; `request` is what it was asked."""

    def use(script):
        head = "import os, pickle, signal, sys, time\nrequest = pickle.load(sys.stdin.buffer)\n"
        monkeypatch.setattr(jobs, "COMMAND", [sys.executable, "-c", head + textwrap.dedent(script)])

    return use


def run(tmp_path, count=1, cores=((),), stop=None, on_start=lambda task: None):
    """Outcomes by task."""
    tasks = [Task(f"t{i}", "run", {"number": i}, tmp_path / f"t{i}", tmp_path / "logs" / f"t{i}") for i in range(count)]
    ended = {}
    jobs.run_all(tasks, cores, stop or Stop(), on_start, lambda task, outcome: ended.update({task.name: outcome}))
    return ended


@pytest.mark.parametrize(
    ("script", "kind", "answer", "reason"),
    [
        ("print('noise'); print('{\"a\": 1}')", jobs.FINISHED, {"a": 1}, ""),
        ("pass", jobs.STOPPED, None, ""),
        ("print('error: no such file', file=sys.stderr); sys.exit(2)", jobs.REFUSED, None, "no such file"),
        ("raise ValueError('a bug')", jobs.CRASHED, None, "ValueError: a bug"),
        ("sys.exit(7)", jobs.CRASHED, None, "exit status 7"),
        ("os.kill(os.getpid(), signal.SIGKILL)", jobs.CRASHED, None, "killed by SIGKILL"),
    ],
)
def test_how_a_process_ends(child, tmp_path, script, kind, answer, reason):
    child(script)
    outcome = run(tmp_path)["t0"]
    assert (outcome.kind, outcome.answer, outcome.reason) == (kind, answer, reason)


def test_a_process_has_a_group_of_its_own_in_the_session_of_its_parent(child, tmp_path):
    child("import json; print(json.dumps([os.getpgrp() == os.getpid(), os.getsid(0)]))")
    assert run(tmp_path)["t0"].answer == [True, os.getsid(0)]


def test_one_that_fails_does_not_stop_the_others_and_logs_are_kept(child, tmp_path):
    child("""
        print(f"says {request['config']['number']}", file=sys.stderr)
        if request["config"]["number"] == 0: sys.exit(1)
        print(request["config"]["number"])
    """)
    ended = run(tmp_path, count=3)
    assert [ended[name].kind for name in ("t0", "t1", "t2")] == ["crashed", "finished", "finished"]
    assert ended["t0"].reason == "says 0"
    assert ended["t2"].answer == 2
    run(tmp_path, count=1)
    assert (tmp_path / "logs" / "t0").read_text() == "says 0\n" * 2


def test_so_many_at_once_each_with_its_cores(child, tmp_path):
    child("""
        print(list(request["cores"]))
        time.sleep(0.3)
    """)
    active, most = set(), []

    def start(task):
        active.add(task.name)
        most.append(len(active))

    ended = {}

    def end(task, outcome):
        active.discard(task.name)
        ended[task.name] = outcome.answer

    tasks = [Task(f"t{i}", "run", {}, tmp_path, tmp_path / f"t{i}") for i in range(5)]
    jobs.run_all(tasks, [(0,), (1,)], Stop(), start, end)
    assert max(most) == 2
    assert {tuple(cores) for cores in ended.values()} == {(0,), (1,)}
    assert list(ended)[:2] in (["t0", "t1"], ["t1", "t0"])


def test_a_request_to_stop_is_passed_on_and_waited_for(child, tmp_path):
    child("""
        def save(*_):
            time.sleep(0.3)
            open(request["workdir"], "w").write("saved")
            sys.exit()

        signal.signal(signal.SIGHUP, save)  # the signal that the parent received
        open(request["workdir"] + ".ready", "w")
        time.sleep(60)
    """)

    def ask():
        while not (tmp_path / "t0.ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGHUP)

    asking = threading.Thread(target=ask)
    # A suite that runs under nohup was told to ignore the signal.
    before = signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        with signals.deferred() as stop:
            asking.start()
            ended = run(tmp_path, count=3, stop=stop)
            asking.join()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert list(ended) == ["t0"], "no more are started"
    assert ended["t0"].kind == jobs.STOPPED
    assert (tmp_path / "t0").read_text() == "saved"


def test_the_newest_line_of_a_log_is_told_once(child, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "_TELL_SECONDS", 0.05)
    told = []
    child("""
        for line in ("12:00:01 call 1", "12:00:02 call 2\\n12:00:02 (call: what it is)"):
            print(line, file=sys.stderr, flush=True)
            time.sleep(1)
    """)
    task = Task("t0", "run", {"number": 0}, tmp_path / "t0", tmp_path / "log")
    ended = lambda *_: None  # noqa: E731
    jobs.run_all([task], [()], Stop(), ended, ended, lambda task, line: told.append((task.name, line)))
    assert told == [("t0", "call 1"), ("t0", "call 2")]


@pytest.mark.parametrize("number", signals.ASKING)
def test_one_that_was_stopped_before_it_could_save_is_stopped_too(child, tmp_path, number):
    default = f"signal.signal({int(number)}, signal.SIG_DFL)"
    child(f"{default}; os.kill(os.getpid(), {int(number)}); time.sleep(60)")
    assert run(tmp_path)["t0"].kind == jobs.STOPPED


def test_an_error_of_ours_leaves_no_process(child, tmp_path):
    child("open(request['workdir'] + '.pid', 'w').write(str(os.getpid())); time.sleep(60)")

    def start(task):
        if task.name == "t1":
            while not (tmp_path / "t0.pid").exists() or not (tmp_path / "t0.pid").read_text():
                time.sleep(0.02)
            raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        run(tmp_path, count=2, cores=[(), ()], on_start=start)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "t0.pid").read_text()), 0)


def test_shares_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5, 6}, raising=False)
    assert jobs.shares(1) == [(0, 1, 2, 5, 6)]
    assert jobs.shares(2) == [(0, 1), (2, 5)]
    for count in (0, 6):
        with pytest.raises(UserError, match=rf"config.jobs must be from 1 to 5, .* found {count}"):
            jobs.shares(count)
