"""One generator after another: when it begins, when its images are kept, which classes are asked of it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import tiny_config
from toy_network import SPEC, toy_network

from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.methods import base, generative_dfd
from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.models.generators.by_kind import build_generator
from fastdfkd_jax.pool.shards import read_shard
from fastdfkd_jax.training import one_run

BATCH, STEPS = 8, 3
SMALL = {
    "width": 4, "latent_dim": 5, "classes_per_generator": 4, "calls_per_generator": 2, "steps_per_call": STEPS,
    "batches_kept": 3,
}  # fmt: skip


def method_of(calls=7, warmup_calls=1, **changes):
    """A method of the toy network's ten classes in groups of four, four and two."""
    options = generative_dfd.GenerativeDFDOptions(**(SMALL | changes))
    network = toy_network()
    forms = Forms(conv="xla")
    setting = base.Setting(network, network, BATCH, calls, warmup_calls, 2, lambda x: x, forms)
    return generative_dfd.build(options, setting)


@functools.cache
def run(calls=7):
    """States (the initial one first), batches and infos of some calls, and the teacher's variables."""
    method, network = method_of(), toy_network()
    teacher_vars, student_vars = (network.init(jax.random.key(seed)) for seed in (0, 1))
    step: Any = jax.jit(method.synthesize)
    states, batches, infos = [jax.jit(method.init)(jax.random.key(2), teacher_vars)], [], []
    for index in range(calls):
        key = jax.random.fold_in(jax.random.key(3), index)
        state, batch, info = step(states[-1], teacher_vars, student_vars, key)
        states.append(state)
        batches.append(batch)
        infos.append(info.records())
    assert step._cache_size() == 1, "one compilation must suffice for every call"
    return states, batches, infos, teacher_vars


def test_only_the_last_call_of_a_generator_keeps_its_images():
    _, batches, _, _ = run()
    assert [bool(batch.kept) for batch in batches] == [False, True, False, True, False, True, False]
    assert batches[0].images.shape == (3 * BATCH, 8, 8, 1)
    assert method_of().images_per_call == 3 * BATCH
    assert all(np.all((batch.images >= 0) & (batch.images <= 1)) for batch in batches)


def test_groups_follow_each_other_and_the_last_is_smaller():
    _, batches, _, _ = run()
    asked = [set(np.asarray(batch.labels).tolist()) for batch in batches]
    # 24 draws of four classes or two; the seventh call begins a second pass.
    assert [min(classes) for classes in asked] == [0, 0, 4, 4, 8, 8, 0]
    assert [max(classes) for classes in asked] == [3, 3, 7, 7, 9, 9, 3]


def test_a_generator_goes_on_in_its_calls_and_then_another_begins():
    states, _, _, _ = run()
    counts = [int(state.opt_state[0].count) for state in states]
    assert counts == [0, STEPS, 2 * STEPS, STEPS, 2 * STEPS, STEPS, 2 * STEPS, STEPS]
    kernels = [np.asarray(state.generator["l1.0"]["kernel"]) for state in states]
    # Adam of rate 1e-3 moves no weight by more than about that a step.
    assert np.abs(kernels[2] - kernels[1]).max() < 2e-3 * STEPS
    assert np.abs(kernels[3] - kernels[2]).max() > 0.1


def test_the_weights_beside_the_images_are_those_that_made_them():
    states, batches, _, _ = run()
    jax.tree.map(np.testing.assert_array_equal, batches[1].weights["generator"], states[2].generator)
    generator = build_generator(8, 1, 9, 4, kind="generative_dfd", forms=Forms(conv="xla"))
    # The second call's key, its third part for images, the first batch of three, and of that the latents' part.
    key = jax.random.split(jax.random.fold_in(jax.random.key(3), 1), 3)[2]
    key = jax.random.split(jax.random.split(key, 3)[0])[0]
    latents = jnp.concatenate([jax.random.normal(key, (BATCH, 5)), jax.nn.one_hot(batches[1].labels[:BATCH], 4)], -1)
    images = jax.jit(generator.apply)(batches[1].weights["generator"], latents)
    images = jnp.clip(augment.denormalize(images, SPEC.mean, SPEC.std), 0, 1)
    # The same sums in two programs: a few units of rounding through four BatchNorms.
    np.testing.assert_allclose(images, batches[1].images[:BATCH], atol=1e-4)


def test_the_measures_of_a_call_are_of_its_images():
    _, batches, infos, teacher_vars = run()
    images, labels = batches[1].images[:BATCH], batches[1].labels[:BATCH]
    out = toy_network().apply(teacher_vars, augment.normalize(images, SPEC.mean, SPEC.std))
    assert infos[1]["on_target"] == pytest.approx((out.logits.argmax(-1) == labels).mean())
    assert "predicted" not in infos[1], "a group is no measure of the balance of all classes"
    assert {"loss/class", "loss/statistics", "loss/balance", "agreement", "moment_gap"} <= infos[1].keys()


def test_its_losses_go_down():
    method, network = (
        method_of(steps_per_call=150, calls_per_generator=1, classes_per_generator=0, lr=0.01),
        toy_network(),
    )
    teacher_vars = network.init(jax.random.key(0))
    step = jax.jit(method.synthesize)
    state = jax.jit(method.init)(jax.random.key(2), teacher_vars)
    _, _, info = step(state, teacher_vars, teacher_vars, jax.random.key(3))
    # Chance is a tenth of ten classes.
    assert info.on_target > 0.5
    assert info.predicted.sum() == BATCH
    assert info.agreement == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calls": 5}, r"config.calls must be at least 3 generators x generative_dfd.calls_per_generator=2, found 5"),
        ({"warmup_calls": 0}, r"config.warmup_calls must be at least generative_dfd.calls_per_generator - 1 = 1"),
        ({"batches_kept": 0}, r"config.generative_dfd.batches_kept must be at least 1, found 0"),
        ({"generator": "spatial"}, r"config.generative_dfd.generator must be one of linear, large, "),
        ({"classes_per_generator": -1}, r"config.generative_dfd.classes_per_generator must be at least 0"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        method_of(**changes)


def test_a_run_leaves_the_kept_images_and_the_generators_in_its_shards(tmp_path):
    config = tiny_config(method__name="generative_dfd", calls=5)
    section = config.generative_dfd
    section.width, section.latent_dim, section.classes_per_generator, section.calls_per_generator = 8, 16, 5, 2
    section.steps_per_call, section.batches_kept = 2, 2
    assert one_run.run(config, tmp_path)["images"] == 2 * 2 * 8
    shards = sorted((tmp_path / "pool").iterdir())
    labels = [read_shard(path).labels for path in shards]
    assert [len(rows) for rows in labels] == [16, 16]
    assert labels[0].max() < 5 <= labels[1].min()
    with np.load(shards[1]) as arrays:
        assert arrays["weights['generator']['l1.0']['kernel']"].shape == (16 + 5, 2 * 8 * 4 * 4)
