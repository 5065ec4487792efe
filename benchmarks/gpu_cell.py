"""One cell of a visit to a GPU: one side of one case, timed for so many seconds; its record is written at once.

    python -m benchmarks.gpu_cell NAME --side ours --pair wrn40_2-wrn16_1 --batch 256 --seconds 20 --out DIR

`NAME.json` has milliseconds of a synthesis call, of an inner step and of a KD step, images a second, kernels of an
inner step and the share of the time in which the GPU is busy (of one call under the profiler), peak memory, seconds of
compilation and joules of a call. What the machine cannot tell is null. `benchmarks/gpu_visit.sh` has all cells.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.timing import seconds
from benchmarks.torch_forms import FORMS
from fastdfkd_jax.storage.files import write_json

_LEAST = 3  # timed calls, however slow they are


class Activity(NamedTuple):
    """What the GPU did during one call.

    Attributes:
      kernels: how many.
      busy_seconds: during which at least one ran.
    """

    kernels: int
    busy_seconds: float


def activity(spans: Iterable[tuple[float, float]]) -> Activity:
    """Of (begin, end) of each kernel, in seconds; kernels may overlap."""
    number, busy, until = 0, 0.0, float("-inf")
    for begin, end in sorted(spans):
        number += 1
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    return Activity(number, busy)


def traced_by_jax(run: Callable[[], Any]) -> Activity | None:
    """Runs something under JAX's profiler; None where there is no GPU."""
    import jax

    if jax.default_backend() != "gpu":
        return None
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (path,) = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
    return activity(
        (event.start_ns / 1e9, event.end_ns / 1e9)
        for plane in profile.planes
        if plane.name.startswith("/device:GPU")
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    )


def traced_by_torch(run: Callable[[], Any]) -> Activity | None:
    """Runs something under PyTorch's profiler; None where there is no GPU."""
    import torch
    from torch.profiler import DeviceType, ProfilerActivity, profile

    if not torch.cuda.is_available():
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        run()
    events = (event for event in recorded.events() or () if event.device_type == DeviceType.CUDA)
    return activity((event.time_range.start / 1e6, event.time_range.end / 1e6) for event in events)


@contextlib.contextmanager
def power() -> Iterator[list[float]]:
    """Gives a list that holds, when it ends, the GPU's watts every 50 ms; an empty one without nvidia-smi."""
    watts: list[float] = []
    command = shutil.which("nvidia-smi")
    if command is None:
        yield watts
        return
    words = [command, "--query-gpu=power.draw", "--format=csv,noheader,nounits", "-lms", "50", "-i", "0"]
    sampler = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield watts
    finally:
        sampler.terminate()
        output, _ = sampler.communicate()
        for line in output.splitlines():
            with contextlib.suppress(ValueError):  # the last one may be cut, and a card may not tell
                watts.append(float(line))


def timed(run: Callable[[], Any], most_seconds: float) -> list[float]:
    """Seconds of each run of something that waits for its results, for so long but three times at least."""
    run()
    times: list[float] = []
    while len(times) < _LEAST or sum(times) < most_seconds:
        times.append(seconds(run))
    return times


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The record of a cell."""
    from benchmarks.case import Case, Preparation

    overrides = tuple((name, json.loads(value)) for name, value in (pair.split("=", 1) for pair in args.set))
    case = Case(args.pair, args.batch, args.k, args.kd_steps, args.precision, overrides=overrides, recipe=args.recipe)
    preparation = Preparation(case, folder)
    costs = preparation.costs()
    start = time.perf_counter()
    if args.side == "ours":
        from benchmarks.our_side import OurSide

        side, trace = OurSide(case, folder), traced_by_jax
        side.compile()
    else:
        from benchmarks.torch_side import TorchSide

        side, trace = TorchSide(case, folder, args.side), traced_by_torch
    record: dict[str, Any] = {"case": case._asdict() | {"overrides": dict(overrides)}, "side": args.side}
    record |= {"machine": machine(args.side), "xla_flags": os.environ.get("XLA_FLAGS", "")}
    parts: dict[str, tuple[Callable[[], Any], int]] = {"call": (side.call, case.steps), "kd": (side.kd, case.kd_steps)}
    lanes = preparation.config.fastdfkd.num_tasks
    times_batch = {"call": lanes, "kd": case.kd_steps}
    for part in args.parts:
        run, steps = parts[part]
        first = seconds(run)
        for _ in range(args.warm_ups):
            run()
        with power() as watts:
            times = timed(run, args.seconds)
        middle = median(times)
        seen = trace(run)
        flops = lanes * costs.synthesis_call(case.steps) if part == "call" else case.kd_steps * costs.kd_step()
        record[part] = {
            "first_seconds": first,
            "milliseconds": [1e3 * value for value in times],
            "milliseconds_a_step": 1e3 * middle / steps,
            "images_a_second": args.batch * times_batch[part] / middle,
            "flops_a_second": flops / middle,
            "joules": sum(watts) / len(watts) * middle if watts else None,
            "kernels_a_step": None if seen is None else seen.kernels / steps,
            "busy_share": None if seen is None else seen.busy_seconds / middle,
        }
        record["start_seconds"] = time.perf_counter() - start - sum(times)
    return record | {"peak_bytes": side.peak_memory_bytes()}


def machine(side: str) -> dict[str, str]:
    """Device and versions."""
    if side == "ours":
        import jax

        return {"device": jax.devices()[0].device_kind, **{name: version(name) for name in ("jax", "jaxlib", "flax")}}
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "torch": version("torch"), "cuda": str(torch.version.cuda)}


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", help="of the record")
    parser.add_argument("--side", default="ours", choices=("ours", *FORMS))
    parser.add_argument("--recipe", default="cifar10", choices=("cifar10", "imagenet"), help="whose options it has")
    parser.add_argument("--pair", default="wrn40_2-wrn16_1", help="teacher-student")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--k", type=int, default=5, help="inner steps of a call")
    parser.add_argument("--kd-steps", type=int, default=20, help="KD steps of one dispatch")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=JSON", help="more of our config, by dotted name"
    )
    parser.add_argument("--parts", nargs="+", default=["call", "kd"], choices=("call", "kd"))
    parser.add_argument("--warm-ups", type=int, default=3, help="runs before those that are timed")
    parser.add_argument("--seconds", type=float, default=3.0, help="for which each part is timed")
    parser.add_argument("--out", type=Path, required=True, help="folder of the record")
    args = parser.parse_args(argv)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with tempfile.TemporaryDirectory() as folder:
        record = measure(args, Path(folder))
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / f"{args.name}.json", record)
    told = {part: f"{record[part]['milliseconds_a_step']:.3f} ms a step" for part in args.parts}
    print(args.name, *(f"{part} {text}" for part, text in told.items()), sep="  ", flush=True)


if __name__ == "__main__":
    main()
