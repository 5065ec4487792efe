"""D' on disk, and what a run begins with."""

import numpy as np
import pytest
from PIL import Image
from test_pool import SHAPE, rows

from fastdfkd_jax.errors import UserError
from fastdfkd_jax.pool import initial_images
from fastdfkd_jax.pool.shards import Shards, concatenate, read_shard


def shards(directory, counts):
    made = Shards(directory)
    for index, count in enumerate(counts):
        made.write(index, rows(count, 10 * index), np.arange(count, dtype=np.int32))
    return made


def test_weights_lie_beside_the_images_that_they_made(tmp_path):
    weights = {"layer": {"kernel": np.arange(3.0)}}
    Shards(tmp_path).write(0, rows(2), np.arange(2, dtype=np.int32), weights)
    assert len(read_shard(tmp_path / "000000.npz").labels) == 2
    with np.load(tmp_path / "000000.npz") as arrays:
        np.testing.assert_array_equal(arrays["weights['layer']['kernel']"], [0, 1, 2])


def test_shards_come_back_in_order(tmp_path):
    read = list(shards(tmp_path, [2, 3]).read(2))
    np.testing.assert_array_equal(concatenate(read).images[:, 0, 0, 0], [0, 1, 10, 11, 12])
    np.testing.assert_array_equal(read_shard(tmp_path / "000001.npz").labels, [0, 1, 2])


def test_truncation_drops_what_came_after_and_what_is_half_written(tmp_path):
    made = shards(tmp_path, [1, 1, 1])
    (tmp_path / ".000003.npz.partial").write_bytes(b"half")
    made.truncate(1)
    assert [path.name for path in tmp_path.iterdir()] == ["000000.npz"]


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "is damaged"),
        (damage, "is damaged"),
    ],
)
def test_a_spoiled_shard_is_named(tmp_path, spoil, message):
    made = shards(tmp_path, [40, 40])
    spoil(tmp_path / "000001.npz")
    with pytest.raises(UserError, match=rf"000001.npz {message}"):
        list(made.read(2))
    with pytest.raises(UserError, match=rf"000001.npz {message}"):
        made.locate(2)


def test_an_initial_pool_is_an_earlier_run_its_folder_or_pictures(tmp_path):
    shards(tmp_path / "run" / "pool", [2, 1])
    expected = [0, 1, 10]
    for place in (tmp_path / "run", tmp_path / "run" / "pool"):
        np.testing.assert_array_equal(initial_images.read(place, SHAPE).images[:, 0, 0, 0], expected)
    for index, value in enumerate((5, 9)):
        path = tmp_path / "pictures" / str(index) / "a.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)
    np.testing.assert_array_equal(initial_images.read(tmp_path / "pictures", SHAPE).images[:, 0, 0, 0], [5, 9])
    coloured = initial_images.read(tmp_path / "pictures", (4, 4, 3)).images
    assert coloured.shape == (2, 4, 4, 3)


def test_initial_pools_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        initial_images.read(tmp_path / "absent", SHAPE)
    with pytest.raises(UserError, match="holds no pool shards and no"):
        initial_images.read(tmp_path, SHAPE)
    shards(tmp_path, [1])
    with pytest.raises(UserError, match=r"are \(4, 4, 1\), the teacher takes \(8, 8, 3\)"):
        initial_images.read(tmp_path, (8, 8, 3))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a.png .*cannot be read"):
        initial_images.read(tmp_path / "pictures", SHAPE)
