"""The control: images of Gaussian noise. What a student reaches on them is not synthesis."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fastdfkd_jax import augment
from fastdfkd_jax.methods.base import Batch, Method, Setting


def build(setting: Setting) -> Method:
    """Noise with the data's per-channel mean and deviation, clipped to [0, 1]; labels mean nothing."""
    spec, batch = setting.teacher.spec, setting.batch

    def synthesize(state, teacher_vars, student_vars, key):
        noise = jax.random.normal(key, (batch, *spec.input_shape))
        images = jnp.clip(augment.denormalize(noise, spec.mean, spec.std), 0, 1)
        return state, Batch(images, jnp.zeros(batch, jnp.int32)), {}

    return Method(lambda key, teacher_vars: (), synthesize, images_per_call=batch)
