"""Operations of networks with attention: the attention itself, windows that are shifted, and tables of positions."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fastdfkd_jax.convert.graph.arrangements import select
from fastdfkd_jax.convert.graph.axis_order import Laid, logical, plain, together
from fastdfkd_jax.convert.graph.operations import binary
from fastdfkd_jax.convert.graph.table import operation, require_steps
from fastdfkd_jax.errors import UserError

Array = jax.Array


@operation("aten.scaled_dot_product_attention.default")
def _attention(
    query: Laid,
    key: Laid,
    value: Laid,
    attn_mask: Laid | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Laid:
    """Returns softmax(q k' scale + mask) v over the last two axes; logits and softmax in at least single precision."""
    if dropout_p:
        raise UserError(f"attention drops values in evaluation mode (dropout_p={dropout_p}): make it 0 there")
    q, k, v = logical(query), logical(key), logical(value)
    if enable_gqa:
        k, v = (jnp.repeat(x, q.shape[-3] // x.shape[-3], axis=-3) for x in (k, v))
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.matmul(q, jnp.swapaxes(k, -1, -2), preferred_element_type=wide) * factor
    seen = jnp.tri(*scores.shape[-2:], dtype=bool) if is_causal else None
    if attn_mask is not None:
        mask = logical(attn_mask)
        if mask.dtype == bool:
            seen = mask if seen is None else seen & mask
        else:
            scores = scores + mask
    if seen is not None:
        scores = jnp.where(seen, scores, -jnp.inf)
    # As in PyTorch, a query that may see nothing gets zeros.
    blind = jnp.isneginf(scores.max(-1, keepdims=True))
    shares = jnp.where(blind, 0, jax.nn.softmax(jnp.where(blind, 0, scores), -1))
    return plain(shares.astype(v.dtype) @ v)


@operation("aten.unbind.int")
def _unbind(self: Laid, dim: int) -> tuple[Laid, ...]:
    count = self.shape[dim]
    require_steps(count)
    return tuple(select(self, dim, index) for index in range(count))


@operation("aten.roll.default")
def _roll(self: Laid, shifts: Sequence[int], dims: Sequence[int]) -> Laid:
    if not dims:  # PyTorch rolls the values in one line then
        return plain(jnp.roll(logical(self), shifts[0]))
    return self.map(jnp.roll(self.array, tuple(shifts), tuple(self.at(axis) for axis in dims)))


@operation("aten.index.Tensor")
def _index(self: Laid, indices: Sequence[Laid | None]) -> Laid:
    """Gathers by arrays of whole numbers, as NumPy does."""
    return plain(logical(self)[tuple(slice(None) if index is None else logical(index) for index in indices)])


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    operation(f"aten.{_name}.Scalar", f"aten.{_name}.Tensor")(binary(getattr(operator, _name)))
for _name, _whole, _truth in (
    ("and", jnp.bitwise_and, jnp.logical_and),
    ("or", jnp.bitwise_or, jnp.logical_or),
):
    for _kind in ("Tensor", "Scalar"):
        operation(f"aten.__{_name}__.{_kind}", f"aten.bitwise_{_name}.{_kind}")(binary(_whole))
    operation(f"aten.logical_{_name}.default")(binary(_truth))


@operation("aten.logical_not.default")
def _not(self: Laid) -> Laid:
    return self.map(jnp.logical_not(self.array))


@operation("aten.bitwise_not.default")
def _bitwise_not(self: Laid) -> Laid:
    return self.map(jnp.bitwise_not(self.array))


@operation("aten.addcmul.default")
def _add_product(self: Laid, tensor1: Laid, tensor2: Laid, value: float = 1) -> Laid:
    a, b, order = together(tensor1, tensor2)
    a, b, order = together(self, Laid(a * b * value, order))
    return Laid(a + b, order)
