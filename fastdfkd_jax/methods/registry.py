"""The methods by name, each with what builds it and its options, which are its sections of the config.

Adding a method is an import, and a line anywhere in `METHODS`: the config has a section for each of its options.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastdfkd_jax import options
from fastdfkd_jax.methods import (
    base,
    cmi,
    dafl,
    deepinversion,
    dfad,
    dfnd,
    dfq,
    fastdfkd,
    generative_dfd,
    noise,
    real_data,
    zskt,
)
from fastdfkd_jax.options import Options, option


class Entry(NamedTuple):
    """A method.

    Attributes:
      build: `build(options, setting) -> Method`.
      options: class of the options; `Options` of a method without any.
      maps: whether it serves teachers that give maps (segmentation) too.
      statistics: key of the weight of its term of the teacher's BatchNorm statistics; '' where it has no such term.
    """

    build: Callable[[Any, base.Setting], base.Method]
    options: type[Options]
    maps: bool = False
    statistics: str = ""

    @property
    def sections(self) -> set[str]:
        """The sections of the config that it reads and not all methods do."""
        return {kind.section for kind in options.kinds(self.options)}


METHODS: dict[str, Entry] = {
    "fastdfkd": Entry(fastdfkd.build, fastdfkd.FastDFKDOptions, maps=True, statistics="inversion.feature_weight"),
    "noise": Entry(noise.build, base.LaneOptions, maps=True),
    "scratch": Entry(real_data.scratch, Options, maps=True),
    "kd": Entry(real_data.kd, real_data.KDOnDataOptions, maps=True),
    "dfnd": Entry(dfnd.build, dfnd.DFNDOptions, maps=True),
    "deepinversion": Entry(
        deepinversion.build,
        deepinversion.DeepInversionOptions,
        maps=True,
        statistics="deepinversion.feature_weight",
    ),
    "cmi": Entry(cmi.build, cmi.CMIOptions, statistics="inversion.feature_weight"),
    "dafl": Entry(dafl.build, dafl.DAFLOptions, maps=True),
    "zskt": Entry(zskt.build, zskt.ZSKTOptions),
    "dfq": Entry(dfq.build, dfq.DFQOptions, statistics="dfq.statistics_weight"),
    "dfad": Entry(dfad.build, dfad.DFADOptions, maps=True),
    "generative_dfd": Entry(
        generative_dfd.build,
        generative_dfd.GenerativeDFDOptions,
        statistics="generative_dfd.statistics_weight",
    ),
}


@dataclass(frozen=True)
class MethodOptions(Options, section="method"):
    """Which method makes the images."""

    name: str = option(
        "fastdfkd", "method that makes the images; docs/methods.md describes each", choices=tuple(METHODS)
    )


def sections() -> dict[str, type[Options]]:
    """The class of each section that methods read."""
    return options.by_section(kind for entry in METHODS.values() for kind in options.kinds(entry.options))


def other_sections(name: str) -> set[str]:
    """Sections that some method reads and this one does not: what they say is nothing to its runs."""
    return set().union(*(entry.sections for entry in METHODS.values())) - METHODS[name].sections
