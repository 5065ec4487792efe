"""Kills a run at random moments, resumes it each time, and compares its end with an undisturbed run's.

    python -m benchmarks.kill_trial --kills 10 --workdir DIR -- --config configs/quickstart.py

What follows `--` are arguments of `fastdfkd_jax.main`. Prints one line of JSON; exit status 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from fastdfkd_jax.shards import read_shard


def start(arguments: list[str], workdir: Path) -> subprocess.Popen:
    """One try of the run, its words appended to a log beside the workdir."""
    command = [sys.executable, "-m", "fastdfkd_jax.main", *arguments, "--workdir", str(workdir)]
    with open(workdir.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def finish(arguments: list[str], workdir: Path) -> float:
    """Runs to the end; returns the seconds it took."""
    begin = time.perf_counter()
    status = start(arguments, workdir).wait()
    if status:
        raise SystemExit(f"the run ended with status {status}: see {workdir.with_suffix('.log')}")
    return time.perf_counter() - begin


def outcome(workdir: Path) -> dict[str, Any]:
    """All that must be equal: the student, every shard of the pool, every metric and the accuracies."""
    shards = sorted((workdir / "pool").glob("*.npz"))
    summary = json.loads((workdir / "summary.json").read_text())
    return {
        "student": load_file(workdir / "student.safetensors"),
        "pool": {path.name: read_shard(path)._asdict() for path in shards},
        "metrics": (workdir / "metrics.jsonl").read_text(),
        "accuracies": {name: value for name, value in summary.items() if "accuracy" in name},
    }


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Names of the parts that are not equal to the bit."""
    if isinstance(one, dict):
        names = one.keys() | other.keys()
        return [d for key in sorted(names) for d in differences(one.get(key), other.get(key), f"{name}/{key}")]
    return [] if np.array_equal(one, other) else [name]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("arguments", nargs="*", default=["--config", "configs/quickstart.py"])
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    seconds = finish(args.arguments, args.workdir / "undisturbed")
    moments, killed = random.Random(args.seed), []
    while len(killed) < args.kills:
        # Later moments would let the run end before it has been killed as often as asked.
        moment = moments.uniform(0, seconds / 2.5)
        process = start(args.arguments, args.workdir / "killed")
        try:
            process.wait(moment)
            break  # it ended before the moment came; the result names fewer kills
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed.append(round(moment, 2))
    finish(args.arguments, args.workdir / "killed")
    wrong = differences(outcome(args.workdir / "undisturbed"), outcome(args.workdir / "killed"))
    print(json.dumps({"killed_after_seconds": killed, "undisturbed_seconds": round(seconds, 1), "differences": wrong}))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
