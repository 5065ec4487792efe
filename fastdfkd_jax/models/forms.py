"""How networks and generators compute: in which precision, and with which form of convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from fastdfkd_jax.cpu_conv import CONV_FORMS
from fastdfkd_jax.errors import UserError

# Of `Forms.conv` in earlier versions, whose runs are recorded with these names; and the present ones.
OLD_NAMES = {"canonical": "cpu", "native": "xla"}


@dataclass(frozen=True)
class Forms:
    """How a network or generator computes.

    Attributes:
      dtype: of convolutions and activations; parameters, moments, logits and a generator's images stay float32.
      conv: form of the convolutions. 'cpu' has gradients that are fast on CPUs and refuses forward mode; 'xla' leaves
        gradients to XLA, for accelerators, `jvp` and exact MAML.

    Raises:
      UserError: `conv` is not one of `cpu_conv.CONV_FORMS`.
    """

    dtype: Any = jnp.float32
    conv: str = "cpu"

    def __post_init__(self) -> None:
        if self.conv not in CONV_FORMS:
            renamed = f", the old name of {OLD_NAMES[self.conv]!r}" if self.conv in OLD_NAMES else ""
            raise UserError(f"Forms.conv must be one of {', '.join(CONV_FORMS)}, found {self.conv!r}{renamed}")
