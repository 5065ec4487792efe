"""Chooses the feed of a run from its options, and builds both of its halves."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.methods import base
from fastdfkd_jax.pool import on_device, on_disk, per_round, stored_labels
from fastdfkd_jax.pool.drawing import row_drawer
from fastdfkd_jax.pool.feed import Feed, Functions, ImageFeed
from fastdfkd_jax.pool.initial_images import Located
from fastdfkd_jax.pool.label_files import Description
from fastdfkd_jax.pool.shards import Rows, Shards
from fastdfkd_jax.storage.digest import digest
from fastdfkd_jax.training.build import Parts
from fastdfkd_jax.training.run_options import RunOptions
from fastdfkd_jax.training.schedule import count_synthesis_calls

if TYPE_CHECKING:
    from fastdfkd_jax.training.programs import Programs

Array = jax.Array


def steps_of_dispatch(parts: Parts, run: RunOptions) -> int:
    """Returns the number of KD steps in one compiled program."""
    if parts.method.lifetime == base.ONCE:
        return parts.method.steps_per_round
    return math.gcd(run.kd.steps_per_call, run.kd.steps_per_dispatch)


def drawer(run: RunOptions) -> Callable[[Array, Array, Array], Array]:
    """Returns `draw(key, step, size) -> i32[B]`, which draws a step's images uniformly."""
    return row_drawer(run.kd.batch, run.kd.steps_per_call, run.pool.draw == "passes")


def functions(parts: Parts, run: RunOptions) -> Functions:
    """Returns the feed's half that is compiled into the run's programs."""
    of_images = _functions_of_images(parts, run)
    if not run.soft_labels.steps:
        return of_images
    return stored_labels.functions(of_images, steps_of_dispatch(parts, run))


def _functions_of_images(parts: Parts, run: RunOptions) -> Functions:
    if parts.method.lifetime == base.ONCE:
        return per_round.functions(steps_of_dispatch(parts, run))
    if _is_on_disk(parts, run):
        return on_disk.functions(steps_of_dispatch(parts, run))
    if run.replay.uniform:
        return on_device.uniformly(drawer(run))
    teacher, spec = parts.teacher, parts.teacher.spec

    def classes_of(variables: Any, images: Array) -> Array:
        logits = teacher.apply(variables, augment.normalize(images, spec.mean, spec.std)).logits
        return logits.argmax(-1).astype(jnp.int32)

    return on_device.by_replay(run.replay, run.kd.batch, spec.num_classes, classes_of)


def _is_on_disk(parts: Parts, run: RunOptions) -> bool:
    """Returns whether D' is read from disk during training."""
    return run.pool.place == "disk" and parts.method.lifetime == base.POOL


def open_feed(
    parts: Parts, run: RunOptions, programs: Programs, workdir: Path | None, key: Array, say: Callable[[str], None]
) -> Feed:
    """Opens the feed's half on the host, still empty.

    Args:
      parts: parts of the run.
      run: its options.
      programs: its programs.
      workdir: folder of the run; None to measure without one.
      key: random key that draws the student's images.
      say: shows a message to the user.
    """
    if parts.method.lifetime == base.ONCE:
        return per_round.RoundFeed(_to_pixels(parts))
    images = _open_images(parts, run, programs, workdir, key)
    if not run.soft_labels.steps or workdir is None:
        return images
    return stored_labels.StoredLabels(images, _making(parts, run, programs, workdir, key, say))


def _to_pixels(parts: Parts) -> Callable[[Array], Array]:
    spec = parts.teacher.spec

    def to_pixels(images: Array) -> Array:
        if parts.method.network_input:
            images = augment.denormalize(images, spec.mean, spec.std)
        return on_device.to_uint8(images)

    return to_pixels


def _open_images(parts: Parts, run: RunOptions, programs: Programs, workdir: Path | None, key: Array) -> ImageFeed:
    made = parts.method.images_per_call * count_synthesis_calls(run, parts.method)
    files = None if workdir is None else Shards(workdir / "pool")
    first, shape = parts.initial, parts.teacher.spec.input_shape
    if not _is_on_disk(parts, run):
        assert not isinstance(first, Located)
        return on_device.DeviceFeed(files, first, made, shape, not run.replay.uniform)
    assert not isinstance(first, Rows)

    def draw(step: int, size: int) -> np.ndarray:
        return np.asarray(programs.draw_rows(key, np.int32(step), np.int32(size)))

    place = parallel.placer(parallel.devices(parts.layout["batch devices"]))
    imported = (workdir or Path()) / "initial"
    return on_disk.DiskFeed(files, first, imported, shape, made > 0, draw, place)


def labels_folder(run: RunOptions, workdir: Path) -> Path:
    """Returns the folder of the stored soft labels."""
    chosen = run.soft_labels.dir
    return expanded(chosen) if chosen else workdir / "soft_labels"


def _making(
    parts: Parts, run: RunOptions, programs: Programs, workdir: Path, key: Array, say: Callable[[str], None]
) -> stored_labels.Making:
    chosen, spec, steps = run.soft_labels, parts.teacher.spec, programs.steps
    label_key = jax.random.key(chosen.seed)

    def describe(pool: str, size: int) -> Description:
        return Description(
            teacher=digest(parts.teacher_vars),
            arch=spec.arch,
            mean=tuple(spec.mean),
            std=tuple(spec.std),
            precision=run.precision,
            classes=spec.num_classes,
            pool=pool,
            pool_size=size,
            seed=chosen.seed,
            batch=run.kd.batch,
            steps=steps,
            top_k=chosen.top_k,
            temperature=run.kd.temperature,
            views=run.kd.views,
        )

    def label(source: Any, step: int, size: int):
        made = programs.label(parts.teacher_vars, source, label_key, np.int32(step), np.int32(size))
        return made, programs.label.compile_seconds

    def rows_of(step: int, size: int) -> np.ndarray:
        return np.asarray(programs.draw_rows(label_key, np.int32(step), np.int32(size)))

    def order(turn: int, shards: int) -> np.ndarray:
        return np.asarray(jax.random.permutation(jax.random.fold_in(key, turn), shards))

    return stored_labels.Making(
        directory=labels_folder(run, workdir),
        describe=describe,
        count=math.ceil(chosen.steps / steps),
        steps=steps,
        label=label,
        rows_of=rows_of,
        order=order,
        say=say,
    )
