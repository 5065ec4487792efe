"""Devices: where lanes run, how a batch is split, and the one place that compiles, donates and times.

Two axes (they exclude each other in one run): `tasks`, lanes of the meta-learning problem spread by `jax.pmap`, and
`batch`, one task split by sharding the unchanged single-device function.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fastdfkd_jax.errors import UserError

Array = jax.Array
Tree = Any
Device = Any  # a jax.Device, which is no type to a type checker


def devices(count: int) -> list[Device]:
    """The first `count` devices; UserError if there are fewer."""
    available = jax.devices()
    if count > len(available):
        raise UserError(
            f"{count} devices asked for, found {len(available)} ({available[0].platform}): lower "
            "config.parallel.task_devices and batch_devices, or on CPU set config.parallel.cpu_devices"
        )
    return available[:count]


def split_cpu(count: int) -> None:
    """Makes the CPU so many devices, or one for each core where `count` is 0.

    One device runs most of a program on one core, so a batch over several is faster. Must precede the first use of a
    device. Where the environment or the process has chosen already, 0 leaves that.
    """
    if count:
        jax.config.update("jax_num_cpu_devices", count)
    elif "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # devices are in use
            jax.config.update("jax_num_cpu_devices", _cores())


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def batch_devices(count: int, batches: Sequence[int]) -> int:
    """How many devices share every batch.

    Args:
      count: so many; 0 leaves it to the machine: on a CPU as many as get at least 32 images each, elsewhere one.
      batches: sizes that must divide.
    """
    if count:
        return count
    if jax.default_backend() != "cpu":
        return 1
    images = math.gcd(*batches)
    return max(n for n in range(1, jax.device_count() + 1) if n == 1 or images % (32 * n) == 0)


def lane_map(num_tasks: int, task_devices: Sequence[Device]) -> Callable[..., Tree]:
    """How `f(lane, shared)` is mapped over `num_tasks` lanes: `lane_map(f, stacked, shared) -> stacked results`.

    Lanes of one device run by `vmap` on accelerators. On CPU they run one after another: vmapped
    generator weights become grouped convolutions there, six times slower. Several devices take equal
    shares by `pmap`, so that 4 devices with 1 lane give what 1 device with 4 lanes gives.
    """
    count = len(task_devices)
    if num_tasks % count:
        raise UserError(f"config.fastdfkd.num_tasks={num_tasks} lanes cannot be shared equally by {count} task_devices")
    local = _sequential if task_devices[0].platform == "cpu" else _vectorised
    if count == 1:
        return local

    def spread(f: Callable[..., Tree], stacked: Tree, shared: Tree) -> Tree:
        split = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), stacked)
        run = jax.pmap(
            lambda lanes, shared: local(f, lanes, shared),
            axis_name="tasks",
            in_axes=(0, None),
            devices=list(task_devices),
        )
        return jax.tree.map(lambda x: x.reshape(num_tasks, *x.shape[2:]), run(split, shared))

    return spread


def _sequential(f: Callable[..., Tree], stacked: Tree, shared: Tree) -> Tree:
    if len(jax.tree.leaves(stacked)[0]) == 1:
        lane = f(jax.tree.map(lambda x: x[0], stacked), shared)
        return jax.tree.map(lambda x: x[None], lane)
    return jax.lax.map(lambda lane: f(lane, shared), stacked)


def _vectorised(f: Callable[..., Tree], stacked: Tree, shared: Tree) -> Tree:
    return jax.vmap(f, in_axes=(0, None))(stacked, shared)


def batch_splitter(batch_devices: Sequence[Device]) -> Callable[[Array], Array]:
    """A function that lays the leading axis of an array over devices inside a compiled program.

    Applied to latents and images; XLA propagates it, so that every mean over the batch, BatchNorm's included,
    is the mean over the global batch.
    """
    if len(batch_devices) == 1:
        return lambda x: x
    mesh = Mesh(list(batch_devices), ("batch",), axis_types=(AxisType.Auto,))

    def split(x: Array) -> Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("batch")))

    return split


def place(shape: tuple[int, ...], read: Callable[[tuple[slice, ...]], np.ndarray]) -> Array:
    """Puts what the host reads on the device; `read(slices)` gives a part of an array of this shape."""
    return jnp.asarray(read(tuple(slice(0, size) for size in shape)))


class CompiledStep:
    """A function compiled once, for the first arguments that it is called with, and timed.

    Attributes:
      jitted: the function as `jax.jit` takes it, to be traced or lowered.
      compiled: the program, once there is one.
      compile_seconds: what lowering and compiling took in the last call; 0 in all but the first.
      run_seconds: what the last call took until its results were ready.
    """

    def __init__(self, function: Callable[..., Any], donate: tuple[int, ...] = ()):
        self.jitted = jax.jit(function, donate_argnums=donate)
        self.compiled: jax.stages.Compiled | None = None
        self.compile_seconds = 0.0
        self.run_seconds = 0.0

    def compile(self, *args: Any) -> None:
        """Compiles for arguments of these shapes, without running."""
        self.compile_seconds = 0.0
        if self.compiled is None:
            start = time.perf_counter()
            self.compiled = self.jitted.lower(*args).compile()
            self.compile_seconds = time.perf_counter() - start

    def __call__(self, *args: Any) -> Any:
        """Runs the step and waits for it."""
        self.compile(*args)
        assert self.compiled is not None
        start = time.perf_counter()
        result = jax.block_until_ready(self.compiled(*args))
        self.run_seconds = time.perf_counter() - start
        return result


def copy(tree: Tree) -> Tree:
    """A tree of the same values in buffers of its own, which may be donated, and laid where the program wants them.

    By way of the host: a copy on a device would stay bound to that one, and a program that lays a batch over several
    devices refuse it.
    """
    return jax.tree.map(lambda x: jnp.array(np.asarray(x)), tree)
