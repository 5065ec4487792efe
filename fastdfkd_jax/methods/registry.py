"""The methods by name, each with what builds it from a config, and the sections of the config that it reads.

Adding a method is a line in `METHODS`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import optax
from ml_collections import ConfigDict

from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.errors import UserError, require
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
from fastdfkd_jax.methods.base import Method
from fastdfkd_jax.methods.parts import parametrization
from fastdfkd_jax.methods.parts.inversion_loss import InversionOptions
from fastdfkd_jax.models import Network, count_batch_norms
from fastdfkd_jax.models.generators.by_kind import build_generator


class Entry(NamedTuple):
    """A method.

    Attributes:
      build: `build(config, setting) -> Method`.
      sections: of the config that it reads and others do not.
      maps: whether it serves teachers that give maps (segmentation) too.
      statistics: key of the weight of its term of the teacher's BatchNorm statistics; '' where it has no such term.
    """

    build: Callable[[ConfigDict, base.Setting], Method]
    sections: tuple[str, ...]
    maps: bool = False
    statistics: str = ""


def _fastdfkd(config: ConfigDict, setting: base.Setting) -> Method:
    chosen = config.fastdfkd.to_dict()
    kind, label_dim = chosen.pop("representation"), chosen.pop("label_dim")
    spec = setting.teacher.spec
    if kind == "pixels":
        rendered = parametrization.from_pixels(spec)
    else:
        generator = build_generator(spec.image_size, spec.channels, **config.generator.to_dict(), forms=setting.forms)
        if kind == "noisy_layer":
            expected = "another for a teacher of segmentation, of whose images no class is asked"
            require(not spec.gives_maps, "fastdfkd.representation", expected, kind)
            rendered = parametrization.from_noisy_layers(generator, spec.num_classes, label_dim, setting.batch)
        else:
            rendered = parametrization.from_generator(generator)
    inversion = InversionOptions(**config.inversion.to_dict())
    options = fastdfkd.FastDFKDOptions(
        **chosen,
        synthesis_batch=setting.batch,
        # One call before the first with KD, as the released code counts (METHOD 1.1).
        adversarial_start=max(1, setting.warmup_calls),
    )
    return fastdfkd.build(
        options,
        inversion,
        setting.teacher,
        setting.student,
        parametrization.laid_out(rendered, setting.split),
        _inner_optimizer(config.inner),
        _outer_optimizer(config.meta),
        parallel.lane_map(options.num_tasks, parallel.devices(config.parallel.task_devices)),
    )


def _cmi(config: ConfigDict, setting: base.Setting) -> Method:
    spec = setting.teacher.spec
    generator = build_generator(spec.image_size, spec.channels, **config.generator.to_dict(), forms=setting.forms)
    rendered = parametrization.laid_out(parametrization.from_generator(generator), setting.split)
    inversion = InversionOptions(**config.inversion.to_dict())
    return cmi.build(cmi.CMIOptions(**config.cmi.to_dict()), inversion, rendered, setting)


def _scratch(config: ConfigDict, setting: base.Setting) -> Method:
    return real_data.scratch(setting)


def _kd(config: ConfigDict, setting: base.Setting) -> Method:
    original = config.transfer.source == config.data.source and not config.transfer.crops
    options = real_data.Options(**config.kd_on_data.to_dict())
    return real_data.kd(options, config.kd.temperature, original, setting)


def _dfnd(config: ConfigDict, setting: base.Setting) -> Method:
    return dfnd.build(dfnd.Options(**config.dfnd.to_dict()), config.kd.temperature, setting)


def _inner_optimizer(inner: ConfigDict) -> optax.GradientTransformation:
    def group(learning_rate: float) -> optax.GradientTransformation:
        if inner.optimizer == "sgd":
            return optax.sgd(learning_rate)
        # eps_root stays 0, as in PyTorch; exact MAML meets no zero second moment in practice.
        return optax.adam(learning_rate, inner.b1, inner.b2)

    groups: dict[Hashable, optax.GradientTransformation] = {
        "latents": group(inner.latents_lr),
        "generator": group(inner.generator_lr),
    }
    return optax.partition(groups, {"latents": "latents", "generator": "generator"})


def _outer_optimizer(meta: ConfigDict) -> optax.GradientTransformation:
    make = getattr(optax, meta.optimizer, None)
    if not callable(make):
        raise UserError(f"config.meta.optimizer={meta.optimizer!r} is not an optimizer of optax: 'adam', 'sgd', ...")
    try:
        optimizer = make(meta.lr, **meta.kwargs.to_dict())
    except TypeError as error:
        raise UserError(f"config.meta.kwargs do not fit optax.{meta.optimizer}: {error}") from error
    if not isinstance(optimizer, optax.GradientTransformation):
        raise UserError(f"config.meta.optimizer={meta.optimizer!r} is not an optimizer of optax: 'adam', 'sgd', ...")
    return optimizer


def _with_options(
    build: Callable[[Any, base.Setting], Method],
    options: Callable[..., Any],
    section: str,
    maps: bool = False,
    statistics: str = "",
) -> Entry:
    """For a method whose options are one section of the config, `statistics` being a key within it."""
    key = f"{section}.{statistics}" if statistics else ""
    return Entry(lambda config, setting: build(options(**config[section].to_dict()), setting), (section,), maps, key)


METHODS: dict[str, Entry] = {
    "fastdfkd": Entry(
        _fastdfkd,
        ("fastdfkd", "generator", "inversion", "inner", "meta"),
        maps=True,
        statistics="inversion.feature_weight",
    ),
    "noise": Entry(lambda config, setting: noise.build(setting, config.fastdfkd.num_tasks), ("fastdfkd",), True),
    "scratch": Entry(_scratch, (), maps=True),
    "kd": Entry(_kd, ("kd_on_data",), maps=True),
    "dfnd": Entry(_dfnd, ("dfnd",), maps=True),
    "deepinversion": _with_options(
        deepinversion.build, deepinversion.DeepInversionOptions, "deepinversion", maps=True, statistics="feature_weight"
    ),
    "cmi": Entry(_cmi, ("cmi", "generator", "inversion"), statistics="inversion.feature_weight"),
    "dafl": _with_options(dafl.build, dafl.Options, "dafl", maps=True),
    "zskt": _with_options(zskt.build, zskt.Options, "zskt"),
    "dfq": _with_options(dfq.build, dfq.Options, "dfq", statistics="statistics_weight"),
    "dfad": _with_options(dfad.build, dfad.Options, "dfad", maps=True),
    "generative_dfd": _with_options(
        generative_dfd.build, generative_dfd.Options, "generative_dfd", statistics="statistics_weight"
    ),
}


def require_statistics(config: ConfigDict, teacher: Network, teacher_vars: Any) -> None:
    """UserError where the method is to match BatchNorm statistics that the teacher does not have."""
    key = METHODS[config.method.name].statistics
    weight = operator.attrgetter(key)(config) if key else 0
    if weight and not count_batch_norms(teacher_vars):
        others = ", ".join(name for name, entry in METHODS.items() if not entry.statistics)
        expected = f"0 for the teacher {teacher.spec.arch}, which has no BatchNorm whose statistics could be matched"
        require(False, key, f"{expected} (methods without such a term: {others})", weight)


def other_sections(name: str) -> set[str]:
    """Sections that some method reads and this one does not: what they say is nothing to its runs."""
    return {section for entry in METHODS.values() for section in entry.sections} - set(METHODS[name].sections)
