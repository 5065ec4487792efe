"""The PyTorch side of a timed case, in one of its forms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks import torch_fastdfkd, torch_tuned
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


def _options(config: ConfigDict) -> torch_fastdfkd.Options:
    weights, inner = config.inversion, config.inner
    return torch_fastdfkd.Options(
        weights.class_weight,
        weights.adversarial_weight,
        weights.feature_weight,
        weights.accumulator_weight,
        inner.generator_lr,
        inner.latents_lr,
    )


class TorchSide:
    """Networks, generator and optimizers of a case.

    Args:
      case: what is timed.
      folder: where `case.Preparation` has written.
      form: 'plain' (`torch_fastdfkd`), or of `torch_forms.TUNED`.
      dtype: of the weights; the case's precision is applied by autocast.
    """

    def __init__(self, case: Case, folder: Path, form: str, dtype: torch.dtype = torch.float32):
        if case.recipe != "cifar10":
            raise SystemExit(f"error: PyTorch has no form of the recipe {case.recipe}: time our side alone")
        self.case, self.form, self.dtype = case, form, dtype
        self.operand_dtype = torch.bfloat16 if case.precision == "bfloat16" else dtype
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.backends.cudnn.benchmark = form != "plain"
        torch.manual_seed(0)  # of the KD steps' images and their views
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
        networks = [module.to(self.device, dtype) for module in (teacher, student, meta)]
        self.mean, self.std = (
            torch.tensor(values, dtype=dtype, device=self.device).view(1, -1, 1, 1) for values in (spec.mean, spec.std)
        )
        self.pool = torch.rand(case.batch, 3, *spec.input_shape[:2], device=self.device, dtype=dtype)
        self.synthesizer: Any
        numbers = np.load(folder / "numbers.npz")
        self.numbers = self._on_device(Numbers(**numbers))
        if form == "plain":
            self._prepare_plain(config, *networks)
        else:
            self._prepare_tuned(config, *networks)

    def _prepare_plain(self, config: ConfigDict, teacher: nn.Module, student: nn.Module, meta: nn.Module) -> None:
        outer = torch.optim.Adam(meta.parameters(), config.meta.lr, betas=(0.5, 0.999))
        self.synthesizer = torch_fastdfkd.Synthesizer(
            teacher, student, meta, outer, self.mean, self.std, _options(config), self._precision()
        )
        kd = config.kd
        optimizer = torch.optim.SGD(student.parameters(), kd.lr, momentum=kd.momentum, weight_decay=kd.weight_decay)

        def call(latents: Tensor, labels: Tensor, places: Tensor) -> list[float]:
            self.synthesizer.synthesize(latents, labels, self.case.steps, True, torch_fastdfkd.viewer(places))
            return self.synthesizer.losses

        def distill() -> float:
            loss = 0.0
            for _ in range(self.case.kd_steps):
                with self._precision():
                    loss = torch_fastdfkd.kd_step(teacher, student, optimizer, self._inputs(), kd.temperature)
            return loss

        self._call, self._distill = call, distill

    def _prepare_tuned(self, config: ConfigDict, teacher: nn.Module, student: nn.Module, meta: nn.Module) -> None:
        outer = partial(torch.optim.Adam, lr=config.meta.lr, betas=(0.5, 0.999))
        kd, form = config.kd, self.form
        self.synthesizer = torch_tuned.Synthesizer(
            teacher, student, meta, outer, self.mean, self.std, _options(config), form, self._precision()
        )
        sgd = partial(torch.optim.SGD, lr=kd.lr, momentum=kd.momentum, weight_decay=kd.weight_decay)
        distiller = torch_tuned.Distiller(teacher, student, sgd, kd.temperature, self._inputs, form, self._precision())
        self.places = self.numbers[2].clone()  # where a graph reads them

        def call(latents: Tensor, labels: Tensor, places: Tensor) -> list[float]:
            self.places.copy_(places)
            self.synthesizer.synthesize(latents, labels, self.case.steps, True, self._view)
            return self.synthesizer.losses.tolist()

        def distill() -> float:
            for _ in range(self.case.kd_steps):
                distiller.step()
            return distiller.loss.item()

        self._call, self._distill = call, distill

    def _view(self, images: Tensor, step: int) -> Tensor:
        return torch_fastdfkd.shown(images, self.places[step])

    def _inputs(self) -> Tensor:
        return (torch_fastdfkd.random_view(self.pool) - self.mean) / self.std

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.case.precision == "bfloat16")

    def _on_device(self, numbers: Numbers) -> tuple[Tensor, Tensor, Tensor]:
        latents, labels, places = (torch.tensor(x, device=self.device) for x in numbers)
        return latents.to(self.dtype), labels, places

    def call(self) -> list[float]:
        """One synthesis call with the case's numbers, which are on the device; gives the loss of each step."""
        return self._waited(self._call, *self.numbers)

    def synthesize(self, numbers: Numbers) -> list[float]:
        """One synthesis call with given numbers; gives the loss of each step."""
        return self._waited(self._call, *self._on_device(numbers))

    def kd(self) -> float:
        """The case's KD steps, on a batch that is shifted and mirrored; gives the last loss."""
        return self._waited(self._distill)

    @staticmethod
    def _waited(run: Callable[..., Any], *args: Any) -> Any:
        result = run(*args)
        _wait()
        return result

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
        layout = torch.contiguous_format if self.form == "plain" else torch.channels_last

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
        """Returns the device's peak memory; None on a CPU, where that of the process is used."""
        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
