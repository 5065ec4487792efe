"""Our side of a timed case: the two programs of a run, compiled as `fastdfkd_jax.main` compiles them."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.case import CALL_KEY, Case
from benchmarks.flops import Convolution
from benchmarks.timing import median_seconds
from fastdfkd_jax.cpu_conv import conv2d
from fastdfkd_jax.options import read
from fastdfkd_jax.pool import on_device
from fastdfkd_jax.training import metric_files
from fastdfkd_jax.training.build import assemble, forms_of
from fastdfkd_jax.training.one_run import set_up_jax
from fastdfkd_jax.training.programs import Programs, initial_state
from fastdfkd_jax.training.run_options import RunOptions


class OurSide:
    """Parts, state and compiled programs of a case.

    Args:
      case: what is timed.
      folder: where `case.Preparation` has written.
    """

    def __init__(self, case: Case, folder: Path):
        self.case, self.config = case, case.config(folder)
        set_up_jax(self.config)
        self.parts = assemble(self.config)
        self.programs = Programs(self.parts, read(RunOptions, self.config))
        self.state = initial_state(jax.random.key(0), self.parts)
        shape = self.parts.teacher.spec.input_shape
        images = jax.random.uniform(jax.random.key(4), (case.batch, *shape))
        self.pool = on_device.append(
            on_device.empty(case.batch, shape), on_device.to_uint8(images), jnp.zeros(case.batch, jnp.int32)
        )
        self.made = on_device.empty(case.batch * self.config.fastdfkd.num_tasks, shape)
        self.key, self.calls = jax.random.key(CALL_KEY), 0

    def compile(self) -> float:
        """Compiles the synthesis call; gives the seconds."""
        self.programs.synthesize.compile(*self._call_arguments())
        return self.programs.synthesize.compile_seconds

    def call(self) -> list[float]:
        """One synthesis call; gives the first and the last step's loss. The first draws the case's very numbers."""
        self.state["method"], self.made, *_, info = self.programs.synthesize(*self._call_arguments())
        self.calls += 1
        return [float(info["loss/first"]), float(info["loss/last"])]

    def _call_arguments(self) -> tuple:
        student = self.state["student"].variables
        return (self.state["method"], self.made, self.parts.teacher_vars, student, self.key, np.int32(self.calls))

    def kd(self) -> float:
        """The case's KD steps in one dispatch; gives the mean loss."""
        self.state["student"], _, info = self.programs.distill(
            self.state["student"], self.parts.teacher_vars, self.pool, jax.random.key(5)
        )
        return float(info["loss"])

    def matrix_product(self, size: int) -> float:
        """Seconds of a square product."""
        x = jax.random.uniform(jax.random.key(0), (size, size), self.case.precision)
        product = jax.jit(jnp.matmul)
        return median_seconds(lambda: product(x, x).block_until_ready())

    def convolution(self, conv: Convolution) -> tuple[float, float, float]:
        """Seconds of the convolution, of its input's gradient and of its kernel's."""
        form = forms_of(self.config).conv

        def apply(x: jax.Array, kernel: jax.Array) -> jax.Array:
            x = self.parts.split(x)  # over the devices, as in a run
            return conv2d(x, kernel, conv.stride, conv.padding, form=form)

        def random(*shape: int) -> jax.Array:
            return jax.random.uniform(jax.random.key(0), shape, self.case.precision)

        x = random(conv.batch, conv.height, conv.width, conv.inputs)
        kernel = random(conv.size, conv.size, conv.inputs, conv.outputs)
        lay_out = jax.jit(self.parts.split)
        x, dy = lay_out(x), lay_out(random(*conv.output_shape))
        forward = jax.jit(apply)
        of_input = jax.jit(lambda x, kernel, dy: jax.vjp(lambda x: apply(x, kernel), x)[1](dy))
        of_kernel = jax.jit(lambda x, kernel, dy: jax.vjp(lambda kernel: apply(x, kernel), kernel)[1](dy))
        return (
            median_seconds(lambda: jax.block_until_ready(forward(x, kernel))),
            median_seconds(lambda: jax.block_until_ready(of_input(x, kernel, dy))),
            median_seconds(lambda: jax.block_until_ready(of_kernel(x, kernel, dy))),
        )

    def peak_memory_bytes(self) -> int | None:
        """Returns the device's peak memory; None on a CPU, where that of the process is used."""
        return metric_files.device_peak_bytes()
