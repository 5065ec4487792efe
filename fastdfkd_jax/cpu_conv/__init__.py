"""Convolutions that are fast on CPUs; this is the whole interface, used only by `models` and `convert/graph`.

`conv2d`, `upsampled_conv2d` and `transposed_conv2d` choose the algorithm by shape: minimal filtering, several columns
or a few images at a time, or sums of matrix products. Their `form`, one of `CONV_FORMS`, can select XLA's own instead.
"""

from fastdfkd_jax.cpu_conv.chunks import map_in_chunks
from fastdfkd_jax.cpu_conv.dispatch import CONV_FORMS, conv2d, transposed_conv2d, upsampled_conv2d

__all__ = ["CONV_FORMS", "conv2d", "map_in_chunks", "transposed_conv2d", "upsampled_conv2d"]
