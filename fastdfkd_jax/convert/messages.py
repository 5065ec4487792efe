"""Messages that fit in one line, with the full lists kept for `--verbose`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fastdfkd_jax.errors import UserError, listed, shortened

# Longest message without --verbose; "error: " and a hint at --verbose are added to it.
MOST = 275
_PATH = 60  # at most these for the file's name
RECORD = "fastdfkd convert record"
UNKNOWN_NETWORK = f"for another network record its graph: {RECORD}"


class LongError(UserError):
    """An input error whose full description is longer than a line.

    Args:
      fitted: returns the message in at most the given number of characters.
      full: the whole message, for `--verbose`.
    """

    def __init__(self, fitted: Callable[[int], str], full: str):
        super().__init__(fitted(MOST))
        self.fitted, self.full = fitted, full

    def within(self, place: object) -> LongError:
        """Returns the same error with its place prepended."""
        start = f"{shortened(str(place), _PATH)}: "
        return LongError(lambda room: start + self.fitted(room - len(start)), f"{place}: {self.full}")


def all_faults(title: str, texts: Mapping[str, Sequence[str]], mend: str) -> LongError:
    """Reports all faults; the short form lists as many names of each as fit."""

    def message(most: int, longest: int) -> str:
        parts = (
            f"{fault} ({len(names)})" + (f": {listed(names, most, longest)}" if most else "")
            for fault, names in texts.items()
        )
        return f"{title}: {'; '.join(parts)}; {mend}"

    def fitted(room: int) -> str:
        fitting = (text for most in (8, 4, 3, 2, 1, 0) if len(text := message(most, 60)) <= room)
        return next(fitting, None) or shortened(message(0, 0), room)

    return LongError(fitted, message(10**6, 10**6))
