"""k-step adaptation and meta-gradients, as pure functions of any pytree.

`loss_fn(params, x) -> (loss, aux)` is differentiated with respect to `params` only. `inputs` stacks the x of every
step along a leading axis; x may be a random key, for example.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Array = jax.Array
Tree = Any
LossFn = Callable[[Tree, Tree], tuple[Array, Tree]]

RULES = ("reptile", "fomaml_sum", "fomaml_last", "fomaml_adapted", "maml")


class Adapted(NamedTuple):
    """Result of k gradient steps.

    Attributes:
      params: theta* = U^k(theta), the parameters after the last step (paper Eq. 6 and 8).
      opt_state: the inner optimizer's state after the last step.
      losses: f32[k], the loss before each step.
      best: the aux of the step with the lowest loss, computed before that step's update.
      best_params: the parameters after that step's update.
      last: the aux of the last step, computed at the parameters after k - 1 updates.
      grad_sum: sum of all k gradients.
      last_grad: the gradient of the last step.
      watched: the values that `watch` kept from each step's aux, with leading axis k.
    """

    params: Tree
    opt_state: Tree
    losses: Array
    best: Tree
    best_params: Tree
    last: Tree
    grad_sum: Tree
    last_grad: Tree
    watched: Tree = ()


def adapt(
    loss_fn: LossFn,
    params: Tree,
    optimizer: optax.GradientTransformation,
    inputs: Tree,
    *,
    opt_state: Tree | None = None,
    project: Callable[[Tree], Tree] = lambda params: params,
    watch: Callable[[Tree], Tree] = lambda aux: (),
    unroll: int | bool = 1,
    remat: bool = False,
) -> Adapted:
    """Takes one optimizer step for each entry of `inputs`.

    A compiled program does not compute the fields that the caller leaves unused.

    Source: Algorithm 1 lines 6 to 9 with `optax.sgd`; the released code has Adam here (METHOD 1.9).

    Args:
      loss_fn: `loss_fn(params, x) -> (loss, aux)`.
      params: the parameters to adapt.
      optimizer: the inner optimizer.
      inputs: tree with leading axis k; k = 0 changes nothing and makes `best` and `last` zeros.
      opt_state: the inner optimizer's initial state; None for a fresh one.
      project: applied to the parameters after each step, for example to clip pixels.
      watch: selects the values to keep from every step's aux.
      unroll: passed to `lax.scan`.
      remat: recompute each step in a backward pass through the loop instead of storing it.

    >>> loss_fn = lambda x, _: (0.5 * x**2, x)
    >>> adapted = fd.meta.adapt(loss_fn, 8.0, optax.sgd(0.5), jnp.arange(3))
    >>> adapted.params, adapted.losses
    (Array(1., dtype=float32), Array([32.,  8.,  2.], dtype=float32, weak_type=True))
    """
    evaluate = jax.value_and_grad(loss_fn, has_aux=True)
    step_input = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), inputs)
    aux_shape = jax.eval_shape(loss_fn, params, step_input)[1]
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), aux_shape)
    zeros = jax.tree.map(jnp.zeros_like, params)

    def step(carry, x):
        (params, opt_state), (best_loss, best), _, (grad_sum, _) = carry
        (loss, aux), grads = evaluate(params, x)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = project(optax.apply_updates(params, updates))
        better = loss < best_loss
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), (aux, params), best)
        grad_sum = jax.tree.map(jnp.add, grad_sum, grads)
        best_so_far = jnp.minimum(loss, best_loss), best
        return ((params, opt_state), best_so_far, aux, (grad_sum, grads)), (loss, watch(aux))

    opt_state = optimizer.init(params) if opt_state is None else opt_state
    start = ((params, opt_state), (jnp.array(jnp.inf), (empty, params)), empty, (zeros, zeros))
    carry, (losses, watched) = jax.lax.scan(jax.checkpoint(step) if remat else step, start, inputs, unroll=unroll)
    (params, opt_state), (_, (best, best_params)), last, (grad_sum, last_grad) = carry
    return Adapted(params, opt_state, losses, best, best_params, last, grad_sum, last_grad, watched)


def reptile(meta: Tree, adapted: Tree) -> Tree:
    """Returns the pseudo-gradient theta_hat - theta* (paper Eq. 10); descending along it moves meta towards adapted.

    >>> fd.meta.reptile({"w": jnp.array(8.0)}, {"w": jnp.array(1.0)})
    {'w': Array(7., dtype=float32, weak_type=True)}
    """
    return jax.tree.map(jnp.subtract, meta, adapted)


def adapt_with_gradient(
    rule: str,
    loss_fn: LossFn,
    meta: Tree,
    optimizer: optax.GradientTransformation,
    inputs: Tree,
    final_input: Tree,
    *,
    project: Callable[[Tree], Tree] = lambda params: params,
    watch: Callable[[Tree], Tree] = lambda aux: (),
    unroll: int | bool = 1,
) -> tuple[Tree, Adapted]:
    """Adapts the meta parameters and returns the (pseudo-)gradient of the outer objective L(U^k(meta)), Eq. 5.

    Args:
      rule: 'reptile', Eq. 10; 'fomaml_sum', the sum of all inner gradients (released CIFAR code, METHOD T1);
        'fomaml_last', the last inner gradient, at theta^(k-1); 'fomaml_adapted', one more gradient at
        theta* (Eq. 9); 'maml', the exact second-order gradient (Eq. 7). For 'maml', `loss_fn` must not contain a fast
        convolution with a `custom_vjp`; see `models.layers.Conv`.
      loss_fn, optimizer, inputs, project, watch, unroll: as for `adapt`.
      meta: the parameters to start from.
      final_input: the input of the outer loss for 'fomaml_adapted' and 'maml'.

    Returns:
      The gradient, a tree like `meta`, and the `Adapted` result.

    >>> loss_fn = lambda x, _: (0.5 * x**2, x)
    >>> steps, last = jnp.arange(3), jnp.array(3)
    >>> exact, _ = fd.meta.adapt_with_gradient("maml", loss_fn, 8.0, optax.sgd(0.5), steps, last)
    >>> exact  # (1 - 0.5)**6 * 8: each of three steps halves x
    Array(0.125, dtype=float32, weak_type=True)
    """
    if rule == "maml":

        def outer(params: Tree) -> tuple[Array, Adapted]:
            adapted = adapt(loss_fn, params, optimizer, inputs, project=project, watch=watch, unroll=unroll, remat=True)
            return loss_fn(adapted.params, final_input)[0], adapted

        return jax.grad(outer, has_aux=True)(meta)

    adapted = adapt(loss_fn, meta, optimizer, inputs, project=project, watch=watch, unroll=unroll)
    if rule == "reptile":
        return reptile(meta, adapted.params), adapted
    if rule == "fomaml_sum":
        return adapted.grad_sum, adapted
    if rule == "fomaml_last":
        return adapted.last_grad, adapted
    if rule == "fomaml_adapted":
        return jax.grad(loss_fn, has_aux=True)(adapted.params, final_input)[0], adapted
    raise ValueError(f"expected a rule of {', '.join(RULES)}, found {rule!r}")
