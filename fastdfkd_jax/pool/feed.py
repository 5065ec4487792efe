"""The interface of all feeds, which give the student its batches.

A feed has two halves. Its `Functions` are pure and part of the compiled programs. The `Feed` is on the host; it holds
the functions' inputs and stores their outputs. `on_device`, `on_disk` and `per_round` are feeds of images.
`stored_labels` adds stored teacher outputs to one of the first two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fastdfkd_jax.augmentation.augment import View
from fastdfkd_jax.distillation.soft_labels import SoftLabels
from fastdfkd_jax.distributed import hosts
from fastdfkd_jax.options import Options, option
from fastdfkd_jax.pool.drawing import DRAWS
from fastdfkd_jax.pool.shards import Shards

Array = jax.Array
Tree = Any
_HASHED = 256  # images hashed at a time


PLACES = ("device", "disk")


@dataclass(frozen=True)
class PoolOptions(Options, section="pool"):
    """Options of D', the pool of synthesised images."""

    place: str = option(
        "device", "place the student's images are read from: 'device' memory, or 'disk' during training", choices=PLACES
    )
    draw: str = option(
        "replacement",
        "drawing of batches: 'replacement', each image independently, or 'passes', each once per shuffled pass "
        "as in the released code",
        choices=DRAWS,
    )
    initial: str = option("", "folder of images, or an earlier run's workdir, to begin with")


class Examples(NamedTuple):
    """The data of one student step.

    Attributes:
      images: f32[B, H, W, C] in [0, 1], or network inputs if the method makes those.
      labels: i32[B], -1 where not known, or int[B, H, W] of data with a class for every pixel; None if no loss may use
        them.
      weights: f32[B], the images' weights in the loss if they are not drawn uniformly, else None.
      rows: i32[B], the images' rows in D' if `Functions.observe` needs them, else None.
      view, stored: the view of the images and the stored teacher output for it, if there is one.
    """

    images: Array
    labels: Array | None
    weights: Array | None = None
    rows: Array | None = None
    view: View | None = None
    stored: SoftLabels | None = None


def _unobserved(known: Tree, examples: Examples, info: dict[str, Array]) -> tuple[Tree, dict[str, Array]]:
    return known, info


class Functions(NamedTuple):
    """The compiled half of a feed.

    Attributes:
      keep: `keep(state, batch, teacher_vars) -> (state, batch)`: adds a synthesis call's batch to the feed's state, and
        returns the batch in the form that the host takes.
      draw: `draw(source, known, key, step) -> Examples`, a student step's share of the result of `Feed.take`.
      known: `known(source)`, the values that the steps of one dispatch pass on.
      observe: `observe(known, examples, info) -> (known, info)` after a step; it may remove entries from the info.
    """

    keep: Callable[[Tree, Any, Tree], tuple[Tree, Any]]
    draw: Callable[[Any, Tree, Array, Array], Examples]
    known: Callable[[Any], Tree] = lambda source: None
    observe: Callable[[Tree, Examples, dict[str, Array]], tuple[Tree, dict[str, Array]]] = _unobserved


class Feed:
    """The host half of a feed. Subclasses override what they need.

    Attributes:
      state: arrays on the device that a synthesis call takes and returns.
      grows: whether the run's synthesis calls add images to it.
      per_dispatch: whether each dispatch of student steps needs newly made images.
      shards: number of image files written.
      labelled: number of files with teacher outputs.
      ready: whether the student can begin; `prepare` works towards it.
    """

    state: Tree = ()
    grows: bool = True
    per_dispatch: bool = False
    shards: int = 0
    labelled: int = 0
    ready: bool = True

    def saved(self) -> dict[str, Tree]:
        """Returns the arrays that a checkpoint holds for this feed, by name; its files are separate."""
        return {}

    def restore(self, shards: int, saved: Mapping[str, Tree] | None) -> None:
        """Restores the first `shards` files and the arrays of a checkpoint (None if there is none).

        Raises:
          UserError: a file is missing or damaged.
        """

    def add(self, batch: Any) -> bool:
        """Adds a synthesis call's batch, after `state` was updated; returns whether its images are kept."""
        return False

    def prepare(self) -> float:
        """Does one step towards being ready; returns the seconds spent compiling."""
        return 0.0

    def take(self, step: int, ahead: int | None) -> Any:
        """Returns the source of the student's steps from `step`; may start to read that of the steps from `ahead`."""
        raise NotImplementedError

    def learned(self, known: Tree) -> None:
        """Stores the values that the steps of a dispatch passed on."""

    def example(self) -> Any:
        """Returns a source like `take`'s for measurements: with the right sizes, but perhaps other contents."""
        return self.take(0, None)

    def pictures(self, batch: Any) -> np.ndarray:
        """Returns a batch as pictures, uint8[N, H, W, C]."""
        return np.asarray(batch.images)

    def close(self) -> None:
        """Ends pending work."""


class ImageFeed(Feed):
    """A feed of images that are kept, each in a row and copied to the run's shards.

    Args:
      files: the shards; None to measure without any.
    """

    def __init__(self, files: Shards | None):
        self._files = files

    def restore(self, shards: int, saved: Mapping[str, Tree] | None) -> None:
        """Deletes the shards of calls that will be repeated, and restores the others."""
        if self._files is not None:
            if self.grows and hosts.is_writer():
                self._files.truncate(shards)
            self._fill(self._files, shards, saved)
        self.shards = shards

    def _fill(self, files: Shards, shards: int, saved: Mapping[str, Tree] | None) -> None:
        """Restores the initial images, the first `shards` shards, and the saved arrays."""
        raise NotImplementedError

    def add(self, batch: Any) -> bool:
        """Writes kept images to a shard; with several processes, only one writes."""
        if not bool(batch.kept):
            return False
        assert self._files is not None
        rows = jax.tree.map(np.asarray, batch)
        if hosts.is_writer():
            self._files.write(self.shards, rows.images, rows.labels, rows.weights)
        hosts.wait()
        self._added(self._files.path(self.shards))
        self.shards += 1
        return True

    def _added(self, path: Path) -> None:
        """Is called after a shard was written."""

    def __len__(self) -> int:
        raise NotImplementedError

    def of_rows(self, rows: np.ndarray) -> Any:
        """Returns the source from which a program reads the images of rows i32[steps, B]."""
        raise NotImplementedError

    def digest(self) -> str:
        """Returns the SHA-256 of all images in their order."""
        raise NotImplementedError


def digest_of(size: int, images: Callable[[int, int], np.ndarray]) -> str:
    """Returns the SHA-256 of `size` images, which `images(start, stop)` reads a few at a time."""
    sha = hashlib.sha256()
    for start in range(0, size, _HASHED):
        sha.update(images(start, min(start + _HASHED, size)).tobytes())
    return sha.hexdigest()
