"""Operations on numbers."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fastdfkd_jax.convert.graph.axis_order import Laid, reshaped, together
from fastdfkd_jax.convert.graph.table import jax_type, operation
from fastdfkd_jax.models.layers import at_least_float32

Array = jax.Array


def _between(x: Array, low: float, high: float) -> Array:
    """Clips with zero gradient at the bounds, like PyTorch; `jnp.clip` has half the gradient there."""
    return jnp.where(x <= low, low, jnp.where(x >= high, high, x))


def _elementwise(name: str, function: Callable[[Array], Array]) -> None:
    operation(name)(lambda self, **_: self.map(function(self.array)))


for _name, _function in {
    "aten.relu.default": jax.nn.relu,
    "aten.relu6.default": lambda x: _between(x, 0, 6),
    "aten.selu.default": jax.nn.selu,
    "aten.mish.default": jax.nn.mish,
    "aten.log.default": jnp.log,
    "aten.sigmoid.default": jax.nn.sigmoid,
    "aten.silu.default": jax.nn.silu,
    "aten.tanh.default": jnp.tanh,
    "aten.hardswish.default": lambda x: jnp.where(x <= -3, 0, jnp.where(x >= 3, x, x * (x + 3) / 6)),
    "aten.hardsigmoid.default": lambda x: _between(x + 3, 0, 6) / 6,
    "aten.exp.default": jnp.exp,
    "aten.reciprocal.default": jnp.reciprocal,
    "aten.sqrt.default": jnp.sqrt,
    "aten.rsqrt.default": lax.rsqrt,
    "aten.neg.default": jnp.negative,
    "aten.sin.default": jnp.sin,
    "aten.cos.default": jnp.cos,
    "aten.abs.default": lambda x: jnp.where(x > 0, x, jnp.where(x < 0, -x, 0)),
    "aten.clone.default": lambda x: x,
    "aten.alias.default": lambda x: x,
    "aten.detach.default": lax.stop_gradient,
    "aten.contiguous.default": lambda x: x,
}.items():
    _elementwise(_name, _function)


@operation("aten.gelu.default")
def _gelu(self: Laid, approximate: str = "none") -> Laid:
    return self.map(jax.nn.gelu(self.array, approximate=approximate == "tanh"))


@operation("aten.hardtanh.default")
def _hardtanh(self: Laid, min_val: float, max_val: float) -> Laid:
    return self.map(_between(self.array, min_val, max_val))


@operation("aten.clamp.default")
def _clamp(self: Laid, min: float | None, max: float | None) -> Laid:
    """Clips; unlike in `hardtanh`, the gradient passes at a bound."""
    x = self.array
    x = x if min is None else jnp.where(x >= min, x, min)
    return self.map(x if max is None else jnp.where(x <= max, x, max))


@operation("aten.clamp_min.default")
def _clamp_min(self: Laid, min: float) -> Laid:
    return _clamp(self, min, None)


@operation("aten.clamp_max.default")
def _clamp_max(self: Laid, max: float) -> Laid:
    return _clamp(self, None, max)


@operation("aten.leaky_relu.default")
def _leaky_relu(self: Laid, negative_slope: float) -> Laid:
    return self.map(jnp.where(self.array > 0, self.array, self.array * negative_slope))


@operation("aten.prelu.default", "aten._prelu_kernel.default")
def _prelu(self: Laid, weight: Laid) -> Laid:
    """Applies PReLU with one slope, or one per channel."""
    slope = weight.array.ravel()
    shape = [-1 if axis == 1 else 1 for axis in self.order] if slope.size > 1 else ()
    return self.map(jnp.where(self.array > 0, self.array, self.array * slope.reshape(shape)))


@operation("aten.softplus.default")
def _softplus(self: Laid, beta: float, threshold: float) -> Laid:
    x = self.array * beta
    return self.map(jnp.where(x > threshold, self.array, jax.nn.softplus(x) / beta))


@operation("aten.pow.Tensor_Scalar")
def _power(self: Laid, exponent: float) -> Laid:
    return self.map(self.array**exponent)


@operation("aten.pow.Scalar")
def _power_of_number(self: float, exponent: Laid) -> Laid:
    return exponent.map(jnp.power(self, exponent.array))


@operation("aten.elu.default")
def _elu(self: Laid, alpha: float, scale: float, input_scale: float) -> Laid:
    x = self.array
    below = jnp.where(x > 0, 0, x)  # otherwise the other branch's overflow would reach the gradient
    return self.map(scale * jnp.where(x > 0, x, alpha * jnp.expm1(input_scale * below)))


def binary(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Makes an operation of two values, either of which may be a number, from a function of arrays."""

    def apply(self: Any, other: Any, alpha: float = 1, **_: Any) -> Any:
        if isinstance(self, Laid) and isinstance(other, Laid):
            a, b, order = together(self, other)
        else:
            a, b = (value.array if isinstance(value, Laid) else value for value in (self, other))
            order = next((value.order for value in (self, other) if isinstance(value, Laid)), None)
        y = function(a, b if alpha == 1 else b * alpha)
        return y if order is None else Laid(y, order)

    return apply


for _name, _operator in {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
}.items():
    operation(f"aten.{_name}.Tensor", f"aten.{_name}.Scalar")(binary(_operator))


def _truncated(a: Any, b: Any) -> Array:
    """Divides and rounds toward zero; whole numbers stay whole."""
    whole = all(jnp.issubdtype(jnp.result_type(value), jnp.integer) for value in (a, b))
    return jnp.sign(a) * jnp.sign(b) * (jnp.abs(a) // jnp.abs(b)) if whole else jnp.trunc(a / b)


_ROUNDINGS = {None: operator.truediv, "floor": jnp.floor_divide, "trunc": _truncated}


@operation("aten.div.Tensor_mode", "aten.div.Scalar_mode")
def _divided(self: Any, other: Any, rounding_mode: str | None) -> Any:
    return binary(_ROUNDINGS[rounding_mode])(self, other)


@operation("aten.floor_divide.default")
def _floor_divided(self: Any, other: Any) -> Any:
    return _divided(self, other, "floor")


for _name, _function in {"maximum": jnp.maximum, "minimum": jnp.minimum}.items():
    operation(f"aten.{_name}.default")(binary(_function))


@operation("aten.rsub.Tensor", "aten.rsub.Scalar")
def _subtracted_from(self: Any, other: Any, alpha: float = 1) -> Any:
    return binary(operator.sub)(other, self, alpha)


_LARGEST_SIZE = 2**40  # longer than any axis of a network


def _of_numbers(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Wraps Python's arithmetic for sizes only, because on lists or texts it could take any amount of memory."""

    def apply(**operands: Any) -> Any:
        values = operands["0"], operands["1"]
        if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
            raise ValueError(f"expected two numbers, found {' and '.join(type(value).__name__ for value in values)}")
        if abs(result := function(*values)) > _LARGEST_SIZE:
            raise ValueError(f"expected a size of at most {_LARGEST_SIZE:,}, found a larger one")
        return result

    return apply


for _name in ("add", "sub", "mul", "floordiv"):
    operation(f"operator.{_name}")(_of_numbers(getattr(operator, _name)))


@operation("operator.getitem")
def _getitem(**arguments: Any) -> Any:
    return arguments["0"][arguments["1"]]


@operation("aten.sym_size.int")
def _sym_size(self: Laid, dim: int) -> int:
    return self.shape[dim]


def _reduction(function: Callable[..., Array]) -> Callable[..., Laid]:
    def reduce(self: Laid, dim: int | Sequence[int] | None, keepdim: bool = False, **_: Any) -> Laid:
        # No axes means all axes.
        dims = [dim] if isinstance(dim, int) else dim or range(len(self.order))
        dims = [axis % len(self.order) for axis in dims]
        kept = self.map(function(at_least_float32(self.array), tuple(self.at(axis) for axis in dims), keepdims=True))
        if keepdim:
            return kept
        return reshaped(kept, [size for axis, size in enumerate(kept.shape) if axis not in dims])

    return reduce


for _name, _reduce in {"mean.dim": jnp.mean, "sum.dim_IntList": jnp.sum, "amax.default": jnp.max}.items():
    operation(f"aten.{_name}")(_reduction(_reduce))
for _name, _reduce in {"mean.default": jnp.mean, "sum.default": jnp.sum}.items():
    operation(f"aten.{_name}")(functools.partial(_reduction(_reduce), dim=None))


@operation("aten.softmax.int", "aten._softmax.default")
def _softmax(self: Laid, dim: int, **_: Any) -> Laid:
    return self.map(jax.nn.softmax(at_least_float32(self.array), self.at(dim)))


@operation("aten.log_softmax.int", "aten._log_softmax.default")
def _log_softmax(self: Laid, dim: int, **_: Any) -> Laid:
    return self.map(jax.nn.log_softmax(at_least_float32(self.array), self.at(dim)))


@operation("aten.cumsum.default")
def _cumulative_sum(self: Laid, dim: int, **_: Any) -> Laid:
    return self.map(jnp.cumsum(self.array, self.at(dim)))


@operation("aten.type_as.default")
def _type_as(self: Laid, other: Laid) -> Laid:
    return self.map(self.array.astype(other.array.dtype))


@operation("aten._to_copy.default")
def _to_copy(self: Laid, dtype: str | None, **_: Any) -> Laid:
    """Keeps floating-point types, because the network's precision is chosen where it is built."""
    kind = jax_type(dtype)
    floats = kind == "float32" and jnp.issubdtype(self.array.dtype, jnp.floating)
    return self if floats else self.map(self.array.astype(kind))
