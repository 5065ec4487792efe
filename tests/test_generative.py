"""Methods with one generator for the whole run: their losses, the order of a round, the average of the generator."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import tiny_config
from toy_network import toy_network

from fastdfkd_jax import losses, models
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.methods import base, dfad, zskt
from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.models.generators import by_kind
from fastdfkd_jax.training import build, one_run

NAMES = ("dafl", "zskt", "dfq", "dfad")
BATCH = 6
# float32 sums of about a hundred terms against float64.
CLOSE = 2e-5


def method_of(name, calls=2, warmup_calls=0, steps_per_call=2, **changes):
    """A method on the toy network, with a small generator; its own options, but for these changes."""
    section = tiny_config()[name]
    section.width, section.latent_dim, section.student_steps = 4, 5, 2
    if name == "zskt":
        section.attention_weight = 0.0  # the toy network has no blocks
    section.update(changes)
    network = toy_network()
    counts = (BATCH, calls, warmup_calls, steps_per_call)
    forms = Forms(conv="xla")
    config = tiny_config(method__name=name)
    config[name] = section
    return build.method_of(config, base.Setting(network, network, *counts, lambda x: x, forms))


@functools.cache
def variables(seed):
    return toy_network().init(jax.random.key(seed))


def rounds(method, count=2, student=1):
    """States (the initial one first), batches and infos of some rounds."""
    step = jax.jit(method.synthesize)
    states, batches, infos = [jax.jit(method.init)(jax.random.key(2), variables(0))], [], []
    for index in range(count):
        key = jax.random.fold_in(jax.random.key(3), index)
        state, batch, info = step(states[-1], variables(0), variables(student), key)
        states.append(state)
        batches.append(batch)
        infos.append(jax.tree.map(np.asarray, info.records()))
    return states, batches, infos


@functools.cache
def on_the_step_s_images(name):
    """One round whose batch is what the generator's step saw, and both networks' outputs on it."""
    _, (batch,), (info,) = rounds(method_of(name, student_images="step"), 1)
    apply = functools.partial(toy_network().apply, images=batch.images[0], moments=True)
    train = tiny_config()[name].student_mode == "train"
    return jax.tree.map(np.float64, (apply(variables(0)), apply(variables(1), train=train))), info


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_dafl_s_terms_are_their_definitions():
    (teacher, _), info = on_the_step_s_images("dafl")
    p = softmax(teacher.logits)
    np.testing.assert_allclose(info["loss/class"], -np.log(p.max(-1)).mean(), rtol=CLOSE)
    mean = p.mean(0)
    np.testing.assert_allclose(info["loss/balance"], (mean * np.log10(mean)).sum(), rtol=CLOSE)
    np.testing.assert_allclose(info["loss/activation"], -np.abs(teacher.features).mean(), rtol=CLOSE)


def test_dfq_s_terms_are_their_definitions():
    (teacher, student), info = on_the_step_s_images("dfq")
    p, q = softmax(teacher.logits), softmax(student.logits)
    np.testing.assert_allclose(info["loss/adversarial"], -(p * np.log(p / q)).sum(-1).mean(), rtol=CLOSE)
    np.testing.assert_allclose(info["loss/balance"], (p.mean(0) * np.log(p.mean(0))).sum(), rtol=CLOSE)
    np.testing.assert_allclose(info["loss/class"], -(p * np.log(p)).sum(-1).mean(), rtol=CLOSE)
    np.testing.assert_allclose(
        info["loss/statistics"], gaussian(teacher.moments["bn"], variables(0)["batch_stats"]["bn"]), rtol=CLOSE
    )


def test_cmi_s_terms_of_dfq_are_their_definitions():
    """The cross-entropy with the teacher's own prediction, and Eq. 13 (METHOD section 8)."""
    method = method_of("dfq", student_images="step", class_term="argmax", statistics="l2")
    _, (batch,), (info,) = rounds(method, 1)
    teacher = jax.tree.map(np.float64, toy_network().apply(variables(0), batch.images[0], moments=True))
    np.testing.assert_allclose(info["loss/class"], -np.log(softmax(teacher.logits).max(-1)).mean(), rtol=CLOSE)
    stats = variables(0)["batch_stats"]["bn"]
    expected = sum(np.linalg.norm(teacher.moments["bn"][name] - stats[name]) for name in ("mean", "var"))
    np.testing.assert_allclose(info["loss/statistics"], expected, rtol=CLOSE)


def gaussian(got, stats):
    """Sum over channels of the divergence of two normal distributions."""
    mean, var = np.float64(got["mean"]), np.float64(got["var"]) + 1e-5
    mean0, var0 = np.float64(stats["mean"]), np.float64(stats["var"]) + 1e-5
    return (np.log(np.sqrt(var0 / var)) + (var + (mean - mean0) ** 2) / (2 * var0) - 0.5).sum()


def test_the_gaussian_divergence_is_zero_and_flat_at_the_statistics():
    stats = variables(0)["batch_stats"]
    value, gradient = jax.value_and_grad(losses.gaussian_feature)(stats, stats)
    assert value == pytest.approx(0, abs=1e-6)
    assert all(np.abs(leaf).max() < 1e-6 for leaf in jax.tree.leaves(gradient))
    constant = {"bn": {"mean": stats["bn"]["mean"], "var": jnp.zeros(16)}}
    assert np.isfinite(losses.gaussian_feature(constant, stats))


def test_adversarial_terms_are_their_definitions():
    """The student's outputs are those with the batch's own statistics (METHOD section 8)."""
    (teacher, student), info = on_the_step_s_images("zskt")
    p, q = softmax(teacher.logits), softmax(student.logits)
    # The mean of elements, as published: over images and over ten classes.
    np.testing.assert_allclose(info["loss/adversarial"], -(p * np.log(p / q)).mean(), rtol=CLOSE)
    (teacher, student), info = on_the_step_s_images("dfad")
    gap = np.abs(teacher.logits - student.logits).mean()
    np.testing.assert_allclose(info["loss/adversarial"], -gap, rtol=CLOSE)


def test_dfad_s_other_loss_is_the_logarithm():
    _, (batch,), (info,) = rounds(method_of("dfad", student_images="step", generator_loss="log_l1"), 1)
    logits = [toy_network().apply(variables(seed), batch.images[0], train=seed == 1).logits for seed in (0, 1)]
    np.testing.assert_allclose(info["loss/adversarial"], -np.log(1 + np.abs(logits[0] - logits[1]).mean()), rtol=CLOSE)


def outputs(seed, shapes=((8, 8, 3), (4, 4, 5))):
    draw = np.random.default_rng(seed)
    blocks = tuple(draw.normal(size=(BATCH, *shape)).astype(np.float32) for shape in shapes)
    return models.Outputs(draw.normal(size=(BATCH, 10)).astype(np.float32), np.zeros(()), blocks, {}, {})


def test_zskt_s_student_minimises_divergence_and_attention():
    teacher, student = outputs(0), outputs(1, ((8, 8, 2), (4, 4, 7)))
    p, q = softmax(np.float64(teacher.logits)), softmax(np.float64(student.logits))
    expected = (p * np.log(p / q)).sum(-1) / 10
    for ours, theirs in zip(teacher.blocks, student.blocks, strict=True):
        maps = [np.square(np.float64(block)).sum(-1).reshape(BATCH, -1) for block in (ours, theirs)]
        maps = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in maps]
        expected += 250 * np.square(maps[0] - maps[1]).mean(1)
    np.testing.assert_allclose(zskt.student_loss(250.0)((), student, teacher, None), expected, rtol=CLOSE)
    plain = zskt.student_loss(0.0)((), student, teacher, None)
    np.testing.assert_allclose(plain, (p * np.log(p / q)).sum(-1) / 10, rtol=CLOSE)
    summed = zskt.student_loss(0.0, "batchmean")((), student, teacher, None)
    np.testing.assert_allclose(summed, (p * np.log(p / q)).sum(-1), rtol=CLOSE)
    gradient = jax.grad(lambda x: zskt.attention(x)[0, 0])(jnp.zeros((1, 4, 4, 2)))
    assert np.isfinite(gradient).all()


def test_dfad_s_student_minimises_the_distance_of_each_image():
    teacher, student = outputs(0), outputs(1)
    objective = method_of("dfad").objective
    assert objective is not None
    found = objective.loss((), student, teacher, None)
    np.testing.assert_allclose(found, np.abs(teacher.logits - student.logits).mean(1), rtol=CLOSE)
    assert dfad.distance(np.zeros((2, 3, 3, 4)), np.ones((2, 3, 3, 4))).tolist() == [1, 1]


def student_asked_by(name, **changes):
    """Returns (train, whether there is a key for dropout) for each application of the student in a round."""
    asked, network = [], toy_network()

    def apply(variables, images, train=False, moments=False, key=None):
        asked.append((train, key is not None))
        return network.apply(variables, images, train, moments)

    config = tiny_config(method__name=name)
    config[name].update({"width": 4, "latent_dim": 5, "student_steps": 2, **changes})
    student = network._replace(apply=apply)
    setting = base.Setting(network, student, BATCH, 2, 0, 2, lambda x: x, Forms(conv="xla"))
    method = build.method_of(config, setting)
    state = jax.eval_shape(method.init, jax.random.key(0), variables(0))
    jax.eval_shape(method.synthesize, state, variables(0), variables(1), jax.random.key(1))
    return asked


def test_the_student_s_mode_in_the_generator_s_step_is_the_published_one():
    """METHOD section 8: training in DFAD and ZSKT, evaluation in DFQ; DAFL's generator does not look at it."""
    without = {"attention_weight": 0.0}
    assert student_asked_by("zskt", **without) == student_asked_by("dfad") == [(True, True)]
    assert student_asked_by("dfq") == student_asked_by("dafl") == [(False, False)]
    assert student_asked_by("zskt", student_mode="eval", **without) == [(False, False)]
    assert student_asked_by("dfq", student_mode="train") == [(True, True)]


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ("resnet18", r"do not pair up.*found '16x16, 8x8"),
        # Three stages of 16, 8 and 4 pixels, as the teacher's.
        ("resnet8", r"are not of one kind.*found 'sums of wrn16_1 and activated sums of resnet8'"),
    ],
)
def test_attention_between_stages_that_do_not_fit_is_refused(student, message):
    changes = {"teacher__checkpoint": "digits", "student__arch": student, "zskt__student_steps": 2}
    config = tiny_config(method__name="zskt", **changes)
    with pytest.raises(UserError, match=rf"zskt.attention_weight must be 0 where .* {message}"):
        build.assemble(config)
    config.zskt.attention_weight = 0.0
    build.assemble(config)


def test_networks_without_blocks_have_no_attention():
    with pytest.raises(UserError, match="found 'none of toy and none of toy'"):
        method_of("zskt", attention_weight=1.0)


@pytest.mark.parametrize("name", ["zskt", "dfq", "dfad"])
def test_the_adversary_is_the_student_itself(name):
    """Not the teacher in its place, against which the term would be zero (METHOD T8)."""
    method = method_of(name, student_images="step", student_mode="eval")
    different, same = rounds(method, 1, student=1), rounds(method, 1, student=0)
    assert different[2][0]["loss/adversarial"] < -1e-3
    assert same[2][0]["loss/adversarial"] == pytest.approx(0, abs=1e-6)
    assert different[2][0]["agreement"] < same[2][0]["agreement"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_round_moves_the_generator_and_records_it(name):
    states, batches, infos = rounds(method_of(name))
    for before, after in itertools.pairwise(states):
        assert np.any(before.generator["l1.0"]["kernel"] != after.generator["l1.0"]["kernel"])
    assert int(states[-1].round) == 2
    assert infos[0]["predicted"].sum() == BATCH
    assert {"agreement", "moment_gap"} <= infos[0].keys()
    assert np.all(batches[0].labels == -1)
    assert batches[0].images.shape[1:] == (BATCH, 8, 8, 1)


def test_a_fresh_batch_each_normalised_apart():
    method = method_of("dfad", student_steps=3)
    _, (batch,), _ = rounds(method, 1)
    assert batch.images.shape == (3, BATCH, 8, 8, 1)
    assert (method.images_per_call, method.steps_per_round) == (3 * BATCH, 3)
    assert np.all(np.abs(batch.images[0] - batch.images[1]).mean((1, 2, 3)) > 0.05)
    # The last BatchNorm, which has no parameters, saw one batch at a time.
    np.testing.assert_allclose(batch.images.mean((1, 2, 3, 4)), 0, atol=1e-5)


def test_a_repeated_batch_is_rendered_after_the_step():
    method = method_of("zskt", student_images="repeated")
    assert (method.images_per_call, method.steps_per_round) == (BATCH, 2)
    images = {kind: rounds(method_of("zskt", student_images=kind), 1)[1][0].images for kind in ("step", "repeated")}
    slow = rounds(method_of("zskt", student_images="repeated", lr=1e-12), 1)[1][0].images
    assert images["repeated"].shape == (1, BATCH, 8, 8, 1)
    # The same latents: without a step to speak of they are the step's images, after it they are not.
    np.testing.assert_allclose(slow, images["step"], atol=1e-4)
    assert np.abs(images["repeated"] - images["step"]).max() > 1e-2


def test_images_in_0_1_are_normalised_for_the_networks():
    plain = rounds(method_of("dfad", generator="large", student_images="step"), 1)[1][0].images
    # A sigmoid's 0 to 1 by the toy network's mean and deviation of 0.3.
    assert np.all((plain > -1) & (plain < 0.7 / 0.3))
    assert plain.mean() == pytest.approx(0.2 / 0.3, abs=0.2)


def test_dfq_s_adversary_waits_for_the_student():
    alone = {"balance_weight": 0.0, "class_weight": 0.0, "statistics_weight": 0.0}
    states, _, infos = rounds(method_of("dfq", warmup_calls=1, **alone))
    kernels = [state.generator["l1.0"]["kernel"] for state in states]
    same = [np.array_equal(a, b) for a, b in itertools.pairwise(kernels)]
    assert same == [True, False], "a call is one round here"
    assert infos[0]["loss/adversarial"] < 0, "told, though it does not count"
    states, _, _ = rounds(method_of("dfq", warmup_calls=1, warmup_adversarial=True, **alone), 1)
    assert np.any(states[0].generator["l1.0"]["kernel"] != states[1].generator["l1.0"]["kernel"])


def largest_steps(method, count):
    """The largest change of the generator's first kernel in each round: Adam's rate, where the gradient is steady."""
    kernels = [state.generator["l1.0"]["kernel"] for state in rounds(method, count)[0]]
    return [float(np.abs(b - a).max()) for a, b in itertools.pairwise(kernels)]


def test_the_generator_s_rate_follows_its_schedule():
    constant = largest_steps(method_of("dfad", milestones=()), 3)
    decayed = largest_steps(method_of("dfad", milestones=(1, 2)), 3)
    less = largest_steps(method_of("dfad", milestones=(1, 2), lr_decay=0.3), 3)
    cosine = largest_steps(method_of("dfad", milestones=(), cosine=True), 3)
    assert constant[0] == pytest.approx(1e-3, rel=1e-2)
    assert min(constant) > 5e-4
    # A call is one round, and so the rate falls to a tenth after each.
    assert decayed[0] == pytest.approx(constant[0], rel=1e-4)
    assert decayed[1] == pytest.approx(constant[1] / 10, rel=1e-2)
    assert decayed[2] < constant[2] / 50
    assert less[1] == pytest.approx(constant[1] * 0.3, rel=1e-2)
    # Two rounds in all: full, half, and nothing after the end.
    assert cosine[0] == pytest.approx(constant[0], rel=1e-4)
    assert cosine[1] == pytest.approx(constant[1] / 2, rel=1e-2)
    assert cosine[2] == pytest.approx(0, abs=1e-7)


def test_several_generator_steps_are_adam_on_new_latents_each():
    """Three steps of DFAD's loss written out, against one round of three; then the student's fresh batches."""
    method = method_of("dfad", generator_steps=3, ema_decay=0.5)
    (start, end), (batch,), (info,) = rounds(method, 1)
    generator = by_kind.build_generator(8, 1, 5, 4, kind="dfad", forms=Forms(conv="xla"))  # of `method_of`
    apply, adam = toy_network().apply, optax.adam(1e-3, 0.9, 0.999)

    def loss(params, key):
        images = generator.apply(params, jax.random.normal(key, (BATCH, *generator.latent_shape)))
        learned = apply(variables(1), images, train=True, key=dropout_key)
        return -jnp.abs(apply(variables(0), images).logits - learned.logits).mean()

    *step_keys, sample_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(3), 0), 5)
    params = averaged = start.generator
    state, values, value_and_grad = adam.init(params), [], jax.jit(jax.value_and_grad(loss))
    for key in step_keys:
        value, gradient = value_and_grad(params, key)
        updates, state = adam.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        averaged = jax.tree.map(lambda old, new: (old + new) / 2, averaged, params)
        values.append(value)

    # Adam divides by the gradient's own size: a rounding of a small gradient is a rounding of the whole step, 1e-3.
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5)
    jax.tree.map(close, end.generator, params)
    jax.tree.map(close, end.averaged, averaged)
    assert info["loss/adversarial"] == pytest.approx(float(values[-1]), abs=1e-4)
    assert int(end.round) == 1
    assert batch.images.shape == (2, BATCH, 8, 8, 1)
    new = jax.random.normal(jax.random.split(sample_key, 2)[1], (BATCH, *generator.latent_shape))[BATCH // 2 :]
    # Outputs are normalised over half a batch of such images, which magnifies the parameters' rounding.
    np.testing.assert_allclose(batch.images[1, BATCH // 2 :], generator.apply(params, new), atol=1e-2)


def test_the_student_has_the_last_step_s_images_of_several():
    few, many = (method_of("zskt", student_images="step", generator_steps=steps, lr=1e-12) for steps in (1, 3))
    last_key = jax.random.split(jax.random.fold_in(jax.random.key(3), 0), 4)[2]
    _, (batch,), _ = rounds(many, 1)
    assert batch.images.shape == (1, BATCH, 8, 8, 1)
    generator = by_kind.build_generator(8, 1, 5, 4, kind="zskt", forms=Forms(conv="xla"))
    latents = jax.random.normal(last_key, (BATCH, *generator.latent_shape))
    params = jax.jit(few.init)(jax.random.key(2), variables(0)).generator
    np.testing.assert_allclose(batch.images[0], generator.apply(params, latents), atol=1e-4)


def test_the_schedule_counts_the_generator_s_own_steps():
    """Two rounds of two steps are all: after the first a cosine is at half, and a milestone has passed."""
    cosine = method_of("dfad", milestones=(), cosine=True, generator_steps=2)
    moved = largest_steps(cosine, 3)
    # Steps of 1 and 0.85 thousandths, of 0.5 and 0.15, then none: momentum keeps the direction, or nearly.
    assert 1.2e-3 < moved[0] <= 1.86e-3
    assert 3e-4 < moved[1] <= 6.6e-4
    assert moved[2] == pytest.approx(0, abs=1e-7)
    decayed = largest_steps(method_of("dfad", milestones=(1,), lr_decay=1e-6, generator_steps=2), 2)
    assert decayed[0] > 1.2e-3
    assert decayed[1] < 1e-6


def test_the_averaged_generator_makes_half_of_the_student_s_images():
    options = {"student_images": "step", "lr": 0.05}
    plain, averaged = rounds(method_of("dafl", **options)), rounds(method_of("dafl", ema_decay=0.75, **options))
    for (before, after), expected in zip(itertools.pairwise(averaged[0]), plain[0][1:], strict=True):
        jax.tree.map(
            lambda old, now, mixed: np.testing.assert_allclose(mixed, 0.75 * old + 0.25 * now, atol=1e-6),
            before.averaged, after.generator, after.averaged,
        )  # fmt: skip
        jax.tree.map(np.testing.assert_array_equal, after.generator, expected.generator)
    for mixed, own in zip(averaged[1], plain[1], strict=True):
        np.testing.assert_array_equal(mixed.images[0, BATCH // 2 :], own.images[0, BATCH // 2 :])
        assert np.abs(mixed.images[0, : BATCH // 2] - own.images[0, : BATCH // 2]).max() > 1e-2
    assert plain[0][0].averaged == ()


def test_the_averaged_generator_works_on_fresh_batches():
    _, (batch,), _ = rounds(method_of("dfad", ema_decay=0.5, student_steps=3), 1)
    assert batch.images.shape == (3, BATCH, 8, 8, 1)
    assert np.isfinite(batch.images).all()


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("dafl", "generator", "spatial"),
        ("dafl", "latent_dim", 0),
        ("zskt", "student_steps", 0),
        ("dfq", "generator_steps", 0),
        ("zskt", "attention_weight", -1.0),
        ("dfq", "student_images", "all"),
        ("dfq", "ema_decay", 1.0),
        ("dfad", "student_mode", "frozen"),
        ("zskt", "kl_reduction", "sum"),
        ("dfq", "class_term", "one_hot"),
        ("dfq", "statistics", "variance"),
        ("dfad", "generator_loss", "l2"),
        ("dfad", "milestones", (0,)),
        ("dfad", "lr_decay", 0.0),
    ],
)
def test_options_that_cannot_work_are_refused(name, option, value):
    with pytest.raises(UserError, match=rf"config.{name}.{option} must be "):
        method_of(name, **{option: value})


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_each(name, tmp_path):
    config = tiny_config(method__name=name)
    section = config[name]
    section.width, section.latent_dim, section.student_steps = 8, 16, 2
    summary = one_run.run(config, tmp_path)
    assert summary["method"] == name
    batches = 2 if section.student_images == "fresh" else 1
    assert summary["images"] == 3 * 2 * batches * 8
    assert (tmp_path / "images" / "000003.png").is_file()
