"""Adaptation and meta-gradients against closed forms on a quadratic: L(p; c) = (p - c) A (p - c) / 2."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fastdfkd_jax import meta

A = np.array([[2.0, 0.5], [0.5, 1.0]])
LR = 0.1
START = np.array([1.0, -2.0])
# Three different targets c, one a step, and a fourth for the outer loss.
TARGETS = np.array([[0.0, 0.0], [1.0, -1.5], [-1.0, 2.0]])
FINAL = np.array([0.5, 0.5])
# Everything here is a handful of float32 products.
TOLERANCE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}


def loss_fn(params, target):
    difference = params["p"] - target
    return 0.5 * difference @ jnp.array(A, jnp.float32) @ difference, {"seen": params["p"]}


def adapt(k, **options):
    return meta.adapt(loss_fn, start(), optax.sgd(LR), jnp.array(TARGETS[:k], jnp.float32), **options)


def start():
    return {"p": jnp.array(START, jnp.float32)}


def by_hand(k):
    """Iterates p_0..p_k and gradients g_1..g_k of gradient descent."""
    iterates, gradients = [START], []
    for target in TARGETS[:k]:
        gradients.append(A @ (iterates[-1] - target))
        iterates.append(iterates[-1] - LR * gradients[-1])
    return iterates, gradients


def gradient_of(rule, k, optimizer=None):
    inputs = jnp.array(TARGETS[:k], jnp.float32)
    return meta.adapt_with_gradient(
        rule, loss_fn, start(), optimizer or optax.sgd(LR), inputs, jnp.array(FINAL, jnp.float32)
    )[0]["p"]


@pytest.mark.parametrize("unroll", [1, 2, True])
def test_scan_equals_a_python_loop(unroll):
    iterates, gradients = by_hand(3)
    result = adapt(3, unroll=unroll)
    np.testing.assert_allclose(result.params["p"], iterates[-1], **TOLERANCE)
    np.testing.assert_allclose(result.grad_sum["p"], sum(gradients), **TOLERANCE)
    np.testing.assert_allclose(result.last_grad["p"], gradients[-1], **TOLERANCE)
    np.testing.assert_allclose(result.last["seen"], iterates[-2], **TOLERANCE)
    assert result.losses.shape == (3,)


def test_adam_scan_equals_a_python_loop():
    optimizer = optax.adam(LR, 0.5, 0.999)
    params, state = start(), optimizer.init(start())
    for target in TARGETS:
        gradient = jax.grad(lambda p, target=target: loss_fn(p, jnp.array(target, jnp.float32))[0])(params)
        updates, state = optimizer.update(gradient, state)
        params = optax.apply_updates(params, updates)
    found = meta.adapt(loss_fn, start(), optimizer, jnp.array(TARGETS, jnp.float32))
    np.testing.assert_allclose(found.params["p"], params["p"], **TOLERANCE)


def test_best_is_the_iterate_with_the_lowest_loss():
    iterates, _ = by_hand(3)
    losses = [0.5 * (p - c) @ A @ (p - c) for p, c in zip(iterates, TARGETS, strict=False)]
    result = adapt(3)
    np.testing.assert_allclose(result.losses, losses, **TOLERANCE)
    assert np.argmin(losses) not in (0, 2), "the example must tell best from first and last"
    np.testing.assert_allclose(result.best["seen"], iterates[np.argmin(losses)], **TOLERANCE)


def test_what_is_watched_is_kept_of_every_step():
    result = adapt(3, watch=lambda aux: 2 * aux["seen"])
    np.testing.assert_allclose(result.watched, [2 * p for p in by_hand(3)[0][:3]], **TOLERANCE)


def test_no_steps_change_nothing():
    result = adapt(0)
    np.testing.assert_array_equal(result.params["p"], START)


def test_projection_is_applied_after_every_step():
    result = adapt(3, project=lambda params: {"p": jnp.clip(params["p"], -1, 1)})
    iterate = START
    for target in TARGETS:
        iterate = np.clip(iterate - LR * A @ (iterate - target), -1, 1)
    np.testing.assert_allclose(result.params["p"], iterate, **TOLERANCE)


def test_reptile_is_the_learning_rate_times_the_sum_of_gradients():
    _, gradients = by_hand(3)
    np.testing.assert_allclose(gradient_of("reptile", 3), LR * sum(gradients), **TOLERANCE)


def test_plain_reptile_with_rate_one_makes_meta_the_adapted():
    adapted = adapt(3)
    moved = optax.apply_updates(start(), jax.tree.map(lambda g: -g, meta.reptile(start(), adapted.params)))
    np.testing.assert_allclose(moved["p"], adapted.params["p"], **TOLERANCE)


def test_first_order_rules_are_sums_and_single_gradients():
    iterates, gradients = by_hand(3)
    np.testing.assert_allclose(gradient_of("fomaml_sum", 3), sum(gradients), **TOLERANCE)
    np.testing.assert_allclose(gradient_of("fomaml_last", 3), gradients[-1], **TOLERANCE)
    np.testing.assert_allclose(gradient_of("fomaml_adapted", 3), A @ (iterates[-1] - FINAL), **TOLERANCE)


def test_first_order_rules_coincide_at_one_step():
    expected = A @ (START - TARGETS[0])
    np.testing.assert_allclose(gradient_of("fomaml_sum", 1), expected, **TOLERANCE)
    np.testing.assert_allclose(gradient_of("fomaml_last", 1), expected, **TOLERANCE)
    np.testing.assert_allclose(gradient_of("reptile", 1), LR * expected, **TOLERANCE)


@pytest.mark.parametrize("k", [1, 3])
def test_exact_maml_is_the_derivative_by_hand(k):
    iterates, _ = by_hand(k)
    # Each step's Jacobian is I - LR A, so d L(U^k(p)) / dp = (I - LR A)^k A (p_k - c).
    expected = np.linalg.matrix_power(np.eye(2) - LR * A, k) @ A @ (iterates[-1] - FINAL)
    np.testing.assert_allclose(gradient_of("maml", k), expected, **TOLERANCE)


def test_exact_maml_through_adam_is_the_numerical_derivative():
    optimizer = optax.adam(LR, 0.5, 0.999, eps=1e-2)
    inputs = jnp.array(TARGETS, jnp.float32)

    def outer(p):
        adapted = meta.adapt(loss_fn, {"p": p}, optimizer, inputs)
        return loss_fn(adapted.params, jnp.array(FINAL, jnp.float32))[0]

    p, h = jnp.array(START, jnp.float32), 1e-2
    numerical = [(outer(p + h * e) - outer(p - h * e)) / (2 * h) for e in jnp.eye(2)]
    # Central differences in float32 are good to about h^2.
    np.testing.assert_allclose(gradient_of("maml", 3, optimizer), numerical, rtol=2e-3, atol=2e-3)


def test_a_vmapped_lane_equals_a_single_run():
    starts = jnp.array([START, 2 * START], jnp.float32)
    inputs = jnp.array(TARGETS, jnp.float32)
    lanes = jax.vmap(lambda p: meta.adapt(loss_fn, {"p": p}, optax.sgd(LR), inputs).params["p"])(starts)
    np.testing.assert_allclose(lanes[0], adapt(3).params["p"], **TOLERANCE)


def test_an_unknown_rule_is_named():
    with pytest.raises(ValueError, match="steepest"):
        gradient_of("steepest", 1)
