"""D' on the device and on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fastdfkd_jax import pool
from fastdfkd_jax.errors import UserError

SHAPE = (4, 4, 1)


def rows(count, start=0):
    """Images that are told apart by their grey."""
    return np.broadcast_to(np.arange(start, start + count, dtype=np.uint8)[:, None, None, None], (count, *SHAPE))


def shards(directory, counts):
    made = pool.Shards(directory)
    for index, count in enumerate(counts):
        made.write(index, rows(count, 10 * index), np.arange(count, dtype=np.int32))
    return made


def test_appended_rows_stand_one_after_another():
    filled = pool.append(
        pool.append(pool.empty(6, SHAPE), jnp.array(rows(2)), jnp.arange(2)), jnp.array(rows(3, 7)), jnp.arange(3)
    )
    assert int(filled.size) == 5
    np.testing.assert_array_equal(filled.images[:, 0, 0, 0], [0, 1, 7, 8, 9, 0])
    np.testing.assert_array_equal(filled.labels, [0, 1, 0, 1, 2, -1])


def test_rows_that_are_not_kept_leave_the_pool_as_large_as_it_was():
    filled = pool.append(pool.empty(4, SHAPE), jnp.array(rows(2)), jnp.arange(2), kept=jnp.array(False))
    filled = pool.append(filled, jnp.array(rows(2, 7)), jnp.arange(2), kept=jnp.array(True))
    assert int(filled.size) == 2
    np.testing.assert_array_equal(filled.images[:2, 0, 0, 0], [7, 8])


def test_weights_lie_beside_the_images_that_they_made(tmp_path):
    weights = {"layer": {"kernel": np.arange(3.0)}}
    pool.Shards(tmp_path).write(0, rows(2), np.arange(2, dtype=np.int32), weights)
    assert len(pool.read_shard(tmp_path / "000000.npz").labels) == 2
    with np.load(tmp_path / "000000.npz") as arrays:
        np.testing.assert_array_equal(arrays["weights['layer']['kernel']"], [0, 1, 2])


def test_samples_are_uniform_over_what_is_filled_and_a_function_of_the_key():
    filled = pool.append(pool.empty(100, SHAPE), jnp.array(rows(4, 1)), jnp.arange(1, 5))
    drawn, labels = pool.sample(jax.random.key(0), filled, 4000)
    assert drawn.dtype == jnp.float32
    values, counts = np.unique(np.round(drawn[:, 0, 0, 0] * 255), return_counts=True)
    np.testing.assert_array_equal(values, [1, 2, 3, 4])
    # 1,000 each; the standard deviation is 27.
    assert np.all(np.abs(counts - 1000) < 120)
    np.testing.assert_array_equal(np.round(drawn[:, 0, 0, 0] * 255), labels)
    np.testing.assert_array_equal(drawn, pool.sample(jax.random.key(0), filled, 4000)[0])
    assert np.any(np.asarray(drawn) != pool.sample(jax.random.key(1), filled, 4000)[0])


def test_bytes_round_to_nearest_and_come_back():
    grey = jnp.array([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 1.2])
    np.testing.assert_array_equal(pool.to_uint8(grey), [0, 0, 0, 1, 255, 255])
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(pool.to_uint8(pool.to_float(every)), every)


def test_shards_come_back_in_order(tmp_path):
    read = list(shards(tmp_path, [2, 3]).read(2))
    np.testing.assert_array_equal(pool.concatenate(read).images[:, 0, 0, 0], [0, 1, 10, 11, 12])
    np.testing.assert_array_equal(pool.read_shard(tmp_path / "000001.npz").labels, [0, 1, 2])


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


def test_an_initial_pool_is_an_earlier_run_its_folder_or_pictures(tmp_path):
    shards(tmp_path / "run" / "pool", [2, 1])
    expected = [0, 1, 10]
    for place in (tmp_path / "run", tmp_path / "run" / "pool"):
        np.testing.assert_array_equal(pool.read_initial(place, SHAPE).images[:, 0, 0, 0], expected)
    for index, value in enumerate((5, 9)):
        path = tmp_path / "pictures" / str(index) / "a.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)
    np.testing.assert_array_equal(pool.read_initial(tmp_path / "pictures", SHAPE).images[:, 0, 0, 0], [5, 9])
    coloured = pool.read_initial(tmp_path / "pictures", (4, 4, 3)).images
    assert coloured.shape == (2, 4, 4, 3)


def test_initial_pools_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        pool.read_initial(tmp_path / "absent", SHAPE)
    with pytest.raises(UserError, match="holds no pool shards and no"):
        pool.read_initial(tmp_path, SHAPE)
    shards(tmp_path, [1])
    with pytest.raises(UserError, match=r"are \(4, 4, 1\), the teacher takes \(8, 8, 3\)"):
        pool.read_initial(tmp_path, (8, 8, 3))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a.png .*cannot be read"):
        pool.read_initial(tmp_path / "pictures", SHAPE)
