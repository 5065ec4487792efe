"""Compares the first and the newest images of D' with the teacher's BatchNorm statistics, layer by layer."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from fastdfkd_jax import losses
from fastdfkd_jax.augmentation import augment
from fastdfkd_jax.models import count_batch_norms
from fastdfkd_jax.pool.shards import read_shard
from fastdfkd_jax.storage import npz
from fastdfkd_jax.training.build import Parts

_MOST, _MOST_PIXELS = 256, 1 << 21  # images and pixels in one pass, whose activations are in memory together
_WIDTH, _ROW, _LEFT, _RIGHT = 420, 26, 160, 50  # of a bar chart, pixels: its width, a layer's height, its margins
_LETTERS = 25  # of a layer's name
_COLOURS = ("#9aa4b2", "#2a78d0")


class Layer(NamedTuple):
    """A BatchNorm layer's distances from its running statistics (a term of Eq. 13).

    Attributes:
      name: name of the layer.
      first: distance of the first images of D'.
      newest: distance of as many newest images.
    """

    name: str
    first: float
    newest: float


def measure(parts: Parts, pool: Path) -> list[Layer]:
    """Returns the distances of all layers, in the order in which the teacher computes them.

    Returns [] if the teacher has no BatchNorm, or if the folder has fewer than two shards of the teacher's input size.

    Args:
      parts: parts of the run.
      pool: folder of the shards.
    """
    paths = npz.paths(pool)
    if len(paths) < 2 or not count_batch_norms(parts.teacher_vars):
        return []
    spec = parts.teacher.spec
    most = max(1, min(_MOST, _MOST_PIXELS // (spec.image_size**2)))
    half = len(paths) // 2
    first, newest = _images(paths[:half], most), _images(paths[: half - 1 : -1], most)
    count = min(len(first), len(newest))
    if first.shape[1:] != spec.input_shape or newest.shape[1:] != spec.input_shape:
        return []

    computed: list[str] = []

    def distances(variables: Any, images: jax.Array) -> jax.Array:
        images = augment.normalize_bytes(images, spec.mean, spec.std)
        moments = parts.teacher.apply(variables, images, moments=True).moments
        computed[:] = _names(moments)  # in the order of computation; JAX sorts the names of everything it returns
        return losses.feature_by_layer(moments, variables["batch_stats"])

    step = jax.jit(distances)
    variables = jax.tree.map(np.asarray, parts.teacher_vars)
    found = [np.asarray(step(variables, images[:count]), np.float64).tolist() for images in (first, newest)]
    layers = {row[0]: Layer(*row) for row in zip(_names(variables["batch_stats"]), *found, strict=True)}
    return [layers[name] for name in computed]


def _images(paths: Sequence[Path], most: int) -> np.ndarray:
    """Returns the images of the first of these shards, at most `most`."""
    found: list[np.ndarray] = []
    for path in paths:
        found.append(read_shard(path).images)
        if sum(map(len, found)) >= most:
            break
    return np.concatenate(found)[:most]


def _names(batch_stats: Any) -> list[str]:
    """Returns the layers' names in the order of the dictionaries."""
    return list(dict.fromkeys(".".join(path[:-1]) for path in traverse_util.flatten_dict(batch_stats)))


def section(layers: Sequence[Layer]) -> str:
    """Returns the part of a run's page, as HTML; '' without layers."""
    if not layers:
        return ""
    highest = max(max(layer.first, layer.newest) for layer in layers) or 1.0
    height = _ROW * len(layers) + 4
    rows = "".join(_row(layer, index, (_WIDTH - _LEFT - _RIGHT) / highest) for index, layer in enumerate(layers))
    total = [sum(values) for values in list(zip(*layers, strict=True))[1:]]
    title = "Distance from the teacher's statistics by layer"
    return (
        f"<h2>{title}</h2><p>Each BatchNorm layer of the teacher, with the L2 distance between its running statistics "
        f"and the moments of its input (Eq. 13): grey for the first images of the run, blue for as many of the newest. "
        f"Sum: {total[0]:.3g} and {total[1]:.3g}. A layer whose blue bar stays long is one that the images do not "
        f'match.</p><figure><svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" '
        f'aria-label="{title}">{rows}</svg></figure>'
    )


def _row(layer: Layer, index: int, scale: float) -> str:
    top, parts = index * _ROW, []
    name = layer.name if len(layer.name) <= _LETTERS else f"…{layer.name[1 - _LETTERS :]}"
    parts.append(f'<text x="{_LEFT - 6}" y="{top + 16}" text-anchor="end">{html.escape(name)}</text>')
    for offset, value, colour in zip((2, 12), layer[1:], _COLOURS, strict=True):
        width = max(value * scale, 0.5)
        parts.append(f'<rect x="{_LEFT}" y="{top + offset}" width="{width:.1f}" height="9" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + width + 4:.1f}" y="{top + offset + 8}">{value:.3g}</text>')
    return "".join(parts)
