"""Chooses where a network strides and where it dilates instead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Steps(NamedTuple):
    """The strides and dilations of one stage of a network.

    Attributes:
      stride: stride of the convolution that may stride.
      first: dilation of that convolution.
      rest: dilation of all later convolutions.
    """

    stride: int
    first: int
    rest: int


def place_strides(strides: Iterable[int], reached: int, output_stride: int) -> list[Steps]:
    """Returns the steps of every stage of a network whose output stride is limited.

    Past that limit a stage does not stride. Its later convolutions and all later stages dilate instead. At the pixels
    that striding would have kept, the network then computes the same values ("a trous").

    Args:
      strides: the stages' strides.
      reached: the stride of the first stage's input.
      output_stride: the largest stride of the last stage's output.
    """
    found, dilation = [], 1
    for stride in strides:
        before = dilation
        if reached * stride > output_stride:
            stride, dilation = 1, dilation * stride
        reached *= stride
        found.append(Steps(stride, before, dilation))
    return found
