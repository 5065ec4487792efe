"""Architectures by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp

from fastdfkd_jax.errors import UserError
from fastdfkd_jax.models.cifar_resnet import CifarResNet
from fastdfkd_jax.models.network import Network, NetworkSpec, from_linen
from fastdfkd_jax.models.wide_resnet import WideResNet

# Each rule: the pattern of the name, examples for messages, and `match -> module class with its sizes bound`.
_Rule = tuple[str, tuple[str, ...], Callable[[re.Match[str]], Callable[..., Any] | None]]


def _wide_resnet(match: re.Match[str]) -> Callable[..., Any] | None:
    depth, widen = int(match[1]), int(match[2])
    if depth < 10 or (depth - 4) % 6 or widen < 1:
        return None
    return partial(WideResNet, depth, widen)


def _cifar_resnet(match: re.Match[str]) -> Callable[..., Any] | None:
    depth, wide, shortcut = int(match[1]), match[2] is not None, match[3]
    if depth < 8 or (depth - 2) % 6:
        return None
    widths = (32, 64, 128, 256) if wide else (16, 16, 32, 64)
    # The ports differ: the one with the thin networks has option A, the one with the x4 widths option B.
    return partial(CifarResNet, depth, widths, shortcut or ("b" if wide else "a"))


_THIN = ("resnet8", "resnet20", "resnet20b", "resnet32", "resnet44", "resnet56", "resnet110")

_RULES: list[_Rule] = [
    (r"wrn(\d+)_(\d+)", ("wrn16_1", "wrn16_2", "wrn40_1", "wrn40_2"), _wide_resnet),
    (r"resnet(\d+)(x4)?([ab])?", (*_THIN, "resnet8x4", "resnet32x4"), _cifar_resnet),
]


def _find(arch: str) -> Callable[..., Any] | None:
    for pattern, _, make in _RULES:
        if match := re.fullmatch(pattern, arch):
            return make(match)
    return None


def arch_names() -> tuple[str, ...]:
    """Names of every family's usual members, for messages and tests (others, such as wrn28_10, exist)."""
    return tuple(name for _, names, _ in _RULES for name in names)


def is_known(arch: str) -> bool:
    """Whether `build` knows this name."""
    return _find(arch) is not None


def build(spec: NetworkSpec, *, dtype: Any = jnp.float32, conv_gradient: str = "canonical") -> Network:
    """Builds the network that a spec names.

    Args:
      spec: architecture, classes, input size and normalisation.
      dtype: of the convolutions and activations; parameters, moments and logits stay float32.
      conv_gradient: 'canonical' or 'native' (`layers.Conv`).

    Raises:
      UserError: the architecture is not known.
    """
    module = _find(spec.arch)
    if module is None:
        raise UserError(
            f"unknown architecture {spec.arch!r}: expected one of {', '.join(arch_names())} or another depth "
            "or width of these families"
        )

    def make(train: bool):
        return module(num_classes=spec.num_classes, train=train, dtype=dtype, conv_gradient=conv_gradient)

    return from_linen(make, spec)
