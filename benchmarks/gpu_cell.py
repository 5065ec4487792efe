"""One cell of a visit to a GPU: one side of one case, timed for so many seconds; its record is written at once.

    python -m benchmarks.gpu_cell NAME --side ours --pair wrn40_2-wrn16_1 --batch 256 --seconds 20 --out DIR

`NAME.json` has milliseconds of a synthesis call, of an inner step and of a KD step, images a second, peak memory,
seconds until the first call and of compilation, and joules of a call; and, of one more call under the profiler, the
kernels and copies of a step, and its busy seconds over the median of the others. (Under the profiler XLA runs command
buffers as single kernels.) What the machine cannot tell is null, or says why. `benchmarks/gpu_visit.sh` has all cells.
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
    """The work of the GPU during one call.

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
    events = [event for event in recorded.events() or () if event.device_type == DeviceType.CUDA]
    events = (event for event in events if not event.is_user_annotation)
    return activity((event.time_range.start / 1e6, event.time_range.end / 1e6) for event in events)


@contextlib.contextmanager
def power() -> Iterator[list[float]]:
    """Gives a list that holds, when it ends, the GPU's watts every 50 ms; an empty one without nvidia-smi."""
    watts: list[float] = []
    command = shutil.which("nvidia-smi")
    if command is None:
        yield watts
        return
    words = [command, "--query-gpu=power.draw.instant", "--format=csv,noheader,nounits", "-lms", "50", "-i", "0"]
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


def measure(args: argparse.Namespace, folder: Path, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Measures a cell; passes the record to `keep` after every part, as a later part may hang or a profiler fail."""
    from benchmarks.case import Case, Preparation

    start = time.perf_counter()
    overrides = tuple((name, json.loads(value)) for name, value in (pair.split("=", 1) for pair in args.set))
    case = Case(args.pair, args.batch, args.k, args.kd_steps, args.precision, overrides=overrides, recipe=args.recipe)
    preparation = Preparation(case, folder)
    costs = preparation.costs()
    record: dict[str, Any] = {"case": case._asdict() | {"overrides": dict(overrides)}, "side": args.side}
    if args.side == "ours":
        from benchmarks.our_side import OurSide

        side, trace = OurSide(case, folder), traced_by_jax
        if "call" in args.parts:
            record["compile_seconds"] = side.compile()
    else:
        from benchmarks.torch_side import TorchSide

        side, trace = TorchSide(case, folder, args.side), traced_by_torch
    record |= {"machine": machine(args.side), "start_seconds": time.perf_counter() - start}
    record["settings"] = {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION")}
    parts: dict[str, tuple[Callable[[], Any], int]] = {"call": (side.call, case.steps), "kd": (side.kd, case.kd_steps)}
    lanes = preparation.config.fastdfkd.num_tasks
    for part in args.parts:
        run, steps = parts[part]
        first = seconds(run)
        results = [run() for _ in range(args.warm_ups)]
        with power() as watts:
            times = timed(run, args.seconds)
        middle = median(times)
        batches = lanes if part == "call" else steps
        flops = lanes * costs.synthesis_call(steps) if part == "call" else steps * costs.kd_step()
        record[part] = {
            "first_seconds": first,
            "after_warm_ups": results[-1] if results else None,  # losses, by which forms can be compared
            "milliseconds": [1e3 * value for value in times],
            "milliseconds_a_step": 1e3 * middle / steps,
            "images_a_second": args.batch * batches / middle,
            "flops_a_second": flops / middle,
            "joules": sum(watts) / len(watts) * middle if watts else None,
        }
        keep(record)
    record["peak_bytes"] = side.peak_memory_bytes()
    keep(record)
    for part in args.parts:
        (run, steps), found = parts[part], record[part]
        try:
            seen, why = trace(run), "no GPU"
        except Exception as error:  # what was timed stands, whatever becomes of the profiler
            seen, why = None, f"{type(error).__name__}: {error}"
        found["kernels_a_step"] = why if seen is None else seen.kernels / steps
        found["busy_share"] = why if seen is None else 1e3 * seen.busy_seconds / median(found["milliseconds"])
        keep(record)
    return record


def machine(side: str) -> dict[str, str]:
    """Returns the device and the versions."""
    if side == "ours":
        import jax

        return {"device": jax.devices()[0].device_kind, **{name: version(name) for name in ("jax", "jaxlib", "flax")}}
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": device, "torch": version("torch"), "cuda": str(torch.version.cuda)}


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the arguments and runs the measurement."""
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
    if args.side == "ours":
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    else:
        os.environ["JAX_PLATFORMS"] = "cpu"  # which only prepares the weights; the GPU is PyTorch's alone
        os.environ.setdefault("TEARDOWN_CUPTI", "0")  # a second profile of CUDA graphs can crash after a teardown
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        record = measure(args, Path(folder), lambda record: write_json(args.out / f"{args.name}.json", record))
    told = {part: f"{record[part]['milliseconds_a_step']:.3f} ms a step" for part in args.parts}
    print(args.name, *(f"{part} {text}" for part, text in told.items()), sep="  ", flush=True)


if __name__ == "__main__":
    main()
