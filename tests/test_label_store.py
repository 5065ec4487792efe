"""A run whose teacher answers once: the stored labels, how it continues, and who may learn from it."""

import json

import jax
import numpy as np
import pytest
from runs import Runs, options_of, tiny_config
from safetensors.numpy import load_file

from fastdfkd_jax import main
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.pool.label_files import LabelFiles
from fastdfkd_jax.pool.stored_labels import StoredLabels
from fastdfkd_jax.storage.files import lock_folder
from fastdfkd_jax.training import dry_run, one_run
from fastdfkd_jax.training.loop import Training

shared = Runs()
SHARDS = 3  # of two steps each; the student takes eight steps, so that it begins a second round


def config_of(**changes):
    base = {"calls": 4, "synthesis_calls": 2, "warmup_calls": 2, "soft_labels__steps": 2 * SHARDS, "kd__cutmix": 0.5}
    return tiny_config(**{**base, **changes})


class Stop(Exception):
    """Raised in place of a crash."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("labelled")
    return workdir, shared.run(config_of(), workdir)


def test_labels_that_were_swapped_are_not_learned_from(finished, tmp_path, monkeypatch):
    """Not even by the checkpoint before there were any."""
    label = Training._prepare

    def stop(training):
        label(training)
        training.stop.requested = training.feed.labelled == 2

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_prepare", stop)
        assert shared.run(config_of(), tmp_path) == {}
    one, two = (tmp_path / "soft_labels" / f"00000{index}.npz" for index in (0, 1))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    with pytest.raises(UserError, match=r"000000.npz has changed since the run made it: .* delete it and"):
        shared.run(config_of(), tmp_path)
    for path in (one, two):
        path.unlink()
    shared.run(config_of(), tmp_path)
    assert_same_student(tmp_path, finished[0])


def assert_same_student(a, b):
    one, other = (load_file(workdir / "student.safetensors") for workdir in (a, b))
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], name)


def test_each_step_is_answered_once_and_the_student_learns_from_that(finished):
    workdir, summary = finished
    assert sorted(path.name for path in (workdir / "soft_labels").glob("[!.]*")) == [
        "000000.npz", "000001.npz", "000002.npz", "description.json",
    ]  # fmt: skip
    with np.load(workdir / "soft_labels" / "000000.npz") as arrays:
        assert arrays["labels.values"].shape == (2, 8, 10)
        assert arrays["rows"].max() < 16, "all 16 images, and none that is not there, may be drawn"
    assert summary["label_seconds"] > 0
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [record["call"] for record in found if "kd/loss" in record] == [3, 4]


def test_the_student_learns_without_the_teacher(finished, tmp_path, monkeypatch):
    original = Training._distill

    def forget(training, source):
        variables = jax.tree.map(lambda x: x * np.nan, training.parts.teacher_vars)
        training.parts = training.parts._replace(teacher_vars=variables)
        return original(training, source)

    monkeypatch.setattr(Training, "_distill", forget)
    shared.run(config_of(), tmp_path)
    assert_same_student(tmp_path, finished[0])


def test_a_round_is_in_another_order_than_the_one_before(finished, tmp_path, monkeypatch):
    met, load = [], StoredLabels._load

    def spy(store, index):
        met.append(index)
        return load(store, index)

    monkeypatch.setattr(StoredLabels, "_load", spy)
    config = config_of(kd__steps_per_call=24, soft_labels__dir=str(finished[0] / "soft_labels"))
    shared.run(config, tmp_path)
    rounds = np.array(met).reshape(-1, SHARDS)
    assert len(rounds) == 8
    assert (np.sort(rounds) == np.arange(SHARDS)).all()
    assert len({tuple(order) for order in rounds}) > 1


@pytest.mark.parametrize(
    ("method", "after", "place"), [("_prepare", 2, "device"), ("_distill", 1, "disk"), ("_distill", 3, "disk")]
)
def test_a_run_that_crashes_goes_on_to_the_bit(method, after, place, finished, tmp_path, monkeypatch):
    original, count = getattr(Training, method), [0]

    def crash(training, *args):
        count[0] += 1
        if count[0] == after + 1:
            raise Stop
        return original(training, *args)

    monkeypatch.setattr(Training, method, crash)
    with pytest.raises(Stop):
        shared.run(config_of(pool__place=place), tmp_path)
    shared.run(config_of(pool__place=place), tmp_path)
    assert_same_student(tmp_path, finished[0])


def test_another_student_learns_from_the_same_answers(finished, tmp_path, monkeypatch):
    workdir = finished[0]
    monkeypatch.setattr(LabelFiles, "write", None)
    known = {"pool__initial": str(workdir), "soft_labels__dir": str(workdir / "soft_labels")}
    shared.run(config_of(mode="distill", seed=1, **known), tmp_path)
    assert (tmp_path / "student.safetensors").exists()
    assert not (tmp_path / "soft_labels").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kd__least_crop": 0.5}, r"views.least_crop: 0.0 there, 0.5 now"),
        ({"soft_labels__top_k": 3}, r"top_k: 0 there, 3 now"),
        ({"seed": 1}, r"pool: '\w+' there, '\w+' now"),
        ({"teacher__mean": (0.5,)}, r"mean: \[[\d.]+\] there, \[0.5\] now"),
    ],
)
def test_other_answers_are_refused(changes, message, finished, tmp_path):
    known = {"soft_labels__dir": str(finished[0] / "soft_labels")}
    if "seed" not in changes:  # which alone makes other images
        known |= {"mode": "distill", "pool__initial": str(finished[0])}
    with pytest.raises(UserError, match=rf"holds other soft labels \(.*{message}"):
        shared.run(config_of(**known, **changes), tmp_path)


def test_the_noise_control_has_answers_of_its_own(finished, tmp_path):
    config = config_of(soft_labels__dir=str(finished[0] / "soft_labels"))
    control = one_run.run_noise_control(config, tmp_path, one_run.build(config))
    assert control["noise_student_accuracy_last"] is not None
    assert (tmp_path / "noise_control" / "soft_labels" / "description.json").exists()


def test_a_folder_in_which_another_run_has_answers_made_is_refused(tmp_path):
    with lock_folder(tmp_path / "shared"), pytest.raises(UserError, match="shared is in use by another run"):
        shared.run(config_of(soft_labels__dir=str(tmp_path / "shared")), tmp_path / "run")


def test_a_damaged_shard_of_answers_is_named(finished, tmp_path, monkeypatch):
    def cut(training):
        path = tmp_path / "soft_labels" / "000001.npz"
        if path.exists():
            path.write_bytes(path.read_bytes()[:-50])

    original = Training._next_source
    monkeypatch.setattr(Training, "_next_source", lambda training: (cut(training), original(training))[1])
    with pytest.raises(UserError, match=r"shard of soft labels .*000001.npz is damaged .*made again"):
        shared.run(config_of(), tmp_path)


def test_the_likeliest_classes_alone_teach_too(tmp_path):
    summary = shared.run(config_of(soft_labels__top_k=3), tmp_path)
    with np.load(tmp_path / "soft_labels" / "000000.npz") as arrays:
        assert arrays["labels.classes"].shape == (2, 8, 3)
    assert summary["student_accuracy_last"] is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_calls": 1}, r"soft_labels.steps must be 0 unless synthesis ends before distillation"),
        ({"soft_labels__top_k": 11}, r"soft_labels.top_k must be at most the teacher's 10 classes"),
        ({"soft_labels__top_k": 2, "kd__standardize": True}, r"kd.standardize must be False with soft_labels.top_k"),
        ({"replay__class_exponent": 1.0}, r"replay must be all 0 with soft_labels.steps"),
        (
            {"method__name": "dfq", "synthesis_calls": 0, "kd__steps_per_call": 10, "kd__cutmix": 0.0},
            "soft_labels.steps must be 0 for the method dfq",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        shared.run(config_of(**changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_plan_counts_them():
    config = config_of()
    text = dry_run.describe(options_of(config), main.assemble(config))
    assert "answers to 2 steps" in text
    assert "MB of soft labels" in text
