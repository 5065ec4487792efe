"""D' on the device and on disk."""

import jax
import jax.numpy as jnp
import numpy as np

from fastdfkd_jax import pool

SHAPE = (4, 4, 1)


def rows(count, start=0):
    """Images that are told apart by their grey."""
    return np.broadcast_to(np.arange(start, start + count, dtype=np.uint8)[:, None, None, None], (count, *SHAPE))


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
