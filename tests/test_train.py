"""The host loop on a real run in small: the files it leaves, how it stops, and that it continues bit-identically."""

import dataclasses
import functools
import importlib.util
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from runs import ROOT, Runs, tiny_config
from safetensors.numpy import load_file

from fastdfkd_jax import main
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.pool.on_disk import DiskFeed
from fastdfkd_jax.pool.shards import Rows, read_shard
from fastdfkd_jax.storage.files import lock_folder
from fastdfkd_jax.training import build, health, loop, one_run, progress
from fastdfkd_jax.training.loop import Training
from fastdfkd_jax.training.progress import Progress

shared = Runs()


class Finished(NamedTuple):
    """A run that nothing disturbed; `compilations` counts those of each call."""

    workdir: Path
    summary: dict[str, Any]
    compilations: list[int]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Finished:
    workdir, end_call, events, counts = tmp_path_factory.mktemp("run"), Training._end_call, [], [0]

    def listen(event, duration_secs, **_):
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)

    def count(training):
        end_call(training)
        counts.append(sum("backend_compile" in name for name in events))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_end_call", count)
        shared.built(tiny_config(), fresh=True)
        summary = shared.run(tiny_config(), workdir)
    return Finished(workdir, summary, np.diff(counts).tolist())


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the finished run, to be spoilt."""
    return Path(shutil.copytree(finished.workdir, tmp_path / "copy"))


class Stop(Exception):
    """Raised in place of a crash."""


def interrupt(monkeypatch, method: str, call: int, action) -> None:
    """Does `action(training)` once, as `method` is entered while `call` calls are begun."""
    original, done = getattr(Training, method), []

    def hooked(training, *args):
        if training.progress.call == call and not done:
            done.append(True)
            action(training)
        return original(training, *args)

    monkeypatch.setattr(Training, method, hooked)


def crash(training):
    raise Stop


def records(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def shards(workdir: Path) -> dict[str, Rows]:
    return {path.name: read_shard(path) for path in (workdir / "pool").iterdir()}


def same_student(a: Path, b: Path) -> bool:
    one, other = load_file(a / "student.safetensors"), load_file(b / "student.safetensors")
    assert one.keys() == other.keys()
    return all(one[name].tobytes() == other[name].tobytes() for name in one)


def timeless(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if not key.endswith(("_seconds", "_bytes"))}


def assert_same_end(a: Path, b: Path) -> None:
    assert same_student(a, b)
    assert records(a) == records(b)
    jax.tree.map(np.testing.assert_array_equal, shards(a), shards(b))
    one, other = (json.loads((workdir / "summary.json").read_text()) for workdir in (a, b))
    assert timeless(one) == timeless(other)


def contents(workdir: Path) -> dict[str, bytes]:
    return {str(path.relative_to(workdir)): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_a_run_leaves_its_artefacts(finished):
    workdir, summary, _ = finished
    names = {path.name for path in workdir.iterdir() if not path.name.startswith(".")}
    expected = {"metrics.jsonl", "events", "images", "config.json", "student.safetensors", "summary.json"}
    expected |= {"pool", "checkpoints"} | ({"student.pth"} if importlib.util.find_spec("torch") else set())
    assert names == expected
    assert list((workdir / "events").iterdir())
    assert {path.name for path in (workdir / "images").iterdir()} == {f"00000{call}.png" for call in (1, 2, 3)}
    assert json.loads((workdir / "config.json").read_text())["config"]["calls"] == 3
    assert json.loads((workdir / "summary.json").read_text()) == summary
    for shard in shards(workdir).values():
        assert (shard.images.shape, shard.labels.shape) == ((8, 16, 16, 1), (8,))


def test_the_summary_says_what_was_reached_and_what_it_cost(finished):
    summary = finished.summary
    assert (summary["seed"], summary["images"], summary["method"]) == (0, 24, "fastdfkd")
    # The teacher that ships with the package has at most one error among these 32 digits.
    assert summary["teacher_accuracy"] > 95
    best = max(record["eval/accuracy"] for record in records(finished.workdir) if "eval/accuracy" in record)
    assert summary["student_accuracy_best_on_test"] == best
    assert 0 <= summary["student_accuracy_last"] <= best <= 100
    times = [summary[f"{part}_seconds"] for part in ("synthesis", "distill", "compile", "evaluate")]
    assert all(seconds > 0 for seconds in times)
    assert summary["peak_memory_bytes"] > 1e7
    assert summary["devices"] == ["cpu"] * len(jax.devices())


def test_nothing_is_compiled_after_the_first_call_with_kd(finished):
    first, second, third = finished.compilations
    assert first > 0
    assert second > 0
    assert third == 0


def test_health_signals_are_recorded(finished):
    synthesis = [record for record in records(finished.workdir) if "synthesis/predicted" in record]
    assert [record["call"] for record in synthesis] == [1, 2, 3]
    for record in synthesis:
        assert 0 <= record["synthesis/agreement"] <= 1
        assert 0 <= record["synthesis/on_target"] <= 1
        assert record["synthesis/moment_gap"] > 0
        assert 0 < record["synthesis/diversity"] < 0.5
        assert len(record["synthesis/predicted"]) == 10
        assert sum(record["synthesis/predicted"]) == 8
    distillation = [record for record in records(finished.workdir) if "kd/loss" in record]
    assert [record["call"] for record in distillation] == [2, 3], "the first call is a warm-up"
    assert all(0 <= record["kd/agreement"] <= 1 for record in distillation)


def test_the_same_command_on_a_finished_run_does_no_work(finished, copied, monkeypatch):
    for name in ("_synthesize", "_distill", "_evaluate", "_save"):
        monkeypatch.setattr(Training, name, crash)
    monkeypatch.setattr(progress, "peak_memory_bytes", lambda: 0)  # of the second process alone
    again = shared.run(tiny_config(), copied)
    memory = "peak_memory_bytes"
    assert 1e7 < again[memory] <= finished.summary[memory]
    assert again | {memory: 0} == finished.summary | {memory: 0}
    assert_same_end(copied, finished.workdir)


def test_synthesis_may_end_before_the_student_does(monkeypatch, tmp_path):
    config = tiny_config(calls=4, synthesis_calls=2, warmup_calls=2)
    summary = shared.run(config, tmp_path / "whole")
    assert summary["images"] == 16
    found = records(tmp_path / "whole")
    assert [record["call"] for record in found if "synthesis/predicted" in record] == [1, 2]
    assert [record["call"] for record in found if "kd/loss" in record] == [3, 4]
    interrupt(monkeypatch, "_distill", 4, crash)
    with pytest.raises(Stop):
        shared.run(config, tmp_path / "resumed")
    shared.run(config, tmp_path / "resumed")
    assert_same_end(tmp_path / "resumed", tmp_path / "whole")

    alone = tiny_config(calls=4, synthesis_calls=2, warmup_calls=2, mode="synthesize")
    assert shared.run(alone, tmp_path / "alone")["images"] == 16
    jax.tree.map(np.testing.assert_array_equal, shards(tmp_path / "alone"), shards(tmp_path / "whole"))


def test_a_pool_on_disk_gives_the_same_student(finished, tmp_path):
    shared.run(tiny_config(pool__place="disk"), tmp_path)
    assert_same_end(tmp_path, finished.workdir)


@pytest.mark.parametrize(("method", "call"), [("_end_call", 1), ("_distill", 3)])
def test_a_run_with_its_pool_on_disk_that_crashes_goes_on_to_the_bit(method, call, finished, tmp_path, monkeypatch):
    interrupt(monkeypatch, method, call, crash)
    with pytest.raises(Stop):
        shared.run(tiny_config(pool__place="disk"), tmp_path)
    shared.run(tiny_config(pool__place="disk"), tmp_path)
    assert_same_end(tmp_path, finished.workdir)


def test_a_student_of_shuffled_passes_is_averaged_and_the_same_wherever_its_pool_lies(tmp_path, monkeypatch):
    passes = {"pool__draw": "passes", "kd__ema_decay": 0.5, "kd__rate_warmup_steps": 3, "kd__steps_per_dispatch": 4}
    states = []
    monkeypatch.setattr(loop, "save_student", lambda workdir, student, variables: states.append(variables))
    shared.run(tiny_config(**passes), tmp_path / "device")
    config = tiny_config(**passes, pool__place="disk")
    interrupt(monkeypatch, "_end_call", 2, crash)
    with pytest.raises(Stop):
        shared.run(config, tmp_path / "disk")
    shared.run(config, tmp_path / "disk")
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_what_is_recorded_of_the_student_is_a_mean_over_the_call(finished, tmp_path, monkeypatch):
    """In two dispatches of two steps a run has the same steps as in one of four, whose loop is unrolled."""
    scan, unrolled = jax.lax.scan, []
    spy = lambda *args, **known: (unrolled.append(known.get("unroll")), scan(*args, **known))[1]  # noqa: E731
    monkeypatch.setattr(jax.lax, "scan", spy)
    shared.run(tiny_config(kd__steps_per_dispatch=4, kd__unroll=True), tmp_path)
    assert True in unrolled
    one, other = ([r for r in records(folder) if "kd/loss" in r] for folder in (tmp_path, finished.workdir))
    assert len(one) == len(other) == 2
    for name in ("kd/loss", "kd/agreement"):
        # Two programs of the same steps differ in rounding.
        np.testing.assert_allclose([r[name] for r in one], [r[name] for r in other], rtol=1e-3)


def test_a_run_may_go_on_with_its_pool_elsewhere(finished, tmp_path, monkeypatch):
    interrupt(monkeypatch, "_distill", 3, crash)
    with pytest.raises(Stop):
        shared.run(tiny_config(pool__place="disk"), tmp_path)
    shared.run(tiny_config(), tmp_path)
    assert_same_end(tmp_path, finished.workdir)


def test_batches_from_disk_are_read_ahead_unless_the_pool_will_have_grown(tmp_path, monkeypatch):
    reads, take = [], DiskFeed.take

    def spy(feed, step, ahead):
        reads.append((step, ahead))
        return take(feed, step, ahead)

    monkeypatch.setattr(DiskFeed, "take", spy)
    config = tiny_config(calls=4, synthesis_calls=3, warmup_calls=1, pool__place="disk")
    shared.run(config, tmp_path / "disk")
    # Calls 2, 3 and 4 take steps 0 to 3, 4 to 7 and 8 to 11, two at a time; call 3 makes images first.
    assert reads == [(0, 2), (2, None), (4, 6), (6, 8), (8, 10), (10, None)]
    shared.run(tiny_config(calls=4, synthesis_calls=3, warmup_calls=1), tmp_path / "device")
    assert_same_end(tmp_path / "disk", tmp_path / "device")


@pytest.mark.parametrize("kind", ["pool", "pictures"])
def test_a_student_learns_from_given_images_on_disk(kind, finished, tmp_path):
    given = finished.workdir
    if kind == "pictures":
        given = tmp_path / "pictures"
        for number, image in enumerate(np.concatenate([rows.images for rows in shards(finished.workdir).values()])):
            path = given / f"{number % 3}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(path)
    for place in ("disk", "device"):
        shared.run(tiny_config(mode="distill", pool__initial=str(given), pool__place=place), tmp_path / place)
    assert_same_end(tmp_path / "disk", tmp_path / "device")


def test_a_shard_that_was_cut_off_costs_only_time(finished, tmp_path, monkeypatch, caplog):
    """The newest checkpoint has lost a shard; the one before it does not need that one, which is made again."""
    interrupt(monkeypatch, "_begin_call", 2, crash)
    with pytest.raises(Stop):
        shared.run(tiny_config(pool__place="disk"), tmp_path)
    path = tmp_path / "pool" / "000001.npz"
    path.write_bytes(path.read_bytes()[:-100])
    shared.run(tiny_config(pool__place="disk"), tmp_path)
    reason = "shard 1 of the pool is missing or damaged"
    assert f"checkpoint 14 cannot be used ({reason}); trying the one before it" in caplog.text
    assert_same_end(tmp_path, finished.workdir)


@pytest.fixture
def stopped(finished, tmp_path, monkeypatch) -> Path:
    """A run that has crashed after its second call, with checkpoints of both calls."""
    interrupt(monkeypatch, "_begin_call", 2, crash)
    with pytest.raises(Stop):
        shared.run(tiny_config(), tmp_path / "stopped")
    monkeypatch.undo()
    return tmp_path / "stopped"


def refused(expected: str, workdir: Path, config=None) -> None:
    """A run refuses these in one line and changes nothing."""
    before = contents(workdir)
    with pytest.raises(UserError, match=expected) as caught:
        shared.run(tiny_config() if config is None else config, workdir)
    assert "\n" not in str(caught.value)
    assert contents(workdir) == before


def test_lost_checkpoints_do_not_cost_the_pool(copied):
    shutil.rmtree(copied / "checkpoints")
    refused("has lost its checkpoints, and a run from the start would delete its pool: .*restart=true", copied)


def test_results_without_the_record_of_their_run_are_refused(stopped):
    (stopped / "config.json").unlink()
    refused(r"holds results \(pool, .*\) but no config.json: .*restart=true", stopped, tiny_config(seed=1))


def test_a_record_that_was_replaced_does_not_pass_for_the_run_s(stopped, tmp_path):
    """Half of one seed and half of another is no student."""
    content = json.loads((stopped / "config.json").read_text())
    content["identity"]["seed"] = content["config"]["seed"] = 1
    (stopped / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"checkpoint 14 in .* is of another configuration \(seed: 0 there, 1 now\)"):
        shared.run(tiny_config(seed=1), stopped)


def test_a_restart_moves_all_aside_and_begins_anew(finished, stopped):
    before = contents(stopped)
    shared.run(tiny_config(restart=True), stopped)
    assert_same_end(stopped, finished.workdir)
    moved = contents(stopped / "previous-1")
    assert {name: data for name, data in before.items() if name != ".lock"} == moved
    shutil.rmtree(stopped / "checkpoints")
    shared.run(tiny_config(restart=True, calls=1, warmup_calls=0), stopped)
    assert contents(stopped / "previous-1") == moved
    assert len(shards(stopped / "previous-2")) == 3


def swap_shards(workdir: Path) -> str:
    one, two = (workdir / "pool" / f"00000{index}.npz" for index in (0, 1))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    return "shard 0 of the pool has changed since the run made it"


def change_progress(workdir: Path) -> str:
    for path in workdir.glob("checkpoints/*/meta/metadata"):
        content = json.loads(path.read_text())
        content["progress"]["call"] += 1
        path.write_text(json.dumps(content))
    return "its description was changed"


def cut_metrics(workdir: Path) -> str:
    path = workdir / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:20])
    return "the first .* bytes of metrics.jsonl have changed since the run wrote them"


@pytest.mark.parametrize("spoil", [swap_shards, change_progress, cut_metrics])
def test_a_checkpoint_is_not_used_with_other_files_than_its_own(spoil, stopped):
    reason = spoil(stopped)
    refused(rf"no checkpoint in .* can be used \(.*{reason}", stopped)


def test_after_a_fall_back_the_sums_are_those_of_the_shards_that_are_there(finished, stopped):
    """Otherwise the run could not be continued again."""
    one, two = (stopped / "pool" / f"00000{index}.npz" for index in (0, 1))
    two.write_bytes(one.read_bytes())
    shared.run(tiny_config(), stopped)
    assert_same_end(stopped, finished.workdir)
    assert shared.run(tiny_config(calls=4), stopped)["images"] == 32


@pytest.mark.parametrize("lost", ["checkpoints", "hidden mark too"])
def test_a_finished_run_without_checkpoints_is_not_begun_anew(copied, lost):
    shutil.rmtree(copied / "checkpoints")
    if lost != "checkpoints":
        (copied / ".saved").unlink()
    refused("has lost its checkpoints, and a run from the start would delete its pool", copied)


def test_a_restart_that_is_killed_between_its_moves_leaves_what_no_run_begins_in(copied, monkeypatch):
    rename = Path.rename

    def once(path, target):
        monkeypatch.setattr(Path, "rename", lambda *_: crash(None))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(Stop):
        shared.run(tiny_config(restart=True), copied)
    monkeypatch.undo()
    refused("holds results .* but no config.json", copied)


def test_pictures_and_their_shards_that_change_are_noticed(copied, tmp_path, monkeypatch):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, image in enumerate(np.concatenate([rows.images for rows in shards(copied).values()])):
        Image.fromarray(image[..., 0]).save(pictures / f"{number:02d}.bmp")
    config = functools.partial(tiny_config, mode="distill", pool__initial=str(pictures), pool__place="disk")
    workdir = tmp_path / "run"
    shared.run(config(), workdir)
    (shard,) = (workdir / "initial").glob("*.npz")
    whole = shard.read_bytes()
    with np.load(shard) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    np.savez(shard, images=images[::-1], labels=labels)
    refused("initial/000000.npz has changed since the run made it: restore it, or delete it", workdir, config())
    shard.write_bytes(whole)
    shared.run(config(), workdir)
    content = bytearray((pictures / "00.bmp").read_bytes())
    content[-1] ^= 255
    (pictures / "00.bmp").write_bytes(content)
    refused("the images that config.pool.initial begins with have changed", workdir, config())


def test_shards_of_other_types_are_refused(copied, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    images, labels = np.zeros((3, 16, 16, 1), np.uint8), np.zeros(3, np.int32)
    wrong = [
        (images.astype(np.float32), labels, "images are float32"),
        (images, labels[:2], r"labels are int32\[2\], not int32\[3\]"),
        (images, labels + 0.5, "labels are float64"),
        (images, labels.astype(np.int64) + 2**32, "labels are int64"),
    ]
    for some_images, some_labels, expected in wrong:
        np.savez(given / "000000.npz", images=some_images, labels=some_labels)
        for place in ("device", "disk"):
            config = tiny_config(mode="distill", pool__initial=str(given), pool__place=place)
            with pytest.raises(UserError, match=f"is damaged .*{expected}"):
                shared.run(config, tmp_path / "run")
    np.savez(given / "000000.npz", images=images, labels=labels.astype(np.int64))
    assert read_shard(given / "000000.npz").labels.dtype == np.int32


def test_a_signal_as_the_run_ends_is_not_lost(copied, monkeypatch):
    """The noise control would else follow, a second whole training."""
    finish = Training._finish

    def asked(training):
        training.stop.requested = True
        return finish(training)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_finish", asked)
        assert shared.run(tiny_config(), copied) == {}
    assert shared.run(tiny_config(), copied)


def test_metrics_of_which_the_end_is_lost_cost_only_time(finished, stopped):
    path = stopped / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    first = [line for line in lines if json.loads(line)["call"] == 1]
    path.write_bytes(b"".join(first) + b'{"call": 2, "syn')
    shared.run(tiny_config(), stopped)
    assert_same_end(stopped, finished.workdir)


def test_a_run_s_own_pool_is_no_beginning(copied, tmp_path):
    for own in (copied, copied / "pool"):
        refused("config.pool.initial=.* is a folder of this run", copied, tiny_config(pool__initial=str(own)))
    (copied / "config.json").unlink()
    refused("is a folder of this run", copied, tiny_config(mode="distill", pool__initial=f"{copied}/../{copied.name}"))


@pytest.mark.parametrize("name", ["pool", "checkpoints", "metrics.jsonl", ".lock"])
def test_a_link_out_of_the_workdir_is_not_followed(name, copied, tmp_path):
    (copied / name).rename(tmp_path / "elsewhere")
    (copied / name).symlink_to(tmp_path / "elsewhere")
    outside = tmp_path / "elsewhere"
    before = contents(outside) if outside.is_dir() else outside.read_bytes()
    with pytest.raises(UserError, match="is a symbolic link"):
        shared.run(tiny_config(), copied)
    assert before == (contents(outside) if outside.is_dir() else outside.read_bytes())


def test_leftovers_of_killed_writers_are_removed(copied):
    leftovers = [copied / ".config.json.partial", copied / "pool" / ".000003.npz.partial"]
    leftovers += [copied / ".student.safetensors.12.tmp"]  # of an earlier release's writer
    others = [copied / ".x.pth.12.tmp", copied / ".notes.partial"]  # of other programs
    for path in leftovers + others:
        path.write_bytes(b"half")
    shared.run(tiny_config(), copied)
    assert not any(path.exists() for path in leftovers)
    assert all(path.exists() for path in others)


def test_a_finished_run_continues_with_more_calls_and_other_intervals(finished, copied, caplog):
    before = shards(copied)
    summary = shared.run(tiny_config(calls=4, eval_every=2, images_every=4), copied)
    assert summary["images"] == finished.summary["images"] + 8
    after = shards(copied)
    assert len(after) == 4
    assert all(np.array_equal(after[name].images, before[name].images) for name in before)
    assert [record["call"] for record in records(copied) if "eval/accuracy" in record] == [2, 3, 4]
    assert (copied / "images" / "000004.png").exists()
    assert "config.calls was 3 and is now 4: the learning rates follow schedules of 4 calls" in caplog.text
    assert not same_student(copied, finished.workdir)
    refused("calls: 4 there, 3 now", copied)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_other_signals_save_as_sigterm_does(number, finished, tmp_path, monkeypatch):
    interrupt(monkeypatch, "_distill", 2, lambda _: os.kill(os.getpid(), number))
    config = functools.partial(tiny_config, checkpoint_every=3)
    before = signal.signal(number, signal.default_int_handler)  # a suite in the background is started to ignore it
    try:
        assert shared.run(config(), tmp_path) == {}
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, before)
    shared.run(config(), tmp_path)
    assert_same_end(tmp_path, finished.workdir)


def test_a_run_is_a_function_of_its_seed(finished, tmp_path):
    shared.run(tiny_config(), tmp_path / "same")
    assert_same_end(tmp_path / "same", finished.workdir)
    shared.run(tiny_config(seed=1), tmp_path / "other")
    assert not same_student(tmp_path / "other", finished.workdir)


def test_synthesis_and_distillation_can_be_separate_runs(tmp_path):
    first = shared.run(tiny_config(mode="synthesize"), tmp_path / "images")
    assert first["images"] == 24
    assert first["distill_seconds"] == 0
    assert first["student_accuracy_last"] is None
    assert len(shards(tmp_path / "images")) == 3
    config = tiny_config(mode="distill", pool__initial=str(tmp_path / "images"))
    second = shared.run(config, tmp_path / "student")
    assert second["images"] == second["synthesis_seconds"] == 0
    assert second["student_accuracy_last"] is not None
    assert [record["call"] for record in records(tmp_path / "student") if "kd/loss" in record] == [2, 3]
    assert not same_student(tmp_path / "images", tmp_path / "student"), "the first student is untrained"


@pytest.mark.parametrize(
    ("method", "call"), [("_begin_call", 0), ("_end_call", 1), ("_begin_call", 2), ("_distill", 2), ("_end_call", 3)]
)
def test_a_run_that_crashes_goes_on_to_the_bit(method, call, finished, tmp_path, monkeypatch):
    interrupt(monkeypatch, method, call, crash)
    with pytest.raises(Stop):
        shared.run(tiny_config(), tmp_path)
    assert not (tmp_path / "summary.json").exists()
    shared.run(tiny_config(), tmp_path)
    assert_same_end(tmp_path, finished.workdir)


@pytest.mark.parametrize(("method", "call"), [("_begin_call", 0), ("_distill", 2), ("_end_call", 2)])
def test_sigterm_saves_and_the_run_goes_on_to_the_bit(method, call, finished, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    interrupt(monkeypatch, method, call, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    # So that what is saved is saved because of the signal.
    config = functools.partial(tiny_config, checkpoint_every=3)
    assert shared.run(config(), tmp_path) == {}
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (tmp_path / "summary.json").exists()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    shared.run(config(), tmp_path)
    assert_same_end(tmp_path, finished.workdir)


def test_a_damaged_checkpoint_costs_only_time(finished, tmp_path, monkeypatch, caplog):
    interrupt(monkeypatch, "_end_call", 3, crash)
    with pytest.raises(Stop):
        shared.run(tiny_config(), tmp_path)
    newest = max((tmp_path / "checkpoints").iterdir(), key=lambda path: int(path.name))
    for path in (newest / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:50])
    shared.run(tiny_config(), tmp_path)
    assert f"checkpoint {newest.name} cannot be used (" in caplog.text
    assert_same_end(tmp_path, finished.workdir)


def test_another_config_is_refused_and_nothing_changes(copied):
    before = contents(copied)
    with pytest.raises(UserError) as caught:
        shared.run(tiny_config(seed=1, kd__lr=0.1), copied)
    assert "(kd.lr: 0.05 there, 0.1 now, seed: 0 there, 1 now)" in str(caught.value)
    assert contents(copied) == before


def test_other_weights_are_refused_and_moved_ones_are_not(finished, copied, tmp_path):
    moved = tmp_path / "teacher.safetensors"
    shutil.copy(tiny_config().teacher.checkpoint, moved)
    again = shared.run(tiny_config(teacher__checkpoint=str(moved)), copied)
    assert timeless(again) == timeless(finished.summary)
    parts = build.assemble(tiny_config())
    other = parts._replace(teacher_vars=jax.tree.map(lambda x: x + 1, parts.teacher_vars))
    with pytest.raises(UserError, match="teacher weights: "):
        one_run.record_identity(tiny_config(), other, copied)


def test_a_workdir_in_use_is_refused(tmp_path):
    lock = lock_folder(tmp_path)
    with lock, pytest.raises(UserError, match="is in use by another run"):
        shared.run(tiny_config(), tmp_path)
    lock_folder(tmp_path).close()


def test_a_workdir_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        shared.run(tiny_config(), tmp_path / "file")


@pytest.mark.parametrize(
    ("method", "call", "part", "expected"),
    [
        ("_distill", 2, "student", "kd/loss is not finite at call 2, KD step 2; last checkpoint: 5: lower"),
        ("_begin_call", 2, "method", r"synthesis/\S+ is not finite at call 3, KD step 0; last checkpoint: 14: lower"),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run(method, call, part, expected, tmp_path, monkeypatch):
    def poison(training):
        spoil = lambda x: x * jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
        training.state[part] = jax.tree.map(spoil, training.state[part])

    interrupt(monkeypatch, method, call, poison)
    with pytest.raises(UserError, match=expected) as caught:
        shared.run(tiny_config(), tmp_path)
    assert "\n" not in str(caught.value)
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_the_noise_control_stands_in_the_summary(finished, copied, monkeypatch, capsys):
    monkeypatch.setattr(main.config_flags, "parse", lambda *_: (tiny_config(noise_control=True), copied))
    main.main(["main"])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    added = {"noise_student_accuracy_last": printed["noise_student_accuracy_last"]}
    assert timeless(printed) == timeless(finished.summary) | added
    assert 0 <= printed["noise_student_accuracy_last"] <= 100
    assert json.loads((copied / "summary.json").read_text()) == printed
    assert json.loads((copied / "noise_control" / "summary.json").read_text())["method"] == "noise"


@pytest.mark.parametrize(
    ("predicted", "diversity", "warned"),
    [([4, 4, 4, 4], 0.2, False), ([16, 0, 0, 0], 0.2, True), ([4, 4, 4, 4], 0.01, True)],
)
def test_a_collapse_is_said(predicted, diversity, warned):
    values = {"synthesis/predicted": predicted, "synthesis/diversity": diversity}
    line = health.collapse(7, values)
    assert bool(line) == warned
    assert not line or "collapsed at call 7: class balance" in line


def judge_of(progress, advice="raise a", classes=10, statistics="b.weight") -> health.Judge:
    parts: Any = SimpleNamespace(method=SimpleNamespace(class_advice=advice),
                                 teacher=SimpleNamespace(spec=SimpleNamespace(num_classes=classes)))  # fmt: skip
    return health.Judge(progress, parts, statistics)


def test_a_collapse_is_said_once_and_with_advice():
    one_class = {"synthesis/predicted": [16, 0], "synthesis/diversity": 0.2}
    one_image = {"synthesis/predicted": [16, 0], "synthesis/diversity": 0.01}
    assert judge_of(Progress()).collapse(one_class).endswith("0.200: raise a")
    lower = "lower the synthesis learning rates"
    assert judge_of(Progress()).collapse(one_image).endswith(f"0.010: raise config.b.weight or {lower}")
    assert judge_of(Progress(), advice="", statistics="").collapse(one_class).endswith(f"0.200: {lower}")
    progress = Progress()
    judge = judge_of(progress)
    assert [bool(judge.collapse(values)) for values in (one_class, one_class, one_image)] == [True, False, False]
    assert [line.split(":")[0] for line in progress.warnings] == ["synthesis may have collapsed at call 0"]
    saved = json.loads(json.dumps(dataclasses.asdict(progress)))
    assert judge_of(Progress(**saved)).collapse(one_image) == "", "a resumed run does not repeat it"


def judge(shares, advice="raise a", classes=10, progress=None, start=1):
    """The lines that are said where the calls from `start` on have these shares of images on target."""
    progress, said = progress or Progress(), []
    judging = judge_of(progress, advice, classes)
    for progress.call, share in enumerate(shares, start):
        said.append(judging.off_target({"on_target": jnp.float32(share)}))
    return [line for line in said if line]


def test_classes_that_are_not_met_are_said_once():
    # The quickstart at the weights of the paper's tables.
    shares = [0.11, 0.06, 0.09, 0.08, 0.12, 0.08, 0.11, 0.20, 0.11, 0.12, 0.11, 0.14]
    (line,) = judge(shares)
    assert line == (
        "warning: at call 10, the teacher sees 12.4 % of the last 5 batches as the class that was asked for; "
        "chance is 10.0 %: raise a"
    )
    assert judge(shares[:9]) == [], "five calls are judged together, and none of the first five"
    assert judge([*[0.0] * 5, *[0.9] * 20]) == []
    assert judge([*[0.9] * 20, *[0.0] * 9])[0].startswith("warning: at call 24,")
    assert judge([0.5] * 20) == []
    assert judge(shares, classes=1) == []


def test_classes_that_are_not_asked_for_are_not_judged():
    assert judge([0.1] * 20, advice="") == []


def test_a_resumed_run_does_not_repeat_what_was_said_of_classes():
    progress = Progress()
    assert len(judge([0.1] * 12, progress=progress)) == len(progress.warnings) == 1
    saved = json.loads(json.dumps(dataclasses.asdict(progress)))
    assert judge([0.1] * 12, progress=Progress(**saved), start=13) == []
    half = Progress()
    assert judge([0.1] * 8, progress=half) == []
    saved = json.loads(json.dumps(dataclasses.asdict(half)))
    assert [line[:19] for line in judge([0.1] * 12, progress=Progress(**saved), start=9)] == ["warning: at call 10"]


def test_a_run_judges_its_classes(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(health, "FIRST_CALLS", 0)
    monkeypatch.setattr(health, "JUDGED_CALLS", 2)
    monkeypatch.setattr(health, "near_chance", lambda shares, classes: (len(shares), classes) == (2, 10))
    with caplog.at_level(logging.INFO, "fastdfkd_jax"):
        shared.run(tiny_config(), tmp_path)
    shares = [record["synthesis/on_target"] for record in records(tmp_path) if "synthesis/on_target" in record]
    assert len(shares) == 3
    (line,) = [line for line in caplog.messages if "as the class that was asked for" in line]
    assert line.startswith(f"warning: at call 2, the teacher sees {100 * sum(shares[:2]) / 2:.1f} % of the last 2")
    assert "raise config.inversion.class_weight (0.4) or lower config.inversion.feature_weight (10)" in line


@pytest.mark.slow
def test_a_run_killed_three_times_ends_as_one_left_alone(tmp_path):
    config = tmp_path / "configs" / "small.py"
    config.parent.mkdir()
    config.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\nfrom runs import tiny_config\n\n\n"
        "def get_config():\n    return tiny_config(calls=40, parallel__cpu_devices=2, parallel__batch_devices=2)\n"
    )

    def command(name: str) -> list[str]:
        return [sys.executable, "-m", "fastdfkd_jax.main", f"--config={config}", f"--workdir={tmp_path / name}"]

    settings: dict[str, Any] = {"cwd": ROOT, "text": True}
    # First, so that those below read compiled programs and are not killed while they write one.
    subprocess.run(command("alone"), check=True, capture_output=True, **settings)
    generator = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(command("killed"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, **settings)
        with process:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            assert any(" call " in line for line in lines), "it must come as far as a call"
            time.sleep(generator.uniform(0, 1.5))
            assert process.poll() is None, "it must be killed while it runs"
            process.send_signal(signal.SIGKILL)
    done = subprocess.run(command("killed"), check=True, capture_output=True, **settings)
    assert "resumed at call" in done.stderr
    assert_same_end(tmp_path / "killed", tmp_path / "alone")
    assert json.loads(done.stdout)["images"] == 320
