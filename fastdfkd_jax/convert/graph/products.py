"""Products of vectors and matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from fastdfkd_jax.convert.graph.axis_order import Laid, arranged, logical, plain
from fastdfkd_jax.convert.graph.table import operation

LINEAR, ADDED_PRODUCT = "aten.linear.default", "aten.addmm.default"


@operation(LINEAR)
def _linear(input: Laid, weight: Laid, bias: Laid | None) -> Laid:
    """Applies a linear layer; `weight` is logically [O, I] and stored as [I, O]."""
    y = logical(input) @ arranged(weight, (1, 0))
    return plain(y if bias is None else y + bias.array)


@operation(ADDED_PRODUCT)
def _added_product(self: Laid, mat1: Laid, mat2: Laid, beta: float, alpha: float) -> Laid:
    return plain(beta * self.array + alpha * (logical(mat1) @ logical(mat2)))


@operation(
    "aten.mm.default", "aten.bmm.default", "aten.matmul.default", "aten.mv.default", "aten.dot.default",
    "aten.vdot.default",
)  # fmt: skip
def _product(**factors: Laid) -> Laid:
    first, second = factors.values()
    return plain(logical(first) @ logical(second))


@operation("aten.einsum.default")
def _einsum(equation: str, tensors: Sequence[Laid], **_: Any) -> Laid:
    """Evaluates an einsum; the order of the products (`path`) changes only rounding."""
    return plain(jnp.einsum(equation, *map(logical, tensors)))
