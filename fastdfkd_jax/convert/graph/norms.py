"""Normalisation layers other than BatchNorm with running statistics, and norms of vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fastdfkd_jax.convert.graph.axis_order import Laid, arranged, plain, reshaped, together
from fastdfkd_jax.convert.graph.table import operation
from fastdfkd_jax.models.layers import at_least_float32

Array = jax.Array

INSTANCE_NORM = "aten.instance_norm.default"


def _standardised(x: Array, axes: Sequence[int], eps: float) -> Array:
    """Subtracts the mean over these axes and divides by the deviation, in at least single precision."""
    x = at_least_float32(x)
    mean = x.mean(tuple(axes), keepdims=True)
    var = jnp.square(x - mean).mean(tuple(axes), keepdims=True)
    return (x - mean) * lax.rsqrt(var + eps)


def _scaled(value: Laid, weight: Laid | None, bias: Laid | None) -> Laid:
    """Applies a scale and a shift that broadcast against the last logical axes."""
    for factor, function in ((weight, jnp.multiply), (bias, jnp.add)):
        if factor is not None:
            a, b, order = together(value, factor)
            value = Laid(function(a, b), order)
    return value


def _by_channel(vector: Laid | None, rank: int) -> Laid | None:
    """Reshapes a vector with one entry per channel to broadcast against values of this rank."""
    return None if vector is None else reshaped(vector, (*vector.shape, *(1,) * (rank - 2)))


@operation("aten.group_norm.default")
def _group_norm(input: Laid, num_groups: int, weight: Laid | None, bias: Laid | None, eps: float, **_: Any) -> Laid:
    """Normalises groups of channels, with all pixels, by each image's own mean and biased variance."""
    order = (0, *(axis for axis in input.order if axis > 1), 1)
    x = arranged(input, order)
    grouped = x.reshape(*x.shape[:-1], num_groups, x.shape[-1] // num_groups)
    axes = [*range(1, x.ndim - 1), x.ndim]
    y = Laid(_standardised(grouped, axes, eps).reshape(x.shape), order)
    return _scaled(y, *(_by_channel(vector, x.ndim) for vector in (weight, bias)))


@operation("aten.native_group_norm.default")
def _native_group_norm(
    input: Laid, weight: Laid | None, bias: Laid | None, group: int, eps: float, **_: Any
) -> tuple[Laid, None, None]:
    """Returns no moments, because only the operation's own gradient uses them."""
    return _group_norm(input, group, weight, bias, eps), None, None


@operation(INSTANCE_NORM)
def _instance_norm(
    input: Laid,
    weight: Laid | None,
    bias: Laid | None,
    running_mean: Laid | None,
    running_var: Laid | None,
    use_input_stats: bool,
    eps: float,
    **_: Any,
) -> Laid:
    """Normalises channels by each image's moments, or by running ones if the layer has them (evaluation only)."""
    if use_input_stats or running_mean is None or running_var is None:
        return _group_norm(input, input.shape[1], weight, bias, eps)
    return normalised_by(input, running_mean, running_var, weight, bias, eps)


def normalised_by(
    input: Laid, running_mean: Laid, running_var: Laid, weight: Laid | None, bias: Laid | None, eps: float
) -> Laid:
    """Normalises channels by a given mean and variance."""
    multiplier = lax.rsqrt(at_least_float32(running_var.array) + eps)
    multiplier = multiplier if weight is None else multiplier * weight.array
    shift = -running_mean.array * multiplier + (0 if bias is None else bias.array)
    rank = len(input.order)
    return _scaled(input, _by_channel(plain(multiplier), rank), _by_channel(plain(shift), rank))


@operation("aten._native_batch_norm_legit.no_stats")
def _batch_norm_without_statistics(
    input: Laid, weight: Laid | None, bias: Laid | None, eps: float, **_: Any
) -> tuple[Laid, None, None]:
    """Normalises channels by the batch's moments, in evaluation too, as the layer has no running statistics."""
    axes = [i for i, axis in enumerate(input.order) if axis != 1]
    y = input.map(_standardised(input.array, axes, eps))
    return _scaled(y, *(_by_channel(vector, len(input.order)) for vector in (weight, bias))), None, None


@operation("aten.layer_norm.default")
def _layer_norm(
    input: Laid, normalized_shape: Sequence[int], weight: Laid | None, bias: Laid | None, eps: float, **_: Any
) -> Laid:
    axes = [input.at(-1 - i) for i in range(len(normalized_shape))]
    return _scaled(input.map(_standardised(input.array, axes, eps)), weight, bias)


@operation("aten.native_layer_norm.default")
def _native_layer_norm(**arguments: Any) -> tuple[Laid, None, None]:
    return _layer_norm(**arguments), None, None


@operation("aten.linalg_vector_norm.default")
def _vector_norm(self: Laid, ord: float, dim: Sequence[int] | int | None, keepdim: bool, **_: Any) -> Laid:
    """Returns a vector norm whose gradient at zero is zero, as in PyTorch, rather than NaN."""
    rank = len(self.order)
    dims = [dim] if isinstance(dim, int) else dim or range(rank)
    axes = tuple(self.at(axis) for axis in dims)
    kept = self.map(_norm(at_least_float32(self.array), float(ord), axes))
    if keepdim:
        return kept
    removed = {axis % rank for axis in dims}
    return reshaped(kept, [size for axis, size in enumerate(kept.shape) if axis not in removed])


def _norm(x: Array, order: float, axes: tuple[int, ...]) -> Array:
    magnitude = jnp.where(x > 0, x, jnp.where(x < 0, -x, 0))
    if math.isinf(order):
        return (jnp.max if order > 0 else jnp.min)(magnitude, axes, keepdims=True)
    if order == 0:
        return (x != 0).astype(x.dtype).sum(axes, keepdims=True)
    if order == 1:
        return magnitude.sum(axes, keepdims=True)
    power = (
        jnp.square(x) if order == 2 else jnp.where(magnitude > 0, jnp.where(magnitude > 0, magnitude, 1) ** order, 0)
    )
    total = power.sum(axes, keepdims=True)
    root = jnp.where(total > 0, total, 1) ** (1 / order)
    return jnp.where(total > 0, root, 0)


@operation("aten._weight_norm.default", "aten._weight_norm_interface.default")
def _weight_norm(v: Laid, g: Laid, dim: int) -> Laid:
    """Scales `v` to the norms `g`: for every index of the axis `dim`, or for the whole if it is -1."""
    axes = tuple(i for i, axis in enumerate(v.order) if dim == -1 or axis != dim)
    norm = v.map(_norm(at_least_float32(v.array), 2.0, axes))
    a, b, order = together(g, norm)
    ratio = Laid(a / b, order)
    a, b, order = together(v, ratio)
    return Laid(a * b, order)
