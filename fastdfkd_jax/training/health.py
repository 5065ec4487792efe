"""Signs that synthesis goes wrong, each as a line to be said; '' where there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

# Below these the synthesised images are nearly one class, or nearly one image.
_COLLAPSED_BALANCE, _COLLAPSED_DIVERSITY = 0.5, 0.02
# The class term is judged by the mean over so many calls, and not by the first ones, whose generator knows nothing yet.
JUDGED_CALLS, FIRST_CALLS = 5, 5


def near_chance(shares: Sequence[float], num_classes: int) -> bool:
    """True where the mean of these shares of images on target is no more than chance makes likely.

    Chance is 1/C. The limit is twice that, but at most 10 points above it, as twice chance is much for few classes.
    """
    chance = 1 / num_classes
    return sum(shares) / len(shares) < chance + min(chance, 0.1)


def class_balance(predicted: list[int]) -> float:
    """Entropy of a class histogram over the most that so many images can have: 1 is balanced, 0 means one class."""
    total = sum(predicted)
    most = min(total, len(predicted))
    if most == 1:
        return 1.0
    shares = [count / total for count in predicted if count]
    return -sum(share * math.log(share) for share in shares) / math.log(most)


def collapse(call: int, values: Mapping[str, Any]) -> str:
    """That the images of a call, of which the record has 'synthesis/predicted', are nearly one class or one image."""
    if "synthesis/predicted" not in values:
        return ""
    balance, diversity = class_balance(values["synthesis/predicted"]), values["synthesis/diversity"]
    if balance >= _COLLAPSED_BALANCE and diversity >= _COLLAPSED_DIVERSITY:
        return ""
    return (
        f"warning: synthesis may have collapsed at call {call}: class balance {balance:.2f} of 1, pixel deviation over "
        f"the batch {diversity:.3f}"
    )


def off_target(call: int, shares: Sequence[float], num_classes: int, advice: str) -> str:
    """That few images of the last calls are of the class that was asked for.

    Args:
      call: the last one.
      shares: of images on target, of at most `JUDGED_CALLS` calls.
      num_classes: of the teacher.
      advice: what brings more on target.
    """
    if len(shares) < JUDGED_CALLS or not near_chance(shares, num_classes):
        return ""
    return (
        f"warning: at call {call}, the teacher sees {100 * sum(shares) / len(shares):.1f} % of the last {len(shares)} "
        f"batches as the class that was asked for; chance is {100 / num_classes:.1f} %: {advice}"
    )
