"""D' on the device and on disk."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdfkd_jax.pool import drawing, on_device
from fastdfkd_jax.pool.feed import digest_of

SHAPE = (4, 4, 1)


def rows(count, start=0):
    """Images that are told apart by their grey."""
    return np.broadcast_to(np.arange(start, start + count, dtype=np.uint8)[:, None, None, None], (count, *SHAPE))


def test_appended_rows_stand_one_after_another():
    filled = on_device.append(
        on_device.append(on_device.empty(6, SHAPE), jnp.array(rows(2)), jnp.arange(2)),
        jnp.array(rows(3, 7)),
        jnp.arange(3),
    )
    assert int(filled.size) == 5
    np.testing.assert_array_equal(filled.images[:, 0, 0, 0], [0, 1, 7, 8, 9, 0])
    np.testing.assert_array_equal(filled.labels, [0, 1, 0, 1, 2, -1])


def test_rows_that_are_not_kept_leave_the_pool_as_large_as_it_was():
    filled = on_device.append(on_device.empty(4, SHAPE), jnp.array(rows(2)), jnp.arange(2), kept=jnp.array(False))
    filled = on_device.append(filled, jnp.array(rows(2, 7)), jnp.arange(2), kept=jnp.array(True))
    assert int(filled.size) == 2
    np.testing.assert_array_equal(filled.images[:2, 0, 0, 0], [7, 8])


def test_samples_are_uniform_over_what_is_filled_and_a_function_of_the_key():
    filled = on_device.append(on_device.empty(100, SHAPE), jnp.array(rows(4, 1)), jnp.arange(1, 5))
    taken = drawing.draw(jax.random.key(0), filled.size, 4000)
    drawn, labels = on_device.to_float(filled.images[taken]), filled.labels[taken]
    assert drawn.dtype == jnp.float32
    values, counts = np.unique(np.round(drawn[:, 0, 0, 0] * 255), return_counts=True)
    np.testing.assert_array_equal(values, [1, 2, 3, 4])
    # 1,000 each; the standard deviation is 27.
    assert np.all(np.abs(counts - 1000) < 120)
    np.testing.assert_array_equal(np.round(drawn[:, 0, 0, 0] * 255), labels)
    np.testing.assert_array_equal(taken, drawing.draw(jax.random.key(0), filled.size, 4000))
    assert np.any(np.asarray(taken) != drawing.draw(jax.random.key(1), filled.size, 4000))


def passes(seed, size, batch, count):
    """The first `count` batches of passes over `size` rows, one after another."""
    draw = jax.vmap(lambda turn: drawing.draw_in_passes(jax.random.key(seed), turn, jnp.int32(size), batch))
    return np.asarray(draw(jnp.arange(count))).reshape(-1)


# One row, powers of four and what is beside them, and batches that are longer than a pass or do not divide it.
@pytest.mark.parametrize(("size", "batch"), [(1, 3), (2, 1), (4, 4), (5, 3), (16, 8), (17, 8), (100, 32), (3, 8)])
def test_a_pass_has_each_row_once_and_the_next_another_order(size, batch):
    count = 3 * size // batch + 1
    order = passes(0, size, batch, count)
    for begin in range(0, 3 * size - size + 1, size):
        np.testing.assert_array_equal(np.sort(order[begin : begin + size]), np.arange(size))
    if size >= 16:
        assert np.any(order[:size] != order[size : 2 * size])
        assert np.any(order[:size] != passes(1, size, batch, count)[:size])


def test_a_passes_order_is_as_likely_as_any_other():
    """Places of rows, and pairs of neighbours, over many keys: their counts have the deviation of chance."""
    size, keys = 6, 6000
    draw = jax.vmap(lambda key: drawing.draw_in_passes(key, jnp.int32(0), jnp.int32(size), size))
    orders = np.asarray(draw(jax.random.split(jax.random.key(3), keys)))
    places = np.stack([np.bincount(orders[:, i], minlength=size) for i in range(size)])
    # 1,000 each with a deviation of 29; 36 counts.
    assert np.abs(places - keys / size).max() < 130
    pairs = np.bincount(orders[:, 0] * size + orders[:, 1], minlength=size * size).reshape(size, size)
    assert np.all(np.diag(pairs) == 0)
    # 200 each with a deviation of 14; 30 counts.
    assert np.abs(pairs[~np.eye(size, dtype=bool)] - keys / 30).max() < 65


def test_bytes_round_to_nearest_and_come_back():
    grey = jnp.array([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 1.2])
    np.testing.assert_array_equal(on_device.to_uint8(grey), [0, 0, 0, 1, 255, 255])
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(on_device.to_uint8(on_device.to_float(every)), every)


def test_a_digest_is_of_all_images_in_their_order():
    """More images than are hashed at a time."""
    images = np.random.default_rng(0).integers(0, 256, (600, 2, 2, 1), np.uint8)
    whole = hashlib.sha256(images.tobytes()).hexdigest()
    assert digest_of(600, lambda start, stop: images[start:stop]) == whole
