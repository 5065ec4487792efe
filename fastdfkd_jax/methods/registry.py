"""The methods by name, each with its build function and its options, which are sections of the config.

To add a method, import it and add a line anywhere in `METHODS`. Its options then get sections in the config.
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
    nayer,
    noise,
    real_data,
    zskt,
)
from fastdfkd_jax.options import Options, option


class Entry(NamedTuple):
    """A registered method.

    Attributes:
      build: `build(options, setting) -> Method`.
      options: class of the options; `Options` if there are none.
      maps: True if it also supports teachers that output maps (segmentation).
      statistics: config key of the weight of its BatchNorm statistics term; '' if it has no such term.
      feature: config key of what this term compares; '' if that is always statistics.
      embeddings: config key of its file of label embeddings (`Setting.label_embeddings`); '' if it takes none.
    """

    build: Callable[[Any, base.Setting], base.Method]
    options: type[Options]
    maps: bool = False
    statistics: str = ""
    feature: str = ""
    embeddings: str = ""

    @property
    def sections(self) -> set[str]:
        """Returns the config sections that this method reads and not every method does."""
        return {kind.section for kind in options.kinds(self.options)}


METHODS: dict[str, Entry] = {
    "fastdfkd": Entry(
        fastdfkd.build,
        fastdfkd.FastDFKDOptions,
        maps=True,
        statistics="inversion.feature_weight",
        feature="inversion.feature",
    ),
    "noise": Entry(noise.build, base.LaneOptions, maps=True),
    "scratch": Entry(real_data.scratch, Options, maps=True),
    "kd": Entry(real_data.kd, real_data.KDOnDataOptions, maps=True),
    "dfnd": Entry(dfnd.build, dfnd.DFNDOptions, maps=True),
    "deepinversion": Entry(
        deepinversion.build,
        deepinversion.DeepInversionOptions,
        maps=True,
        statistics="deepinversion.feature_weight",
        feature="deepinversion.feature",
    ),
    "cmi": Entry(cmi.build, cmi.CMIOptions, statistics="inversion.feature_weight", feature="inversion.feature"),
    "dafl": Entry(dafl.build, dafl.DAFLOptions, maps=True),
    "zskt": Entry(zskt.build, zskt.ZSKTOptions),
    "dfq": Entry(dfq.build, dfq.DFQOptions, statistics="dfq.statistics_weight"),
    "dfad": Entry(dfad.build, dfad.DFADOptions, maps=True),
    "generative_dfd": Entry(
        generative_dfd.build,
        generative_dfd.GenerativeDFDOptions,
        statistics="generative_dfd.statistics_weight",
    ),
    "nayer": Entry(
        nayer.build,
        nayer.NAYEROptions,
        statistics="inversion.feature_weight",
        feature="inversion.feature",
        embeddings="nayer.embeddings",
    ),
}


@dataclass(frozen=True)
class MethodOptions(Options, section="method"):
    """Options of the choice of a method."""

    name: str = option(
        "fastdfkd", "method that makes the images; docs/methods.md describes each", choices=tuple(METHODS)
    )


def sections() -> dict[str, type[Options]]:
    """Returns the options class of each section that methods read."""
    return options.by_section(kind for entry in METHODS.values() for kind in options.kinds(entry.options))


def other_sections(name: str) -> set[str]:
    """Returns sections that only other methods read; a run of this method ignores them."""
    return set().union(*(entry.sections for entry in METHODS.values())) - METHODS[name].sections
