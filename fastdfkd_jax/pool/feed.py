"""Where the student's next batch comes from: the contract that every way to feed it keeps.

A feed has two halves. Its `Functions` are pure and part of the compiled programs; the `Feed` is on the host, holds what
they are given and puts back what they return. `on_device`, `on_disk` and `per_round` are ways to feed a student from
images, and `stored_labels` has one of the first two answered by the teacher beforehand.
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
_HASHED = 256  # images that a digest is fed with at a time


PLACES = ("device", "disk")


@dataclass(frozen=True)
class PoolOptions(Options, section="pool"):
    """D' itself."""

    place: str = option(
        "device", "place the student's images are read from: 'device' memory, or 'disk' during training", choices=PLACES
    )
    draw: str = option(
        "replacement",
        "how batches are drawn: 'replacement', each image independently, or 'passes', each once per shuffled pass "
        "as in the released code",
        choices=DRAWS,
    )
    initial: str = option("", "folder of images, or an earlier run's workdir, to begin with")


class Examples(NamedTuple):
    """What one student step learns from.

    Attributes:
      images: f32[B, H, W, C] in [0, 1], or as the networks take them where a method makes such.
      labels: i32[B], -1 where not known, or int[B, H, W] of data with a class for every pixel; None where no loss may
        look at them.
      weights: f32[B] of the images in the loss where they are not drawn uniformly, else None.
      rows: i32[B], which images of D' they are, where `Functions.observe` asks for it, else None.
      view, stored: how the images are shown and what the teacher says of that, where it has answered before.
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
    """The half of a feed that is compiled.

    Attributes:
      keep: `keep(state, batch, teacher_vars) -> (state, batch)`: the feed's state with what a synthesis call made, and
        the batch as the host is given it.
      draw: `draw(source, known, key, step) -> Examples`, the student step's share of what `Feed.take` gave.
      known: `known(source)`, what the steps of one dispatch hand on to each other.
      observe: `observe(known, examples, info) -> (known, info)` after a step; it may take something out of the info.
    """

    keep: Callable[[Tree, Any, Tree], tuple[Tree, Any]]
    draw: Callable[[Any, Tree, Array, Array], Examples]
    known: Callable[[Any], Tree] = lambda source: None
    observe: Callable[[Tree, Examples, dict[str, Array]], tuple[Tree, dict[str, Array]]] = _unobserved


class Feed:
    """The half of a feed that is on the host. What a way to feed the student does not need it inherits from here.

    Attributes:
      state: arrays on the device that a synthesis call takes and gives back.
      grows: whether the run's synthesis calls add images to it.
      per_dispatch: whether each dispatch of student steps needs images made for it alone.
      shards: how many files of images it has written.
      labelled: how many files of the teacher's answers there are.
      ready: whether the student can begin; `prepare` works towards it.
    """

    state: Tree = ()
    grows: bool = True
    per_dispatch: bool = False
    shards: int = 0
    labelled: int = 0
    ready: bool = True

    def saved(self) -> dict[str, Tree]:
        """What a checkpoint holds of it, by name, beside the files that it writes."""
        return {}

    def restore(self, shards: int, saved: Mapping[str, Tree] | None) -> None:
        """Takes up what lies in its first `shards` files, and what a checkpoint held; None where there is none.

        Raises:
          UserError: a file is missing or damaged.
        """

    def add(self, batch: Any) -> bool:
        """Takes what a synthesis call made, after `state` was put back; whether its images stay."""
        return False

    def prepare(self) -> float:
        """A step towards being ready; gives the seconds that compiling took."""
        return 0.0

    def take(self, step: int, ahead: int | None) -> Any:
        """What the student's steps from `step` on draw from; for those from `ahead` on it may be read meanwhile."""
        raise NotImplementedError

    def learned(self, known: Tree) -> None:
        """Takes what the steps of a dispatch handed on in the end."""

    def example(self) -> Any:
        """What `take` would give, for a measurement that draws from it: sizes are right, contents may not be."""
        return self.take(0, None)

    def pictures(self, batch: Any) -> np.ndarray:
        """A batch as people see it, uint8[N, H, W, C]."""
        return np.asarray(batch.images)

    def close(self) -> None:
        """Ends what is pending."""


class ImageFeed(Feed):
    """A feed from images that stay, each with a row of its own and a copy in the run's shards.

    Args:
      files: the shards; None to measure without any.
    """

    def __init__(self, files: Shards | None):
        self._files = files

    def restore(self, shards: int, saved: Mapping[str, Tree] | None) -> None:
        """Drops the shards of calls that will be repeated, and takes up the others."""
        if self._files is not None:
            if self.grows and hosts.is_writer():
                self._files.truncate(shards)
            self._fill(self._files, shards, saved)
        self.shards = shards

    def _fill(self, files: Shards, shards: int, saved: Mapping[str, Tree] | None) -> None:
        """Takes up what the run began with, the first so many shards, and what was saved."""
        raise NotImplementedError

    def add(self, batch: Any) -> bool:
        """Writes the images that stay into a shard; of several processes one does."""
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
        """A shard was written."""

    def __len__(self) -> int:
        raise NotImplementedError

    def of_rows(self, rows: np.ndarray) -> Any:
        """Where a program finds the images of rows i32[steps, B]."""
        raise NotImplementedError

    def digest(self) -> str:
        """SHA-256 of all images in their order."""
        raise NotImplementedError


def digest_of(size: int, images: Callable[[int, int], np.ndarray]) -> str:
    """SHA-256 of so many images, of which `images(start, stop)` gives a few."""
    sha = hashlib.sha256()
    for start in range(0, size, _HASHED):
        sha.update(images(start, min(start + _HASHED, size)).tobytes())
    return sha.hexdigest()
