"""The one exception class for what a user can mend."""

from typing import Any


class UserError(Exception):
    """A mistake of the input, the configuration or the environment, not of this program.

    The message is one line: what was expected, what was found, and how to mend it. Commands print
    it without a traceback and leave with exit status 2; every other exception is a bug and keeps
    its traceback.
    """


EXIT_STATUS = 2


def require(condition: bool, key: str, expected: str, found: Any) -> None:
    """Raises UserError where a value of the config cannot work; the key is the value's within the config."""
    if not condition:
        raise UserError(f"config.{key} must be {expected}, found {found!r}")
