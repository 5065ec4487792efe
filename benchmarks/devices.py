"""Compares lanes and batches on four devices with those on one: the same calls, compared after each.

    python -m benchmarks.devices cifar --axis tasks --teacher resnet20-12fca82f.th --record results/devices

Every layout runs in its own process, on a CPU split into devices. `cifar` is Fast-5 on CIFAR-10 with the real
ResNet-20 as teacher, `imagenet` the config `configs/imagenet.py:smoke` at 224 pixels. Prints the record and, with
--record, writes it. Exit status 1 where the first call differs by more than the tolerance.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fastdfkd_jax.configs import cifar10, imagenet
from fastdfkd_jax.distributed import parallel
from fastdfkd_jax.options import read
from fastdfkd_jax.pool import on_device
from fastdfkd_jax.storage import files
from fastdfkd_jax.training import run_records
from fastdfkd_jax.training.build import assemble
from fastdfkd_jax.training.programs import Programs, initial_state
from fastdfkd_jax.training.run_options import RunOptions

_DEVICES = 4
_KD_STEPS = 4
# What begins with equal states must differ by rounding: the first inner step of the first call, and a KD step on given
# images. A float32 sum over the batch or over lanes is off by some 1e-7 of its terms.
_FIRST_STEPS = {"first inner step: relative": 1e-4, "student after a step on given images: relative norm": 1e-4}
# A whole call only where its optimizers are gradient descent. Adam divides a gradient by its own size, so that in its
# first step every parameter moves by the whole rate, in a direction that for small gradients rounding decides; five
# steps and the choice of the best one carry that on.
TOLERANCES = {
    "published": _FIRST_STEPS,
    "sgd": {**_FIRST_STEPS, "images, levels of 255: mean": 0.1, "generator: relative norm": 1e-3},
}


def config_of(name: str, axis: str, devices: int, teacher: str, batch: int, optimizer: str) -> ConfigDict:
    """Returns the config of a case with one axis split over this number of devices."""
    if name == "cifar":
        config = cifar10.get_config("resnet20-wrn16_1-fast5")
        config.synthesis_batch = config.kd.batch = batch
        config.fastdfkd.reset_first_layer_at = 0
    else:
        config = imagenet.get_config("smoke")
        config.synthesis_batch = config.kd.batch = batch
    config.teacher.checkpoint = teacher
    config.data.source = ""
    config.kd.steps_per_call, config.kd.steps_per_dispatch = _KD_STEPS, 1
    config.calls, config.warmup_calls, config.synthesis_calls = 4, 1, 0  # the adversarial term is on from call 1
    if optimizer == "sgd":  # rates that move parameters about as far
        config.inner.optimizer, config.inner.generator_lr, config.inner.latents_lr = "sgd", 1e-2, 1e-1
        config.meta.optimizer, config.meta.lr, config.meta.kwargs = "sgd", 1e-2, ConfigDict()
    if axis == "tasks":
        config.fastdfkd.num_tasks = _DEVICES
        config.synthesis_batch = batch // _DEVICES  # of each lane
        config.parallel.task_devices = devices
    config.parallel.batch_devices = devices
    config.parallel.cpu_devices = _DEVICES
    return config


def run(config: ConfigDict, calls: int, path: Path) -> None:
    """Runs calls with their KD steps and saves, after each, images, generator, student and metrics."""
    parallel.split_cpu(config.parallel.cpu_devices)
    parts = assemble(config)
    programs, key = Programs(parts, read(RunOptions, config)), jax.random.key(config.seed)
    state = initial_state(key, parts)
    # With room for more: a pool that one batch fills would be laid over the devices as the batch is.
    filled = on_device.empty((calls + 1) * parts.method.images_per_call, parts.teacher.spec.input_shape)
    found: dict[str, np.ndarray] = {}
    devices: dict[str, int] = {}
    pixels = np.random.default_rng(0).integers(0, 256, filled.images.shape, np.uint8)
    given = filled._replace(images=pixels, size=np.int32(len(pixels)))
    student = parallel.copy(state["student"])  # as a KD step takes over what it is given
    alone, _, _ = programs.distill(student, parts.teacher_vars, given, key)
    alone = jax.tree.map(np.asarray, alone.variables)
    state = parallel.copy(state)
    for call in range(1, calls + 1):
        state["method"], filled, batch, info = programs.synthesize(
            state["method"], filled, parts.teacher_vars, state["student"].variables, key, np.int32(call)
        )
        kd: dict[str, Any] = {}
        for _ in range(_KD_STEPS):
            state["student"], _, kd = programs.distill(state["student"], parts.teacher_vars, filled, key)
        devices = {
            "synthesis": len(batch.images.sharding.device_set),
            "kd": len(jax.tree.leaves(state["student"].variables)[0].sharding.device_set),
        }
        trees = {
            "images": batch.images,
            "generator": state["method"].generator,
            "student after a step on given images": alone,
            "student": state["student"].variables,
            "first": {"loss": info["loss/first"], "moment gap": info["by_step/moment_gap"][0]},
            "metrics": {"synthesis": info, "kd": kd},
        }
        for leaf, value in jax.tree.leaves_with_path(trees):
            found[f"{call}|{jax.tree_util.keystr(leaf)}"] = np.asarray(value)
    found["devices"] = np.array(json.dumps(devices))
    np.savez(path, **found)  # pyright: ignore[reportArgumentType] - names are keywords


def differences(one: dict[str, np.ndarray], other: dict[str, np.ndarray], call: int) -> dict[str, float]:
    """Returns the greatest differences of a call, by the compared quantity."""

    def leaves(part: str) -> list[tuple[np.ndarray, np.ndarray]]:
        names = [name for name in one if name.startswith(f"{call}|['{part}']")]
        return [(one[name].astype(np.float64), other[name].astype(np.float64)) for name in names]

    def norm(part: str) -> float:
        flat = [np.concatenate([pair[i].ravel() for pair in leaves(part)]) for i in (0, 1)]
        return float(np.linalg.norm(flat[1] - flat[0]) / np.linalg.norm(flat[0]))

    ((images, others),) = leaves("images")
    levels = np.abs(images - others)
    metrics = [float(abs(a - b) / (abs(a) + 1e-6)) for a, b in leaves("metrics") if a.ndim == 0]
    first = {
        "first inner step: relative": max(float(abs(a - b) / abs(a)) for a, b in leaves("first")),
        "student after a step on given images: relative norm": norm("student after a step on given images"),
    }
    return {
        **(first if call == 1 else {}),
        "images, levels of 255: greatest": float(levels.max()),
        "images, levels of 255: mean": float(levels.mean()),
        "images, pixels that differ: share": float((levels > 0).mean()),
        "generator: greatest": max(float(np.abs(a - b).max()) for a, b in leaves("generator")),
        "generator: relative norm": norm("generator"),
        "student: greatest": max(float(np.abs(a - b).max()) for a, b in leaves("student")),
        "student: relative norm": norm("student"),
        "metrics: relative": max(metrics),
    }


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Runs both layouts, each in its own process, and returns the record of their differences."""
    found: dict[int, dict[str, np.ndarray]] = {}
    used: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for devices in (1, _DEVICES):
            path = Path(folder) / f"{devices}.npz"
            line = [sys.executable, "-m", "benchmarks.devices", *sys.argv[1:], "--devices", str(devices)]
            subprocess.run([*line, "--into", str(path)], check=True)
            with np.load(path) as arrays:
                found[devices] = dict(arrays)
            used[f"layout of {devices}"] = json.loads(str(found[devices].pop("devices")))
    by_call = {
        f"call {call}": {"differences": differences(found[1], found[_DEVICES], call)}
        for call in range(1, args.calls + 1)
    }
    first, tolerance = by_call["call 1"]["differences"], TOLERANCES[args.optimizer]
    config = config_of(args.case, args.axis, _DEVICES, args.teacher, args.batch, args.optimizer)
    return {
        "compared": f"{_DEVICES} devices x 1 lane with 1 device x {_DEVICES} lanes"
        if args.axis == "tasks"
        else f"a batch on {_DEVICES} devices with one on 1",
        "tolerance of call 1": tolerance,
        "within": all(first[name] <= bound for name, bound in tolerance.items()),
        "why": "float32 sums over lanes and over a batch are taken in another order, and programs are fused otherwise: "
        "what begins equal differs by rounding. Adam's first steps move each parameter by the whole rate in a "
        "direction that rounding decides where a gradient is small; ReLUs, clamps and the choice of the best step "
        "decide by a sign too. So what follows differs by more, and the more the later",
        "calls": by_call,
        "devices used": used,
        "kd steps of a call": _KD_STEPS,
        "config": run_records.without_places(config.to_dict()),
        "jax": jax.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "written": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Parses the arguments and runs the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("case", choices=("cifar", "imagenet"))
    parser.add_argument("--axis", choices=("tasks", "batch"), required=True)
    parser.add_argument("--teacher", required=True, help="checkpoint of ResNet-20, or of EfficientNet-Lite0")
    parser.add_argument("--batch", type=int, default=64, help="images of a call and of a KD step")
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--optimizer", choices=("published", "sgd"), default="published", help="of synthesis")
    parser.add_argument("--record", type=Path, help="folder in which the record is written")
    parser.add_argument("--devices", type=int, help=argparse.SUPPRESS)  # the two are for the processes that run
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.into is not None:
        config = config_of(args.case, args.axis, args.devices, args.teacher, args.batch, args.optimizer)
        run(config, args.calls, args.into)
        return
    record = compare(args)
    if args.record is not None:
        args.record.mkdir(parents=True, exist_ok=True)
        files.write_json(args.record / f"{args.case}-{args.axis}-{args.optimizer}.json", record)
    print(json.dumps(record, indent=2))
    sys.exit(not record["within"])


if __name__ == "__main__":
    main()
