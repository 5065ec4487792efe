"""Gradient descent on what makes a batch, for methods that optimise every batch from the start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Array = jax.Array
Tree = Any


class Descent(NamedTuple):
    """Result of a number of steps.

    Attributes:
      params: the parameters after the last step.
      opt_state: the optimizer's state then.
      losses: f32[steps], the loss before each step.
      best: the aux of the step with the lowest loss, of before that step.
      best_params: the parameters after that step.
      last: the aux of the last step, of before it.
      watched: what was asked for of each step's aux, with leading axis steps.
    """

    params: Tree
    opt_state: Tree
    losses: Array
    best: Tree
    best_params: Tree
    last: Tree
    watched: Tree = ()


def descend(
    loss_fn: Callable[[Tree, Tree], tuple[Array, Tree]],
    params: Tree,
    optimizer: optax.GradientTransformation,
    opt_state: Tree,
    inputs: Tree,
    *,
    project: Callable[[Tree], Tree] = lambda params: params,
    watch: Callable[[Tree], Tree] = lambda aux: (),
) -> Descent:
    """Takes one optimizer step for each entry of `inputs`.

    Unlike `meta.adapt` it goes on from an optimizer state, and knows the parameters after the best step. What the
    caller does not use of the result is not computed in a compiled program.

    Args:
      loss_fn: `loss_fn(params, x) -> (loss, aux)`.
      params: where to start.
      optimizer: of the parameters.
      opt_state: its state at the start.
      inputs: tree with a leading axis, one entry a step (random keys, say); at least one.
      project: applied to the parameters after each step.
      watch: what to keep of the aux of every step.
    """
    evaluate = jax.value_and_grad(loss_fn, has_aux=True)
    first_input = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), inputs)
    aux_shape = jax.eval_shape(loss_fn, params, first_input)[1]
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), aux_shape)

    def step(carry, x):
        params, opt_state, best_loss, best, _ = carry
        (loss, aux), gradient = evaluate(params, x)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = project(optax.apply_updates(params, updates))
        better = loss < best_loss
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), (aux, params), best)
        return (params, opt_state, jnp.minimum(loss, best_loss), best, aux), (loss, watch(aux))

    start = (params, opt_state, jnp.array(jnp.inf), (empty, params), empty)
    (params, opt_state, _, (best, best_params), last), (losses, watched) = jax.lax.scan(step, start, inputs)
    return Descent(params, opt_state, losses, best, best_params, last, watched)
