"""Linen layers with PyTorch's conventions: convolution, linear layer, and BatchNorm that exposes its moments.

Every array is NHWC, every kernel HWIO. Parameter names are linen's (`kernel`, `scale`, `bias`). Module
names are the architecture's PyTorch names, dots included, so that `convert.naming` needs only one rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from fastdfkd_jax.cpu_conv import conv2d, upsampled_conv2d
from fastdfkd_jax.models.forms import Forms

Array = jax.Array

# Names of the values that rematerialisation may keep (`network.rematerialised`).
CONVOLUTION, BLOCK = "convolution", "block"


def flat_normal(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Draws standard normal numbers of a shape, the same as `jax.random.normal`.

    They are drawn as a vector, because XLA takes ten times longer to compile a four-dimensional draw on CPU.
    """
    return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


def _bounded(key: Array, shape: tuple[int, ...], dtype, fan_in: int) -> Array:
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)


def torch_uniform(key, shape, dtype=jnp.float32) -> Array:
    """Draws PyTorch's default convolution and linear kernels: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    return _bounded(key, shape, dtype, math.prod(shape[:-1]))


def torch_bias(fan_in: int) -> Callable[..., Array]:
    """Returns PyTorch's default initialiser of biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    return lambda key, shape, dtype=jnp.float32: _bounded(key, shape, dtype, fan_in)


def normal(deviation: float) -> Callable[..., Array]:
    """Returns an initialiser that draws N(0, deviation^2)."""
    return lambda key, shape, dtype=jnp.float32: deviation * flat_normal(key, shape, dtype)


def he_normal_fan_in(key, shape, dtype=jnp.float32) -> Array:
    """Draws N(0, 2 / fan_in), variance as second argument: the initialisation of the thin CIFAR ResNets."""
    return math.sqrt(2 / math.prod(shape[:-1])) * flat_normal(key, shape, dtype)


def he_normal_fan_out(key, shape, dtype=jnp.float32) -> Array:
    """Draws N(0, 2 / (h w out)), variance as second argument: the initialisation of WRN and VGG."""
    deviation = math.sqrt(2 / (math.prod(shape[:-2]) * shape[-1]))
    return deviation * flat_normal(key, shape, dtype)


class Conv(nn.Module):
    """A square 2-D convolution with PyTorch's padding convention.

    Attributes:
      features: output channels.
      size: side of the kernel.
      stride: stride of both axes.
      padding: zeros on each side; by default size // 2 times the dilation.
      dilation: pixels from tap to tap.
      use_bias: whether a bias is added, initialised by `bias_init` or as in PyTorch.
      forms: precision and convolutions.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: int | None = None
    dilation: int = 1
    use_bias: bool = False
    kernel_init: Callable[..., Array] = torch_uniform
    bias_init: Callable[..., Array] | None = None
    forms: Forms = Forms()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Convolves f32[B, H, W, I] to f32[B, H', W', features]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        padding = self.size // 2 * self.dilation if self.padding is None else self.padding
        x, kernel = x.astype(self.forms.dtype), kernel.astype(self.forms.dtype)
        y = conv2d(x, kernel, self.stride, padding, self.dilation, form=self.forms.conv)
        y = checkpoint_name(y, CONVOLUTION)
        if self.use_bias:
            init = self.bias_init or torch_bias(math.prod(shape[:-1]))
            y = y + self.param("bias", init, (self.features,)).astype(self.forms.dtype)
        return y


class DoubledConv(nn.Module):
    """A 3x3 convolution without bias of the input, doubled by nearest-neighbour interpolation."""

    features: int
    forms: Forms = Forms()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps f32[B, H, W, I] to f32[B, 2H, 2W, features]."""
        kernel = self.param("kernel", torch_uniform, (3, 3, x.shape[-1], self.features))
        return upsampled_conv2d(x.astype(self.forms.dtype), kernel.astype(self.forms.dtype), form=self.forms.conv)


class Dense(nn.Module):
    """A linear layer with PyTorch's default initialisation; computes in the precision of its weights."""

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
    """BatchNorm over N, H and W with PyTorch's conventions, which also exposes the moments of its input.

    As in PyTorch, the batch is normalised with its biased variance, and the running variance is updated with the
    unbiased one. Linen's own module uses the biased one for both. Statistics therefore keep their meaning when they are
    converted in either direction. If the collection 'moments' is mutable, it receives the input's mean and biased
    variance, f32[C] each, under the names that 'batch_stats' uses. If 'image_means' is mutable, it receives the mean of
    each image, f32[B, C], as 'mean'.

    Attributes:
      train: normalise with the batch's statistics and update the running ones.
      tracked: whether there are running statistics; if not, `train` must be set.
      decay: weight of the old running statistics (decay 0.9 is PyTorch's momentum 0.1).
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
        wants_moments = self.is_mutable_collection("moments") and not self.is_initializing()
        batch = input_moments(x) if self.train or wants_moments else None
        if batch is not None and wants_moments:
            self.put_variable("moments", "mean", batch[0])
            self.put_variable("moments", "var", batch[1])
        if self.is_mutable_collection("image_means") and not self.is_initializing():
            self.put_variable("image_means", "mean", image_means(x))
        running = self._update_running(batch, x.size // x.shape[-1], channels) if self.tracked else None
        statistics = batch if self.train else running
        if statistics is None:
            raise ValueError("a BatchNorm without running statistics needs those of the batch: set train=True")
        mean, var = statistics
        multiplier = scale * lax.rsqrt(var + self.epsilon)
        shift = bias - mean * multiplier
        return x * multiplier.astype(self.dtype) + shift.astype(self.dtype)

    def _update_running(self, batch: tuple[Array, Array] | None, count: int, channels) -> tuple[Array, Array]:
        """Returns the statistics before this pass; in training stores the new ones for the caller of `apply`."""
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        var = self.variable("batch_stats", "var", jnp.ones, channels)
        before = mean.value, var.value
        if self.train and batch is not None and not self.is_initializing():
            unbiased = batch[1] * (count / max(count - 1, 1))
            mean.value = self.decay * before[0] + (1 - self.decay) * batch[0]
            var.value = self.decay * before[1] + (1 - self.decay) * unbiased
        return before


def end_of_block(x: Array) -> Array:
    """Returns the array unchanged, but named as the output of a block for rematerialisation."""
    return checkpoint_name(x, BLOCK)


def at_least_float32(x: Array) -> Array:
    """Widens bf16, whose sums lose digits; keeps double precision, in which implementations are compared."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def input_moments(x: Array) -> tuple[Array, Array]:
    """Returns mean and biased variance of [..., C] over all axes but the last, f32[C] each (METHOD 1.1)."""
    x = at_least_float32(x)
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    # Var[x] = E[(x - c)^2] - (E[x] - c)^2 for any c. With c a copy of the mean the second term is 0 but keeps
    # all derivatives exact, while the first one's gradient no longer needs a sum over the batch.
    centre = lax.stop_gradient(mean)
    return mean, jnp.square(x - centre).mean(axes) - jnp.square(mean - centre)


def image_means(x: Array) -> Array:
    """Returns the mean of each image by channel: [B, ..., C] to f32[B, C]."""
    return at_least_float32(x).mean(tuple(range(1, x.ndim - 1)))


def global_average_pool(x: Array) -> Array:
    """Returns the mean over H and W: [B, H, W, C] to f32[B, C]."""
    return at_least_float32(x).mean((1, 2))


def max_pool(x: Array) -> Array:
    """Applies 3x3 maximum pooling of stride 2 and padding 1: [B, H, W, C] to [B, ceil(H / 2), ceil(W / 2), C].

    It takes maxima of three slices per axis, for the same reason as `halve` and with the same treatment of ties.
    """
    for axis in (1, 2):
        outputs = -(-x.shape[axis] // 2)
        edges = [(0, 0)] * x.ndim
        edges[axis] = (1, 1)
        padded = jnp.pad(x, edges, constant_values=-jnp.inf)
        first, middle, last = (
            lax.slice_in_dim(padded, tap, tap + 2 * outputs - 1, stride=2, axis=axis) for tap in range(3)
        )
        x = jnp.maximum(jnp.maximum(first, middle), last)
    return x


def halve(x: Array) -> Array:
    """Applies 2x2 maximum pooling of stride 2: [B, H, W, C] to [B, H // 2, W // 2, C]; drops an odd last row.

    It takes pairwise maxima, because the gradient of XLA's windowed maximum is 17 times slower on CPU. At a tie the
    gradient is shared, whereas PyTorch passes it to the first. After a ReLU ties are zeros, which pass no gradient.
    """
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = x.reshape(batch, height // 2, 2, -1, channels)
    x = jnp.maximum(x[:, :, 0], x[:, :, 1]).reshape(batch, height // 2, width // 2, 2, channels)
    return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])
