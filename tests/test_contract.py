"""The contract of methods as the host loop keeps it: batches that live once, calls that keep nothing, given data."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import Runs, identity_of, tiny_config
from safetensors.numpy import load_file

from fastdfkd_jax.distillation import distill
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.methods import base, registry
from fastdfkd_jax.pool.shards import read_shard
from fastdfkd_jax.training import build, one_run
from fastdfkd_jax.training.checkpoint import Checkpoints
from fastdfkd_jax.training.loop import Training
from fastdfkd_jax.training.programs import initial_state

ROUND = 2  # student steps of a batch that lives once


def install(monkeypatch, make):
    """Makes 'noise' another method."""
    entry = registry.METHODS["noise"]._replace(build=lambda options, setting: make(setting))
    monkeypatch.setitem(registry.METHODS, "noise", entry)


def grey(setting, **fields):
    """A method whose n-th batch is grey of level n, and what it knows."""

    def synthesize(state, teacher_vars, student_vars, key):
        shape = (setting.batch, *setting.teacher.spec.input_shape)
        images = jnp.full(shape, (state + 1) / 255)
        info = base.Info({"level": state.astype(jnp.float32)})
        return state + 1, base.Batch(images, jnp.full(setting.batch, state)), info

    return base.Method(lambda key, teacher_vars: jnp.int32(0), synthesize, setting.batch)._replace(**fields)


def once(setting):
    """Two batches a round that live once."""

    def synthesize(state, teacher_vars, student_vars, key):
        images = jax.random.uniform(key, (ROUND, setting.batch, *setting.teacher.spec.input_shape))
        return state + 1, base.Batch(images, jnp.zeros((ROUND, setting.batch), jnp.int32)), base.Info()

    return base.Method(
        lambda key, teacher_vars: jnp.int32(0),
        synthesize,
        ROUND * setting.batch,
        steps_per_round=ROUND,
        lifetime=base.ONCE,
        network_input=True,
    )


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_batches_that_are_used_once_leave_no_pool(tmp_path, monkeypatch):
    install(monkeypatch, once)
    summary = one_run.run(tiny_config(method__name="noise"), tmp_path)
    # Three calls of four steps, the first without the student; two batches of eight a round of two steps.
    assert summary["images"] == 3 * 2 * ROUND * 8
    assert not (tmp_path / "pool").exists()
    assert len([record for record in records(tmp_path) if "kd/loss" in record]) == 2
    assert (tmp_path / "images" / "000003.png").is_file()


def test_a_run_of_such_batches_goes_on_to_the_bit(tmp_path, monkeypatch):
    install(monkeypatch, once)
    config = tiny_config(method__name="noise")
    runs = Runs()
    whole = runs.run(config, tmp_path / "whole")
    original = Training._learn

    def stop_once(training):
        original(training)
        if training.progress.call == 2 and training.progress.kd_steps == ROUND:
            training.stop.requested = True

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_learn", stop_once)
        assert runs.run(config, tmp_path / "parts") == {}
    resumed = runs.run(config, tmp_path / "parts")
    assert resumed["images"] == whole["images"]
    assert resumed["student_accuracy_last"] == whole["student_accuracy_last"]
    students = [load_file(tmp_path / name / "student.safetensors") for name in ("whole", "parts")]
    jax.tree.map(np.testing.assert_array_equal, *students)


def test_calls_that_keep_nothing_leave_neither_rows_nor_shards(tmp_path, monkeypatch):
    def every_other(setting):
        method = grey(setting)

        def synthesize(state, *rest):
            state, batch, info = method.synthesize(state, *rest)
            return state, batch._replace(kept=state % 2 == 0, weights={"level": state}), info

        return method._replace(synthesize=synthesize)

    install(monkeypatch, every_other)
    config = tiny_config(method__name="noise", calls=5)
    assert one_run.run(config, tmp_path)["images"] == 2 * 8
    shards = sorted((tmp_path / "pool").iterdir())
    assert [read_shard(path).images.max() for path in shards] == [2, 4]
    with np.load(shards[1]) as arrays:
        assert arrays["weights['level']"] == 4


def test_what_is_trained_beside_the_student_is_trained_and_resumed(tmp_path, monkeypatch):
    def with_extra(setting):
        def loss(extra, student, teacher, labels):
            return jnp.square(extra - 3.0) + 0 * labels

        objective = distill.Objective(loss, lambda key: jnp.float32(0), optax.sgd(0.25))
        return grey(setting, objective=objective)

    install(monkeypatch, with_extra)
    config = tiny_config(method__name="noise")
    one_run.run(config, tmp_path)
    parts = build.assemble(config)
    state = initial_state(jax.random.key(0), parts)
    restored = Checkpoints(tmp_path / "checkpoints", identity=identity_of(tmp_path)).restore(state)
    assert restored is not None
    # Eight steps of gradient 2 (x - 3) and rate 1/4 halve the distance eight times.
    assert restored.state["student"].extra == pytest.approx(3 - 3 * 0.5**8)


def test_labels_reach_the_student_s_loss(tmp_path, monkeypatch):
    def with_labels(setting):
        loss = lambda extra, student, teacher, labels: labels.astype(jnp.float32)  # noqa: E731
        return grey(setting, objective=distill.Objective(loss))

    install(monkeypatch, with_labels)
    one_run.run(tiny_config(method__name="noise"), tmp_path)
    losses = [record["kd/loss"] for record in records(tmp_path) if "kd/loss" in record]
    # After two calls labels are 0 and 1, after three 0 to 2; the means of sixteen draws.
    assert 0 < losses[0] < 1
    assert 0 < losses[1] < 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "synthesize"}, "config.mode must be 'all' for the method noise"),
        ({"kd__steps_per_call": 5, "kd__steps_per_dispatch": 5}, "config.kd.steps_per_call must be a multiple of 2"),
        ({"kd__batch": 16}, "config.kd.batch must be synthesis_batch=8"),
        ({"synthesis_calls": 2}, "config.synthesis_calls must be 0 for the method"),
        ({"replay__class_exponent": 1.0}, "config.replay must be all 0 for the method noise"),
        ({"kd__cutmix": 0.5}, "config.kd.cutmix must be 0 for the method noise, whose images are not augmented"),
    ],
)
def test_what_batches_that_live_once_cannot_do_is_refused(monkeypatch, changes, message):
    install(monkeypatch, once)
    with pytest.raises(UserError, match=message):
        build.assemble(tiny_config(method__name="noise", **changes))


def test_a_method_of_data_needs_some(monkeypatch):
    install(monkeypatch, lambda setting: grey(setting, lifetime=base.DATA))
    with pytest.raises(UserError, match=r"config.transfer.source must be"):
        build.assemble(tiny_config(method__name="noise"))
