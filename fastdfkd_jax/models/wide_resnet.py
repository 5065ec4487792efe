"""Wide residual networks for CIFAR (Zagoruyko and Komodakis 2016), WRN-d-w (METHOD section 3)."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax

from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.models.layers import BatchNorm, Conv, Dense, end_of_block, global_average_pool, he_normal_fan_out


class WideResNet(nn.Module):
    """A pre-activation residual network of depth 6n + 4 with the names of the common PyTorch port.

    Attributes:
      depth: number of convolutional layers as counted in the paper, 6n + 4.
      widen: width multiplier w; stages have 16w, 32w and 64w channels.
      num_classes: outputs.
    """

    depth: int
    widen: int
    num_classes: int
    train: bool = False
    forms: Forms = Forms()

    @nn.compact
    def __call__(self, x: jax.Array):
        """Maps f32[B, H, W, C] to (logits, features f32[B, 64w], the three stages' activations)."""
        conv = partial(Conv, kernel_init=he_normal_fan_out, forms=self.forms)
        norm = partial(BatchNorm, self.train, dtype=self.forms.dtype)

        x = conv(16, name="conv1")(x)
        blocks = []
        for stage in (1, 2, 3):
            features = 16 * self.widen * 2 ** (stage - 1)
            for i in range((self.depth - 4) // 6):
                stride = 2 if i == 0 and stage > 1 else 1
                name = f"block{stage}.layer.{i}"
                # Where the shape changes, the activated input feeds the shortcut too.
                out = nn.relu(norm(name=f"{name}.bn1")(x))
                if x.shape[-1] != features:
                    x = conv(features, 1, stride, name=f"{name}.convShortcut")(out)
                out = conv(features, 3, stride, name=f"{name}.conv1")(out)
                out = nn.relu(norm(name=f"{name}.bn2")(out))
                x = end_of_block(x + conv(features, name=f"{name}.conv2")(out))
            blocks.append(x)
        features = global_average_pool(nn.relu(norm(name="bn1")(x)))
        logits = Dense(self.num_classes, bias_init=nn.initializers.zeros, name="fc")(features)
        return logits, features, tuple(blocks)
