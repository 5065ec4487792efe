"""How lanes and batches lie on devices changes no result, and a program is compiled once and takes its state over."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.errors import UserError

# Sums over a batch or over lanes are taken in another order and programs are fused differently, which in float32 is
# 1e-7 a sum; two calls of two inner steps, and KD steps with momentum, carry it on.
RTOL, ATOL = 1e-4, 1e-5


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """{layout: {name: array}}, computed by a process with four CPU devices, once for all workers of pytest-xdist."""
    own = tmp_path_factory.getbasetemp()
    path = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "layouts.npz"
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            line = [sys.executable, Path(__file__).with_name("layouts.py"), path]
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
    found = {}
    with np.load(path) as arrays:
        for name in arrays:
            layout, leaf = name.split("|")
            found.setdefault(layout, {})[leaf] = arrays[name]
    return found


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if name == "['devices']":
            continue
        if "rows" in name:
            # Pixels are rounded to uint8: one level where a value lies on the border of two.
            np.testing.assert_allclose(value.astype(int), other[name].astype(int), atol=1, err_msg=name)
        elif np.issubdtype(value.dtype, np.integer):
            np.testing.assert_array_equal(value, other[name], err_msg=name)
        else:
            np.testing.assert_allclose(value, other[name], rtol=RTOL, atol=ATOL, err_msg=name)


@pytest.mark.parametrize("layout", ["4 devices, 1 lane", "2 devices, 2 lanes"])
def test_lanes_on_several_devices_equal_lanes_on_one(layouts, layout):
    one = layouts["1 device, 4 lanes"]
    assert_same(one, layouts[layout])
    assert one["['call 0']['rows']"].shape[0] == 4 * 8
    assert one["['call 1']['state']['method'].call"] == 2


def test_shard_map_gives_the_bits_of_pmap(layouts):
    pmap, shard_map = layouts["2 devices, 2 lanes"], layouts["2 devices, 2 lanes, shard_map"]
    assert pmap.keys() == shard_map.keys()
    for name, value in pmap.items():
        np.testing.assert_array_equal(value, shard_map[name], err_msg=name)


def test_a_batch_on_four_devices_equals_a_batch_on_one(layouts):
    """Synthesis, accumulators and the student with its running statistics; shares of two images would differ in all."""
    names = layouts["1 device"].keys()
    for part in (".accumulators.moments", ".generator", ".params", ".batch_stats['bn']['var']"):
        assert any(part in name for name in names), part
    assert_same(layouts["1 device"], layouts["4 devices"])


def test_the_statistics_are_not_the_mean_of_those_of_the_shares(layouts):
    """Accumulated variance is that of eight images together; that of two at a time would be about half of it."""
    rows = layouts["4 devices"]["['call 0']['rows']"].reshape(8, -1) / 255
    assert rows.reshape(4, 2, -1).var(1).mean() < 0.8 * rows.var(0).mean()


def test_convolutions_in_chunks_never_gather_a_batch_that_lies_on_several_devices(layouts):
    """Every chunk would wait for the other devices then, and the results be the same."""
    one, four = layouts["convolutions on 1"], layouts["convolutions on 4"]
    gathered = [name for name in four if "all-gathers" in name]
    assert len(gathered) == 5
    for name, value in four.items():
        if name in gathered:
            assert value == 0, name
        else:
            np.testing.assert_allclose(value, one[name], rtol=RTOL, atol=ATOL * np.abs(value).max(), err_msg=name)


def test_programs_really_run_on_several_devices(layouts):
    counts = {layout: int(found["['devices']"]) for layout, found in layouts.items() if "['devices']" in found}
    assert counts["1 device"] == counts["1 device, 4 lanes"] == 1
    assert counts["4 devices"] == counts["4 devices, 1 lane"] == 4


def test_more_devices_than_there_are_is_a_user_error():
    found = len(jax.devices())
    with pytest.raises(UserError, match=f"64 devices asked for, found {found} ") as caught:
        parallel.devices(64)
    for key in ("config.parallel.task_devices", "batch_devices", "config.parallel.cpu_devices"):
        assert key in str(caught.value)
    assert parallel.devices(1) == jax.devices()[:1]


@pytest.mark.parametrize(
    ("asked", "batches", "backend", "lanes", "processes", "expected"),
    [
        (0, (256, 256), "cpu", 1, 1, 4),
        (0, (64, 128), "cpu", 1, 1, 2),
        (0, (96, 96), "cpu", 1, 1, 3),
        (0, (8, 8), "cpu", 1, 1, 1),
        (0, (256, 256), "gpu", 1, 1, 1),
        (8, (8, 8), "cpu", 1, 1, 8),
        (0, (256,), "gpu", 2, 1, 2),
        (0, (7,), "gpu", 2, 1, 1),
        (0, (64,), "cpu", 2, 1, 2),
        (0, (32,), "cpu", 2, 1, 1),
        (0, (8, 8), "cpu", 1, 2, 4),
        (0, (8,), "gpu", 4, 2, 4),
        (0, (6, 8), "cpu", 1, 2, 1),
    ],
)
def test_a_cpus_devices_share_a_batch_while_each_gets_enough_of_it(
    monkeypatch, asked, batches, backend, lanes, processes, expected
):
    """Elsewhere one has it, or those of the lanes; several processes give it to all their devices."""
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert parallel.batch_devices(asked, batches, lanes) == expected


def test_lanes_that_cannot_be_shared_equally_are_refused():
    with pytest.raises(UserError, match=r"num_tasks=3 lanes cannot be shared by 2 task_devices: give a multiple"):
        parallel.lane_map(3, jax.devices()[:1] * 2)


@pytest.mark.parametrize("lanes", [1, 3])
def test_lanes_of_one_device_get_their_share_and_what_is_shared(lanes):
    mapped = parallel.lane_map(lanes, jax.devices()[:1])
    stacked = {"x": jnp.arange(2.0 * lanes).reshape(lanes, 2)}
    found = mapped(lambda lane, shared: {"y": lane["x"].sum() * shared}, stacked, jnp.float32(10))
    np.testing.assert_array_equal(found["y"], [10, 50, 90][:lanes])


def test_a_step_compiles_once_and_times_itself():
    traced = []

    def double(x):
        traced.append(x.shape)
        return 2 * x

    step = parallel.CompiledStep(double)
    assert step(jnp.ones(3)).tolist() == [2, 2, 2]
    assert step.compile_seconds > 0
    assert step.run_seconds > 0
    assert step(jnp.full(3, 4.0)).tolist() == [8, 8, 8]
    assert step.compile_seconds == 0
    assert traced == [(3,)]


def test_a_step_takes_over_what_is_donated_and_leaves_a_copy_alone():
    state, kept = jnp.ones(4), jnp.ones(4)
    copied = parallel.copy({"x": state})["x"]
    step = parallel.CompiledStep(lambda state, kept: state + kept, donate=(0,))
    assert step(state, kept).tolist() == [2, 2, 2, 2]
    assert state.is_deleted()
    assert not kept.is_deleted()
    assert copied.tolist() == [1, 1, 1, 1]
