"""Convolutions of networks, fast on CPUs: all that other rooms use, and only `models` and `convert/graph` do.

`conv2d`, `upsampled_conv2d` and `transposed_conv2d` choose the algorithm by shape: minimal filtering, several columns
or a few images at a time, sums of matrix products. Their `form`, one of `CONV_FORMS`, gives XLA's own instead.
"""

from fastdfkd_jax.cpu_conv.chunks import map_in_chunks
from fastdfkd_jax.cpu_conv.dispatch import CONV_FORMS, conv2d, transposed_conv2d, upsampled_conv2d

__all__ = ["CONV_FORMS", "conv2d", "map_in_chunks", "transposed_conv2d", "upsampled_conv2d"]
