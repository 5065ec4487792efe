"""The one exception class for what a user can mend."""

from typing import Any

_LONGEST_LINE = 300
_ELLIPSIS = " [... --verbose shows all ...] "


class UserError(Exception):
    """A mistake of the input, the configuration or the environment, not of this program.

    The message is one line: what was expected, what was found, and how to mend it. Commands print
    it without a traceback and leave with exit status 2; every other exception is a bug, whose
    traceback goes to a file.
    """


EXIT_STATUS = 2


def require(condition: bool, key: str, expected: str, found: Any) -> None:
    """Raises UserError where a value of the config cannot work; the key is the value's within the config."""
    if not condition:
        raise UserError(f"config.{key} must be {expected}, found {found!r}")


def one_line(text: object) -> str:
    """A message of any kind with all its white space as single spaces."""
    return " ".join(str(text).split())


def shortened(line: str, longest: int = _LONGEST_LINE) -> str:
    """A line of at most so many characters, cut in the middle, as its end says how to mend the fault."""
    if len(line) <= longest:
        return line
    kept = longest - len(_ELLIPSIS)
    return line[: kept - kept // 2] + _ELLIPSIS + line[-(kept // 2) :]
