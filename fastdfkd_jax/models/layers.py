"""Layers that only compute: convolutions whose gradients suit the device, BatchNorm that shows its moments.

Every array is NHWC, every kernel HWIO. Parameter names are linen's (`kernel`, `scale`, `bias`); module
names are the PyTorch names of the architecture, dots included, so that `convert.naming` needs one rule.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

CONV_GRADIENTS = ("canonical", "native")


def _convolve(x: Array, kernel: Array, stride: int, padding: tuple[int, int]) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [padding, padding], dimension_numbers=_DIMENSIONS
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def canonical_conv(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Square-stride 2-D convolution with gradients written in forms that XLA compiles well on CPU.

    XLA's own gradient convolutions run 20 times slower inside a `while` body on CPU, because they are
    canonicalised in the entry computation only. Here the input gradient is an ordinary
    convolution with the flipped kernel, and the kernel gradient a few long matrix products. Forward mode
    (`jvp`) is refused by `custom_vjp`: use the native form for that and for second derivatives.

    Args:
      x: f32[B, H, W, I].
      kernel: f32[h, w, I, O].
      stride: the stride of both axes.
      padding: zeros added on each side of both axes.

    Returns:
      f32[B, H', W', O].
    """
    return _convolve(x, kernel, stride, (padding, padding))


def _conv_forward(x, kernel, stride, padding):
    return canonical_conv(x, kernel, stride, padding), (x, kernel)


def _conv_backward(stride, padding, residuals, dy):
    x, kernel = residuals
    return (
        _input_gradient(dy, kernel, x.shape, stride, padding),
        _kernel_gradient(x, dy, kernel.shape, stride, padding),
    )


canonical_conv.defvjp(_conv_forward, _conv_backward)


def _input_gradient(dy: Array, kernel: Array, x_shape, stride: int, padding: int) -> Array:
    """The transposed convolution, as a plain one over the zero-interleaved output gradient."""
    size = kernel.shape[0]
    config = [(0, 0, 0)]
    for axis in (1, 2):
        # Interleaving makes stride*(n-1)+1 rows; the rest of the full-correlation padding goes behind.
        low = size - 1 - padding
        spread = stride * (dy.shape[axis] - 1) + 1
        config.append((low, x_shape[axis] + size - 1 - low - spread, stride - 1))
    dy = lax.pad(dy, jnp.zeros((), dy.dtype), [*config, (0, 0, 0)])
    return _convolve(dy, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), 1, (0, 0))


def _kernel_gradient(x: Array, dy: Array, kernel_shape, stride: int, padding: int) -> Array:
    """Column shifts of the input times row shifts of the output gradient, one product a row phase.

    d kernel[i, j] = sum over (b, r, c) of x[b, stride r + i, stride c + j] dy[b, r, c]. With i = stride q + p
    the shift by q is put on dy, so that a 3x3 kernel costs one product of [3 I] by [3 O] channels instead
    of nine thin ones or a nine-fold patch matrix (measured 2 to 7 times faster on CPU).
    """
    height, width, inputs, outputs = kernel_shape
    rows, cols = dy.shape[1:3]
    span = rows + (height - 1) // stride  # rows of one phase that any shift can touch
    x = lax.pad(
        x,
        jnp.zeros((), x.dtype),
        [
            (0, 0, 0),
            (padding, max(0, stride * span - x.shape[1] - padding), 0),
            (padding, padding, 0),
            (0, 0, 0),
        ],
    )
    taps: list[Array | None] = [None] * height
    for phase in range(min(stride, height)):
        x_phase = x[:, phase : stride * span : stride]
        shifted_x = jnp.concatenate(
            [x_phase[:, :, j : j + stride * (cols - 1) + 1 : stride] for j in range(width)], axis=-1
        )
        shifts = range(math.ceil((height - phase) / stride))
        shifted_dy = jnp.concatenate(
            [jnp.pad(dy, ((0, 0), (q, span - rows - q), (0, 0), (0, 0))) for q in shifts], axis=-1
        )
        product = lax.dot_general(
            shifted_x.reshape(-1, width * inputs),
            shifted_dy.reshape(-1, len(shifts) * outputs),
            (((0,), (0,)), ((), ())),
        ).reshape(width, inputs, len(shifts), outputs)
        for q in shifts:
            taps[stride * q + phase] = product[:, :, q]
    return jnp.stack([tap for tap in taps if tap is not None])


def torch_uniform(key, shape, dtype=jnp.float32) -> Array:
    """PyTorch's default for convolution and linear kernels: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(math.prod(shape[:-1]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def he_normal_fan_in(key, shape, dtype=jnp.float32) -> Array:
    """N(0, 2 / fan_in), variance as second argument: the initialisation of the thin CIFAR ResNets."""
    return math.sqrt(2 / math.prod(shape[:-1])) * jax.random.normal(key, shape, dtype)


def he_normal_fan_out(key, shape, dtype=jnp.float32) -> Array:
    """N(0, 2 / (h w out)), variance as second argument: the initialisation of WRN and VGG."""
    deviation = math.sqrt(2 / (math.prod(shape[:-2]) * shape[-1]))
    return deviation * jax.random.normal(key, shape, dtype)


def torch_bias(fan_in: int) -> Callable[..., Array]:
    """PyTorch's default for biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
    """Square 2-D convolution, PyTorch's padding convention.

    Attributes:
      features: output channels.
      size: side of the kernel.
      stride: stride of both axes.
      padding: zeros on each side; by default size // 2.
      use_bias: whether a bias is added, initialised as `bias_init` or as PyTorch does.
      gradient: 'canonical' (fast on CPU, reverse mode only) or 'native' (accelerators, jvp, exact MAML).
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: int | None = None
    use_bias: bool = False
    kernel_init: Callable[..., Array] = torch_uniform
    bias_init: Callable[..., Array] | None = None
    gradient: str = "canonical"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Convolves f32[B, H, W, I] to f32[B, H', W', features]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        padding = self.size // 2 if self.padding is None else self.padding
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.gradient == "canonical":
            y: Array = canonical_conv(x, kernel, self.stride, padding)
        else:
            y = _convolve(x, kernel, self.stride, (padding, padding))
        if self.use_bias:
            init = self.bias_init or torch_bias(math.prod(shape[:-1]))
            y = y + self.param("bias", init, (self.features,)).astype(self.dtype)
        return y


class Dense(nn.Module):
    """Linear layer with PyTorch's default initialisation; computes in float32."""

    features: int
    kernel_init: Callable[..., Array] = torch_uniform
    bias_init: Callable[..., Array] | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps f32[B, I] to f32[B, features]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        init = self.bias_init or torch_bias(x.shape[-1])
        return x.astype(kernel.dtype) @ kernel + self.param("bias", init, (self.features,))


class BatchNorm(nn.Module):
    """BatchNorm over N, H and W with PyTorch's conventions, and the moments of its input as data.

    The batch is normalised with its biased variance while the running variance is updated with the unbiased
    one, as PyTorch does (linen's own module uses the biased one for both), so that statistics converted in
    either direction mean the same. When the collection 'moments' is mutable, the input's mean and biased
    variance, f32[C] each, are stored there under the names that 'batch_stats' uses.

    Attributes:
      train: normalise with the batch's statistics and update the running ones.
      tracked: whether there are running statistics; without, `train` must be set.
      decay: weight of the old running statistics (PyTorch's momentum 0.1 is decay 0.9).
      epsilon: added to the variance.
    """

    train: bool
    tracked: bool = True
    decay: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises f32[..., C] over all axes but the last."""
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        wants_moments = self.is_mutable_collection("moments")
        batch = input_moments(x) if self.train or wants_moments else None
        if batch is not None and wants_moments:
            self.put_variable("moments", "mean", batch[0])
            self.put_variable("moments", "var", batch[1])
        running = self._update_running(batch, x.size // x.shape[-1], channels) if self.tracked else None
        statistics = batch if self.train else running
        if statistics is None:
            raise ValueError("a BatchNorm without running statistics has only those of the batch: set train")
        mean, var = statistics
        multiplier = scale * lax.rsqrt(var + self.epsilon)
        shift = bias - mean * multiplier
        return x * multiplier.astype(self.dtype) + shift.astype(self.dtype)

    def _update_running(self, batch: tuple[Array, Array] | None, count: int, channels) -> tuple[Array, Array]:
        """Statistics as they came in; in training the new ones are stored for the caller of `apply`."""
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        var = self.variable("batch_stats", "var", jnp.ones, channels)
        before = mean.value, var.value
        if self.train and batch is not None and not self.is_initializing():
            unbiased = batch[1] * (count / max(count - 1, 1))
            mean.value = self.decay * before[0] + (1 - self.decay) * batch[0]
            var.value = self.decay * before[1] + (1 - self.decay) * unbiased
        return before


def input_moments(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of [..., C] over all axes but the last, f32[C] each (METHOD 1.1)."""
    x = x.astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return mean, jnp.square(x - mean).mean(axes)


def global_average_pool(x: Array) -> Array:
    """Mean over H and W: [B, H, W, C] to f32[B, C]."""
    return x.astype(jnp.float32).mean((1, 2))
