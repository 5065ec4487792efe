"""Arrays that a graph makes on the way: constants, ranges, and values that replace others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from fastdfkd_jax.convert.graph.axis_order import Laid, arranged, logical, plain, together
from fastdfkd_jax.convert.graph.table import jax_type, operation


def _number(value: Any) -> Any:
    return value.array if isinstance(value, Laid) else value


@operation("aten.fill.Scalar", "aten.fill.Tensor")
def _fill(self: Laid, value: Any) -> Laid:
    return self.map(jnp.full_like(self.array, _number(value)))


def _like(self: Laid, dtype: str | None) -> Any:
    return self.array.dtype if dtype is None else jax_type(dtype)


@operation("aten.full_like.default")
def _full_like(self: Laid, fill_value: Any, dtype: str | None, **_: Any) -> Laid:
    return self.map(jnp.full_like(self.array, _number(fill_value), _like(self, dtype)))


@operation("aten.zeros_like.default")
def _zeros_like(self: Laid, dtype: str | None, **_: Any) -> Laid:
    return _full_like(self, 0, dtype)


@operation("aten.ones_like.default")
def _ones_like(self: Laid, dtype: str | None, **_: Any) -> Laid:
    return _full_like(self, 1, dtype)


@operation("aten.zero.default")
def _zero(self: Laid) -> Laid:
    return _fill(self, 0)


@operation("aten.new_zeros.default")
def _new_zeros(self: Laid, size: Sequence[int], dtype: str | None, **_: Any) -> Laid:
    return plain(jnp.zeros(tuple(size), _like(self, dtype)))


@operation("aten.new_ones.default")
def _new_ones(self: Laid, size: Sequence[int], dtype: str | None, **_: Any) -> Laid:
    return plain(jnp.ones(tuple(size), _like(self, dtype)))


@operation("aten.zeros.default")
def _zeros(size: Sequence[int], dtype: str | None, **_: Any) -> Laid:
    return plain(jnp.zeros(tuple(size), jax_type(dtype)))


@operation("aten.ones.default")
def _ones(size: Sequence[int], dtype: str | None, **_: Any) -> Laid:
    return plain(jnp.ones(tuple(size), jax_type(dtype)))


@operation("aten.full.default")
def _full(size: Sequence[int], fill_value: Any, dtype: str | None, **_: Any) -> Laid:
    kind = type(fill_value) if dtype is None and isinstance(fill_value, int) else jax_type(dtype)
    return plain(jnp.full(tuple(size), fill_value, kind))


@operation("aten.arange.default", "aten.arange.start", "aten.arange.start_step")
def _arange(end: float, start: float = 0, step: float = 1, dtype: str | None = None, **_: Any) -> Laid:
    whole = dtype is None and all(isinstance(value, int) for value in (start, end, step))
    return plain(jnp.arange(start, end, step, int if whole else jax_type(dtype)))


@operation("aten.linspace.default")
def _linspace(start: float, end: float, steps: int, dtype: str | None, **_: Any) -> Laid:
    return plain(jnp.linspace(start, end, steps, dtype=jax_type(dtype)))


@operation("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def _masked_fill(self: Laid, mask: Laid, value: Any) -> Laid:
    a, b, order = together(self, mask)
    return Laid(jnp.where(b, jnp.asarray(_number(value), a.dtype), a), order)


@operation("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def _where(condition: Laid, self: Any, other: Any) -> Laid:
    chosen = (logical(value) if isinstance(value, Laid) else value for value in (self, other))
    return plain(jnp.where(logical(condition), *chosen))


@operation("aten.select_scatter.default")
def _select_scatter(self: Laid, src: Laid, dim: int, index: int) -> Laid:
    """Implements an assignment to one index of an axis."""
    place = [slice(None)] * len(self.order)
    at = self.at(dim)
    place[at] = index  # type: ignore[call-overload]
    rest = [axis for axis in self.order if axis != dim % len(self.order)]
    kept = sorted(rest)
    values = arranged(src, [kept.index(axis) for axis in rest])
    return self.map(self.array.at[tuple(place)].set(values))
