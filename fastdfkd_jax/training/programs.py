"""The compiled programs of a run, a synthesis call and a few KD steps, and the state that they start from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from fastdfkd_jax import models
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.distillation import distill, soft_labels
from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.methods import base
from fastdfkd_jax.pool import on_device, sampling
from fastdfkd_jax.pool.stored_labels import Taught
from fastdfkd_jax.training.build import Parts

Array = jax.Array
Tree = Any


class Programs:
    """What a method's lifetime makes of synthesis and distillation.

    Attributes:
      synthesize: of a method whose images stay, `(state, pool, teacher_vars, student_vars, key, index) -> (state,
        pool, batch, info)`, the batch's images as uint8, the pool None where it lies on disk; of a method whose
        batches live once, the same without a pool.
      distill: `(student state, teacher_vars, source, key) -> (student state, the pool's replay, info)`, the source
        being the pool, batches, or `Taught` where the teacher's answers are stored.
      label: `(teacher_vars, pool or batches, key, step, size) -> LabelledViews` of a dispatch's steps from `step` on,
        where D' has `size` images.
      draw_rows: `(key, step, size) -> i32[steps, B]`, what a dispatch of `distill` draws from a pool on disk of so
        many images: the rows that it would draw from one on the device.
      replay: how the pool is sampled.
      steps: KD steps of one dispatch of `distill`.
    """

    def __init__(self, parts: Parts, config: ConfigDict):
        once = parts.method.lifetime == base.ONCE
        self.replay = sampling.Options(**config.replay.to_dict())
        if once:
            self.steps = parts.method.steps_per_round
        else:
            self.steps = math.gcd(config.kd.steps_per_call, config.kd.steps_per_dispatch)
        synthesize = _synthesize_once(parts.method) if once else _synthesize_into_pool(parts)
        self.synthesize = parallel.CompiledStep(synthesize, donate=(0,) if once else (0, 1))
        learn = self._distill_from_stored if config.soft_labels.steps else self._distill
        self.distill = parallel.CompiledStep(learn(parts, config), donate=(0,))
        self.label = parallel.CompiledStep(self._label(parts, config))
        self._row_drawer = _row_drawer(config)
        self.draw_rows = jax.jit(self._rows)

    def _rows(self, key: Array, step: Array, size: Array) -> Array:
        return jax.vmap(lambda step: self._row_drawer(key, step, size))(step + jnp.arange(self.steps))

    def _label(self, parts: Parts, config: ConfigDict):
        temperature, top_k = config.kd.temperature, config.soft_labels.top_k
        answer = soft_labels.make_labeller(_answering(parts.teacher), view_options(config), temperature, top_k)

        def label_steps(teacher_vars, source, key, step, size):
            rows = self._rows(key, step, size)

            def one(_, turn):
                images = source.images[rows[turn]] if isinstance(source, on_device.Pool) else source.images[turn]
                view_key = _keys_of_step(key, step + turn)[1]
                return None, answer(teacher_vars, parts.split(on_device.to_float(images)), view_key)

            _, (views, labels) = jax.lax.scan(one, None, jnp.arange(self.steps))
            return soft_labels.LabelledViews(rows, views, labels)

        return label_steps

    def _distill(self, parts: Parts, config: ConfigDict):
        teacher, method = _answering(parts.teacher), parts.method
        kd_step = distill.make_step(
            teacher,
            parts.student,
            parts.optimizer,
            parts.objective.loss,
            extra_optimizer=parts.objective.optimizer,
            ema_decay=parts.ema_decay,
            network_input=method.network_input,
            crop_padding=config.kd.crop_padding,
            flip=config.kd.flip,
            least_crop=config.kd.least_crop,
            cutmix=config.kd.cutmix,
            cutmix_alpha=config.kd.cutmix_alpha,
            square=config.kd.square,
        )

        def draw_once(key: Array, step: Array, source: base.Batch, known: None):
            turn = step % self.steps % len(source.images)
            return source.images[turn], source.labels[turn], None, None

        def draw_read(key: Array, step: Array, source: on_device.Batches, known: None):
            turn = step % self.steps
            return on_device.to_float(source.images[turn]), source.labels[turn], None, None

        def draw_uniformly(key: Array, step: Array, source: on_device.Pool, known: None):
            rows = self._row_drawer(key, step, source.size)
            return on_device.to_float(source.images[rows]), source.labels[rows], None, None

        def draw_by_replay(key: Array, step: Array, source: on_device.Pool, known: sampling.Replay):
            chances = sampling.probabilities(self.replay, known, source.size, teacher.spec.num_classes)
            rows, weights = sampling.draw(
                _keys_of_step(key, step)[0], self.replay, chances, source.size, config.kd.batch
            )
            return on_device.to_float(source.images[rows]), source.labels[rows], weights, rows

        once = method.lifetime == base.ONCE
        # Each gives images, labels and, where it is not uniform, loss weights and the rows that were drawn.
        draw: Callable[..., Any] = draw_uniformly if self.replay.uniform else draw_by_replay
        if once or on_disk(method, config):
            draw = draw_once if once else draw_read

        def distill_steps(state, teacher_vars, source, key):
            def one(carry, _):
                state, known = carry
                images, labels, weights, rows = draw(key, state.step, source, known)
                view_key = _keys_of_step(key, state.step)[1]
                state, info = kd_step(state, teacher_vars, parts.split(images), view_key, labels, weights)
                if rows is not None:
                    known = sampling.met(known, rows, info.pop("difficulty"))
                return (state, known), info

            known = source.replay if isinstance(source, on_device.Pool) else None
            (state, known), info = jax.lax.scan(one, (state, known), None, length=self.steps)
            return state, known, jax.tree.map(jnp.mean, info)

        return distill_steps

    def _distill_from_stored(self, parts: Parts, config: ConfigDict):
        objective = parts.objective
        kd_step = distill.make_step_from_stored(
            parts.student,
            parts.optimizer,
            objective.loss,
            config.kd.temperature,
            extra_optimizer=objective.optimizer,
            ema_decay=parts.ema_decay,
        )

        def distill_steps(state, teacher_vars, source: Taught, key):
            def one(state, _):
                view_key, turn = _keys_of_step(key, state.step)[1], state.step % self.steps
                rows, view, stored = jax.tree.map(lambda x: x[turn], source.steps)
                images = source.images.images[rows if isinstance(source.images, on_device.Pool) else turn]
                return kd_step(state, parts.split(on_device.to_float(images)), view, stored, view_key)

            state, info = jax.lax.scan(one, state, None, length=self.steps)
            return state, None, jax.tree.map(jnp.mean, info)

        return distill_steps


def _answering(teacher: models.Network) -> models.Network:
    """A teacher of which nothing but predictions is asked."""
    return models.in_chunks(teacher, 8) if jax.default_backend() == "cpu" else teacher


def view_options(config: ConfigDict) -> augment.ViewOptions:
    """How the student is shown images."""
    kd = config.kd
    return augment.ViewOptions(kd.crop_padding, kd.flip, kd.least_crop, kd.cutmix, kd.cutmix_alpha)


def on_disk(method: base.Method, config: ConfigDict) -> bool:
    """Whether a run's D' is read from disk as the student learns."""
    return config.pool.place == "disk" and method.lifetime == base.POOL


def _keys_of_step(key: Array, step: Array) -> tuple[Array, Array]:
    """Of a student's step: what draws its images, and what draws their views."""
    sample_key, view_key = jax.random.split(jax.random.fold_in(key, step))
    return sample_key, view_key


def _row_drawer(config: ConfigDict) -> Callable[[Array, Array, Array], Array]:
    """`draw(key, step, size) -> i32[B]`, which of `size` images a student's step takes where all are as likely."""
    batch, steps_per_call = config.kd.batch, config.kd.steps_per_call

    def independently(key: Array, step: Array, size: Array) -> Array:
        return on_device.draw(_keys_of_step(key, step)[0], size, batch)

    def in_passes(key: Array, step: Array, size: Array) -> Array:
        # Begun anew after each call, which adds images.
        turn = step % steps_per_call
        return on_device.draw_in_passes(_keys_of_step(key, step - turn)[0], turn, size, batch)

    return in_passes if config.pool.draw == "passes" else independently


def _synthesize_into_pool(parts: Parts):
    method, spec = parts.method, parts.teacher.spec

    def synthesize(state, filled, teacher_vars, student_vars, key, index):
        """One call and all that follows from it on the device; the batch comes back as uint8."""
        key = jax.random.fold_in(key, index)
        state, batch, info = method.synthesize(state, teacher_vars, student_vars, key)
        info = {**info, "diversity": batch.images.std(0).mean()}
        rows = on_device.to_uint8(batch.images)
        if filled is None:
            return state, None, batch._replace(images=rows), info
        if filled.replay is not None:
            seen = parts.teacher.apply(teacher_vars, augment.normalize(on_device.to_float(rows), spec.mean, spec.std))
            classes = seen.logits.argmax(-1).astype(jnp.int32)
            filled = filled._replace(replay=sampling.added(filled.replay, filled.size, classes))
        filled = on_device.append(filled, rows, batch.labels, batch.kept)
        return state, filled, batch._replace(images=rows), info

    return synthesize


def _synthesize_once(method: base.Method):
    def synthesize(state, teacher_vars, student_vars, key, index):
        key = jax.random.fold_in(key, index)
        state, batch, info = method.synthesize(state, teacher_vars, student_vars, key)
        return state, batch, {**info, "diversity": batch.images.std((0, 1)).mean()}

    return synthesize


def initial_state(key: Array, parts: Parts) -> dict[str, Tree]:
    """What a run starts from: the method's state and the student's."""
    method_key, student_key = jax.random.split(key)

    def begin(variables: Tree, key: Array) -> distill.StudentState:
        return distill.from_variables(variables, parts.optimizer, parts.objective, key, parts.ema_decay)

    if parts.student_vars is None:
        student = jax.jit(lambda key: begin(parts.student.init(key), jax.random.fold_in(key, 1)))(student_key)
    else:
        student = begin(parallel.copy(parts.student_vars), student_key)
    method = parallel.jit(parts.method.init)(method_key, parts.teacher_vars)
    return parallel.from_first({"method": method, "student": student})
