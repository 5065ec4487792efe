"""The one exception class for what a user can mend."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

LONGEST_LINE = 300  # characters of a message


class UserError(Exception):
    """A mistake of the input, the configuration or the environment, not of this program.

    The message is one line: what was expected, what was found, and how to mend it. Commands print
    it without a traceback and leave with exit status 2; every other exception is a bug, whose
    traceback goes to a file.

    Args:
      message: names in files may have any characters; those that cannot be printed are replaced.
    """

    def __init__(self, message: object = ""):
        super().__init__(one_line(message))


EXIT_STATUS = 2


def require(condition: bool, key: str, expected: str, found: Any) -> None:
    """Raises UserError where a value of the config cannot work; the key is the value's within the config."""
    if not condition:
        raise UserError(f"config.{key} must be {expected}, found {found!r}")


def one_line(text: object) -> str:
    """Returns the text on one line of printable characters, because names and contents of files may hold any."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(str(text).split()))


def shortened(text: object, longest: int = LONGEST_LINE, mark: str = " ... ") -> str:
    """Returns the text on one line of at most `longest` characters; a mark replaces the middle of a longer text.

    More of the end is kept, because it says how to fix a fault, or is the name in a path.
    """
    line = one_line(text)
    if len(line) <= longest:
        return line
    tail = (longest - len(mark)) * 2 // 3
    return line[: longest - len(mark) - tail] + mark + line[-tail:]


def listed(names: Sequence[str], most: int = 3, longest: int = 40) -> str:
    """Lists the first few names and counts the others."""
    texts = [shortened(name, longest) for name in names[:most]]
    return ", ".join(texts) + (f" and {len(names) - most} more" if len(names) > most else "")


def nearest(wanted: str, known: Iterable[str], most: int = 3, longest: int = 40) -> str:
    """Returns the most similar known names, separated by commas. `lr` is similar to `learning_rate`, by initials."""

    def initials(text: str) -> str:
        return "".join(word[0] for word in text.split("_") if word)

    def likeness(key: str) -> float:
        ratio = difflib.SequenceMatcher(None, wanted.lower(), key.lower()).ratio()
        same = initials(wanted) == key or initials(key) == wanted
        shared = set(wanted.lower().split("_")) & set(key.lower().split("_"))
        return ratio + same + 0.5 * bool(shared)

    return ", ".join(shortened(key, longest) for key in sorted(known, key=lambda key: (-likeness(key), key))[:most])
