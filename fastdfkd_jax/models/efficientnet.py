"""EfficientNet-Lite0 (TensorFlow's EfficientNet-lite, 2020), with the names of its PyTorch ports."""

from __future__ import annotations

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastdfkd_jax.models.depthwise import DepthwiseConv, he_normal_of_one_filter, same_edges
from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    end_of_block,
    global_average_pool,
    he_normal_fan_out,
)

# For each stage: blocks, side of the kernel, stride of the first block, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
_DROPOUT = 0.2


class EfficientNetLite0(nn.Module):
    """Inverted residual blocks without squeeze and excitation, ReLU6, TensorFlow's padding.

    Attributes:
      num_classes: outputs. In training, a fifth of the features is dropped if a key is given; blocks are never dropped.
    """

    num_classes: int
    train: bool = False
    forms: Forms = Forms()

    @nn.compact
    def __call__(self, x: jax.Array):
        """Maps f32[B, H, W, C] to (logits, features f32[B, 1280], the seven stages' activations)."""
        conv = partial(Conv, kernel_init=he_normal_fan_out, forms=self.forms)
        depthwise = partial(DepthwiseConv, same=True, kernel_init=he_normal_of_one_filter, forms=self.forms)
        norm = partial(BatchNorm, self.train, decay=0.99, epsilon=1e-3, dtype=self.forms.dtype)

        x = jnp.pad(x, ((0, 0), *same_edges(x.shape, 3, 2), (0, 0)))
        x = nn.relu6(norm(name="_bn0")(conv(32, 3, 2, padding=0, name="_conv_stem")(x)))
        blocks, index = [], 0
        for count, size, first_stride, expansion, channels in _STAGES:
            for i in range(count):
                stride, out, name = first_stride if i == 0 else 1, x, f"_blocks.{index}"
                if expansion != 1:
                    out = conv(expansion * x.shape[-1], 1, name=f"{name}._expand_conv")(out)
                    out = nn.relu6(norm(name=f"{name}._bn0")(out))
                out = depthwise(size, stride, name=f"{name}._depthwise_conv")(out)
                out = nn.relu6(norm(name=f"{name}._bn1")(out))
                out = norm(name=f"{name}._bn2")(conv(channels, 1, name=f"{name}._project_conv")(out))
                x = end_of_block(x + out if x.shape == out.shape else out)
                index += 1
            blocks.append(x)
        x = nn.relu6(norm(name="_bn1")(conv(1280, 1, name="_conv_head")(x)))
        features = global_average_pool(x)
        kept = nn.Dropout(_DROPOUT, deterministic=not (self.train and self.has_rng("dropout")))(features)
        head = Dense(self.num_classes, _uniform_fan_out, nn.initializers.zeros, name="_fc")
        return head(kept), features, tuple(blocks)


def _uniform_fan_out(key, shape, dtype=jnp.float32) -> jax.Array:
    bound = 1 / math.sqrt(shape[-1])
    return jax.random.uniform(key, shape, dtype, -bound, bound)
