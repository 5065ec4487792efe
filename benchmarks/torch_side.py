"""The PyTorch side of a timed case, in one of its forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks import torch_fastdfkd
from benchmarks.case import Case, Numbers
from benchmarks.flops import Convolution
from benchmarks.timing import median_seconds
from fastdfkd_jax import convert
from fastdfkd_jax.assemble import load_teacher
from fastdfkd_jax.convert.twins import twin
from fastdfkd_jax.models import NetworkSpec

FORMS = ("plain", "tuned", "compiled")


def load_weights(module: nn.Module, weights: dict[str, np.ndarray]) -> nn.Module:
    """The module with these weights; entries that they lack (a generator's running statistics) stay."""
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()}, strict=False)
    return module


def viewer(places: Tensor) -> Callable[[Tensor], Tensor]:
    """Gives the views one after another, as `Synthesizer.synthesize` asks for them; places: i64[k, B, H W]."""
    remaining = iter(places)

    def view(images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        flat = torch.cat([images.new_zeros(batch, channels, 1), images.flatten(2)], 2)
        rows = next(remaining)[:, None].expand(-1, channels, -1)
        return flat.gather(2, rows).reshape(batch, channels, height, width)

    return view


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
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = case.config(folder)
        network, variables = load_teacher(config, {})
        spec = network.spec
        teacher = load_weights(twin(spec), convert.to_state_dict(variables))
        student = twin(NetworkSpec(config.student.arch, spec.num_classes))
        student.load_state_dict(load_file(folder / "student.safetensors"))
        meta = load_weights(
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
        self.pool = torch.rand(case.batch, 3, *spec.input_shape[:2], device=self.device, dtype=dtype)

    def _precision(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.case.precision == "bfloat16")

    def call(self, numbers: Numbers) -> list[float]:
        """One synthesis call; gives the loss of each step."""
        latents, labels, places = (torch.tensor(x, device=self.device) for x in numbers)
        latents = latents.to(self.dtype)
        with self._precision():
            self.synthesizer.synthesize(latents, labels, self.case.steps, True, viewer(places))
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
        dtype = torch.bfloat16 if self.case.precision == "bfloat16" else self.dtype
        x = torch.rand(size, size, device=self.device, dtype=dtype)
        return self._median(lambda: x @ x)

    def convolution(self, conv: Convolution) -> tuple[float, float, float]:
        """Seconds of the convolution, of its input's gradient and of its kernel's."""
        dtype = torch.bfloat16 if self.case.precision == "bfloat16" else self.dtype
        layout = torch.channels_last if self.tuned else torch.contiguous_format

        def random(*shape: int) -> Tensor:
            return torch.rand(*shape, device=self.device, dtype=dtype).contiguous(memory_format=layout)

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
