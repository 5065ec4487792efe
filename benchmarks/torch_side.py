"""The PyTorch side of a timed case, in one of its forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import torch_fastdfkd
from benchmarks.case import Case, Numbers
from benchmarks.flops import Convolution
from benchmarks.timing import median_seconds
from fastdfkd_jax import convert
from fastdfkd_jax.convert.torch_twins.classifiers import twin
from fastdfkd_jax.models import Forms, NetworkSpec, TeacherOptions
from fastdfkd_jax.options import read
from fastdfkd_jax.training.build import load_teacher


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class TorchSide:
    """Networks, generator and optimizers of a case.

    Args:
      case: what is timed.
      folder: where `case.Preparation` has written.
      form: 'plain', 'tuned', or 'compiled', which is 'tuned' with `torch.compile` of teacher and student.
      dtype: of the weights; the case's precision is applied by autocast.
    """

    def __init__(self, case: Case, folder: Path, form: str, dtype: torch.dtype = torch.float32):
        self.case, self.form, self.dtype = case, form, dtype
        self.tuned = form != "plain"
        self.operand_dtype = torch.bfloat16 if case.precision == "bfloat16" else dtype
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = case.config(folder)
        network, variables = load_teacher(read(TeacherOptions, config), Forms())
        spec = network.spec
        teacher = torch_fastdfkd.load_weights(twin(spec), convert.to_state_dict(variables))
        student = twin(NetworkSpec(config.student.arch, spec.num_classes))
        student.load_state_dict(load_file(folder / "student.safetensors"))
        meta = torch_fastdfkd.load_weights(
            torch_fastdfkd.generator(config.generator.latent_dim, config.generator.width),
            dict(np.load(folder / "generator.npz")),
        )
        self.teacher, self.student, self.meta = (m.to(self.device, dtype) for m in (teacher, student, meta))
        self.mean, self.std = (
            torch.tensor(values, dtype=dtype, device=self.device).view(1, -1, 1, 1) for values in (spec.mean, spec.std)
        )
        weights, inner = config.inversion, config.inner
        self.synthesizer = torch_fastdfkd.Synthesizer(
            self.teacher,
            self.student,
            self.meta,
            torch.optim.Adam(self.meta.parameters(), config.meta.lr, betas=(0.5, 0.999)),
            self.mean,
            self.std,
            torch_fastdfkd.Options(
                weights.class_weight,
                weights.adversarial_weight,
                weights.feature_weight,
                weights.accumulator_weight,
                inner.generator_lr,
                inner.latents_lr,
            ),
            self.tuned,
        )
        if form == "compiled":
            self.teacher.compile()
            self.student.compile()
        kd = config.kd
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), kd.lr, momentum=kd.momentum, weight_decay=kd.weight_decay
        )
        self.temperature = kd.temperature
        self.numbers = Numbers(**np.load(folder / "numbers.npz"))
        self.pool = torch.rand(case.batch, 3, *spec.input_shape[:2], device=self.device, dtype=dtype)

    def _precision(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.case.precision == "bfloat16")

    def call(self) -> list[float]:
        """One synthesis call with the case's numbers; gives the loss of each step."""
        return self.synthesize(self.numbers)

    def synthesize(self, numbers: Numbers) -> list[float]:
        """One synthesis call with given numbers; gives the loss of each step."""
        latents, labels, places = (torch.tensor(x, device=self.device) for x in numbers)
        latents = latents.to(self.dtype)
        with self._precision():
            self.synthesizer.synthesize(latents, labels, self.case.steps, True, torch_fastdfkd.viewer(places))
        _wait()
        return self.synthesizer.losses

    def kd(self) -> float:
        """The case's KD steps, on a batch that is shifted and mirrored; gives the last loss."""
        loss = 0.0
        for _ in range(self.case.kd_steps):
            inputs = (torch_fastdfkd.random_view(self.pool) - self.mean) / self.std
            if self.tuned:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            with self._precision():
                loss = torch_fastdfkd.kd_step(
                    self.teacher, self.student, self.optimizer, inputs, self.temperature, self.tuned
                )
        _wait()
        return loss

    @staticmethod
    def _median(run: Callable[[], Any]) -> float:
        def waited() -> None:
            run()
            _wait()

        return median_seconds(waited)

    def matrix_product(self, size: int) -> float:
        """Seconds of a square product."""
        x = torch.rand(size, size, device=self.device, dtype=self.operand_dtype)
        return self._median(lambda: x @ x)

    def convolution(self, conv: Convolution) -> tuple[float, float, float]:
        """Seconds of the convolution, of its input's gradient and of its kernel's."""
        layout = torch.channels_last if self.tuned else torch.contiguous_format

        def random(*shape: int) -> Tensor:
            return torch.rand(*shape, device=self.device, dtype=self.operand_dtype).contiguous(memory_format=layout)

        x = random(conv.batch, conv.inputs, conv.height, conv.width)
        kernel = random(conv.outputs, conv.inputs, conv.size, conv.size)
        strides, paddings = [conv.stride] * 2, [conv.padding] * 2
        dy = torch.rand_like(torch.nn.functional.conv2d(x, kernel, None, conv.stride, conv.padding))

        def backward(of_input: bool):
            return torch.ops.aten.convolution_backward(
                dy, x, kernel, None, strides, paddings, [1, 1], False, [0, 0], 1, [of_input, not of_input, False]
            )

        return (
            self._median(lambda: torch.nn.functional.conv2d(x, kernel, None, conv.stride, conv.padding)),
            self._median(lambda: backward(True)),
            self._median(lambda: backward(False)),
        )

    def peak_memory_bytes(self) -> int | None:
        """Of the device; None on a CPU, where the process tells."""
        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
