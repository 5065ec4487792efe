"""DeepInversion: its loss against a few lines of NumPy, its stages, what it keeps, and a run in small."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import tiny_config
from test_configs import flat
from toy_network import share_on_target, toy_network

from fastdfkd_jax import models
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.configs import deepinversion as config_file
from fastdfkd_jax.configs import deepinversion_imagenet, default, quickstart
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.meta import adapt
from fastdfkd_jax.methods import base
from fastdfkd_jax.methods import deepinversion as method
from fastdfkd_jax.methods.parts.optimizers import rate_of_steps
from fastdfkd_jax.training import one_run
from fastdfkd_jax.training.config_checks import validate

BATCH = 6
STILL = {"jitter": 0, "flip": False}


@functools.cache
def variables():
    init = jax.jit(toy_network().init)
    return init(jax.random.key(0)), init(jax.random.key(1))


def setting(**changes) -> base.Setting:
    network = toy_network()
    given = base.Setting(network, network, BATCH, 4, 0, 2, lambda x: x, models.Forms())
    return given._replace(**changes)


def run(options, calls=1, **changes):
    """The batches, infos and last state of a few calls."""
    built = method.build(options, setting(**changes))
    state = jax.jit(built.init)(jax.random.key(2), variables()[0])
    step: Any = jax.jit(built.synthesize)
    batches, infos = [], []
    for call in range(calls):
        state, batch, info = step(state, *variables(), jax.random.fold_in(jax.random.key(3), call))
        batches.append(batch)
        infos.append(info.records())
    assert step._cache_size() == 1
    return batches, infos, state


def forward(x, params):
    """The toy network in NumPy: logits, and mean and variance of the BatchNorm's input."""
    p, stats = jax.tree.map(np.float64, (params["params"], params["batch_stats"]["bn"]))
    hidden = x.reshape(len(x), -1) @ p["hidden"]
    normal = (hidden - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    gap = np.linalg.norm(hidden.mean(0) - stats["mean"]) + np.linalg.norm(hidden.var(0) - stats["var"])
    return np.maximum(normal, 0) @ p["readout"], gap


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def losses_of(options, student_on=1.0, half=False):
    teacher, student = variables()
    x = jax.random.normal(jax.random.key(4), (BATCH, 8, 8, 1))
    labels = jnp.arange(BATCH)
    frozen = method.Frozen(teacher, student, labels, jnp.float32(student_on))
    loss = method.make_loss(toy_network(), toy_network(), options, half)
    return np.float64(x), labels, jax.jit(loss)(x, jax.random.key(5), frozen)


def test_the_loss_of_the_tables_is_its_formula():
    x, labels, (total, observed) = losses_of(method.DeepInversionOptions(**STILL))
    (t, r_t), (s, r_s) = (forward(x, v) for v in variables())
    p, q = softmax(s / 3), softmax(t / 3)
    m, p, q = (np.clip(y, 0.01, 0.99) for y in ((p + q) / 2, p, q))
    jsd = (0.5 * (m * np.log(m / p)).sum(-1) + 0.5 * (m * np.log(m / q)).sum(-1)).mean()
    ce = -np.log(softmax(t))[np.arange(BATCH), labels].mean()
    np.testing.assert_allclose(total, 10 * (r_t - 0.001 * r_s) + ce - jsd, rtol=1e-5)
    assert observed.terms.keys() == {"class", "feature", "adversarial", "student_feature"}
    np.testing.assert_array_equal(observed.predicted, t.argmax(-1))


def test_the_loss_with_the_paper_s_divergence_and_priors_is_its_formula():
    weights = {"class_weight": 0.7, "feature_weight": 0.05, "first_bn_multiplier": 10.0, "tv_l1": 0.3, "tv_l2": 0.2}
    options = method.DeepInversionOptions(
        **weights, l2=0.1, adversarial="adi", adversarial_weight=0.5, student_feature_weight=0.0, **STILL
    )
    x, labels, (total, _) = losses_of(options)
    (t, r_t), (s, _) = (forward(x, v) for v in variables())
    p, q = softmax(t / 3), softmax(s / 3)
    m = (p + q) / 2
    jsd = ((p * np.log(p / m)).sum(-1) + (q * np.log(q / m)).sum(-1)).mean() / 2
    ce = -np.log(softmax(t))[np.arange(BATCH), labels].mean()
    differences = (
        x[:, :, 1:] - x[:, :, :-1],
        x[:, 1:] - x[:, :-1],
        x[:, 1:, 1:] - x[:, :-1, :-1],
        x[:, 1:, :-1] - x[:, :-1, 1:],
    )
    expected = 0.7 * ce + 0.05 * 10 * r_t + 0.5 * (1 - np.clip(jsd, 0, 1))
    expected += 0.3 * sum(np.abs(d).mean() for d in differences) + 0.2 * sum(np.linalg.norm(d) for d in differences)
    expected += 0.1 * np.linalg.norm(x.reshape(BATCH, -1), axis=1).mean()
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_before_the_student_counts_its_terms_are_shown_but_not_minimised():
    options = method.DeepInversionOptions(**STILL)
    alone = method.DeepInversionOptions(adversarial_weight=0.0, student_feature_weight=0.0, **STILL)
    without, (_, _, (total, observed)) = losses_of(alone)[2], losses_of(options, student_on=0.0)
    np.testing.assert_allclose(total, without[0], rtol=1e-6)
    assert observed.terms["adversarial"] < 0
    assert without[1].terms.keys() == {"class", "feature"}


def test_the_student_counts_from_the_last_call_of_the_warm_up():
    options = method.DeepInversionOptions(num_steps=3, adversarial_weight=50.0, **STILL)
    with_student, without = (run(options, calls=2, warmup_calls=warmup)[0] for warmup in (2, 4))
    np.testing.assert_array_equal(with_student[0].images, without[0].images)
    assert not np.allclose(with_student[1].images, without[1].images, atol=1e-4)


@pytest.mark.parametrize("kept", method.IMAGES)
def test_a_call_makes_valid_images_that_meet_the_loss(kept):
    options = method.DeepInversionOptions(num_steps=60, images=kept, jitter=1, student_feature_weight=0.0)
    batches, infos, state = run(options, calls=2)
    for batch, info in zip(batches, infos, strict=True):
        assert batch.images.shape == (BATCH, 8, 8, 1)
        assert np.all((batch.images >= 0) & (batch.images <= 1))
        assert info["loss/last"] < 0.5 * info["loss/first"]
        assert info["predicted"].sum() == BATCH
        assert all(np.all(np.isfinite(value)) for value in info.values())
        assert {"loss/class", "loss/feature", "loss/adversarial", "agreement", "moment_gap"} <= info.keys()
        gaps = info["by_step/moment_gap"]
        assert gaps.shape == (50,)
        assert gaps[0] > gaps[-1] == pytest.approx(float(info["moment_gap"]), rel=1e-5)
    assert int(state.call) == 2
    assert not np.array_equal(batches[0].images, batches[1].images)


def test_the_last_image_is_that_after_the_last_step_clipped():
    """One step of Adam moves every pixel by the rate, against the sign of its gradient."""
    options = method.DeepInversionOptions(num_steps=1, lr=0.25, **STILL)
    network = toy_network()
    (batch,), _, _ = run(options)
    found = augment.normalize(batch.images, network.spec.mean, network.spec.std)
    low, high = -1.0, 0.7 / 0.3
    _, draw_key, _, _ = jax.random.split(jax.random.fold_in(jax.random.key(3), 0), 4)
    start = jnp.clip(jax.random.normal(draw_key, (BATCH, 8, 8, 1)), low, high)
    frozen = method.Frozen(*variables(), batch.labels, jnp.float32(1))
    loss = method.make_loss(network, network, options)
    gradient = jax.jit(jax.grad(lambda x: loss(x, jax.random.key(0), frozen)[0]))(start)
    np.testing.assert_allclose(found, np.clip(start - 0.25 * np.sign(gradient), low, high), atol=1e-4)


def test_on_target_is_the_share_of_images_that_the_teacher_sees_as_asked():
    """One step that hardly moves, so that the images that are judged are those that are kept."""
    options = method.DeepInversionOptions(num_steps=1, lr=1e-7, **STILL)
    batches, infos, _ = run(options, calls=8)
    hits = [share_on_target(toy_network(), variables()[0], batch) for batch in batches]
    assert [info["on_target"] for info in infos] == pytest.approx(hits)
    assert 0 < sum(hits) < 8


@pytest.mark.parametrize(
    ("weights", "advice"),
    [
        ((1.0, 10.0), "raise config.deepinversion.class_weight (1) or lower config.deepinversion.feature_weight (10)"),
        ((0.0, 10.0), ""),
    ],
)
def test_advice_on_classes_is_given_where_the_loss_asks_for_them(weights, advice):
    class_weight, feature_weight = weights
    options = method.DeepInversionOptions(class_weight=class_weight, feature_weight=feature_weight)
    assert method.build(options, setting()).class_advice == advice


def test_stages_see_images_of_their_sizes_and_steps_their_rates():
    seen = []
    network = toy_network()

    def apply(variables, images, **asked):
        seen.append(images.shape[1])
        # The toy has weights for one size.
        return network.apply(
            variables, jnp.repeat(jnp.repeat(images, 8 // images.shape[1], 1), 8 // images.shape[2], 2), **asked
        )

    both = network._replace(apply=apply)
    options = method.DeepInversionOptions(num_steps=2, half_size_steps=3, jitter=2)
    run(options, teacher=both, student=both)
    assert set(seen) == {4, 8}
    assert seen.index(4) < seen.index(8)

    options = method.DeepInversionOptions(lr=2.0, schedule="cosine", rate_warmup_steps=4)
    rate = rate_of_steps(options.schedule, options.lr, options.rate_warmup_steps, 12)
    rates = [float(rate(step)) for step in range(12)]
    expected = [0.5, 1.0, 1.5, 2.0, *(1 + np.cos(np.pi * np.arange(8) / 8))]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert rate_of_steps("constant", 0.1, 4, 7) == 0.1


def test_half_size_is_refused_where_the_teacher_cannot():
    with pytest.raises(UserError, match=r"half_size_steps must be 0 for toy, which takes no images of 4 pixels"):
        method.build(method.DeepInversionOptions(half_size_steps=1), setting())


def test_balanced_labels_hold_every_class_equally_often():
    spec = models.NetworkSpec("resnet20", 10)
    labels = method.draw_labels(jax.random.key(0), 25, spec, "balanced")
    assert sorted(np.bincount(labels)) == [2] * 5 + [3] * 5
    other = method.draw_labels(jax.random.key(1), 25, spec, "balanced")
    assert not np.array_equal(np.bincount(labels), np.bincount(other))
    many = dataclasses.replace(spec, num_classes=1000)
    assert len(np.unique(method.draw_labels(jax.random.key(0), 8, many, "balanced"))) == 8
    uniform = method.draw_labels(jax.random.key(0), 1000, spec, "uniform")
    assert 60 < np.bincount(uniform).min() < 100


@pytest.mark.parametrize(
    ("arch", "first"),
    [("resnet8", "bn1"), ("wrn10_1", "block1.layer.0.bn1"), ("vgg8", "block0.1"), ("resnet50_imagenet", "bn1")],
)
@pytest.mark.parametrize("remat", ["none", "blocks"])
@pytest.mark.parametrize("gradient", ["cpu", "xla"])
def test_the_first_batch_norm_is_that_of_the_forward_pass(arch, first, remat, gradient):
    network = models.build(models.NetworkSpec(arch, 10, 32), forms=models.Forms(conv=gradient))
    flags = models.first_batch_norms(models.rematerialised(network, remat))
    names = sorted(jax.eval_shape(network.init, jax.random.key(0))["batch_stats"])
    assert [name for name, flag in zip(names, flags, strict=True) if flag] == [first]


def test_only_the_first_batch_norm_is_multiplied():
    network = models.build(models.NetworkSpec("wrn10_1", 10, 8))
    values = jax.jit(network.init)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    frozen = method.Frozen(values, values, jnp.zeros(2, jnp.int32), jnp.ones(()))

    @jax.jit
    def feature(x):
        options = [method.DeepInversionOptions(first_bn_multiplier=m, adversarial_weight=0.0, **STILL) for m in (1, 10)]
        found = [method.make_loss(network, network, o)(x, jax.random.key(0), frozen)[1] for o in options]
        first = found[0].moments["block1.layer.0.bn1"]
        return [observed.terms["feature"] for observed in found], first

    (plain, multiplied), first = feature(x)
    # The statistics of a fresh network are 0 and 1.
    distance = np.linalg.norm(first["mean"]) + np.linalg.norm(first["var"] - 1)
    np.testing.assert_allclose(multiplied - plain, 9 * distance, rtol=1e-4)


def test_descent_keeps_what_follows_the_best_step_and_goes_on_from_a_state():
    loss = lambda x, shift: ((x - shift) ** 2, x)  # noqa: E731
    shifts = jnp.array([0.0, 3.0, 5.0, 0.5])
    done = adapt(loss, jnp.float32(4), optax.sgd(0.25), shifts)
    # 4 -> 2 -> 2.5 -> 3.75 -> 2.125; losses 16, 1, 6.25, 10.5625.
    np.testing.assert_allclose(done.losses, [16, 1, 6.25, 10.5625])
    assert (done.best, done.best_params, done.last, done.params) == (2.0, 2.5, 3.75, 2.125)
    adam = optax.adam(0.1)
    whole = adapt(loss, jnp.float32(4), adam, shifts)
    half = adapt(loss, jnp.float32(4), adam, shifts[:2])
    rest = adapt(loss, half.params, adam, shifts[2:], opt_state=half.opt_state)
    np.testing.assert_allclose(rest.params, whole.params, rtol=1e-6)
    held = adapt(loss, jnp.float32(4), adam, shifts, project=lambda x: jnp.maximum(x, 3.95))
    np.testing.assert_allclose([held.params, held.best_params], [3.95, 3.95])


@pytest.mark.parametrize("key", ["num_steps", "half_size_steps", "jitter", "lr", "labels", "adversarial"])
def test_a_value_that_cannot_work_is_refused_by_name(key):
    value = "none" if key in ("labels", "adversarial") else -1
    with pytest.raises(UserError, match=rf"config.deepinversion.{key} must be .*found"):
        method.DeepInversionOptions(**{key: value})


def test_the_configs_are_overrides_of_the_default_and_have_published_values():
    config = config_file.get_config("cifar10-wrn40_2-wrn16_1")
    options = method.DeepInversionOptions(**config.deepinversion.to_dict())
    assert options == method.DeepInversionOptions(**default.get_config().deepinversion.to_dict())
    assert options == method.DeepInversionOptions()
    assert (config.method.name, config.calls, config.warmup_calls) == ("deepinversion", 200, 0)
    theirs = config_file.get_config("original-cifar100-resnet34-resnet18-short").deepinversion
    assert (theirs.labels, theirs.tv_l2, theirs.adversarial_weight) == ("balanced", 2.5e-5, 0.0)
    imagenet = deepinversion_imagenet.get_config("resnet18_imagenet")
    assert (imagenet.teacher.image_size, imagenet.deepinversion.half_size_steps) == (224, 2000)
    known = set(flat(default.get_config()))
    for each in (config, imagenet, quickstart.get_config("deepinversion"), config_file.get_config("smoke")):
        validate(each)
        method.DeepInversionOptions(**each.deepinversion.to_dict())
        assert {key for key in flat(each) if not key.startswith("meta.kwargs.")} <= known
    with pytest.raises(UserError, match="unknown variant 'x': expected one of resnet50_imagenet"):
        deepinversion_imagenet.get_config("x")


def test_a_run_fills_the_pool_and_trains_the_student(tmp_path):
    changes = {"num_steps": 2, "jitter": 1, "flip": False, "first_bn_multiplier": 2.0, "tv_l2": 1e-3}
    changes = {f"deepinversion__{key}": value for key, value in changes.items()}
    summary = one_run.run(tiny_config(method__name="deepinversion", **changes), tmp_path)
    assert summary["images"] == 24
    assert summary["knows"] == base.TEACHER_ONLY
    assert len(list((tmp_path / "pool").glob("*.npz"))) == 3


def test_adaptive_deep_inversion_has_a_gradient_where_the_clamped_divergence_has_none():
    """With 1,000 classes nearly every probability is below the authors' clamp of 0.01 (METHOD section 8)."""
    draw = np.random.default_rng(0)
    teacher, student = (jnp.asarray(draw.normal(size=(2, 1000)), jnp.float32) for _ in range(2))
    gradients = {
        kind: jax.grad(method._adversarial)(teacher, student, method.DeepInversionOptions(adversarial=kind))
        for kind in method.ADVERSARIAL
    }
    assert np.all(gradients["jsd"] == 0)
    assert np.isfinite(gradients["adi"]).all()
    assert np.abs(gradients["adi"]).max() > 1e-6
