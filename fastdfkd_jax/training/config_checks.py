"""Checks of a config: values, before anything is loaded; what its method asks, before anything is written."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from fastdfkd_jax import losses, meta, models
from fastdfkd_jax.errors import UserError, require
from fastdfkd_jax.methods import base, fastdfkd
from fastdfkd_jax.methods.base import Method
from fastdfkd_jax.methods.parts import inversion_loss, parametrization
from fastdfkd_jax.methods.registry import METHODS
from fastdfkd_jax.models.forms import CONV_FORMS, OLD_NAMES
from fastdfkd_jax.models.generators.by_kind import GENERATORS
from fastdfkd_jax.models.network import REMATERIALISATIONS
from fastdfkd_jax.pool import drawing, sampling
from fastdfkd_jax.training.schedule import last_synthesis_call

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
    "conv_gradient": ("auto", *CONV_FORMS),
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
    old = _get(config, "conv_gradient")
    _require(old not in OLD_NAMES, config, "conv_gradient", f"{OLD_NAMES.get(old)!r}, as this value is called now")
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


def require_fit(config: ConfigDict, method: Method) -> None:
    """What a method's lifetime asks of the rest of the config."""
    name = config.method.name
    if method.network_input:
        expected = f"0 for the method {name}, whose images are not augmented"
        require(config.kd.cutmix == 0, "kd.cutmix", expected, config.kd.cutmix)
        require(config.kd.square == 0, "kd.square", expected, config.kd.square)
    if method.lifetime == base.ONCE:
        steps, batch = config.kd.steps_per_call, config.synthesis_batch
        require(config.mode == "all", "mode", f"'all' for the method {name}, which keeps no images", config.mode)
        expected = f"a multiple of {method.steps_per_round} for the method {name}"
        require(steps % method.steps_per_round == 0, "kd.steps_per_call", expected, steps)
        expected = f"synthesis_batch={batch} for the method {name}"
        require(config.kd.batch == batch, "kd.batch", expected, config.kd.batch)
        expected = f"0 for the method {name}, whose images live once"
        require(config.synthesis_calls == 0, "synthesis_calls", expected, config.synthesis_calls)
        expected = f"all 0 for the method {name}, which keeps no images"
        _require_uniform(config, expected)
    if config.soft_labels.steps:
        _require_stored_labels_fit(config, method)
    if method.lifetime == base.POOL and config.pool.place == "disk":
        expected = "all 0 where pool.place='disk', from which rows are drawn before it is known how hard they are"
        _require_uniform(config, expected)
    if method.lifetime == base.DATA:
        expected = f"'device' for the method {name}, whose images are read into memory"
        require(config.pool.place == "device", "pool.place", expected, config.pool.place)
        expected = f"a data set, as the method {name} needs"
        require(bool(config.transfer.source), "transfer.source", expected, config.transfer.source)
        crops, side = config.transfer.crops, config.transfer.short_side
        require(
            not (crops and side), "transfer.short_side", "0 with transfer.crops, which have the network's size", side
        )
        expected = f"0 for the method {name}, which learns labels"
        require(crops == 0 or not method.needs_labels, "transfer.crops", expected, crops)


def require_maps_fit(config: ConfigDict) -> None:
    """What a teacher of segmentation asks of a run."""
    name, expected = config.method.name, [name for name, entry in METHODS.items() if entry.maps]
    require(METHODS[name].maps, "method.name", f"one of {', '.join(expected)} for a teacher of segmentation", name)
    _require_uniform(config, "all 0 for a teacher of segmentation, whose images have no class")
    steps = config.soft_labels.steps
    require(not steps, "soft_labels.steps", "0 for a teacher of segmentation, whose answers are maps", steps)


def _require_uniform(config: ConfigDict, expected: str) -> None:
    exponents = config.replay.to_dict()
    require(sampling.Options(**exponents).uniform, "replay", expected, exponents)


def _require_stored_labels_fit(config: ConfigDict, method: Method) -> None:
    """What soft labels that are made once ask of a run."""
    key, steps = "soft_labels.steps", config.soft_labels.steps
    vanilla = method.lifetime == base.POOL and method.objective is None
    expected = f"0 for the method {config.method.name}: they serve vanilla KD on images that are kept"
    require(vanilla, key, expected, steps)
    complete = config.mode != "all" or last_synthesis_call(config) <= config.warmup_calls
    expected = "0 unless synthesis ends before distillation: synthesis_calls at most warmup_calls, or mode='distill'"
    require(complete, key, expected, steps)
    square = config.kd.square
    require(square == 0, "kd.square", "0 with soft_labels.steps, whose views are of whole images", square)
    expected = "all 0 with soft_labels.steps, of which each is met as often"
    _require_uniform(config, expected)
