"""Checks of a config's values, before anything is loaded or written."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from fastdfkd_jax import losses, meta, models
from fastdfkd_jax.errors import UserError, require
from fastdfkd_jax.methods import fastdfkd
from fastdfkd_jax.methods.parts import inversion_loss, parametrization
from fastdfkd_jax.methods.registry import METHODS
from fastdfkd_jax.models.generators.by_kind import GENERATORS
from fastdfkd_jax.models.layers import CONV_GRADIENTS
from fastdfkd_jax.models.network import REMATERIALISATIONS
from fastdfkd_jax.pool import drawing, sampling

MODES = ("all", "synthesize", "distill")
PLACES = ("device", "disk")

_CHOICES: dict[str, tuple[str, ...]] = {
    "mode": MODES,
    "pool.place": PLACES,
    "pool.draw": drawing.DRAWS,
    "method.name": tuple(METHODS),
    "fastdfkd.reuse": fastdfkd.REUSE,
    "fastdfkd.representation": parametrization.REPRESENTATIONS,
    "fastdfkd.meta_rule": meta.RULES,
    "fastdfkd.latents": fastdfkd.LATENTS,
    "fastdfkd.latents_update": fastdfkd.LATENTS_UPDATES,
    "fastdfkd.images": fastdfkd.IMAGES,
    "fastdfkd.task_reduction": fastdfkd.REDUCTIONS,
    "generator.kind": GENERATORS,
    "inversion.adversarial": inversion_loss.ADVERSARIAL,
    "inversion.feature": inversion_loss.FEATURE,
    "inversion.statistic": losses.STATISTICS,
    "inner.optimizer": ("adam", "sgd"),
    "kd.optimizer": ("sgd", "adam"),
    "precision": ("float32", "bfloat16"),
    "conv_gradient": ("auto", *CONV_GRADIENTS),
    "remat": REMATERIALISATIONS,
}
_AT_LEAST: dict[int, tuple[str, ...]] = {
    0: (
        "seed", "warmup_calls", "synthesis_calls", "teacher.num_classes", "teacher.image_size",
        "fastdfkd.reset_first_layer_at",
        "inversion.crop_padding", "kd.crop_padding", "parallel.cpu_devices", "parallel.batch_devices",
        "inversion.class_weight",
        "inversion.adversarial_weight", "inversion.feature_weight", "kd.momentum", "kd.weight_decay", "kd.final_lr",
        "kd.clip_norm",
        "transfer.crops", "transfer.limit", "transfer.select",
        "soft_labels.steps", "soft_labels.top_k", "soft_labels.seed", "data.short_side", "transfer.short_side",
        "kd.square", "kd.rate_warmup_steps",
    ),
    1: (
        "calls", "data.batch", "fastdfkd.num_adapt_steps", "synthesis_batch", "fastdfkd.num_tasks",
        "fastdfkd.latents_period", "fastdfkd.unroll", "generator.latent_dim", "generator.width", "fastdfkd.label_dim",
        "kd.steps_per_call", "kd.batch", "kd.steps_per_dispatch", "eval_every", "checkpoint_every", "images_every",
        "parallel.task_devices",
    ),
}  # fmt: skip
_POSITIVE = (
    "inner.generator_lr",
    "inner.latents_lr",
    "meta.lr",
    "kd.lr",
    "kd.lr_decay",
    "kd.temperature",
    "kd.cutmix_alpha",
    "inversion.jsd_temperature",
)


def validate(config: ConfigDict) -> None:
    """Raises UserError for the first value that cannot work: the key, what is expected, what was found."""
    for key, choices in _CHOICES.items():
        _require(_get(config, key) in choices, config, key, f"one of {', '.join(choices)}")
    for bound, keys in _AT_LEAST.items():
        for key in keys:
            _require(_get(config, key) >= bound, config, key, f"at least {bound}")
    for key in _POSITIVE:
        _require(_get(config, key) > 0, config, key, "more than 0")
    for key in ("inversion.least_crop", "kd.least_crop", "kd.cutmix", "data.crop"):
        _require(0 <= _get(config, key) <= 1, config, key, "in [0, 1]")
    _require(0 <= config.inversion.accumulator_weight < 1, config, "inversion.accumulator_weight", "in [0, 1)")
    _require(
        bool(config.student.graph) or models.is_known(config.student.arch),
        config,
        "student.arch",
        f"one of {', '.join(models.arch_names())}",
    )
    _require(config.warmup_calls < config.calls, config, "warmup_calls", f"less than calls={config.calls}")
    _require(config.synthesis_calls <= config.calls, config, "synthesis_calls", f"at most calls={config.calls}")
    _require(0 <= config.kd.ema_decay < 1, config, "kd.ema_decay", "in [0, 1)")
    if not sampling.Options(**config.replay.to_dict()).uniform:
        _require(config.pool.draw == "replacement", config, "pool.draw", "'replacement' where replay is not uniform")
    if config.mode == "distill":
        _require(bool(config.pool.initial), config, "pool.initial", "a folder of images, as mode='distill' needs")
    if config.replay.difficulty_exponent or config.replay.importance_exponent:
        expected = "0 with replay.difficulty_exponent or .importance_exponent, as these are of one image and not of two"
        _require(config.kd.cutmix == 0, config, "kd.cutmix", expected)
    _validate_devices(config)


def _validate_devices(config: ConfigDict) -> None:
    chosen = config.parallel
    devices, lanes = chosen.batch_devices, chosen.task_devices
    for count, key in (
        (0 if lanes > 1 else config.synthesis_batch, "synthesis_batch"),  # lanes are not split
        (config.kd.batch, "kd.batch"),
    ):
        _require(not devices or count % devices == 0, config, key, f"a multiple of parallel.batch_devices={devices}")
    if lanes > 1:
        expected = f"0, 1 or task_devices={lanes}, which serve distillation too"
        _require(devices in (0, 1, lanes), config, "parallel.batch_devices", expected)
        has_lanes = "fastdfkd" in METHODS[config.method.name].sections
        _require(has_lanes, config, "parallel.task_devices", f"1 for the method {config.method.name}, without lanes")
    if chosen.hosts in ("one", "cluster"):
        expected = f"0 where hosts={chosen.hosts!r}"
        _require(chosen.processes == 0, config, "parallel.processes", expected)
        _require(chosen.process == 0, config, "parallel.process", expected)
    else:
        address, _, port = chosen.hosts.rpartition(":")
        _require(bool(address) and port.isdigit(), config, "parallel.hosts", "'one', 'cluster' or HOST:PORT")
        _require(chosen.processes >= 1, config, "parallel.processes", "at least 1 where hosts is HOST:PORT")
        expected = f"from 0 to {chosen.processes - 1}, as processes={chosen.processes}"
        _require(0 <= chosen.process < chosen.processes, config, "parallel.process", expected)
    _require(chosen.lost_after >= 5, config, "parallel.lost_after", "at least 5 s")


def _get(config: ConfigDict, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, ConfigDict) or part not in value:
            raise UserError(f"config.{key} is missing: expected a config made from configs/default.py")
        value = value[part]
    return value


def _require(condition: bool, config: ConfigDict, key: str, expected: str) -> None:
    require(condition, key, expected, _get(config, key))
