"""ZSKT (Micaelli and Storkey, NeurIPS 2019): images on which the student is far from the teacher (METHOD 6).

The student takes ten steps on each batch. It matches the teacher's predictions and its spatial attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fastdfkd_jax import losses
from fastdfkd_jax.distillation.distill import Loss, Objective
from fastdfkd_jax.errors import require
from fastdfkd_jax.methods.base import Method, Setting
from fastdfkd_jax.methods.parts import online_generator
from fastdfkd_jax.models import Network, Outputs, stages_of
from fastdfkd_jax.options import option

Array = jax.Array

KL_REDUCTIONS = ("mean", "batchmean")


@dataclass(frozen=True, kw_only=True)
class ZSKTOptions(online_generator.OnlineGeneratorOptions, section="zskt"):
    """Options of ZSKT: the generator and the student's loss (METHOD section 6)."""

    generator: str = "zskt"
    latent_dim: int = 100
    cosine: bool = True
    clip_norm: float = 5.0
    student_steps: int = 10
    student_images: str = "repeated"
    student_mode: str = "train"
    attention_weight: float = option(
        250.0,
        "weight of attention transfer in the student's loss; 0 when the stages of the two networks differ in kind "
        "or number",
        at_least=0,
    )
    kl_reduction: str = option(
        "mean",
        "reduction of the KL divergence, in PyTorch's terms: 'mean' over images and classes (published), or "
        "'batchmean', over images only (CMI's script, METHOD 1.7)",
        choices=KL_REDUCTIONS,
    )


def build(options: ZSKTOptions, setting: Setting) -> Method:
    """Binds options and networks.

    Raises:
      UserError: attention transfer is on, but the networks' stages differ in kind or do not pair up.
    """
    if options.attention_weight:
        _require_pairs(setting.teacher, setting.student)
        _require_one_kind(setting.teacher.spec.arch, setting.student.spec.arch)

    def loss(seen: online_generator.Seen) -> tuple[Array, dict[str, Array]]:
        term = -divergence(seen.teacher, seen.student, options.kl_reduction).mean()
        return term, {"adversarial": term}

    objective = Objective(student_loss(options.attention_weight, options.kl_reduction))
    return online_generator.build(options, setting, loss, objective)


def divergence(teacher: Outputs, student: Outputs, reduction: str = "mean") -> Array:
    """Returns KL(p_teacher || p_student) of each image, f32[B]; 'mean', as published, divides by the classes."""
    divergences = losses.kl_divergence(teacher.logits, student.logits)
    return divergences / teacher.logits.shape[-1] if reduction == "mean" else divergences


def student_loss(attention_weight: float, kl_reduction: str = "mean") -> Loss:
    """Returns each image's divergence plus the weighted attention transfer, summed over the blocks."""

    def loss(extra: Any, student: Outputs, teacher: Outputs, labels: Array) -> Array:
        total = divergence(teacher, student, kl_reduction)
        if attention_weight:
            pairs = zip(teacher.blocks, student.blocks, strict=True)
            gaps = [jnp.square(attention(ours) - attention(theirs)).mean(-1) for ours, theirs in pairs]
            total += attention_weight * jnp.stack(gaps).sum(0)
        return total

    return loss


def attention(block: Array) -> Array:
    """Returns the spatial attention of [B, h, w, c]: the channels' mean square, as a unit vector f32[B, h w]."""
    block = block.astype(jnp.promote_types(block.dtype, jnp.float32))
    energy = jnp.square(block).mean(-1).reshape(len(block), -1)
    # The small constant keeps the gradient finite for an image of zeros.
    return energy * lax.rsqrt(jnp.square(energy).sum(-1, keepdims=True) + 1e-24)


def _require_pairs(teacher: Network, student: Network) -> None:
    sides = [[block.shape[1:3] for block in _blocks(network)] for network in (teacher, student)]
    found = f"{_sides(sides[0])} of {teacher.spec.arch} and {_sides(sides[1])} of {student.spec.arch}"
    expected = "0 where the blocks of teacher and student do not pair up in number and size"
    require(sides[0] == sides[1] and bool(sides[0]), "zskt.attention_weight", expected, found)


def _require_one_kind(teacher: str, student: str) -> None:
    kinds = [stages_of(arch) for arch in (teacher, student)]
    # It was published for WRN -> WRN, whose stages both output sums before the ReLU (METHOD section 8).
    found = " and ".join(f"{kind or 'unknown'} of {arch}" for kind, arch in zip(kinds, (teacher, student), strict=True))
    expected = "0 where the stages of teacher and student are not of one kind"
    require(kinds[0] == kinds[1] != "", "zskt.attention_weight", expected, found)


def _blocks(network: Network) -> tuple[Any, ...]:
    """Returns the blocks' shapes for one image."""
    variables = jax.eval_shape(network.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *network.spec.input_shape), jnp.float32)
    return jax.eval_shape(lambda variables, image: network.apply(variables, image).blocks, variables, image)


def _sides(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes) or "none"
