"""Measures, after the last call, how often student and teacher agree on images that the student never saw."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from fastdfkd_jax.methods import base
from fastdfkd_jax.models import NetworkSpec
from fastdfkd_jax.pool.shards import Shards, read_shard
from fastdfkd_jax.storage import limits, npz

if TYPE_CHECKING:
    from fastdfkd_jax.training.loop import Training

FOLDER = "held_out"
_KEY = 0x4E10  # folded into the key of synthesis, whose calls fold in their numbers one level below
_NOISE = 256  # images
_KEPT = ("agreement_held_out", "agreement_noise_images", "held_out_images")
_TIMES = ("evaluate_seconds", "compile_seconds")


def measure(training: Training) -> dict[str, Any]:
    """Returns the agreement on each set of images, in percent, for the summary; {} if no student was trained.

    The run's numbers and checkpoints stay as they are, but its state is used up. A run that had ended before measures
    again only what may have changed.

    Args:
      training: a run after its last call.
    """
    if training.options.mode == "synthesize":
        return {}
    training.metrics.doing(training.progress.call, "agreement of student and teacher")
    done, agreement = training.progress, training.programs.agreement
    found = dict(_of_ended_run(training))
    start, before = time.perf_counter(), done.compile_seconds
    sets: dict[str, np.ndarray] = dict(training.parts.probes)
    if not found:
        sets["noise_images"] = noise(training.parts.teacher.spec)
        if "held_out" not in sets and (images := _synthesise(training)) is not None:
            sets["held_out"] = images
    student = training.state["student"].result
    for name, images in sets.items():
        found[f"agreement_{name}"] = 100 * agreement(training.parts.teacher_vars, student, images)
        done.compile_seconds += agreement.compile_seconds
    found |= {f"{name}_images": len(sets[name]) for name in ("held_out", "probe") if name in sets}
    if "probe" in sets:
        found["probe"] = Path(training.options.data.probe).name
    if sets:
        done.evaluate_seconds += time.perf_counter() - start - (done.compile_seconds - before)
    return found


def noise(spec: NetworkSpec) -> np.ndarray:
    """Returns images of Gaussian noise like those of the method `noise`, uint8[N, H, W, C], the same for every run."""
    values = np.random.default_rng(0).normal(size=(_NOISE, *spec.input_shape)) * spec.std + spec.mean
    return np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)


def images_of(workdir: Path) -> np.ndarray | None:
    """Returns the held-out images of a run that has ended, uint8[N, H, W, C]; None if it has none."""
    path = npz.path_of(workdir / FOLDER, 0)
    return read_shard(path).images if path.exists() else None


def _of_ended_run(training: Training) -> Mapping[str, Any]:
    """Returns the earlier figures of a run in which nothing was left to do."""
    done, path = training.progress, training.workdir / "summary.json"
    if training.resumed_at != (done.call, done.kd_steps) or "held_out" in training.parts.probes:
        return {}
    try:
        earlier = limits.read_json(path, "record")
    except (OSError, ValueError):
        return {}
    found = {name: earlier[name] for name in _KEPT if earlier.get(name) is not None}
    for name in _TIMES if found else ():  # the checkpoint was saved before these images were measured
        setattr(done, name, earlier[name])
    return found


def _synthesise(training: Training) -> np.ndarray | None:
    """Returns the images of one more synthesis call, uint8[N, H, W, C], and writes them to their own folder.

    Returns None if the run makes no images, or if those of one call are not such as the student was trained on.
    """
    run, parts, done, step = training.options, training.parts, training.progress, training.programs.synthesize
    method = parts.method
    made_here = run.mode == "all" and method.lifetime != base.DATA and run.method.name != "noise"
    if not (run.held_out and made_here) or method.network_input:
        return None
    key = jax.random.fold_in(training.synthesis_key, _KEY)
    # Both states are donated: nothing reads them after the last call, which has saved them.
    _, _, batch, _ = step(
        training.state["method"],
        training.feed.state,
        parts.teacher_vars,
        training.state["student"].variables,
        key,
        np.int32(0),
    )
    done.compile_seconds += step.compile_seconds
    if not bool(batch.kept):
        return None
    images = np.asarray(training.feed.pictures(batch))
    if training.writes:
        labels = np.asarray(batch.labels, np.int32).reshape(-1)[: len(images)]
        Shards(training.workdir / FOLDER).write(0, images, labels)
    return images
