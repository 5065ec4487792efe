"""Stored outputs of a teacher: what is kept, the error, and the bytes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_network import SPEC, toy_network

from fastdfkd_jax import losses
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.distillation import distill, soft_labels
from fastdfkd_jax.distillation.kd_losses import kd_loss

CLASSES = 12
HALF = 2.0**-11  # relative rounding of float16
VIEWS = augment.ViewOptions(crop_padding=1, cutmix=1.0)


@functools.cache
def logits(seed, offset=0.0):
    return 3 * jax.random.normal(jax.random.key(seed), (40, CLASSES)) + offset


def kept(given, temperature, top_k):
    return soft_labels.decode(soft_labels.encode(given, temperature, top_k), CLASSES, temperature)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("top_k", [0, CLASSES])
def test_the_loss_of_everything_kept_is_that_of_the_teacher(temperature, top_k):
    teacher, student = logits(0), logits(1)
    found = losses.distillation(kept(teacher, temperature, top_k), student, temperature)
    expected = losses.distillation(teacher, student, temperature)
    # The error of log p is at most that of one rounding: of a logit of up to 16 over the temperature, or of p itself.
    # It moves the divergence by |log p - log q| <= 30 / T times that and, as T^2 weighs it, by 30 T of it.
    error = 16 * HALF / temperature if top_k == 0 else 2 * HALF
    np.testing.assert_allclose(found, expected, atol=30 * temperature * error)
    assert np.abs(found - expected).max() > 0, "something was rounded"
    shown = jax.nn.log_softmax(kept(teacher, temperature, top_k) / temperature)
    wanted = jax.nn.log_softmax(teacher / temperature)
    large = np.asarray(wanted) > np.log(1e-4)  # below, float16 has fewer digits
    np.testing.assert_allclose(shown[large], wanted[large], atol=2 * error)


def test_a_common_offset_of_logits_costs_no_precision():
    shifted = soft_labels.encode(logits(0, 1000.0), 1.0, 0).values
    # One rounding of float16 and those of float32 at 1000.
    np.testing.assert_allclose(shifted, soft_labels.encode(logits(0), 1.0, 0).values, atol=16 * HALF + 1e-3)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("top_k", [1, 3, CLASSES - 1])
def test_the_rest_of_the_mass_is_spread_over_the_others(temperature, top_k):
    """Against the closed form, in double precision."""
    teacher, student = np.asarray(logits(2), np.float64), np.asarray(logits(3), np.float64)
    p = np.exp(teacher / temperature)
    p /= p.sum(-1, keepdims=True)
    order = np.argsort(-p, -1)
    expected = p.copy()
    for row, others in zip(expected, order[:, top_k:], strict=True):
        row[others] = row[others].mean()
    log_q = student / temperature - np.log(np.exp(student / temperature).sum(-1, keepdims=True))
    divergence = temperature**2 * (expected * (np.log(expected) - log_q)).sum(-1)
    encoded = soft_labels.encode(logits(2), temperature, top_k)
    np.testing.assert_array_equal(encoded.classes, order[:, :top_k])
    found = soft_labels.decode(encoded, CLASSES, temperature)
    np.testing.assert_allclose(jax.nn.softmax(found / temperature), expected, rtol=4 * HALF, atol=2.0**-24)
    loss = losses.distillation(found, logits(3), temperature)
    np.testing.assert_allclose(loss, divergence, atol=30 * temperature * 2 * HALF)
    np.testing.assert_array_equal(found.argmax(-1), logits(2).argmax(-1))


@pytest.mark.parametrize("top_k", [0, 2, CLASSES])
def test_a_teacher_that_is_sure_leaves_no_infinities(top_k):
    """Float16 has no number for the probabilities of the others, or has them only as a sum."""
    sure = jnp.zeros((3, CLASSES)).at[jnp.arange(3), jnp.array([4, 5, 6])].set(jnp.array([8.0, 14.0, 60.0]))
    found = kept(sure, 1.0, top_k)
    assert np.isfinite(found).all()
    loss, gradient = jax.value_and_grad(lambda q: losses.distillation(found, q, 1.0).sum())(logits(4)[:3])
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    # What is left beside the surest class: 3.7e-3 and 9.1e-6, which 1 less a rounded probability would not have.
    exponentials = np.exp(np.asarray(found, np.float64))
    rest = 1 - exponentials.max(-1) / exponentials.sum(-1)
    np.testing.assert_allclose(rest[:2], [11 / (11 + np.exp(8)), 11 / (11 + np.exp(14))], rtol=0.05)


def test_bytes_of_a_view_are_counted_by_hand():
    plain = augment.ViewOptions(0, False)
    assert soft_labels.bytes_per_view(1000, 0, plain, 100) == 4 + 2 * 1000
    assert soft_labels.bytes_per_view(1000, 10, plain, 100) == 4 + 10 * (2 + 2) + 2
    assert soft_labels.bytes_per_view(10, 0, augment.ViewOptions(4, True), 100) == 4 + 20 + 2 * 2 + 1
    resized = augment.ViewOptions(0, True, 0.08, 1.0)
    # A window, a mirror, a partner, and a hundredth of the batch's box.
    assert soft_labels.bytes_per_view(1000, 0, resized, 100) == pytest.approx(2004 + 8 + 1 + 2 + 0.08)


@pytest.mark.parametrize("top_k", [0, 3])
def test_the_labeller_says_what_the_teacher_says_of_the_view_of_its_key(top_k):
    network, key = toy_network(), jax.random.key(5)
    images = jax.random.uniform(jax.random.key(6), (6, *SPEC.input_shape))
    variables = network.init(jax.random.key(0))
    label = soft_labels.make_labeller(network, VIEWS, 4.0, top_k)
    view, labels = jax.jit(label)(variables, images, key)
    drawn = jax.jit(lambda key: augment.draw_view(key, images.shape, VIEWS))(key)
    jax.tree.map(np.testing.assert_array_equal, view, drawn)
    shown = augment.normalize(augment.apply_view(images, drawn), SPEC.mean, SPEC.std)
    expected = soft_labels.encode(network.apply(variables, shown).logits, 4.0, top_k)
    # Another program may round a float16 to its neighbour.
    np.testing.assert_allclose(labels.values, expected.values, rtol=2 * HALF, atol=1e-3)
    promised = soft_labels.shapes(10, top_k, VIEWS, 6)
    made = soft_labels.LabelledViews(jnp.zeros(6, jnp.int32), view, labels)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(lambda x: (x.shape, x.dtype), promised)


@pytest.mark.parametrize("label_weight", [0.0, 0.5])
def test_a_step_from_stored_labels_is_the_step_with_the_teacher(label_weight):
    network, temperature = toy_network(), 4.0
    images = jax.random.uniform(jax.random.key(6), (6, *SPEC.input_shape))
    classes = jnp.arange(6)
    teacher_vars, student_vars = network.init(jax.random.key(0)), network.init(jax.random.key(1))
    distilled, optimizer = kd_loss(temperature), distill.sgd(lambda _: 0.05, 0.9, 1e-4)

    def loss(extra, student, teacher, labels):
        own = label_weight * losses.cross_entropies(student.logits, labels)
        return distilled(extra, student, teacher, labels) + own

    live = jax.jit(distill.make_step(network, network, optimizer, loss, views=augment.ViewOptions(1, cutmix=1.0)))
    label = jax.jit(soft_labels.make_labeller(network, VIEWS, temperature, 10))
    stored = jax.jit(distill.make_step_from_stored(network, optimizer, loss, temperature))
    states = [distill.from_variables(student_vars, optimizer)] * 2
    for seed in (1, 2):
        key = jax.random.key(seed)
        states[0], expected = live(states[0], teacher_vars, images, key, classes)
        states[1], found = stored(states[1], images, *label(teacher_vars, images, key), key, classes)
        # Float16's rounding: see above; the second step starts where the first one ended.
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-3)
        assert found["agreement"] == expected["agreement"]
    # Small weights are differences of gradients, of which that rounding leaves 3e-4.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-2, atol=5e-4), *states)
    start = jax.tree.leaves(student_vars["params"])
    moved = [np.abs(a - b).max() for a, b in zip(start, jax.tree.leaves(states[0].params), strict=True)]
    assert min(moved) > 2e-3, "what was compared has moved"


def test_a_step_from_stored_labels_does_not_run_the_teacher():
    """Nothing of the teacher is given to it, so it learns what it is told: here one class, with all that there is."""
    network, optimizer = toy_network(), distill.sgd(lambda _: 0.5, 0.0, 0.0)
    step = jax.jit(distill.make_step_from_stored(network, optimizer, kd_loss(1.0), 1.0))
    images = jax.random.uniform(jax.random.key(6), (6, *SPEC.input_shape))
    told = soft_labels.encode(jnp.zeros((6, 10)).at[:, 3].set(30.0), 1.0, 1)
    state = distill.from_variables(network.init(jax.random.key(1)), optimizer)
    for seed in range(30):
        state, info = step(state, images, augment.View(), told, jax.random.key(seed))
    assert info["agreement"] == 1
    assert info["loss"] < 0.05
