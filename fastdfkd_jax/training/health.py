"""Detects signs that synthesis is going wrong; returns a warning for each, or ''."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdfkd_jax.training.build import Parts
    from fastdfkd_jax.training.progress import Progress

# Below these limits, the synthesised images are nearly one class, or nearly one image.
_COLLAPSED_BALANCE, _COLLAPSED_DIVERSITY = 0.5, 0.02
# The class term is judged by the mean over this many calls, skipping the first, whose generator is still untrained.
JUDGED_CALLS, FIRST_CALLS = 5, 5


def near_chance(shares: Sequence[float], num_classes: int) -> bool:
    """Returns whether the mean of these shares of images on target is no better than chance plausibly gives.

    Chance is 1/C. The limit is twice chance but at most 10 points above it, because twice chance is a lot for few
    classes.
    """
    chance = 1 / num_classes
    return sum(shares) / len(shares) < chance + min(chance, 0.1)


def class_balance(predicted: list[int]) -> float:
    """Returns a class histogram's entropy over its maximum for so many images: 1 is balanced, 0 means one class."""
    total = sum(predicted)
    most = min(total, len(predicted))
    if most == 1:
        return 1.0
    shares = [count / total for count in predicted if count]
    return abs(sum(share * math.log(share) for share in shares)) / math.log(most)  # abs: one class is 0, not -0


def collapse(call: int, values: Mapping[str, Any], class_advice: str = "", statistics: str = "") -> str:
    """Returns a warning if a call's images are nearly one class or one image.

    Args:
      call: number of the call.
      values: its record, with 'synthesis/predicted' and 'synthesis/diversity'; without the first there is no warning.
      class_advice: how to bring more images on target (`Method.class_advice`).
      statistics: config key of the weight of the method's statistics term; '' if it has none.
    """
    if "synthesis/predicted" not in values:
        return ""
    balance, diversity = class_balance(values["synthesis/predicted"]), values["synthesis/diversity"]
    if balance >= _COLLAPSED_BALANCE and diversity >= _COLLAPSED_DIVERSITY:
        return ""
    advice = class_advice if diversity >= _COLLAPSED_DIVERSITY else ""
    advice = advice or (f"raise config.{statistics} or " if statistics else "") + "lower the synthesis learning rates"
    return (
        f"warning: synthesis may have collapsed at call {call}: class balance {balance:.2f} of 1, pixel deviation over "
        f"the batch {diversity:.3f}: {advice}"
    )


def off_target(call: int, shares: Sequence[float], num_classes: int, advice: str) -> str:
    """Returns a warning if few images of the last calls show the requested class.

    Args:
      call: number of the last call.
      shares: shares of images on target, for at most `JUDGED_CALLS` calls.
      num_classes: number of the teacher's classes.
      advice: how to bring more images on target.
    """
    if len(shares) < JUDGED_CALLS or not near_chance(shares, num_classes):
        return ""
    return (
        f"warning: at call {call}, the teacher sees {100 * sum(shares) / len(shares):.1f} % of the last {len(shares)} "
        f"batches as the class that was asked for; chance is {100 / num_classes:.1f} %: {advice}"
    )


class Judge:
    """Warns of each sign once in a run, also if the run is resumed.

    Args:
      progress: position of the run, which holds the signs so far.
      parts: its parts.
      statistics: config key of the weight of the method's statistics term; '' if it has none.
    """

    def __init__(self, progress: Progress, parts: Parts, statistics: str):
        self._progress, self._advice, self._statistics = progress, parts.method.class_advice, statistics
        self._classes = parts.teacher.spec.num_classes

    def collapse(self, values: Mapping[str, Any]) -> str:
        """Returns a warning if the images of a call's record have collapsed; '' if none is due."""
        done = self._progress
        line = "" if done.collapsed else collapse(done.call, values, self._advice, self._statistics)
        done.collapsed |= bool(line)
        return self._noted(line)

    def off_target(self, info: Mapping[str, Any]) -> str:
        """Returns a warning if few images of the last calls show the requested class; '' if none is due."""
        done = self._progress
        if not self._advice or done.on_target is None or done.call <= FIRST_CALLS or self._classes < 2:
            return ""
        done.on_target = [*done.on_target, float(info["on_target"])][-JUDGED_CALLS:]
        line = off_target(done.call, done.on_target, self._classes, self._advice)
        if line:
            done.on_target = None
        return self._noted(line)

    def _noted(self, line: str) -> str:
        """Keeps a warning for the summary: it passed by long before the run ends."""
        if line:
            self._progress.warnings.append(line.removeprefix("warning: "))
        return line
