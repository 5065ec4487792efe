"""The control: images of Gaussian noise. What a student reaches on them is not synthesis."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.methods.base import Batch, Info, LaneOptions, Method, Setting


def build(options: LaneOptions, setting: Setting) -> Method:
    """Builds a method that draws noise with the data's mean and deviation per channel, clipped to [0, 1]; no labels."""
    spec, number = setting.teacher.spec, setting.batch * options.num_tasks

    def synthesize(state, teacher_vars, student_vars, key):
        noise = jax.random.normal(key, (number, *spec.input_shape))
        images = jnp.clip(augment.denormalize(noise, spec.mean, spec.std), 0, 1)
        return state, Batch(images, jnp.full(number, -1, jnp.int32)), Info()

    return Method(lambda key, teacher_vars: (), synthesize, images_per_call=number)
