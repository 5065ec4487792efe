"""FastDFKD, Algorithm 1 of the paper: k-step adaptation, synthesis and meta update of one call.

The same code covers the reuse strategies of Table 5: 'meta' learns the start of every call, 'sequential' starts
where the last call ended, 'none' reinitialises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fastdfkd_jax import losses, meta, moments
from fastdfkd_jax.methods.base import (
    Batch,
    Info,
    LaneMap,
    LaneOptions,
    Method,
    Setting,
    asked_classes,
    moment_gaps,
    on_target,
)
from fastdfkd_jax.methods.parts import parametrization
from fastdfkd_jax.methods.parts.inversion_loss import Frozen, InversionOptions, Observed, make_inversion_loss
from fastdfkd_jax.methods.parts.optimizers import InnerOptions, MetaOptions, inner_optimizer, meta_optimizer
from fastdfkd_jax.methods.parts.parametrization import Representation
from fastdfkd_jax.models import NetworkSpec
from fastdfkd_jax.models.generators.by_kind import GeneratorOptions
from fastdfkd_jax.options import option

Array = jax.Array
Tree = Any

REUSE = ("meta", "sequential", "none")
LATENTS = ("fresh", "periodic", "persistent")
LATENTS_UPDATES = ("none", "adapted", "meta")
IMAGES = ("best", "last", "adapted")


@dataclass(frozen=True)
class FastDFKDOptions(LaneOptions, section="fastdfkd"):
    """Options of FastDFKD (Algorithm 1); METHOD section 0 gives the two readings of each."""

    num_steps: int = option(5, "inner steps per synthesis call (k in the paper)", at_least=1)
    reuse: str = option("meta", "start of each call: 'meta', 'sequential' or 'none' (Table 5)", choices=REUSE)
    representation: str = option(
        "generator",
        "representation of the images: 'generator' or 'pixels' (Table 5)",
        choices=parametrization.REPRESENTATIONS,
    )
    meta_rule: str = option("fomaml_sum", "update rule of the meta parameters (meta.RULES)", choices=meta.RULES)
    reptile_scale: float = option(1.0, "factor on the Reptile difference (METHOD T1)")
    latents: str = option(
        "fresh",
        "draws of z: every call ('fresh'), every latents_period calls ('periodic') or once ('persistent') (METHOD T2)",
        choices=LATENTS,
    )
    latents_period: int = option(50, "calls between draws of z when latents is 'periodic'", at_least=1)
    latents_update: str = option(
        "none",
        "update of z between draws: 'none', 'adapted' (overwritten by the adapted z, METHOD T2) or 'meta' (Eq. 11)",
        choices=LATENTS_UPDATES,
    )
    reset_optimizer_with_latents: bool = option(
        False, "also restart the outer optimizer whenever z is drawn periodically (METHOD 1.4)"
    )
    images: str = option(
        "best",
        "images kept of a call: the 'best' or the 'last' of the rendered iterates (METHOD T4), or 'adapted', "
        "rendered once more after the k-th step (Algorithm 1 line 10)",
        choices=IMAGES,
    )
    reset_first_layer_at: int = option(
        140, "call, counted from 1, that reinitialises the generator's layer l0 (METHOD T7); 0 for never", at_least=0
    )
    unroll: int | bool = option(1, "inner steps unrolled in the compiled loop; True for all", at_least=1)
    generator: GeneratorOptions = field(default_factory=GeneratorOptions)
    inversion: InversionOptions = field(default_factory=InversionOptions)
    inner: InnerOptions = field(default_factory=InnerOptions)
    meta: MetaOptions = field(default_factory=MetaOptions)


class FastDFKDState(NamedTuple):
    """The state carried from call to call.

    Attributes:
      latents: z-hat, f32[num_tasks, B, ...].
      generator: theta-hat.
      opt_state: state of the outer optimizer.
      accumulators: the running moments of Eq. 14.
      call: i32[], synthesis calls so far.
    """

    latents: Array
    generator: Tree
    opt_state: Tree
    accumulators: moments.Accumulators
    call: Array


class _Lane(NamedTuple):
    """One lane's share of a call: adapted parameters, their (pseudo-)gradient, images and statistics of the steps."""

    adapted: Tree
    gradient: Tree
    images: Array
    labels: Array
    losses: Array
    gaps: Array
    observed: Observed


def build(options: FastDFKDOptions, setting: Setting) -> Method:
    """Binds networks, options and optimizers.

    Raises:
      UserError: the generator does not support the teacher's image size; optax has no such outer optimizer; the lanes
        cannot be divided among the devices; or the loss has a class term and the teacher outputs maps.
    """
    bound = _Bound(
        options,
        setting,
        representation=parametrization.of_kind(options.representation, options.generator, setting),
        inner=inner_optimizer(options.inner),
        outer=meta_optimizer(options.meta),
        lane_map=setting.lane_map(options.num_tasks),
        loss=make_inversion_loss(setting.teacher, setting.student, options.inversion),
    )
    images_per_call = options.num_tasks * setting.batch
    return Method(bound.init, bound.synthesize, images_per_call, class_advice=options.inversion.class_advice)


@dataclass(frozen=True, eq=False)
class _Bound:
    """The method with its static parts.

    Attributes:
      options, setting: static choices, and the run's setting.
      representation: generator or pixels.
      inner: optimizer of the parameters {'latents', 'generator'} within a call, fresh at every call.
      outer: optimizer of the meta parameters, which have the same tree.
      lane_map: maps `f(lane, shared)` over the lanes.
      loss: the inversion loss.
    """

    options: FastDFKDOptions
    setting: Setting
    representation: Representation
    inner: optax.GradientTransformation
    outer: optax.GradientTransformation
    lane_map: LaneMap
    loss: Callable[..., tuple[Array, Observed]]

    def init(self, key: Array, teacher_vars: Tree) -> FastDFKDState:
        latents_key, generator_key = jax.random.split(key)
        latents = self._draw(latents_key)
        generator = self.representation.init(generator_key)  # Algorithm 1 line 1
        opt_state = self.outer.init(_outer_params(latents, generator, self.options))
        accumulators = moments.init(teacher_vars["batch_stats"])
        return FastDFKDState(latents, generator, opt_state, accumulators, jnp.zeros((), jnp.int32))

    def synthesize(self, state: FastDFKDState, teacher_vars: Tree, student_vars: Tree, key: Array):
        """Runs one call; the arguments are those of `Method.synthesize`."""
        options, teacher = self.options, self.setting.teacher
        state = state._replace(call=state.call + 1)
        start_key, lanes_key = jax.random.split(key)
        state = self._start(start_key, state)
        # Starts one call before the first with KD, as in the released code (METHOD 1.1).
        adversarial_on = jnp.where(state.call >= max(1, self.setting.warmup_calls), 1.0, 0.0)  # default precision
        frozen = Frozen(teacher_vars, student_vars, state.accumulators, adversarial_on)

        keys = jax.random.split(lanes_key, options.num_tasks)
        lanes = self.lane_map(self._run_lane, (state.latents, keys), (state.generator, frozen))

        seen = jax.tree.map(lambda x: x.mean(0), lanes.observed.moments)
        accumulators = moments.update(state.accumulators, seen, options.inversion.accumulator_weight)
        state = _meta_update(state._replace(accumulators=accumulators), lanes, self.outer, options)
        batch = Batch(
            lanes.images.reshape(-1, *lanes.images.shape[2:]),  # merges the lanes into one batch, Algorithm 1 line 11
            lanes.labels.reshape(-1),
        )
        return state, batch, _info(lanes, seen, teacher_vars, teacher.spec)

    def _run_lane(self, lane: tuple[Array, Array], shared: tuple[Tree, Frozen]) -> _Lane:
        """Runs Algorithm 1 lines 6 to 10 and the gradient of line 14 for one loss L_i (its labels and views)."""
        options, representation = self.options, self.representation
        latents, key = lane
        generator, frozen = shared
        label_key, view_key = jax.random.split(key)
        labels = asked_classes(label_key, self.setting.batch, self.setting.teacher.spec)
        views = jax.random.split(view_key, options.num_steps + 1)

        def loss_fn(params: Tree, view: Array):
            images = representation.render(params["generator"], params["latents"])
            total, observed = self.loss(images, labels, view, frozen)
            return total, (images, observed)

        gradient, adapted = meta.adapt_with_gradient(
            options.meta_rule,
            loss_fn,
            {"latents": latents, "generator": generator},
            self.inner,
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

    def _draw(self, key: Array) -> Array:
        """Draws the latents of all lanes."""
        keys = jax.random.split(key, self.options.num_tasks)
        return jnp.stack([self.representation.draw(lane_key, self.setting.batch) for lane_key in keys])

    def _start(self, key: Array, state: FastDFKDState) -> FastDFKDState:
        """Applies Algorithm 1 line 5 and the re-initialisations.

        All alternatives are computed, and a traced flag selects one.
        """
        options, representation = self.options, self.representation
        latents_key, generator_key = jax.random.split(key)

        def select(flag: Array, new: Tree, old: Tree) -> Tree:
            return jax.tree.map(lambda a, b: jnp.where(flag, a, b), new, old)

        if options.latents != "persistent":
            period = options.latents_period if options.latents == "periodic" else 1
            redraw = (state.call - 1) % period == 0
            state = state._replace(latents=select(redraw, self._draw(latents_key), state.latents))
            if options.reset_optimizer_with_latents:
                fresh = self.outer.init(_outer_params(state.latents, state.generator, options))
                state = state._replace(opt_state=select(redraw, fresh, state.opt_state))
        if options.reuse == "none":
            state = state._replace(generator=representation.reset(generator_key, state.generator))
        if options.reset_first_layer_at:
            reset = representation.reset_first_layer(generator_key, state.generator)
            flag = state.call == options.reset_first_layer_at
            state = state._replace(generator=select(flag, reset, state.generator))
        return state


def _outer_params(latents: Array, generator: Tree, options: FastDFKDOptions) -> Tree:
    """Returns the meta parameters; they include z-hat only if it is meta-learned (Eq. 11)."""
    return {"generator": generator, **({"latents": latents} if options.latents_update == "meta" else {})}


def _meta_update(state: FastDFKDState, lanes: _Lane, outer, options: FastDFKDOptions) -> FastDFKDState:
    """Applies Algorithm 1 line 14 (Eq. 11), or its replacement in the other reuse strategies."""
    reduce = {"mean": lambda x: x.mean(0), "sum": lambda x: x.sum(0)}[options.task_reduction]
    if options.latents_update == "adapted":
        state = state._replace(latents=lanes.adapted["latents"])
    if options.reuse == "sequential":
        # Each lane ends with its own parameters; the shared start is their mean.
        ended = jax.tree.map(lambda x: x.mean(0), lanes.adapted["generator"])
        return state._replace(generator=ended)
    if options.reuse == "none":
        return state
    params = _outer_params(state.latents, state.generator, options)
    gradient = {"generator": jax.tree.map(reduce, lanes.gradient["generator"])}
    if "latents" in params:
        gradient["latents"] = lanes.gradient["latents"]  # latents are per lane
    updates, opt_state = outer.update(gradient, state.opt_state, params)
    params: Tree = optax.apply_updates(params, updates)
    return state._replace(
        generator=params["generator"], latents=params.get("latents", state.latents), opt_state=opt_state
    )


def _info(lanes: _Lane, seen: Tree, teacher_vars: Tree, spec: NetworkSpec) -> Info:
    """Averages the signals over the lanes."""
    terms = {name: value.mean() for name, value in lanes.observed.terms.items()}
    return Info(
        losses={**terms, "first": lanes.losses[:, 0].mean(), "last": lanes.losses[:, -1].mean()},
        agreement=lanes.observed.agreement.mean(),
        predicted=jnp.bincount(lanes.observed.predicted.reshape(-1), length=spec.num_classes),
        on_target=on_target(lanes.observed.predicted, lanes.labels, spec),
        **moment_gaps(seen, teacher_vars, lanes.gaps.mean(0)),
    )
