"""Operations on shapes, which rearrange values without computing any."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fastdfkd_jax.convert.graph.axis_order import Laid, arranged, logical, permuted, plain, reshaped
from fastdfkd_jax.convert.graph.table import operation, require_steps

Array = jax.Array

PERMUTE = "aten.permute.default"


@operation("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default")
def _reshape(self: Laid, **shape: Sequence[int]) -> Laid:
    return reshaped(self, next(iter(shape.values())))


@operation("aten.flatten.using_ints")
def _flatten(self: Laid, start_dim: int, end_dim: int) -> Laid:
    rank = len(self.order)
    start, end = start_dim % rank, end_dim % rank
    return reshaped(self, (*self.shape[:start], math.prod(self.shape[start : end + 1]), *self.shape[end + 1 :]))


@operation(PERMUTE)
def _permute(self: Laid, dims: Sequence[int]) -> Laid:
    return permuted(self, dims)


@operation("aten.transpose.int")
def _transpose(self: Laid, dim0: int, dim1: int) -> Laid:
    axes = list(range(len(self.order)))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return permuted(self, axes)


@operation("aten.channel_shuffle.default", "aten.native_channel_shuffle.default")
def _channel_shuffle(self: Laid, groups: int) -> Laid:
    batch, channels, *size = self.shape
    split = reshaped(self, (batch, groups, channels // groups, *size))
    return reshaped(_transpose(split, 1, 2), self.shape)


@operation("aten.pixel_shuffle.default")
def _pixel_shuffle(self: Laid, upscale_factor: int) -> Laid:
    batch, channels, height, width = self.shape
    r = upscale_factor
    split = reshaped(self, (batch, channels // r**2, r, r, height, width))
    return reshaped(permuted(split, (0, 1, 4, 2, 5, 3)), (batch, channels // r**2, height * r, width * r))


@operation("aten.unsqueeze.default")
def _unsqueeze(self: Laid, dim: int) -> Laid:
    shape = list(self.shape)
    shape.insert(dim % (len(shape) + 1), 1)
    return reshaped(self, shape)


@operation("aten.squeeze.dims", "aten.squeeze.dim")
def _squeeze(self: Laid, dim: int | Sequence[int]) -> Laid:
    dims = {axis % len(self.order) for axis in ([dim] if isinstance(dim, int) else dim)}
    return reshaped(self, [size for axis, size in enumerate(self.shape) if axis not in dims or size != 1])


@operation("aten.expand.default")
def _expand(self: Laid, size: Sequence[int], **_: Any) -> Laid:
    x = logical(self)
    x = x.reshape((1,) * (len(size) - x.ndim) + x.shape)
    return plain(jnp.broadcast_to(x, [old if new == -1 else new for old, new in zip(x.shape, size, strict=True)]))


@operation("aten.copy.default")
def _copy(self: Laid, src: Laid, **_: Any) -> Laid:
    return plain(jnp.broadcast_to(logical(src), self.shape))


@operation("aten.repeat.default")
def _repeat(self: Laid, repeats: Sequence[int]) -> Laid:
    return plain(jnp.tile(logical(self), repeats))


@operation("aten.cat.default")
def _cat(tensors: Sequence[Laid], dim: int) -> Laid:
    first = tensors[0]
    arrays = [arranged(value, first.order) for value in tensors]
    return first.map(jnp.concatenate(arrays, first.at(dim)))


@operation("aten.stack.default")
def _stack(tensors: Sequence[Laid], dim: int) -> Laid:
    return _cat([_unsqueeze(value, dim) for value in tensors], dim)


def _index(value: Laid, dim: int, start: int | None, end: int | None, step: int) -> tuple[slice, ...]:
    index = [slice(None)] * len(value.order)
    index[value.at(dim)] = slice(start, end, step)
    return tuple(index)


@operation("aten.slice.Tensor")
def _slice(self: Laid, **which: Any) -> Laid:
    return self.map(self.array[_index(self, **which)])


@operation("aten.slice_scatter.default")
def _slice_scatter(self: Laid, src: Laid, **which: Any) -> Laid:
    """Implements an assignment to a slice."""
    return self.map(self.array.at[_index(self, **which)].set(arranged(src, self.order)))


@operation("aten.select.int")
def select(self: Laid, dim: int, index: int) -> Laid:
    """Takes one index of an axis, which is removed."""
    lies = self.at(dim)
    kept = self.map(lax.index_in_dim(self.array, index, lies))
    return reshaped(kept, [size for axis, size in enumerate(self.shape) if axis != dim % len(self.order)])


@operation("aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default")
def _split(self: Laid, dim: int, **how: Any) -> tuple[Laid, ...]:
    axis = self.at(dim)
    length = self.array.shape[axis]
    if "split_sizes" in how:
        sizes = how["split_sizes"]
    else:
        size = how["split_size"] if "split_size" in how else -(-length // how["chunks"])
        require_steps(-(-length // size))
        sizes = [min(size, length - start) for start in range(0, length, size)]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return tuple(self.map(lax.slice_in_dim(self.array, e - s, e, axis=axis)) for s, e in zip(sizes, ends, strict=True))


@operation("aten.constant_pad_nd.default", "aten.pad.default")
def _pad(self: Laid, pad: Sequence[int], **rest: Any) -> Laid:
    """Pads or, where negative, crops; `pad` is (before, after) of the last axis, then of the one before it."""
    edges = [(0, 0)] * len(self.order)
    for i in range(len(pad) // 2):
        edges[self.at(-1 - i)] = (pad[2 * i], pad[2 * i + 1])
    mode = rest.get("mode", "constant")
    if mode == "constant":
        value = jnp.asarray(rest.get("value") or 0, self.array.dtype)
        return self.map(lax.pad(self.array, value, [(*edge, 0) for edge in edges]))
    cut = [(min(before, 0), min(behind, 0), 0) for before, behind in edges]
    array = lax.pad(self.array, jnp.zeros((), self.array.dtype), cut)
    added = [(max(before, 0), max(behind, 0)) for before, behind in edges]
    return self.map(jnp.pad(array, added, {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]))
