"""The precision and the convolutions of networks and generators, which say how they compute and not what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from fastdfkd_jax.cpu_conv import CONV_FORMS
from fastdfkd_jax.errors import UserError

# Names of `Forms.conv` in records of runs before, and those of today.
OLD_NAMES = {"canonical": "cpu", "native": "xla"}


@dataclass(frozen=True)
class Forms:
    """How a network or generator computes.

    Attributes:
      dtype: of convolutions and activations; parameters, moments, logits and a generator's images stay float32.
      conv: 'cpu', whose gradients are fast on CPUs, for reverse mode only; or 'xla', XLA's own, for accelerators, `jvp`
        and exact MAML.

    Raises:
      UserError: `conv` is not one of `cpu_conv.CONV_FORMS`.
    """

    dtype: Any = jnp.float32
    conv: str = "cpu"

    def __post_init__(self) -> None:
        if self.conv not in CONV_FORMS:
            renamed = f", the old name of {OLD_NAMES[self.conv]!r}" if self.conv in OLD_NAMES else ""
            raise UserError(f"Forms.conv must be one of {', '.join(CONV_FORMS)}, found {self.conv!r}{renamed}")
