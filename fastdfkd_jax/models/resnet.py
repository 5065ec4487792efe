"""ResNet-18, 34 and 50, as published for ImageNet and in their CIFAR form."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastdfkd_jax.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    end_of_block,
    global_average_pool,
    he_normal_fan_out,
    max_pool,
    torch_uniform,
)

# Blocks of each stage, and whether they are bottlenecks.
DEPTHS = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True)}

_EXPANSION = 4


class ResNet(nn.Module):
    """Post-activation residual network; names are those of the common PyTorch ports (METHOD section 3).

    Attributes:
      depth: 18, 34 or 50; the last with bottlenecks, which stride in their 3x3 convolution unless `v1`.
      imagenet: a 7x7 stem of stride 2 and pooling before the stages, torchvision's names and initialisation; else a
        3x3 stem of stride 1, no pooling, and the names of the CIFAR port.
      num_classes: outputs.
      v1: bottlenecks stride in their first convolution, as published, and BatchNorms add 1e-3, as Keras has it.
    """

    depth: int
    imagenet: bool
    num_classes: int
    v1: bool = False
    train: bool = False
    conv_gradient: str = "canonical"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array):
        """Maps f32[B, H, W, C] to (logits, features f32[B, 512 or 2048], the four stages' activations)."""
        kernel_init = he_normal_fan_out if self.imagenet else torch_uniform
        conv = partial(Conv, kernel_init=kernel_init, gradient=self.conv_gradient, dtype=self.dtype)
        norm = partial(BatchNorm, self.train, epsilon=1e-3 if self.v1 else 1e-5, dtype=self.dtype)
        counts, bottleneck = DEPTHS[self.depth]
        branch = partial(_bottleneck_branch, self.v1) if bottleneck else _basic_branch

        stem = conv(64, 7, 2, name="conv1") if self.imagenet else conv(64, name="conv1")
        shortcut, head = ("downsample", "fc") if self.imagenet else ("shortcut", "linear")

        x = nn.relu(norm(name="bn1")(stem(x)))
        x = max_pool(x) if self.imagenet else x
        blocks = []
        for stage, count in enumerate(counts, start=1):
            for i in range(count):
                stride = 2 if i == 0 and stage > 1 else 1
                name = f"layer{stage}.{i}"
                out = branch(conv, norm, name, x, 32 * 2**stage, stride)
                if x.shape != out.shape:
                    x = conv(out.shape[-1], 1, stride, name=f"{name}.{shortcut}.0")(x)
                    x = norm(name=f"{name}.{shortcut}.1")(x)
                x = end_of_block(nn.relu(out + x))
            blocks.append(x)
        features = global_average_pool(x)
        return Dense(self.num_classes, name=head)(features), features, tuple(blocks)


def _basic_branch(conv: Callable, norm: Callable, name: str, x: jax.Array, width: int, stride: int):
    """Two 3x3 convolutions to `width` channels, before the sum and its ReLU."""
    x = nn.relu(norm(name=f"{name}.bn1")(conv(width, 3, stride, name=f"{name}.conv1")(x)))
    return norm(name=f"{name}.bn2")(conv(width, name=f"{name}.conv2")(x))


def _bottleneck_branch(v1: bool, conv: Callable, norm: Callable, name: str, x: jax.Array, width: int, stride: int):
    """1x1, 3x3 and 1x1 convolutions to four times `width` channels, before the sum and its ReLU."""
    first, second = (stride, 1) if v1 else (1, stride)
    x = nn.relu(norm(name=f"{name}.bn1")(conv(width, 1, first, name=f"{name}.conv1")(x)))
    x = nn.relu(norm(name=f"{name}.bn2")(conv(width, 3, second, name=f"{name}.conv2")(x)))
    return norm(name=f"{name}.bn3")(conv(_EXPANSION * width, 1, name=f"{name}.conv3")(x))
