"""Times a synthesis call and a KD step, ours against PyTorch doing the same, turn by turn.

    python -m benchmarks.speed --pair wrn40_2-wrn16_1 --batch 256 --k 5 --out DIR

Checks first, in double precision, that both sides compute the same losses and adapted parameters. Then every side
runs in its own process; in each round every side has its turn. One process can be a tenth faster than the next
with the same program: `--starts` takes medians over several. Writes speed.json, speed.md and speed.png to
DIR. On a GPU both sides use it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.speed_report import draw, write_markdown
from benchmarks.timing import Worker
from benchmarks.torch_forms import FORMS

_MATRIX = 2048  # side of the matrix product that measures the machine's peak


@dataclasses.dataclass
class Measured:
    """The measurements of one side.

    Attributes:
      start_seconds: from the start of each process until the first call could start.
      call_seconds, kd_seconds: of each round of every start; a KD step's share of those run together.
      matrix_seconds: of a square product, each round.
      resident_bytes: before the first call, and the peak.
      device_peak_bytes: the device's own figure, where it has one.
      losses: first and last of the first call.
      convolutions: seconds of forward pass, input gradient and kernel gradient, in the order of the list.
    """

    start_seconds: list[float] = dataclasses.field(default_factory=list)
    call_seconds: list[float] = dataclasses.field(default_factory=list)
    kd_seconds: list[float] = dataclasses.field(default_factory=list)
    matrix_seconds: list[float] = dataclasses.field(default_factory=list)
    resident_bytes: tuple[int, int] = (0, 0)
    device_peak_bytes: int | None = None
    losses: tuple[float, float] = (0.0, 0.0)
    convolutions: list[tuple[float, float, float]] = dataclasses.field(default_factory=list)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measures everything; returns a tree that JSON can hold."""
    from benchmarks.case import Case  # imports jax, which reads the environment that main sets

    machine = _machine()
    overrides = tuple((name, json.loads(value)) for name, value in (pair.split("=", 1) for pair in args.set))
    teacher = str(args.teacher.resolve()) if args.teacher else ""
    case = Case(args.pair, args.batch, args.k, args.kd_steps, args.precision, teacher, overrides)
    preparation = Worker("benchmarks.case:Preparation", case, folder)
    costs, convolutions = preparation("costs")[0], preparation("convolutions")[0]
    preparation.close()

    agreement = {}
    if args.sides:
        checker = Worker("benchmarks.agreement:Agreement", case, folder)
        for form in args.sides:
            agreement[form] = checker("differences", form)[0]
            _say(f"{form}: " + ", ".join(f"{name} {value:.1e}" for name, value in agreement[form].items()))
            if max(agreement[form].values()) > args.tolerance:
                raise SystemExit(f"error: {form} and ours differ by more than {args.tolerance}: nothing was timed")
        checker.close()

    cached = case._replace(overrides=(*overrides, ("compilation_cache", str(folder / "cache"))))
    cold, cold_seconds = _start_ours(cached, folder)
    cold.close()
    measured = {name: Measured() for name in ("ours", *args.sides)}
    for start in range(args.starts):
        workers = {"ours": _start_ours(cached, folder)}
        for form in args.sides:
            worker = Worker("benchmarks.torch_side:TorchSide", case, folder, form)
            workers[form] = worker, worker.start_seconds
        for name, (worker, seconds) in workers.items():
            measured[name].start_seconds.append(seconds)
            _warm_up(name, worker, measured[name])
        for number in range(args.rounds):
            for name, (worker, _) in workers.items():
                _turn(f"start {start + 1}, round {number + 1}, {name}", worker, measured[name], case.kd_steps)
        for name, (worker, _) in workers.items():
            side = measured[name]
            side.resident_bytes = side.resident_bytes[0], max(side.resident_bytes[1], worker.resident_bytes()[1])
            side.device_peak_bytes = worker("peak_memory_bytes")[0]
            if args.convolutions and start + 1 == args.starts:
                side.convolutions = [worker("convolution", conv)[0] for conv in convolutions]
            worker.close()

    peak = 2 * _MATRIX**3 / min(min(side.matrix_seconds) for side in measured.values())
    return {
        "case": case._asdict() | {"overrides": dict(overrides), "teacher": Path(teacher).name},
        "starts": args.starts,
        "rounds": args.rounds,
        "machine": machine,
        "agreement": agreement,
        "call_flops": costs.synthesis_call(case.steps),
        "kd_flops": costs.kd_step(),
        "matrix_product_flops_per_second": peak,
        "start_seconds": {"cold": cold_seconds, "warm cache": measured["ours"].start_seconds[0]},
        "convolutions": [conv._asdict() | {"count": n, "flops": conv.flops} for conv, n in convolutions.items()],
        "sides": {name: dataclasses.asdict(side) for name, side in measured.items()},
    }


def _warm_up(name: str, worker: Worker, side: Measured) -> None:
    before, peak = worker.resident_bytes()
    side.resident_bytes = before, max(side.resident_bytes[1], peak)
    losses, seconds = worker("call")
    side.losses = losses[0], losses[-1]
    worker("kd")
    _say(f"{name}: warm-up call {seconds:.2f} s")


def _turn(title: str, worker: Worker, side: Measured, kd_steps: int) -> None:
    # Memory that was given back while the others had their turn, which a run alone does not pay for.
    worker("call")
    worker("kd")
    side.call_seconds.append(worker("call")[1])
    side.kd_seconds.append(worker("kd")[1] / kd_steps)
    side.matrix_seconds.append(worker("matrix_product", _MATRIX)[0])
    _say(f"{title}: call {side.call_seconds[-1]:.3f} s, KD step {side.kd_seconds[-1]:.3f} s")


def _start_ours(case: Any, folder: Path) -> tuple[Worker, float]:
    """Returns the worker and the seconds until its first call could start, compilation included."""
    worker = Worker("benchmarks.our_side:OurSide", case, folder)
    _, seconds = worker("compile")
    return worker, worker.start_seconds + seconds


def _machine() -> dict[str, Any]:
    model = platform.processor()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), model)
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        **{name: version(name) for name in ("jax", "jaxlib", "torch")},
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Parses the arguments and runs the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pair", default="wrn40_2-wrn16_1", help="teacher-student, of configs/cifar10.py")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--k", type=int, default=5, help="inner steps of a call")
    parser.add_argument("--kd-steps", type=int, default=2, help="KD steps of one turn; ours runs them in one dispatch")
    parser.add_argument("--starts", type=int, default=1, help="how often every side begins in a fresh process")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every side after each start")
    parser.add_argument("--sides", nargs="*", default=["plain", "tuned"], choices=FORMS, help="of PyTorch")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--teacher", type=Path, help="a checkpoint; random weights cost the same")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="more of our config, by dotted name")
    parser.add_argument("--no-convolutions", dest="convolutions", action="store_false")
    # Adam divides a gradient by its own size, which raises rounding errors of 1e-16.
    parser.add_argument("--tolerance", type=float, default=1e-6, help="largest relative difference between the sides")
    parser.add_argument("--out", type=Path, required=True, help="folder for speed.json, speed.md and speed.png")
    args = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch shares the GPU
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "speed.json").write_text(json.dumps(result, indent=1) + "\n")
    text = write_markdown(result)
    (args.out / "speed.md").write_text(text)
    draw(result, args.out / "speed.png")
    print(text)


if __name__ == "__main__":
    main()
