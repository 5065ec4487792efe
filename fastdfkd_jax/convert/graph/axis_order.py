"""Arrays whose axes are stored in another order than the logical one, so that a permutation moves no data.

PyTorch's graphs use NCHW; convolutions here are fast on NHWC. A `Laid` keeps both: operations name logical axes, and
the array keeps its order. Only operations that need another order pay for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax

Array = jax.Array

CHANNELS_LAST = (0, 2, 3, 1)


class Laid(NamedTuple):
    """An array and the logical axis of each of its axes.

    Attributes:
      array: the values.
      order: `order[i]` is the logical axis stored at axis i.
    """

    array: Array
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape."""
        return tuple(self.array.shape[self.order.index(axis)] for axis in range(len(self.order)))

    def at(self, axis: int) -> int:
        """Returns the stored position of a logical axis, counted from either end."""
        return self.order.index(axis % len(self.order))

    def map(self, array: Array) -> Laid:
        """Wraps another array with the same order."""
        return Laid(array, self.order)


def plain(array: Array) -> Laid:
    """Wraps an array that is stored in logical order."""
    return Laid(array, tuple(range(array.ndim)))


def arranged(value: Laid, order: Sequence[int]) -> Array:
    """Returns the array with its axes in this order of logical axes."""
    if value.order == tuple(order):
        return value.array
    return value.array.transpose([value.order.index(axis) for axis in order])


def logical(value: Laid) -> Array:
    """Returns the array in PyTorch's order."""
    return arranged(value, range(len(value.order)))


def permuted(value: Laid, axes: Sequence[int]) -> Laid:
    """Makes old axis `axes[i]` the new logical axis i, without moving data."""
    rank = len(value.order)
    position = {old % rank: new for new, old in enumerate(axes)}
    return Laid(value.array, tuple(position[axis] for axis in value.order))


def reshaped(value: Laid, shape: Sequence[int]) -> Laid:
    """Reshapes logically: split or kept axes stay in place, merged axes are moved together."""
    shape = _without_wildcard(value.shape, shape)
    groups = _groups(value.shape, shape)
    group_of = {axis: group for group in groups for axis in group[0]}
    arrangement, order, sizes, done = [], [], [], set()
    for axis in value.order:
        group = group_of[axis]
        if group not in done:
            done.add(group)
            arrangement += group[0]
            order += group[1]
            sizes += [shape[new] for new in group[1]]
    return Laid(arranged(value, arrangement).reshape(sizes), tuple(order))


def _without_wildcard(old: Sequence[int], new: Sequence[int]) -> tuple[int, ...]:
    known = math.prod(size for size in new if size != -1)
    return tuple(math.prod(old) // known if size == -1 else size for size in new)


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Returns minimal groups of axes of both shapes with the same elements; axes of length 1 join a neighbour."""
    if not old or not new:
        return [(tuple(range(len(old))), tuple(range(len(new))))]
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) and j < len(new):
        group = ([i], [j])
        left, right = old[i], new[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left *= old[i]
                group[0].append(i)
                i += 1
            else:
                right *= new[j]
                group[1].append(j)
                j += 1
        groups.append(group)
    groups[-1][0].extend(range(i, len(old)))
    groups[-1][1].extend(range(j, len(new)))
    return [(tuple(a), tuple(b)) for a, b in groups]


def together(first: Laid, second: Laid) -> tuple[Array, Array, tuple[int, ...]]:
    """Returns two values as arrays in one order that broadcast like the logical ones."""
    if len(first.order) < len(second.order):
        b, a, order = together(second, first)
        return a, b, order
    missing = len(first.order) - len(second.order)
    if missing:
        array = logical(second)
        second = plain(array.reshape((1,) * missing + array.shape))
    return first.array, arranged(second, first.order), first.order
