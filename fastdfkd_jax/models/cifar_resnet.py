"""The thin residual networks for CIFAR of He et al. 2016, with depth 6n + 2 and both kinds of shortcut."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.models.layers import BatchNorm, Conv, Dense, end_of_block, global_average_pool, he_normal_fan_in

SHORTCUTS = ("a", "b")


class CifarResNet(nn.Module):
    """Three stages of basic blocks, with the names of the common PyTorch port.

    Attributes:
      depth: number of layers as counted in the paper, 6n + 2.
      widths: channels of the stem and of the three stages.
      shortcut: kind of shortcut where the shape changes. 'a' strides and adds equally many zero channels before and
        after (no parameters); 'b' is a 1x1 convolution with BatchNorm.
      num_classes: outputs.
    """

    depth: int
    widths: tuple[int, int, int, int]
    shortcut: str
    num_classes: int
    train: bool = False
    forms: Forms = Forms()

    @nn.compact
    def __call__(self, x: jax.Array):
        """Maps f32[B, H, W, C] to (logits, features f32[B, widths[-1]], the three stages' activations)."""
        conv = partial(Conv, kernel_init=he_normal_fan_in, forms=self.forms)
        norm = partial(BatchNorm, self.train, dtype=self.forms.dtype)

        x = nn.relu(norm(name="bn1")(conv(self.widths[0], name="conv1")(x)))
        blocks = []
        for stage, features in enumerate(self.widths[1:], start=1):
            for i in range((self.depth - 2) // 6):
                stride = 2 if i == 0 and stage > 1 else 1
                name = f"layer{stage}.{i}"
                out = nn.relu(norm(name=f"{name}.bn1")(conv(features, 3, stride, name=f"{name}.conv1")(x)))
                out = norm(name=f"{name}.bn2")(conv(features, name=f"{name}.conv2")(out))
                if x.shape == out.shape:
                    shortcut = x
                elif self.shortcut == "a":
                    shortcut = stride_and_pad(x, stride, features)
                else:
                    shortcut = conv(features, 1, stride, name=f"{name}.shortcut.0")(x)
                    shortcut = norm(name=f"{name}.shortcut.1")(shortcut)
                x = end_of_block(nn.relu(out + shortcut))
            blocks.append(x)
        features = global_average_pool(x)
        logits = Dense(self.num_classes, kernel_init=he_normal_fan_in, name="linear")(features)
        return logits, features, tuple(blocks)


def stride_and_pad(x: jax.Array, stride: int, features: int) -> jax.Array:
    """Applies the option-A shortcut: [B, H, W, C] to [B, H/stride, W/stride, features], with zeros around C."""
    missing = features - x.shape[-1]
    widths = ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2))
    return jnp.pad(x[:, ::stride, ::stride], widths)
