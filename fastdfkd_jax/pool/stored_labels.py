"""D' with stored teacher outputs, made once D' is complete and then used repeatedly in changing order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import numpy as np

from fastdfkd_jax.distillation.soft_labels import LabelledViews
from fastdfkd_jax.distributed import hosts, parallel
from fastdfkd_jax.options import Options, option
from fastdfkd_jax.pool import on_device
from fastdfkd_jax.pool.feed import Examples, Feed, Functions, ImageFeed
from fastdfkd_jax.pool.label_files import Description, LabelFiles
from fastdfkd_jax.pool.on_device import Pool
from fastdfkd_jax.pool.on_disk import Batches
from fastdfkd_jax.pool.reading import Ahead
from fastdfkd_jax.storage.files import lock_folder

Array = jax.Array
Tree = Any


@dataclass(frozen=True)
class SoftLabelOptions(Options, section="soft_labels"):
    """Options of stored soft labels: the teacher sees each view once, the student many times (FKD)."""

    steps: int = option(
        0,
        "student steps whose teacher outputs are stored, once all images are made; 0 to run the teacher at every step",
        at_least=0,
    )
    top_k: int = option(
        0, "probabilities stored per view, the remainder spread evenly; 0 to store all logits as float16", at_least=0
    )
    dir: str = option(
        "", "folder of stored soft labels, which runs on the same images may share; '' for workdir/soft_labels"
    )
    seed: int = option(0, "random seed of the stored views", at_least=0)


class Taught(NamedTuple):
    """The data of a few student steps with stored teacher outputs.

    Attributes:
      images: the pool, or the images of `steps.rows` read from it.
      steps: rows, views and teacher outputs, all with leading axis steps.
    """

    images: Pool | Batches
    steps: LabelledViews


def functions(of_images: Functions, steps: int) -> Functions:
    """Returns the functions for dispatches of `steps` student steps on the images of `of_images`."""

    def draw(source: Taught, known: None, key: Array, step: Array) -> Examples:
        turn = step % steps
        rows, view, stored = jax.tree.map(lambda x: x[turn], source.steps)
        images = source.images.images[rows if isinstance(source.images, Pool) else turn]
        return Examples(on_device.to_float(images), None, view=view, stored=stored)

    return Functions(of_images.keep, draw)


class Making(NamedTuple):
    """The parameters for making and reading soft labels.

    Attributes:
      directory: folder of the soft labels.
      describe: `describe(digest, size) -> Description`, their description for images of this digest.
      count: shards per round; each has the steps of one dispatch of the student.
      steps: KD steps per shard.
      label: `label(source, step, size) -> (LabelledViews, seconds)`: the teacher's outputs for the steps from `step`,
        and the seconds of compiling.
      rows_of: `rows_of(step, size) -> i32[steps, B]`, the images that these steps draw.
      order: `order(round, shards) -> i32[shards]`, the order in which the student uses them.
      say: shows a message to the user.
    """

    directory: Path
    describe: Callable[[str, int], Description]
    count: int
    steps: int
    label: Callable[[Any, int, int], tuple[LabelledViews, float]]
    rows_of: Callable[[int, int], np.ndarray]
    order: Callable[[int, int], np.ndarray]
    say: Callable[[str], None]


class StoredLabels(Feed):
    """A feed with stored teacher outputs for every step, made before the student begins.

    Args:
      images: D'.
      making: parameters of the soft labels.
    """

    def __init__(self, images: ImageFeed, making: Making):
        self._images, self._making = images, making
        self.grows = images.grows
        self._files: LabelFiles | None = None
        self._lock: IO[str] | None = None
        self._order = functools.lru_cache(2)(making.order)  # called twice per dispatch, perhaps for two rounds
        self._ahead = Ahead(self._load)

    @property
    def state(self) -> Tree:
        """State of the images' feed."""
        return self._images.state

    @state.setter
    def state(self, state: Tree) -> None:
        self._images.state = state

    @property
    def shards(self) -> int:
        """Number of shards of the images' feed."""
        return self._images.shards

    @property
    def ready(self) -> bool:
        """True if all teacher outputs are stored."""
        return self._files is not None and self.labelled == self._making.count

    def saved(self) -> dict[str, Tree]:
        """Returns what the images' feed saves."""
        return self._images.saved()

    def restore(self, shards: int, saved: Mapping[str, Tree] | None) -> None:
        """Restores the images; stored outputs are only read once the images are complete."""
        self._images.restore(shards, saved)

    def add(self, batch: Any) -> bool:
        """Adds images."""
        return self._images.add(batch)

    def prepare(self) -> float:
        """Stores teacher outputs for the steps of one program; the first call only finds existing ones."""
        if self._files is None:
            self._files = self._open()
            return 0.0
        making, size = self._making, len(self._images)
        step = self.labelled * making.steps
        source = self._images.of_rows(making.rows_of(step, size))
        made, compile_seconds = making.label(source, step, size)
        if hosts.is_writer():
            self._files.write(self.labelled, made)
        self.labelled += 1
        if self.ready and self._lock is not None:
            self._lock.close()
        return compile_seconds

    def _open(self) -> LabelFiles:
        making = self._making
        description = making.describe(self._images.digest(), len(self._images))
        files = hosts.writer_first(lambda: LabelFiles(making.directory, description))
        self.labelled = min(hosts.from_writer("soft labels", files.count), making.count)
        if self.labelled < making.count:
            if hosts.is_writer():
                self._lock = lock_folder(making.directory)
            gigabytes = (making.count - self.labelled) * description.bytes_per_shard / 1e9
            steps = making.count * making.steps
            making.say(f"the teacher answers {steps} steps, {gigabytes:.3f} GB, into {making.directory}")
        return files

    def take(self, step: int, ahead: int | None) -> Taught:
        """Returns the teacher outputs and images of the dispatch that begins with a step.

        Raises:
          UserError: a shard, of soft labels or of the pool, is missing or damaged.
        """
        return self._ahead.take(self._index(step), None if ahead is None else self._index(ahead))

    def _index(self, step: int) -> int:
        turn, place = divmod(step // self._making.steps, self._making.count)
        return int(self._order(turn, self._making.count)[place])

    def _load(self, index: int) -> Taught:
        assert self._files is not None
        steps = self._files.read(index)
        return Taught(self._images.of_rows(np.asarray(steps.rows)), parallel.everywhere(steps))

    def pictures(self, batch: Any) -> np.ndarray:
        """Returns a batch of images as pictures."""
        return self._images.pictures(batch)

    def close(self) -> None:
        """Drops pending reads."""
        self._ahead.close()
        if self._lock is not None:
            self._lock.close()
        self._images.close()
