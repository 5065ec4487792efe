"""Every loss against a few lines of NumPy, and the properties that mathematics promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdfkd_jax import losses, moments
from fastdfkd_jax.distillation import kd_losses

# float32 against float64: a few units of rounding in sums of about a hundred terms.
CLOSE = 2e-6


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 2


def softmax(x):
    e = np.exp(np.float64(x) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


TEACHER, STUDENT = draw(0, 6, 5), draw(1, 6, 5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_divergence_is_its_definition(temperature):
    p, q = softmax(TEACHER / temperature), softmax(STUDENT / temperature)
    np.testing.assert_allclose(
        losses.kl_divergence(TEACHER, STUDENT, temperature), (p * np.log(p / q)).sum(-1), rtol=1e-5, atol=CLOSE
    )


def test_gradient_of_distillation_is_the_tempered_difference_of_probabilities():
    temperature = 4.0
    gradient = jax.grad(lambda s: losses.distillation(TEACHER, s, temperature).mean())(jnp.array(STUDENT))
    # d/ds T^2 KL(p_t || p_s(s/T)) = T (p_s - p_t), then the mean over the batch of 6.
    expected = temperature * (softmax(STUDENT / temperature) - softmax(TEACHER / temperature)) / 6
    np.testing.assert_allclose(gradient, expected, atol=CLOSE)


@pytest.mark.parametrize(("temperature", "others_weight"), [(1.0, 8.0), (4.0, 2.0)])
def test_decoupled_distillation_is_its_definition(temperature, others_weight):
    p, q = softmax(TEACHER / temperature), softmax(STUDENT / temperature)
    expected = []
    for row, first in enumerate(TEACHER.argmax(-1)):
        others = np.arange(5) != first
        two = [np.array([each[row, first], each[row, others].sum()]) for each in (p, q)]
        rest = [each[row, others] / each[row, others].sum() for each in (p, q)]
        of_first, of_others = ((a * np.log(a / b)).sum() for a, b in (two, rest))
        expected.append(temperature**2 * (of_first + others_weight * of_others))
    found = kd_losses.decoupled(TEACHER, STUDENT, temperature, others_weight)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_decoupled_distillation_of_a_sure_teacher_still_compares_the_other_classes():
    sure, student = np.array([[60.0, 1.0, 0.0]], np.float32), np.array([[60.0, 0.0, 1.0]], np.float32)
    assert losses.distillation(sure, student, 1.0)[0] < 1e-6
    gradient = jax.grad(lambda s: kd_losses.decoupled(sure, s, 1.0, 8.0).sum())(student)
    np.testing.assert_allclose(gradient[0, 1:], 8 * (softmax(student[:, 1:]) - softmax(sure[:, 1:]))[0], rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_standardized_logits_have_lost_only_their_mean_and_size():
    found = kd_losses.standardized(TEACHER)
    np.testing.assert_allclose(found.mean(-1), 0, atol=CLOSE)
    np.testing.assert_allclose(found.std(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(kd_losses.standardized(3 * TEACHER + 7), found, atol=1e-4)
    assert np.isfinite(jax.grad(lambda z: kd_losses.standardized(z).sum())(jnp.zeros((2, 5)))).all()


def test_cross_entropy_is_its_definition():
    labels = np.array([0, 4, 2, 1, 3, 3])
    expected = -np.log(softmax(TEACHER)[np.arange(6), labels]).mean()
    np.testing.assert_allclose(losses.cross_entropy(TEACHER, labels), expected, rtol=1e-6)


def test_adversarial_kl_counts_agreeing_samples_over_the_whole_batch():
    teacher = np.array([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0]], np.float32)
    student = np.array([[1.0, 0.0], [2.0, 0.0], [0.5, 0.0]], np.float32)  # the second one disagrees
    p, q = softmax(teacher), softmax(student)
    kl = (p * np.log(p / q)).sum(-1)
    np.testing.assert_allclose(losses.adversarial_kl(teacher, student), -(kl[0] + kl[2]) / 3, rtol=1e-5)
    gradient = jax.grad(losses.adversarial_kl)(jnp.array(teacher), jnp.array(student))
    assert np.all(gradient[1] == 0)
    assert np.all(np.abs(gradient[0]) > 0)


def test_jensen_shannon_is_symmetric_bounded_and_its_definition():
    far_p, far_q = np.array([[80.0, 0.0]], np.float32), np.array([[0.0, 80.0]], np.float32)
    p, q = softmax(TEACHER / 3), softmax(STUDENT / 3)
    m = (p + q) / 2
    expected = ((p * np.log(p / m)).sum(-1) + (q * np.log(q / m)).sum(-1)) / 2
    found = losses.jensen_shannon(TEACHER, STUDENT, 3.0)
    np.testing.assert_allclose(found, expected, atol=CLOSE)
    np.testing.assert_allclose(found, losses.jensen_shannon(STUDENT, TEACHER, 3.0), atol=CLOSE)
    assert np.all((found >= 0) & (found <= np.log(2)))
    np.testing.assert_allclose(losses.jensen_shannon(far_p, far_q), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(losses.adversarial_jsd(TEACHER, STUDENT, 3.0), -expected.mean(), atol=CLOSE)


def test_the_clamped_divergence_is_its_definition_and_stops_at_the_clamps():
    p, q = softmax(TEACHER / 0.5), softmax(STUDENT / 0.5)
    clamp = lambda x: np.clip(x, 0.01, 0.99)  # noqa: E731
    m, p, q = clamp((p + q) / 2), clamp(p), clamp(q)
    assert (p == 0.01).any()
    expected = ((m * np.log(m / p)).sum(-1) + (m * np.log(m / q)).sum(-1)) / 2
    found = losses.clamped_jensen_shannon(TEACHER, STUDENT, 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=CLOSE)
    # All probabilities are beyond the clamps, as is their mean: nothing moves.
    sure = jnp.array([[90.0, 0.0]])
    assert np.all(jax.grad(lambda x: losses.clamped_jensen_shannon(x, sure, 1.0).sum())(sure + 1) == 0)


def statistics(seed):
    """Means and positive variances of two layers with 3 and 4 channels."""
    return {
        name: {"mean": draw(seed, size), "var": np.abs(draw(seed + 1, size)) + 0.1}
        for name, size in (("bn1", 3), ("bn2", 4))
    }


def test_feature_loss_is_a_sum_of_norms_and_zero_at_the_statistics():
    got, stats = statistics(2), statistics(4)
    expected = sum(np.linalg.norm(got[n][s] - stats[n][s]) for n in got for s in ("mean", "var"))
    np.testing.assert_allclose(losses.feature(got, stats), expected, rtol=1e-6)
    by_layer = [sum(np.linalg.norm(got[n][s] - stats[n][s]) for s in ("mean", "var")) for n in ("bn1", "bn2")]
    np.testing.assert_allclose(losses.feature_by_layer(got, stats), by_layer, rtol=1e-6)
    expected = sum(
        np.linalg.norm(got[n]["mean"] - stats[n]["mean"])
        + np.linalg.norm(np.sqrt(got[n]["var"]) - np.sqrt(stats[n]["var"]))
        for n in got
    )
    np.testing.assert_allclose(losses.feature(got, stats, "deviation"), expected, rtol=1e-6)

    value, gradient = jax.value_and_grad(losses.feature)(jax.tree.map(jnp.array, stats), stats)
    assert value == 0
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("statistic", losses.STATISTICS)
def test_momentum_feature_loss_is_plain_at_first_then_mixes(statistic):
    got, stats, old = statistics(2), statistics(4), statistics(6)
    empty = moments.init(stats)
    np.testing.assert_allclose(
        losses.momentum_feature(got, stats, empty, 0.9, statistic), losses.feature(got, stats, statistic), rtol=1e-6
    )
    filled = moments.Accumulators(old, jnp.array(3))
    spread = np.sqrt if statistic == "deviation" else np.asarray
    expected = sum(
        np.linalg.norm(stats[n]["mean"] - 0.1 * got[n]["mean"] - 0.9 * old[n]["mean"])
        + np.linalg.norm(spread(stats[n]["var"]) - 0.1 * spread(got[n]["var"]) - 0.9 * spread(old[n]["var"]))
        for n in got
    )
    np.testing.assert_allclose(losses.momentum_feature(got, stats, filled, 0.9, statistic), expected, rtol=1e-5)


def test_accumulators_follow_equation_14():
    first, second = statistics(2), statistics(4)
    state = moments.update(moments.init(first), first, 0.9)
    jax.tree.map(np.testing.assert_array_equal, state.moments, first)
    state = moments.update(state, second, 0.9)
    expected = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, first, second)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state.moments, expected)
    assert state.count == 2


def test_image_priors_are_their_definitions():
    x = draw(8, 2, 4, 5, 3)
    differences = (
        x[:, :, 1:] - x[:, :, :-1],
        x[:, 1:] - x[:, :-1],
        x[:, 1:, 1:] - x[:, :-1, :-1],
        x[:, 1:, :-1] - x[:, :-1, 1:],
    )
    expected = sum(np.linalg.norm(d.ravel()) for d in differences)
    np.testing.assert_allclose(losses.total_variation(x), expected, rtol=1e-5)
    expected = sum(np.abs(d).mean() for d in differences)
    np.testing.assert_allclose(losses.total_variation_l1(x), expected, rtol=1e-6)
    np.testing.assert_allclose(losses.mean_l2(x), np.linalg.norm(x.reshape(2, -1), axis=1).mean(), rtol=1e-6)


def test_losses_of_maps_are_means_over_pixels_of_those_of_samples():
    teacher, student = draw(30, 2, 3, 4, 5), draw(31, 2, 3, 4, 5)
    flat = [logits.reshape(-1, 5) for logits in (teacher, student)]
    of_pixels = np.asarray(losses.distillation(*flat, 3.0)).reshape(2, -1)
    np.testing.assert_allclose(losses.distillation(teacher, student, 3.0), of_pixels.mean(1), rtol=1e-5)
    for loss in (losses.adversarial_kl, lambda t, s: losses.adversarial_jsd(t, s, 2.0)):
        np.testing.assert_allclose(loss(teacher, student), loss(*flat), rtol=1e-5)
    np.testing.assert_allclose(losses.entropy_of_mean(teacher), losses.entropy_of_mean(flat[0]), rtol=1e-5)
    np.testing.assert_allclose(losses.entropy(teacher).ravel(), losses.entropy(flat[0]), rtol=1e-5)


def test_void_pixels_have_no_part_in_the_cross_entropy():
    logits = draw(32, 3, 2, 4, 5)
    labels = np.random.default_rng(33).integers(0, 5, (3, 2, 4)).astype(np.uint8)
    labels[0, :, 0], labels[2] = [5, 255], 255  # the first number that is no class, and void
    values = -np.log(np.take_along_axis(softmax(logits), np.minimum(labels, 4)[..., None].astype(int), -1)[..., 0])
    expected = [values[0][labels[0] < 5].mean(), values[1].mean(), 0.0]
    np.testing.assert_allclose(losses.known_cross_entropies(logits, labels), expected, rtol=1e-5)
    gradient = jax.grad(lambda x: losses.known_cross_entropies(x, labels).sum())(logits)
    assert not np.asarray(gradient)[labels >= 5].any()


def test_a_label_of_the_whole_image_stands_for_all_its_pixels():
    logits = draw(34, 2, 3, 3, 5)
    maps = np.broadcast_to(np.array([4, -1])[:, None, None], (2, 3, 3))
    expected = losses.known_cross_entropies(logits, maps)
    np.testing.assert_array_equal(losses.known_cross_entropies(logits, jnp.array([4, -1])), expected)
    assert expected[1] == 0


def test_over_no_layers_every_loss_of_statistics_is_zero_and_has_a_gradient():
    empty = moments.init({})
    assert losses.feature_by_layer({}, {}).shape == (0,)
    for loss in (
        losses.feature,
        losses.gaussian_feature,
        lambda got, stats: losses.momentum_feature(got, stats, empty, 0.9),
        lambda got, stats: losses.feature_by_layer(got, stats).sum(),
    ):
        value, gradient = jax.value_and_grad(lambda x, loss=loss: (x**2).sum() + loss({}, {}))(jnp.arange(3.0))
        assert value == 5
        np.testing.assert_array_equal(gradient, [0, 2, 4])
    assert moments.update(empty, {}, 0.9).moments == {}


def log_softmax(x):
    shifted = np.float64(x) - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


# The softmax of a gap of 87 is the least normal float32, that of 708 the least normal float64.
GAPS = (0.0, 1.0, 80.0, 87.0, 88.0, 104.0, 110.0, 700.0, 746.0, 1e4, 1e30)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gap", GAPS)
def test_the_entropy_and_its_gradient_are_right_at_any_logits(gap, dtype):
    logits = np.array([[gap, 0.0, -gap], [0.0, gap, 0.5 * gap]], dtype)
    log_p = log_softmax(logits)
    p = np.exp(log_p)
    entropy = -(p * log_p).sum(-1)
    with jax.enable_x64(dtype == "float64"):
        # A probability below the least normal float32 is 0; its term was 88 times that.
        np.testing.assert_allclose(losses.entropy(logits), entropy, rtol=1e-6, atol=1e-36)
        gradient = jax.grad(lambda x: losses.entropy(x).sum())(jnp.asarray(logits))
        assert gradient.dtype == dtype
    # dH/dx_i = -p_i (log p_i + H); differences of numbers near 1 leave a rounding of float32.
    expected = -p * (log_p + entropy[:, None])
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=2e-7 if dtype == "float32" else 1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gap", GAPS)
def test_the_entropy_of_the_mean_has_the_gradient_of_its_closed_form(gap, dtype):
    """The third class's mean probability underflows to 0 at the larger gaps."""
    logits = np.array([[gap, 0.0, -gap], [0.0, gap, -gap], [1.0, 0.5, -gap]], dtype)
    p = np.exp(log_softmax(logits))
    mean = p.mean(0)
    # 0 log 0 is 0, and so is p times the logarithm of a mean that is 0.
    log_mean = np.log(np.where(mean > 0, mean, 1.0))
    expected = -p * (log_mean - (p * log_mean).sum(-1, keepdims=True)) / 3
    with jax.enable_x64(dtype == "float64"):
        np.testing.assert_allclose(losses.entropy_of_mean(logits), -(mean * log_mean).sum(), rtol=1e-6)
        gradient = jax.grad(losses.entropy_of_mean)(jnp.asarray(logits))
        assert gradient.dtype == dtype
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=2e-7 if dtype == "float32" else 1e-15)
