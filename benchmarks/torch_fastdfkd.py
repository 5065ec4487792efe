"""FastDFKD in PyTorch, written from the formulas (Algorithm 1; METHOD 1.1, 1.2 and 1.8): something to compare with.

Random numbers are arguments, so that both sides can be given the same ones. Images are NCHW, as PyTorch has them.

This is the plain form, what a straightforward program does: eager, contiguous, with the gradients of the networks'
weights computed and dropped, and with losses read as they come. `torch_tuned` has the others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


def generator(latent_dim: int = 256, width: int = 64, image_size: int = 32, channels: int = 3) -> nn.Sequential:
    """The CIFAR generator; parts '0', '2', ... of 'conv_blocks' follow `l1`, a linear layer and a reshape."""
    wide, base = 2 * width, image_size // 4
    layers = [
        nn.BatchNorm2d(wide),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(wide, wide, 3, padding=1, bias=False),
        nn.BatchNorm2d(wide),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(wide, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, channels, 3, padding=1),
        nn.Sigmoid(),
    ]
    modules: dict[str, nn.Module] = {
        "l1": nn.Sequential(nn.Linear(latent_dim, wide * base * base)),
        "reshape": nn.Unflatten(1, (wide, base, base)),
        "conv_blocks": nn.Sequential(*layers),
    }
    whole = nn.Sequential()
    for name, module in modules.items():
        whole.add_module(name, module)
    return whole


def record_moments(network: nn.Module) -> list[tuple[nn.BatchNorm2d, Tensor, Tensor]]:
    """Makes the network's BatchNorms append (layer, mean, biased variance) of their inputs to the returned list.

    Only where gradients are recorded, so not in a teacher that gives targets.
    """
    seen: list[tuple[nn.BatchNorm2d, Tensor, Tensor]] = []

    def hook(layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        (x,) = inputs
        if not torch.is_grad_enabled():
            return
        moments = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        target: Any = layer.running_mean
        mean, var = (moment.to(target.dtype) for moment in moments)  # of bf16 inputs too
        seen.append((layer, mean, var))

    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(hook)
    return seen


def load_weights(module: nn.Module, weights: Mapping[str, np.ndarray]) -> nn.Module:
    """The module with these weights; entries that they lack (a generator's running statistics) stay."""
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()}, strict=False)
    return module


def viewer(places: Tensor) -> Callable[[Tensor], Tensor]:
    """Gives the views one after another, as `Synthesizer.synthesize` asks for them; places: i64[k, B, H W]."""
    remaining = iter(places)
    return lambda images: shown(images, next(remaining))


def shown(images: Tensor, places: Tensor) -> Tensor:
    """A view of images; places: i64[B, H W], where each pixel comes from, 0 for black, else 1 + its place."""
    batch, channels, height, width = images.shape
    flat = torch.cat([images.new_zeros(batch, channels, 1), images.flatten(2)], 2)
    return flat.gather(2, places[:, None].expand(-1, channels, -1)).reshape(batch, channels, height, width)


def random_view(images: Tensor, padding: int = 4) -> Tensor:
    """Each image shifted by up to `padding` pixels, black coming in, and mirrored with probability one half."""
    batch, _, height, width = images.shape
    padded = functional.pad(images, (padding,) * 4)
    device = images.device
    top, left = torch.randint(0, 2 * padding + 1, (2, batch, 1), device=device)
    rows, columns = top + torch.arange(height, device=device), left + torch.arange(width, device=device)
    columns = torch.where(torch.rand(batch, 1, device=device) < 0.5, columns.flip(1), columns)
    item = torch.arange(batch, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[item, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass
class Options:
    """Hyper-parameters of METHOD section 2 for the WRN pairs and k = 5."""

    class_weight: float = 0.4
    adversarial_weight: float = 1.1
    feature_weight: float = 10.0
    accumulator_weight: float = 0.9
    generator_lr: float = 3e-3
    latents_lr: float = 1e-2
    betas: tuple[float, float] = (0.5, 0.999)


@dataclass
class Synthesizer:
    """Everything that a synthesis call needs and changes.

    Attributes:
      teacher, student: in evaluation mode during a call.
      meta, outer: the meta-generator and its optimizer.
      mean, std: normalisation, shaped to broadcast over NCHW.
      autocast: of every forward pass, entered anew at each step: until it is left, it keeps the weights that it cast,
        and would use them in the next step too.
      accumulated: moments so far, layer by layer; empty before the first call.
      losses: of each step of the last call.
      adapted: generator and latents after the last call's steps.
    """

    teacher: nn.Module
    student: nn.Module
    meta: nn.Module
    outer: torch.optim.Optimizer
    mean: Tensor
    std: Tensor
    options: Options = field(default_factory=Options)
    autocast: AbstractContextManager[Any] = field(default_factory=nullcontext)
    accumulated: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    adapted: tuple[nn.Module, Tensor] | None = None

    def __post_init__(self) -> None:
        self.seen = record_moments(self.teacher)

    def loss(self, view: Tensor, labels: Tensor, adversarial: bool) -> Tensor:
        """Eq. 13 with the momentum feature term of Eq. 15, as the released code weighs them."""
        self.seen.clear()
        teacher_logits = self.teacher((view - self.mean) / self.std)
        options, keep = self.options, self.options.accumulator_weight if self.accumulated else 0.0
        feature = view.new_zeros(())
        for i, (layer, mean, var) in enumerate(self.seen):
            old_mean, old_var = self.accumulated[i] if self.accumulated else (0.0, 0.0)
            target_mean: Any = layer.running_mean
            target_var: Any = layer.running_var
            feature = feature + (target_mean - keep * old_mean - (1 - keep) * mean).norm()
            feature = feature + (target_var - keep * old_var - (1 - keep) * var).norm()
        total = options.class_weight * functional.cross_entropy(teacher_logits, labels)
        total = total + options.feature_weight * feature
        self.observed = {"loss/class": (total - options.feature_weight * feature).item() / options.class_weight}
        self.observed["loss/feature"] = feature.item()
        if adversarial:
            student_logits = self.student((view - self.mean) / self.std)
            p, log_p = teacher_logits.softmax(1), teacher_logits.log_softmax(1)
            divergence = (p * (log_p - student_logits.log_softmax(1))).sum(1)
            agree = teacher_logits.argmax(1) == student_logits.argmax(1)
            total = total - options.adversarial_weight * (divergence * agree).mean()
            self.observed["agreement"] = agree.float().mean().item()
        return total

    def synthesize(
        self, latents: Tensor, labels: Tensor, steps: int, adversarial: bool, augment: Any
    ) -> tuple[Tensor, dict[str, float]]:
        """One call with the FOMAML sum of gradients.

        Gives the images of lowest loss, [B, C, H, W] in [0, 1], and the unweighted terms of the last step.
        """
        self.teacher.eval()
        self.student.eval()
        fast, latents = copy.deepcopy(self.meta), latents.clone().requires_grad_()
        inner = torch.optim.Adam(
            [
                {"params": fast.parameters(), "lr": self.options.generator_lr},
                {"params": [latents], "lr": self.options.latents_lr},
            ],
            betas=self.options.betas,
        )
        best, lowest = torch.empty(0), float("inf")
        self.losses = []
        self.outer.zero_grad()
        for _ in range(steps):
            with self.autocast:
                images = fast(latents)
                loss = self.loss(augment(images), labels, adversarial)
            self.losses.append(loss.item())
            if self.losses[-1] < lowest:
                best, lowest = images.detach(), self.losses[-1]
            inner.zero_grad()
            loss.backward()
            for meta, adapted in zip(self.meta.parameters(), fast.parameters(), strict=True):
                gradient: Any = adapted.grad
                meta.grad = gradient.clone() if meta.grad is None else meta.grad + gradient
            inner.step()
        self.outer.step()
        self.adapted = fast, latents.detach()
        self._accumulate()
        return best, self.observed

    def _accumulate(self) -> None:
        """Eq. 14, with the moments of the last iterate (METHOD T3)."""
        keep = self.options.accumulator_weight if self.accumulated else 0.0
        new = [(mean.detach(), var.detach()) for _, mean, var in self.seen]
        old = self.accumulated or new
        self.accumulated = [
            (keep * m + (1 - keep) * mean, keep * v + (1 - keep) * var)
            for (m, v), (mean, var) in zip(old, new, strict=True)
        ]


def kd_step(
    teacher: nn.Module,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    temperature: float,
) -> float:
    """One step of Algorithm 1 lines 18 to 20 on normalised images; gives the loss before it."""
    teacher.eval()
    student.train()
    with torch.no_grad():
        target = (teacher(inputs) / temperature).softmax(1)
    log_student = (student(inputs) / temperature).log_softmax(1)
    loss = functional.kl_div(log_student, target, reduction="batchmean") * temperature**2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
