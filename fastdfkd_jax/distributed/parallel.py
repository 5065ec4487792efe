"""Devices: where lanes run, how a batch is split, and the one place that compiles, donates and times.

Two axes: `tasks`, lanes of the meta-learning problem spread by `jax.pmap`, and `batch`, a batch split by sharding the
unchanged single-device function. Synthesis has one of them, distillation `batch`. In a run of several processes all
their devices serve both, every array that outlives a program lies whole on each device, and what follows is the same.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fastdfkd_jax.errors import UserError
from fastdfkd_jax.options import Options, option

Array = jax.Array
Tree = Any
LaneMap = Callable[[Callable[..., Tree], Tree, Tree], Tree]  # f, stacked lanes, what they share
Device = Any  # a jax.Device, which is no type to a type checker
_AUTO = AxisType.Auto


@dataclass(frozen=True)
class ParallelOptions(Options, section="parallel"):
    """The devices and processes that share a run."""

    task_devices: int = option(1, "devices that share the lanes (pmap)", at_least=1)
    batch_devices: int = option(
        0,
        "devices that share each batch (sharding), or only the KD batches when lanes are shared; 0 takes all "
        "cores of a CPU, the task_devices or all devices of several processes, otherwise 1",
        at_least=0,
    )
    cpu_devices: int = option(0, "number of devices that the CPU is split into; 0 for one per core", at_least=0)
    hosts: str = option(
        "one",
        "how processes find each other: 'one' process only, 'cluster' if JAX detects it, or HOST:PORT of process "
        "0 (docs/scale.md)",
    )
    processes: int = option(0, "number of processes when hosts is HOST:PORT")
    process: int = option(0, "number of this process, from 0, when hosts is HOST:PORT")
    lost_after: float = option(100.0, "seconds without a sign of life after which another process counts as lost")

    def __post_init__(self):
        super().__post_init__()
        if self.hosts in ("one", "cluster"):
            expected = f"0 where hosts={self.hosts!r}"
            self.require("processes", self.processes == 0, expected)
            self.require("process", self.process == 0, expected)
        else:
            address, _, port = self.hosts.rpartition(":")
            self.require("hosts", bool(address) and port.isdigit(), "'one', 'cluster' or HOST:PORT")
            self.require("processes", self.processes >= 1, "at least 1 where hosts is HOST:PORT")
            expected = f"from 0 to {self.processes - 1}, as processes={self.processes}"
            self.require("process", 0 <= self.process < self.processes, expected)
        self.require("lost_after", self.lost_after >= 5, "at least 5 s")


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


def batch_devices(count: int, batches: Sequence[int], task_devices: int = 1) -> int:
    """How many devices share every batch.

    Args:
      count: so many; 0 leaves it to the machine: on a CPU as many as get at least 32 images each, elsewhere one. Where
        lanes lie on several devices, those or one; of several processes, all devices or, where they do not divide the
        batches, one.
      batches: sizes that must divide.
      task_devices: devices that share the lanes.
    """
    if count:
        return count
    images, on_cpu = math.gcd(*batches), jax.default_backend() == "cpu"
    if jax.process_count() > 1:
        return jax.device_count() if images % jax.device_count() == 0 else 1
    if task_devices > 1:
        return task_devices if images % (task_devices * (32 if on_cpu else 1)) == 0 else 1
    if not on_cpu:
        return 1
    return max(n for n in range(1, jax.device_count() + 1) if n == 1 or images % (32 * n) == 0)


def lane_map(num_tasks: int, task_devices: Sequence[Device]) -> LaneMap:
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
    if jax.process_count() > 1:
        return functools.partial(_by_shard_map, local, task_devices)
    return functools.partial(_by_pmap, local, task_devices)


def _by_pmap(local: LaneMap, devices: Sequence[Device], f: Callable[..., Tree], stacked: Tree, shared: Tree) -> Tree:
    count = len(devices)
    split = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), stacked)
    run = jax.pmap(
        lambda lanes, shared: local(f, lanes, shared), axis_name="tasks", in_axes=(0, None), devices=list(devices)
    )
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), run(split, shared))


def _by_shard_map(
    local: LaneMap, devices: Sequence[Device], f: Callable[..., Tree], stacked: Tree, shared: Tree
) -> Tree:
    """Gives the same bits as `_by_pmap`, and works across processes, where `jax.pmap` sees only its own lanes."""
    return jax.shard_map(
        lambda lanes, shared: local(f, lanes, shared),
        mesh=Mesh(list(devices), ("tasks",), axis_types=(_AUTO,)),
        in_specs=(PartitionSpec("tasks"), PartitionSpec()),
        out_specs=PartitionSpec("tasks"),
        check_vma=False,  # otherwise JAX would sum the gradients of shared inputs, which belong to each lane alone
    )(stacked, shared)


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
    mesh = Mesh(list(batch_devices), ("batch",), axis_types=(_AUTO,))

    def split(x: Array) -> Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("batch")))

    return split


Place = Callable[[tuple[int, ...], Callable[[tuple[slice, ...]], np.ndarray]], Array]


def placer(batch_devices: Sequence[Device]) -> Place:
    """How batches that the host reads come to the devices: `place(shape [steps, B, ...], read) -> array`.

    `read(slices)` gives a part of an array of that shape. Each device gets its share of every batch, and a process
    reads what its own devices get.
    """
    if len(batch_devices) > 1:
        sharding = NamedSharding(
            Mesh(list(batch_devices), ("batch",), axis_types=(_AUTO,)), PartitionSpec(None, "batch")
        )
    elif jax.process_count() > 1:
        sharding = _whole()
    else:
        return lambda shape, read: jnp.asarray(read(tuple(slice(0, size) for size in shape)))
    return lambda shape, read: jax.make_array_from_callback(shape, sharding, lambda part: read(part or ()))


def jit(function: Callable[..., Any], donate: tuple[int, ...] = ()) -> Any:
    """`jax.jit`; in a run of several processes each gets the whole of every result, as the host reads it."""
    if jax.process_count() == 1:
        return jax.jit(function, donate_argnums=donate)
    return jax.jit(function, donate_argnums=donate, out_shardings=_whole())


def _whole() -> NamedSharding:
    return NamedSharding(Mesh(jax.devices(), ("all",), axis_types=(_AUTO,)), PartitionSpec())


def everywhere(tree: Tree) -> Tree:
    """In a run of several processes, arrays that are equal in all of them become one on all devices."""
    if jax.process_count() == 1:
        return tree
    sharding = _whole()

    def place(x: np.ndarray) -> Array:
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(lambda x: place(np.asarray(x)), tree)


def from_first(tree: Tree) -> Tree:
    """The same with those of process 0: what processors of two kinds compute is equal to rounding only."""
    return tree if jax.process_count() == 1 else everywhere(multihost_utils.broadcast_one_to_all(tree))


class CompiledStep:
    """A function compiled once, for the first arguments that it is called with, and timed.

    Attributes:
      jitted: the function as `jax.jit` takes it, to be traced or lowered.
      compiled: the program, once there is one.
      compile_seconds: what lowering and compiling took in the last call; 0 in all but the first.
      run_seconds: what the last call took until its results were ready.
    """

    def __init__(self, function: Callable[..., Any], donate: tuple[int, ...] = ()):
        self.jitted = jit(function, donate)
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
    if jax.process_count() > 1:
        return everywhere(tree)
    return jax.tree.map(lambda x: jnp.array(np.asarray(x)), tree)
