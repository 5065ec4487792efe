"""MobileNetV2 for ImageNet (Sandler et al. 2018), in torchvision's form and names (METHOD section 3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastdfkd_jax.models.depthwise import DepthwiseConv
from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    end_of_block,
    global_average_pool,
    he_normal_fan_out,
    normal,
)
from fastdfkd_jax.models.strides import place_strides

# For each stage: expansion, channels, blocks, stride of the first block.
_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
_DROPOUT = 0.2


class MobileNetV2(nn.Module):
    """Inverted residual blocks: 1x1 to `expansion` times the channels, 3x3 of each channel, 1x1 without activation.

    Attributes:
      num_classes: outputs. In training, a fifth of the features is dropped if a key is given.
    """

    num_classes: int
    train: bool = False
    forms: Forms = Forms()

    @nn.compact
    def __call__(self, x: jax.Array):
        """Maps f32[B, H, W, C] to (logits, features f32[B, 1280], the seven stages' activations)."""
        conv = partial(Conv, kernel_init=he_normal_fan_out, forms=self.forms)
        norm = partial(BatchNorm, self.train, dtype=self.forms.dtype)
        x, blocks = trunk(conv, norm, partial(DepthwiseConv, forms=self.forms), x)
        x = nn.relu6(norm(name="features.18.1")(conv(1280, 1, name="features.18.0")(x)))
        features = global_average_pool(x)
        kept = nn.Dropout(_DROPOUT, deterministic=not (self.train and self.has_rng("dropout")))(features)
        head = Dense(self.num_classes, normal(0.01), nn.initializers.zeros, name="classifier.1")
        return head(kept), features, blocks


def _usual_name(index: int) -> str:
    return f"features.{index}"


def trunk(
    conv: Callable,
    norm: Callable,
    depthwise: Callable,
    x: jax.Array,
    output_stride: int = 32,
    pads_blocks: bool = False,
    name_of: Callable[[int], str] = _usual_name,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Applies the stem and the 17 blocks, within a module's compact `__call__`.

    Args:
      conv, norm, depthwise: build a convolution, a BatchNorm and a `DepthwiseConv`, all but sizes and name bound.
      x: f32[B, H, W, C].
      output_stride: stride of the result; stages that would exceed it dilate.
      pads_blocks: pads the input of each block's branch by the dilation on each side, and no convolution, not even the
        stem. The zeros pass through the expansion and its BatchNorm, count in the moments, and equal its shift when
        they reach the 3x3 convolution; in the usual form they are zeros there.
      name_of: returns the name of the stem, 0, and of the blocks, 1 to 17.

    Returns:
      f32[B, h, w, 320], and the output of each of the seven stages.
    """
    zeros = 0 if pads_blocks else None
    x = conv(32, 3, 2, zeros, name=f"{name_of(0)}.0")(x)
    x = nn.relu6(norm(name=f"{name_of(0)}.1")(x))
    blocks, index = [], 0
    stages = place_strides((stride for *_, stride in _STAGES), 2, output_stride)
    for (expansion, channels, count, _), steps in zip(_STAGES, stages, strict=True):
        for i in range(count):
            index += 1
            stride, dilation = (steps.stride, steps.first) if i == 0 else (1, steps.rest)
            around, name, part = (dilation, dilation), f"{name_of(index)}.conv", 0
            out = jnp.pad(x, ((0, 0), around, around, (0, 0))) if pads_blocks else x
            if expansion != 1:
                out = conv(expansion * x.shape[-1], 1, name=f"{name}.0.0")(out)
                out, part = nn.relu6(norm(name=f"{name}.0.1")(out)), 1
            zeros = 0 if pads_blocks else dilation
            out = depthwise(3, stride, padding=zeros, dilation=dilation, name=f"{name}.{part}.0")(out)
            out = nn.relu6(norm(name=f"{name}.{part}.1")(out))
            out = norm(name=f"{name}.{part + 2}")(conv(channels, 1, name=f"{name}.{part + 1}")(out))
            x = end_of_block(x + out if x.shape == out.shape else out)
        blocks.append(x)
    return x, tuple(blocks)
