"""Algorithm 1 as a whole on a small real teacher: what changes, what does not, and each named option."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_architecture  # noqa: F401 - registers "toy"
from runs import tiny_config
from toy_network import share_on_target

from fastdfkd_jax import meta, moments
from fastdfkd_jax.distributed.parallel import lane_map
from fastdfkd_jax.methods import base, fastdfkd
from fastdfkd_jax.methods.fastdfkd import FastDFKDOptions
from fastdfkd_jax.methods.parts import inversion_loss, parametrization
from fastdfkd_jax.methods.parts.optimizers import InnerOptions, MetaOptions
from fastdfkd_jax.models import Forms, NetworkSpec, build
from fastdfkd_jax.models.generators.by_kind import GeneratorOptions, build_generator
from fastdfkd_jax.training.build import assemble

SPEC = NetworkSpec("toy", 10, 8, 1, (0.3,), (0.3,))
# The same program compiled with other options rounds differently; k steps of Adam on float32 amplify it.
CLOSE: dict[str, Any] = {"rtol": 2e-3, "atol": 2e-4}
TERMS = inversion_loss.InversionOptions(crop_padding=1)
TINY = FastDFKDOptions(
    num_steps=2,
    reset_first_layer_at=0,
    generator=GeneratorOptions(latent_dim=6, width=4),
    inversion=TERMS,
    meta=MetaOptions(lr=0.01, kwargs={"b1": 0.5}),
)


@functools.cache
def networks(conv="cpu"):
    """A teacher and a student with fixed random weights, and the teacher's statistics made positive."""
    teacher = build(SPEC, forms=Forms(conv=conv))
    variables = jax.jit(teacher.init)(jax.random.key(0))
    student = jax.jit(teacher.init)(jax.random.key(1))
    return teacher, variables, student


def setting_of(teacher, gradient):
    forms = Forms(conv=gradient)
    lanes = functools.partial(lane_map, task_devices=jax.devices()[:1])
    return base.Setting(teacher, teacher, 4, 3, 0, 1, lambda x: x, forms, lane_map=lanes)


@functools.cache
def run(options=TINY, calls=2, batch=4, warmup_calls=0):
    """Compiles one method and runs some calls; returns states (the initial one first), batches and infos."""
    gradient = "xla" if options.meta_rule == "maml" else "cpu"
    teacher, teacher_vars, student_vars = networks(gradient)
    setting = setting_of(teacher, gradient)._replace(batch=batch, warmup_calls=warmup_calls)
    method = fastdfkd.build(options, setting)
    step: Any = jax.jit(method.synthesize)
    states, batches, infos = [jax.jit(method.init)(jax.random.key(2), teacher_vars)], [], []
    for call in range(calls):
        state, batch, info = step(states[-1], teacher_vars, student_vars, jax.random.fold_in(jax.random.key(3), call))
        states.append(state)
        batches.append(batch)
        infos.append(info.records())
    assert step._cache_size() == 1, "one compilation must suffice for every call"
    return states, batches, infos


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def options(**changes):
    return dataclasses.replace(TINY, **changes)


def sgd(lr):
    return MetaOptions("sgd", lr, {})


def test_a_call_makes_images_and_moves_the_generator():
    states, batches, infos = run()
    assert batches[0].images.shape == (4, 8, 8, 1)
    assert np.all((batches[0].images >= 0) & (batches[0].images <= 1))
    assert np.all((batches[0].labels >= 0) & (batches[0].labels < 10))
    assert not equal(states[0].generator, states[1].generator)
    assert not equal(batches[0].images, batches[1].images)
    assert infos[0]["predicted"].sum() == 4
    assert {"loss/class", "loss/adversarial", "loss/feature", "agreement", "moment_gap"} <= infos[0].keys()
    np.testing.assert_allclose(infos[0]["by_step/moment_gap"][-1], infos[0]["moment_gap"], rtol=1e-5)


def test_on_target_is_the_share_of_images_that_the_teacher_sees_as_asked():
    """One step without a random view, so that the images that are judged are those that are kept; two lanes."""
    terms = inversion_loss.InversionOptions(crop_padding=0, flip=False)
    _, batches, infos = run(options(num_steps=1, num_tasks=2, inversion=terms), batch=16)
    teacher, variables, _ = networks()
    for batch, info in zip(batches, infos, strict=True):
        share = share_on_target(teacher, variables, batch)
        assert info["on_target"] == pytest.approx(share)
        assert 0 < share < 1, "or this would not tell the labels of one lane from those of the other"


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        (
            {"feature": "momentum"},
            "raise config.inversion.class_weight (0.4) or lower config.inversion.feature_weight (10)",
        ),
        (
            {"feature": "plain"},
            "raise config.inversion.class_weight (0.4) or lower config.inversion.feature_weight (10); "
            "config.inversion.feature='momentum' (Eq. 15) weighs statistics 10 times less",
        ),
        ({"feature": "plain", "feature_weight": 0.0}, "raise config.inversion.class_weight (0.4)"),
        ({"class_weight": 0.0}, ""),
    ],
)
def test_the_advice_on_classes_names_the_weights(changes, advice):
    assert inversion_loss.InversionOptions(**changes).class_advice == advice


def test_accumulators_change_once_a_call():
    states, _, _ = run()
    assert [int(state.accumulators.count) for state in states] == [0, 1, 2]
    assert not equal(states[1].accumulators.moments, states[2].accumulators.moments)


def test_variables_of_the_networks_are_left_alone():
    before = jax.tree.map(np.array, networks()[1:])
    run(options(unroll=True))
    assert equal(before, networks()[1:])


def test_unrolling_the_loop_changes_nothing():
    (_, rolled), (_, unrolled) = run()[0][:2], run(options(unroll=True))[0][:2]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), rolled.generator, unrolled.generator)


def test_plain_reptile_of_rate_one_makes_meta_the_adapted_one():
    terms = inversion_loss.InversionOptions(crop_padding=0, flip=False)
    reptile = options(
        meta_rule="reptile", images="adapted", latents="persistent", latents_update="adapted", inversion=terms,
        meta=sgd(1.0),
    )  # fmt: skip
    states, batches, _ = run(reptile)
    render = parametrization.from_generator(build_generator(8, 1, 6, 4)).render
    again = render(states[1].generator, states[1].latents[0])
    np.testing.assert_allclose(again, batches[0].images, **CLOSE)


@pytest.mark.parametrize("rule", meta.RULES)
def test_every_meta_rule_moves_the_generator_and_stays_finite(rule):
    states, _, _ = run(options(meta_rule=rule), calls=1)
    assert not equal(states[0].generator, states[1].generator)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states[1]))


def test_fresh_latents_are_drawn_each_call_and_periodic_ones_each_period():
    fresh, _, _ = run(calls=3)
    assert not equal(fresh[1].latents, fresh[2].latents)
    periodic, _, _ = run(options(latents="periodic", latents_period=2), calls=3)
    assert equal(periodic[1].latents, periodic[2].latents)
    assert not equal(periodic[2].latents, periodic[3].latents)
    persistent, _, _ = run(options(latents="persistent"), calls=3)
    assert equal(persistent[0].latents, persistent[3].latents)


def test_latents_are_meta_learned_only_where_asked():
    learned, _, _ = run(options(latents="persistent", latents_update="meta"))
    assert not equal(learned[0].latents, learned[1].latents)


def test_a_periodic_draw_can_recreate_the_outer_optimizer():
    kept, _, _ = run(options(latents="periodic", latents_period=2), calls=3)
    reset, _, _ = run(options(latents="periodic", latents_period=2, reset_optimizer_with_latents=True), calls=3)
    count = lambda state: int(optax.tree_utils.tree_get(state.opt_state, "count"))  # noqa: E731
    assert [count(state) for state in kept] == [0, 1, 2, 3]
    assert [count(state) for state in reset] == [0, 1, 2, 1]


def test_reuse_none_draws_a_generator_each_call():
    states, _, _ = run(options(reuse="none"))
    assert not equal(states[1].generator, states[2].generator)
    assert equal(states[1].opt_state, states[0].opt_state), "nothing is meta-learned"


def test_sequential_reuse_starts_where_the_last_call_ended():
    sequential = options(
        reuse="sequential", images="adapted", latents="persistent", latents_update="adapted",
        inversion=inversion_loss.InversionOptions(crop_padding=0, flip=False),
    )  # fmt: skip
    states, batches, _ = run(sequential)
    render = parametrization.from_generator(build_generator(8, 1, 6, 4)).render
    np.testing.assert_allclose(render(states[1].generator, states[1].latents[0]), batches[0].images, **CLOSE)


def test_pixels_stay_valid_and_are_reused_in_sequence():
    sequential = options(reuse="sequential", latents="persistent", latents_update="adapted", representation="pixels")
    states, batches, _ = run(sequential)
    assert states[1].latents.shape == (1, 4, 8, 8, 1)
    for batch in batches:
        # Projection clips in normalised space; rounding there is one unit of float32.
        assert np.all((batch.images > -1e-6) & (batch.images < 1 + 1e-6))
    assert not equal(states[1].latents, states[2].latents)


def test_the_first_layer_is_reset_at_its_call_only():
    plain, _, _ = run(calls=3)
    reset, _, _ = run(options(reset_first_layer_at=2), calls=3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), plain[1].generator, reset[1].generator)
    # After the reset the scale of the first BatchNorm is near 0 instead of near 1 (METHOD T7).
    assert np.abs(plain[2].generator["conv_blocks.0"]["scale"] - 1).max() < 0.2
    assert np.abs(reset[2].generator["conv_blocks.0"]["scale"]).max() < 0.2


def test_the_adversarial_term_waits_for_its_call():
    # JSD, because the masked KL is zero where random networks agree on none of four images.
    heavy = inversion_loss.InversionOptions(crop_padding=1, adversarial="jsd", adversarial_weight=50.0)
    on, _, _ = run(options(inversion=heavy), calls=1, warmup_calls=1)
    off, _, _ = run(options(inversion=heavy), calls=1, warmup_calls=2)
    assert not equal(on[1].generator, off[1].generator)
    without = inversion_loss.InversionOptions(crop_padding=1, adversarial_weight=0.0)
    none, _, _ = run(options(inversion=without), calls=1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), none[1].generator, off[1].generator)


@pytest.mark.parametrize(
    "terms",
    [
        {"adversarial": "jsd"},
        {"feature": "plain"},
        {"statistic": "deviation"},
        {"flip": False},
        {"least_crop": 0.5},
    ],
)
def test_every_term_option_matters(terms):
    changed = inversion_loss.InversionOptions(crop_padding=1, **terms)
    default, other = run()[0][-1], run(options(inversion=changed))[0][-1]
    assert not equal(default.generator, other.generator)


def test_four_lanes_are_the_mean_or_sum_of_their_gradients():
    lanes = options(num_tasks=4)
    mean, batches, _ = run(dataclasses.replace(lanes, meta=sgd(0.1)), calls=1)
    total, _, _ = run(dataclasses.replace(lanes, task_reduction="sum", meta=sgd(0.025)), calls=1)
    assert batches[0].images.shape == (16, 8, 8, 1)
    assert batches[0].labels.shape == (16,)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), mean[1].generator, total[1].generator)


def test_vmapped_lanes_equal_lanes_one_after_another():
    teacher, teacher_vars, student_vars = networks("xla")
    several = options(num_tasks=2, inner=InnerOptions(latents_lr=0.003), meta=MetaOptions(lr=0.01, kwargs={}))

    def call(map_lanes):
        method = fastdfkd.build(several, setting_of(teacher, "xla")._replace(lane_map=lambda num_tasks: map_lanes))
        state = method.init(jax.random.key(2), teacher_vars)
        return jax.jit(method.synthesize)(state, teacher_vars, student_vars, jax.random.key(3))

    def vectorised(f, stacked, shared):
        return jax.vmap(f, in_axes=(0, None))(stacked, shared)

    one, other = call(lane_map(2, jax.devices()[:1])), call(vectorised)
    np.testing.assert_allclose(one[1].images, other[1].images, **CLOSE)


def test_a_synthesis_call_has_no_host_callback():
    parts = assemble(tiny_config())
    state = jax.eval_shape(parts.method.init, jax.random.key(0), parts.teacher_vars)
    student = jax.eval_shape(parts.student.init, jax.random.key(0))
    text = str(jax.make_jaxpr(parts.method.synthesize)(state, parts.teacher_vars, student, jax.random.key(0)))
    assert "scan" in text
    assert "callback" not in text


def test_accumulated_moments_are_those_of_the_last_iterate():
    terms = inversion_loss.InversionOptions(crop_padding=0, flip=False)
    # With one inner step the last iterate is the start, whose moments can be computed apart.
    states, batches, _ = run(options(num_steps=1, images="last", inversion=terms), calls=1)
    teacher, teacher_vars, _ = networks()
    images = (batches[0].images - 0.3) / 0.3
    expected = jax.jit(lambda x: teacher.apply(teacher_vars, x, moments=True).moments)(images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), states[1].accumulators.moments, expected)
    assert isinstance(states[1].accumulators, moments.Accumulators)
    assert jnp.isfinite(states[1].latents).all()
