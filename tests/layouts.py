"""Runs two synthesis calls in several layouts of four CPU devices, with KD steps where a batch is split; saves all.

A separate program, because devices are fixed at their first use: `python tests/layouts.py OUT.npz`.
"""

import functools
import sys
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from runs import options_of, tiny_config
from toy_network import toy_parts

from fastdfkd_jax.cpu_conv import square, winograd
from fastdfkd_jax.cpu_conv.general import general_conv
from fastdfkd_jax.cpu_conv.square import doubled_conv, square_conv
from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.pool import on_device
from fastdfkd_jax.training.programs import Programs, initial_state

LAYOUTS = {
    "1 device, 4 lanes": {"fastdfkd__num_tasks": 4},
    "2 devices, 2 lanes": {"fastdfkd__num_tasks": 4, "parallel__task_devices": 2},
    "2 devices, 2 lanes, shard_map": {"fastdfkd__num_tasks": 4, "parallel__task_devices": 2},
    "4 devices, 1 lane": {"fastdfkd__num_tasks": 4, "parallel__task_devices": 4},
    "1 device": {"kd__cutmix": 1.0},
    "4 devices": {"kd__cutmix": 1.0, "parallel__batch_devices": 4},
}


def results(changes: dict[str, float]) -> dict[str, Any]:
    """Everything that the two compiled programs of a run return in one layout."""
    config: Any = tiny_config(data__source="", **changes)
    # SGD in place of Adam, which would divide rounding errors by gradients as small as they.
    config.inner.optimizer, config.inner.latents_lr, config.inner.generator_lr = "sgd", 0.1, 0.1
    config.meta.optimizer, config.meta.kwargs = "sgd", {}
    parts = toy_parts(config)
    programs, state = Programs(parts, options_of(config)), initial_state(jax.random.key(1), parts)
    found, devices = {}, 0
    images = 2 * config.synthesis_batch * config.fastdfkd.num_tasks
    filled = on_device.empty(images, parts.teacher.spec.input_shape)
    for call in range(2):
        # As a resumed run begins: with arrays that a checkpoint's reader has bound to one device.
        state = parallel.copy(jax.device_put(jax.tree.map(np.asarray, state), jax.devices()[0]))
        state["method"], filled, batch, info = programs.synthesize(
            state["method"],
            filled,
            parts.teacher_vars,
            state["student"].variables,
            jax.random.key(2),
            np.int32(call),
        )
        devices = len(batch.images.sharding.device_set)
        returned = {"rows": batch.images, "labels": batch.labels, "info": info}
        if config.fastdfkd.num_tasks == 1:  # lanes have no part in KD
            state["student"], _, returned["kd"] = programs.distill(
                state["student"], parts.teacher_vars, filled, jax.random.key(3)
            )
        found[f"call {call}"] = jax.tree.map(np.array, {**returned, "state": state})
    return {**found, "devices": np.array(devices)}


def convolutions(devices: int) -> dict[str, Any]:
    """Values and gradients of convolutions in chunks, the batch on so many devices, and how often it is gathered."""
    mesh = jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    x = jax.random.normal(jax.random.key(0), (8, 8, 8, 16))
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    found: dict[str, Any] = {}
    plain, strided = (functools.partial(square_conv, stride=stride, padding=1) for stride in (1, 2))
    edges = ((1, 1), (1, 1))
    depthwise, grouped = (
        functools.partial(general_conv, stride=(1, 1), edges=edges, groups=groups) for groups in (16, 4)
    )
    cases = {
        "plain": (plain, 16), "strided": (strided, 16), "doubled": (doubled_conv, 16),
        "depthwise": (depthwise, 1), "grouped": (grouped, 4),
    }  # fmt: skip
    for name, (conv, inputs) in cases.items():
        kernel = jax.random.normal(jax.random.key(1), (3, 3, inputs, 16))
        kernel = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))
        step = jax.jit(jax.value_and_grad(lambda x, k, conv=conv: jax.numpy.sin(conv(x, k)).sum(), argnums=(0, 1)))
        text = str(step.lower(x, kernel).compile().as_text())
        assert " while(" in text, "one chunk only"
        found[name] = {"value": step(x, kernel), "all-gathers": text.count(" all-gather(")}
    return jax.tree.map(np.array, found)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4)
    arrays = {}
    for layout, changes in LAYOUTS.items():
        with pytest.MonkeyPatch.context() as patch:
            if "shard_map" in layout:
                patch.setattr(parallel, "_by_pmap", parallel._by_shard_map)
            found = results(changes)
        for path, leaf in jax.tree.leaves_with_path(found):
            arrays[f"{layout}|{jax.tree_util.keystr(path)}"] = leaf
    square._CHUNK_BYTES = winograd._TILE_BYTES = winograd._FEWEST_PRODUCTS = 1
    for devices in (1, 4):
        for path, leaf in jax.tree.leaves_with_path(convolutions(devices)):
            arrays[f"convolutions on {devices}|{jax.tree_util.keystr(path)}"] = leaf
    np.savez(sys.argv[1], **arrays)
