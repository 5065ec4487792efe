"""ResNet-18, 34 and 50, as published for ImageNet and in their CIFAR form."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax

from fastdfkd_jax.models.forms import Forms
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
from fastdfkd_jax.models.strides import Steps, place_strides

# Blocks of each stage, and whether they are bottlenecks.
DEPTHS = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True)}

_EXPANSION = 4


class ResNet(nn.Module):
    """A post-activation residual network with the names of the common PyTorch ports (METHOD section 3).

    Attributes:
      depth: 18, 34 or 50. ResNet-50 has bottlenecks, which stride in their 3x3 convolution unless `v1`.
      imagenet: a 7x7 stem of stride 2 and pooling before the stages, torchvision's names and initialisation; else a
        3x3 stem of stride 1, no pooling, and the names of the CIFAR port.
      num_classes: outputs.
      v1: whether bottlenecks stride in their first convolution, as published, and BatchNorms add 1e-3, as in Keras.
    """

    depth: int
    imagenet: bool
    num_classes: int
    v1: bool = False
    train: bool = False
    forms: Forms = Forms()

    @nn.compact
    def __call__(self, x: jax.Array):
        """Maps f32[B, H, W, C] to (logits, features f32[B, 512 or 2048], the four stages' activations)."""
        kernel_init = he_normal_fan_out if self.imagenet else torch_uniform
        conv = partial(Conv, kernel_init=kernel_init, forms=self.forms)
        norm = partial(BatchNorm, self.train, epsilon=1e-3 if self.v1 else 1e-5, dtype=self.forms.dtype)
        x, blocks = trunk(conv, norm, x, self.depth, self.imagenet, self.v1)
        features = global_average_pool(x)
        head = "fc" if self.imagenet else "linear"
        return Dense(self.num_classes, name=head)(features), features, blocks


def trunk(
    conv: Callable,
    norm: Callable,
    x: jax.Array,
    depth: int,
    imagenet: bool,
    v1: bool = False,
    prefix: str = "",
    output_stride: int = 32,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Applies the layers before pooling, within a module's compact `__call__`.

    Args:
      conv, norm: build a convolution and a BatchNorm, all but sizes and name bound.
      x: f32[B, H, W, C].
      depth, imagenet, v1: as in `ResNet`.
      prefix: prefix of all names.
      output_stride: stride of the result; stages that would exceed it dilate. A basic block's second convolution is
        dilated like those after it, because it follows the one that would stride.

    Returns:
      f32[B, h, w, 512 or 2048], and the output of each of the four stages.
    """
    counts, bottleneck = DEPTHS[depth]
    branch = partial(_bottleneck_branch, v1) if bottleneck else _basic_branch
    stem = conv(64, 7, 2, name=f"{prefix}conv1") if imagenet else conv(64, name=f"{prefix}conv1")
    x = nn.relu(norm(name=f"{prefix}bn1")(stem(x)))
    x = max_pool(x) if imagenet else x
    blocks = []
    stages = place_strides((1, 2, 2, 2), 4 if imagenet else 1, output_stride)
    for stage, (count, steps) in enumerate(zip(counts, stages, strict=True), start=1):
        for i in range(count):
            own = steps if i == 0 else Steps(1, steps.rest, steps.rest)
            name = f"{prefix}layer{stage}.{i}"
            out = branch(conv, norm, name, x, 32 * 2**stage, own)
            if x.shape != out.shape:
                shortcut = f"{name}.{'downsample' if imagenet else 'shortcut'}"
                x = norm(name=f"{shortcut}.1")(conv(out.shape[-1], 1, own.stride, name=f"{shortcut}.0")(x))
            x = end_of_block(nn.relu(out + x))
        blocks.append(x)
    return x, tuple(blocks)


def _basic_branch(conv: Callable, norm: Callable, name: str, x: jax.Array, width: int, steps: Steps):
    """Applies two 3x3 convolutions to `width` channels, before the sum and its ReLU."""
    first = conv(width, 3, steps.stride, dilation=steps.first, name=f"{name}.conv1")
    x = nn.relu(norm(name=f"{name}.bn1")(first(x)))
    return norm(name=f"{name}.bn2")(conv(width, dilation=steps.rest, name=f"{name}.conv2")(x))


def _bottleneck_branch(v1: bool, conv: Callable, norm: Callable, name: str, x: jax.Array, width: int, steps: Steps):
    """Applies 1x1, 3x3 and 1x1 convolutions to four times `width` channels, before the sum and its ReLU."""
    first, second = (steps.stride, 1) if v1 else (1, steps.stride)
    x = nn.relu(norm(name=f"{name}.bn1")(conv(width, 1, first, name=f"{name}.conv1")(x)))
    wide = conv(width, 3, second, dilation=steps.first, name=f"{name}.conv2")
    x = nn.relu(norm(name=f"{name}.bn2")(wide(x)))
    return norm(name=f"{name}.bn3")(conv(_EXPANSION * width, 1, name=f"{name}.conv3")(x))
