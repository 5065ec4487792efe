"""Batches of a pool on disk: the right images, read ahead, whatever is in a shard beside them."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.errors import UserError
from fastdfkd_jax.methods.base import Batch
from fastdfkd_jax.pool.on_disk import DiskFeed
from fastdfkd_jax.pool.shards import Shards, locate_one

SHAPE = (4, 6, 3)
COUNTS = (5, 1, 7)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (sum(COUNTS), *SHAPE), np.uint8)


@pytest.fixture
def written(images, tmp_path):
    """Three shards, the second with weights beside its image."""
    shards = Shards(tmp_path)
    starts = np.cumsum([0, *COUNTS])
    for index, count in enumerate(COUNTS):
        rows = slice(starts[index], starts[index] + count)
        weights = {"kernel": np.arange(300.0)} if index == 1 else ()
        shards.write(index, images[rows], np.arange(count, dtype=np.int32) + 10 * index, weights)
    return shards


def store_of(shards, draw=None):
    draw = draw or (lambda step, size: np.arange(step, step + 6).reshape(2, 3) % size)
    place = parallel.placer(parallel.devices(1))
    made = DiskFeed(shards, None, shards.directory / "initial", SHAPE, True, draw, place)
    made.restore(len(COUNTS), None)
    return made


def test_rows_of_all_shards_are_found(images, written):
    store = store_of(written)
    assert len(store) == len(images)
    rows = np.random.default_rng(1).integers(0, len(images), (20, 10))
    np.testing.assert_array_equal(store.of_rows(rows).images, images[rows])
    store.close()


def test_batches_are_what_was_drawn_with_their_labels(images, written):
    store = store_of(written)
    labels = np.concatenate([np.arange(count) + 10 * index for index, count in enumerate(COUNTS)])
    for step in (0, 4, 11):
        rows = np.arange(step, step + 6).reshape(2, 3) % len(images)
        batches = store.take(step, step + 4)
        assert isinstance(batches.images, jax.Array)
        np.testing.assert_array_equal(batches.images, images[rows])
        np.testing.assert_array_equal(batches.labels, labels[rows])
    store.close()


def test_what_was_read_ahead_is_used_once_and_only_for_what_it_is(images, written):
    drawn = []

    def draw(step, size):
        drawn.append((step, size))
        return np.full((1, 2), step % size)

    store = store_of(written, draw)
    store.take(0, 1)
    store.take(1, 2)
    np.testing.assert_array_equal(store.take(5, None).images[0, 0], images[5])
    assert sorted(drawn) == [(0, 13), (1, 13), (2, 13), (5, 13)]
    store.take(6, 7)
    assert store.add(Batch(images[:2], np.zeros(2, np.int32)))
    assert not store.add(Batch(images[:2], np.zeros(2, np.int32), kept=False))
    store.take(7, None)
    assert drawn[-1] == (7, 15), "the rows of a pool that has grown are others"
    store.close()


def test_a_shard_that_is_spoiled_while_the_student_learns_is_named(written):
    store = store_of(written)
    path = written.path(2)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"000002.npz has been cut off"):
        store.of_rows(np.array([[12]]))
    path.unlink()
    with pytest.raises(UserError, match=r"000002.npz cannot be read"):
        store.take(7, None)
    store.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": np.zeros((2, *SHAPE), np.float32), "labels": np.zeros(2, np.int32)}, "images are float32"),
        (
            {"images": np.zeros((2, *SHAPE), np.uint8), "labels": np.zeros(3, np.int32)},
            r"labels are int32\[3\], not int32\[2\]",
        ),
        ({"images": np.zeros((2, *SHAPE), np.uint8)}, "labels"),
    ],
)
def test_a_file_that_is_no_shard_is_refused(content, message, tmp_path):
    np.savez(tmp_path / "000000.npz", **content)
    with pytest.raises(UserError, match=rf"000000.npz is damaged .*{message}"):
        locate_one(tmp_path / "000000.npz")


def test_a_compressed_file_is_refused(tmp_path, images):
    np.savez_compressed(tmp_path / "000000.npz", images=images, labels=np.zeros(len(images), np.int32))
    with pytest.raises(UserError, match="it is compressed"):
        locate_one(tmp_path / "000000.npz")


_FLAT = """
import resource, sys
from pathlib import Path
import numpy as np
from fastdfkd_jax.methods.base import Batch
from fastdfkd_jax.pool.shards import Shards
from fastdfkd_jax.pool.on_disk import DiskFeed

shards = Shards(Path(sys.argv[1]))
draws = np.random.default_rng(0)
whole = lambda shape, read: read((slice(None),) * len(shape))
draw = lambda step, size: draws.integers(0, size, (4, 25))
store = DiskFeed(shards, None, Path(sys.argv[1]) / "initial", (128, 128, 3), True, draw, whole)
peaks = []
for index in range(40):
    store.add(Batch(np.full((50, 128, 128, 3), index, np.uint8), np.full(50, index, np.int32)))
    batches = store.take(index, index + 1)
    assert (batches.images[:, :, 0, 0, 0] == batches.labels).all()
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[9], peaks[-1])
"""


def test_memory_does_not_grow_with_the_pool(tmp_path):
    """98 MB of images in 40 shards; from the tenth on the process needs no more memory."""
    out = subprocess.run([sys.executable, "-c", _FLAT, str(tmp_path)], capture_output=True, text=True, check=True)
    early, late = map(int, out.stdout.split())
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    assert (late - early) * unit < 12e6, (early, late)
