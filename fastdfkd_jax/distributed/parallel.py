"""Runs programs on devices: places lanes, splits batches, and compiles, donates and times in one place.

There are two axes: `tasks`, the lanes of the meta-learning problem, which `jax.pmap` spreads over devices; and `batch`,
which shards the unchanged single-device function. Synthesis uses one of them, distillation `batch`. In a run of several
processes, both use all devices of all processes. Every array that outlives a program is then replicated on each device,
and the rest is the same.
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
LaneMap = Callable[[Callable[..., Tree], Tree, Tree], Tree]  # f, stacked lanes, shared arguments
Device = Any  # a jax.Device, which type checkers do not accept as a type
_AUTO = AxisType.Auto


@dataclass(frozen=True)
class ParallelOptions(Options, section="parallel"):
    """Options of the devices and processes that share a run."""

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
        "discovery of other processes: 'one' for a single process, 'cluster' if JAX finds them, or HOST:PORT of "
        "process 0 (docs/scale.md)",
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
    """Returns the first `count` devices; UserError if there are fewer."""
    available = jax.devices()
    if count > len(available):
        raise UserError(
            f"{count} devices asked for, found {len(available)} ({available[0].platform}): lower "
            "config.parallel.task_devices and batch_devices, or on CPU set config.parallel.cpu_devices"
        )
    return available[:count]


def split_cpu(count: int) -> None:
    """Splits the CPU into `count` devices, or one per core if `count` is 0.

    One device runs most of a program on one core, so a batch is faster on several. This must precede the first use of a
    device. 0 changes nothing if the environment or the process has already chosen.
    """
    if count:
        jax.config.update("jax_num_cpu_devices", count)
    elif "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # devices are in use
            jax.config.update("jax_num_cpu_devices", _cores())


def _cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def batch_devices(count: int, batches: Sequence[int], task_devices: int = 1) -> int:
    """Returns the number of devices that share every batch.

    Args:
      count: the number itself, or 0 to choose one. On a CPU, 0 takes as many devices as get at least 32 images each;
        elsewhere it takes one. If lanes are on several devices, it takes those or one. With several processes, it takes
        all devices or, if they do not divide the batches, one.
      batches: batch sizes that it must divide.
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
    """Returns `lane_map(f, stacked, shared) -> stacked results`, which maps `f(lane, shared)` over `num_tasks` lanes.

    Lanes on one device run by `vmap` on accelerators. On CPUs they run one after another, because vmapped generator
    weights become grouped convolutions there, which are six times slower. Several devices take equal shares by `pmap`,
    so that 4 devices with 1 lane give the same as 1 device with 4 lanes.
    """
    count = len(task_devices)
    if num_tasks % count:
        raise UserError(
            f"config.fastdfkd.num_tasks={num_tasks} lanes cannot be shared by {count} task_devices: give a multiple"
        )
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
    """Is bit-identical to `_by_pmap` but works across processes, where `jax.pmap` sees only its own lanes."""
    return jax.shard_map(
        lambda lanes, shared: local(f, lanes, shared),
        mesh=Mesh(list(devices), ("tasks",), axis_types=(_AUTO,)),
        in_specs=(PartitionSpec("tasks"), PartitionSpec()),
        out_specs=PartitionSpec("tasks"),
        check_vma=False,  # otherwise JAX would sum the gradients of shared inputs, which belong to each lane separately
    )(stacked, shared)


def _sequential(f: Callable[..., Tree], stacked: Tree, shared: Tree) -> Tree:
    if len(jax.tree.leaves(stacked)[0]) == 1:
        lane = f(jax.tree.map(lambda x: x[0], stacked), shared)
        return jax.tree.map(lambda x: x[None], lane)
    return jax.lax.map(lambda lane: f(lane, shared), stacked)


def _vectorised(f: Callable[..., Tree], stacked: Tree, shared: Tree) -> Tree:
    return jax.vmap(f, in_axes=(0, None))(stacked, shared)


def batch_splitter(batch_devices: Sequence[Device]) -> Callable[[Array], Array]:
    """Returns a function that lays an array's leading axis over devices inside a compiled program.

    It is applied to latents and images. XLA propagates the layout, so that every mean over the batch, including
    BatchNorm's, is the mean over the global batch.
    """
    if len(batch_devices) == 1:
        return lambda x: x
    mesh = Mesh(list(batch_devices), ("batch",), axis_types=(_AUTO,))

    def split(x: Array) -> Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec("batch")))

    return split


Place = Callable[[tuple[int, ...], Callable[[tuple[slice, ...]], np.ndarray]], Array]


def placer(batch_devices: Sequence[Device]) -> Place:
    """Returns `place(shape [steps, B, ...], read) -> array`, which moves batches read by the host to the devices.

    `read(slices)` returns a part of an array of that shape. Each device gets its share of every batch, and a process
    reads only the parts of its own devices.
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
    """Wraps `jax.jit`; with several processes, each gets the whole of every result, because the host reads it."""
    if jax.process_count() == 1:
        return jax.jit(function, donate_argnums=donate)
    return jax.jit(function, donate_argnums=donate, out_shardings=_whole())


def _whole() -> NamedSharding:
    return NamedSharding(Mesh(jax.devices(), ("all",), axis_types=(_AUTO,)), PartitionSpec())


def everywhere(tree: Tree) -> Tree:
    """Replicates arrays, equal in all processes, on all devices; with one process, returns them unchanged."""
    if jax.process_count() == 1:
        return tree
    sharding = _whole()

    def place(x: np.ndarray) -> Array:
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(lambda x: place(np.asarray(x)), tree)


def from_first(tree: Tree) -> Tree:
    """Broadcasts process 0's arrays, since different CPU types round initial values differently."""
    return tree if jax.process_count() == 1 else everywhere(multihost_utils.broadcast_one_to_all(tree))


class CompiledStep:
    """A function that is compiled once, for the first arguments that it is called with, and timed.

    Args:
      function: the function.
      donate: numbers of the arguments whose buffers the program may reuse.
      watch: makes a context that is open while the function is compiled.

    Attributes:
      jitted: the function as `jax.jit` returns it, to be traced or lowered.
      compiled: the program, once it is compiled.
      compile_seconds: seconds of lowering and compiling in the last call; 0 in all but the first.
      run_seconds: seconds of the last call until its results were ready.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        donate: tuple[int, ...] = (),
        watch: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ):
        self.jitted, self._watch = jit(function, donate), watch
        self.compiled: jax.stages.Compiled | None = None
        self.compile_seconds = 0.0
        self.run_seconds = 0.0

    def compile(self, *args: Any) -> None:
        """Compiles for arguments of these shapes, without running."""
        self.compile_seconds = 0.0
        if self.compiled is None:
            start = time.perf_counter()
            with self._watch():
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
    """Copies a tree into separate buffers, which may be donated and laid out as the program needs.

    The copy goes through the host. A copy on a device would stay bound to it, and a program that shards a batch over
    several devices would refuse it.
    """
    if jax.process_count() > 1:
        return everywhere(tree)
    return jax.tree.map(lambda x: jnp.array(np.asarray(x)), tree)
