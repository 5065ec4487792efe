"""MobileNetV2 for ImageNet (Sandler et al. 2018), in torchvision's form and names (METHOD section 3)."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastdfkd_jax.models.depthwise import DepthwiseConv
from fastdfkd_jax.models.layers import (
    BatchNorm,
    Conv,
    Dense,
    end_of_block,
    global_average_pool,
    he_normal_fan_out,
    normal,
)

# Of each stage: expansion, channels, blocks, stride of the first.
_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
_DROPOUT = 0.2


class MobileNetV2(nn.Module):
    """Inverted residual blocks: 1x1 to `expansion` times the channels, 3x3 of each channel, 1x1 without activation.

    Attributes:
      num_classes: outputs. In training, a fifth of the features is dropped where there is a key for it.
    """

    num_classes: int
    train: bool = False
    conv_gradient: str = "canonical"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array):
        """Maps f32[B, H, W, C] to (logits, features f32[B, 1280], the seven stages' activations)."""
        forms = {"gradient": self.conv_gradient, "dtype": self.dtype}
        conv = partial(Conv, kernel_init=he_normal_fan_out, **forms)
        norm = partial(BatchNorm, self.train, dtype=self.dtype)

        x = nn.relu6(norm(name="features.0.1")(conv(32, 3, 2, name="features.0.0")(x)))
        blocks, index = [], 0
        for expansion, channels, count, first_stride in _STAGES:
            for i in range(count):
                index += 1
                stride, out, name, part = first_stride if i == 0 else 1, x, f"features.{index}.conv", 0
                if expansion != 1:
                    out = conv(expansion * x.shape[-1], 1, name=f"{name}.0.0")(out)
                    out, part = nn.relu6(norm(name=f"{name}.0.1")(out)), 1
                out = DepthwiseConv(3, stride, **forms, name=f"{name}.{part}.0")(out)
                out = nn.relu6(norm(name=f"{name}.{part}.1")(out))
                out = norm(name=f"{name}.{part + 2}")(conv(channels, 1, name=f"{name}.{part + 1}")(out))
                x = end_of_block(x + out if x.shape == out.shape else out)
            blocks.append(x)
        x = nn.relu6(norm(name="features.18.1")(conv(1280, 1, name="features.18.0")(x)))
        features = global_average_pool(x)
        kept = nn.Dropout(_DROPOUT, deterministic=not (self.train and self.has_rng("dropout")))(features)
        head = Dense(self.num_classes, normal(0.01), nn.initializers.zeros, name="classifier.1")
        return head(kept), features, tuple(blocks)
