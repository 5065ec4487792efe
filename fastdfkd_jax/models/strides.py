"""Where a network strides, and where it dilates instead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Steps(NamedTuple):
    """How a stage of a network goes over its input.

    Attributes:
      stride: of the convolution that may stride.
      first: dilation of that convolution.
      rest: dilation of all that follow.
    """

    stride: int
    first: int
    rest: int


def place_strides(strides: Iterable[int], reached: int, output_stride: int) -> list[Steps]:
    """The steps of every stage of a network whose output is no coarser than a stride.

    Past that stride a stage does not stride; what follows in it, and all later stages, dilate instead. At the pixels
    that striding would have kept, the network then computes what it computed before ("a trous").

    Args:
      strides: those of the stages.
      reached: the stride of the first stage's input.
      output_stride: that of the last one's output, at most.
    """
    found, dilation = [], 1
    for stride in strides:
        before = dilation
        if reached * stride > output_stride:
            stride, dilation = 1, dilation * stride
        reached *= stride
        found.append(Steps(stride, before, dilation))
    return found
