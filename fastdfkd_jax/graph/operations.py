"""The ATen operations of exported graphs as functions of laid-out arrays.

Each takes the arguments of its operation by PyTorch's name, arrays as `Laid`, and gives a `Laid`, a tuple of them or a
number. Axes are logical ones, as PyTorch counts them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fastdfkd_jax.graph.layout import CHANNELS_LAST, Laid, arranged, logical, permuted, plain, reshaped, together
from fastdfkd_jax.models.convolution import canonical_conv
from fastdfkd_jax.models.layers import at_least_float32

Array = jax.Array

CONVOLUTION, LINEAR = "aten.conv2d.default", "aten.linear.default"
BATCH_NORM = "aten._native_batch_norm_legit_no_training.default"  # not in the table: it gives more than a value

OPERATIONS: dict[str, Callable[..., Any]] = {}


def operation(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enters a function in the table under ATen's names."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        OPERATIONS.update(dict.fromkeys(names, function))
        return function

    return enter


def _elementwise(name: str, function: Callable[[Array], Array]) -> None:
    OPERATIONS[name] = lambda self, **_: self.map(function(self.array))


for _name, _function in {
    "aten.relu.default": jax.nn.relu,
    "aten.relu_.default": jax.nn.relu,
    "aten.sigmoid.default": jax.nn.sigmoid,
    "aten.silu.default": jax.nn.silu,
    "aten.silu_.default": jax.nn.silu,
    "aten.tanh.default": jnp.tanh,
    "aten.hardswish.default": lambda x: x * jnp.clip(x + 3, 0, 6) / 6,
    "aten.hardswish_.default": lambda x: x * jnp.clip(x + 3, 0, 6) / 6,
    "aten.hardsigmoid.default": lambda x: jnp.clip(x + 3, 0, 6) / 6,
    "aten.exp.default": jnp.exp,
    "aten.reciprocal.default": jnp.reciprocal,
    "aten.sqrt.default": jnp.sqrt,
    "aten.rsqrt.default": lax.rsqrt,
    "aten.neg.default": jnp.negative,
    "aten.abs.default": jnp.abs,
    "aten.clone.default": lambda x: x,
    "aten.alias.default": lambda x: x,
    "aten.detach.default": lax.stop_gradient,
    "aten.contiguous.default": lambda x: x,
    "aten._to_copy.default": lambda x: x,
}.items():
    _elementwise(_name, _function)


@operation("aten.gelu.default")
def _gelu(self: Laid, approximate: str = "none") -> Laid:
    return self.map(jax.nn.gelu(self.array, approximate=approximate == "tanh"))


@operation("aten.hardtanh.default", "aten.hardtanh_.default", "aten.clamp.default")
def _clamp(self: Laid, **bounds: float | None) -> Laid:
    low, high = (bounds.get(f"{end}_val", bounds.get(end)) for end in ("min", "max"))
    return self.map(jnp.clip(self.array, low, high))


@operation("aten.leaky_relu.default", "aten.leaky_relu_.default")
def _leaky_relu(self: Laid, negative_slope: float) -> Laid:
    return self.map(jax.nn.leaky_relu(self.array, negative_slope))


@operation("aten.elu.default", "aten.elu_.default")
def _elu(self: Laid, alpha: float, scale: float, input_scale: float) -> Laid:
    x = self.array
    return self.map(scale * jnp.where(x > 0, x, alpha * jnp.expm1(input_scale * jnp.minimum(x, 0))))


def _binary(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def apply(self: Any, other: Any, **rest: Any) -> Any:
        scale = rest.get("alpha", 1)
        if not isinstance(self, Laid) and not isinstance(other, Laid):
            return function(self, other)
        if not isinstance(other, Laid):
            return self.map(function(self.array, other * scale if scale != 1 else other))
        if not isinstance(self, Laid):
            return other.map(function(self, other.array))
        a, b, order = together(self, other)
        return Laid(function(a, b * scale if scale != 1 else b), order)

    return apply


for _name, _operator in {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
}.items():
    for _kind in ("Tensor", "Scalar"):
        OPERATIONS[f"aten.{_name}.{_kind}"] = OPERATIONS[f"aten.{_name}_.{_kind}"] = _binary(_operator)
for _name in ("add", "sub", "mul", "floordiv"):
    _python = getattr(operator, _name)
    OPERATIONS[f"operator.{_name}"] = lambda *args, _python=_python, **kw: _python(*(kw[str(i)] for i in range(2)))


@operation("operator.getitem")
def _getitem(**arguments: Any) -> Any:
    return arguments["0"][arguments["1"]]


@operation("aten.sym_size.int")
def _sym_size(self: Laid, dim: int) -> int:
    return self.shape[dim]


@operation(CONVOLUTION)
def _conv2d(
    input: Laid,
    weight: Laid,
    bias: Laid | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    gradient: str,
) -> Laid:
    """`weight` is HWIO."""
    x = arranged(input, CHANNELS_LAST)
    stride, padding, dilation = (_pair(value) for value in (stride, padding, dilation))
    kernel = weight.array
    height, width = kernel.shape[:2]
    square = stride[0] == stride[1] and padding[0] == padding[1] and height == width
    if gradient == "canonical" and groups == 1 and dilation == (1, 1) and square:
        y: Array = canonical_conv(x, kernel, stride[0], padding[0])
    else:
        y = lax.conv_general_dilated(
            x,
            kernel,
            stride,
            [(p, p) for p in padding],
            rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
    return Laid(y if bias is None else y + bias.array, CHANNELS_LAST)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1])


@operation(LINEAR)
def _linear(input: Laid, weight: Laid, bias: Laid | None) -> Laid:
    """`weight` is [I, O]."""
    y = logical(input) @ weight.array
    return plain(y if bias is None else y + bias.array)


@operation("aten.mean.dim")
def _mean(self: Laid, dim: Sequence[int] | None, keepdim: bool = False, **_: Any) -> Laid:
    dims = range(len(self.order)) if dim is None else [axis % len(self.order) for axis in dim]
    mean = at_least_float32(self.array).mean(tuple(self.at(axis) for axis in dims), keepdims=True)
    kept = self.map(mean)
    if keepdim:
        return kept
    return reshaped(kept, [size for axis, size in enumerate(kept.shape) if axis not in dims])


@operation("aten.adaptive_avg_pool2d.default", "aten._adaptive_avg_pool2d.default")
def _adaptive_average(self: Laid, output_size: Sequence[int]) -> Laid:
    """Every output is the mean of its window; windows may overlap where the sizes do not divide."""
    x = arranged(self, CHANNELS_LAST)
    for axis, outputs in zip((1, 2), _pair(output_size), strict=True):
        size = x.shape[axis]
        if size % outputs == 0:
            x = x.reshape(*x.shape[:axis], outputs, size // outputs, *x.shape[axis + 1 :]).mean(axis + 1)
            continue
        parts = []
        for i in range(outputs):
            start, stop = i * size // outputs, -(-(i + 1) * size // outputs)
            parts.append(lax.slice_in_dim(x, start, stop, axis=axis).mean(axis, keepdims=True))
        x = jnp.concatenate(parts, axis)
    return Laid(x, CHANNELS_LAST)


@operation("aten.avg_pool2d.default")
def _average_pool(
    self: Laid,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Laid:
    x = arranged(self, CHANNELS_LAST)
    total, spans = _windows(x, kernel_size, stride, padding, (1, 1), ceil_mode, jnp.add, 0.0)
    if divisor_override:
        return Laid(total / divisor_override, CHANNELS_LAST)
    counts = []
    for size, pad, span in zip(x.shape[1:3], _pair(padding), spans, strict=True):
        # What counts: padding, if asked for, but never what rounding the number of windows up has added.
        low, high = (-pad, size + pad) if count_include_pad else (0, size)
        counts.append(jnp.array([max(min(stop, high) - max(start, low), 1) for start, stop in span], x.dtype))
    return Laid(total / (counts[0][:, None] * counts[1])[:, :, None], CHANNELS_LAST)


@operation("aten.max_pool2d.default")
def _max_pool(
    self: Laid,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Laid:
    x = arranged(self, CHANNELS_LAST)
    return Laid(
        _windows(x, kernel_size, stride, padding, _pair(dilation), ceil_mode, jnp.maximum, -jnp.inf)[0], CHANNELS_LAST
    )


@operation("aten.max_pool2d_with_indices.default")
def _max_pool_with_indices(**arguments: Any) -> tuple[Laid, None]:
    """The indices are what nothing but its own gradient asks for."""
    return _max_pool(**arguments), None


def _windows(x, kernel_size, stride, padding, dilation, ceil_mode, reduce, nothing):
    """Windows of NHWC reduced slice by slice, axis by axis, and [start, stop) of every window of either axis.

    Pairwise, because the gradient of XLA's windowed maximum is 17 times slower on CPU.
    """
    spans = []
    stride = stride or kernel_size
    for axis, size, step, pad, apart in zip(
        (1, 2), _pair(kernel_size), _pair(stride), _pair(padding), _pair(dilation), strict=True
    ):
        length, reach = x.shape[axis], apart * (size - 1) + 1
        room = length + 2 * pad - reach
        windows = (-(-room // step) if ceil_mode else room // step) + 1
        if ceil_mode and (windows - 1) * step >= length + pad:
            windows -= 1  # a window may not begin in the padding behind
        behind = max(0, (windows - 1) * step + reach - length - pad)
        edges = [(0, 0)] * x.ndim
        edges[axis] = (pad, behind)
        padded = jnp.pad(x, edges, constant_values=nothing)
        taps = [
            lax.slice_in_dim(padded, apart * tap, apart * tap + step * (windows - 1) + 1, stride=step, axis=axis)
            for tap in range(size)
        ]
        x = taps[0]
        for tap in taps[1:]:
            x = reduce(x, tap)
        spans.append([(i * step - pad, i * step - pad + reach) for i in range(windows)])
    return x, spans


@operation("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default")
def _reshape(self: Laid, **shape: Sequence[int]) -> Laid:
    return reshaped(self, next(iter(shape.values())))


@operation("aten.flatten.using_ints")
def _flatten(self: Laid, start_dim: int, end_dim: int) -> Laid:
    rank = len(self.order)
    start, end = start_dim % rank, end_dim % rank
    return reshaped(self, (*self.shape[:start], math.prod(self.shape[start : end + 1]), *self.shape[end + 1 :]))


@operation("aten.permute.default")
def _permute(self: Laid, dims: Sequence[int]) -> Laid:
    return permuted(self, dims)


@operation("aten.transpose.int")
def _transpose(self: Laid, dim0: int, dim1: int) -> Laid:
    axes = list(range(len(self.order)))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return permuted(self, axes)


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


@operation("aten.cat.default")
def _cat(tensors: Sequence[Laid], dim: int) -> Laid:
    first = tensors[0]
    arrays = [arranged(value, first.order) for value in tensors]
    return first.map(jnp.concatenate(arrays, first.at(dim)))


@operation("aten.slice.Tensor")
def _slice(self: Laid, dim: int, start: int | None, end: int | None, step: int) -> Laid:
    index = [slice(None)] * len(self.order)
    index[self.at(dim)] = slice(start, end, step)
    return self.map(self.array[tuple(index)])


@operation("aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default")
def _split(self: Laid, dim: int, **how: Any) -> tuple[Laid, ...]:
    axis = self.at(dim)
    length = self.array.shape[axis]
    if "split_sizes" in how:
        sizes = how["split_sizes"]
    else:
        size = how["split_size"] if "split_size" in how else -(-length // how["chunks"])
        sizes = [min(size, length - start) for start in range(0, length, size)]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return tuple(self.map(lax.slice_in_dim(self.array, e - s, e, axis=axis)) for s, e in zip(sizes, ends, strict=True))


@operation("aten.constant_pad_nd.default", "aten.pad.default")
def _pad(self: Laid, pad: Sequence[int], **rest: Any) -> Laid:
    """`pad` is (before, behind) of the last axis, then of the one before it."""
    edges = [(0, 0, 0)] * len(self.order)
    for i in range(len(pad) // 2):
        edges[self.at(-1 - i)] = (pad[2 * i], pad[2 * i + 1], 0)
    return self.map(lax.pad(self.array, jnp.asarray(rest.get("value") or 0, self.array.dtype), edges))


@operation("aten.upsample_nearest2d.vec")
def _nearest(input: Laid, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None) -> Laid:
    x = arranged(input, CHANNELS_LAST)
    sizes = output_size or [math.floor(n * s) for n, s in zip(x.shape[1:3], scale_factors or (), strict=True)]
    for axis, size in zip((1, 2), sizes, strict=True):
        old = x.shape[axis]
        # PyTorch takes pixel floor(i * old / new).
        x = x.repeat(size // old, axis) if size % old == 0 else x.take(jnp.arange(size) * old // size, axis)
    return Laid(x, CHANNELS_LAST)


@operation("aten.upsample_bilinear2d.vec")
def _bilinear(
    input: Laid, output_size: Sequence[int] | None, align_corners: bool, scale_factors: Sequence[float] | None
) -> Laid:
    """As a product with a matrix of at most two weights a row on either axis."""
    x = arranged(input, CHANNELS_LAST)
    sizes = output_size or [math.floor(n * s) for n, s in zip(x.shape[1:3], scale_factors or (), strict=True)]
    for axis, size in zip((1, 2), sizes, strict=True):
        old = x.shape[axis]
        steps = jnp.arange(size)
        if align_corners:
            at = steps * ((old - 1) / max(size - 1, 1))
        else:
            scale = 1 / scale_factors[axis - 1] if scale_factors and not output_size else old / size
            at = jnp.maximum((steps + 0.5) * scale - 0.5, 0)
        low = jnp.minimum(jnp.floor(at).astype(int), old - 1)
        high, part = jnp.minimum(low + 1, old - 1), at - low
        weights = (1 - part)[:, None] * jax.nn.one_hot(low, old) + part[:, None] * jax.nn.one_hot(high, old)
        x = jnp.moveaxis(jnp.tensordot(weights.astype(x.dtype), x, (1, axis)), 0, axis)
    return Laid(x, CHANNELS_LAST)
