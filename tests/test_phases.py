"""The lines about phases: after ten silent seconds, before each compilation, and the seconds of the last time."""

import json
import logging

import pytest

from fastdfkd_jax.training import compile_times, phases
from fastdfkd_jax.training.phases import Phases


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fastdfkd_jax" / "compile_seconds.json"


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_phase_is_named_after_ten_silent_seconds_and_then_each_minute():
    clock = Clock()
    watched, said = Phases(clock), {}
    watched.enter("synthesis")
    for clock.now in range(200):
        if line := watched.due():
            said[clock.now] = line
            watched.heard()
    assert said == {
        10: "synthesis (10 s so far)",
        70: "synthesis (1 min 10 s so far)",
        130: "synthesis (2 min 10 s so far)",
        190: "synthesis (3 min 10 s so far)",
    }


def test_other_lines_postpone_it_and_a_detail_does_not():
    clock = Clock()
    watched = Phases(clock)
    watched.enter("distillation", "step 0 of 8")
    clock.now = 9
    watched.heard()
    clock.now = 18
    assert watched.due() == ""
    watched.enter("distillation", "step 4 of 8")
    clock.now = 19
    assert watched.due() == "distillation, step 4 of 8 (19 s so far)"
    watched.heard()
    clock.now = 29
    watched.enter("evaluation")
    assert watched.due() == "evaluation", "it has just begun"
    with watched.within("compiling"):
        clock.now = 40
        assert watched.due() == "compiling (11 s so far)"
    watched.enter("")
    clock.now = 400
    assert watched.due() == ""


def test_lines_are_logged_by_a_thread_that_ends(monkeypatch, caplog):
    monkeypatch.setattr(phases, "_QUIET", 0.5)
    watched = Phases()
    caplog.set_level(logging.INFO, "fastdfkd_jax")
    handlers = logging.getLogger("fastdfkd_jax").handlers[:]
    with watched.reported():
        watched.enter("reading")
        for _ in range(100):
            if caplog.messages:
                break
            phases.threading.Event().wait(0.1)
    assert caplog.messages[0].startswith("reading")
    assert not [thread for thread in phases.threading.enumerate() if thread.name == "phases"]
    assert logging.getLogger("fastdfkd_jax").handlers == handlers


def test_the_second_compilation_says_how_long_the_first_took(cache, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "fastdfkd_jax")
    times = iter([0.0, 41.0, 50.0, 50.5, 60.0, 61.0])
    monkeypatch.setattr(phases.time, "perf_counter", lambda: next(times))
    for program in ("a 64", "a 64", "a 64"):
        with phases.compiling("synthesis", program):
            pass
    assert caplog.messages == [
        "compiling synthesis", "compiling synthesis: about 41 s last time", "compiling synthesis",
    ]  # fmt: skip
    assert json.loads(cache.read_text()) == [["a 64", 1.0]]


def test_a_program_that_fails_to_compile_is_not_remembered(cache):
    with pytest.raises(ZeroDivisionError), phases.compiling("synthesis", "a"):
        raise ZeroDivisionError
    assert not cache.exists()


def test_the_newest_programs_are_kept(cache):
    for number in range(compile_times._KEPT + 5):
        compile_times.remember(f"program {number}", number)
    assert compile_times.last("program 4") is None
    assert compile_times.last("program 5") == 5
    assert len(json.loads(cache.read_text())) == compile_times._KEPT


@pytest.mark.parametrize("content", ["", "{}", "[1, [2], [3, 4], [5, []]]", '[["a", "b"]]', '[["a", -1]]', "\xff"])
def test_a_damaged_file_is_no_file(cache, content):
    cache.parent.mkdir()
    cache.write_text(content, encoding="latin-1")
    assert compile_times.last("a") is None
    compile_times.remember("a", 3.0)
    assert compile_times.last("a") == 3


def test_a_folder_that_cannot_be_written_is_ignored(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compile_times.remember("a", 3.0)
    assert compile_times.last("a") is None
