"""VGG-8, 11 and 13 with BatchNorm in their CIFAR form: five blocks and a linear layer (METHOD section 3)."""

from __future__ import annotations

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
    halve,
    he_normal_fan_out,
    normal,
)

# The number of convolutions in each of the five blocks.
DEPTHS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2)}

_WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """A plain convolutional network with the names of the common PyTorch port.

    Attributes:
      depth: 8, 11 or 13 layers with weights.
      num_classes: outputs.
    """

    depth: int
    num_classes: int
    train: bool = False
    forms: Forms = Forms()

    @nn.compact
    def __call__(self, x: jax.Array):
        """Maps f32[B, H, W, C] to (logits, features f32[B, 512], the five blocks' activations)."""
        conv = partial(
            Conv,
            use_bias=True,
            kernel_init=he_normal_fan_out,
            bias_init=nn.initializers.zeros,
            forms=self.forms,
        )
        # The network was designed for 32x32; for 64x64 one more pooling gives the same final size.
        pools = (False, True, True, True, x.shape[1] == 64)

        blocks = []
        for block, (count, width, pool) in enumerate(zip(DEPTHS[self.depth], _WIDTHS, pools, strict=True)):
            if pool:
                x = halve(x)
            for i in range(count):
                # In the port, a convolution, its BatchNorm and its ReLU take three places in a sequence.
                x = conv(width, name=f"block{block}.{3 * i}")(x)
                x = BatchNorm(self.train, dtype=self.forms.dtype, name=f"block{block}.{3 * i + 1}")(x)
                x = nn.relu(x)
            x = end_of_block(x)
            blocks.append(x)
        features = global_average_pool(x)
        classifier = Dense(
            self.num_classes,
            kernel_init=normal(0.01),
            bias_init=nn.initializers.zeros,
            name="classifier",
        )
        return classifier(features), features, tuple(blocks)
