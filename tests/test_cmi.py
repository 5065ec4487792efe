"""CMI: the bank, the contrast against NumPy, what persists, features of single images, and a run in small."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import Runs, tiny_config
from test_configs import flat
from toy_network import share_on_target, toy_network

from fastdfkd_jax import models
from fastdfkd_jax.configs import cmi as config_file
from fastdfkd_jax.configs import default, quickstart
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.methods import base, cmi
from fastdfkd_jax.methods.parts import contrastive, inversion_loss, parametrization
from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.training.checkpoint import Checkpoints
from fastdfkd_jax.training.config_checks import validate

BATCH, DIM = 4, 16  # the toy's BatchNorm has 16 channels
TINY = {"num_steps": 3, "lr": 0.1, "bank_size": 10, "negatives": 6, "head_dim": 5}
TERMS = inversion_loss.InversionOptions(feature="plain", crop_padding=1, flip=False)


def toy_images():
    """A linear map of six latents: nothing to compile."""

    def reset(key, theta):
        return {"kernel": jax.random.normal(key, theta["kernel"].shape)}

    def render(theta, latents):
        return jax.nn.sigmoid(latents @ theta["kernel"]).reshape(-1, 8, 8, 1)

    return parametrization.Representation(
        init=lambda key: {"kernel": jnp.zeros((6, 64))},
        draw=lambda key, batch: jax.random.normal(key, (batch, 6)),
        render=render,
        project=lambda latents: latents,
        reset=reset,
        reset_first_layer=reset,
    )


def method(terms=TERMS, **changes):
    options = cmi.CMIOptions(**{**TINY, **changes}, inversion=terms)
    network = toy_network()
    setting = base.Setting(network, network, BATCH, 4, 0, 2, lambda x: x, Forms())
    built = cmi.build_of_images(options, setting, toy_images())
    return built._replace(init=jax.jit(built.init))


@functools.cache
def variables():
    init = jax.jit(toy_network().init)
    return init(jax.random.key(0)), init(jax.random.key(1))


@functools.cache
def run(calls, same_keys=False, **changes):
    built = method(**changes)
    state = built.init(jax.random.key(2), variables()[0])
    step: Any = jax.jit(built.synthesize)
    states, batches, infos = [state], [], []
    for call in range(calls):
        state, batch, info = step(state, *variables(), jax.random.fold_in(jax.random.key(3), 0 if same_keys else call))
        states.append(state)
        batches.append(batch)
        infos.append(info.records())
    assert step._cache_size() == 1
    return states, batches, infos


def test_on_target_is_the_share_of_images_that_the_teacher_sees_as_asked():
    """One step without a random view, so that the images that are judged are those that are kept."""
    terms = inversion_loss.InversionOptions(crop_padding=0, flip=False)
    _, batches, infos = run(8, terms=terms, num_steps=1)
    hits = [share_on_target(toy_network(), variables()[0], batch) for batch in batches]
    assert [info["on_target"] for info in infos] == pytest.approx(hits)
    assert 0 < sum(hits) < 8
    assert method().class_advice.startswith("raise config.inversion.class_weight")


def numbered(first, count):
    """Rows whose numbers are all the same, from `first` on."""
    return jnp.broadcast_to(jnp.arange(first, first + count, dtype=jnp.float32)[:, None, None], (count, 2, 3))


def test_the_bank_forgets_the_oldest_rows_first_and_stays_its_size():
    bank, push = contrastive.init_bank(10, 3), jax.jit(contrastive.push)
    for start in range(0, 24, 4):
        bank = push(bank, numbered(start, 4))
        assert bank.rows.shape == (10, 2, 3)
        assert int(bank.filled) == min(start + 4, 10)
        held = set(np.asarray(bank.rows[: int(bank.filled), 0, 0]).tolist())
        assert held == set(range(max(0, start + 4 - 10), start + 4))
    assert np.all(bank.rows == bank.rows[:, :1, :1]), "both views of an image lie in one row"


@pytest.mark.parametrize("filled", [0, 4, 8, 10, 20])
def test_negatives_are_different_filled_rows_at_random(filled):
    bank = contrastive.init_bank(10, 3)
    for start in range(0, filled, 2):
        bank = contrastive.push(bank, numbered(start + 1, 2))
    seen = set()
    draw = jax.jit(contrastive.draw, static_argnums=2)
    for seed in range(30):
        rows, valid = draw(jax.random.key(seed), bank, 6)
        assert rows.shape == (6, 2, 3)
        assert valid.sum() == min(filled, 6)
        found = np.asarray(rows[:, 0, 0])[np.asarray(valid)]
        assert len(set(found)) == len(found)
        seen.update(found.tolist())
    # Full to the last row, where released code draws nothing for one call, draws as ever.
    assert seen == set(range(max(1, filled - 9), filled + 1))
    assert contrastive.draw(jax.random.key(0), bank, 4096)[0].shape[0] == 10


def test_the_contrast_is_its_formula():
    head = contrastive.init_head(jax.random.key(0), 7, 5)
    views, others = (jax.random.normal(jax.random.key(i), (n, 2, 7)) for i, n in ((1, 4), (2, 6)))
    valid = jnp.array([True, False, True, True, False, True])
    loss, gradient = jax.jit(jax.value_and_grad(contrastive.contrastive_loss, argnums=(0, 1)))(
        head, views, others.at[1].set(1e6), valid, 0.2
    )

    def embedded(x):
        w = jax.tree.map(np.float64, head)
        y = np.maximum(np.float64(x) @ w["hidden"]["kernel"] + w["hidden"]["bias"], 0)
        y = y @ w["output"]["kernel"] + w["output"]["bias"]
        return y / np.linalg.norm(y, axis=1, keepdims=True)

    rows = np.concatenate([views, others[np.array([0, 2, 3, 5])]])
    logits = embedded(rows[:, 0]) @ embedded(rows[:, 1]).T / 0.2
    cross_entropy = np.log(np.exp(logits).sum(1)) - np.diag(logits)
    np.testing.assert_allclose(loss, cross_entropy[:4].mean() + cross_entropy[4:].mean(), rtol=1e-5)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    assert np.all(gradient[1][:, 1] == 0), "nothing is learned through the global view"
    assert np.all(np.abs(gradient[1][:, 0]).max(-1) > 0)


def test_with_an_empty_bank_the_contrast_is_that_of_the_batch():
    head = contrastive.init_head(jax.random.key(0), 7, 5)
    views = jax.random.normal(jax.random.key(1), (4, 2, 7))
    none = jnp.zeros(6, bool)
    alone = jax.jit(contrastive.contrastive_loss)(head, views, jnp.zeros((0, 2, 7)), none[:0], 0.2)
    value, gradient = jax.jit(jax.value_and_grad(contrastive.contrastive_loss))(
        head, views, jnp.zeros((6, 2, 7)), none, 0.2
    )
    np.testing.assert_allclose(value, alone, rtol=1e-6)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_head_and_bank_persist_and_the_generator_does_not():
    states, batches, infos = run(4)
    assert states[0]._fields == ("head", "head_opt_state", "bank")
    assert [int(state.bank.filled) for state in states] == [0, 4, 8, 10, 10]
    heads = [state.head["hidden"]["kernel"] for state in states]
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(heads))
    counts = [int(jax.tree.leaves(state.head_opt_state)[0]) for state in states]
    assert counts == [0, 3, 6, 9, 12], "the head's Adam continues"
    for batch, info in zip(batches, infos, strict=True):
        assert batch.images.shape == (BATCH, 8, 8, 1)
        assert np.all((batch.images >= 0) & (batch.images <= 1))
        assert all(np.all(np.isfinite(value)) for value in info.values())
        assert {"loss/class", "loss/feature", "loss/contrastive", "loss/last", "moment_gap"} <= info.keys()
        np.testing.assert_allclose(info["by_step/moment_gap"][-1], info["moment_gap"], rtol=1e-5)


def test_without_a_contrast_a_call_depends_on_nothing_before_it():
    states, batches, infos = run(2, same_keys=True, contrastive_weight=0.0)
    assert not jax.tree.leaves((states[0].head, states[0].bank))
    np.testing.assert_array_equal(batches[0].images, batches[1].images)
    assert "loss/contrastive" not in infos[0]


def test_the_contrast_moves_the_images_and_the_bank_holds_the_features_of_those_kept():
    plain, contrasted = run(2, same_keys=True, contrastive_weight=0.0)[1][0], run(4)[1][0]
    assert not np.allclose(plain.images, contrasted.images, atol=1e-5)
    # Of one step the images are those of the start; the global view without a shift shows them whole.
    built = method(dataclasses.replace(TERMS, crop_padding=0), num_steps=1)
    state, batch, _ = jax.jit(built.synthesize)(built.init(jax.random.key(2), {}), *variables(), jax.random.key(4))
    view = (batch.images - 0.3) / 0.3
    means = toy_network().apply(variables()[0], view, image_means=True).image_means["bn"]["mean"]
    np.testing.assert_allclose(state.bank.rows[:BATCH, 1], means, rtol=1e-4, atol=1e-5)
    assert not np.allclose(state.bank.rows[:BATCH, 0], means, atol=1e-3)
    assert np.all(state.bank.rows[BATCH:] == 0)


@pytest.mark.parametrize("kind", ["plain", "rematerialised", "in chunks", "training"])
def test_image_means_are_the_shares_of_the_moments(kind):
    network = models.build(models.NetworkSpec("resnet8", 10, 8))
    wrapped = {
        "rematerialised": models.rematerialised(network, "activations"),
        "in chunks": models.in_chunks(network, 2),
    }.get(kind, network)
    values = jax.jit(network.init)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    asked = {"train": kind == "training", "moments": True, "image_means": True}
    out = jax.jit(functools.partial(wrapped.apply, **asked))(values, x)
    assert out.image_means.keys() == out.moments.keys()
    for name, means in out.image_means.items():
        assert means["mean"].shape == (4, *out.moments[name]["mean"].shape)
        np.testing.assert_allclose(means["mean"].mean(0), out.moments[name]["mean"], rtol=1e-4, atol=1e-5)
    assert np.ptp(out.image_means["bn1"]["mean"], axis=0).min() > 0
    shapes = jax.eval_shape(wrapped.apply, values, x)
    assert shapes.image_means == {}


def test_features_have_the_stated_sizes():
    wide = models.build(models.NetworkSpec("wrn40_2", 10))
    assert cmi.bank_bytes(cmi.CMIOptions(), wide) == 40960 * 2 * 2704 * 4
    assert cmi.feature_dim(models.build(models.NetworkSpec("resnet34", 10)), "blocks") == 64 + 128 + 256 + 512
    small = models.build(models.NetworkSpec("wrn10_1", 10, 8))
    network, describe = cmi.describing(small, "blocks")
    values = jax.jit(network.init)(jax.random.key(0))
    out = jax.jit(network.apply)(values, jax.random.normal(jax.random.key(1), (2, 8, 8, 3)))
    expected = np.concatenate([np.asarray(block).mean((1, 2)) for block in out.blocks], -1)
    np.testing.assert_allclose(describe(out), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"num_steps": 0}, {"temperature": 0.0}, {"features": "none"}, {"local_scale": (0.5, 1.5)}]
)
def test_a_value_that_cannot_work_is_refused_by_name(changes):
    with pytest.raises(UserError, match=rf"config.cmi.{next(iter(changes))} must be .*found"):
        cmi.CMIOptions(**changes)


def test_a_bank_smaller_than_a_batch_is_refused():
    with pytest.raises(UserError, match=r"config.cmi.bank_size must be at least synthesis_batch=4, found 3"):
        method(bank_size=3)


def test_the_configs_are_overrides_of_the_default_and_have_published_values():
    config = config_file.get_config("cifar100-wrn40_2-wrn16_1-short")
    assert cmi.CMIOptions(**config.cmi.to_dict()) == cmi.CMIOptions()
    assert (config.inversion.adversarial_weight, config.inversion.feature_weight) == (0.5, 1.0)
    assert (config.method.name, config.calls, config.warmup_calls) == ("cmi", 55, 0)
    known = set(flat(default.get_config()))
    for each in (config, quickstart.get_config("cmi"), config_file.get_config("smoke")):
        validate(each)
        cmi.CMIOptions(**each.cmi.to_dict())
        assert {key for key in flat(each) if not key.startswith("meta.kwargs.")} <= known


def test_a_run_saves_the_bank_and_trains_the_student(tmp_path):
    changes = {"num_steps": 2, "bank_size": 16, "negatives": 8, "head_dim": 8}
    config = tiny_config(
        method__name="cmi", inversion__feature="plain", **{f"cmi__{key}": value for key, value in changes.items()}
    )
    runs = Runs()
    summary = runs.run(config, tmp_path)
    assert summary["images"] == 24
    assert Checkpoints(tmp_path / "checkpoints").latest
    again = runs.run(config, tmp_path)
    assert again["student_accuracy_last"] == summary["student_accuracy_last"]


def test_cmi_s_own_recipes_are_the_published_ones():
    """METHOD sections 1.5, 2 and 8; what they do not set is FastDFKD's script."""
    pair = "cifar10-wrn40_2-wrn16_1"
    released, scratch, adversarial = (
        config_file.get_config(f"{pair}{end}") for end in ("", "-scratch", "-adversarial")
    )
    for config in (released, scratch, adversarial, config_file.get_config(f"{pair}-adversarial-smoke")):
        validate(config)
    assert (released.cmi.temperature, released.kd.final_lr) == (0.2, 2e-4)
    released.cmi.temperature, released.kd.final_lr = 0.1, 0.0
    assert scratch == released
    assert (scratch.calls, scratch.kd.steps_per_call, scratch.kd.batch, scratch.synthesis_batch) == (200, 400, 256, 256)
    assert (scratch.kd.lr, scratch.kd.temperature, scratch.kd.momentum, scratch.kd.weight_decay) == (0.1, 20, 0.9, 1e-4)
    scratch.calls, scratch.kd.steps_per_call, scratch.kd.batch, scratch.inversion.class_weight = 40, 2000, 128, 0.5
    assert adversarial == scratch
