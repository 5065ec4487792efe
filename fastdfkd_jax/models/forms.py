"""The precision and the form of convolutions that networks and generators compute with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from fastdfkd_jax.cpu_conv import CONV_FORMS
from fastdfkd_jax.errors import UserError

# Earlier names of `Forms.conv`, which recorded runs may have, and the present ones.
OLD_NAMES = {"canonical": "cpu", "native": "xla"}


@dataclass(frozen=True)
class Forms:
    """The precision and the form of convolutions of a network or generator.

    Attributes:
      dtype: type of convolutions and activations; parameters, moments, logits and a generator's images stay float32.
      conv: form of the convolutions. 'cpu' has gradients that are fast on CPUs but no forward-mode differentiation.
        'xla' leaves gradients to XLA, for accelerators, `jvp` and exact MAML.

    Raises:
      UserError: `conv` is not one of `cpu_conv.CONV_FORMS`.
    """

    dtype: Any = jnp.float32
    conv: str = "cpu"

    def __post_init__(self) -> None:
        if self.conv not in CONV_FORMS:
            renamed = f", the old name of {OLD_NAMES[self.conv]!r}" if self.conv in OLD_NAMES else ""
            raise UserError(f"Forms.conv must be one of {', '.join(CONV_FORMS)}, found {self.conv!r}{renamed}")
