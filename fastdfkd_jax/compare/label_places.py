"""Places labels beside the marks of a plot, where they cover neither marks, lines nor each other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

SIZE = 8.5  # of the labels, points
_MARK, _GAP = 4.5, 1.0  # half a mark, and between a label and anything else, points
_DISTANCES = (7, 11, 16, 22, 30, 40, 52, 66, 82)  # of a label from its mark, points
_LEADER = 14  # from this distance on, a thin line leads from the label to its mark
# The side of the mark: right, left, above, below, then the corners.
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
_ALONG = 60  # boxes that stand for a line

Box = np.ndarray  # left, bottom, right, top, in pixels


def place(
    axes: Any,
    points: Sequence[tuple[float, float, float]],
    labels: Sequence[tuple[str, str]],
    joined: Sequence[Sequence[int]],
    levels: Sequence[float] = (),
) -> None:
    """Writes a label for each point.

    Args:
      axes: a `matplotlib` panel whose limits and place in the figure are final.
      points: x, y and the error bar's half length, in data units.
      labels: text and colour for each point.
      joined: lines, each as indices of the points that it joins.
      levels: heights of horizontal lines through the whole panel.
    """
    pixel = axes.figure.dpi / 72
    frame = _box(axes.get_window_extent())
    marks, lines = _obstacles(axes, points, joined, pixel)
    for level in levels:
        height = axes.transData.transform((1, level))[1]
        marks.append(np.array([frame[0], height - pixel, frame[2], height + pixel]))
    taken = [*marks, *(_box(text.get_window_extent()) for text in axes.texts)]
    for (x, y, _), (text, colour) in zip(points, labels, strict=True):
        look = {"textcoords": "offset points", "va": "bottom", "color": colour, "fontsize": SIZE}
        made = axes.annotate(text, (x, y), (0, 0), **look)
        size = made.get_window_extent()
        centre = axes.transData.transform((x, y))
        options = [
            (distance, _beside(centre, (size.width, size.height), side, distance * pixel))
            for distance, side in itertools.product(_DISTANCES, _SIDES)
        ]
        costs = [_cost(box, taken, lines, frame, _GAP * pixel) + distance / 1e3 for distance, box in options]
        distance, box = options[int(np.argmin(costs))]
        made.set_position(((box[:2] - centre) / pixel).tolist())
        if distance >= _LEADER:
            end = np.clip(centre, box[:2], box[2:])
            ends = axes.transData.inverted().transform([centre, end])
            axes.plot(*ends.T, color=colour, linewidth=0.6, scalex=False, scaley=False, zorder=1)
        taken.append(box)


def _box(extent: Any) -> Box:
    return np.array([extent.x0, extent.y0, extent.x1, extent.y1])


def _obstacles(
    axes: Any, points: Sequence[tuple[float, float, float]], joined: Sequence[Sequence[int]], pixel: float
) -> tuple[list[Box], list[Box]]:
    """Returns the boxes of marks with their error bars, and small boxes along the lines."""
    marks: list[Box] = []
    lines: list[Box] = []
    half = _MARK * pixel
    for x, y, deviation in points:
        low, high = axes.transData.transform([(x, y - deviation), (x, y + deviation)])
        marks.append(np.array([*(low - half), *(high + half)]))
    places = [axes.transData.transform((x, y)) for x, y, _ in points]
    for first, second in (pair for rows in joined for pair in itertools.pairwise(rows)):
        for share in np.linspace(0, 1, _ALONG):
            at = places[first] + share * (places[second] - places[first])
            lines.append(np.array([*(at - pixel), *(at + pixel)]))
    return marks, lines


def _beside(centre: np.ndarray, size: tuple[float, float], side: tuple[int, int], distance: float) -> Box:
    """Returns the box of a label beside a point; at a corner, its nearest corner is that far away."""
    away = np.array(side) * distance / (np.hypot(*side) if all(side) else 1)
    shift = (np.array(side) - 1) / 2 * size
    low = centre + away + shift
    return np.array([*low, *(low + size)])


def _cost(box: Box, taken: Sequence[Box], lines: Sequence[Box], frame: Box, gap: float) -> float:
    """Returns how much a label covers, with a weight for each kind; 0 for nothing."""
    outside = np.maximum(0, np.maximum(frame[:2] - box[:2], box[2:] - frame[2:])).sum()
    covered = sum(_shared(box, other, gap) for other in taken)
    crossed = sum(_shared(box, other, gap) > 0 for other in lines)
    return 10 * outside + 10 * covered + crossed


def _shared(one: Box, other: Box, gap: float) -> float:
    width, height = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]) + gap
    return float(width * height) if width > 0 and height > 0 else 0.0
