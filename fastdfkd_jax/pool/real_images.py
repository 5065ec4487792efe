"""Real images instead of synthesised ones, for methods that declare that they use them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from fastdfkd_jax import data
from fastdfkd_jax.cli.parser import expanded
from fastdfkd_jax.data import unlabelled
from fastdfkd_jax.models import NetworkSpec
from fastdfkd_jax.options import Options, option
from fastdfkd_jax.pool import on_device
from fastdfkd_jax.pool.shards import Rows

_BATCH = 256
_CHUNK = 1024  # images scored between two selections


@dataclass(frozen=True)
class TransferOptions(Options, section="transfer"):
    """Options of real images, which only methods that declare their use read."""

    source: str = option("", "real images for methods that use them; same form as data.source")
    dir: str = option("", "folder that holds the real images; same form as data.dir")
    split: str = option("train", "split of the real images; same form as data.split")
    short_side: int = option(
        0, "shorter side in pixels that the real images are resized to; same as data.short_side", at_least=0
    )
    crops: int = option(
        0, "random crops per picture, without labels; 0 reads the labelled data set unchanged", at_least=0
    )
    limit: int = option(0, "largest number of real images; 0 for all", at_least=0)
    select: int = option(0, "number of images kept by a method that selects them (DFND); 0 for all", at_least=0)


def read(
    source: str,
    split: str,
    directory: str,
    spec: NetworkSpec,
    *,
    crops: int,
    limit: int,
    short_side: int = 0,
    square: int = 0,
) -> Iterator[Rows]:
    """Yields real images in chunks: of the teacher's input size, or of any size for segmentation.

    Args:
      source, split, directory: as for `data.load`, or for `data.unlabelled.stream` if there are crops.
      spec: the teacher's spec.
      crops: 0 for an unchanged labelled data set, else the number of random crops of each picture, without labels.
      limit: largest number of images; 0 for all.
      short_side: shorter side in pixels that images with maps are resized to; 0 for no resizing.
      square: side of the square cut out of these before the network sees them; 0 for whole images.

    Raises:
      UserError: the data are missing or damaged, or do not fit the teacher.
    """
    if not crops:
        dataset = data.require(
            data.load(source, split, data_dir=directory or None, short_side=short_side or None), spec, square
        )
        rows = slice(limit or None)
        yield Rows(dataset.images[rows], dataset.labels[rows])
        return
    root = expanded(directory or (data.DEFAULT_DATA_DIR if source.startswith("tfds:") else "."))
    size = {"image_size": spec.image_size, "channels": spec.channels}
    for images in unlabelled.stream(source, split, root, **size, crops=crops, limit=limit):
        yield Rows(images, np.full(len(images), -1, np.int32))


def collect(parts: Iterable[Rows]) -> Rows:
    """Concatenates all parts."""
    first, *others = parts
    return Rows(*map(np.concatenate, zip(first, *others, strict=True))) if others else first


def choose(parts: Iterable[Rows], score: Callable[[Any, jax.Array], jax.Array], teacher_vars: Any, count: int) -> Rows:
    """Returns the `count` images of lowest score, in their original order; no others are kept in memory.

    Args:
      parts: images to choose from.
      score: `score(teacher_vars, images f32[B, H, W, C] in [0, 1]) -> f32[B]`.
      teacher_vars: the teacher's variables.
      count: number of images; all if there are fewer.
    """
    compiled = jax.jit(lambda variables, images: score(variables, on_device.to_float(images)))

    def scores_of(images: np.ndarray) -> np.ndarray:
        padding = ((0, -len(images) % _BATCH), (0, 0), (0, 0), (0, 0))  # one compilation for all
        batches = np.pad(images, padding).reshape(-1, _BATCH, *images.shape[1:])
        return np.concatenate([np.asarray(compiled(teacher_vars, batch)) for batch in batches])[: len(images)]

    lowest = _Lowest(count)
    for rows in parts:
        for start in range(0, len(rows.images), _CHUNK):
            part = Rows(*(array[start : start + _CHUNK] for array in rows))
            lowest.offer(part, scores_of(part.images))
    return lowest.rows()


class _Lowest:
    """The rows of lowest score among those offered; a better row takes over the slot of the worst."""

    def __init__(self, count: int):
        self._count, self._offered = count, 0
        self._rows: Rows | None = None  # with spare slots
        self._scores, self._places = np.empty(0, np.float32), np.empty(0, np.int64)

    def offer(self, part: Rows, scores: np.ndarray) -> None:
        places = np.arange(self._offered, self._offered + len(scores))
        self._offered += len(scores)
        used = len(self._scores)
        scores = np.concatenate([self._scores, np.where(np.isnan(scores), np.inf, scores)])
        places = np.concatenate([self._places, places])
        stays = self._lowest(scores, places)
        total, incoming = stays.sum(), used + np.flatnonzero(stays[used:])
        slots = np.concatenate([np.flatnonzero(~stays[:used]), np.arange(used, total)])
        self._scores, self._places = scores[:total], places[:total]
        self._scores[slots], self._places[slots] = scores[incoming], places[incoming]
        self._rows = _with_slots(self._rows, part, total, self._count)
        for kept, new in zip(self._rows, part, strict=True):
            kept[slots] = new[incoming - used]

    def _lowest(self, scores: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Returns which to keep, with ties to the first; does not sort, since it is called often with many values."""
        if len(scores) <= self._count:
            return np.ones(len(scores), bool)
        last = np.partition(scores, self._count - 1)[self._count - 1]
        stays, tied = scores < last, np.flatnonzero(scores == last)
        stays[tied[np.argsort(places[tied])[: self._count - stays.sum()]]] = True
        return stays

    def rows(self) -> Rows:
        assert self._rows is not None, "nothing was offered"
        order = np.argsort(self._places)
        return Rows(*(kept[order] for kept in self._rows))


def _with_slots(rows: Rows | None, like: Rows, needed: int, most: int) -> Rows:
    """Returns the rows with at least `needed` slots; doubles them, so that rows are seldom moved."""
    had = 0 if rows is None else len(rows.labels)
    if rows is not None and had >= needed:
        return rows
    grown = Rows(*(np.empty((min(most, max(needed, 2 * had)), *array.shape[1:]), array.dtype) for array in like))
    if rows is not None:
        for new, old in zip(grown, rows, strict=True):
            new[:had] = old
    return grown
