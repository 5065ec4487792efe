"""Options: each section of the config is a frozen dataclass.

Its fields have the defaults, the meanings and the ranges. `section` makes the config's section of a class, and `read`
makes an instance of a config. A field may hold other options, which are a section beside that of the class:

    @dataclass(frozen=True)
    class CMIOptions(Options, section="cmi"):
        lr: float = option(1e-3, "learning rate of Adam", above=0)
        inversion: InversionOptions = field(default_factory=InversionOptions)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field
from typing import Any, ClassVar, TypeVar

from fastdfkd_jax.errors import UserError, require

T = TypeVar("T", bound="Options")

# Names that recorded runs and old commands may have, and what they are called now.
RENAMED = {
    "fastdfkd.num_adapt_steps": "fastdfkd.num_steps",
    "cmi.learning_rate": "cmi.lr",
    "cmi.head_learning_rate": "cmi.head_lr",
    "deepinversion.learning_rate": "deepinversion.lr",
}

# Options of earlier versions that no longer exist. The runs that recorded them are otherwise unchanged.
REMOVED = ("fastdfkd.label_dim",)


def option(
    default: Any,
    about: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    within: str = "",
    choices: tuple[str, ...] = (),
) -> Any:
    """Declares a field of options.

    Args:
      default: its value where the config says nothing else; `dataclasses.MISSING` where each subclass has its own.
      about: its meaning, with unit and source.
      at_least: the least number that it may be.
      above: a number that it must be larger than.
      within: an interval as '[0, 1)'.
      choices: all that it may be.
    """
    said = {"about": about, "at_least": at_least, "above": above, "within": within, "choices": choices}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), hash=False, metadata=said)
    return field(default=default, metadata=said)


@dataclass(frozen=True)
class Options:
    """Base of all options.

    A subclass that gives a field another default by a plain assignment keeps its meaning and its range.

    Attributes:
      section: name of the section of the config; '' for the config itself.

    Raises:
      UserError: a value is outside its range; the line names its key.
    """

    section: ClassVar[str] = ""

    def __init_subclass__(cls, section: str = "", **others: Any):
        super().__init_subclass__(**others)
        cls.section = section or cls.section

    def __post_init__(self):
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            for expected, holds in _rules(said(type(self), each.name)):
                self.require(each.name, holds(value), expected)
            numbers = value if isinstance(value, tuple | list) else (value,)
            self.require(each.name, all(map(_is_finite, numbers)), "finite")

    def require(self, name: str, condition: bool, expected: str) -> None:
        """Raises UserError if the option of this name cannot work."""
        require(condition, _key(type(self), name), expected, getattr(self, name))


def part(each: Field) -> type[Options] | None:
    """Returns the class of the options that a field holds, which have their own section; None for a plain value."""
    kind = each.default_factory
    return kind if isinstance(kind, type) and issubclass(kind, Options) else None


def said(kind: type[Options], name: str) -> Mapping[str, Any]:
    """Returns the arguments of `option` for a field, from the class itself or its nearest ancestor that declares it."""
    for each in kind.__mro__:
        found = vars(each).get("__dataclass_fields__", {}).get(name)
        if found is not None and found.metadata:
            return found.metadata
    return {}


def ranges(kind: type[Options], name: str) -> str:
    """Returns the range of a field in words; '' for any value."""
    return ", ".join(expected for expected, _ in _rules(said(kind, name)))


def _rules(known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields each bound of a field: in words, and as a function of a value."""
    if known.get("choices"):
        yield f"one of {', '.join(known['choices'])}", lambda value: value in known["choices"]
    if known.get("at_least") is not None:
        yield f"at least {known['at_least']}", lambda value: value >= known["at_least"]
    if known.get("above") is not None:
        yield f"more than {known['above']}", lambda value: value > known["above"]
    if known.get("within"):
        yield f"in {known['within']}", lambda value: _contains(known["within"], value)


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _contains(interval: str, value: float) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    return (low <= value if interval[0] == "[" else low < value) and (
        value <= high if interval[-1] == "]" else value < high
    )


def section(kind: type[Options]) -> dict[str, Any]:
    """Returns the section of a config with the defaults of these options, without those of its parts."""
    values = {}
    for each in dataclasses.fields(kind):
        if part(each) is None:
            values[each.name] = each.default if each.default_factory is MISSING else each.default_factory()
    return values


def defaults() -> dict[str, Any]:
    """Returns the default of every option by its full key, without those that bases give and subclasses change."""
    found: dict[str, Any] = {}
    differing = set()
    waiting = Options.__subclasses__()
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        for name, value in section(kind).items():
            key = _key(kind, name)
            if found.setdefault(key, value) != value:
                differing.add(key)
    return {key: value for key, value in found.items() if key not in differing}


def read(kind: type[T], config: Any) -> T:
    """Reads options from their section of a config, and from those of their parts.

    Args:
      kind: their class. What else the section holds is not looked at.
      config: a ConfigDict, or nested mappings.

    Raises:
      UserError: a value is missing or outside its range.
    """
    values = {}
    for each in dataclasses.fields(kind):
        held = part(each)
        values[each.name] = read(held, config) if held else _get(config, _key(kind, each.name))
    return kind(**values)


def kinds(kind: type[Options]) -> list[type[Options]]:
    """Returns the class itself if it has its own fields, and the classes of all its parts: one for each section."""
    parts = [part(each) for each in dataclasses.fields(kind)]
    own = [kind] if None in parts else []
    return own + [below for each in parts if each for below in kinds(each)]


def by_section(found: Iterable[type[Options]]) -> dict[str, type[Options]]:
    """Returns the class of each section: if there are several, the one with all its fields.

    Raises:
      TypeError: two classes of a section have fields that the other has not.
    """
    classes: dict[str, type[Options]] = {}
    for kind in found:
        smaller, larger = sorted(
            (classes.get(kind.section, kind), kind), key=lambda kind: len(dataclasses.fields(kind))
        )
        if not {each.name for each in dataclasses.fields(smaller)} <= {
            each.name for each in dataclasses.fields(larger)
        }:
            raise TypeError(f"{kind.__name__} needs its own section: class {kind.__name__}(Options, section=...)")
        classes[kind.section] = larger
    return classes


def renamed(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the flat names and values of a recorded config, under their present names, without removed options."""
    return {RENAMED.get(key, key): value for key, value in flat.items() if key not in REMOVED}


def _key(kind: type[Options], name: str) -> str:
    return f"{kind.section}.{name}" if kind.section else name


def _get(config: Any, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        if not hasattr(value, "items") or name not in value:
            raise UserError(f"config.{key} is missing: expected a config made from configs/default.py")
        value = value[name]
    return value.to_dict() if hasattr(value, "to_dict") else value
