"""Arrays whose axes lie in another order than their logical one, so that a permutation moves nothing.

PyTorch's graphs speak of NCHW; convolutions here are fast on NHWC. A `Laid` keeps both: operations name logical axes,
the array keeps the order in which it is, and only what needs another order pays for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax

Array = jax.Array

CHANNELS_LAST = (0, 2, 3, 1)


class Laid(NamedTuple):
    """An array and the logical axis that each of its axes is.

    Attributes:
      array: the values.
      order: `order[i]` is the logical axis that lies at axis i.
    """

    array: Array
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape."""
        return tuple(self.array.shape[self.order.index(axis)] for axis in range(len(self.order)))

    def at(self, axis: int) -> int:
        """Where a logical axis, counted from either end, lies."""
        return self.order.index(axis % len(self.order))

    def map(self, array: Array) -> Laid:
        """Another array of the same order."""
        return Laid(array, self.order)


def plain(array: Array) -> Laid:
    """An array that lies as it is meant."""
    return Laid(array, tuple(range(array.ndim)))


def arranged(value: Laid, order: Sequence[int]) -> Array:
    """The array with its axes in this order of logical ones."""
    if value.order == tuple(order):
        return value.array
    return value.array.transpose([value.order.index(axis) for axis in order])


def logical(value: Laid) -> Array:
    """The array as PyTorch would have it."""
    return arranged(value, range(len(value.order)))


def permuted(value: Laid, axes: Sequence[int]) -> Laid:
    """New logical axis i is old axis `axes[i]`; nothing moves."""
    rank = len(value.order)
    position = {old % rank: new for new, old in enumerate(axes)}
    return Laid(value.array, tuple(position[axis] for axis in value.order))


def reshaped(value: Laid, shape: Sequence[int]) -> Laid:
    """The logical reshape: axes that are split or kept stay where they lie, those that are merged come together."""
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
    """Fewest axes of either shape that hold the same elements, from the first on; axes of one go with a neighbour."""
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
    """Two values as arrays of one order that broadcast as the logical ones do."""
    if len(first.order) < len(second.order):
        b, a, order = together(second, first)
        return a, b, order
    missing = len(first.order) - len(second.order)
    if missing:
        array = logical(second)
        second = plain(array.reshape((1,) * missing + array.shape))
    return first.array, arranged(second, first.order), first.order
