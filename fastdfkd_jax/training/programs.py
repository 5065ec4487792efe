"""The compiled programs of a run (a synthesis call and a few KD steps), and their initial state."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fastdfkd_jax import models
from fastdfkd_jax.distillation import distill, soft_labels
from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.evaluation.agreement import Agreement
from fastdfkd_jax.evaluation.confidence import make_confidence
from fastdfkd_jax.evaluation.evaluator import make_evaluator
from fastdfkd_jax.pool import on_device
from fastdfkd_jax.pool.drawing import keys_of_step
from fastdfkd_jax.pool.feed import Examples, Functions
from fastdfkd_jax.training import feeding, phases
from fastdfkd_jax.training.build import Parts
from fastdfkd_jax.training.run_options import RunOptions

Array = jax.Array
Tree = Any


class Programs:
    """The compiled programs for synthesis and distillation, for one kind of feed.

    Args:
      parts: networks, method, data.
      run: options of the run.
      like: programs of the same networks and data; their evaluation, which takes seconds to compile, is reused.

    Attributes:
      synthesize: `(method state, feed state, teacher_vars, student_vars, key, index) -> (method state, feed state,
        batch, info)`; the batch has the form that the feed's host half takes.
      distill: `(student state, teacher_vars, source, key) -> (student state, known, info)`; `source` is what the feed
        took, and `known` what the feed learns about it.
      label: `(teacher_vars, pool or batches, key, step, size) -> LabelledViews` of a dispatch's steps from `step`,
        when D' has `size` images.
      draw_rows: `(key, step, size) -> i32[steps, B]`, the uniformly drawn images of a dispatch's steps.
      begin: `begin(key)`, the initial state of the run (`initial_state`).
      evaluate, evaluate_teacher: measure the networks on labelled images (`evaluator.make_evaluator`).
      confidence: the teacher's, in the classes of images (`confidence.make_confidence`).
      agreement: measures how often the networks agree (`agreement.Agreement`).
      steps: KD steps of one dispatch of `distill`.
      compiled_before: seconds of compilation that no run has counted yet, since a plan was made with these programs.
    """

    def __init__(self, parts: Parts, run: RunOptions, like: Programs | None = None):
        self.steps, self.compiled_before = feeding.steps_of_dispatch(parts, run), 0.0
        feed, watch = feeding.functions(parts, run), functools.partial(_watch, parts, run)
        self.synthesize = parallel.CompiledStep(_synthesize(parts, feed), (0, 1), watch("synthesis"))
        self.distill = parallel.CompiledStep(_distill(parts, run, feed, self.steps), (0,), watch("distillation"))
        draw = feeding.drawer(run)

        def draw_rows(key: Array, step: Array, size: Array) -> Array:
            return jax.vmap(lambda step: draw(key, step, size))(step + jnp.arange(self.steps))

        self.draw_rows = jax.jit(draw_rows)
        labels = _label(parts, run, draw_rows, self.steps)
        self.label = parallel.CompiledStep(labels, watch=watch("the teacher's answers"))
        self.begin = _starter(parts)
        if like is not None:
            self.evaluate, self.evaluate_teacher = like.evaluate, like.evaluate_teacher
            self.confidence = like.confidence
            self.agreement = like.agreement
        else:
            self.agreement = Agreement(_answering(parts.teacher), _answering(parts.student))
            self.evaluate = make_evaluator(parts.student, run.data.batch)
            self.evaluate_teacher = make_evaluator(parts.teacher, run.data.batch)
            self.confidence = make_confidence(parts.teacher)


def _watch(parts: Parts, run: RunOptions, name: str) -> Callable[[], Any]:
    """Returns the context in which a program is compiled (`phases.compiling`)."""
    networks, batches = (parts.teacher.spec.arch, parts.student.spec.arch), (run.synthesis_batch, run.kd.batch)
    shape = "x".join(map(str, parts.teacher.spec.input_shape))
    where = (jax.default_backend(), *parts.layout.values())
    program = " ".join(map(str, (name, run.method.name, *networks, shape, *batches, *where)))
    return functools.partial(phases.compiling, name, program)


def _synthesize(parts: Parts, feed: Functions) -> Callable[..., Any]:
    method = parts.method

    def synthesize(state, feed_state, teacher_vars, student_vars, key, index):
        """Runs one call and its further work on the device."""
        key = jax.random.fold_in(key, index)
        state, batch, info = method.synthesize(state, teacher_vars, student_vars, key)
        said = {**info.records(), "diversity": batch.images.std(tuple(range(batch.images.ndim - 3))).mean()}
        return state, *feed.keep(feed_state, batch, teacher_vars), said

    return synthesize


def _distill(parts: Parts, run: RunOptions, feed: Functions, steps: int) -> Callable[..., Any]:
    learn = (_learn_from_stored if run.soft_labels.steps else _learn)(parts, run)

    def distill_steps(state, teacher_vars, source, key):
        def one(carry, _):
            state, known = carry
            examples = feed.draw(source, known, key, state.step)
            examples = examples._replace(images=parts.split(examples.images))
            view_key = keys_of_step(key, state.step)[1]
            state, info = learn(state, teacher_vars, examples, view_key)
            known, info = feed.observe(known, examples, info)
            return (state, known), info

        (state, known), info = jax.lax.scan(one, (state, feed.known(source)), None, steps, unroll=run.kd.unroll)
        return state, known, jax.tree.map(jnp.mean, info)

    return distill_steps


def _learn(parts: Parts, run: RunOptions) -> Callable[..., Any]:
    """Returns `learn(state, teacher_vars, examples, view_key)`, the KD step that runs the teacher."""
    kd_step = distill.make_step(
        _answering(parts.teacher),
        parts.student,
        parts.optimizer,
        parts.objective.loss,
        extra_optimizer=parts.objective.optimizer,
        ema_decay=parts.ema_decay,
        network_input=parts.method.network_input,
        views=run.kd.views,
        square=run.kd.square,
    )

    def learn(state: distill.StudentState, teacher_vars: Tree, examples: Examples, key: Array):
        return kd_step(state, teacher_vars, examples.images, key, examples.labels, examples.weights)

    return learn


def _learn_from_stored(parts: Parts, run: RunOptions) -> Callable[..., Any]:
    """Returns the same function for stored teacher outputs."""
    kd_step = distill.make_step_from_stored(
        parts.student,
        parts.optimizer,
        parts.objective.loss,
        run.kd.temperature,
        extra_optimizer=parts.objective.optimizer,
        ema_decay=parts.ema_decay,
    )

    def learn(state: distill.StudentState, teacher_vars: Tree, examples: Examples, key: Array):
        return kd_step(state, examples.images, examples.view, examples.stored, key)

    return learn


def _label(parts: Parts, run: RunOptions, draw_rows: Callable[..., Array], steps: int) -> Callable[..., Any]:
    temperature, top_k = run.kd.temperature, run.soft_labels.top_k
    answer = soft_labels.make_labeller(_answering(parts.teacher), run.kd.views, temperature, top_k)

    def label_steps(teacher_vars, source, key, step, size):
        rows = draw_rows(key, step, size)

        def one(_, turn):
            images = source.images[rows[turn] if isinstance(source, on_device.Pool) else turn]
            view_key = keys_of_step(key, step + turn)[1]
            return None, answer(teacher_vars, parts.split(on_device.to_float(images)), view_key)

        _, (views, labels) = jax.lax.scan(one, None, jnp.arange(steps))
        return soft_labels.LabelledViews(rows, views, labels)

    return label_steps


def _answering(network: models.Network) -> models.Network:
    """Returns a network in a form that only predicts."""
    return models.in_chunks(network, 8) if jax.default_backend() == "cpu" else network


def initial_state(key: Array, parts: Parts) -> dict[str, Tree]:
    """Returns the initial state of a run: the method's and the student's."""
    return _starter(parts)(key)


def _starter(parts: Parts) -> Callable[[Array], dict[str, Tree]]:
    """Returns `initial_state` as a function that compiles once."""

    def begin(variables: Tree, key: Array) -> distill.StudentState:
        return distill.from_variables(variables, parts.optimizer, parts.objective, key, parts.ema_decay)

    fresh = jax.jit(lambda key: begin(parts.student.init(key), jax.random.fold_in(key, 1)))
    init_method = parallel.jit(parts.method.init)

    def start(key: Array) -> dict[str, Tree]:
        method_key, student_key = jax.random.split(key)
        if parts.student_vars is None:
            student = fresh(student_key)
        else:
            student = begin(parallel.copy(parts.student_vars), student_key)
        return parallel.from_first({"method": init_method(method_key, parts.teacher_vars), "student": student})

    return start
