"""DeepLabv3 for segmentation (Chen et al. 2017), in the form and with the names of the common PyTorch port.

See METHOD section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from fastdfkd_jax.models import mobilenet, resnet
from fastdfkd_jax.models.depthwise import DepthwiseConv
from fastdfkd_jax.models.forms import Forms
from fastdfkd_jax.models.layers import (
    BatchNorm,
    Conv,
    at_least_float32,
    end_of_block,
    global_average_pool,
    he_normal_fan_out,
    image_means,
)

_WIDTH = 256
_RATES = {8: (12, 24, 36), 16: (6, 12, 18)}  # dilations of the pyramid's 3x3 convolutions, by output stride
_HEAD = "classifier.classifier"
_DEPTHS = {"resnet18": 18, "resnet50": 50}


class DeepLabV3(nn.Module):
    """A dilated backbone, a pyramid of dilated convolutions and image pooling, and logits for every pixel.

    The backbone dilates where it would stride past `output_stride`. MobileNetV2 ends before its last 1x1 convolution.
    It pads each whole block instead of its 3x3 convolution (`mobilenet.trunk`), which gives different values.

    Attributes:
      backbone: 'resnet18', 'resnet50' or 'mobilenetv2'.
      output_stride: 8 or 16, image pixels per pixel of the backbone's output.
      num_classes: outputs for each pixel.
      dropout: share of the pyramid's values that is dropped in training if a key is given.
    """

    backbone: str
    output_stride: int
    num_classes: int
    dropout: float = 0.1
    train: bool = False
    forms: Forms = Forms()

    @nn.compact
    def __call__(self, x: jax.Array):
        """Maps f32[B, H, W, C] to (logits f32[B, H, W, num_classes], features f32[B, 256], the stages' activations).

        The features are the mean over pixels of the input of the last convolution, a 1x1.
        """
        conv, norm = partial(Conv, forms=self.forms), partial(BatchNorm, self.train, dtype=self.forms.dtype)
        size = x.shape[1:3]
        x, blocks = self._backbone(partial(conv, kernel_init=he_normal_fan_out), norm, x)
        x = self._pyramid(conv, norm, x)
        x = nn.relu(norm(name=f"{_HEAD}.2")(conv(_WIDTH, name=f"{_HEAD}.1")(x)))
        wide = at_least_float32(x)
        last = partial(conv, forms=replace(self.forms, dtype=wide.dtype))
        logits = last(self.num_classes, 1, use_bias=True, name=f"{_HEAD}.4")(wide)
        return resized(logits, *size), image_means(x), blocks

    def _backbone(self, conv: Callable, norm: Callable, x: jax.Array):
        if depth := _DEPTHS.get(self.backbone):
            return resnet.trunk(conv, norm, x, depth, True, prefix="backbone.", output_stride=self.output_stride)
        depthwise = partial(DepthwiseConv, forms=self.forms)
        return mobilenet.trunk(conv, norm, depthwise, x, self.output_stride, True, _block_name)

    def _pyramid(self, conv: Callable, norm: Callable, x: jax.Array) -> jax.Array:
        """Applies five branches to [B, h, w, C], then concatenates and projects them: [B, h, w, 256]."""

        def branch(x: jax.Array, name: str, first: int = 0, **sizes: int) -> jax.Array:
            x = conv(_WIDTH, name=f"{_HEAD}.0.{name}.{first}", **sizes)(x)
            return nn.relu(norm(name=f"{_HEAD}.0.{name}.{first + 1}")(x))

        parts = [branch(x, "convs.0", size=1)]
        for i, rate in enumerate(_RATES[self.output_stride], start=1):
            parts.append(branch(x, f"convs.{i}", dilation=rate))
        mean = branch(global_average_pool(x)[:, None, None], "convs.4", first=1, size=1)
        parts.append(jnp.broadcast_to(mean, parts[0].shape))
        x = end_of_block(branch(jnp.concatenate(parts, -1), "project", size=1))
        return nn.Dropout(self.dropout, deterministic=not (self.train and self.has_rng("dropout")))(x)


def _block_name(index: int) -> str:
    return f"backbone.{'low' if index < 4 else 'high'}_level_features.{index}"


def resized(x: jax.Array, height: int, width: int) -> jax.Array:
    """Resizes f32[B, h, w, C] bilinearly to [B, height, width, C], as PyTorch does with align_corners=False."""
    return jax.image.resize(x, (x.shape[0], height, width, x.shape[3]), "bilinear", antialias=False)
