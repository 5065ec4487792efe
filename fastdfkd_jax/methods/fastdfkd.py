"""FastDFKD, Algorithm 1 of the paper: k-step adaptation, synthesis and meta update of one call.

The reuse strategies of Table 5 are the same code: 'meta' learns the start of every call, 'sequential' starts
where the last call ended, 'none' starts afresh.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fastdfkd_jax import losses, meta, moments
from fastdfkd_jax.methods.base import Batch, Method, asked_classes, moment_gaps, on_target
from fastdfkd_jax.methods.parts.inversion_loss import Frozen, InversionOptions, Observed, make_inversion_loss
from fastdfkd_jax.methods.parts.parametrization import Representation
from fastdfkd_jax.models import Network, NetworkSpec

Array = jax.Array
Tree = Any
LaneMap = Callable[[Callable[..., Tree], Tree, Tree], Tree]

REUSE = ("meta", "sequential", "none")
LATENTS = ("fresh", "periodic", "persistent")
LATENTS_UPDATES = ("none", "adapted", "meta")
IMAGES = ("best", "last", "adapted")
REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True)
class FastDFKDOptions:
    """Static choices of Algorithm 1; METHOD section 0 gives the two readings of each.

    Attributes:
      num_adapt_steps: k.
      synthesis_batch: images a lane.
      num_tasks: lanes, each with its own labels and latents, whose meta-gradients are reduced to one.
      task_reduction: 'mean' over lanes, or 'sum' as Eq. 11 writes.
      reuse: 'meta', 'sequential' or 'none' (Table 5).
      meta_rule: one of `meta.RULES`.
      reptile_scale: multiplies the Reptile difference (METHOD T1).
      latents: z drawn each call ('fresh'), every `latents_period` calls ('periodic') or once ('persistent').
      latents_period: calls between draws.
      latents_update: what becomes of z between draws: 'none', 'adapted' (overwritten, METHOD T2), 'meta' (Eq. 11).
      reset_optimizer_with_latents: whether a periodic draw also recreates the outer optimizer (METHOD 1.4).
      images: 'best' of the rendered iterates (METHOD T4), the 'last' of them, or 'adapted', rendered
        once more after the k-th step (Algorithm 1 line 10).
      adversarial_start: the call, counted from 1, from which the adversarial term is on.
      reset_first_layer_at: the call, counted from 1, at which l0 is drawn anew (METHOD T7); 0 for never.
      unroll: of the k-step scan; True unrolls it whole.
    """

    num_adapt_steps: int = 5
    synthesis_batch: int = 256
    num_tasks: int = 1
    task_reduction: str = "mean"
    reuse: str = "meta"
    meta_rule: str = "fomaml_sum"
    reptile_scale: float = 1.0
    latents: str = "fresh"
    latents_period: int = 50
    latents_update: str = "none"
    reset_optimizer_with_latents: bool = False
    images: str = "best"
    adversarial_start: int = 1
    reset_first_layer_at: int = 0
    unroll: int | bool = 1


class FastDFKDState(NamedTuple):
    """What is carried from call to call.

    Attributes:
      latents: z-hat, f32[num_tasks, B, ...], or a tree of such.
      generator: theta-hat.
      opt_state: of the outer optimizer.
      accumulators: Eq. 14.
      call: i32[], synthesis calls so far.
    """

    latents: Tree
    generator: Tree
    opt_state: Tree
    accumulators: moments.Accumulators
    call: Array


class _Lane(NamedTuple):
    """One task's share of a call: adapted parameters, their (pseudo-)gradient, what they made and how steps went."""

    adapted: Tree
    gradient: Tree
    images: Array
    labels: Array
    losses: Array
    gaps: Array
    observed: Observed


def build(
    options: FastDFKDOptions,
    inversion: InversionOptions,
    teacher: Network,
    student: Network,
    representation: Representation,
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation,
    lane_map: LaneMap,
) -> Method:
    """Binds networks, options and optimizers.

    Args:
      options, inversion: static choices.
      teacher, student: the networks; only their functions are bound, never their variables.
      representation: generator or pixels.
      inner: optimizer of the parameters {'latents', 'generator'} within a call, fresh at every call.
      outer: optimizer of the meta parameters, the same tree.
      lane_map: `lane_map(f, stacked, shared)` maps `f(lane, shared)` over the leading axis (`parallel.lane_map`).
    """
    inversion_loss = make_inversion_loss(teacher, student, inversion)

    def init(key: Array, teacher_vars: Tree) -> FastDFKDState:
        latents_key, generator_key = jax.random.split(key)
        latents = _draw(latents_key, representation, options)
        generator = representation.init(generator_key)  # Algorithm 1 line 1
        opt_state = outer.init(_outer_params(latents, generator, options))
        accumulators = moments.init(teacher_vars["batch_stats"])
        return FastDFKDState(latents, generator, opt_state, accumulators, jnp.zeros((), jnp.int32))

    def run_lane(lane: tuple[Array, Array], shared: tuple[Tree, Frozen]) -> _Lane:
        """Algorithm 1 lines 6 to 10 and the gradient of line 14, for one loss L_i (its labels and views)."""
        latents, key = lane
        generator, frozen = shared
        label_key, view_key = jax.random.split(key)
        if representation.labels is None:
            labels = asked_classes(label_key, options.synthesis_batch, teacher.spec)
        else:
            labels = representation.labels(label_key, options.synthesis_batch)
        views = jax.random.split(view_key, options.num_adapt_steps + 1)

        def loss_fn(params: Tree, view: Array):
            images = representation.render(params["generator"], params["latents"])
            total, observed = inversion_loss(images, labels, view, frozen)
            return total, (images, observed)

        gradient, adapted = meta.adapt_with_gradient(
            options.meta_rule,
            loss_fn,
            {"latents": latents, "generator": generator},
            inner,
            views[:-1],
            views[-1],
            project=lambda params: {**params, "latents": representation.project(params["latents"])},
            watch=lambda aux: losses.feature(aux[1].moments, frozen.teacher_vars["batch_stats"]),
            unroll=options.unroll,
        )
        if options.meta_rule == "reptile":
            gradient = jax.tree.map(lambda g: options.reptile_scale * g, gradient)
        if options.images == "adapted":
            images = representation.render(adapted.params["generator"], adapted.params["latents"])
        else:
            images = adapted.best[0] if options.images == "best" else adapted.last[0]
        return _Lane(adapted.params, gradient, images, labels, adapted.losses, adapted.watched, adapted.last[1])

    def synthesize(state: FastDFKDState, teacher_vars: Tree, student_vars: Tree, key: Array):
        """One call; the names are those of `Method.synthesize`."""
        state = state._replace(call=state.call + 1)
        start_key, lanes_key = jax.random.split(key)
        state = _start(start_key, state, representation, outer, options)
        adversarial_on = jnp.where(state.call >= options.adversarial_start, 1.0, 0.0)  # of the precision in use
        frozen = Frozen(teacher_vars, student_vars, state.accumulators, adversarial_on)

        keys = jax.random.split(lanes_key, options.num_tasks)
        lanes = lane_map(run_lane, (state.latents, keys), (state.generator, frozen))

        seen = jax.tree.map(lambda x: x.mean(0), lanes.observed.moments)
        accumulators = moments.update(state.accumulators, seen, inversion.accumulator_weight)
        state = _meta_update(state._replace(accumulators=accumulators), lanes, outer, options)
        batch = Batch(
            lanes.images.reshape(-1, *lanes.images.shape[2:]),  # lanes become one batch, Algorithm 1 line 11
            lanes.labels.reshape(-1),
        )
        return state, batch, _info(lanes, seen, teacher_vars, teacher.spec)

    images_per_call = options.num_tasks * options.synthesis_batch
    return Method(init, synthesize, images_per_call, class_advice=inversion.class_advice)


def _draw(key: Array, representation: Representation, options: FastDFKDOptions) -> Tree:
    keys = jax.random.split(key, options.num_tasks)
    lanes = [representation.draw(lane_key, options.synthesis_batch) for lane_key in keys]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *lanes)


def _outer_params(latents: Array, generator: Tree, options: FastDFKDOptions) -> Tree:
    """The meta parameters: z-hat is among them only where it is meta-learned (Eq. 11)."""
    return {"generator": generator, **({"latents": latents} if options.latents_update == "meta" else {})}


def _start(
    key: Array, state: FastDFKDState, representation: Representation, outer, options: FastDFKDOptions
) -> FastDFKDState:
    """Algorithm 1 line 5 and the re-initialisations: everything is computed and selected by a traced flag."""
    latents_key, generator_key = jax.random.split(key)

    def select(flag: Array, new: Tree, old: Tree) -> Tree:
        return jax.tree.map(lambda a, b: jnp.where(flag, a, b), new, old)

    if options.latents != "persistent":
        period = options.latents_period if options.latents == "periodic" else 1
        redraw = (state.call - 1) % period == 0
        latents = select(redraw, _draw(latents_key, representation, options), state.latents)
        state = state._replace(latents=latents)
        if options.reset_optimizer_with_latents:
            fresh = outer.init(_outer_params(state.latents, state.generator, options))
            state = state._replace(opt_state=select(redraw, fresh, state.opt_state))
    if options.reuse == "none":
        state = state._replace(generator=representation.reset(generator_key, state.generator))
    if options.reset_first_layer_at:
        reset = representation.reset_first_layer(generator_key, state.generator)
        flag = state.call == options.reset_first_layer_at
        state = state._replace(generator=select(flag, reset, state.generator))
    return state


def _meta_update(state: FastDFKDState, lanes: _Lane, outer, options: FastDFKDOptions) -> FastDFKDState:
    """Algorithm 1 line 14 (Eq. 11), or what the other reuse strategies put in its place."""
    reduce = {"mean": lambda x: x.mean(0), "sum": lambda x: x.sum(0)}[options.task_reduction]
    if options.latents_update == "adapted":
        state = state._replace(latents=lanes.adapted["latents"])
    if options.reuse == "sequential":
        # Several lanes end in several places; their mean is the one start that they share.
        ended = jax.tree.map(lambda x: x.mean(0), lanes.adapted["generator"])
        return state._replace(generator=ended)
    if options.reuse == "none":
        return state
    params = _outer_params(state.latents, state.generator, options)
    gradient = {"generator": jax.tree.map(reduce, lanes.gradient["generator"])}
    if "latents" in params:
        gradient["latents"] = lanes.gradient["latents"]  # each lane owns its latents
    updates, opt_state = outer.update(gradient, state.opt_state, params)
    params: Tree = optax.apply_updates(params, updates)
    return state._replace(
        generator=params["generator"], latents=params.get("latents", state.latents), opt_state=opt_state
    )


def _info(lanes: _Lane, seen: Tree, teacher_vars: Tree, spec: NetworkSpec) -> dict[str, Array]:
    terms = {f"loss/{name}": value.mean() for name, value in lanes.observed.terms.items()}
    return {
        **terms,
        "loss/first": lanes.losses[:, 0].mean(),
        "loss/last": lanes.losses[:, -1].mean(),
        "agreement": lanes.observed.agreement.mean(),
        **moment_gaps(seen, teacher_vars, lanes.gaps.mean(0)),
        "predicted": jnp.bincount(lanes.observed.predicted.reshape(-1), length=spec.num_classes),
        **on_target(lanes.observed.predicted, lanes.labels, spec),
    }
