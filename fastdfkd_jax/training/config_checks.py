"""Checks of a config: its values before anything is loaded, and its method's needs before anything is written.

The range of a single value is declared with its option. These checks concern values of several sections together.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

from ml_collections import ConfigDict

from fastdfkd_jax.errors import UserError, require
from fastdfkd_jax.methods import base
from fastdfkd_jax.methods.base import LaneOptions, Method
from fastdfkd_jax.methods.parts.patches import PATCHES
from fastdfkd_jax.methods.registry import METHODS
from fastdfkd_jax.models import Network, count_batch_norms
from fastdfkd_jax.options import RENAMED, read
from fastdfkd_jax.training.run_options import RunOptions, every_kind
from fastdfkd_jax.training.schedule import last_synthesis_call


def validate(config: ConfigDict) -> None:
    """Checks all values of a config.

    Raises:
      UserError: a value cannot work; the message has the key, the expected value and the one found.
    """
    _require_known(config)
    run = read(RunOptions, config)
    for entry in METHODS.values():
        read(entry.options, config)
    if not run.replay.uniform:
        expected = "'replacement' where replay is not uniform"
        require(run.pool.draw == "replacement", "pool.draw", expected, run.pool.draw)
    if run.mode == "distill":
        expected = "a folder of images, which mode='distill' needs"
        require(bool(run.pool.initial), "pool.initial", expected, run.pool.initial)
    if run.replay.difficulty_exponent or run.replay.importance_exponent:
        expected = (
            "0 with replay.difficulty_exponent or .importance_exponent, which weigh single images, not mixed ones"
        )
        require(run.kd.cutmix == 0, "kd.cutmix", expected, run.kd.cutmix)
    _validate_devices(run)


def _require_known(config: ConfigDict) -> None:
    """Raises UserError if a config file sets an unknown option, which would have no effect."""
    known: dict[str, set[str]] = {}
    for kind in every_kind():
        known.setdefault(kind.section, set()).update(field.name for field in dataclasses.fields(kind))
    known[""] |= known.keys()
    for name, names in known.items():
        found = config.get(name, {}) if name else config
        for key in sorted(set(found.keys()) - names):
            where = f"{name}.{key}" if name else key
            now = f": it is called config.{RENAMED[where]} now" if where in RENAMED else ": see docs/options.md"
            raise UserError(f"config.{where} is not an option{now}")


def _validate_devices(run: RunOptions) -> None:
    devices, lanes = run.parallel.batch_devices, run.parallel.task_devices
    for count, key in (
        (0 if lanes > 1 else run.synthesis_batch, "synthesis_batch"),  # lanes are not split
        (run.kd.batch, "kd.batch"),
    ):
        require(not devices or count % devices == 0, key, f"a multiple of parallel.batch_devices={devices}", count)
    if lanes > 1:
        expected = f"0, 1 or task_devices={lanes}, whose devices also distil"
        require(devices in (0, 1, lanes), "parallel.batch_devices", expected, devices)
        has_lanes = issubclass(METHODS[run.method.name].options, LaneOptions)
        require(has_lanes, "parallel.task_devices", f"1 for the method {run.method.name}, without lanes", lanes)


def require_statistics(config: ConfigDict, teacher: Network, teacher_vars: Any) -> None:
    """Raises UserError if the method matches BatchNorm statistics but the teacher has none."""
    entry = METHODS[config.method.name]
    key, feature = entry.statistics, entry.feature
    weight = operator.attrgetter(key)(config) if key else 0
    if feature and operator.attrgetter(feature)(config) == PATCHES:
        return  # the method asks for attention instead
    if weight and not count_batch_norms(teacher_vars):
        others = ", ".join(name for name, entry in METHODS.items() if not entry.statistics)
        expected = (
            f"0 for the teacher {teacher.spec.arch}, which has no BatchNorm statistics to match and no config.proxy"
        )
        require(False, key, f"{expected} (methods without such a term: {others})", weight)


def require_fit(run: RunOptions, method: Method) -> None:
    """Checks that the rest of the run fits a method's lifetime."""
    name = run.method.name
    if method.network_input:
        expected = f"0 for the method {name}, whose images are not augmented"
        require(run.kd.cutmix == 0, "kd.cutmix", expected, run.kd.cutmix)
        require(run.kd.square == 0, "kd.square", expected, run.kd.square)
    if method.lifetime == base.ONCE:
        steps, batch = run.kd.steps_per_call, run.synthesis_batch
        require(run.mode == "all", "mode", f"'all' for the method {name}, which keeps no images", run.mode)
        expected = f"a multiple of {method.steps_per_round} for the method {name}"
        require(steps % method.steps_per_round == 0, "kd.steps_per_call", expected, steps)
        expected = f"synthesis_batch={batch} for the method {name}"
        require(run.kd.batch == batch, "kd.batch", expected, run.kd.batch)
        expected = f"0 for the method {name}, whose images are used only once"
        require(run.synthesis_calls == 0, "synthesis_calls", expected, run.synthesis_calls)
        expected = f"all 0 for the method {name}, which keeps no images"
        _require_uniform(run, expected)
    if run.soft_labels.steps:
        _require_stored_labels_fit(run, method)
    if method.lifetime == base.POOL and run.pool.place == "disk":
        expected = "all 0 where pool.place='disk', which draws images before their difficulty is known"
        _require_uniform(run, expected)
    if method.lifetime == base.DATA:
        expected = f"'device' for the method {name}, whose images are read into memory"
        require(run.pool.place == "device", "pool.place", expected, run.pool.place)
        expected = f"a data set, which the method {name} needs"
        require(bool(run.transfer.source), "transfer.source", expected, run.transfer.source)
        crops, side = run.transfer.crops, run.transfer.short_side
        require(
            not (crops and side), "transfer.short_side", "0 with transfer.crops, as crops have the network's size", side
        )
        expected = f"0 for the method {name}, which learns labels"
        require(crops == 0 or not method.needs_labels, "transfer.crops", expected, crops)


def require_maps_fit(run: RunOptions) -> None:
    """Checks that a run fits a segmentation teacher."""
    name, expected = run.method.name, [name for name, entry in METHODS.items() if entry.maps]
    require(METHODS[name].maps, "method.name", f"one of {', '.join(expected)} for a segmentation teacher", name)
    _require_uniform(run, "all 0 for a segmentation teacher, whose images have no class")
    steps = run.soft_labels.steps
    require(not steps, "soft_labels.steps", "0 for a segmentation teacher, whose outputs are maps", steps)


def _require_uniform(run: RunOptions, expected: str) -> None:
    require(run.replay.uniform, "replay", expected, dataclasses.asdict(run.replay))


def _require_stored_labels_fit(run: RunOptions, method: Method) -> None:
    """Checks that a run fits stored soft labels."""
    key, steps = "soft_labels.steps", run.soft_labels.steps
    vanilla = method.lifetime == base.POOL and method.objective is None
    expected = f"0 for the method {run.method.name}: they are for plain KD on kept images"
    require(vanilla, key, expected, steps)
    complete = run.mode != "all" or last_synthesis_call(run) <= run.warmup_calls
    expected = "0 unless synthesis ends before distillation: synthesis_calls at most warmup_calls, or mode='distill'"
    require(complete, key, expected, steps)
    expected = "False with soft_labels.top_k, which does not store all logits"
    require(not (run.kd.standardize and run.soft_labels.top_k), "kd.standardize", expected, run.kd.standardize)
    square = run.kd.square
    require(square == 0, "kd.square", "0 with soft_labels.steps, whose views show whole images", square)
    expected = "all 0 with soft_labels.steps, which use all images equally often"
    _require_uniform(run, expected)
