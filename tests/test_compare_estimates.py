"""The plan of a comparison, with a script in place of the measurement: times, their sums, what is remembered."""

import json
import sys

import pytest
from runs import tiny_config

from fastdfkd_jax.cli.signals import Stop
from fastdfkd_jax.compare import comparison, estimates, jobs, run_folders
from fastdfkd_jax.compare.estimates import Entry
from fastdfkd_jax.configs.compare import parts

MEASURE = """
import json, pickle, sys
request = pickle.load(sys.stdin.buffer)
open(request["workdir"] + "/measured", "a").write(f"{request['action']} {request['config']['calls']}\\n")
if request["config"]["calls"] == 3:
    sys.exit("error: cannot be")
seconds = {"synthesis_seconds": 3600.0 * request["config"]["calls"], "distill_seconds": 0, "compile_seconds": 360}
print(json.dumps(seconds))
"""
TWO_AT_ONCE = [(0, 1), (2, 3)]


@pytest.fixture
def runs(monkeypatch):
    """Runs 'a' of 10 hours and 'b' of 20, each and compilation, and 'c', which cannot be measured."""
    monkeypatch.setattr(jobs, "COMMAND", [sys.executable, "-c", MEASURE])
    made = [("a", tiny_config(calls=10), (0, 1)), ("b", tiny_config(calls=20), (0,)), ("c", tiny_config(), (0,))]
    return comparison.read(
        parts.comparison(runs=[parts.run(name, config, seeds=seeds) for name, config, seeds in made], tables=[])
    )


def plan(workdir, runs, cores=TWO_AT_ONCE, measured=True):
    return estimates.make(workdir, runs, cores, measured, Stop())


def test_the_plan_is_a_table_and_its_sums(tmp_path, runs):
    # The first process takes 10.1 and 20.1 hours, the other 10.1 and the unknown; each has two cores.
    assert estimates.describe(plan(tmp_path, runs), TWO_AT_ONCE) == (
        "run  seed  state      hours\n"
        "a       0  to do      10.10\n"
        "a       1  to do      10.10\n"
        "b       0  to do      20.10\n"
        "c       0  to do          -\n"
        "4 runs: 0 finished, 0 begun, 4 to do; about 30.20 hours with 2 at once, 80.60 CPU hours on 4 cores, "
        "without 1 that are not measured\n"
        "(each synthesis and KD program measured on this machine as it is now; without evaluation and reading data)"
    )


def test_without_measurements_there_are_no_hours(tmp_path, runs):
    line = estimates.describe(plan(tmp_path, runs, measured=False), TWO_AT_ONCE).splitlines()[-1]
    assert line == (
        "4 runs: 0 finished, 0 begun, 4 to do; their hours are not known: dry_run=true estimate=true measures them"
    )


def test_each_config_is_measured_once(tmp_path, runs):
    plan(tmp_path, runs)
    plan(tmp_path, runs, measured=False)
    assert sorted((tmp_path / "measured").read_text().splitlines()) == ["measure 10", "measure 20", "measure 3"]
    assert sorted(entry["run"] for entry in json.loads((tmp_path / "plan.json").read_text()).values()) == ["a", "b"]
    plan(tmp_path, runs)
    assert (tmp_path / "measured").read_text().splitlines()[3:] == ["measure 3"], "what failed is tried again"
    plan(tmp_path, runs, cores=[(0,)])
    assert len((tmp_path / "measured").read_text().splitlines()) == 7, "other cores, other times"


def test_what_is_finished_is_not_measured(tmp_path, runs):
    for name, seed, finished in (("a", 0, True), ("a", 1, False), ("b", 0, True)):
        place = run_folders.folder(tmp_path, name, seed)
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(runs.runs[name].seeded(seed).to_dict()))
        if finished:
            (place / "summary.json").write_text("{}")
    found = plan(tmp_path, runs._replace(chosen=("a", "b")))
    assert [(entry.name, entry.state) for entry in found] == [
        ("a seed 0", "finished"), ("a seed 1", "begun"), ("b seed 0", "finished")
    ]  # fmt: skip
    assert (tmp_path / "measured").read_text() == "measure 10\n"
    done = [Entry(entry.run, entry.seed, run_folders.FINISHED, None) for entry in found]
    assert estimates.describe(done, TWO_AT_ONCE).endswith("\n3 runs: 3 finished, 0 begun, 0 to do")


def test_times_are_taken_anew_of_all_that_is_chosen(tmp_path, runs):
    plan(tmp_path, runs)
    chosen = runs._replace(chosen=("a", "b"))
    assert estimates.measured_seconds(tmp_path, [(0,)], runs.runs["a"]) is None, "it was measured with other cores"
    estimates.time_all(tmp_path, chosen, [(0,)], Stop())
    assert sorted((tmp_path / "measured").read_text().splitlines()[3:]) == ["measure 10", "measure 20"]
    assert estimates.measured_seconds(tmp_path, [(0,)], runs.runs["a"]) == {
        "synthesis_seconds": 36000, "distill_seconds": 0, "label_seconds": 0, "compile_seconds": 360
    }  # fmt: skip
